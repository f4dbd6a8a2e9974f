"""Windows to one training batch of the full model: captions dropped, noise drawn, rows packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.draws import Chances, Draw, collate_draws, draw, said
from models.rows import Rows, collate, first_fit
from models.wall_shape import WallShape
from models.windows import Window


def batch(
    windows: Sequence[Window], shape: WallShape, chances: Chances, silence: Tensor,
    random: torch.Generator, *, packed: bool,
) -> tuple[Rows, Draw]:  # fmt: skip
    """What `WallModel.losses` wants, on the windows' device.

    silence (L, X) is the encoding of an empty sentence. Random numbers depend on the windows' order
    and not on packing. ValueError for windows that do not fit.
    """
    spoken = [said(w, silence, chances, random) for w in windows]
    drawn = [draw(w, chances, random) for w in spoken]
    frames = [w.latents.shape[2] for w in spoken]
    rows = first_fit(frames, shape.max_frames) if packed else None
    device = spoken[0].latents.device
    return collate(spoken, shape.limits, rows), collate_draws(drawn, rows).to(device)
