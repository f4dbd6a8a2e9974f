"""The shard store: finished pieces of a map stage's work, so that a stage pays for what is new.

A stage does the same work for each piece of its input. What a piece gave is kept here under the
digest of (input piece, settings, code that the stage can reach), beside the DVC cache and never in
an output: each run assembles its whole output from the pieces of its present inputs, so the output
is the same whether the store was full, empty or damaged. Segmentation does:

    done = Shards("segmentation", config.model_dump(mode="json"))
    keys = {e.episode_id: key(e.episode_id, e.embodiment, e.state_names) for e in episodes}
    found = done.recall(keys.values())                      # {key: what was kept}
    new = {keys[e.episode_id]: cut(e) for e in episodes if keys[e.episode_id] not in found}
    done.keep(new)                                          # one new pack for all of them
    rows = [row for e in episodes for row in (found | new)[keys[e.episode_id]]]

A kept value is anything that JSON can say (rows as a list of dicts; floats come back to the bit;
tuples come back as lists). Models that the work uses belong into the settings, by their digests. A
killed stage loses what it had not kept: keep at intervals where the work is long.

`<store>/shards/<stage>/<generation>/`, a generation being (settings, code), holds packs of values
(Parquet, one for each `keep`) and `files/`, hard-linked into outputs or, where the file system can,
cloned. All is written whole or not at all, and several processes may work at once. Damage is found
by digests, said, and the piece is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components import closure
from components.outputs import sha256, write_json

PACKS = 16  # of one generation: more are joined to one
UNUSED_DAYS = 30  # what nobody asked for so long is removed
FICLONE = 0x40049409  # ioctl of Linux: share the blocks until one side is written to
PACK = pa.schema(
    {
        "key": pa.string(),
        "value": pa.large_string(),  # JSON
        "sha256": pa.string(),  # of key and value
        "day": pa.int64(),  # when it was last asked for, days since 1970
    }
)


def place() -> Path:
    """Where all runs of a checkout keep what they share: `WAMFLOW_STORE`, or `.wamflow`.

    In a linked git worktree, that of the main checkout.
    """
    if named := os.environ.get("WAMFLOW_STORE"):
        return Path(named)
    git = Path(".git")
    if git.is_file():
        linked = Path(git.read_text().removeprefix("gitdir:").strip())  # <main>/.git/worktrees/x
        if linked.parent.name == "worktrees":
            return linked.parents[2] / ".wamflow"
    return Path(".wamflow")


def key(*parts: Any) -> str:
    """A name (40 hexadecimal digits) for a piece: the digest of all that its work reads."""
    said = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:40]


class Shards:
    """The pieces of one stage with one choice of settings and code."""

    def __init__(self, stage: str, settings: Mapping[str, Any]) -> None:
        self.stage = stage
        self._root = place() / "shards" / stage
        self.folder = self._root / key(dict(settings), closure.digest(stage))[:20]
        (self.folder / "files").mkdir(parents=True, exist_ok=True)
        os.utime(self.folder)
        self._asked: set[str] = set()
        self._tidy()

    def recall(self, keys: Iterable[str]) -> dict[str, Any]:
        """What was kept under the keys; a piece that is not there or damaged is left out."""
        wanted = set(keys)
        self._asked |= wanted
        found: dict[str, Any] = {}
        for path in self._packs():
            if left := wanted - found.keys():
                for row in self._rows(path, left):
                    if row["sha256"] == _sum(row["key"], row["value"]):
                        found[row["key"]] = json.loads(row["value"])
                    else:
                        self._say(f"piece {row['key'][:12]} of {path.name} is damaged; made again")
        return found

    def keep(self, values: Mapping[str, Any]) -> None:
        """Keep finished pieces. TypeError for a value that JSON cannot say."""
        if values:
            texts = {name: json.dumps(value) for name, value in values.items()}
            self._asked |= texts.keys()
            self._write([self._row(name, text) for name, text in texts.items()])
        if len(self._packs()) > PACKS:
            self._join()

    def link(self, name: str, target: Path) -> bool:
        """Put a kept file at `target`, read-only; False when it is not there or damaged.

        A file whose size, time and inode are those it was kept with is taken to be unchanged; of
        another one the digest decides.
        """
        path, note = self._file(name)
        try:
            said, state = json.loads(note.read_text()), path.stat()
            if [state.st_size, state.st_mtime_ns, state.st_ino] != said["state"]:
                if sha256(path) != said["sha256"]:
                    raise ValueError("another digest")
                self._note(path, note, said["sha256"])
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError) as error:
            self._say(f"file {name[:12]} is damaged ({error}); made again")
            note.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            return False
        os.utime(note)
        with suppress(FileNotFoundError):  # another process found it damaged meanwhile
            _link(path, target)
            return True
        return False

    def keep_file(self, name: str, source: Path) -> None:
        """Keep a finished file; it becomes read-only, since its bytes may be shared from now on."""
        path, note = self._file(name)
        path.parent.mkdir(exist_ok=True)
        source.chmod(0o444)
        with self.scratch() as folder:
            partial = folder / name
            _link(source, partial)
            self._note(partial, note, sha256(partial))
            partial.replace(path)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder beside the store; what a killed process leaves in it goes with the next.

        It is locked by its open handle, and the kernel drops the lock with the process.
        """
        folder, handle = _locked_folder(self._root / "scratch")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    def _file(self, name: str) -> tuple[Path, Path]:
        path = self.folder / "files" / name[:2] / name
        return path, path.with_name(f"{name}.json")

    def _note(self, path: Path, note: Path, digest: str) -> None:
        state = path.stat()
        said = {"sha256": digest, "state": [state.st_size, state.st_mtime_ns, state.st_ino]}
        with self.scratch() as folder:
            write_json(folder / note.name, said)
            (folder / note.name).replace(note)

    def _packs(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _row(self, name: str, text: str) -> dict[str, Any]:
        return {"key": name, "value": text, "sha256": _sum(name, text), "day": _today()}

    def _rows(self, path: Path, wanted: set[str] | None) -> list[dict[str, Any]]:
        """Rows of a pack; a pack that cannot be read is removed."""
        try:
            with pq.ParquetFile(path) as file:
                if file.schema_arrow != PACK:
                    raise ValueError("other columns")
                groups = range(file.num_row_groups)
                return [row for group in groups for row in _chosen(file, group, wanted)]
        except FileNotFoundError:  # joined by another process meanwhile: its pieces are made again
            return []
        except (pa.ArrowException, OSError, ValueError) as error:
            self._say(f"pack {path.name} is damaged ({' '.join(str(error).split())[:80]}); removed")
            path.unlink(missing_ok=True)
            return []

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """One new pack under a name of its own, seen by others only when it is whole."""
        with self.scratch() as folder:
            partial = folder / f"{time.time_ns():020d}-{os.getpid()}-{os.urandom(3).hex()}.parquet"
            table = pa.Table.from_pylist(rows, schema=PACK)
            pq.write_table(table, partial, compression="zstd", row_group_size=4096)
            partial.rename(self.folder / partial.name)

    def _join(self) -> None:
        """All packs as one, without what is damaged or was not asked for lately."""
        with _alone(self.folder) as alone:
            packs = self._packs() if alone else []
            kept: dict[str, dict[str, Any]] = {}
            for row in (row for path in packs for row in self._rows(path, None)):
                day = _today() if row["key"] in self._asked else row["day"]
                sound = row["sha256"] == _sum(row["key"], row["value"])
                if sound and day >= _today() - UNUSED_DAYS:
                    kept[row["key"]] = {**row, "day": day}
            if kept:
                self._write(list(kept.values()))
            for path in packs:
                path.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Remove generations and files that nobody used lately, and what killed processes left."""
        with _alone(self._root) as alone:
            if not alone:
                return
            _remove_abandoned(self._root / "scratch")
            old_s = time.time() - UNUSED_DAYS * 86_400
            for folder in self._root.iterdir():
                if folder.is_dir() and folder.name != "scratch" and folder.stat().st_mtime < old_s:
                    shutil.rmtree(folder, ignore_errors=True)
            for note in self.folder.glob("files/*/*.json"):
                if note.stat().st_mtime < old_s:
                    note.unlink(missing_ok=True)
                    note.with_suffix("").unlink(missing_ok=True)

    def _say(self, what: str) -> None:
        print(f"{self.stage}: shard store: {what}", flush=True)


def _chosen(file: pq.ParquetFile, group: int, wanted: set[str] | None) -> list[dict[str, Any]]:
    """Rows of a part of a pack; values are read only where one is wanted."""
    if wanted is None:
        return list(file.read_row_group(group).to_pylist())
    keys = file.read_row_group(group, columns=["key"])["key"]
    asked = pc.is_in(keys, pa.array(list(wanted), pa.string()))
    found = pc.any(asked).as_py()
    return list(file.read_row_group(group).filter(asked).to_pylist()) if found else []


def _sum(name: str, text: str) -> str:
    return hashlib.sha256(f"{name}\0{text}".encode()).hexdigest()


def _today() -> int:
    return int(time.time() // 86_400)


def _link(source: Path, target: Path) -> None:
    """Clone, else hard link, else copy: as DVC's `cache.type reflink,hardlink,copy`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("xb") as written:
        try:
            fcntl.ioctl(written.fileno(), FICLONE, read.fileno())
            target.chmod(0o444)
            return
        except OSError:
            pass
    target.unlink()
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(0o444)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process is inside; the lock ends with the process at the latest."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and the handle that holds its lock."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.is_dir():  # nobody took it for abandoned before it was locked
                return folder, handle
            os.close(handle)
        except FileNotFoundError:
            continue


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.iterdir() if parent.is_dir() else ():
        with suppress(FileNotFoundError), _alone(folder) as alone:
            if alone:
                shutil.rmtree(folder, ignore_errors=True)
