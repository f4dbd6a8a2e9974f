"""States of a training: whole or passed over, plain files only, and at home on any disk."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from components.errors import OutOfSpaceError, TemporaryError, UserError
from components.pretraining import checkpoints, mirror, saver
from components.pretraining.saver import Saver
from tests.muon_ranks import on_ranks
from tests.servers import KEYS, REGION, s3


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one rank."""
    meeting = tmp_path_factory.mktemp("group") / "rendezvous"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def state(value: float) -> dict[str, torch.Tensor]:
    return {
        "matrix": torch.full((6, 4), value),
        "scalar": torch.tensor(value),
        "whole": torch.arange(5) + int(value),
    }


def save(folder: Path, *steps: int, keep: int = 2) -> Saver:
    """States of some steps, each to its end."""
    made = Saver(folder, keep, 20.0, {"seed": 3})
    for step in steps:
        made.save(step, state(float(step)))
        made.wait()
    return made


def test_a_state_comes_back_in_place_and_the_rule_of_what_is_kept_holds(tmp_path: Path) -> None:
    made = save(tmp_path, 2, 4, 6, 8, keep=3)
    assert [p.name for p in checkpoints.steps(tmp_path)] == ["00000004", "00000006", "00000008"]
    target = state(0.0)
    matrix = target["matrix"]
    assert made.resume(target) == 8
    assert matrix is target["matrix"] and (matrix == 8).all() and target["scalar"] == 8
    assert target["whole"].tolist() == [8, 9, 10, 11, 12]
    assert json.loads((tmp_path / "00000008/commit.json").read_text())["seed"] == 3
    assert save(tmp_path / "none").resume(target) == 0


def test_what_is_saved_may_change_at_once(tmp_path: Path) -> None:
    made, live = Saver(tmp_path, 2, 20.0), state(1.0)
    made.save(1, live)
    live["matrix"].fill_(-1)
    made.wait()
    target = state(0.0)
    made.resume(target)
    assert (target["matrix"] == 1).all()


def test_nothing_but_safetensors_and_json_is_written(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (shard,) = (tmp_path / "00000001").glob("shard-*")
    assert sorted(p.name for p in (tmp_path / "00000001").iterdir()) == ["commit.json", shard.name]
    assert load_file(shard)["scalar"] == 1  # the format's own reader, which knows no pickle


def test_unmarked_and_damaged_checkpoints_are_passed_over_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checkpoints.latest(tmp_path / "none") is None
    made = save(tmp_path, 1, 2, 3, keep=3)
    (tmp_path / "00000003/commit.json").write_text('{"step": 3, "sha')
    (shard,) = (tmp_path / "00000002").glob("shard-*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    (tmp_path / "00000004").mkdir()
    target = state(0.0)
    assert made.resume(target) == 1 and (target["matrix"] == 1).all()
    said = capsys.readouterr().out
    assert "00000004 has no commit marker" in said and "00000003 has no commit marker" in said
    assert f"00000002 is damaged (the digest of {shard.name} differs)" in said
    assert [p.name for p in checkpoints.steps(tmp_path)] == ["00000001"]


def test_a_shard_on_another_nodes_disk_is_missing_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1, 2)
    (shard,) = (tmp_path / "00000002").glob("shard-*")
    shard.unlink()
    assert checkpoints.latest(tmp_path) == 1
    said = capsys.readouterr().out
    assert f"00000002 is not whole ({shard.name} is missing here; expected the shards of" in said
    assert "set WAMFLOW_CHECKPOINTS to s3://bucket/prefix" in said and "damaged" not in said


def _on_nodes(folder: str, nodes: int) -> dict[str, list[str]]:
    """States on this rank's node: after five steps, and when the training begins again."""
    rank = dist.get_rank()
    here = Path(folder) / f"node{rank % nodes}" / "key"
    made = Saver(here, 2, 60.0)
    mine = {"w": torch.randn(64), "v": torch.randn(64), f"of.{rank}": torch.zeros(8)}
    for step in range(1, 6):
        made.save(step, mine)
    made.wait()
    dist.barrier()
    kept = [path.name for path in checkpoints.steps(here)]
    made.resume(mine)
    dist.barrier()
    return {"kept": kept, "resumed": [path.name for path in checkpoints.steps(here)]}


@pytest.mark.slow
def test_every_node_removes_what_is_not_kept(tmp_path: Path) -> None:
    """Two ranks on two nodes, whose states are whole on neither disk; then both on one node."""
    last = ["00000004", "00000005"]
    for found in on_ranks(2, _on_nodes, str(tmp_path / "apart"), 2):
        assert found == {"kept": last, "resumed": []}
    for found in on_ranks(2, _on_nodes, str(tmp_path / "together"), 1):
        assert found == {"kept": last, "resumed": last}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_said_and_the_state_before_stays(small_disk: Path) -> None:
    made = save(small_disk / "key", 1)
    made.save(2, {"x": torch.zeros(100_000)})
    with pytest.raises(OutOfSpaceError, match="no space left on the disk"):
        made.wait()
    assert [p.name for p in checkpoints.steps(small_disk / "key")] == ["00000001"]


def test_a_slow_disk_is_reported_and_not_hung_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stuck = threading.Event()
    monkeypatch.setattr(saver, "SAID_EVERY_S", 0.1)
    monkeypatch.setattr(saver, "sha256", lambda path: stuck.wait(30) and "")
    made = Saver(tmp_path, 2, 0.3)
    made.save(1, state(1.0))
    with pytest.raises(TemporaryError, match=r"00000001: the state is not written; .*0\.3 s"):
        made.wait()
    stuck.set()
    assert f"waiting for {tmp_path}/00000001" in capsys.readouterr().out
    assert checkpoints.latest(tmp_path) is None


def _shares(folder: str, step: int) -> dict[str, float]:
    """What each rank alone holds, under a name of its own; then what others held."""
    made, rank = Saver(Path(folder), 2, 60.0), dist.get_rank()
    if step:
        made.save(step, {"all": torch.full((8,), 5.0), f"of.{rank}": torch.full((3,), float(rank))})
        made.wait()
    names = ["of.0", "of.1"] if dist.get_world_size() == 1 else [f"of.{1 - rank}"]
    target = {"all": torch.zeros(8)} | {name: torch.full((3,), -1.0) for name in names}
    made.resume(target)
    return {name: float(value.mean()) for name, value in target.items()}


@pytest.mark.slow
def test_ranks_share_the_writing_and_any_number_of_ranks_reads(tmp_path: Path) -> None:
    two = on_ranks(2, _shares, str(tmp_path), 7)
    assert two == [{"all": 5.0, "of.1": 1.0}, {"all": 5.0, "of.0": 0.0}]
    shards = json.loads((tmp_path / "00000007/commit.json").read_text())["shards"]
    assert len(shards) == 2
    assert _shares(str(tmp_path), 0) == {"all": 5.0, "of.0": 0.0, "of.1": 1.0}


@pytest.mark.slow
def test_an_empty_disk_is_filled_from_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    with s3() as url:
        for name, value in (KEYS | REGION | {"AWS_ENDPOINT_URL": url}).items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="states")
        monkeypatch.setenv("WAMFLOW_CHECKPOINTS", "s3://states/of/trainings")
        save(tmp_path / "here/key", 1, 2, 3)
        client.put_object(Bucket="states", Key="of/trainings/key/00000009/shard-00001-x", Body=b"x")
        mirror.fetch("key", tmp_path / "there/key")
        there = tmp_path / "there/key"
        assert [p.name for p in checkpoints.steps(there)] == ["00000002", "00000003"]
        target = state(0.0)
        assert Saver(there, 2, 20.0).resume(target) == 3 and (target["matrix"] == 3).all()
        mirror.remove("key")
        assert "Contents" not in client.list_objects_v2(Bucket="states")


def test_an_address_that_is_not_s3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_CHECKPOINTS", "/mnt/disk")
    with pytest.raises(UserError, match="expected s3://bucket/prefix"):
        mirror.fetch("key", Path())
