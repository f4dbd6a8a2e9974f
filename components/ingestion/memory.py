"""What earlier runs found out, so that a run pays for what is new: the use of the shard store here.

Three kinds of pieces: what a file says of itself (`once`), the facts of an episode, and films made
of single pictures. Every key holds the digests of the listed files, so a changed file is read again
and an unchanged one need not be there to be told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from components.ingestion.measure import Effort, Facts, measure
from components.shards import Shards, key

if TYPE_CHECKING:
    from components.ingestion.raw import Reader
    from components.ingestion.source import Source

KEEP_EVERY_S = 20.0  # a killed run loses no more work than this
_FACTS = TypeAdapter(Facts)


class Memory:
    """The shard store of one run; `scratch` is a folder that goes with the run."""

    def __init__(self, shards: Shards, scratch: Path, sources: Iterable[Source]) -> None:
        self.shards, self.scratch = shards, scratch
        digests = {item.version for source in sources for item in source.objects}
        self._files = shards.recall(key("file", digest) for digest in digests)
        self._new: dict[str, Any] = {}
        self._kept_s = time.monotonic()
        self.recalled = 0  # episodes whose facts were known

    def once(self, digest: str, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON value that only the content of a file decides; computed when nobody has yet."""
        known = self._files.setdefault(key("file", digest), {})
        if name not in known:
            known[name] = compute()
            self._later(key("file", digest), known)
        return known[name]

    def facts(self, number: int, reader: Reader, uri: str, *, effort: Effort) -> list[Facts]:
        """Facts of all episodes of the source with a number, in the reader's order."""
        keys = {index: self._key(reader, index) for index in reader.indices}
        known = self.shards.recall(name for name in keys.values() if name)
        found = []
        for index, name in keys.items():
            if name in known:
                facts = self._told(known[name], number, reader, index, uri)
            else:
                facts = measure(number, reader.read(index), reader.layout, effort=effort)
                kept = replace(facts, uri=facts.uri.removeprefix(uri))
                self._later(name, _FACTS.dump_python(kept, mode="json"))
            found.append(facts)
        self.flush()
        return found

    def flush(self) -> None:
        """Keep what is new."""
        self.shards.keep(self._new)
        self._new, self._kept_s = {}, time.monotonic()

    def _key(self, reader: Reader, index: int) -> str:
        return key("facts", reader.identity(index), reader.layout.signature)

    def _told(self, known: Any, number: int, reader: Reader, index: int, uri: str) -> Facts:
        facts = _FACTS.validate_python(known)
        facts = replace(facts, source=number, index=index, uri=uri + facts.uri)
        task = reader.recall(index, facts.notes) if facts.notes else None
        self.recalled += 1
        return facts if facts.read_problem else replace(facts, task=task)

    def _later(self, name: str, value: Any) -> None:
        self._new[name] = value
        if time.monotonic() - self._kept_s > KEEP_EVERY_S:
            self.flush()
