"""What 5 % new episodes cost in each stage after ingestion; one JSON line last.

`python -m tests.benchmarks.incremental [--episodes N] [--seed N] [--repeats N] [--data FOLDER]`
makes N recordings of an arm that picks and places twice (16 rhythms, 240 x 240 video; each episode
has places and noise of its own), or ingests those in FOLDER, runs the stages on the first 95 %,
then on all of them, with the shard store of that first run and with an empty one. Of each stage:
`full_s`, the empty store; `grown_s`, the other; `ratio` = grown / full. `chain_ratio` is that of
the sums.

Seconds are CPU seconds, the median of --repeats. Those above are of the whole stage process as
`python -m components STAGE` runs it: interpreter, imports and writing included. `own_*` are of the
stage's work alone, in a process that has already run it on a few episodes, so interpreter, imports
and loading of models are left out. Outputs of both ways are compared byte by byte: `same_bytes`.

Sampling keeps nothing: its weights depend on all events, so its ratio is about 1 by nature.
`own_share` says what that comes to: a stage's grown seconds over those of the whole chain afresh.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from components import closure, lerobot, params, records
from components.__main__ import keep_pandas_out
from components.encoding import encode
from components.episodes import Episode
from components.outputs import sha256_folder, write_table
from flows import snapshot
from tests import made_episodes

ROOT = Path(__file__).parents[2]
NEW = 0.05
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
FEW = 20  # episodes that load what a stage imports
RHYTHMS, FPS, SIDE = 16, 20.0, 240
PICKS, LEGS = 2, 5  # about 320 rows; the real recordings of the tests have 228 to 419
TASKS = ("put the cup on the shelf", "put the can in the box", "stack the blocks", "sort the nuts")
CAMERA = "observation.images.top"
STAGES = {
    "segmentation": ("episodes", "said.jsonl", "events"),
    "captioning": ("episodes", "events", "said.jsonl", "captions"),
    "clustering": ("episodes", "events", "captions", "clusters"),
    "sampling": ("events", "captions", "clusters", "plan"),
}


def rhythm(number: int, seed: int) -> list[float]:
    """Seconds of the legs of each pick and place."""
    random = np.random.default_rng([seed, number])
    return [float(leg) for leg in np.round(random.uniform(0.8, 2.4, LEGS * PICKS) * FPS) / FPS]


def episode(number: int, seed: int) -> Episode:
    """Down, close, up, across, open, and once more: at places of its own, with noise."""
    random = np.random.default_rng([seed, RHYTHMS + number])
    legs_s = rhythm(number % RHYTHMS, seed)
    ends_s = np.cumsum(legs_s)
    points: list[tuple[float, float, float]] = []
    knots_s, opening = [0.0], [1.0]
    for pick in range(PICKS):
        grasp, drop = random.uniform(-0.2, 0.2, (2, 2))
        above, high = random.uniform(0.15, 0.3, 2)
        points += [(*grasp, above), (*grasp, 0), (*grasp, 0), (*grasp, high), (*drop, high)]
        close_s, open_s = ends_s[LEGS * pick], ends_s[LEGS * pick + 3]
        knots_s += [close_s, close_s + 0.3, open_s, open_s + 0.3]
        opening += [1.0, 0.4, 0.4, 1.0]
    place = made_episodes.through([*points, points[-1]], legs_s, FPS)
    times_s = np.arange(len(place)) / FPS
    of = np.searchsorted(knots_s, times_s, side="right") - 1
    command = np.where((of % 4 == 1) | (of % 4 == 2), 1.0, -1.0)
    noisy = place + random.normal(0, 2e-4, place.shape)
    return made_episodes.arm(
        noisy,
        np.interp(times_s, knots_s, opening),
        command,
        fps=FPS,
        task=TASKS[number % len(TASKS)],
        episode_id=f"{seed:04x}{number * 2654435761 % 2**32:08x}{number:08x}",
    )


def pictures(frames: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """A patch that wanders over a textured ground."""
    random = np.random.default_rng(seed)
    tiles = random.integers(60, 200, (12, 12, 3))
    ground = np.kron(tiles, np.ones((SIDE // 12, SIDE // 12, 1))).astype(np.uint8)
    for frame in range(frames):
        picture = ground.copy()
        across = int((SIDE - 16) * frame / frames)
        picture[across : across + 16, across : across + 16] = 255
        yield picture


def recordings(whole: Path, count: int, seed: int) -> None:
    """`data/episodes` of made recordings."""
    films = {}
    for number in range(min(RHYTHMS, count)):
        films[number] = whole / f"films/{number}.mp4"
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
    manifest = whole / "episodes/manifest.parquet"
    records.write(manifest, rows, records.MANIFEST, "episode_id")


def ingested(whole: Path, data: Path) -> None:
    """`data/episodes` of the recordings in a folder."""
    (whole / "store").mkdir(parents=True)
    listing = snapshot.write([str(data.resolve())], whole, whole / "sources.json", whole / "store")
    paths = (listing.name, "episodes", "quarantine")
    process(whole, whole / "store", "-m", "components", "ingestion", *paths)


def part(whole: Path, folder: Path, count: int) -> Path:
    """The same recordings, of which the manifest names only the first ones."""
    (folder / "episodes").mkdir(parents=True)
    manifest = records.read(whole / "episodes/manifest.parquet", records.MANIFEST)
    write_table(folder / "episodes/manifest.parquet", manifest.slice(0, count))
    for each in (whole / "episodes").iterdir():
        if each.is_dir():
            (folder / "episodes" / each.name).symlink_to(each.resolve())
    return folder


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


def process(folder: Path, store: Path, *arguments: str) -> str:
    """A Python process of a project in a folder; what it printed last."""
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (folder / "said.jsonl").touch()
    named = {"WAMFLOW_STORE": str(store), "WAMFLOW_REPORT": str(folder / "report")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | THREADS | named | {"PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return (done.stdout.splitlines() or [""])[-1]


def process_s(stage: str, folder: Path, store: Path) -> float:
    """CPU seconds of one stage, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process(folder, store, "-m", "components", stage, *STAGES[stage])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def own_s(stage: str, folder: Path, store: Path) -> float:
    """CPU seconds of one stage's work, in a process that ran it on a few episodes before."""
    code = f"from tests.benchmarks import incremental; incremental.warm({stage!r})"
    return float(process(folder, store, "-c", code))


def warm(stage: str) -> None:
    """Run a stage on a few episodes, then on the current folder's; print the latter's seconds."""
    keep_pandas_out()
    module = importlib.import_module(f"components.{stage}.stage")
    config = params.section(params.load(Path("params.yaml")), stage, module.Config)
    folder, store = Path.cwd(), os.environ["WAMFLOW_STORE"]
    os.chdir(folder.parent / "few")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["WAMFLOW_STORE"] = scratch
        module.run(*map(Path, STAGES[stage]), config=config)
    os.chdir(folder)
    os.environ["WAMFLOW_STORE"] = store
    closure.digest.cache_clear()
    before = time.process_time()
    module.run(*map(Path, STAGES[stage]), config=config)
    print(time.process_time() - before)


def measured(stage: str, folder: Path, repeats: int) -> dict[str, float]:
    """Medians of a stage whose inputs are there; its outputs stay."""
    whole, grown = folder / "whole", folder / "store"
    for each in ("few", "some"):
        process_s(stage, folder / each, folder / "store" if each == "some" else folder / "other")
    found: dict[str, list[float]] = defaultdict(list)
    digests: set[str] = set()
    for _ in range(repeats):
        for name, start in (("full_s", None), ("grown_s", grown)):
            for prefix, seconds in (("", process_s), ("own_", own_s)):
                store = folder / "copy"
                shutil.rmtree(store, ignore_errors=True)
                if start and start.is_dir():
                    shutil.copytree(start, store, symlinks=True)
                found[prefix + name].append(seconds(stage, whole, store))
                digests.add(sha256_folder(whole / STAGES[stage][-1]))
    medians = {name: round(median(each), 4) for name, each in found.items()}
    for prefix in ("", "own_"):
        share = medians[f"{prefix}grown_s"] / medians[f"{prefix}full_s"]
        medians[f"{prefix}ratio"] = round(share, 4)
    return medians | {"same_bytes": len(digests) == 1}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, help="recordings instead of made ones")
    parser.add_argument("--work", type=Path, help="recordings stay here for the next time")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (chosen.work or Path(scratch)).resolve()
        whole = folder / "whole"
        if not whole.is_dir():
            if chosen.data:
                ingested(whole, chosen.data)
            else:
                recordings(whole, chosen.episodes, chosen.seed)
            count = len(records.read(whole / "episodes/manifest.parquet", records.MANIFEST))
            part(whole, folder / "some", round((1 - NEW) * count))
            part(whole, folder / "few", min(FEW, count))
        count = len(records.read(whole / "episodes/manifest.parquet", records.MANIFEST))
        shutil.rmtree(folder / "store", ignore_errors=True)
        stages = {}
        for stage in STAGES:
            stages[stage] = measured(stage, folder, chosen.repeats)
            print(f"{stage}: {stages[stage]}", file=sys.stderr, flush=True)
    print(json.dumps({"episodes": count, "new_share": NEW} | of_all(stages)))


def of_all(stages: dict[str, dict[str, float]]) -> dict[str, object]:
    """The stages' figures, and those of the chain."""
    names = ("grown_s", "full_s", "own_grown_s", "own_full_s")
    sums = {name: sum(each[name] for each in stages.values()) for name in names}
    for each in stages.values():
        each["own_share"] = round(each["own_grown_s"] / sums["own_full_s"], 4)
    return {
        "chain_ratio": round(sums["grown_s"] / sums["full_s"], 4),
        "own_chain_ratio": round(sums["own_grown_s"] / sums["own_full_s"], 4),
        "stages": stages,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
