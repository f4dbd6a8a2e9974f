"""Contact sheets for a vision-language model: pictures of an episode with their times on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from components.episodes import Episode, Seconds

if TYPE_CHECKING:
    from PIL.Image import Image

CAMERAS = 2  # of an episode, at most
MARGIN_PX = 14  # above each frame, for its time


def contact_sheet(
    episode: Episode, times_s: Seconds, px: int, columns: int, zero_s: float = 0.0
) -> Image:
    """Moments `times_s` (N,), `columns` in a row, of at most two cameras, `px` wide each.

    A row of one camera stands above the same moments' row of the other. Times are told from
    `zero_s` on. DataError when a video cannot be read; ValueError for an episode without cameras.
    """
    from PIL import Image, ImageDraw

    if not episode.clips:
        raise ValueError("no camera")
    shown = []
    for camera in sorted(episode.clips)[:CAMERAS]:
        frames = episode.clips[camera].frames(times_s)
        shown.append((max(round(frames.shape[1] / frames.shape[2] * px), 1), frames))
    blocks = [np.arange(len(times_s))[at : at + columns] for at in range(0, len(times_s), columns)]
    tall = sum(height + MARGIN_PX for height, _ in shown) * len(blocks)
    sheet = Image.new("RGB", (min(columns, len(times_s)) * px, tall), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for block in blocks:
        for height, frames in shown:
            for column, moment in enumerate(block):
                at_s = times_s[moment] - zero_s
                pen.text((column * px + 3, top + 1), f"{at_s:.2f} s", fill="black")
                scaled = Image.fromarray(frames[moment]).resize(
                    (px, height), Image.Resampling.BICUBIC
                )
                sheet.paste(scaled, (column * px, top + MARGIN_PX))
            top += height + MARGIN_PX
    return sheet
