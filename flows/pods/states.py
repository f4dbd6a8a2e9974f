"""What a Job and its pods say, as one state: queued, running, succeeded or failed, and why.

Pure functions over the API's JSON. Sources: JobStatus and PodStatus in the Kubernetes API
reference; reasons of waiting containers: pkg/kubelet/images and kuberuntime in its repository.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]

KINDS = {
    10: "user",
    11: "data",
    12: "data",
    13: "interrupted",
    74: "infrastructure",
    75: "temporary",
}
LOST = "lost"  # the machine or the pod went away: flows.failures.LostError
STUCK = {  # a container that waits for one of these seldom starts by itself: whose fault it is
    "CreateContainerConfigError": "user",
    "CreateContainerError": "user",
    "ErrImageNeverPull": "user",
    "InvalidImageName": "user",
    "ErrImagePull": LOST,
    "ImagePullBackOff": LOST,
}


@dataclass(frozen=True)
class State:
    """`kind`: as in components/errors.py, or `lost`; `doubtful`: hardly goes on by itself."""

    phase: Literal["queued", "running", "succeeded", "failed"]
    detail: str = ""
    kind: str = ""
    doubtful: bool = False


def state_of(job: Json, pods: list[Json]) -> State:
    """The state of a Job, from itself and its pods (API JSON)."""
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions") or []}
    if _true(conditions.get("Complete")):
        return State("succeeded")
    if _true(conditions.get("Failed")):
        return _failure(conditions["Failed"], pods)
    if disrupted := next(filter(None, map(_disruption, pods)), ""):
        return State("running", f"losing a pod: {disrupted}", LOST, doubtful=True)
    if job.get("spec", {}).get("suspend"):
        return State("queued", "suspended; its queue has not admitted it")
    return _unfinished(job, pods)


def _unfinished(job: Json, pods: list[Json]) -> State:
    wanted = job.get("spec", {}).get("completions") or 1
    started = [
        p for p in pods if p.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed")
    ]
    for pod in pods:
        if waiting := _stuck(pod):
            reason = f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
            return State(
                "queued", f"{_name(pod)}: {reason}", STUCK[waiting["reason"]], doubtful=True
            )
    for pod in pods:
        if reason := _unschedulable(pod):
            return State("queued", f"{len(started)}/{wanted} pods run; {reason}")
    if len(started) < wanted:
        return State("queued", f"{len(started)}/{wanted} pods run; {len(pods)} of them exist")
    return State("running", f"{len(started)}/{wanted} pods run")


def _failure(condition: Json, pods: list[Json]) -> State:
    """Why a Job failed: a lost pod first, then the first container that ended by itself."""
    for pod in pods:
        if reason := _disruption(pod):
            return State("failed", f"a pod was taken away: {reason}", LOST)
    ends = [(pod, end) for pod in pods if (end := _end(pod)) and end.get("exitCode")]
    by_itself = [(p, e) for p, e in ends if e["exitCode"] not in (137, 143) or _out_of_memory(e)]
    if not by_itself:
        reason = condition.get("message") or condition.get("reason") or "no reason given"
        return State("failed", f"{reason}; {_ends(ends)}", LOST)
    pod, end = min(by_itself, key=lambda item: item[1].get("finishedAt") or "9")
    if _out_of_memory(end):
        detail = f"{_name(pod)}: out of memory; raise it in k8s/pods"
        return State("failed", detail, "infrastructure")
    kind, message = _told(end)
    return State("failed", f"{_name(pod)}: {message}", kind)


def _ends(ends: list[tuple[Json, Json]]) -> str:
    """How the containers ended, when none of them ended by itself."""
    if not ends:
        return "its pods are gone"
    return ", ".join(f"{_name(pod)} ended with {end['exitCode']} (killed)" for pod, end in ends)


def _told(end: Json) -> tuple[str, str]:
    """(kind, message): the termination message where it is ours, the exit code otherwise."""
    text = end.get("message") or ""
    code = end["exitCode"]
    try:
        told = json.loads(text)
        return KINDS.get(code) or str(told["kind"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        last = text.strip() or end.get("reason") or "no message"
        return KINDS.get(code, "crash"), f"exit code {code}: {last}"


def _end(pod: Json) -> Json | None:
    for status in pod.get("status", {}).get("containerStatuses") or []:
        if status.get("name") == "stage":
            end: Json | None = (status.get("state") or {}).get("terminated")
            return end
    return None


def _out_of_memory(end: Json) -> bool:
    return bool(end.get("reason") == "OOMKilled")


def _disruption(pod: Json) -> str:
    """The DisruptionTarget condition's message; '' without one, or when the pod succeeded."""
    status = pod.get("status", {})
    condition = _condition(pod, "DisruptionTarget")
    if not _true(condition) or condition is None or status.get("phase") == "Succeeded":
        return ""
    return f"{_name(pod)}: {condition.get('reason', '')} {condition.get('message', '')}".strip()


def _unschedulable(pod: Json) -> str:
    condition = _condition(pod, "PodScheduled")
    if condition and condition.get("status") == "False":
        return (
            f"{_name(pod)}: {condition.get('message') or condition.get('reason') or 'unscheduled'}"
        )
    return ""


def _stuck(pod: Json) -> Json | None:
    for status in pod.get("status", {}).get("containerStatuses") or []:
        waiting: Json = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in STUCK:
            return waiting
    return None


def _condition(pod: Json, kind: str) -> Json | None:
    conditions = pod.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == kind), None)


def _true(condition: Json | None) -> bool:
    return bool(condition and condition.get("status") == "True")


def _name(pod: Json) -> str:
    return str(pod.get("metadata", {}).get("name", "pod"))
