"""The listed state of one source: which files there are, and that they are still what was listed.

`inputs/sources.json` (written by `wamflow snapshot`) names every object with its size and digest,
or in S3 its ETag and version. Only listed objects exist for ingestion; one that vanished or changed
since is an error. `bucket.py` is the same for a source in S3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from components.errors import DataError, UserError
from components.ingestion import digests
from components.ingestion.said import Said
from components.outputs import sha256

if TYPE_CHECKING:
    from components.ingestion.memory import Memory


class Object(BaseModel, frozen=True):
    """One file of a source; `path` is relative to the source's address."""

    path: str
    size: int = Field(ge=0)
    sha256: str = ""  # of a local file
    etag: str = ""  # of an object in S3
    version_id: str = ""  # the same, where the bucket keeps versions

    @property
    def content(self) -> str:
        """The same for equal bytes, as far as the listing says; empty where it says nothing."""
        return self.sha256 or self.etag

    @property
    def version(self) -> str:
        """What changes with the content, as it was listed."""
        return self.sha256 or f"{self.version_id} {self.etag}"


class Aside(BaseModel, frozen=True):
    """An object that no reader is shown, and why."""

    path: str
    detail: str


class Source(BaseModel):
    """One folder with all its objects."""

    uri: str
    name: str
    objects: list[Object]
    aside: list[Aside] = []
    said: Said = Field(default_factory=Said, exclude=True)  # `ingestion.mappings` of this source
    _memory: Memory | None = PrivateAttr(default=None)

    @property
    def memory(self) -> Memory | None:
        """What earlier runs found out; None when nothing is to be kept (`inspect`)."""
        return self._memory

    def remember(self, memory: Memory) -> None:
        """From now on keep what is found out of the files."""
        self._memory = memory

    def once(self, path: str, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON value that only the content of a listed file decides, or what earlier runs got."""
        if self._memory is None:
            return compute()
        return self._memory.once(self.listed[path].version, name, compute)

    @cached_property
    def root(self) -> Path:
        """The source's folder. UserError for another kind of address, DataError when it is gone."""
        if "://" in self.uri:
            raise UserError(
                f"ingestion: source {self.uri}: expected a folder or s3://bucket/prefix; "
                "correct ingestion.sources and run `wamflow snapshot`."
            )
        root = Path(self.uri)
        if not root.is_dir():
            raise DataError(
                f"ingestion: source {self.uri}: the folder vanished since it was listed; "
                "restore it, or take it out of ingestion.sources and run `wamflow snapshot`."
            )
        return root

    @cached_property
    def listed(self) -> dict[str, Object]:
        """Objects by their path."""
        return {item.path: item for item in self.objects}

    @cached_property
    def verified(self) -> dict[str, Path]:
        """Local files whose digest has been compared in this run."""
        return {}

    def check_sizes(self) -> None:
        """Stat every object. DataError names the first few that vanished or changed."""
        wrong = [fault for item in self.objects if (fault := self._size_fault(item))]
        if wrong:
            raise self._changed(
                "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" * (len(wrong) > 3))
            )

    def file(self, path: str) -> Path:
        """The local file of a listed object, its digest checked once. DataError when it changed."""
        if path not in self.verified:
            item, local = self.listed[path], self.root / path
            try:
                found = item.sha256 if digests.is_known(local, item.sha256) else sha256(local)
            except OSError as error:
                raise self._changed(f"{path}: {error.strerror}") from error
            if found != item.sha256:
                raise self._changed(f"{path}: expected sha256 {item.sha256[:12]}, got {found[:12]}")
            self.verified[path] = local
        return self.verified[path]

    def same(self, first: str, second: str) -> bool:
        """Whether two listed objects have equal bytes, as far as the listing says."""
        a, b = self.listed[first], self.listed[second]
        return first == second or (a.size == b.size and a.content == b.content != "")

    def fetch(self, paths: Iterable[str] | None = None) -> None:
        """Bring objects (default: all) that will be asked for; a folder's are here already."""

    def head(self, path: str, count: int) -> bytes:
        """The first bytes of an object, unchecked; fewer where it is shorter. OSError if gone."""
        with (self.root / path).open("rb") as file:
            return file.read(count)

    def version(self, paths: list[str]) -> str:
        """Digest (20 hexadecimal digits) of some objects as they were listed; reads nothing."""
        lines = [f"{path}\0{self.listed[path].version}\n" for path in sorted(set(paths))]
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:20]

    def _size_fault(self, item: Object) -> str | None:
        parts = PurePosixPath(item.path)
        if parts.is_absolute() or ".." in parts.parts:
            return f"{item.path}: a path that leaves the source"
        try:
            size = (self.root / item.path).stat().st_size
        except OSError:
            return f"{item.path}: vanished"
        return None if size == item.size else f"{item.path}: expected {item.size} bytes, got {size}"

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"ingestion: source {self.uri} is not what inputs/sources.json lists: {what}. "
            "Run `wamflow snapshot` to list it again, or restore the files."
        )


class _Listing(BaseModel):
    sources: list[Source]


def load(path: Path) -> list[Source]:
    """Read `inputs/sources.json`. UserError when it is missing, malformed or names no source."""
    try:
        listing = _Listing.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; run `wamflow snapshot` to list the sources."
        ) from None
    except (ValueError, ValidationError) as error:
        raise UserError(
            f"{path}: expected {{sources: [{{uri, name, objects: [{{path, size, sha256 or "
            f"etag}}]}}]}}; got {' '.join(str(error).split())[:300]}; write it with "
            "`wamflow snapshot`."
        ) from None
    if not listing.sources:
        raise UserError(f"{path}: no source; name one in ingestion.sources of params.yaml.")
    return [_of_its_kind(source) for source in listing.sources]


def _of_its_kind(source: Source) -> Source:
    if not source.uri.startswith("s3://"):
        return source
    from components.ingestion.bucket import Bucket

    return Bucket(**dict(source))
