"""Real servers on free local ports for tests: S3 (moto, in a process) and a Kubernetes API (kmock).

What the emulator lacks of a cluster is added here: validation by schema, label selectors, logs, and
faults. The Job controller and the kubelet are played by the tests, which patch statuses through the
API as those would.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import boto3
import kmock
import kubernetes_validate

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret-key"}
BUNDLED = files("kmock._internal") / "resources.json.gz"  # load_bundled() warns on Python 3.11
REGION = {"AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def s3(**settings: str) -> Iterator[str]:
    """Address of an S3 server (moto) in a process of its own; `settings` are moto's variables."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | KEYS | settings, **quiet)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "moto did not start"
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def put(url: str, bucket: str, objects: dict[str, bytes]) -> None:
    """Objects in a bucket, past any proxy."""
    client = boto3.client("s3", endpoint_url=url)
    for key, body in objects.items():
        client.put_object(Bucket=bucket, Key=key, Body=body)


class Cluster(kmock.KubernetesEmulator):
    """The emulator and what it lacks; `broken`: answers to give instead, `lost`: to keep back."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.logs: dict[str, list[str]] = {}
        self.broken: list[int] = []  # statuses of the next answers; 0 cuts the connection
        self.lost = 0  # so many of the next requests are done, and their answer is cut off

    async def _handle(self, request: Any) -> Any:
        from aiohttp import web

        if self.broken:
            status = self.broken.pop(0)
            if status == 0:  # the connection is cut in the middle
                request._raw_request.transport.close()
                return web.Response(status=500)
            body = {"kind": "Status", "code": status, "message": "etcdserver: leader changed"}
            return web.json_response(body, status=status)
        if request.subresource == "log":
            text = "\n".join(self.logs.get(request.name, []))
            return web.Response(text=text)
        if request.method == kmock.method.POST and (wrong := _invalid(request.data)):
            body = {"kind": "Status", "code": 422, "reason": "Invalid", "message": wrong}
            return web.json_response(body, status=422)
        answer = await super()._handle(request)
        if self.lost:
            self.lost -= 1
            request._raw_request.transport.close()
        return answer

    async def _serve_list(self, request: Any) -> Any:
        found = await super()._serve_list(request)
        wanted = dict(
            p.split("=", 1) for p in request.params.get("labelSelector", "").split(",") if p
        )
        found["items"] = [
            item
            for item in found["items"]
            if wanted.items() <= (item["metadata"].get("labels") or {}).items()
        ]
        return json.loads(json.dumps(found, default=dict))


def jobs_of(cluster: Cluster) -> list[str]:
    """Names of the Jobs that exist now."""
    found = list(cluster.objects.items())
    return [name for (kind, _, name), job in found if kind.plural == "jobs" and not job.deleted]


def _invalid(body: Any) -> str:
    try:
        kubernetes_validate.validate(body, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{body['kind']}: {error.message}"
    return ""


@contextmanager
def kubernetes_api() -> Iterator[tuple[str, Cluster]]:
    """(address, emulator) of a Kubernetes API server on its own event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    cluster: list[Cluster] = []
    address: list[str] = []
    stop = asyncio.Event()
    ready = threading.Event()

    async def serve() -> None:
        async with Cluster() as emulator, kmock.Server(emulator) as server:
            emulator.resources.load_data(gzip.decompress(BUNDLED.read_bytes()))
            cluster.append(emulator)
            address.append(str(server.url).rstrip("/"))
            ready.set()
            await stop.wait()

    task = asyncio.run_coroutine_threadsafe(serve(), loop)
    try:
        assert ready.wait(20), "kmock did not start"
        yield address[0], cluster[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        task.result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
