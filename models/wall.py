"""The World Action Model of WALL-WM (arXiv 2606.01955), whole: losses to train, plans to execute.

p(V_e, a_e | V_0, s, c_e) with a Wan video tower and an action tower of equal depth. Read
`windows.py` (one event), `rows.py` (a batch), `draws.py` (what is random), `wan.py` and
`action_tower.py` first. `wam.py` is a smaller relative, trained end to end.

Coupling. Symmetric, for small end-to-end runs: both towers are denoised together at one noise
level. Asymmetric, the default at scale: one forward of the video tower at the anchor step, 45 of
50, serves N_d noise draws of the action and teaches the video nothing. At scale the tower is frozen
by then; in a run that has no time for one stage after the other, `video_share` of the rows go
through it a second time, at noise levels of their own, and teach it. The paper leaves open what the
video tower sees at the anchor. A true future that shows through the noise would be missing when
acting, so the tower gets what both have: its guess is that nothing moves. The anchor frame, held
still, is noised to the anchor's level; this lies within what the video prior was trained on, and
training and acting see the same input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.action_tower import ActionTower
from models.dct import dct_matrix
from models.draws import Draw
from models.flow_matching import velocity, weighted_mean
from models.rows import Rows, of_event
from models.schedule import anchor
from models.staircase import Staircase, Thoughts
from models.wall_shape import WallShape
from models.wan import WanTower, fold


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch; `total` is what is minimised. Zero where the coupling has no such."""

    total: Tensor
    video: Tensor
    action: Tensor
    dct: Tensor
    left: Tensor
    done: Tensor


class WallModel(nn.Module):
    """Video tower and action tower of equal depth; in unified mode a staircase may lead to both."""

    terms = ("action", "video", "left", "dct", "done")  # of its Losses, beside their total

    def __init__(self, shape: WallShape) -> None:
        super().__init__()
        self.shape = shape
        self.video = WanTower(shape.video)
        self.action = ActionTower(
            shape.action,
            shape.video.depth,
            shape.video.width,
            shape.video.text_width,
            shape.video.cameras,
        )
        self.staircase = Staircase(shape.staircase) if shape.staircase else None
        if shape.coupling == "asymmetric" and not shape.video_share:
            self.video.requires_grad_(False)

    def losses(self, rows: Rows, draw: Draw, thoughts: Thoughts | None = None) -> Losses:
        """Losses of both towers, of the DCT of the action's error, and of where the event ends.

        `thoughts` are for a model with a staircase, whose states they become.
        """
        if thoughts is not None:
            assert self.staircase is not None
            rows = replace(rows, text=self.staircase.told(rows.text, thoughts))
        zero = rows.latents.new_zeros(())
        if self.shape.coupling == "asymmetric":
            features = self.at_anchor(rows, draw.noise)
            share = self.shape.video_share
            if share and not self.training:
                share = 1.0  # held out, every row counts
            taught = math.ceil(share * len(rows.latents))
            video = self._video(rows.first(taught), draw.first(taught))[0] if taught else zero
        else:
            video, features = self._video(rows, draw)
        if self.shape.coupling == "video":
            return self._sum(video, zero, zero, zero, zero)
        action, dct = self._action_losses(rows, draw, features)
        return self._sum(video, action, dct, *self._end_losses(rows))

    def _sum(
        self, video: Tensor, action: Tensor, dct: Tensor, left: Tensor, done: Tensor
    ) -> Losses:
        w = self.shape.weights
        total = action + w.video * video + w.dct * dct + w.left * left + w.done * done
        return Losses(total, video, action, dct, left, done)

    @torch.no_grad()
    def at_anchor(self, rows: Rows, noise: Tensor) -> list[Tensor]:
        """Features of the one pass that serves all noise draws of the actions."""
        sigma = torch.where(rows.clean, 0.0, anchor(self.shape.shift))
        return self.video.features(noised(held(rows), noise, sigma), sigma, rows)

    def _video(self, rows: Rows, draw: Draw) -> tuple[Tensor, list[Tensor]]:
        """Loss and features of the video at its own noise level, tubes hidden."""
        sigma = torch.where(rows.clean, 0.0, of_event(draw.sigma, rows.frame_event))
        noisy = noised(rows.latents, draw.noise, sigma)
        predicted, features = self.video(noisy, sigma, rows, draw.hidden)
        return self._video_loss(predicted, rows, draw), features

    def _video_loss(self, predicted: Tensor, rows: Rows, draw: Draw) -> Tensor:
        """Over patches of the future that show the picture; more for those behind a tube."""
        error = (predicted - fold(velocity(rows.latents, draw.noise))).square().mean(dim=-1)
        counts = (rows.inside & ~rows.clean[:, None, :, None]).float()
        return weighted_mean(error, counts * (1 + (self.shape.weights.tube - 1) * draw.hidden))

    def _action_losses(
        self, rows: Rows, draw: Draw, features: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Flow matching, and the error's DCT weighted by its frequency and down with noise."""
        clean, noise = rows.actions[:, None], draw.action_noise.transpose(1, 2)
        s = of_event(draw.action_sigma, rows.step_event).transpose(1, 2)[..., None]
        noisy = (1 - s) * clean + s * noise
        predicted = self.action(noisy, draw.action_sigma, rows, self.action.read(rows, features))
        counts = rows.action_mask[:, None].float().expand_as(noise)
        level = self.action.level(s)
        wanted = velocity(clean, noise) * (s / level)
        action = weighted_mean((predicted - wanted).square(), counts)
        if not self.shape.weights.dct:
            return action, action.new_zeros(())
        error = (noisy - level * predicted - clean) * counts
        dct = dct_matrix(rows)[:, None] @ error
        frequency = (rows.step / rows.steps)[:, None, :, None]
        return action, weighted_mean(dct.square() * frequency * (1 - s), counts)

    def _end_losses(self, rows: Rows) -> tuple[Tensor, Tensor]:
        left, done = self.ends(rows.only_clean())
        known = rows.known.float()
        wanted = rows.left_s.log()
        left = F.smooth_l1_loss(left, wanted, beta=0.2, reduction="none")
        done = (done.sigmoid() - rows.done).square()
        return weighted_mean(left, known), weighted_mean(done, known)

    def ends(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(log of seconds left, logit of the part done), each (B, E), from clean frames alone.

        Reads a block in the middle: nobody reads what the last one makes of a clean frame, so
        nothing has taught it.
        """
        depth = (self.shape.video.depth + 1) // 2
        with torch.no_grad():
            sigma = torch.zeros_like(rows.frame_s)
            features = self.video.features(rows.latents, sigma, rows, depth)
        return self.action.where_it_ends(rows, features[-1])


def noised(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Latents (B, V, C, F, H, W) at noise levels sigma (B, F) of their frames."""
    s = sigma[:, None, None, :, None, None]
    return ((1 - s) * latents + s * noise).type_as(latents)


def held(rows: Rows) -> Tensor:
    """The latents (B, V, C, F, H, W) if nothing moved: the future repeats the anchor frame."""
    at = torch.arange(rows.clean.shape[1], device=rows.clean.device)
    anchor = torch.where(rows.clean, at, 0).cummax(dim=1).values  # clean frames come first
    index = anchor[:, None, None, :, None, None].expand(rows.latents.shape)
    return rows.latents.gather(3, index)
