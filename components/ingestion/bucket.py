"""A source in S3: as it is listed, and its objects as files of the mirror.

What a reader asks for is downloaded when it asks (`file`), or before in one go (`fetch`), always in
the listed version. Each file's digest is compared once in a run with the one it had when it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from components import store
from components.errors import DataError, UserError
from components.ingestion import mirror
from components.ingestion.source import Aside, Object, Source
from components.outputs import sha256

HEAD_BYTES = 64  # what formats are recognised by
HEADS = 32  # requests at the same time
HEAD_S = 60.0


class Bucket(Source):
    """One `s3://bucket/prefix` with all its objects."""

    @property
    def root(self) -> Path:
        """There is none: objects lie apart from each other."""
        raise AssertionError("a source in S3 has no folder; ask it for file(path)")

    def check_sizes(self) -> None:
        """UserError for an address that is none; each object is checked when it is asked for."""
        store.split(self.uri)

    def fetch(self, paths: Iterable[str] | None = None) -> None:
        """Bring objects (default: all) at once. Errors as in `mirror.fetch`."""
        wanted = self.objects if paths is None else [self.listed[path] for path in paths]
        mirror.fetch(self.uri, [_pinned(item) for item in wanted])

    def file(self, path: str) -> Path:
        """The local file of an object, downloaded if need be. Errors as in `mirror.fetch`."""
        if path not in self.verified:
            self.verified[path] = self._whole(path)
        return self.verified[path]

    def head(self, path: str, count: int) -> bytes:
        """The first bytes of an object; the first call asks for those of all objects."""
        assert count <= HEAD_BYTES
        return self._heads[path][:count]

    def _whole(self, path: str) -> Path:
        wanted = _pinned(self.listed[path])
        local = mirror.local(self.uri, wanted)
        if local is not None and sha256(local) != mirror.sha256(local):
            mirror.discard(local)  # damaged on this disk
        mirror.fetch(self.uri, [wanted])
        local = mirror.local(self.uri, wanted)
        if local is None:
            raise DataError(f"{self.uri}/{path}: was removed from {mirror.folder()} meanwhile.")
        return local

    @cached_property
    def _heads(self) -> dict[str, bytes]:
        with ThreadPoolExecutor(HEADS) as pool:
            return dict(zip(self.listed, pool.map(self._head, self.objects), strict=True))

    def _head(self, item: Object) -> bytes:
        wanted, found = _pinned(item), bytearray()
        if (local := mirror.local(self.uri, wanted)) is not None:
            with local.open("rb") as file:
                return file.read(HEAD_BYTES)
        if end := min(HEAD_BYTES, item.size):
            store.read(self.uri, wanted, 0, end, found.extend, within_s=HEAD_S)
        return bytes(found)


def listed(uri: str) -> Bucket:
    """The source as it is now; hidden objects are no data. UserError when there is nothing.

    Objects whose names could lead out of a folder are set aside. Errors as in `store.list_objects`.
    """
    uri = uri.rstrip("/")
    objects, aside = [], []
    for item in store.list_objects(uri):
        if fault := _name_fault(item["path"]):
            aside.append(Aside(path=item["path"], detail=fault))
        elif not any(part.startswith(".") for part in item["path"].split("/")):
            objects.append(Object(**item))
    if not objects:
        raise UserError(
            f"source {uri}: no object below this address; expected the files of a data set. "
            f"Look with `aws s3 ls {uri}/`, and correct the bucket or the prefix."
        )
    return Bucket(uri=uri, name=uri.rpartition("/")[2], objects=objects, aside=aside)


def _name_fault(path: str) -> str | None:
    """What is wrong with an object's name: it must name a file below its source, in one line."""
    if set(path.split("/")) & {"", ".", ".."}:
        return "its name leaves the source, or ends as a folder's does"
    return "its name has control characters" if re.search(r"[\x00-\x1f\x7f]", path) else None


def _pinned(item: Object) -> store.Object:
    return {
        "path": item.path,
        "size": item.size,
        "etag": item.etag,
        "version_id": item.version_id,
    }
