"""Objects below `s3://bucket/prefix`: listed page by page, pinned, read in ranges, sent, removed.

Keys and endpoint come from where boto3 looks (AWS_* variables, files, the machine's role), so
recordings, checkpoints and the DVC remote share them. `download.py` resumes, `folders.py` copies
folders, `ingestion/mirror.py` keeps recordings. Source: the S3 API reference.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from components.errors import DataError, TemporaryError, UserError
from components.s3_failures import answered

CHUNK_BYTES = 2**20  # handed on at once
CONNECT_S = 10.0
SILENCE_S = 30.0  # of an open connection; then it is cut and asked again
ATTEMPTS = 5  # of one request; botocore waits up to 1, 2, 4, 8 s between them, by chance
CONNECTIONS = 32
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
CHANGED = ("404", "NoSuchKey", "NoSuchVersion", "PreconditionFailed", "412", "InvalidRange", "416")
NO_VERSIONS = ("AccessDenied", "403", "NotImplemented", "501", "MethodNotAllowed", "405")


class Object(TypedDict):
    """One object below an address, pinned: ETag and, where the bucket keeps versions, its id."""

    path: str  # relative to the address, as in S3: any text, also `../x`
    size: int  # bytes
    etag: str  # MD5 of the content, unless it came in parts or is encrypted
    version_id: str  # empty in a bucket without versions


class CutError(TemporaryError):
    """A body that ended early, stalled or had another length; what came before it is good."""


def split(uri: str) -> tuple[str, str]:
    """(bucket, prefix) of an address. UserError otherwise, never repeating a password in it."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not BUCKET.fullmatch(bucket):
        shown = uri.rpartition("@")[2]
        raise UserError(f"{shown}: expected s3://bucket/prefix, without credentials.")
    return bucket, prefix.strip("/")


def list_objects(uri: str) -> list[Object]:
    """All objects below `s3://bucket/prefix`, sorted by path; empty marks of folders are none.

    UserError when bucket or credentials are missing or wrong; TemporaryError without an answer.
    """
    bucket, prefix = split(uri)
    start = f"{prefix}/" if prefix else ""
    with answered(uri):
        items = list(_current(bucket, start) or _plain(bucket, start))
    found: list[Object] = [
        {
            "path": item["Key"].removeprefix(start),
            "size": item["Size"],
            "etag": item["ETag"].strip('"'),
            "version_id": item.get("VersionId", ""),
        }
        for item in items
        if item["Key"] != start and not (item["Key"].endswith("/") and item["Size"] == 0)
    ]
    return sorted(found, key=lambda o: o["path"])


def _plain(bucket: str, start: str) -> Iterator[dict[str, Any]]:
    for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
        yield from page.get("Contents", [])


def _current(bucket: str, start: str) -> list[dict[str, Any]] | None:
    """Current versions; None where the bucket keeps none or these keys may not see them."""
    from botocore.exceptions import ClientError

    client = _client()
    try:
        if "Status" not in client.get_bucket_versioning(Bucket=bucket):
            return None
        pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=start)
        return [v for page in pages for v in page.get("Versions", []) if v["IsLatest"]]
    except ClientError as error:
        if error.response["Error"]["Code"] in NO_VERSIONS:
            print(f"s3://{bucket}: versions cannot be listed; ETags pin objects.", file=sys.stderr)
            return None
        raise


def read(
    uri: str,
    wanted: Object,
    start: int,
    end: int,
    write: Callable[[bytes], None],
    *,
    within_s: float,
) -> None:
    """Hand bytes `start` to `end` (excluded) of a pinned object to `write`, in pieces, in order.

    CutError when the body breaks off or takes longer than `within_s` after its start; DataError
    when the object changed or vanished since it was listed; else as in `list_objects`.
    """
    where = f"{uri}/{wanted['path']}"
    response = _asked(uri, wanted, "get_object", Range=f"bytes={start}-{end - 1}")
    body, left, by = response["Body"], end - start, time.monotonic() + within_s
    try:
        if response["ContentLength"] != left:
            raise CutError(f"{where}: asked for {left} bytes, offered {response['ContentLength']}.")
        while left and (piece := _piece(body, where)):
            write(piece)
            left -= len(piece)
            if time.monotonic() > by:
                raise CutError(f"{where}: too slow; {left} bytes of a part did not come in time.")
    finally:
        body.close()
    if left:
        raise CutError(f"{where}: S3 ended a body {left} bytes early.")


def _piece(body: Any, where: str) -> bytes:
    """The next bytes of a body, as many as there are; none at its end."""
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    try:  # the public read() would wait for a trickle without an end
        return bytes(body._raw_stream.read1(CHUNK_BYTES))
    except (BotoCoreError, HTTPError, OSError) as error:
        raise CutError(f"{where}: the connection broke: {type(error).__name__}.") from None


def has_md5(uri: str, wanted: Object) -> bool:
    """Whether a pinned object's ETag is the MD5 of its bytes: not in parts, not encrypted by KMS.

    Errors as in `read`.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", wanted["etag"]):
        return False
    said = _asked(uri, wanted, "head_object")
    return "kms" not in said.get("ServerSideEncryption", "") and "SSECustomerAlgorithm" not in said


def send(path: Path, uri: str, name: str) -> None:
    """Upload a file as an object below an address; it is seen when it is whole, not before.

    UserError and TemporaryError as in `list_objects`.
    """
    bucket, prefix = split(uri)
    with answered(f"{uri}/{name}"):
        _client().upload_file(str(path), bucket, f"{prefix}/{name}" if prefix else name)


def remove(uri: str) -> None:
    """Delete all objects below `s3://bucket/prefix/`. Errors as in `list_objects`."""
    bucket, prefix = split(uri)
    names = [f"{prefix}/{o['path']}" for o in list_objects(uri)]
    with answered(uri):
        for first in range(0, len(names), 1000):  # the most that one request may name
            keys = [{"Key": name} for name in names[first : first + 1000]]
            _client().delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})


def changed(uri: str, wanted: Object) -> DataError:
    """The error for an object that is not what was listed."""
    pinned = f"version {wanted['version_id']}, " if wanted["version_id"] else ""
    return DataError(
        f"{uri}: object {wanted['path']!r} changed or vanished since it was listed (expected "
        f"{wanted['size']} bytes, {pinned}ETag {wanted['etag']}). List again (`wamflow snapshot`)."
    )


def _asked(uri: str, wanted: Object, method: str, **more: str) -> dict[str, Any]:
    """The answer to a request for one pinned object."""
    from botocore.exceptions import ClientError

    bucket, prefix = split(uri)
    key = f"{prefix}/{wanted['path']}" if prefix else wanted["path"]
    more |= {"VersionId": wanted["version_id"]} if wanted["version_id"] else {}
    with answered(f"{uri}/{wanted['path']}"):
        try:
            asked = {"Bucket": bucket, "Key": key, "IfMatch": f'"{wanted["etag"]}"', **more}
            return dict(getattr(_client(), method)(**asked))
        except ClientError as error:
            if error.response["Error"]["Code"] in CHANGED:
                raise changed(uri, wanted) from error
            raise


def _client() -> Any:
    settings = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
    return _connected(tuple(sorted(settings.items())), ATTEMPTS)


@functools.cache
def _connected(settings: tuple[tuple[str, str], ...], attempts: int) -> Any:
    """One client for all threads, made again when the settings change."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=CONNECT_S,
        read_timeout=SILENCE_S,
        max_pool_connections=CONNECTIONS,
        response_checksum_validation="when_required",  # of ranges, not every server sends them
    )
    return boto3.session.Session().client("s3", config=config)
