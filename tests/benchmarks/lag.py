"""How well the lag between pictures and rows is found: an injected one of -5 to +5 frames.

`python -m tests.benchmarks.lag --data ../shared/data/cr5-banana recordings/demo`

For each moving episode the lag is estimated as ingestion does, then again with pictures and rows
moved against each other by each of -5 to +5 frames. `recovered` is the share of moving episodes and
shifts where the best estimate changes by the injected lag within one frame; `all_recovered` the
share of episodes of which this holds for all eleven; `absolute` the share within one frame of the
injected lag plus `--own` (the lag that the recorder has by itself: 0 in simulation, so that it
counts a bias too). `answered` is the share of moving episodes and shifts whose estimate is sure
enough for ingestion to tell it, `answered_recovered` how many of those are recovered. `own_lag` is
what the recordings show by themselves, in quantiles. Moving episodes are those whose state changes;
one that is too short or cannot be estimated counts as not recovered. JSON comes last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from components.ingestion import formats, lag, measure, motion, unlisted
from components.ingestion.raw import RawEpisode

SHIFTS = range(-5, 6)
PICTURES = 200  # as params.yaml says


def main(arguments: list[str] | None = None) -> None:
    """Print one line for each folder and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parents[3] / "shared/data"
    usual = [str(shared / name) for name in ("cr5-banana", "gr1-pick-place")]
    parser.add_argument("--data", nargs="+", default=usual)
    parser.add_argument("--seed", type=int, default=0, help="chooses the episodes")
    parser.add_argument("--episodes", type=int, default=30, help="at most so many of a folder")
    parser.add_argument("--own", type=float, default=0.0, help="true lag of the recorders, frames")
    given = parser.parse_args(arguments)
    found = {}
    for uri in given.data:
        found[Path(uri).name] = _folder(uri, given.seed, given.episodes, given.own)
        print(f"{uri}: {json.dumps(found[Path(uri).name])}", flush=True)
    print(json.dumps({"seed": given.seed, "sources": found}, sort_keys=True))


def _folder(uri: str, seed: int, most: int, truth: float) -> dict[str, Any]:
    reader = formats.open_source(unlisted.opened(uri), 0.5)
    random = np.random.default_rng(seed)
    chosen = sorted(random.permutation(reader.indices)[:most].tolist())
    own, told, spent, read = [], [], 0.0, 0
    for index in chosen:
        raw = reader.read(index)
        if raw.problem is not None or not np.isfinite(raw.state).all():
            continue
        began = time.process_time()
        seen = _seen(raw)
        first = UNKNOWN if seen is None else _shifted(*seen, 0)
        spent += time.process_time() - began
        read += 1
        if (np.ptp(raw.state, axis=0) > 0).any():
            own.append(first.steps)
            told.append([UNKNOWN if seen is None else _shifted(*seen, s) for s in SHIFTS])
    found: dict[str, Any] = {"episodes": read, "moving": len(told)}
    if told:
        found |= _shares(np.array(own), told, truth)
    return found | {"cpu_ms_per_episode": round(1000 * spent / max(read, 1), 1)}


UNKNOWN = lag.Lag(float("nan"), 0.0, float("inf"))


def _shares(own: np.ndarray, told: list[list[lag.Lag]], truth: float) -> dict[str, Any]:
    steps = np.array([[late.steps for late in episode] for episode in told]) - np.array(SHIFTS)
    known = np.array([[late.known for late in episode] for episode in told])
    good = abs(steps - own[:, None]) <= 1  # never of what is unknown
    quantiles = np.nanquantile(own, [0.1, 0.5, 0.9]) if np.isfinite(own).any() else []
    return {
        "recovered": round(float(good.mean()), 4),
        "all_recovered": round(float(good.all(axis=1).mean()), 4),
        "absolute": round(float((abs(steps - truth) <= 1).mean()), 4),
        "answered": round(float(known.mean()), 4),
        "answered_recovered": round(float(good[known].mean()), 4) if known.any() else None,
        "own_lag_frames": [round(float(value), 2) for value in quantiles],
    }


def _seen(raw: RawEpisode) -> tuple[list[motion.Motion], np.ndarray] | None:
    """Motion of the pictures of each camera, and the state's rows, as ingestion compares them."""
    try:
        packets = {c: measure._walk(s, hashlib.sha256())[0] for c, s in raw.videos.items()}
    except (av.FFmpegError, ValueError):
        return None
    rows = min([len(raw.state), *(len(p.shown) for p in packets.values())])
    if not packets or rows < lag.SHORTEST + lag.SPAN:
        return None
    first = lag.busiest(raw.state[:rows], PICTURES)
    count = min(rows - first, PICTURES)
    seen = [motion.pictured(raw.videos[c], p, first, count) for c, p in packets.items()]
    return seen, raw.state[first : first + count]


def _shifted(seen: list[motion.Motion], rows: np.ndarray, shift: int) -> lag.Lag:
    """The estimate with pictures `shift` frames later; only what overlaps is there."""
    count = len(rows) - lag.SPAN
    cut = [camera.cut(max(-shift, 0), count - max(shift, 0)) for camera in seen]
    return motion.late(cut, rows[max(shift, 0) : len(rows) - max(-shift, 0)]) or UNKNOWN


if __name__ == "__main__":
    main()
