"""What 5 % new episodes cost in each stage after ingestion; one JSON line last.

`python -m tests.benchmarks.incremental [--episodes N] [--seed N] [--repeats N]`
makes N recordings of an arm that picks and places (16 rhythms, 96 x 96 video; every episode has
places and noise of its own), runs the stages on the first 95 %, then on all of them, with the shard
store of that first run and with an empty one. Of each stage: `full_s`, the empty store;
`grown_s`, the other; `ratio` = grown / full. `chain_ratio` is that of the sums.

Seconds are CPU seconds of the whole stage process as `python -m components STAGE` runs it
(interpreter, imports and writing included), the median of --repeats. Outputs of both ways are
compared byte by byte: `same_bytes`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from components import lerobot, records
from components.encoding import encode
from components.episodes import Episode
from components.outputs import sha256_folder
from tests import made_episodes

ROOT = Path(__file__).parents[2]
NEW = 0.05
RHYTHMS, FPS, SIDE = 16, 20.0, 96
TASKS = ("put the cup on the shelf", "put the can in the box", "stack the blocks", "sort the nuts")
CAMERA = "observation.images.top"
STAGES = {
    "segmentation": ("episodes", "said.jsonl", "events"),
    "captioning": ("episodes", "events", "said.jsonl", "captions"),
    "clustering": ("episodes", "events", "captions", "clusters"),
    "sampling": ("events", "captions", "clusters", "plan"),
}


def rhythm(number: int, seed: int) -> list[float]:
    """Seconds of the five legs of a pick and place."""
    random = np.random.default_rng([seed, number])
    return [float(leg) for leg in np.round(random.uniform(0.8, 2.4, 5) * FPS) / FPS]


def episode(number: int, seed: int) -> Episode:
    """Down, close, up, across, open: at places of its own, with noise."""
    random = np.random.default_rng([seed, RHYTHMS + number])
    legs_s = rhythm(number % RHYTHMS, seed)
    grasp, drop = random.uniform(-0.2, 0.2, (2, 2))
    above, high = random.uniform(0.15, 0.3, 2)
    points = [
        (*grasp, above),
        (*grasp, 0),
        (*grasp, 0),
        (*grasp, high),
        (*drop, high),
        (*drop, high),
    ]
    place = made_episodes.through(points, legs_s, FPS)
    times_s = np.arange(len(place)) / FPS
    close_s, open_s = legs_s[0], sum(legs_s[:4])
    knots_s = [0.0, close_s, close_s + 0.3, open_s, open_s + 0.3]
    opening = np.interp(times_s, knots_s, [1.0, 1.0, 0.4, 0.4, 1.0])
    command = np.where((times_s >= close_s) & (times_s < open_s), 1.0, -1.0)
    noisy = place + random.normal(0, 2e-4, place.shape)
    return made_episodes.arm(
        noisy,
        opening,
        command,
        fps=FPS,
        task=TASKS[number % len(TASKS)],
        episode_id=f"{seed:04x}{number * 2654435761 % 2**32:08x}{number:08x}",
    )


def pictures(frames: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """A patch that wanders over a textured ground."""
    random = np.random.default_rng(seed)
    ground = np.kron(random.integers(60, 200, (12, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    for frame in range(frames):
        picture = ground.copy()
        across = int((SIDE - 16) * frame / frames)
        picture[across : across + 16, across : across + 16] = 255
        yield picture


def recordings(folder: Path, count: int, seed: int) -> tuple[Path, Path]:
    """`data/episodes` of the first 95 % and of all."""
    some, whole = folder / "some", folder / "whole"
    films = {}
    for number in range(min(RHYTHMS, count)):
        films[number] = folder / f"films/{number}.mp4"
        films[number].parent.mkdir(exist_ok=True, parents=True)
        encode(films[number], pictures(len(episode(number, seed)), number), FPS)
    first = episode(0, seed)
    writer = lerobot.Writer(
        whole / "episodes" / first.embodiment,
        robot_type=first.embodiment,
        fps=FPS,
        state_names=first.state_names,
        action_names=first.action_names,
    )
    rows: list[dict[str, object]] = []
    for number in range(count):
        made = episode(number, seed)
        video = {CAMERA: films[number % RHYTHMS]}
        writer.add(lerobot.Recording(made.task, made.timestamps_s, made.state, made.action, video))
        rows.append(manifest_row(made, number))
    writer.close()
    write_manifest(whole, rows)
    write_manifest(some, rows[: round((1 - NEW) * count)])
    (some / "episodes" / first.embodiment).symlink_to(whole / "episodes" / first.embodiment)
    return some, whole


def manifest_row(made: Episode, number: int) -> dict[str, object]:
    """As ingestion writes it."""
    return {
        "episode_id": made.episode_id,
        "source": "made",
        "source_uri": f"made#{number}",
        "source_version": "",
        "embodiment": made.embodiment,
        "episode_index": number,
        "task": made.task,
        "n_frames": len(made),
        "duration_s": made.duration_s,
        "fps": made.fps,
        "operator": "",
        "origins": [f"made#{number}"],
        "checks": "{}",
    }


def write_manifest(folder: Path, rows: list[dict[str, object]]) -> None:
    """With an empty list of corrections beside it."""
    (folder / "episodes").mkdir(parents=True, exist_ok=True)
    records.write(folder / "episodes/manifest.parquet", rows, records.MANIFEST, "episode_id")
    (folder / "said.jsonl").touch()


def cpu_s(stage: str, folder: Path, store: Path) -> float:
    """CPU seconds of one stage, in a process of its own."""
    named = {"WAMFLOW_STORE": str(store), "WAMFLOW_REPORT": str(folder / "report")}
    command = [sys.executable, "-m", "components", stage]
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    environment = os.environ | named | {"PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*command, *STAGES[stage]],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(stage: str, some: Path, whole: Path, repeats: int) -> dict[str, float]:
    """Medians of a stage whose inputs are there; its outputs stay."""
    folder, output = some.parent, STAGES[stage][-1]
    cpu_s(stage, some, folder / "store")
    full: list[float] = []
    increased: list[float] = []
    digests: set[str] = set()
    for _ in range(repeats):
        for seconds, start in ((full, None), (increased, folder / "store")):
            store = folder / "copy"
            shutil.rmtree(store, ignore_errors=True)
            if start and start.is_dir():
                shutil.copytree(start, store, symlinks=True)
            seconds.append(cpu_s(stage, whole, store))
            digests.add(sha256_folder(whole / output))
    found = {"full_s": median(full), "grown_s": median(increased)}
    found["ratio"] = found["grown_s"] / found["full_s"]
    return {name: round(value, 4) for name, value in found.items()} | {
        "same_bytes": len(digests) == 1
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="made recordings stay here for the next time")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.work or Path(scratch)
        some, whole = folder / "some", folder / "whole"
        if not whole.is_dir():
            recordings(folder, chosen.episodes, chosen.seed)
        shutil.rmtree(folder / "store", ignore_errors=True)
        stages = {}
        for stage in STAGES:
            stages[stage] = measured(stage, some, whole, chosen.repeats)
            print(f"{stage}: {stages[stage]}", file=sys.stderr, flush=True)
    sums = [sum(each[name] for each in stages.values()) for name in ("grown_s", "full_s")]
    said = {"episodes": chosen.episodes, "new_share": NEW, "repeats": chosen.repeats}
    print(json.dumps({**said, "chain_ratio": round(sums[0] / sums[1], 4), "stages": stages}))


if __name__ == "__main__":
    main(sys.argv[1:])
