"""Objects of S3 on this machine: downloaded once, whole or not there, whoever asks.

`<store>/mirror/<ab>/<key>/<name>`: the key is a digest of the object's whole address, version,
ETag and size, so nothing in an object's name decides where bytes go, and what changed is another
entry. `.record.json` beside it keeps its sha256. `shards.place()` is the store; `room.py` says what
is removed, and when.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from components import download, shards
from components.download import Download
from components.errors import StoppedError
from components.ingestion import room
from components.ingestion.progress import Progress
from components.outputs import write_json
from components.store import Object, split

OBJECTS, PARTS = 8, 16  # at the same time
RECORD, LOCK = ".record.json", ".lock"


def folder() -> Path:
    """Where the mirror lies."""
    return shards.place().absolute() / "mirror"


def entry(uri: str, wanted: Object) -> Path:
    """The folder of one object."""
    bucket, prefix = split(uri)
    whole = f"{bucket}/{prefix}/{wanted['path']}" if prefix else f"{bucket}/{wanted['path']}"
    pinned = f"{whole}\0{wanted['version_id']}\0{wanted['etag']}\0{wanted['size']}"
    key = hashlib.sha256(pinned.encode(errors="surrogatepass")).hexdigest()[:40]
    return folder() / key[:2] / key


def local(uri: str, wanted: Object) -> Path | None:
    """The whole file of an object, if it is here; it then stays while this process lives."""
    place = entry(uri, wanted)
    file = place / _name(wanted["path"])
    room.use(folder(), place)
    try:
        os.utime(place / RECORD)
        return file if file.stat().st_size == wanted["size"] else None
    except FileNotFoundError:
        return None


def sha256(file: Path) -> str:
    """Digest of a file of the mirror when it came; empty when its record is damaged."""
    try:
        return str(json.loads((file.parent / RECORD).read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def discard(file: Path) -> None:
    """Forget a file whose bytes are not what came."""
    file.unlink(missing_ok=True)
    (file.parent / RECORD).unlink(missing_ok=True)


def fetch(uri: str, objects: list[Object]) -> int:
    """Bring those objects that are not here, many at a time; how many bytes came.

    Errors as in `download.bring`; the first one ends all others, and what came is kept.
    OutOfSpaceError when the disk has no room for them.
    """
    missing = [item for item in objects if local(uri, item) is None]
    if not missing:
        return 0
    places = [entry(uri, item) for item in missing]
    needed = sum(map(download.missing_bytes, missing, places))
    room.make(folder(), needed)
    progress, stop = Progress(uri, needed, len(missing), len(objects)), threading.Event()
    with ThreadPoolExecutor(PARTS) as parts, ThreadPoolExecutor(OBJECTS) as pool:

        def one(wanted: Object, place: Path) -> None:
            _bring(Download(uri, wanted, place, stop, progress.came), parts)
            progress.done()

        futures = [pool.submit(one, *pair) for pair in zip(missing, places, strict=True)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return progress.bytes


def _bring(asked: Download, parts: ThreadPoolExecutor) -> None:
    """One object, unless another process brought it meanwhile; visible only when it is whole."""
    asked.folder.mkdir(parents=True, exist_ok=True)
    with (asked.folder / LOCK).open("wb") as lock:
        while not room.locked(lock.fileno(), fcntl.LOCK_EX):
            if asked.stop.wait(0.2):
                raise StoppedError(f"{asked.uri}: stopped while another process downloads.")
        if local(asked.uri, asked.wanted) is not None:
            return
        found = download.bring(asked, parts)
        record = {"uri": f"{asked.uri}/{asked.wanted['path']}", "sha256": found}
        write_json(asked.folder / RECORD, {**asked.wanted, **record})
        asked.partial.chmod(0o444)
        asked.partial.replace(asked.folder / _name(asked.wanted["path"]))
        (asked.folder / download.JOURNAL).unlink(missing_ok=True)


def _name(path: str) -> str:
    """The end of an object's name, as far as any file system takes it; never hidden or empty."""
    return re.sub(r"[^\w.+@=-]", "_", path.rpartition("/")[2])[-60:].lstrip(".") or "object"
