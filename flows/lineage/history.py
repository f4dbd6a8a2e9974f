"""Registered versions and the runs behind them, read from git objects; nothing is checked out.

A version is an annotated tag in GTO's form (`wam@v0.0.2`) on a run's last commit; a run is what
`dvc.lock` and the `.dvc` files say at that commit. It works in any clone that has the tags.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pathspec import GitIgnoreSpec

from components.errors import DataError
from flows.workspace import git

TRACKED = ("data/trials.dvc",)  # inputs that DVC keeps beside the stages
_TAG = re.compile(r"^(?P<name>.+)@v(?P<number>\d+\.\d+\.\d+)(?P<gone>!?)(?:#\d+)?$")
_FIELDS = ("refname:short", "*objectname", "taggername", "taggerdate:iso-strict")
_FORMAT = "%00".join(f"%({f})" for f in (*_FIELDS, "contents:trailers:key=Run,valueonly"))


class _Loader(yaml.CSafeLoader):
    """YAML as DVC writes it: `1e-05` is a number (YAML 1.2), which PyYAML takes for a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Version:
    """One registered version: `tag` is `name@version`; `time` is ISO 8601, `run` a branch or ''."""

    name: str
    version: str
    tag: str
    commit: str
    time: str
    by: str
    run: str

    @property
    def number(self) -> tuple[int, ...]:
        """For sorting: (major, minor, patch)."""
        return tuple(int(part) for part in self.version[1:].split("."))


@dataclass(frozen=True)
class Stage:
    """One stage in `dvc.lock`: digests (md5, `.dir` for folders) by path, values by file."""

    name: str
    cmd: str
    deps: dict[str, str]
    outs: dict[str, str]
    params: dict[str, Any]


@dataclass(frozen=True)
class PastRun:
    """What one commit says was run: stages, and digests of inputs kept by DVC (`tracked`)."""

    commit: str
    stages: tuple[Stage, ...]
    tracked: dict[str, str] = field(default_factory=dict)

    @cached_property
    def outs(self) -> dict[str, str]:
        """Digest of every output of every stage, and of every tracked input, by path."""
        produced = {path: md5 for stage in self.stages for path, md5 in stage.outs.items()}
        return {**self.tracked, **produced}


def blobs(repo: Path, specs: Iterable[str]) -> dict[str, bytes]:
    """Contents of git objects (`REVISION:path` or an object's id); what does not exist is left out.

    One git process for all, so that many versions cost little.
    """
    wanted = list(dict.fromkeys(specs))
    answer = subprocess.run(
        ["git", "cat-file", "--batch"],
        cwd=repo,
        input="".join(f"{spec}\n" for spec in wanted).encode(),
        capture_output=True,
        check=True,
    ).stdout
    found, at = {}, 0
    for spec in wanted:
        end = answer.index(b"\n", at)
        header, at = answer[at:end], end + 1
        if not header.endswith((b" missing", b" ambiguous")):
            size = int(header.rsplit(b" ", 1)[1])
            found[spec], at = answer[at : at + size], at + size + 1
    return found


def versions(repo: Path, name: str | None = None, withdrawn: bool = False) -> list[Version]:
    """Registered versions, all or one model's, by name and number; `withdrawn`: gone ones, too."""
    lines = git(repo, "for-each-ref", "refs/tags", f"--format={_FORMAT}")
    found, gone = [], set()
    for fields in (line.split("\0") for line in lines.splitlines() if "\0" in line):
        tag, commit, by, time, run = fields
        match = _TAG.match(tag)
        if not match or not commit or name not in (None, match["name"]):
            continue
        if match["gone"]:
            gone.add((match["name"], match["number"]))
        else:
            found.append(Version(match["name"], f"v{match['number']}", tag, commit, time, by, run))
    kept = [v for v in found if withdrawn or (v.name, v.version[1:]) not in gone]
    return sorted(kept, key=lambda v: (v.name, v.number))


def runs(repo: Path, commits: Iterable[str]) -> dict[str, PastRun]:
    """The run of each commit. DataError where `dvc.lock` is not readable."""
    commits = list(dict.fromkeys(commits))
    texts = blobs(repo, [f"{c}:{path}" for c in commits for path in ("dvc.lock", *TRACKED)])
    return {commit: _run(commit, texts) for commit in commits}


def run(repo: Path, commit: str) -> PastRun:
    """The run of one commit."""
    return runs(repo, [commit])[commit]


def _run(commit: str, texts: dict[str, bytes]) -> PastRun:
    lock = load_yaml(texts.get(f"{commit}:dvc.lock", b"{}"), f"{commit[:12]}:dvc.lock")
    stages = tuple(_stage(name, entry) for name, entry in lock.get("stages", {}).items())
    tracked = {}
    for path in TRACKED:
        entry = load_yaml(texts.get(f"{commit}:{path}", b"{}"), f"{commit[:12]}:{path}")
        for out in entry.get("outs", []):
            tracked[f"{Path(path).parent.as_posix()}/{out['path']}"] = str(out.get("md5", ""))
    return PastRun(commit, stages, tracked)


def _stage(name: str, entry: dict[str, Any]) -> Stage:
    deps, outs = (
        {e["path"]: str(e.get("md5", "")) for e in entry.get(k, [])} for k in ("deps", "outs")
    )
    return Stage(name, entry.get("cmd", ""), deps, outs, entry.get("params", {}))


def load_yaml(text: bytes, where: str) -> dict[str, Any]:
    """A mapping. DataError names the file when it is none."""
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a CSafeLoader)
    except yaml.YAMLError as error:
        raise DataError(f"{where}: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a mapping, got {type(value).__name__}.")
    return value


def code_digests(repo: Path, commit: str, paths: list[str]) -> dict[str, str]:
    """DVC's digest of committed files and folders at a commit; unknown paths are left out.

    As `dvc_data.hashfile.tree.Tree`: a folder's digest is the md5 of the JSON list of its files,
    without those that the commit's `.dvcignore` names.
    """
    listed = (
        git(repo, "ls-tree", "-r", "-z", commit, "--", *paths).split("\0")[:-1] if paths else []
    )
    ids = {path: head.split()[2] for head, path in (line.split("\t", 1) for line in listed)}
    contents = blobs(repo, ids.values())
    md5 = {path: _md5(contents[ids[path]]) for path in ids}
    found = {path: md5[path] for path in paths if path in md5}
    rules = blobs(repo, [f"{commit}:.dvcignore"]).get(f"{commit}:.dvcignore", b"")
    ignored = GitIgnoreSpec.from_lines(rules.decode().splitlines())
    for folder in paths:
        inside = sorted(p for p in md5 if p.startswith(f"{folder}/"))
        if inside:
            seen = [p for p in inside if not ignored.match_file(p)]
            rows = [{"md5": md5[p], "relpath": p.removeprefix(f"{folder}/")} for p in seen]
            found[folder] = _md5(json.dumps(rows).encode()) + ".dir"
    return found


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
