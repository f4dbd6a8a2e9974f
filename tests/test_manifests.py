"""The manifests are what a cluster accepts, and as careful as they claim: by schema and by rule."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
VERSIONS = ("1.34", "1.37")  # the oldest with podReplacementPolicy GA, and the newest known


def documents(path: Path) -> list[dict]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def written() -> list[tuple[str, dict]]:
    files = sorted(p for p in K8S.rglob("*.yaml") if p.name != "kustomization.yaml")
    return [(f"{p.relative_to(K8S)}-{d['kind']}", d) for p in files for d in documents(p)]


def rendered(overlay: str) -> list[dict]:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on this machine; it renders the overlays")
    command = ["kubectl", "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pod_specs() -> list[tuple[str, dict]]:
    kinds = ("Job", "Deployment")
    return [(n, d["spec"]["template"]["spec"]) for n, d in written() if d["kind"] in kinds]


@pytest.mark.parametrize(("name", "document"), written(), ids=[n for n, _ in written()])
def test_every_document_follows_the_schema_of_kubernetes(name: str, document: dict) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_check_can_fail() -> None:
    (job,) = documents(K8S / "pods" / "cpu.yaml")
    job["spec"]["template"]["spec"]["containers"][0]["comand"] = ["true"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", ["local", "gpu"])
def test_overlays_render_to_valid_documents(overlay: str) -> None:
    found = rendered(overlay)
    for document in found:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "wamflow"
    (flow,) = [d for d in found if d["kind"] == "Deployment"]
    container = flow["spec"]["template"]["spec"]["containers"][0]
    (image,) = [e["value"] for e in container["env"] if e["name"] == "WAMFLOW_IMAGE"]
    assert image == container["image"], "pods get the image of the flow"
    if overlay == "gpu":
        assert "@sha256:" in image
    (config,) = [d for d in found if d["kind"] == "ConfigMap"]
    used = [s["configMapRef"]["name"] for s in container["envFrom"] if "configMapRef" in s]
    assert used == [config["metadata"]["name"]]


@pytest.mark.parametrize(("name", "spec"), pod_specs(), ids=[n for n, _ in pod_specs()])
def test_pods_ask_for_no_more_rights_than_they_need(name: str, spec: dict) -> None:
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "deployment" in name.lower() or spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"] == container["resources"]["limits"]
        literal = {e["name"] for e in container["env"] if "value" in e}
        assert not {n for n in literal if "KEY" in n or "SECRET" in n or "TOKEN" in n}


@pytest.mark.parametrize("pod", ["cpu", "gpu", "train"])
def test_a_pods_volumes_fit_its_disk_and_its_secrets_are_references(pod: str) -> None:
    (job,) = [d for d in documents(K8S / "pods" / f"{pod}.yaml") if d["kind"] == "Job"]
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    disk = [v["emptyDir"] for v in spec["volumes"] if v["emptyDir"].get("medium") != "Memory"]
    taken = sum(int(v["sizeLimit"].removesuffix("Gi")) for v in disk)
    assert taken <= int(container["resources"]["limits"]["ephemeral-storage"].removesuffix("Gi"))
    secrets = [s["secretRef"]["name"] for s in container["envFrom"]]
    assert secrets == ["wamflow-s3", "wamflow-git", "wamflow-wandb"]
    shm = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    assert next(v for v in spec["volumes"] if v["name"] == shm[0]["name"])["emptyDir"]["medium"]


def test_the_gang_fails_as_a_whole_and_says_whose_fault_it_was() -> None:
    from components.errors import DataError, DivergedError, UserError
    from flows.supervisor import GRACE_S

    service, job = documents(K8S / "pods" / "train.yaml")
    spec = job["spec"]
    assert (spec["completionMode"], spec["backoffLimit"]) == ("Indexed", 0)
    assert spec["podReplacementPolicy"] == "Failed"
    first, second = spec["podFailurePolicy"]["rules"]
    assert first["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    codes = [e.exit_code for e in (UserError, DataError, DivergedError)]
    assert (first["action"], second["action"]) == ("FailJob", "FailJob")
    assert second["onExitCodes"]["values"] == codes
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > GRACE_S
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_a_worker_is_started_only_where_the_flow_has_a_checkout() -> None:
    """The flow makes worktrees and commits; without a repository its import already fails."""
    (flow,) = documents(K8S / "base" / "flow.yaml")
    pod = flow["spec"]["template"]["spec"]
    clones = [c for c in pod.get("initContainers", []) if "clone" in str(c)]
    assert flow["spec"]["replicas"] == 0 or clones


def test_the_flow_may_do_what_the_runner_does_and_no_more() -> None:
    found = documents(K8S / "base" / "accounts.yaml")
    (role,) = [d for d in found if d["kind"] == "Role"]
    may = {r: set(rule["verbs"]) for rule in role["rules"] for r in rule["resources"]}
    assert may == {
        "jobs": {"create", "get", "patch", "delete"},
        "pods": {"list"},
        "pods/log": {"get"},
        "services": {"create"},
    }


def test_the_image_is_built_from_the_pinned_versions_and_runs_as_the_pods_user() -> None:
    lines = (ROOT / "Containerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    assert "constraints.txt" in text
    assert "index-url" not in text
    assert "USER 10001" in text
    assert next(line for line in lines if line.startswith("FROM")).startswith("FROM python:3.11")
