"""Trainings of `ablation.py`: an arm's own windows and start, and what a trained model is asked.

Every figure is an error on held-out events (from their start and their middle, some fixed noises,
averaged weights), told words where the arm was trained with them; less is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.pretraining.frame_files import FrameFiles, Index
from components.pretraining.full_windows import FullWindows, Span
from components.pretraining.stage import Config
from components.pretraining.training import Training
from models import schedule
from models.acting import denoised
from models.dct import dct_matrix
from models.draws import Chances, Draw, collate_draws, draw
from models.flow_matching import velocity
from models.packed import Packed
from models.rows import Rows, collate, of_event
from models.wall import WallModel, held, noised
from models.wan import fold
from models.windows import Window

NOISE_DRAWS = 4
MEAN_BATCHES = 20  # of training, for the mean picture of each camera
Change = Callable[[Training], None] | None


class Letterboxed(FullWindows):
    """Pictures squeezed to half their height between black borders."""

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, config)
        self.frames = _Squeezed(self.frames.folder, self.frames.shape)


class _Squeezed(FrameFiles):
    def read(self, episodes: Index, frames: Index) -> npt.NDArray[np.uint8]:
        whole = super().read(episodes, frames)
        high = whole.shape[-3]
        out = np.zeros_like(whole)
        halves = whole.reshape(*whole.shape[:-3], high // 2, 2, *whole.shape[-2:])
        out[..., high // 4 : high // 4 + high // 2, :, :] = halves.mean(axis=-3)
        return out


class BordersUnknown(Letterboxed):
    """The same, and nobody says where the borders are."""

    def window(self, event: int, span: Span, words: str) -> Window:
        """Everything counts as picture."""
        window = super().window(event, span, words)
        return replace(window, inside=torch.ones_like(window.inside))


class TwoRobots(FullWindows):
    """Every second episode is another robot's: no gripper, its axes in another order and sense."""

    def window(self, event: int, span: Span, words: str) -> Window:
        """Embodiment 1 has three columns of the four, turned about."""
        window = super().window(event, span, words)
        if self.arrays["event_episode"][event] % 2 == 0:
            return window
        return replace(
            window, embodiment=1,
            state=_turned(window.state), state_mask=_three(window.state_mask),
            actions=_turned(window.actions), action_mask=_three(window.action_mask),
        )  # fmt: skip


class NoMasks(TwoRobots):
    """The same, and nobody says which columns a robot has."""

    def window(self, event: int, span: Span, words: str) -> Window:
        """Padding counts as values of zero."""
        window = super().window(event, span, words)
        return replace(
            window,
            state_mask=torch.ones_like(window.state_mask),
            action_mask=torch.ones_like(window.action_mask),
        )


class OneName(TwoRobots):
    """The same, and nobody says which robot it is."""

    def window(self, event: int, span: Span, words: str) -> Window:
        """All are embodiment 0."""
        return replace(super().window(event, span, words), embodiment=0)


class Siblings(FullWindows):
    """Every second episode is another robot's that looks the same in all that the model is told.

    Its hand obeys other commands: three action columns in another order and sense.
    """

    def window(self, event: int, span: Span, words: str) -> Window:
        """Embodiment 1 keeps the gripper's column and the state."""
        window = super().window(event, span, words)
        if self.arrays["event_episode"][event] % 2 == 0:
            return window
        actions = torch.cat([-window.actions[:, :3].flip(-1), window.actions[:, 3:]], dim=-1)
        return replace(window, embodiment=1, actions=actions)


class SiblingsUnnamed(Siblings):
    """The same, and nobody says which robot it is."""

    def window(self, event: int, span: Span, words: str) -> Window:
        """All are embodiment 0."""
        return replace(super().window(event, span, words), embodiment=0)


class NoState(FullWindows):
    """Where the hand is, and how it moves, must be seen."""

    def window(self, event: int, span: Span, words: str) -> Window:
        """No column of the state is the robot's."""
        window = super().window(event, span, words)
        none = torch.zeros_like(window.state_mask)
        return replace(window, state=torch.zeros_like(window.state), state_mask=none)


class LatePictures(FullWindows):
    """The pictures of the anchor have not arrived yet; those before have."""

    def window(self, event: int, span: Span, words: str) -> Window:
        """Grey at the anchor."""
        window = super().window(event, span, words)
        latents = window.latents.clone()
        latents[:, :, span.clean - 1] = 0
        return replace(window, latents=latents)


class CameraAway(FullWindows):
    """One camera is missing in each event, another by turns."""

    def window(self, event: int, span: Span, words: str) -> Window:
        """As a view that was not recorded, with nothing inside."""
        window = super().window(event, span, words)
        camera, inside = window.camera.clone(), window.inside.clone()
        camera[event % len(camera)], inside[event % len(camera)] = -1, False
        return replace(window, camera=camera, inside=inside)


def _turned(values: Tensor) -> Tensor:
    out = torch.zeros_like(values)
    out[..., :3] = -values[..., :3].flip(-1)
    return out


def _three(mask: Tensor) -> Tensor:
    return mask & (torch.arange(len(mask)) < 3)


@dataclass(frozen=True)
class Arm:
    """One training: values that differ from `params.yaml`, its windows, model, start and anchor."""

    values: dict[str, Any] = field(default_factory=dict)
    change: Change = None
    windows: type[FullWindows] = FullWindows
    truth: type[FullWindows] | None = None  # by whose masks it is judged, if not by its own
    video_from: Arm | None = None  # whose trained video tower it starts from
    anchor: int = schedule.ANCHOR_STEP
    length: float = 1.0  # times --steps

    @property
    def key(self) -> str:
        """Equal arms are trained once."""
        start = self.video_from.key if self.video_from else None
        names = self.windows.__name__, getattr(self.change, "__name__", None)
        return f"{sorted(self.values.items())} {names} {self.anchor} {self.length:g} {start}"


def changed(config: Config, of: dict[str, Any]) -> Config:
    """The values with some of the full model's, or of all, replaced."""
    own = {name: value for name, value in of.items() if name in type(config.full).model_fields}
    rest = {name: value for name, value in of.items() if name not in own}
    return config.model_copy(update=rest | {"full": config.full.model_copy(update=own)})


@contextmanager
def anchored(step: int) -> Iterator[None]:
    """The anchor at another step of 50."""
    usual, schedule.ANCHOR_STEP = schedule.ANCHOR_STEP, step
    try:
        yield
    finally:
        schedule.ANCHOR_STEP = usual


class Run:
    """One training and what is asked of it."""

    def __init__(
        self, folder: Path, config: Config, arm: Arm, steps: int, start: Run | None,
        batches: dict[str, Packed],
    ) -> None:  # fmt: skip
        self.windows = arm.windows(folder, config)
        self.truth = (arm.truth or arm.windows)(folder, config)
        self.windows.steps = steps
        self.training = Training(self.windows, config)
        if start is not None:
            self._take_video(start)
        if arm.change is not None:
            arm.change(self.training)
        f, drop = config.full, (config.caption_drop_short, config.caption_drop_long)
        shown = f"{f.windows} {f.history_frames} {f.sight_cones}"
        read = f"{arm.windows.__name__} {drop} {shown} {folder}"
        for step in range(steps):
            key = f"{read} {step}"
            if key not in batches:
                batches[key] = self.windows.batch(step, 0, 1)
            self.training.step(step, replace(batches[key], chances=self.windows.chances))
        self.training.take_average()
        self.told = min(drop) < 1

    @property
    def model(self) -> WallModel:
        """What was trained."""
        assert isinstance(self.training.model, WallModel)
        return self.training.model

    def _take_video(self, start: Run) -> None:
        for name, parameter in start.model.named_parameters():
            if name.startswith("video."):
                self.model.get_parameter(name).data.copy_(parameter.detach())
                if name in self.training.average:
                    self.training.average[name].copy_(parameter.detach())

    @property
    def fall(self) -> dict[str, tuple[float, float]]:
        """Means of each loss over the first and the last 5 % of the steps."""
        curve = self.training.curve.numpy()
        part = max(1, len(curve) // 20)
        return {
            name: (float(curve[:part, i].mean()), float(curve[-part:, i].mean()))
            for i, name in enumerate(self.training.columns)
            if name in self.model.terms
        }

    @cache  # noqa: B019  a run lives as long as its figures are asked for
    def held_out(self, *, told: bool, true: bool = False) -> list[Window]:
        """Every event that is held out, from its start and from its middle."""
        w = self.truth if true else self.windows
        events = np.flatnonzero(w.arrays["event_validation"]).tolist()
        spots = [
            (e, int(a + share * (b - a)))
            for e in events
            for a, b in [(w.arrays["event_start"][e], w.arrays["event_end"][e])]
            for share in (0.0, 0.5)
        ]
        return [w.window(e, w.span(e, at), w.words(e) if told else "") for e, at in spots]

    def noises(self, chances: Chances, *, told: bool) -> Iterator[tuple[Rows, Rows, Draw]]:
        """The held-out events under fixed noise, some times: as seen, and as they are.

        Each window draws by itself, so that arms whose windows differ in size are asked at the same
        noise levels.
        """
        limits = self.windows.shape.limits
        batch = Packed.of(self.held_out(told=told), limits, chances)
        true = Packed.of(self.held_out(told=told, true=True), limits, chances)
        for seed in range(NOISE_DRAWS):
            drawn = [
                draw(window, chances, torch.Generator().manual_seed(NOISE_DRAWS * i + seed))
                for i, window in enumerate(batch.windows)
            ]
            yield batch.rows, true.rows, collate_draws(drawn, batch.placed)

    def untubed(self) -> Chances:
        """How this run draws, with nothing hidden and as many action draws for all."""
        samples = 8 if self.windows.chances.coupling == "asymmetric" else 1
        return replace(self.windows.chances, tube_probability=0.0, action_samples=samples)

    @cache  # noqa: B019
    @torch.no_grad()
    def action_loss(self, *, silent: bool = False) -> float:
        """The flow-matching loss of actions."""
        drawn = self.noises(self.untubed(), told=self.told and not silent)
        return float(np.mean([float(self.model.losses(r, d).action) for r, _, d in drawn]))

    @cache  # noqa: B019
    @torch.no_grad()
    def video_loss(self) -> float:
        """The flow-matching loss of the future, where there is a picture."""
        squares, counts = 0.0, 0.0
        for rows, true, drawn in self.noises(self.untubed(), told=self.told):
            said = self._said(rows, drawn, None)
            off = (said - fold(velocity(rows.latents, drawn.noise))).square().mean(dim=-1)
            asked = (true.inside & ~rows.clean[:, None, :, None]).float()
            squares, counts = squares + float((off * asked).sum()), counts + float(asked.sum())
        return squares / counts

    @cache  # noqa: B019
    @torch.no_grad()
    def behind(self, side: int) -> float:
        """Square error of what is said to be behind a tube, as a share of the mean picture's.

        A tube hides the noise too, so the best velocity is minus the expected latent there. The
        mean picture is the camera's, over windows of the training: 1 is to know nothing but that.
        """
        chances = replace(self.windows.chances, tube_probability=1.0, tube_side=side)
        mean, squares, least = self._mean_picture(), 0.0, 0.0
        for rows, _, drawn in self.noises(chances, told=self.told):
            said = self._said(rows, drawn, drawn.hidden)
            there = fold(rows.latents)
            asked = (drawn.hidden & rows.inside & ~rows.clean[:, None, :, None])[..., None]
            squares += float(((said + there).square() * asked).sum())
            least += float(((there - mean).square() * asked).sum())
        return squares / least

    def _said(self, rows: Rows, drawn: Draw, hidden: Tensor | None) -> Tensor:
        sigma = torch.where(rows.clean, 0.0, of_event(drawn.sigma, rows.frame_event))
        said, _ = self.model.video(noised(rows.latents, drawn.noise, sigma), sigma, rows, hidden)
        return said

    def _mean_picture(self) -> Tensor:
        """(V, 1, P, 4 C) of each camera."""
        total, count = torch.zeros(()), torch.zeros(())
        for step in range(MEAN_BATCHES):
            rows = self.windows.batch(step, 0, 1).rows
            asked = (rows.inside & ~rows.clean[:, None, :, None])[..., None]
            total = total + (fold(rows.latents) * asked).sum(dim=(0, 2), keepdim=True)[0]
            count = count + asked.sum(dim=(0, 2), keepdim=True)[0]
        return total / count.clamp(min=1)

    @cache  # noqa: B019
    @torch.no_grad()
    def acted(self, steps: int = 5) -> dict[str, float]:
        """Generated actions against those recorded; `fast` is the upper half of frequencies."""
        limits = self.windows.shape.limits
        rows = collate(self.held_out(told=self.told), limits)
        mask = collate(self.held_out(told=self.told, true=True), limits).action_mask.float()
        still = replace(rows, latents=held(rows), actions=torch.zeros_like(rows.actions))
        transform = dct_matrix(rows)
        both = mask[:, 2:] * mask[:, 1:-1] * mask[:, :-2]
        fast = (2 * rows.step >= rows.steps)[..., None] * mask
        found: list[dict[str, float]] = []
        for seed in range(NOISE_DRAWS):
            made, _ = denoised(self.model, still, steps, torch.Generator().manual_seed(seed))
            error = (made - rows.actions) * mask
            bend = made[:, 2:] - 2 * made[:, 1:-1] + made[:, :-2]
            squares = (transform @ error).square()
            found.append({
                "error": float(error.abs().sum() / mask.sum()),
                "fast": float((squares * fast).sum() / fast.sum()),
                "jitter": float(((bend.square() * both).sum() / both.sum()).sqrt()),
            })  # fmt: skip
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}

    @cache  # noqa: B019
    @torch.no_grad()
    def ends(self) -> dict[str, float]:
        """Where the model thinks that events end: errors, and those of one constant."""
        windows = self.held_out(told=self.told)
        rows = collate(windows, self.windows.shape.limits)
        left, done = self.model.ends(rows.only_clean())
        known = np.array([w.left_s for w in windows]), np.array([w.done for w in windows])
        log = np.log(known[0])
        return {
            "left": float(np.abs(left[:, 0].numpy() - log).mean()),
            "left_constant": float(np.abs(log - np.median(log)).mean()),
            "done": float(np.abs(done[:, 0].sigmoid().numpy() - known[1]).mean()),
            "done_constant": float(np.abs(known[1] - np.median(known[1])).mean()),
        }
