"""Whole folders between this machine and S3: sent, or brought with resume; nothing partial is seen.

What comes is put together in a hidden folder beside its place, which the next attempt goes on from.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from components import download as downloads
from components import store
from components.download import Download
from components.errors import DataError, UserError
from components.store import Object

WORKERS = 8


def upload(source: Path, uri: str) -> list[str]:
    """Send a file or all files of a folder below an address; their paths there, sorted.

    A file goes to `<uri>/<its name>`. UserError and TemporaryError as in `store.list_objects`.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; expected something to upload.")
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    start = source.parent if source.is_file() else source
    names = [path.relative_to(start).as_posix() for path in files]
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda path, name: store.send(path, uri, name), files, names))
    return names


def download(uri: str, folder: Path, objects: list[Object] | None = None) -> list[Path]:
    """Bring objects below an address (default: all) into a folder; their paths there, in order.

    Files whose MD5 is the ETag stay as they are. DataError when a name would leave the folder or an
    object changed since it was listed; UserError and TemporaryError as in `store.list_objects`.
    """
    objects = store.list_objects(uri) if objects is None else objects
    targets = [inside(folder, item["path"], uri) for item in objects]
    stop = threading.Event()
    with ThreadPoolExecutor(WORKERS) as parts, ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(partial(_bring, uri, parts, stop), objects, targets))
    return targets


def inside(folder: Path, path: str, uri: str) -> Path:
    """Where a listed object lies in a folder. DataError when its name would leave the folder."""
    parts = path.split("/")
    plain = not (set(parts) & {"", ".", ".."} or re.search(r"[\\\0]", path))
    target = folder.joinpath(*parts) if plain else folder
    if not plain or not target.resolve().is_relative_to(folder.resolve()):  # a link may lead out
        raise DataError(
            f"{uri}: object {path!r} would be written outside {folder}; expected a plain relative "
            "path. Nothing was written; rename or remove that object."
        )
    return target


def _bring(
    uri: str, parts: ThreadPoolExecutor, stop: threading.Event, wanted: Object, target: Path
) -> None:
    if _is_same(target, wanted):
        return
    mark = hashlib.sha256(f"{uri} {sorted(wanted.items())}".encode()).hexdigest()[:12]
    place = target.with_name(f".{target.name}.{mark}.partial")
    ours = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{12}\.partial")
    for other in target.parent.glob(".*.partial"):
        if other != place and ours.fullmatch(other.name):  # of another version
            shutil.rmtree(other)
    place.mkdir(parents=True, exist_ok=True)
    asked = Download(uri, wanted, place, stop, lambda count: None)
    try:
        downloads.bring(asked, parts)
    except BaseException:
        stop.set()
        raise
    asked.partial.replace(target)
    shutil.rmtree(place)


def _is_same(target: Path, wanted: Object) -> bool:
    """Whether a file has the content already; an ETag that is no MD5 cannot say so."""
    if not target.is_file() or target.stat().st_size != wanted["size"]:
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == wanted["etag"]
