"""Finished pieces that are rows of one schema, kept as columns: thousands come back in one read.

The shard store of `shards.py` for stages whose whole work on an old piece would be to read it. A
pack is named by the digest of its bytes; a damaged one is removed, said, and its pieces are made
again. A piece has at least one row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.outputs import sha256
from components.shards import PACKS, UNUSED_DAYS, Shards, _alone, _today

PIECE, DAY = "piece", "day"


class RowShards(Shards):
    """The pieces of one stage; a table's column `piece` says of each row which one it is of."""

    def recall_rows(self, keys: Iterable[str], schema: pa.Schema) -> pa.Table:
        """Rows kept under the keys; those of a piece stand together, in the order they had.

        Columns are `piece` and the schema's, strings as dictionaries.
        """
        left = set(keys)
        self._asked |= left
        found = [encoded(pa.schema([pa.field(PIECE, pa.string()), *schema]).empty_table())]
        for path in self._row_packs():
            if left and (table := self._row_pack(path)) is not None:
                some, names = _of(table, left)
                left -= names
                found.append(some.select(found[0].column_names))
        return pa.concat_tables(found).unify_dictionaries().combine_chunks()

    def keep_rows(self, table: pa.Table) -> None:
        """Keep finished pieces: all rows of each, beside each other."""
        if table.num_rows:
            self._asked |= set(table[PIECE].unique().to_pylist())
            self._write_rows(table.append_column(DAY, pa.repeat(_today(), table.num_rows)))
        if len(self._row_packs()) > PACKS:
            self._join_rows()

    def _row_packs(self) -> list[Path]:
        return sorted(self.folder.glob("rows/*.parquet"))

    def _row_pack(self, path: Path) -> pa.Table | None:
        try:
            if sha256(path) == path.stem:
                names = [f.name for f in pq.read_schema(path) if pa.types.is_string(f.type)]
                return encoded(pq.ParquetFile(path, read_dictionary=names).read())
        except FileNotFoundError:  # joined by another process meanwhile: its pieces are made again
            return None
        self._say(f"pack {path.name[:12]} is damaged (another digest); removed")
        path.unlink(missing_ok=True)
        return None

    def _write_rows(self, table: pa.Table) -> Path:
        with self.scratch() as folder:
            partial = folder / "rows.parquet"
            pq.write_table(plain(table), partial, compression="zstd")
            path = self.folder / "rows" / f"{sha256(partial)}.parquet"
            path.parent.mkdir(exist_ok=True)
            partial.rename(path)
        return path

    def _join_rows(self) -> None:
        """All packs as one, each piece once, without what was not asked for lately."""
        with _alone(self.folder) as alone:
            packs = self._row_packs() if alone else []
            found: list[pa.Table] = []
            seen: set[str] = set()
            for table in filter(None, map(self._row_pack, packs)):
                names = set(table[PIECE].unique().to_pylist()) - seen
                seen |= names
                some, _ = _of(table, names)
                asked = marked(some[PIECE], self._asked)
                days = np.where(asked, _today(), some[DAY].to_numpy())
                some = some.drop_columns(DAY).append_column(DAY, numbers(days))
                found.append(chosen(some, days >= _today() - UNUSED_DAYS))
            written = self._write_rows(pa.concat_tables(found)) if found else None
            for path in set(packs) - {written}:
                path.unlink(missing_ok=True)


def encoded(table: pa.Table) -> pa.Table:
    """Strings as dictionaries."""
    columns = [
        c.dictionary_encode() if pa.types.is_string(c.type) else c for c in table.itercolumns()
    ]
    return pa.table(columns, names=table.column_names)


def plain(table: pa.Table) -> pa.Table:
    """Dictionaries as strings."""
    columns = [
        c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c for c in table.itercolumns()
    ]
    return pa.table(columns, names=table.column_names)


def numbers(values: npt.NDArray[np.integer]) -> pa.Array:
    """As `pa.array`, which would import numpy.ma to look for masks: 10 ms."""
    values = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def chosen(table: pa.Table, mask: npt.NDArray[np.bool_]) -> pa.Table:
    """Rows where `mask` (N,) is true."""
    return table.take(numbers(np.flatnonzero(mask)))


def values(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Different values of a dictionary column and the place of each row's among them.

    Those that no row has are left out: a filtered table still carries them.
    """
    if not len(column):
        return [], np.empty(0, np.int32)
    array = column.unify_dictionaries().combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    places = array.indices.to_numpy()
    used = np.bincount(places, minlength=len(array.dictionary)) > 0
    left = array.dictionary.take(numbers(np.flatnonzero(used))).to_pylist()
    return left, (np.cumsum(used, dtype=np.int32) - 1)[places].astype(np.int32)


def marked(column: pa.ChunkedArray, names: Collection[str]) -> npt.NDArray[np.bool_]:
    """Of each row of a dictionary column whether its value is one of these."""
    found, places = values(column)
    return np.array([name in names for name in found], dtype=bool)[places]


def spans(column: pa.ChunkedArray) -> dict[str, tuple[int, int]]:
    """First row of each value of a dictionary column, and one past its last; they stand together.

    Values are in the order of their rows.
    """
    found, places = values(column)
    first = np.flatnonzero(np.diff(places, prepend=-1)).tolist()
    stops = [*first[1:], len(places)] if first else []
    return {found[places[a]]: (a, b) for a, b in zip(first, stops, strict=True)}


def counts(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value of a dictionary column occurs."""
    found, places = values(column)
    numbers = np.bincount(places, minlength=len(found)).tolist()
    return Counter(dict(zip(found, numbers, strict=True)))


def _of(table: pa.Table, names: set[str]) -> tuple[pa.Table, set[str]]:
    """Rows of the pieces of these names, and those names that were found."""
    there = names & set(values(table[PIECE])[0])
    return chosen(table, marked(table[PIECE], there)), there
