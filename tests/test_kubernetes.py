"""The Kubernetes runner, over HTTP, against an emulated API server with the real client.

The tests play the Job controller and the kubelet: they patch the statuses that those would write.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes import client

from components.errors import (
    DataError,
    OutOfSpaceError,
    StoppedError,
    TemporaryError,
    UserError,
    WamflowError,
)
from flows.failures import CrashError, LostError, worth_a_retry
from flows.pods.jobs import INDEX, Jobs
from flows.pods.manifests import PodOrder, fill, job_name, label, read
from flows.pods.run import Settings
from flows.pods.states import state_of
from tests.servers import Cluster, kubernetes_api

PODS = Path(__file__).parents[1] / "k8s" / "pods"
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
ORDER = PodOrder(
    run="monday",
    stage="pretraining",
    attempt=1,
    revision="a" * 40,
    branch="run/monday",
    git_url="https://git.example/robots.git",
    dvc_remote="s3://bucket/dvc",
    image="registry.example/wamflow@sha256:" + "1" * 64,
    namespace="wamflow",
    nodes=2,
    gpus=8,
    env={"AWS_ENDPOINT_URL": "https://s3.example"},
)


# --- names and manifests: pure functions -------------------------------------------------------


@given(st.text(min_size=1), st.text(min_size=1, max_size=30), st.integers(1, 10**6))
def test_any_name_is_a_dns_label_and_always_the_same(run: str, stage: str, attempt: int) -> None:
    name = job_name(run, stage, attempt)
    assert LABEL.fullmatch(name)
    assert len(name) + len("-999") <= 63
    assert name == job_name(run, stage, attempt)


words = st.text("aA-_.1", min_size=1, max_size=40)


@given(st.lists(st.tuples(words, words, st.integers(1, 99)), unique=True, min_size=2))
def test_different_runs_stages_and_attempts_have_different_names(asked: list) -> None:
    assert len({job_name(*triple) for triple in asked}) == len(asked)


def test_a_name_never_changes_between_versions_of_the_runner() -> None:
    """A flow that was updated must find the Job that its older self started."""
    assert job_name("monday", "pretraining", 1) == "wf-monday-pretraining-1-ad85262c29"


@given(st.text(max_size=200))
def test_any_text_becomes_a_label_value(text: str) -> None:
    value = label(text)
    assert VALUE.fullmatch(value)
    assert len(value) <= 63
    if VALUE.fullmatch(text) and 0 < len(text) <= 63:
        assert value == text


@pytest.mark.parametrize(("pod", "nodes", "gpus"), [("cpu", 1, 0), ("gpu", 1, 1), ("train", 4, 8)])
def test_filled_manifests_follow_the_schema(pod: str, nodes: int, gpus: int) -> None:
    documents = read(PODS / f"{pod}.yaml")
    before = json.dumps(documents)
    job, service = fill(documents, replace(ORDER, nodes=nodes, gpus=gpus))
    assert json.dumps(documents) == before
    for document in filter(None, (job, service)):
        kubernetes_validate.validate(document, "1.37", strict=True)
    assert (service is not None) == (pod == "train")
    template = job["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == ORDER.image
    assert template["metadata"]["labels"]["wamflow.dev/run"] == "monday"
    assert template["metadata"]["labels"]["wamflow.dev/stage"] == "pretraining"


def test_a_gang_gets_its_world() -> None:
    job, service = fill(read(PODS / "train.yaml"), ORDER)
    name = job["metadata"]["name"]
    spec = job["spec"]
    assert (spec["parallelism"], spec["completions"]) == (2, 2)
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    env = {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}
    assert len(env) == len(container["env"]), "no variable twice"
    assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"]) == ("2", "8")
    assert env["PET_NODE_RANK"]["fieldRef"]["fieldPath"] == f"metadata.annotations['{INDEX}']"
    # index 0 of an Indexed Job is the host <job>-0.<subdomain>; the Service is the subdomain
    assert env["PET_MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
    assert service is not None
    assert service["metadata"]["name"] == pod["subdomain"]
    assert str(service["spec"]["ports"][0]["port"]) == env["PET_MASTER_PORT"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert env["AWS_ENDPOINT_URL"] == "https://s3.example"


def test_a_gang_on_cpus_asks_for_no_gpu() -> None:
    job, _ = fill(read(PODS / "train.yaml"), replace(ORDER, gpus=0, processes=3))
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert {"name": "PET_NPROC_PER_NODE", "value": "3"} in container["env"]


def test_everything_wrong_with_an_order_is_said_at_once() -> None:
    wrong = replace(
        ORDER,
        image="",
        nodes=0,
        git_url="https://me:secret@git.example/robots.git",
        env={"PET_NNODES": "7", "AWS_SECRET_ACCESS_KEY": "hush"},
    )
    with pytest.raises(UserError) as caught:
        fill(read(PODS / "train.yaml"), wrong)
    said = str(caught.value)
    for word in ("image", "nodes", "password", "PET_NNODES", "AWS_SECRET_ACCESS_KEY"):
        assert word in said
    assert "hush" not in said
    assert "secret@" not in said


def test_several_nodes_need_a_service() -> None:
    with pytest.raises(UserError, match="Service"):
        fill(read(PODS / "cpu.yaml"), ORDER)


def test_a_misspelt_field_is_refused_where_it_stands(tmp_path: Path) -> None:
    text = (PODS / "cpu.yaml").read_text().replace("backoffLimit", "backOffLimit")
    (tmp_path / "cpu.yaml").write_text(text)
    with pytest.raises(UserError, match=r"cpu\.yaml.*backOffLimit"):
        read(tmp_path / "cpu.yaml")


def test_a_manifest_without_our_container_is_refused(tmp_path: Path) -> None:
    text = (PODS / "cpu.yaml").read_text().replace("name: stage", "name: other")
    (tmp_path / "cpu.yaml").write_text(text)
    with pytest.raises(UserError, match="'stage'"):
        read(tmp_path / "cpu.yaml")
    with pytest.raises(UserError, match=r"gone\.yaml"):
        read(tmp_path / "gone.yaml")


def test_missing_settings_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Settings.of({"WAMFLOW_NODES": "none"})
    for name in ("WAMFLOW_IMAGE", "WAMFLOW_GIT_URL", "WAMFLOW_REMOTE", "WAMFLOW_NODES"):
        assert name in str(caught.value)


# --- the API server --------------------------------------------------------------------------


class Kubelet:
    """Plays the Job controller and the kubelets of one Job, through the API."""

    def __init__(self, url: str, emulator: Cluster, name: str) -> None:
        configuration = client.Configuration()
        configuration.host = url
        self.client = client.ApiClient(configuration)
        self.core, self.batch = client.CoreV1Api(self.client), client.BatchV1Api(self.client)
        self.emulator, self.name = emulator, name
        self.made: set[str] = set()

    def pod(self, index: int = 0, *, log: list[str] | None = None, **status: object) -> None:
        name = f"{self.name}-{index}-x7k2p"
        key = {INDEX: str(index)}
        labels = key | {"batch.kubernetes.io/job-name": self.name}
        metadata = {"name": name, "labels": labels, "annotations": key}
        spec = {"containers": [{"name": "stage", "image": "wamflow"}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        if name not in self.made:
            self.made.add(name)
            self.core.create_namespaced_pod("wamflow", body)
        for container in status.get("containerStatuses", []):  # what a kubelet always writes
            container |= {"image": "", "imageID": "", "ready": False, "restartCount": 0}
        self.core.patch_namespaced_pod_status(name, "wamflow", {"status": status})
        if log is not None:
            self.emulator.logs[name] = log

    def ended(self, index: int, code: int, message: str = "", **more: object) -> None:
        end = {"exitCode": code, "message": message, "finishedAt": "2026-01-01T00:00:00Z"} | more
        phase = "Failed" if code else "Succeeded"
        state = {"name": "stage", "state": {"terminated": end}}
        self.pod(index, phase=phase, containerStatuses=[state])

    def job(self, condition: str, reason: str = "", message: str = "") -> None:
        found = {"type": condition, "status": "True", "reason": reason, "message": message}
        body = {"status": {"conditions": [found]}}
        self.batch.patch_namespaced_job_status(self.name, "wamflow", body)


class Watched:
    """A Job that is being watched in a thread, and what the runner said."""

    def __init__(self, jobs: Jobs, name: str) -> None:
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._watch, args=(jobs, name), daemon=True)
        self.thread.start()

    def _watch(self, jobs: Jobs, name: str) -> None:
        try:
            jobs.watch(name)
        except Exception as error:
            self.error = error

    def result(self) -> Exception | None:
        self.thread.join(20)
        assert not self.thread.is_alive(), "the watch did not end"
        return self.error


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Cluster]]:
    with kubernetes_api() as found:
        yield found


class Bench:
    """A submitted Job, the runner's object and the players."""

    def __init__(self, url: str, emulator: Cluster) -> None:
        configuration = client.Configuration()
        configuration.host = url
        configuration.retries = False
        self.emulator, self.said = emulator, []
        self.jobs = Jobs(
            "wamflow",
            say=self.said.append,
            poll_s=0.02,
            patience_s=0.5,
            outage_s=2.0,
            client=client.ApiClient(configuration),
        )
        self.job, self.service = fill(read(PODS / "train.yaml"), ORDER)
        self.name = self.job["metadata"]["name"]
        self.kubelet = Kubelet(url, emulator, self.name)

    def submit(self) -> None:
        self.jobs.submit(self.job, self.service)

    def until_said(self, text: str) -> None:
        deadline = time.monotonic() + 10
        while not any(text in line for line in self.said):
            assert time.monotonic() < deadline, f"{text!r} was never said: {self.said}"
            time.sleep(0.01)

    def requests(self, method: str) -> int:
        return sum(1 for r in self.emulator if r.method.value == method)


@pytest.fixture
def bench(server: tuple[str, Cluster]) -> Bench:
    url, emulator = server
    emulator.objects.clear()
    emulator.logs.clear()
    emulator.broken.clear()
    emulator.lost = 0
    return Bench(url, emulator)


def test_a_job_from_queue_to_success_with_its_log(bench: Bench) -> None:
    bench.submit()
    watched = Watched(bench.jobs, bench.name)
    bench.until_said("queued: 0/2 pods run")
    log = ["2026-01-01T00:00:00.5Z step 1", "2026-01-01T00:00:00.51Z step 2"]
    bench.kubelet.pod(0, phase="Running", log=log[:1])
    bench.until_said("step 1")
    bench.kubelet.pod(1, phase="Running", log=["2026-01-01T00:00:00Z of another rank"])
    bench.until_said("running: 2/2")
    bench.emulator.logs[f"{bench.name}-0-x7k2p"] = log
    for index in (0, 1):
        bench.kubelet.ended(index, 0)
    bench.kubelet.job("Complete")
    assert watched.result() is None
    lines = [line for line in bench.said if "step" in line]
    assert lines == ["step 1", "step 2"], "each line once, in order"
    assert not any("another rank" in line for line in bench.said)


def test_what_was_submitted_is_job_and_service_owned_by_it(bench: Bench) -> None:
    bench.submit()
    job = bench.emulator.objects["batch/v1/jobs", "wamflow", bench.name]
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    service = bench.emulator.objects["v1/services", "wamflow", bench.name]
    assert service["metadata"]["ownerReferences"][0]["name"] == bench.name


def test_the_second_submission_attaches(bench: Bench) -> None:
    bench.submit()
    bench.submit()
    assert any("attached" in line for line in bench.said)
    assert len([key for key in bench.emulator.objects if key[0].plural == "jobs"]) == 1


def test_a_finished_job_is_found_again_with_its_result(bench: Bench) -> None:
    bench.submit()
    bench.kubelet.ended(0, 11, json.dumps({"kind": "data", "message": "NaN in episode 7"}))
    bench.kubelet.job("Failed", "PodFailurePolicy")
    bench.submit()
    with pytest.raises(DataError, match="NaN in episode 7"):
        bench.jobs.watch(bench.name)


@pytest.mark.parametrize("key", ["wamflow.dev/run", "wamflow.dev/revision"])
def test_a_job_of_somebody_else_is_never_attached_to(bench: Bench, key: str) -> None:
    bench.submit()
    bench.job["metadata"]["annotations"][key] = "other"
    with pytest.raises(UserError, match=key):
        bench.submit()


def test_a_refused_job_is_the_users_error_in_the_servers_words(bench: Bench) -> None:
    bench.emulator.broken += [422]  # a quota or an admission rule of the cluster says no
    with pytest.raises(UserError, match="leader changed"):  # the emulator's words for every fault
        bench.submit()


FAILURES = {
    "user": (10, {"kind": "user", "message": "steps: expected > 0"}, UserError),
    "data": (11, {"kind": "data", "message": "plan: digest differs"}, DataError),
    "diverged": (12, {"kind": "data", "message": "loss is NaN"}, DataError),
    "interrupted": (13, {"kind": "interrupted", "message": "saved at step 40"}, StoppedError),
    "disk": (74, {"kind": "infrastructure", "message": "no space left"}, OutOfSpaceError),
    "temporary": (75, {"kind": "temporary", "message": "S3: 503"}, TemporaryError),
    "crash": (1, {"kind": "crash", "message": "ZeroDivisionError"}, CrashError),
}


@pytest.mark.parametrize("case", FAILURES)
def test_the_stages_own_failures_keep_their_class_and_message(bench: Bench, case: str) -> None:
    code, told, expected = FAILURES[case]
    bench.submit()
    bench.kubelet.ended(1, 143, finishedAt="2025-12-31T23:59:59Z")  # killed, since its gang failed
    bench.kubelet.ended(0, code, json.dumps(told))
    bench.kubelet.job("Failed", "PodFailurePolicy" if code < 13 else "BackoffLimitExceeded")
    with pytest.raises(expected, match=str(told["message"])) as caught:
        bench.jobs.watch(bench.name)
    assert worth_a_retry(caught.value) == (code == 75)


def test_without_a_message_of_ours_the_exit_code_speaks(bench: Bench) -> None:
    bench.submit()
    bench.kubelet.ended(0, 10, "last lines of the log")
    bench.kubelet.job("Failed", "PodFailurePolicy")
    with pytest.raises(UserError, match="last lines of the log"):
        bench.jobs.watch(bench.name)


def test_the_first_pod_that_failed_by_itself_says_why(bench: Bench) -> None:
    bench.submit()
    later, first = "2026-01-01T00:00:09Z", "2026-01-01T00:00:01Z"
    bench.kubelet.ended(0, 1, json.dumps({"kind": "crash", "message": "peer"}), finishedAt=later)
    bench.kubelet.ended(1, 12, json.dumps({"kind": "data", "message": "NaN"}), finishedAt=first)
    bench.kubelet.job("Failed", "PodFailurePolicy")
    with pytest.raises(DataError, match="NaN"):
        bench.jobs.watch(bench.name)


def lost(bench: Bench, how: str) -> None:
    """One way in which a machine goes away."""
    if how == "preempted":
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
        }
        bench.kubelet.ended(0, 143)
        bench.kubelet.pod(1, phase="Failed", conditions=[condition])
        bench.kubelet.job("Failed", "PodFailurePolicy")
    elif how == "node gone":  # nobody confirms the end: the Job would wait for ever
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
        }
        bench.kubelet.pod(0, phase="Running", conditions=[condition])
    elif how == "pods gone":
        bench.kubelet.job("Failed", "BackoffLimitExceeded", "Job has reached the limit")
    elif how == "job deleted":
        bench.kubelet.batch.delete_namespaced_job(bench.name, "wamflow")
    elif how == "image":
        waiting = {"reason": "ImagePullBackOff", "message": "back-off pulling wamflow@sha256:1"}
        state = [{"name": "stage", "state": {"waiting": waiting}}]
        bench.kubelet.pod(0, phase="Pending", containerStatuses=state)


@pytest.mark.parametrize("how", ["preempted", "node gone", "pods gone", "job deleted", "image"])
def test_lost_infrastructure_is_told_apart_and_worth_a_retry(bench: Bench, how: str) -> None:
    bench.submit()
    lost(bench, how)
    with pytest.raises(LostError) as caught:
        bench.jobs.watch(bench.name)
    assert worth_a_retry(caught.value)
    assert bench.name in str(caught.value)


def test_out_of_memory_is_no_lost_machine(bench: Bench) -> None:
    bench.submit()
    bench.kubelet.ended(0, 137, reason="OOMKilled")
    bench.kubelet.job("Failed", "BackoffLimitExceeded")
    with pytest.raises(OutOfSpaceError, match="memory"):
        bench.jobs.watch(bench.name)


def test_a_missing_secret_is_the_users_error(bench: Bench) -> None:
    bench.submit()
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "wamflow-s3" not found'}
    state = [{"name": "stage", "state": {"waiting": waiting}}]
    bench.kubelet.pod(0, phase="Pending", containerStatuses=state)
    with pytest.raises(UserError, match="wamflow-s3"):
        bench.jobs.watch(bench.name)


def test_waiting_for_room_is_a_state_with_a_reason_and_no_failure(bench: Bench) -> None:
    bench.submit()
    watched = Watched(bench.jobs, bench.name)
    why = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    bench.kubelet.pod(0, phase="Pending", conditions=[condition | {"message": why}])
    bench.until_said(why)
    time.sleep(bench.jobs.patience_s + 0.2)
    assert watched.thread.is_alive(), "a queue may be longer than any patience"
    assert len([line for line in bench.said if why in line]) == 1, "said once"
    assert "queued: 0/2 pods run" in next(line for line in bench.said if why in line)
    bench.kubelet.job("Complete")
    assert watched.result() is None


def test_a_suspended_job_waits_for_its_queue() -> None:
    assert state_of({"spec": {"suspend": True}}, []).phase == "queued"


def test_hiccups_of_the_api_server_are_survived(bench: Bench) -> None:
    bench.emulator.broken += [500, 0, 503]
    bench.submit()
    watched = Watched(bench.jobs, bench.name)
    bench.until_said("queued")
    bench.emulator.broken += [500, 0, 429, 504]
    bench.kubelet.client.configuration.retries = 10
    while bench.emulator.broken:
        time.sleep(0.02)
    bench.kubelet.job("Complete")
    assert watched.result() is None


def test_an_answer_that_got_lost_makes_no_second_job(bench: Bench) -> None:
    bench.emulator.lost = 1  # the Job is created, its answer is not heard
    bench.submit()
    assert any("attached" in line for line in bench.said)
    assert len([key for key in bench.emulator.objects if key[0].plural == "jobs"]) == 1


def test_an_api_server_that_stays_away_is_a_temporary_failure(bench: Bench) -> None:
    bench.emulator.broken += [503] * 100
    bench.jobs.outage_s = 0.3
    with pytest.raises(TemporaryError, match="leader changed"):
        bench.submit()


def test_missing_rights_are_the_users_error(bench: Bench) -> None:
    bench.emulator.broken += [403]
    with pytest.raises(UserError, match=r"accounts\.yaml"):
        bench.submit()


def test_a_missing_namespace_is_said_and_not_waited_for(bench: Bench) -> None:
    bench.emulator.broken += [404]
    with pytest.raises(UserError, match="leader changed"):  # the emulator's words for every fault
        bench.submit()


def test_cancel_deletes_pods_before_the_job_and_may_be_repeated(bench: Bench) -> None:
    bench.submit()
    before = len(list(bench.emulator))
    bench.jobs.cancel(bench.name)
    (request,) = [r for r in list(bench.emulator)[before:] if r.method.value == "DELETE"]
    assert request.params["propagationPolicy"] == "Foreground"
    assert bench.jobs.get(bench.name) is None
    bench.jobs.cancel(bench.name)


def test_a_finished_job_is_kept_for_a_while_after_its_result_is_stored(bench: Bench) -> None:
    bench.submit()
    assert "ttlSecondsAfterFinished" not in bench.job["spec"], "never before"
    bench.jobs.retire(bench.name)
    found = bench.jobs.get(bench.name)
    assert found is not None
    assert found["spec"]["ttlSecondsAfterFinished"] >= 3600


def test_a_job_that_is_being_deleted_is_waited_for_and_made_anew(bench: Bench) -> None:
    bench.submit()
    going = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["wait"]}}
    bench.kubelet.batch.patch_namespaced_job(bench.name, "wamflow", going)
    bench.jobs.patience_s = 10
    done = threading.Thread(target=bench.submit, daemon=True)
    done.start()
    time.sleep(0.2)
    assert done.is_alive()
    gone = {"metadata": {"finalizers": []}}
    bench.kubelet.batch.patch_namespaced_job(bench.name, "wamflow", gone)
    done.join(10)
    assert not done.is_alive()
    assert "submitted" in bench.said[-1]


def test_without_any_cluster_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match="KUBECONFIG"):
        Jobs("wamflow", say=print)


def test_every_failure_has_a_class_of_ours() -> None:
    assert all(issubclass(expected, WamflowError) for _, _, expected in FAILURES.values())
    assert yaml.safe_load((PODS / "cpu.yaml").read_text())["kind"] == "Job"
