"""A source that nobody has listed, for a look at it: its files as they are now."""

from __future__ import annotations

from pathlib import Path

from components.errors import UserError
from components.ingestion.source import Object, Source


class Folder(Source):
    """Files of a folder, taken without digests."""

    def file(self, path: str) -> Path:
        """The file itself."""
        return self.root / path


def opened(uri: str) -> Source:
    """The source at an address; hidden files are no data. UserError when there is none."""
    if uri.startswith("s3://"):
        from components.ingestion import bucket

        return bucket.listed(uri)
    root = Path(uri)
    if not root.is_dir():
        raise UserError(f"{uri}: no such folder; expected a folder or s3://bucket/prefix.")
    files = ((path.relative_to(root), path) for path in root.rglob("*") if path.is_file())
    objects = [
        Object(path=name.as_posix(), size=path.stat().st_size)
        for name, path in sorted(files)
        if not any(part.startswith(".") for part in name.parts)
    ]
    return Folder(uri=uri, name=root.resolve().name, objects=objects)
