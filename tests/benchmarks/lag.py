"""How well the lag between pictures and rows is found: an injected one of -5 to +5 frames.

`python -m tests.benchmarks.lag --data ../shared/data/cr5-banana recordings/demo`

For each moving episode the lag is estimated as ingestion does, then again with pictures and rows
moved against each other by each of -5 to +5 frames. `recovered` is the share of episodes and shifts
where the estimate changes by the injected lag within one frame; `all_recovered` the share of
episodes of which this holds for all eleven. `own_lag` is what the recordings show by themselves (it
is 0 to 1 in simulation). Moving episodes are those whose state changes; `clear` counts those whose
lag ingestion reports. JSON comes last.
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

from components.ingestion import formats, lag, measure, unlisted
from components.ingestion.raw import RawEpisode

SHIFTS = range(-5, 6)
PICTURES = 400  # as params.yaml says


def main(arguments: list[str] | None = None) -> None:
    """Print one line for each folder and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parents[3] / "shared/data"
    usual = [str(shared / name) for name in ("cr5-banana", "gr1-pick-place")]
    parser.add_argument("--data", nargs="+", default=usual)
    parser.add_argument("--seed", type=int, default=0, help="chooses the episodes")
    parser.add_argument("--episodes", type=int, default=30, help="at most so many of a folder")
    given = parser.parse_args(arguments)
    found = {}
    for uri in given.data:
        found[Path(uri).name] = _folder(uri, given.seed, given.episodes)
        print(f"{uri}: {json.dumps(found[Path(uri).name])}", flush=True)
    print(json.dumps({"seed": given.seed, "sources": found}, sort_keys=True))


def _folder(uri: str, seed: int, most: int) -> dict[str, Any]:
    reader = formats.open_source(unlisted.opened(uri), 0.5)
    random = np.random.default_rng(seed)
    chosen = sorted(random.permutation(reader.indices)[:most].tolist())
    rows, spent, moving, read, clear = [], 0.0, 0, 0, 0
    for index in chosen:
        raw = reader.read(index)
        if raw.problem is not None or not np.isfinite(raw.state).all():
            continue
        began = time.process_time()
        motions = _motions(raw)
        own = None if motions is None else lag.of(*motions)
        spent += time.process_time() - began
        read += 1
        moving += bool((np.ptp(raw.state, axis=0) > 0).any())
        if motions is None or own is None:
            continue
        clear += own.clarity >= lag.CLEAR
        rows.append((own.steps, [_shifted(*motions, shift) - own.steps for shift in SHIFTS]))
    good = np.array([[abs(g - s) <= 1 for g, s in zip(e, SHIFTS, strict=True)] for _, e in rows])
    zeros = [own for own, _ in rows]
    return {
        "episodes": read,
        "moving": moving,
        "clear": clear,
        "recovered": round(float(good.mean()), 4) if rows else None,
        "all_recovered": round(float(good.all(axis=1).mean()), 4) if rows else None,
        "own_lag_frames": [round(float(q), 2) for q in np.quantile(zeros, [0.1, 0.5, 0.9])]
        if rows
        else None,
        "cpu_ms_per_episode": round(1000 * spent / max(read, 1), 1),
    }


def _motions(raw: RawEpisode) -> tuple[list[np.ndarray], np.ndarray] | None:
    """Motion of the pictures of each camera, and of the state, as ingestion compares them."""
    try:
        packets = {c: measure._walk(s, hashlib.sha256())[0] for c, s in raw.videos.items()}
    except (av.FFmpegError, ValueError):
        return None
    rows = min([len(raw.state), *(len(p.shown) for p in packets.values())])
    if not packets or rows < lag.SHORTEST + lag.SPAN:
        return None
    first = lag.busiest(raw.state[:rows], PICTURES)
    count = min(rows - first, PICTURES)
    shown = [m for c, p in packets.items() for m in lag.pictured(raw.videos[c], p, first, count)]
    return shown, lag.speeds(raw.state[first : first + count])


def _shifted(shown: list[np.ndarray], rows: np.ndarray, shift: int) -> float:
    """The estimate with pictures `shift` frames later; only what overlaps is there."""
    count = len(rows)
    late = [series[max(-shift, 0) : count - max(shift, 0)] for series in shown]
    found = lag.of(late, rows[max(shift, 0) : count - max(-shift, 0)])
    return float("inf") if found is None else found.steps


if __name__ == "__main__":
    main()
