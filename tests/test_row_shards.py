"""Pieces that are rows: they come back whole and alone, or are made again."""

from __future__ import annotations

import random
import subprocess
import sys

import pyarrow as pa
import pytest

from components import row_shards
from components.events_by_episode import EventsByEpisode
from components.row_shards import PIECE, RowShards, plain, values
from tests.conftest import ROOT

SCHEMA = pa.schema({"text": pa.string(), "place": pa.int64(), "score": pa.float64()})


def opened() -> RowShards:
    return RowShards("captioning", {})


def rows(name: str, count: int) -> list[dict[str, object]]:
    return [
        {PIECE: name, "text": f"{name} {n % 2}", "place": n, "score": None} for n in range(count)
    ]


def keep(*pieces: tuple[str, int]) -> None:
    said = [row for name, count in pieces for row in rows(name, count)]
    opened().keep_rows(
        pa.Table.from_pylist(said, schema=pa.schema([(PIECE, pa.string()), *SCHEMA]))
    )


def recalled(*names: str) -> list[dict[str, object]]:
    found = plain(opened().recall_rows(names, SCHEMA)).to_pylist()
    return sorted(found, key=lambda row: (row[PIECE], row["place"]))


def test_rows_come_back_as_they_were_and_no_others() -> None:
    assert recalled("a") == []
    keep(("a", 3), ("b", 1))
    keep(("c", 2))
    assert recalled("a", "c", "d") == rows("a", 3) + rows("c", 2)
    table = opened().recall_rows(["a"], SCHEMA)
    assert values(table[PIECE])[0] == ["a"]  # b's name is gone with its rows
    assert values(table["text"])[0] == ["a 0", "a 1"]


def test_a_piece_that_two_processes_kept_comes_back_once() -> None:
    keep(("a", 2), ("b", 1))
    keep(("a", 2), ("c", 1))
    assert recalled("a", "b", "c") == rows("a", 2) + rows("b", 1) + rows("c", 1)


@pytest.mark.parametrize("damage", [b"", b"PAR1 nothing", None])
def test_a_damaged_pack_is_removed_and_said(
    damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(("a", 2))
    (pack,) = opened().folder.glob("rows/*")
    keep(("b", 1))
    pack.write_bytes(pack.read_bytes()[:-9] if damage is None else damage)
    assert recalled("a", "b") == rows("b", 1)
    assert "damaged" in capsys.readouterr().out and not pack.exists()


def test_many_packs_become_one_without_what_nobody_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    today = 0
    monkeypatch.setattr(row_shards, "_today", lambda: today)
    keep(("old", 1))
    keep(("used", 1))
    today = row_shards.UNUSED_DAYS + 1
    later = opened()
    assert later.recall_rows(["used"], SCHEMA).num_rows
    for number in range(row_shards.PACKS):
        said = pa.Table.from_pylist(
            rows(str(number), 2), schema=pa.schema([(PIECE, pa.string()), *SCHEMA])
        )
        later.keep_rows(said)
    assert len(list(later.folder.glob("rows/*"))) < row_shards.PACKS
    assert recalled("old", "used", "3") == rows("3", 2) + rows("used", 1)


def test_events_by_episode_are_the_rows_of_the_table() -> None:
    said = [
        {"episode_id": f"e{e}", "start_frame": s, "kind": None if s else "idle"}
        for e in range(12)
        for s in (0, 4, 10)
    ]
    random.Random(0).shuffle(said)
    found = EventsByEpisode(pa.Table.from_pylist(said))
    assert list(found) == sorted({str(row["episode_id"]) for row in said})
    for episode_id in found:
        mine = [row for row in said if row["episode_id"] == episode_id]
        assert found[episode_id] == sorted(mine, key=lambda row: int(str(row["start_frame"])))
    texts = found.texts("start_frame", "kind")
    assert set(texts) == set(found) and set(texts.values()) == {"0\0idle\n4\0\1\n10\0\1"}
    assert list(EventsByEpisode(pa.Table.from_pylist(said).slice(0, 0))) == []


def test_a_stage_without_pandas_still_writes_tables() -> None:
    code = (
        "import sys; from components.__main__ import keep_pandas_out\n"
        "keep_pandas_out(['sklearn.cluster']); from sklearn.cluster import KMeans\n"
        "assert len(KMeans(2, n_init=1).fit([[0.0], [1.0], [9.0]]).labels_) == 3\n"
        "import pyarrow as pa; assert pa.table({'a': [1]}).to_pylist() == [{'a': 1}]\n"
        "assert 'pandas' not in sys.modules; import pandas; assert pandas.Series([1]).sum() == 1"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
