"""Files of past runs, read by digest from the DVC cache; what is missing comes from the remote.

Every file is hashed when it is first read: an object whose content is not what its name says is an
error, never an answer. Layout: `files/md5/ab/cdef...`; a folder is a JSON list (`.dir`).
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from components.errors import DataError, UserError
from components.outputs import sha256
from flows.lineage.history import PastRun

# What lineage reads; weights and videos stay where they are.
TABLES = (
    "data/episodes/manifest.parquet",
    "data/quarantine/quarantine.parquet",
    "data/events/events.parquet",
    "data/captions/captions.parquet",
    "data/clusters/clusters.parquet",
    "data/plan/plan.parquet",
    "data/plan/receipt.json",
    "data/checkpoint/exposure.parquet",
    "data/checkpoint/receipt.json",
    "data/trials/trials.parquet",
    "data/evaluation/results.json",
    "data/passport/digests.json",
)
HASHED_UP_TO_MB = 512  # larger weights would make an answer slow; their md5 is in dvc.lock
FOLDERS = {path.rpartition("/")[0] for path in TABLES}


class Cache:
    """The DVC cache of a checkout, by digest and by (run, path)."""

    def __init__(self, repo: Path) -> None:
        self.repo = repo
        self.folder = _configured(repo) / "files" / "md5"
        self._verified: dict[str, Path] = {}
        self._listings: dict[str, dict[str, str]] = {}
        self._sha256: dict[str, str] = {}
        self._asked: set[str] = set()  # of the remote
        self._said = ""  # what went wrong there

    def digest(self, run: PastRun, path: str) -> str | None:
        """md5 of a file that a run wrote or read; None when its commit knows no such file."""
        if path in run.outs:
            return run.outs[path] or None
        for out, md5 in run.outs.items():
            if md5 and path.startswith(f"{out}/"):
                return self.listing(md5, out).get(path.removeprefix(f"{out}/"))
        return None

    def file(self, run: PastRun, path: str) -> Path:
        """A verified file of a run.

        DataError when its commit has no such file or the object is corrupted; UserError when
        neither cache nor remote has it.
        """
        md5 = self.digest(run, path)
        if md5 is None:
            raise DataError(
                f"{run.commit[:12]}: no digest of {path} in dvc.lock; the run wrote none."
            )
        return self.object(md5, path)

    def bring(self, runs: Iterable[PastRun]) -> None:
        """Fetch all that lineage reads of these runs and the cache lacks, in two requests."""
        found = list(runs)
        self._fetch(md5 for run in found for out, md5 in run.outs.items() if out in FOLDERS)
        self._fetch(
            md5
            for run in found
            for path in TABLES
            if self._listed(run, path) and (md5 := self.digest(run, path))
        )

    def _listed(self, run: PastRun, path: str) -> bool:
        """Whether the list of the folder that holds a file is here."""
        md5 = run.outs.get(path.rpartition("/")[0])
        return bool(md5 and self.local(md5))

    def listing(self, md5: str, what: str) -> dict[str, str]:
        """Files of a folder: md5 by relative path."""
        if md5 not in self._listings:
            rows = json.loads(self.object(md5, what).read_bytes())
            self._listings[md5] = {row["relpath"]: row["md5"] for row in rows}
        return self._listings[md5]

    def link(self, md5: str, what: str, target: Path) -> None:
        """Show a folder's files at `target` as links into the cache; what it lacks, the remote has.

        DataError when a listed path would leave `target`; UserError when a file is nowhere.
        """
        self._fetch([md5])
        listing = self.listing(md5, what)
        self._fetch(listing.values())
        for name, digest in listing.items():
            place = Path(os.path.normpath(target / name))
            if not place.is_relative_to(target):
                raise DataError(f"{what}: expected paths within it; its list names {name!r}.")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(self.local(digest) or self.object(digest, f"{what}/{name}"))

    def sha256(self, md5: str, what: str) -> tuple[str, str]:
        """(sha256, '') of an object in the local cache, or ('', why it is not computed)."""
        path = self.local(md5)
        if path is None:
            return "", f"{what} is not in the local cache; `dvc fetch` brings it"
        if path.stat().st_size > HASHED_UP_TO_MB * 1_000_000:
            return "", f"{what} is larger than {HASHED_UP_TO_MB} MB"
        if md5 not in self._sha256:
            self._sha256[md5] = sha256(self.object(md5, what))
        return self._sha256[md5], ""

    def local(self, md5: str) -> Path | None:
        """Where an object lies in the local cache, unread; None when it is not there."""
        path = self.folder / md5[:2] / md5[2:]
        return path if path.is_file() else None

    def object(self, md5: str, what: str) -> Path:
        """One verified object; `what` names it in messages."""
        if md5 not in self._verified:
            self._fetch([md5])
            path = self.local(md5)
            if path is None:
                raise self._absent(what, md5)
            with path.open("rb") as file:
                got = hashlib.file_digest(file, "md5").hexdigest()
            if got != md5.removesuffix(".dir"):
                raise DataError(
                    f"{path}: the cache object of {what} is corrupted: expected md5 {md5}, "
                    f"got {got}. Remove that file and ask again: it then comes from the remote."
                )
            self._verified[md5] = path
        return self._verified[md5]

    def _absent(self, what: str, md5: str) -> UserError:
        said = f" ({self._said})" if self._said else ""
        return UserError(
            f"{what}: object {md5} is neither in the cache {self.folder} nor did it come from a "
            f"remote{said}. Name the remote or the cache that has it, then ask again: "
            "`dvc remote add --local -d NAME URL`, or `dvc cache dir --local FOLDER`."
        )

    def _fetch(self, digests: Iterable[str]) -> None:
        """Ask the remote for what the cache lacks; what goes wrong is said where it is missed."""
        wanted = sorted({md5 for md5 in digests if not self.local(md5)} - self._asked)
        if not wanted:
            return
        from flows import graph

        self._asked.update(wanted)
        self.folder = graph.cache_folder(self.repo) / "files" / "md5"  # global settings, too
        try:
            graph.fetch(self.repo, wanted)
        except Exception as error:  # no remote, no network, no credentials: all the same here
            self._said = str(error)


def _configured(repo: Path) -> Path:
    """The cache folder as the checkout's configuration says (asking DVC takes 0.4 s)."""
    for name in ("config.local", "config"):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        parser.read(repo / ".dvc" / name)
        if folder := parser.get("cache", "dir", fallback="").strip("\"' "):
            return (repo / ".dvc" / folder).resolve()
    return repo / ".dvc" / "cache"
