"""What the cameras see: how pictures change beyond what the camera's own motion explains.

Per picture a shift and a zoom are fitted to the change of brightness (Lucas and Kanade 1981, one
motion for the whole picture), which is the background seen from a moving camera; what remains moves
by itself. Where it moves, as a coarse map, changes when an object begins or stops to move.
"""

from __future__ import annotations

import numpy as np

from components.episodes import Clip, Episode
from components.segmentation.flat import Array, Flat

SIDE_PX = 32  # pictures are shrunk to this
CELLS = 8  # of the map, to a side
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
BLOCK = 512  # pictures held at once
FAINT = 1e-4  # of full brightness: changes below this are the codec's


def looked(episode: Episode) -> dict[str, Array] | None:
    """An episode's video traces: `share` (T,) and `map` (T, cells); None without a camera."""
    seen = [watch(clip, episode.timestamps_s) for _, clip in sorted(episode.clips.items())]
    if not seen:
        return None
    share = np.mean([share for share, _ in seen], axis=0)
    maps = [where / np.maximum(where.sum(axis=1).mean(), 1e-9) for _, where in seen]
    return {"share": share, "map": 3.0 * np.mean(maps, axis=0)}


def watch(clip: Clip, times_s: Array) -> tuple[Array, Array]:
    """One camera: log share of change that its motion does not explain (T,), and where (T, C)."""
    shares, maps = [np.zeros(1)], [np.zeros((1, CELLS * CELLS))]
    for begin in range(0, len(times_s) - 1, BLOCK):
        span = times_s[begin : begin + BLOCK + 1]
        grey = clip.frames(span, (SIDE_PX, SIDE_PX)).astype(np.float32) @ GREY / 255
        share, where = own_motion(grey)
        shares.append(share)
        maps.append(where)
    return np.concatenate(shares), np.concatenate(maps)


def own_motion(grey: np.ndarray) -> tuple[Array, Array]:
    """T pictures to T - 1 log shares and maps (T - 1, C)."""
    change = np.diff(grey, axis=0)
    down, right = np.gradient(grey[1:], axis=(1, 2))
    y, x = np.mgrid[-1 : 1 : SIDE_PX * 1j, -1 : 1 : SIDE_PX * 1j].astype(np.float32)
    modes = np.stack([right, down, right * x + down * y], axis=-1).reshape(len(change), -1, 3)
    flat = change.reshape(len(change), -1)
    gram = np.matmul(modes.transpose(0, 2, 1), modes) + 1e-4 * np.eye(3)
    moved = np.linalg.solve(gram, np.einsum("tni,tn->ti", modes, flat)[..., None])
    own = np.abs(flat - np.matmul(modes, moved)[..., 0])
    cell = SIDE_PX // CELLS
    maps = own.reshape(-1, CELLS, cell, CELLS, cell).mean(axis=(2, 4)).reshape(len(own), -1)
    share = np.log((own.mean(axis=1) + FAINT) / (np.abs(flat).mean(axis=1) + FAINT))
    return share.astype(np.float64), maps.astype(np.float64)


def joined(batch: Flat, seen: list[dict[str, Array]]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Numbers and vectors of a batch from those of its episodes."""
    share = np.concatenate([each["share"] for each in seen])
    return {"share": share}, {"map": np.concatenate([each["map"] for each in seen])}
