"""Fill the plain manifests of `k8s/pods/` for one stage of one run: pure functions, no network.

Indexed Jobs and pod failure policies: https://kubernetes.io/docs/concepts/workloads/controllers/job/;
the PET_* variables are torchrun's own (torch.distributed.run).
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from components.errors import UserError

Manifest = dict[str, Any]

RESERVED = (
    "PET_",
    "WAMFLOW_",
    "KUBERNETES_",
)  # the runner's own; a user's value would break the gang
SECRET = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY")
GPU = "nvidia.com/gpu"


@dataclass(frozen=True, kw_only=True)
class PodOrder:
    """One stage of one run, to be done by `nodes` pods with `gpus` GPUs each (0: CPU only)."""

    run: str
    stage: str
    attempt: int
    revision: str  # commit, 40 hexadecimal digits
    branch: str  # where `revision` is found
    git_url: str
    dvc_remote: str
    image: str
    namespace: str
    nodes: int = 1
    gpus: int = 0
    processes: int = 1  # torchrun workers of a pod when it has no GPU
    env: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> list[Manifest]:
    """The documents of a manifest; UserError when it is missing, invalid or no Job with a `stage`.

    Checked here by schema: the client drops fields that it does not know, without a word.
    """
    import kubernetes_validate

    try:
        documents = [d for d in yaml.safe_load_all(path.read_text()) if d]
    except (FileNotFoundError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected a Kubernetes manifest; got: {error}") from None
    jobs = [d for d in documents if d.get("kind") == "Job"]
    if len(jobs) != 1 or not any(
        c.get("name") == "stage" for c in jobs[0]["spec"]["template"]["spec"]["containers"]
    ):
        raise UserError(f"{path}: expected exactly one Job with a container named 'stage'.")
    for document in documents:
        try:
            kubernetes_validate.validate(
                document, kubernetes_validate.latest_version(), strict=True
            )
        except kubernetes_validate.ValidationError as error:
            raise UserError(f"{path}: {document['kind']}: {error.message}") from None
    return documents


def job_name(run: str, stage: str, attempt: int) -> str:
    """A DNS label of at most 52 characters: the same for the same three, different otherwise.

    52 leaves room for the index that Kubernetes appends to the names of pods and hosts.
    """
    digest = hashlib.sha256(f"{run}\0{stage}\0{attempt}".encode()).hexdigest()[:10]
    words = re.sub(r"[^a-z0-9]+", "-", f"{run}-{stage}-{attempt}".lower())
    return f"wf-{words[:38].strip('-')}-{digest}".replace("--", "-")


def label(value: str) -> str:
    """A valid label value; a digest marks what was changed. Annotations hold the whole value."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value):
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:10]
    words = re.sub(r"[^A-Za-z0-9_.-]+", "-", value)[:50].strip("-_.")
    return f"{words}-{digest}".lstrip("-")


def check(order: PodOrder) -> None:
    """UserError with everything that is wrong with an order, at once."""
    wrong = [
        f"{key}: missing" for key in ("image", "git_url", "revision") if not getattr(order, key)
    ]
    if order.nodes < 1 or order.gpus < 0 or order.processes < 1 or order.attempt < 1:
        wrong.append("nodes, processes, attempt: expected >= 1, gpus >= 0")
    if urlsplit(order.git_url).password or urlsplit(order.dvc_remote).password:
        wrong.append("git_url, dvc_remote: carry a password; put it in the secret wamflow-git")
    wrong += [f"env {k}: reserved for the runner" for k in order.env if k.startswith(RESERVED)]
    wrong += [
        f"env {k}: a secret; put it in the cluster's secrets" for k in order.env if k in SECRET
    ]
    if wrong:
        raise UserError(
            f"{order.run}/{order.stage}: the pod's order is wrong:\n  " + "\n  ".join(wrong)
        )


def fill(documents: list[Manifest], order: PodOrder) -> tuple[Manifest, Manifest | None]:
    """(Job, Service of the rendezvous or None) for an order; `documents` stay as they are."""
    check(order)
    documents = copy.deepcopy(documents)
    job = next(d for d in documents if d["kind"] == "Job")
    service = next((d for d in documents if d["kind"] == "Service"), None)
    if order.nodes > 1 and service is None:
        raise UserError(
            f"{order.stage}: {order.nodes} nodes need a manifest with a Service (pod: train)."
        )
    name = job_name(order.run, order.stage, order.attempt)
    for document in (job, service):
        if document is not None:
            _identify(document, name, order)
    job["spec"] |= {"parallelism": order.nodes, "completions": order.nodes}
    template = job["spec"]["template"]
    template["metadata"]["labels"] = dict(job["metadata"]["labels"])
    _fill_pod(template["spec"], name, order, in_gang=service is not None)
    if service is not None:
        service["spec"]["selector"] = {"batch.kubernetes.io/job-name": name}
    return job, service


def _identify(document: Manifest, name: str, order: PodOrder) -> None:
    metadata = document["metadata"]
    metadata |= {"name": name, "namespace": order.namespace}
    metadata["labels"] = metadata.get("labels", {}) | {
        "wamflow.dev/run": label(order.run),
        "wamflow.dev/stage": label(order.stage),
        "wamflow.dev/attempt": str(order.attempt),
        "wamflow.dev/job": name,
    }
    metadata["annotations"] = metadata.get("annotations", {}) | {
        "wamflow.dev/run": order.run,
        "wamflow.dev/revision": order.revision,
        "wamflow.dev/image": order.image,
    }


def _fill_pod(spec: Manifest, name: str, order: PodOrder, *, in_gang: bool) -> None:
    container = next(c for c in spec["containers"] if c["name"] == "stage")
    container["image"] = order.image
    filled = dict(order.env) | _told(order)
    if in_gang:
        spec["subdomain"] = name
        filled |= _rendezvous(name, order)
        for term in _anti_affinity(spec):
            term["podAffinityTerm"]["labelSelector"] = {"matchLabels": {"wamflow.dev/job": name}}
    kept = [e for e in container.get("env", []) if e["name"] not in filled]
    container["env"] = kept + [{"name": k, "value": v} for k, v in sorted(filled.items())]
    for amounts in container["resources"].values():
        if GPU in amounts:
            amounts[GPU] = str(order.gpus)
            if order.gpus == 0:
                del amounts[GPU]


def _told(order: PodOrder) -> dict[str, str]:
    """What `python -m flows.pods.entry` reads."""
    return {
        "WAMFLOW_RUN": order.run,
        "WAMFLOW_STAGE": order.stage,
        "WAMFLOW_REVISION": order.revision,
        "WAMFLOW_BRANCH": order.branch,
        "WAMFLOW_GIT_URL": order.git_url,
        "WAMFLOW_REMOTE": order.dvc_remote,
    }


def _rendezvous(name: str, order: PodOrder) -> dict[str, str]:
    """torchrun's world; the node's rank comes from the completion index, in the manifest itself."""
    return {
        "PET_NNODES": str(order.nodes),
        "PET_NPROC_PER_NODE": str(order.gpus or order.processes),
        "PET_MASTER_ADDR": f"{name}-0.{name}",
    }


def _anti_affinity(spec: Manifest) -> list[Manifest]:
    affinity = spec.get("affinity", {}).get("podAntiAffinity", {})
    return list(affinity.get("preferredDuringSchedulingIgnoredDuringExecution", []))
