"""The code that a stage can reach: the files of its package and all that they import, as a digest.

Read from the text of the sources, so that imports inside functions count too and nothing is run.
It names pieces of work in `shards.py`; for DVC the same closure stands in dvc.yaml.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("components", "models")
FIRST_PARTY = r"(?:" + "|".join(PACKAGES) + r")\b[\w.]*"
IMPORT = re.compile(
    rf"^[ \t]*(?:from\s+(?P<of>{FIRST_PARTY})\s+import\s+(?P<names>\([^)]*\)|[^\n]*)"
    rf"|import\s+(?P<module>{FIRST_PARTY}))",
    re.MULTILINE,
)


@functools.cache
def digest(stage: str) -> str:
    """Digest (20 hexadecimal digits) of the names and bytes of all files of `files(stage)`."""
    found = hashlib.sha256()
    for path, code in sorted(_sources(stage).items()):
        found.update(f"{path}\0{hashlib.sha256(code).hexdigest()}\n".encode())
    return found.hexdigest()[:20]


def files(stage: str) -> list[str]:
    """Python files, relative to the checkout, that `components/<stage>` consists of or imports."""
    return sorted(_sources(stage))


def _sources(stage: str) -> dict[str, bytes]:
    """Those files with what is in them."""
    there = {path for package in PACKAGES for path in _python_files(package)}
    left = [path for path in there if path.startswith(f"components/{stage}/")]
    found: dict[str, bytes] = {}
    known: set[str] = set()
    while left:
        path = left.pop()
        if path not in found:
            found[path] = (ROOT / path).read_bytes()
            new = set(_imported(found[path].decode())) - known
            known |= new
            left += [file for name in new for file in _files_of(name, there)]
    return found


def _python_files(package: str) -> Iterator[str]:
    """By os.walk: a question about each file that an import might mean costs ten times as much."""
    for folder, _, names in os.walk(ROOT / package):
        place = Path(folder).relative_to(ROOT).as_posix()
        yield from (f"{place}/{name}" for name in names if name.endswith(".py"))


def _imported(code: str) -> Iterator[str]:
    """Names that a file imports of ours: of modules, and of what may be one."""
    for match in IMPORT.finditer(code):
        module, names = match["of"] or match["module"], match["names"] or ""
        yield module
        yield from (f"{module}.{name}" for name in re.findall(r"\w+", names))


def _files_of(module: str, there: set[str]) -> Iterator[str]:
    """The files of a module, and the `__init__` of the packages on the way."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        place = "/".join(parts[:count])
        yield from (file for file in (f"{place}.py", f"{place}/__init__.py") if file in there)
