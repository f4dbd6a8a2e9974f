"""Bytes in and out of folders and S3 (boto3): list, download with resume, upload; all or nothing.

An address is a folder or `s3://bucket/prefix`; `AWS_ENDPOINT_URL` names another S3 server. A file
appears under its name only when it is whole: what is partial lies hidden beside it, and the next
attempt goes on where that one ended. Source: the S3 API reference (ListObjectsV2, GetObject).
"""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypedDict
from urllib.parse import urlsplit

from components.errors import DataError, TemporaryError, UserError

PART_BYTES = 16 * 2**20  # of one request: a cut connection costs no more than this
WORKERS = 8  # objects at the same time
ATTEMPTS = 5  # of one request; botocore waits about 0.5, 1, 2 and 4 s between them
GONE = ("404", "NoSuchKey", "PreconditionFailed", "412", "InvalidRange", "416")


class Object(TypedDict):
    """One object below an address; `version` changes with the content (S3: ETag, folder: mtime)."""

    path: str  # relative to the address, '/' between its parts
    size: int  # bytes
    version: str


def list_objects(uri: str) -> list[Object]:
    """All objects below a folder or `s3://bucket/prefix`, sorted by path.

    UserError when the folder, the bucket or the credentials are missing or wrong; TemporaryError
    when S3 does not answer.
    """
    if not uri.startswith("s3://"):
        return _list_folder(Path(uri))
    bucket, prefix = _split(uri)
    start = f"{prefix}/" if prefix else ""
    found: list[Object] = []
    with _answered(uri):
        pages = _client().get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=start):
            for item in page.get("Contents", []):
                path, version = item["Key"].removeprefix(start), item["ETag"].strip('"')
                if path and not path.endswith("/"):  # consoles make empty objects as "folders"
                    found.append({"path": path, "size": item["Size"], "version": version})
    return sorted(found, key=lambda o: o["path"])


def download(uri: str, folder: Path, objects: list[Object] | None = None) -> list[Path]:
    """Bring objects below an address (default: all) into a folder; their paths there, in order.

    Files with equal content stay as they are. DataError when a name would leave the folder or an
    object changed since it was listed; UserError and TemporaryError as in `list_objects`.
    """
    objects = list_objects(uri) if objects is None else objects
    targets = [inside(folder, o["path"], uri) for o in objects]
    _refuse_clashes(objects, uri)
    fetch = _fetch_s3 if uri.startswith("s3://") else _fetch_file
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(functools.partial(fetch, uri), objects, targets))
    return targets


def upload(source: Path, uri: str) -> list[str]:
    """Send a file or all files of a folder below an address; their paths there, sorted.

    A file goes to `<uri>/<its name>`. UserError and TemporaryError as in `list_objects`.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; expected something to upload.")
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    start = source.parent if source.is_file() else source
    names = [p.relative_to(start).as_posix() for p in files]
    send = _send_s3 if uri.startswith("s3://") else _send_file
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(functools.partial(send, uri), files, names))
    return names


def remove(uri: str) -> None:
    """Delete all objects below `s3://bucket/prefix/`. Errors as in `list_objects`."""
    bucket, prefix = _split(uri)
    names = [f"{prefix}/{o['path']}" for o in list_objects(uri)]
    with _answered(uri):
        for first in range(0, len(names), 1000):  # the most that one request may name
            keys = [{"Key": name} for name in names[first : first + 1000]]
            _client().delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})


def inside(folder: Path, path: str, uri: str) -> Path:
    """Where a listed object lies in a folder. DataError when its name would leave the folder."""
    parts = path.split("/")
    plain = not (set(parts) & {"", ".", ".."} or re.search(r"[\\\0]", path))
    target = folder.joinpath(*parts) if plain else folder
    if not plain or not target.resolve().is_relative_to(folder.resolve()):  # a link may lead out
        raise DataError(
            f"{uri}: object {path!r} would be written outside {folder}; expected a plain relative "
            "path. Nothing was written; rename or remove that object."
        )
    return target


def _refuse_clashes(objects: list[Object], uri: str) -> None:
    """In S3 `a` and `a/b` can both be objects; as files they cannot."""
    names = {o["path"] for o in objects}
    for name in sorted(names):
        parent = name.rpartition("/")[0]
        while parent:
            if parent in names:
                raise DataError(f"{uri}: {parent!r} and {name!r} are both objects; rename one.")
            parent = parent.rpartition("/")[0]


def _list_folder(folder: Path) -> list[Object]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a folder or s3://bucket/prefix.")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    found: list[Object] = [
        {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "version": str(path.stat().st_mtime_ns),
        }
        for path in files
    ]
    return sorted(found, key=lambda o: o["path"])


def _fetch_file(uri: str, wanted: Object, target: Path) -> None:
    source = Path(uri) / wanted["path"]
    try:
        state = source.stat()
    except FileNotFoundError:
        raise _changed(uri, wanted) from None
    if (state.st_size, str(state.st_mtime_ns)) != (wanted["size"], wanted["version"]):
        raise _changed(uri, wanted)
    if target.is_file() and target.stat().st_mtime_ns == state.st_mtime_ns:
        return
    _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.copy2(source, partial)
    partial.replace(target)


def _fetch_s3(uri: str, wanted: Object, target: Path) -> None:
    """One object, from where an earlier attempt ended; the version is part of what is partial."""
    if _is_same(target, wanted):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(f"{uri}\0{wanted['version']}\0{wanted['size']}".encode()).hexdigest()
    partial = target.with_name(f".{target.name}.{mark[:12]}.partial")
    for other in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if other != partial:
            other.unlink()
    with partial.open("ab") as out:
        _fetch_parts(uri, wanted, out)
    partial.replace(target)


def _fetch_parts(uri: str, wanted: Object, out: BinaryIO) -> None:
    bucket, prefix = _split(uri)
    asked = {"Bucket": bucket, "Key": f"{prefix}/{wanted['path']}".lstrip("/")}
    asked["IfMatch"] = f'"{wanted["version"]}"'
    while (start := out.tell()) < wanted["size"]:
        end = min(start + PART_BYTES, wanted["size"]) - 1
        part = _body(uri, wanted, asked | {"Range": f"bytes={start}-{end}"})
        if len(part) != end - start + 1:
            raise _changed(uri, wanted)
        out.write(part)


def _body(uri: str, wanted: Object, asked: dict[str, str]) -> bytes:
    """The bytes of one request; botocore repeats the request, a cut while reading is ours."""
    from botocore.exceptions import BotoCoreError, ClientError

    for attempt in range(1, ATTEMPTS + 1):
        with _answered(f"{uri}/{wanted['path']}"):
            try:
                return bytes(_client().get_object(**asked)["Body"].read())
            except ClientError as error:
                if error.response["Error"]["Code"] in GONE:
                    raise _changed(uri, wanted) from error
                raise
            except (BotoCoreError, OSError):
                if attempt == ATTEMPTS:
                    raise
                time.sleep(0.25 * 2**attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _is_same(target: Path, wanted: Object) -> bool:
    """Whether a file has the content already; an ETag that is no MD5 cannot say so."""
    if not target.is_file() or target.stat().st_size != wanted["size"]:
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == wanted["version"]


def _send_file(uri: str, path: Path, name: str) -> None:
    _copy(path, Path(uri) / name)


def _send_s3(uri: str, path: Path, name: str) -> None:
    """S3 shows an object only when it is whole, also one of many parts."""
    bucket, prefix = _split(uri)
    with _answered(f"{uri}/{name}"):
        _client().upload_file(str(path), bucket, f"{prefix}/{name}".lstrip("/"))


def _changed(uri: str, wanted: Object) -> DataError:
    return DataError(
        f"{uri}: object {wanted['path']!r} changed or vanished since it was listed (expected "
        f"{wanted['size']} bytes, version {wanted['version']}). List again (`wamflow snapshot`)."
    )


def _split(uri: str) -> tuple[str, str]:
    """(bucket, prefix). UserError for an address that is none, never repeating a password in it."""
    parts = urlsplit(uri)
    if not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
        shown = uri.rpartition("@")[2]
        raise UserError(f"{shown}: expected s3://bucket/prefix, without credentials.")
    return parts.netloc, parts.path.strip("/")


def _client() -> Any:
    return _connected(os.environ.get("AWS_ENDPOINT_URL"), ATTEMPTS)


@functools.cache
def _connected(endpoint: str | None, attempts: int) -> Any:
    """One client for all threads; keys come from the environment, files or the machine's role."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=4 * WORKERS,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


@contextmanager
def _answered(where: str) -> Iterator[None]:
    """S3's errors as ours: what a person must correct, or what another attempt may cure."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as boto

    wrong = (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.ParamValidationError,
        boto.NoRegionError,
        boto.ProfileNotFound,
    )
    try:
        yield
    except boto.ClientError as error:
        raise _refused(where, error.response) from error
    except wrong as error:
        raise UserError(f"{where}: {error}. Set the bucket, AWS_ENDPOINT_URL and keys.") from error
    except Boto3Error as error:  # an upload wraps what S3 said
        if isinstance(error.__context__, boto.ClientError):
            raise _refused(where, error.__context__.response) from error
        raise TemporaryError(f"{where}: {error}") from error
    except (boto.BotoCoreError, ConnectionError, TimeoutError) as error:
        raise TemporaryError(f"{where}: S3 gave no answer: {error}") from error


def _refused(where: str, response: dict[str, Any]) -> Exception:
    """By status: 5xx and throttling pass, the rest is for a person."""
    said = response.get("Error", {})
    code, status = said.get("Code", ""), response["ResponseMetadata"].get("HTTPStatusCode", 0)
    why = f"{where}: S3 says {code} ({status}): {said.get('Message', '')}"
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
        return TemporaryError(f"{why}. It may pass; try again later.")
    return UserError(f"{why}. Check the bucket's name, AWS_ENDPOINT_URL, the region and the keys.")
