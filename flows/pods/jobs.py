"""Submit a Job or attach to the one that exists, stream its log, watch it to its end, cancel it.

All calls go through the official client and are repeated while the API server hiccups. State and
log are polled, not streamed: a poll cannot be cut, and starting again needs only the Job's name.
Failures come as exceptions of components/errors.py and flows/failures.py.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from components.errors import TemporaryError, UserError
from flows.failures import LostError, failure
from flows.pods.manifests import Manifest
from flows.pods.states import LOST, Json, State, state_of

T = TypeVar("T")
Say = Callable[[str], None]

HICCUPS = {0, 408, 429, 500, 502, 503, 504}  # 0: the connection was cut
OURS = ("wamflow.dev/run", "wamflow.dev/revision")  # annotations that must agree before attaching
KEEP_S = 86_400  # how long a Job stays after its result is stored, for a person to look at
INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass
class Jobs:
    """The Jobs of one namespace. Times in seconds; `patience_s`: how long doubts may last."""

    namespace: str
    say: Say
    poll_s: float = 2.0
    patience_s: float = 600.0
    outage_s: float = 300.0
    client: Any = None  # kubernetes.client.ApiClient; None: kubeconfig, or the pod's own account
    batch: Any = field(init=False)
    core: Any = field(init=False)

    def __post_init__(self) -> None:
        from kubernetes import client

        self.client = self.client or _configured()
        self.batch = client.BatchV1Api(self.client)
        self.core = client.CoreV1Api(self.client)

    def submit(self, job: Manifest, service: Manifest | None) -> Json:
        """Create the Job, or attach to the one of that name. UserError when it is another's."""
        name = job["metadata"]["name"]
        found = self._create(self.batch.create_namespaced_job, job)
        verb = "submitted"
        if found is None:
            found = self.get(name)
            if found is None or found["metadata"].get("deletionTimestamp"):
                self._gone(name)
                return self.submit(job, service)
            _check_same(found, job)
            verb = "attached to the one that exists"
        self.say(f"job {name}: {verb}")
        if service is not None:
            self._create(self.core.create_namespaced_service, _owned(service, found))
        return found

    def watch(self, name: str) -> None:
        """Say what happens until the Job has succeeded; its failure as an exception otherwise."""
        log = _Log(self, name)
        said, doubtful_since = "", 0.0
        while True:
            state = self.state(name)
            line = f"{state.phase}: {state.detail}" if state.detail else state.phase
            log.read()
            if line != said:
                self.say(f"job {name}: {line}")
                said, doubtful_since = line, time.monotonic()
            if state.phase == "succeeded":
                return
            waited_s = time.monotonic() - doubtful_since
            if state.phase == "failed" or (state.doubtful and waited_s > self.patience_s):
                raise _raised(name, state)
            time.sleep(self.poll_s)

    def state(self, name: str) -> State:
        """The Job's state now; a Job that is not there is lost."""
        job = self.get(name)
        if job is None:
            return State("failed", "the Job is gone; somebody or a quota rule deleted it", LOST)
        return state_of(job, self.pods(name))

    def get(self, name: str) -> Json | None:
        """The Job as JSON; None when there is none of this name."""
        return _json(self._found(self.batch.read_namespaced_job, name, self.namespace))

    def pods(self, name: str) -> list[Json]:
        """The Job's pods as JSON, by completion index."""
        selector = f"batch.kubernetes.io/job-name={name}"
        read = self.core.list_namespaced_pod
        found = _json(self._call(read, self.namespace, label_selector=selector)) or {}
        return sorted(found.get("items") or [], key=_index)

    def cancel(self, name: str) -> None:
        """Delete the Job and, before it is gone, its pods and Service; none there is no error."""
        self._found(
            self.batch.delete_namespaced_job, name, self.namespace, propagation_policy="Foreground"
        )
        self.say(f"job {name}: cancelled")

    def retire(self, name: str) -> None:
        """The result is stored: let the cluster delete the Job in a day."""
        body = {"spec": {"ttlSecondsAfterFinished": KEEP_S}}
        self._found(self.batch.patch_namespaced_job, name, self.namespace, body)

    def log_since(self, pod: str, since_s: int | None) -> str:
        """The pod's log with a timestamp on each line; '' while there is none."""
        options = {"container": "stage", "timestamps": True}
        if since_s:
            options["since_seconds"] = since_s
        found = self._found(self.core.read_namespaced_pod_log, pod, self.namespace, **options)
        return (found or b"").decode(errors="replace")

    def _create(self, create: Callable[..., Any], body: Manifest) -> Json | None:
        """What was created; None when one of that name exists (maybe ours: answers get lost)."""
        from kubernetes.client import ApiException

        try:
            return _json(self._call(create, self.namespace, body))
        except ApiException as error:
            if error.status != 409:
                raise UserError(
                    f"{body['kind']} {body['metadata']['name']}: {_why(error)}"
                ) from error
            return None

    def _gone(self, name: str) -> None:
        """Wait until a Job that is being deleted is gone."""
        deadline = time.monotonic() + self.patience_s
        while self.get(name) is not None:
            if time.monotonic() > deadline:
                raise LostError(
                    f"job {name}: is being deleted, but not gone in {self.patience_s:.0f} s"
                )
            time.sleep(self.poll_s)

    def _found(self, method: Callable[..., Any], *args: Any, **keywords: Any) -> bytes | None:
        """The answer of a call; None when there is no such object."""
        from kubernetes.client import ApiException

        try:
            return self._call(method, *args, **keywords)
        except ApiException as error:
            if error.status == 404 or "ContainerCreating" in str(error.body):
                return None
            raise

    def _call(self, method: Callable[..., Any], *args: Any, **keywords: Any) -> bytes:
        """The body of one call's answer, repeated while the server hiccups.

        Not as the client's models, which refuse what a newer server says or an older leaves out.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        deadline, delay_s = time.monotonic() + self.outage_s, min(0.5, self.poll_s)
        while True:
            try:
                answer = method(*args, _request_timeout=30, _preload_content=False, **keywords)
                return bytes(answer.data)
            except ApiException as error:
                reason = _why(error)
                if error.status in (401, 403):
                    raise UserError(
                        f"{method.__name__}: not allowed: {reason}. See k8s/base/accounts.yaml."
                    ) from error
                if error.status not in HICCUPS:
                    raise
            except HTTPError as error:
                reason = f"{type(error).__name__}: {error}"
            if time.monotonic() + delay_s > deadline:
                raise TemporaryError(
                    f"{method.__name__}: the API server gave no answer in {self.outage_s:.0f} s: "
                    f"{reason}"
                )
            time.sleep(delay_s)
            delay_s = min(delay_s * 2, 15.0)


class _Log:
    """Lines of the first pod's log, each said once; pods come late, connections are cut."""

    def __init__(self, jobs: Jobs, job: str) -> None:
        self.jobs, self.job = jobs, job
        self.pod, self.last, self.read_at = "", ("", ""), 0.0

    def read(self) -> None:
        """Say the lines that came since the last time."""
        if not self.pod:
            pods = [p for p in self.jobs.pods(self.job) if _index(p) == 0 and _has_log(p)]
            if not pods:
                return
            self.pod = pods[0]["metadata"]["name"]
        now = time.monotonic()
        since_s = int(now - self.read_at) + 10 if self.read_at else None
        for line in self.jobs.log_since(self.pod, since_s).splitlines():
            stamp, _, text = line.partition(" ")
            if (order := _moment(stamp)) > self.last:
                self.last = order
                self.jobs.say(text)
        self.read_at = now


def _json(answer: bytes | None) -> Json | None:
    found: Json | None = None if answer is None else json.loads(answer)
    return found


def _configured() -> Any:
    """A client from kubeconfig or the pod's own account. UserError when there is neither."""
    from kubernetes import client, config

    try:
        config.load_config()
    except (config.ConfigException, OSError) as error:
        raise UserError(
            f"kubernetes: no cluster is configured ({error}); expected a kubeconfig or a pod's "
            "account. Set KUBECONFIG, or choose the runner `local`."
        ) from error
    return client.ApiClient()


def _check_same(found: Json, wanted: Manifest) -> None:
    """UserError when a Job of our name was made by another run or for another commit."""
    theirs = found["metadata"].get("annotations") or {}
    differ = [
        f"{key}: expected {wanted['metadata']['annotations'][key]!r}, got {theirs.get(key)!r}"
        for key in OURS
        if theirs.get(key) != wanted["metadata"]["annotations"][key]
    ]
    if differ:
        name = wanted["metadata"]["name"]
        raise UserError(
            f"job {name}: exists, but is not this run's: {'; '.join(differ)}. "
            f"Use another run name, or `kubectl delete job {name}`."
        )


def _owned(service: Manifest, job: Json) -> Manifest:
    """The Service goes when its Job goes."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"]}
    owner["uid"] = job["metadata"].get("uid") or ""
    return service | {"metadata": service["metadata"] | {"ownerReferences": [owner]}}


def _raised(name: str, state: State) -> Exception:
    message = f"job {name}: {state.detail}"
    return LostError(message) if state.kind == LOST else failure(state.kind, message)


def _why(error: Any) -> str:
    """The server's own words."""
    found = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error.body or ""))
    return found.group(1) if found else f"{error.status} {error.reason}"


def _index(pod: Json) -> int:
    metadata = pod["metadata"]
    values = (metadata.get("annotations") or {}) | (metadata.get("labels") or {})
    return int(values.get(INDEX, 0))


def _has_log(pod: Json) -> bool:
    return pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed")


def _moment(stamp: str) -> tuple[str, str]:
    """(second, fraction) of an RFC 3339 timestamp of one kubelet, for comparing."""
    fraction = re.search(r"\.(\d+)", stamp)
    return stamp[:19], (fraction.group(1) if fraction else "").ljust(9, "0")
