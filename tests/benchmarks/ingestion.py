"""Ingestion on real, bad, growing and large recordings; one JSON line last.

- `real_*`: every folder of --data, as the sources of one run. `bad_inputs`: of tests/bad_inputs.py,
  each beside two good episodes; `right_reason` counts those whose bad episode got the reason that
  the case names (or whose source was refused, where it says so); `crashed` counts errors that are
  no refusal.
- `incremental_ratio`: seconds of the stage for 100 + 5 recordings after 100, over those for 105
  afresh, the worse of a v3.0 data set that got files and of HDF5 files with pictures; imports left
  out. `incremental_cpu_ratio`: the same in seconds of processor. `incremental_ratio_flow`: the same
  around `dvc repro ingestion` in a new worktree that shares cache and store, as a flow's task runs
  it: interpreter, imports, hashing and checkout included.
- `mb_per_s`, `copy_mb_per_s`: a data set of --large-mb of large packets, listed by a snapshot,
  through the stage (no picture decoded for checks), and a plain copy of the same files just before.
  `small_*`: the smallest packets, `gr1-pick-place` of --data repeated to --small-mb. Both sides
  find the files in the page cache where they fit.
  `ratio` is of the whole stage; `streams_ratio` of reading, digest and stream copy of the videos
  alone; `*_cpu_ratio` are the same in seconds of processor, for a machine that others use too.
- `peak_rss_mb`: of the process that ran the large one. `check_ms_per_episode`: what the checks that
  decode pictures add to measuring the real episodes that have videos.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from components.ingestion.measure import _walk
from components.packets import Joiner, Span
from flows import snapshot
from tests import grown

ROOT = Path(__file__).parents[2]


def config(**changed: Any) -> Any:
    """The project's own values."""
    from components.ingestion.stage import Config

    return Config(**yaml.safe_load((ROOT / "params.yaml").read_text())["ingestion"] | changed)


def ingest(listing: Path, out: Path, **changed: Any) -> tuple[Any, float]:
    """Report and seconds of the stage."""
    from components.ingestion import stage

    start = time.perf_counter()
    report = stage.run(listing, out / "episodes", out / "quarantine", config=config(**changed))
    return report, time.perf_counter() - start


class Spent:
    """Seconds by the clock and of the processor that calls of a function took."""

    wall_s = cpu_s = 0.0

    @classmethod
    def around(cls, function: Any) -> tuple[Spent, Any]:
        """What is spent, and the function that counts it."""
        spent = cls()

        def counted(*args: Any, **named: Any) -> Any:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            try:
                return function(*args, **named)
            finally:
                spent.wall_s += time.perf_counter() - wall_s
                spent.cpu_s += time.process_time() - cpu_s

        return spent, counted


def in_process(listing: Path, out: Path, store: Path, **changed: Any) -> dict[str, float]:
    """Seconds and peak memory of the stage in a process of its own, imports left out."""
    code = (
        "import json, resource, sys; from pathlib import Path\n"
        "from components.ingestion import checks, formats, groups, writing\n"
        "from tests.benchmarks.ingestion import ingest\n"
        "listing, out, changed = map(str, sys.argv[1:4])\n"
        "from tests.benchmarks.ingestion import Spent\n"
        "judging, checks.validate = Spent.around(checks.validate)\n"
        "all, ingest = Spent.around(ingest)\n"
        "report, _ = ingest(Path(listing), Path(out), **json.loads(changed))\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(json.dumps({'seconds': all.wall_s, 'cpu_s': all.cpu_s, 'rss_mb': peak,\n"
        "  'checks_s': judging.wall_s, 'checks_cpu_s': judging.cpu_s,\n"
        "  'episodes': report.episodes}))"
    )
    env = grown.threads_pinned() | {"WAMFLOW_STORE": str(store), "WAMFLOW_REPORT": str(out / "r")}
    command = [sys.executable, "-c", code, str(listing), str(out), json.dumps(changed)]
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def real(data: Path, work: Path) -> dict[str, int]:
    """Every folder of `data`, as the sources of one run."""
    from components.ingestion import formats
    from components.ingestion.source import load

    folders = sorted(p for p in data.iterdir() if p.is_dir())
    listing = grown.listing(work / "real.json", *folders)
    readers = [formats.open_source(item, 0.5) for item in load(listing)]
    for folder, reader in zip(folders, readers, strict=True):
        say(f"{folder.name}: {reader.format}, {len(reader.indices)} episodes")
    report, seconds = ingest(listing, work / "real")
    say(f"{report.episodes} episodes in {seconds:.1f} s, kept aside {report.reasons}")
    return {
        "formats": len({reader.format.split(" (")[0] for reader in readers}),
        "real_datasets": sum(bool(reader.indices) for reader in readers),
        "real_episodes_ok": report.episodes + report.duplicates,
        "real_episodes_quarantined": report.quarantined,
        "crashed": 0,  # a crash would have ended this
    }


def bad(work: Path) -> dict[str, int]:
    """Every kind of bad input, each in a run of its own beside two good episodes."""
    from components.errors import WamflowError
    from tests import bad_inputs

    total = right = crashed = 0
    good = grown.lerobot_v3(work / "good", range(2))
    for case in bad_inputs.cases(work):
        total += 1
        out = work / f"out-{total}"
        try:
            listing = snapshot.write([str(good), str(case.folder)], work, work / "s.json", work)
            report, _ = ingest(listing, out)
            reasons = set(report.reasons)
        except WamflowError:
            reasons = {None}
        except Exception as error:
            crashed += 1
            say(f"{case.name}: crashed: {error!r}")
            continue
        if (case.reason.value if case.reason else None) in reasons:
            right += 1
        else:
            say(f"{case.name}: expected {case.reason}, got {reasons}")
        shutil.rmtree(case.folder, ignore_errors=True)
    return {"bad_inputs": total, "right_reason": right, "bad_crashed": crashed}


def growing(work: Path, episodes: int) -> dict[str, float]:
    """100 + 5 after 100, over 105 afresh, by format."""
    more, found = episodes + episodes // 20, {}
    size = {"rows": 100, "side": 128}
    for kind, make in (("v3", grown.lerobot_v3), ("hdf5", grown.hdf5)):
        source, store = work / kind / "panda", work / kind / "store"
        make(source, range(episodes), **size)
        before = in_process(grown.listing(work / kind / "a.json", source), work / "a", store)
        shutil.rmtree(source)
        make(source, range(more), **size)
        listing = grown.listing(work / kind / "b.json", source)
        after = in_process(listing, work / kind / "b", store)
        fresh = in_process(listing, work / kind / "c", work / kind / "empty")
        found[f"incremental_ratio_{kind}"] = round(after["seconds"] / fresh["seconds"], 3)
        found[f"incremental_cpu_ratio_{kind}"] = round(after["cpu_s"] / fresh["cpu_s"], 3)
        say(f"{kind}: {before['seconds']:.1f} s, then {after['seconds']:.1f} s; "
            f"afresh {fresh['seconds']:.1f} s; of processor {after['cpu_s']:.2f} of "
            f"{fresh['cpu_s']:.2f} s")  # fmt: skip
    worst = {
        name: max(value for key, value in found.items() if key.startswith(f"{name}_"))
        for name in ("incremental_ratio", "incremental_cpu_ratio")
    }
    return worst | found


def flow(work: Path, episodes: int) -> dict[str, float]:
    """`dvc repro ingestion` in worktrees that share a cache and a store."""
    project = work / "project"
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, files.split("\0")):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, project / name)
    source = work / "flow" / "panda"
    seconds = []
    for run, (count, shared) in enumerate(
        [(episodes, "one"), (episodes + episodes // 20, "one"), (episodes + episodes // 20, "two")]
    ):
        shutil.rmtree(source, ignore_errors=True)
        grown.lerobot_v3(source, range(count), rows=100, side=128)
        tree = work / f"tree-{run}"
        shutil.copytree(project, tree)
        grown.listing(tree / "inputs/sources.json", source)
        subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
        (tree / ".dvc/config.local").write_text(
            f"[core]\n    analytics = false\n    site_cache_dir = {tree}/.dvc/tmp/site\n"
            f'[cache]\n    dir = {work / shared / "cache"}\n    type = "reflink,hardlink,copy"\n'
        )
        env = grown.threads_pinned() | {"WAMFLOW_STORE": str(work / shared / "store")}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        env["PYTHONPATH"] = str(tree)
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "-q", "ingestion"],
            cwd=tree, env=env, check=True, capture_output=True,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
    say(f"flow: {seconds[0]:.1f} s, then {seconds[1]:.1f} s; afresh {seconds[2]:.1f} s")
    return {"incremental_ratio_flow": round(seconds[1] / seconds[2], 3)}


def through(work: Path, source: Path) -> dict[str, float]:
    """MB/s of the stage and of a plain copy of the same files."""
    store = work / "store"
    store.mkdir()
    time.sleep(snapshot.SETTLED_S + 1)  # a snapshot remembers no digest of a younger file
    listing = snapshot.write([str(source)], work, work / "sources.json", store)
    size = sum(p.stat().st_size for p in source.rglob("*") if p.is_file()) / 1e6
    copy, copytree = Spent.around(shutil.copytree)
    copytree(source, work / "copy")
    shutil.rmtree(work / "copy")
    run = in_process(listing, work / "out", store, sampled_pictures=0, lag_pictures=0)
    shutil.rmtree(work / "out")
    shutil.rmtree(store)
    say(f"{size:.0f} MB, plain copy {copy.wall_s:.1f} s ({copy.cpu_s:.1f} s of processor), {run}")
    return {
        "mb_per_s": size / run["seconds"],
        "copy_mb_per_s": size / copy.wall_s,
        "ratio": copy.wall_s / run["seconds"],
        "cpu_ratio": copy.cpu_s / run["cpu_s"],
        **streams(work, source),
        **run,
    }


def streams(work: Path, source: Path) -> dict[str, float]:
    """Reading, digest and stream copy of the videos by themselves, against plain copies."""
    videos = sorted(source.rglob("*.mp4"))
    (work / "videos").mkdir()
    copy, copyfile = Spent.around(shutil.copyfile)
    taken, take = Spent.around(taken_over)
    for number, video in enumerate(videos):
        copyfile(video, work / f"videos/{number}")
    shutil.rmtree(work / "videos")
    take(videos, work / "joined")
    shutil.rmtree(work / "joined")
    return {
        "streams_ratio": copy.wall_s / taken.wall_s,
        "streams_cpu_ratio": copy.cpu_s / taken.cpu_s,
    }


def taken_over(videos: list[Path], target: Path) -> None:
    """What the stage does with the videos of good episodes when it decodes none."""
    for video in videos:
        _walk(Span(video), hashlib.sha256())
    joiner = Joiner(lambda number: target / f"{number}.mp4", config().video_file_mb * 1_000_000)
    for video in videos:
        joiner.append(Span(video))
    joiner.close()


def checks_ms(data: Path, work: Path) -> float:
    """What looking at pictures adds to measuring an episode, milliseconds."""
    from components.ingestion import formats
    from components.ingestion.measure import Effort, measure
    from components.ingestion.source import load

    usual = Effort(config().sampled_pictures, config().lag_pictures)
    spent = {Effort(0, 0): 0.0, usual: 0.0}
    count = 0
    for folder in sorted(p for p in data.iterdir() if p.is_dir()):
        reader = formats.open_source(load(grown.listing(work / "one.json", folder))[0], 0.5)
        if reader.layout.cameras and folder.name != "bridge-rlds":
            for index in reader.indices:
                raw = reader.read(index)
                count += 1
                for effort in spent:
                    start = time.perf_counter()
                    measure(0, raw, reader.layout, effort=effort)
                    spent[effort] += time.perf_counter() - start
    return (spent[usual] - spent[Effort(0, 0)]) / max(count, 1) * 1e3


def large(root: Path, megabytes: int, seed: int) -> Path:
    """A LeRobot v2 data set of large packets."""
    each = min(100, megabytes)
    video = grown.heavy(root.parent / "film.mp4", each, seed=seed)
    return grown.v2(root, max(round(megabytes * 1e6 / video.stat().st_size), 1), video)


def say(what: str) -> None:
    """On standard error, so that the last line of the output is the result."""
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    """Measure everything and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--large-mb", type=int, default=5000)
    parser.add_argument("--small-mb", type=int, default=1000)
    parser.add_argument("--only", choices=["real", "bad", "growing", "flow", "large", "small"])
    parser.add_argument("--scratch", type=Path, default=None, help="a folder with room for files")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="ingestion-", dir=given.scratch))
    os.environ |= {"WAMFLOW_STORE": str(work / "store"), "WAMFLOW_REPORT": str(work / "report")}
    try:
        print(json.dumps(measured(given, work)))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def measured(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures asked for."""

    def wanted(name: str) -> bool:
        return given.only in (None, name)

    found: dict[str, Any] = {}
    if wanted("real"):
        found |= real(given.data, work)
        found["check_ms_per_episode"] = round(checks_ms(given.data, work), 1)
    if wanted("bad"):
        found |= bad(work / "bad")
        found["crashed"] = found.get("crashed", 0) + found.pop("bad_crashed")
    if wanted("growing"):
        found |= growing(work / "growing", given.episodes)
    if wanted("flow"):
        found |= flow(work / "flows", given.episodes)
    if wanted("small") and (given.data / "gr1-pick-place").is_dir():
        gr1 = given.data / "gr1-pick-place"
        size = sum(p.stat().st_size for p in gr1.rglob("*.mp4")) / 1e6
        source = grown.repeated(gr1, work / "small/gr1", max(round(given.small_mb / size), 1))
        run = through(work / "small", source)
        found |= {f"small_{k}": round(v, 3) for k, v in run.items()}
    if wanted("large"):
        run = through(work / "large", large(work / "large/noise", given.large_mb, given.seed))
        found |= {k: round(run[k], 1) for k in ("mb_per_s", "copy_mb_per_s")}
        found |= {f"large_{k}": round(run[k], 3) for k in run if k.endswith("ratio")}
        found["peak_rss_mb"] = round(run["rss_mb"], 1)
    return found


if __name__ == "__main__":
    main()
