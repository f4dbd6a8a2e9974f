"""The shard store: what was kept comes back or is made again, never half, never wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import grimp
import pyarrow.parquet as pq
import pytest

from components import closure, shards
from components.__main__ import STAGES
from components.shards import Shards, key
from tests.conftest import ROOT, git

ROWS = [{"start_s": 0.1 + 0.2, "kind": "grasp", "score": None}, {"start_s": 1e-309}]


def opened(**settings: object) -> Shards:
    return Shards("segmentation", settings)


def test_what_was_kept_comes_back_to_the_bit() -> None:
    values = {key("a"): ROWS, key("b"): [], key("c"): "text"}
    opened().keep(values)
    assert opened().recall([*values, key("d")]) == values
    assert opened().recall([key("b")]) == {key("b"): []}


def test_a_run_keeps_one_file_for_many_pieces() -> None:
    done = opened()
    done.keep({key(n): ROWS for n in range(500)})
    assert [p.suffix for p in done.folder.iterdir() if p.is_file()] == [".parquet"]


def test_other_settings_other_pieces() -> None:
    opened(price=0.1).keep({key("a"): 1})
    assert opened(price=0.2).recall([key("a")]) == {}
    assert opened(price=0.1).recall([key("a")]) == {key("a"): 1}


def test_other_code_other_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    opened().keep({key("a"): 1})
    monkeypatch.setattr(closure, "digest", lambda stage: "edited")
    assert opened().recall([key("a")]) == {}


def test_a_key_is_all_its_parts() -> None:
    assert key("a", ["b"]) != key("a", "b") != key("ab")
    assert key({"x": 1, "y": 2}) == key({"y": 2, "x": 1})


def test_the_closure_is_what_the_graph_of_imports_says() -> None:
    imports = grimp.build_graph("components", "models", cache_dir=None)
    for stage in STAGES:
        own = {m for m in imports.modules if m.startswith(f"components.{stage}.")}
        needed = own.union(*(imports.find_upstream_modules(m) for m in own))
        assert needed <= {_module(path) for path in closure.files(stage)}, stage


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_the_digest_of_code_changes_with_a_file_it_reaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("demo/stage.py", "near.py", "far.py"):
        path = tmp_path / "components" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "components/demo/stage.py").write_text(
        "def run():\n    from components import near"
    )
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    seen = []
    for change in ("", "near.py", "far.py"):
        if change:
            (tmp_path / "components" / change).write_text("x = 1")
        closure.digest.cache_clear()
        seen.append(closure.digest("demo"))
    closure.digest.cache_clear()
    assert seen[0] != seen[1] == seen[2]


def test_a_damaged_piece_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    done = opened()
    done.keep({key("a"): ROWS, key("b"): ROWS})
    pack = next(done.folder.glob("*.parquet"))
    table = pq.read_table(pack).to_pydict()
    table["value"][0] = json.dumps(ROWS[:1])
    pq.write_table(shards.pa.table(table, schema=shards.PACK), pack)
    assert done.recall([key("a"), key("b")]) == {key("b"): ROWS}
    assert "is damaged; made again" in capsys.readouterr().out
    done.keep({key("a"): ROWS})
    assert done.recall([key("a")]) == {key("a"): ROWS}


@pytest.mark.parametrize("damage", [b"", b"PAR1 nothing", None])
def test_a_damaged_pack_is_removed_and_said(
    damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    done = opened()
    done.keep({key("a"): ROWS})
    pack = next(done.folder.glob("*.parquet"))
    pack.write_bytes(pack.read_bytes()[:-9] if damage is None else damage)
    assert done.recall([key("a")]) == {}
    assert "damaged" in capsys.readouterr().out and not pack.exists()


def test_many_packs_become_one_without_what_nobody_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    days = iter([0] * 2 + [shards.UNUSED_DAYS + 1] * 1000)
    monkeypatch.setattr(shards, "_today", lambda: next(days))
    opened().keep({key("old"): 1})
    opened().keep({key("old but used"): 1})
    later = opened()
    assert later.recall([key("old but used")])
    for n in range(shards.PACKS):
        later.keep({key(n): n})
    assert len(list(later.folder.glob("*.parquet"))) < shards.PACKS
    assert opened().recall([key("old"), key("old but used"), key(3)]) == {
        key("old but used"): 1,
        key(3): 3,
    }


def test_files_come_back_by_link_and_read_only(tmp_path: Path) -> None:
    done = opened()
    made = tmp_path / "made.mp4"
    made.write_bytes(b"video")
    done.keep_file(key("v"), made)
    assert done.link(key("v"), tmp_path / "out/again.mp4")
    assert (tmp_path / "out/again.mp4").read_bytes() == b"video"
    assert (tmp_path / "out/again.mp4").stat().st_mode & 0o777 == 0o444
    assert not done.link(key("w"), tmp_path / "out/never.mp4")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["again.mp4"]


def test_an_output_edited_in_place_never_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made.mp4"
    made.write_bytes(b"video")
    opened().keep_file(key("v"), made)
    linked = next(opened().folder.glob("files/*/*[!n]"))
    linked.chmod(0o644)
    linked.write_bytes(b"VIDEO")
    assert not opened().link(key("v"), tmp_path / "out.mp4")
    assert "damaged" in capsys.readouterr().out
    made.unlink()
    made.write_bytes(b"video")
    opened().keep_file(key("v"), made)
    assert opened().link(key("v"), tmp_path / "out.mp4")


def test_a_touched_file_is_read_again_and_stays(tmp_path: Path) -> None:
    made = tmp_path / "made.mp4"
    made.write_bytes(b"video")
    opened().keep_file(key("v"), made)
    os.utime(made, (1, 1))
    assert opened().link(key("v"), tmp_path / "out.mp4")


def test_what_nobody_used_for_long_is_removed(tmp_path: Path) -> None:
    made = tmp_path / "made.mp4"
    made.write_bytes(b"video")
    old, kept = opened(x=1), opened(x=2)
    kept.keep_file(key("v"), made)
    long_ago = time.time() - (shards.UNUSED_DAYS + 1) * 86_400
    os.utime(old.folder, (long_ago, long_ago))
    for note in kept.folder.glob("files/*/*.json"):
        os.utime(note, (long_ago, long_ago))
    opened(x=2)
    assert not old.folder.exists() and kept.folder.is_dir()
    assert not list(kept.folder.glob("files/*/*"))


def test_what_a_killed_process_left_goes_with_the_next() -> None:
    code = (
        "import sys, time; from components.shards import Shards\n"
        "with Shards('segmentation', {}).scratch() as folder:\n"
        "    (folder / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        opened()
        scratch = shards.place() / "shards/segmentation/scratch"
        assert len(list(scratch.iterdir())) == 1, "a living process keeps its folder"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    opened()
    assert list(scratch.iterdir()) == []


def _keep_many(number: int) -> None:
    for n in range(12):
        opened().keep({key(number, n): [number, n], key("same", n): n})


def test_several_processes_keep_at_once() -> None:
    with get_context("spawn").Pool(3) as pool:
        pool.map(_keep_many, range(3))
    wanted = {key(p, n): [p, n] for p in range(3) for n in range(12)}
    wanted |= {key("same", n): n for n in range(12)}
    assert opened().recall(wanted) == wanted


def test_worktrees_share_the_store_of_the_main_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WAMFLOW_STORE")
    main, linked = tmp_path / "main", tmp_path / "linked"
    main.mkdir()
    git(main, "init", "--quiet")
    git(main, "commit", "--quiet", "--allow-empty", "--message", "first")
    git(main, "worktree", "add", "--quiet", "--detach", str(linked))
    monkeypatch.chdir(linked)
    assert shards.place() == main / ".wamflow"
    monkeypatch.chdir(main)
    assert shards.place().resolve() == main / ".wamflow"
