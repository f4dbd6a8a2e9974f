"""One window of the full model, and what is wrong with it.

Letters: V views, C latent channels, F latent frames, H and W latent pixels, P patches of a frame,
T control steps, A action width, S state width, L text tokens, X text width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 2  # latent pixels a side; one latent frame deep, in Wan 2.1 and in Wan 2.2


@dataclass(frozen=True)
class Limits:
    """What a model was built for; every window must fit."""

    latent_channels: int
    text_width: int
    cameras: int
    embodiments: int
    state_width: int
    action_width: int
    max_frames: int  # latent frames of a row, the budget of packing
    max_steps: int  # control steps of an event
    patch_steps: int  # control steps of an action token; windows are padded to whole tokens


@dataclass(frozen=True)
class Window:
    """Clean frames (history, then the anchor), the future, and actions from the anchor on.

    In event mode the window ends where the event ends and one frame is clean; in unified mode the
    numbers of history frames, future frames and steps are fixed. When acting there is no future
    and there are no actions: F equals `clean`, T is 0.
    """

    latents: Tensor  # (V, C, F, H, W) of all views at equal instants
    clean: int  # how many frames are given, at least the anchor
    frame_s: Tensor  # (F,) seconds of each latent frame after the anchor; history is negative
    camera: Tensor  # (V,) int64, row of the camera table; -1 where a view is missing
    inside: Tensor  # (V, F, P) bool, False for black borders and what lies outside the picture
    text: Tensor  # (L, X) the text side: features of a sentence, or staircase latents
    text_mask: Tensor  # (L,) bool
    state: Tensor  # (S,) normalised proprioception at the anchor
    state_mask: Tensor  # (S,) bool, which of them this robot has
    embodiment: int  # row of the embodiment table
    actions: Tensor  # (T, A) normalised
    action_mask: Tensor  # (A,) bool, which of them this robot has
    step_s: float  # seconds of one control step
    left_s: float | None  # seconds from the anchor to the event's end, None where not known
    done: float | None  # how far through the event the anchor is, 0..1
    meet: Tensor | None = None  # (F, V * P, V * P) bool, patches whose viewing cones can meet

    def check(self, limits: Limits) -> None:
        """ValueError that lists everything wrong: field, expected, got."""
        wrong = _sizes(self, limits) or [*_ranges(self, limits), *_numbers(self)]
        if wrong:
            raise ValueError(f"Window: {'; '.join(wrong)}.")


def with_text(window: Window, text: Tensor, tokens: int) -> Window:
    """The window with another text side (K, X), padded under its mask to `tokens`.

    Unified mode has three on one denoiser: the global instruction, one atomic instruction per
    chunk, or the states of the staircase.
    """
    if len(text) > tokens:
        raise ValueError(f"Text side: expected at most {tokens} tokens, got {len(text)}.")
    padded = F.pad(text, (0, 0, 0, tokens - len(text)))
    mask = torch.arange(tokens, device=text.device) < len(text)
    return replace(window, text=padded, text_mask=mask)


def _sizes(window: Window, limits: Limits) -> list[str]:
    """Shapes that contradict the latents or the limits."""
    if window.latents.dim() != 5:
        return [f"latents: expected (V, C, F, H, W), got {tuple(window.latents.shape)}"]
    v, c, f, h, w = window.latents.shape
    p, t = h * w // PATCH**2, window.actions.shape[0]
    text, state, action = len(window.text), limits.state_width, limits.action_width
    expected: dict[str, tuple[int, ...]] = {
        "frame_s": (f,), "camera": (v,), "inside": (v, f, p), "text": (text, limits.text_width),
        "text_mask": (text,), "state": (state,), "state_mask": (state,), "actions": (t, action),
        "action_mask": (action,),
    }  # fmt: skip
    if window.meet is not None:
        expected["meet"] = (f, v * p, v * p)
    got = {name: tuple(getattr(window, name).shape) for name in expected}
    wrong = [f"{n}: expected shape {e}, got {got[n]}" for n, e in expected.items() if got[n] != e]
    if c != limits.latent_channels:
        wrong.append(f"latents: expected {limits.latent_channels} channels, got {c}")
    if h % PATCH or w % PATCH:
        wrong.append(f"latents: expected sides that are multiples of {PATCH}, got {h} x {w}")
    return wrong


def _ranges(window: Window, limits: Limits) -> list[str]:
    """Counts and ids that the model has no room for."""
    f, t = window.latents.shape[2], window.actions.shape[0]
    wrong = []
    if not 1 <= window.clean <= f:
        wrong.append(f"clean: expected 1 to {f} frames, got {window.clean}")
    if f > limits.max_frames:
        wrong.append(
            f"latents: event longer than the budget of {limits.max_frames} latent frames, got {f}"
        )
    if t > limits.max_steps:
        wrong.append(
            f"actions: event longer than the budget of {limits.max_steps} control steps, got {t}"
        )
    if not 0 <= window.embodiment < limits.embodiments:
        wrong.append(
            f"embodiment: unknown, expected an id below {limits.embodiments}, "
            f"got {window.embodiment}; train fewer robots together, or a preset for more"
        )
    cameras = window.camera.tolist()
    present = [c for c in cameras if c != -1]
    if any(not 0 <= c < limits.cameras for c in present):
        wrong.append(
            f"camera: expected ids below {limits.cameras} (or -1 for a missing view), got "
            f"{cameras}; leave some cameras out, or choose a preset for more"
        )
    if not present or len(set(present)) < len(present):
        wrong.append(f"camera: expected at least one view, each once, got {cameras}")
    return wrong


def _numbers(window: Window) -> list[str]:
    """NaN and infinite numbers, empty text, impossible times."""
    fields = ("latents", "frame_s", "text", "state", "actions")
    bad = {n: int((~torch.isfinite(getattr(window, n))).sum()) for n in fields}
    wrong = [f"{n}: expected finite numbers, got {k} NaN or infinite" for n, k in bad.items() if k]
    if not window.text_mask.any():
        wrong.append("text_mask: expected at least one token, got none")
    if not window.step_s > 0:
        wrong.append(f"step_s: expected more than 0 seconds, got {window.step_s}")
    if window.left_s is not None and not window.left_s > 0:
        wrong.append(f"left_s: expected more than 0 seconds, got {window.left_s}")
    if window.done is not None and not 0 <= window.done <= 1:
        wrong.append(f"done: expected 0 to 1, got {window.done}")
    return wrong
