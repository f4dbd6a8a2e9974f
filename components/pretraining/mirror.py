"""A copy of checkpoints in S3, where `WAMFLOW_CHECKPOINTS` is `s3://bucket/prefix`; else nothing.

Shards go up as soon as they are written, the marker last, as on the disk; a machine that begins
with an empty disk, or whose disk holds its own shards only, brings them down first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from components import folders, store
from components.errors import UserError


def _address(*parts: str) -> str | None:
    """Where something lies in S3. UserError for an address of another kind."""
    address = os.environ.get("WAMFLOW_CHECKPOINTS", "")
    if not address:
        return None
    if not address.startswith("s3://"):
        raise UserError(
            f"WAMFLOW_CHECKPOINTS is {address!r}; expected s3://bucket/prefix. For a folder set "
            "WAMFLOW_STORE."
        )
    return "/".join([address.rstrip("/"), *parts])


def send(files: Sequence[Path], *parts: str) -> None:
    """Upload files below the address; TemporaryError and UserError as `folders.upload` has them."""
    if uri := _address(*parts):
        for file in files:
            folders.upload(file, uri)


def fetch(key: str, folder: Path) -> None:
    """Bring all marked checkpoints of one training into its folder; what is there stays."""
    if uri := _address(key):
        objects = store.list_objects(uri)
        marked = {o["path"].split("/")[0] for o in objects if o["path"].endswith("/commit.json")}
        folders.download(uri, folder, [o for o in objects if o["path"].split("/")[0] in marked])


def remove(*parts: str) -> None:
    """Delete what lies below."""
    if uri := _address(*parts):
        store.remove(uri)
