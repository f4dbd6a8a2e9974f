"""The action tower of the full model: as deep as the video tower, block i reads video block i.

One way only: video never reads actions, and features are detached, so the action's gradients never
reach the video tower (WALL-WM, section Model). Two learned time codes, one for action queries and
one for video keys, put both on one axis in seconds, so robots and cameras of any rate meet; keys
carry their camera and place in its picture, too, which the video's rotary codes leave in no
feature. A token is `patch_steps` control steps (1 at scale; more where a CPU trains at 80 Hz).
Blocks read the text side too: through the detached video alone, no gradient would find its way from
an action to a latent of the staircase, and unified mode wants that path differentiable.

Actions and states of all robots are vectors of one width under masks; the mask is an input beside
the values, and each robot has an embedding. `Ends` says where execution ends, see there.

Letters as in `windows.py` and `wan.py`; T' tokens of T control steps; N noise draws of the action
share one pass of the video, D is this tower's width, G the video tower's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention, FeedForward, Modulation, modulate, sinusoidal
from models.rows import Rows, of_event
from models.windows import PATCH

USED_COLUMNS = 8  # of a vector for all robots, about what one of them fills
LEAST_SIGMA = 0.05  # x-prediction divides by no less (Li and He 2025, "Back to basics")


@dataclass(frozen=True)
class ActionShape:
    """Sizes of an action tower; its depth is the video tower's."""

    heads: int
    head_width: int
    state_width: int
    action_width: int
    embodiments: int  # rows of the embodiment table
    prediction: Literal["v", "x"]  # what the head says: velocity, or the clean action
    patch_steps: int  # control steps in one token

    @property
    def width(self) -> int:
        """D, numbers of a token."""
        return self.heads * self.head_width

    def as_dict(self) -> dict[str, int | str]:
        """For config.json; `ActionShape(**d)` is its inverse."""
        return asdict(self)


class PlaceCode(nn.Module):
    """A learned code of the camera and of the place in its picture where a patch was seen.

    The video tower turns keys and queries by places and cameras; its features do not carry them.
    """

    def __init__(self, cameras: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.camera = nn.Embedding(cameras, width)

    def forward(self, camera: Tensor, high: int, wide: int) -> Tensor:
        """camera (B, V, F), patches high and wide -> (B, V, F, P, D)."""
        half = self.linear.in_features // 2
        down, right = (
            sinusoidal((torch.arange(n, device=camera.device) + 0.5) / n * 1000, half)
            for n in (high, wide)
        )
        places = torch.cat(
            [down[:, None].expand(-1, wide, -1), right[None].expand(high, -1, -1)], dim=-1
        )
        seen: Tensor = self.linear(places.flatten(0, 1).to(self.linear.weight.dtype))
        of_camera: Tensor = self.camera(camera.clamp(min=0))
        return of_camera[..., None, :] + seen


class TimeCode(nn.Module):
    """A learned code of seconds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, at_s: Tensor) -> Tensor:
        """(...,) seconds -> (..., D)."""
        code = sinusoidal(at_s * 1000, self.linear.in_features)
        out: Tensor = self.linear(code.to(self.linear.weight.dtype))
        return out


Memory = tuple[Tensor, Tensor]
"""Keys and values of what a block reads; they do not depend on the actions or their noise."""


class Reading(NamedTuple):
    """What the tower knows before it sees actions: made once, used in every denoising step."""

    memories: list[tuple[Memory, Memory]]  # for each block, of views and of text
    robot: Tensor  # (B, E, D)
    code: Tensor  # (B, 1, T', D) when each token's first action is
    own_steps: Tensor | None  # (B, T', T') bool, what may be read; None where everything may
    own_views: Tensor | None  # (B, T', V * F * P)
    own_text: Tensor | None  # (B, T', E * L)
    token_event: Tensor  # (B, T')


class ActionBlock(nn.Module):
    """Attention over the event, to the views, to the text; feed-forward. AdaLN gates three."""

    def __init__(self, width: int, heads: int, video_width: int) -> None:
        super().__init__()
        self.within = Attention(width, heads)
        self.views = Attention(width, heads, video_width)
        self.text = Attention(width, heads)
        self.feed = FeedForward(width)
        self.modulation = Modulation(width)

    def remember(self, seen: Tensor, text: Tensor) -> tuple[Memory, Memory]:
        """Keys and values of seen (B, V * F * P, G) and of text (B, E * L, D).

        A method of the block, so that FSDP can gather the block's parameters for it.
        """
        return self.views.remember(seen), self.text.remember(text)

    def forward(
        self, x: Tensor, condition: Tensor, memory: tuple[Memory, Memory], reading: Reading
    ) -> Tensor:
        """x (B, N, T', D), condition (B, E, N, D) -> (B, N, T', D)."""
        views, text = memory
        b, n, t, _ = x.shape
        levels = of_event(self.modulation(condition), reading.token_event).transpose(1, 2)
        s1, c1, g1, s2, c2, g2, s3, c3, g3 = levels.chunk(9, dim=-1)
        own = None if reading.own_steps is None else reading.own_steps.repeat_interleave(n, 0)
        within = self.within(modulate(x, s1, c1).flatten(0, 1), mask=own)
        x = x + g1 * within.unflatten(0, (b, n))
        asking = (modulate(x, s2, c2) + reading.code).flatten(1, 2)
        seen = self.views.recall(asking, views, _repeated(reading.own_views, n))
        x = x + g2 * seen.unflatten(1, (n, t))
        asking = F.layer_norm(x, x.shape[-1:]).flatten(1, 2)
        told = self.text.recall(asking, text, _repeated(reading.own_text, n))
        x = x + told.unflatten(1, (n, t))
        out: Tensor = x + g3 * self.feed(modulate(x, s3, c3))
        return out


class ActionTower(nn.Module):
    """Denoises actions of N draws at once; reads the video's features and never changes them."""

    def __init__(
        self, shape: ActionShape, depth: int, video_width: int, text_width: int, cameras: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape = shape
        width = shape.width
        self.embedding = nn.Linear(2 * shape.action_width * shape.patch_steps, width)
        self.state = nn.Linear(2 * shape.state_width, width)
        self.embodiment = nn.Embedding(shape.embodiments, width)
        self.text = nn.Linear(text_width, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.action_code, self.video_code = TimeCode(width), TimeCode(video_width)
        self.place_code = PlaceCode(cameras, video_width)
        self.blocks = nn.ModuleList(
            ActionBlock(width, shape.heads, video_width) for _ in range(depth)
        )
        self.head = nn.Linear(width, shape.action_width * shape.patch_steps)
        self.ends = Ends(width, shape.heads, video_width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for vectors, steps in ((self.embedding, shape.patch_steps), (self.state, 1)):
            used = USED_COLUMNS * steps  # or what a robot does not have drowns it out
            nn.init.normal_(vectors.weight, std=used**-0.5)
        nn.init.normal_(self.embodiment.weight)  # as large as a state's share, or that drowns it

    def read(self, rows: Rows, video: list[Tensor]) -> Reading:
        """What all noise draws and denoising steps share.

        video: features (B, V, F * P, G) of each block. The actions of `rows` are not read.
        """
        text = self.text(rows.text).flatten(1, 2)
        token_event = rows.step_event[:, :: self.shape.patch_steps]
        code = self._seen_at(rows)
        features = [_normed(f.detach().flatten(1, 2)) + code for f in video]
        own_steps = own_views = own_text = None
        if not rows.whole:
            own_steps = token_event[:, :, None] == token_event[:, None]
            own_views = _own_views(token_event, rows)
            own_text = _own_text(token_event, rows)
        blocks = [cast(ActionBlock, block) for block in self.blocks]
        return Reading(
            memories=[b.remember(f, text) for b, f in zip(blocks, features, strict=True)],
            robot=self._robot(rows),
            code=self.action_code(rows.step_at_s[:, :: self.shape.patch_steps])[:, None],
            own_steps=own_steps, own_views=own_views, own_text=own_text,
            token_event=token_event,
        )  # fmt: skip

    def forward(self, noisy: Tensor, sigma: Tensor, rows: Rows, reading: Reading) -> Tensor:
        """The velocity (B, N, T, A) of noisy actions (B, N, T, A) at noise levels sigma (B, E, N).

        Of `rows` only masks and places are read.
        """
        mask = rows.action_mask[:, None].expand(noisy.shape)
        given = torch.cat([noisy * mask, mask.to(noisy.dtype)], dim=-1)
        patches = given.unflatten(2, (-1, self.shape.patch_steps)).flatten(3)
        x = self.embedding(patches) + reading.code
        level = self.time(sinusoidal(sigma * 1000, self.shape.width).to(noisy.dtype))
        condition = level + reading.robot[:, :, None]
        for block, memory in zip(self.blocks, reading.memories, strict=True):
            x = block(x, condition, memory, reading)
        of_steps = self.head(_normed(x)).unflatten(-1, (self.shape.patch_steps, -1))
        said: Tensor = of_steps.flatten(2, 3)
        if self.shape.prediction == "v":
            return said
        own = of_event(sigma, rows.step_event).transpose(1, 2)[..., None]
        return ((noisy - said) / self.level(own)).type_as(noisy)

    def level(self, sigma: Tensor) -> Tensor:
        """By what the way from noisy to clean actions is divided to give what `forward` gives."""
        return sigma if self.shape.prediction == "v" else sigma.clamp(min=LEAST_SIGMA)

    def where_it_ends(self, rows: Rows, features: Tensor) -> tuple[Tensor, Tensor]:
        """(log of seconds left (B, E), logit of the part that is done (B, E)) of every window.

        rows and features (B, V, F * P, G) of a video block must hold clean frames only.
        """
        seen = _normed(features.detach().flatten(1, 2)) + self._seen_at(rows)
        events = torch.arange(rows.state.shape[1], device=seen.device).expand(len(seen), -1)
        own_views = own_text = None
        if not rows.whole:
            own_views, own_text = _own_views(events, rows), _own_text(events, rows)
        text = self.text(rows.text).flatten(1, 2)
        left, done = self.ends(self._robot(rows), seen, own_views, text, own_text)
        return left, done

    def _robot(self, rows: Rows) -> Tensor:
        """(B, E, D) of state and embodiment."""
        state = torch.cat([rows.state, rows.state_mask.to(rows.state.dtype)], dim=-1)
        out: Tensor = self.state(state) + self.embodiment(rows.embodiment)
        return out

    def _seen_at(self, rows: Rows) -> Tensor:
        """(B, V * F * P, G): codes of when, by which camera and where each patch was seen."""
        code: Tensor = self.video_code(rows.frame_s)[:, None, :, None]
        high, wide = (side // PATCH for side in rows.latents.shape[-2:])
        places: Tensor = self.place_code(rows.camera.transpose(1, 2), high, wide)
        return (code + places).flatten(1, 3)


class EndsBlock(nn.Module):
    """A look at the views, then a feed-forward."""

    def __init__(self, width: int, heads: int, video_width: int) -> None:
        super().__init__()
        self.views = Attention(width, heads, video_width)
        self.feed = FeedForward(width)

    def forward(self, x: Tensor, seen: Tensor, own_views: Tensor | None) -> Tensor:
        """x (B, E, D), seen (B, M, G), mask (B, E, M) -> (B, E, D)."""
        x = x + self.views(_normed(x), seen, own_views)
        out: Tensor = x + self.feed(_normed(x))
        return out


class Ends(nn.Module):
    """How long the event still lasts and how far through it the anchor is.

    Execution ends there. Lengths must be known before the action is denoised, since tokens are
    control steps, so this is asked first, of a pass over the clean frames alone: the number of
    future frames would give the answer away in training and is not known when acting. A plan is
    executed for the seconds left; when planning again within an event, it is over once the part
    that is done leaves less than one control step. Both are learned, because vision tells how far
    a drawer is open (done) better than how long this robot takes (left), and they check each other.

    It reads state and words as well as views: which event it is decides where it ends. Its hidden
    layers are blocks, so that Muon trains them: with one layer under AdamW, 300 steps taught it
    hardly more than a constant (LOG.md). Each block looks again.
    """

    def __init__(self, width: int, heads: int, video_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.text = Attention(width, heads)
        self.blocks = nn.ModuleList(EndsBlock(width, heads, video_width) for _ in range(2))
        self.head = nn.Linear(width, 2)

    def forward(
        self, robot: Tensor, seen: Tensor, own_views: Tensor | None, text: Tensor,
        own_text: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """robot (B, E, D), seen (B, M, G), text (B, E L, D), masks (B, E, M), (B, E, E L): (B, E)s.

        Returns log of the seconds left and logit of the part done.
        """
        x = robot + self.query
        x = x + self.text(x, text, own_text)
        for block in self.blocks:
            x = block(x, seen, own_views)
        left, done = self.head(_normed(x)).unbind(-1)
        return left, done


def _own_views(event: Tensor, rows: Rows) -> Tensor:
    """(B, K, V * F * P) bool: which patches K askers of windows `event` (B, K) may read.

    Who has nothing to read (padding) reads the first patch, lest a softmax be empty.
    """
    of_patch = rows.frame_event[:, None, :, None].expand(rows.inside.shape).flatten(1)
    mask = (event[:, :, None] == of_patch[:, None]) & rows.inside.flatten(1)[:, None]
    first = torch.arange(mask.shape[-1], device=mask.device) == 0
    return mask | (first & ~mask.any(dim=-1, keepdim=True))


def _own_text(event: Tensor, rows: Rows) -> Tensor:
    """(B, K, E * L) bool; padding, also of windows, reads the first window's text."""
    windows = torch.arange(rows.text.shape[1], device=event.device)
    there = rows.text_mask.any(dim=-1)  # (B, E)
    event = event.clamp(min=0)
    own = torch.where(there.gather(1, event), event, 0)[:, :, None] == windows
    return (own[..., None] & rows.text_mask[:, None]).flatten(2)


def _repeated(mask: Tensor | None, draws: int) -> Tensor | None:
    """(B, T, M) -> (B, N * T, M)."""
    return None if mask is None else mask.repeat(1, draws, 1)


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])
