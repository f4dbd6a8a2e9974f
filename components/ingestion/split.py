"""Which files are one recording: ROS 2 bags are split over several by size or duration.

`metadata.yaml` beside them names them in order (`relative_file_paths`), as rosbag2 writes it, and
may carry `custom_data`. A file that none names is a recording of its own.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import yaml

from components.ingestion.source import Source

NAME = "metadata.yaml"
MAX_BYTES, MAX_FILES = 2**22, 10_000


@dataclass(frozen=True)
class Bag:
    """One recording: its files in order, those that are not there, and what was noted of it."""

    files: tuple[str, ...]
    missing: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its path in the source: of its file, or of the folder of its files."""
        if len(self.files) + len(self.missing) == 1:
            return self.files[0]
        return posixpath.dirname(self.files[0]) or self.files[0]


def bags(source: Source, files: list[str]) -> list[Bag]:
    """Every recording of some files, in the order of their first files."""
    present, found = set(files), list[Bag]()
    taken = set[str]()
    for path in sorted(p for p in source.listed if posixpath.basename(p) == NAME):
        said = source.once(path, "bag", partial(_said, source, path))
        beside = posixpath.dirname(path)
        named = [posixpath.join(beside, posixpath.basename(name)) for name in said["files"]]
        parts = tuple(dict.fromkeys(name for name in named if name in present - taken))
        if parts:
            missing = tuple(sorted(set(named) - present))
            found.append(Bag(parts, missing, said["notes"]))
            taken |= set(parts)
    found += [Bag((path,)) for path in files if path not in taken]
    return sorted(found, key=lambda bag: bag.files[0])


def _said(source: Source, path: str) -> dict[str, Any]:
    """Names of files and texts of `custom_data`; nothing where the file is no such YAML."""
    try:
        if source.listed[path].size > MAX_BYTES:
            return {"files": [], "notes": {}}
        whole = yaml.load(source.file(path).read_bytes(), Loader=LOADER)  # noqa: S506  (safe ones)
        about = whole["rosbag2_bagfile_information"]
        files = about["relative_file_paths"]
        custom = about.get("custom_data")
        custom = custom if isinstance(custom, dict) else {}
        return {
            "files": [name for name in files[:MAX_FILES] if isinstance(name, str)],
            "notes": {str(k): v for k, v in custom.items() if isinstance(v, str)},
        }
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, ValueError, RecursionError):
        return {"files": [], "notes": {}}


LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every scalar is text, as rosbag2 means it
