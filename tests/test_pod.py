"""What a pod does, on a small project with two real stages, a bare git server and S3 in a process.

The stages count their starts in a file outside of all clones, so a test sees who ran what.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest
from kubernetes import client
from prefect.exceptions import TerminationSignal

from components.errors import DataError, StoppedError, TemporaryError, UserError
from flows import graph
from flows.pods import entry as pod
from flows.pods import exchange
from flows.pods import run as pods
from flows.pods.jobs import INDEX, Jobs
from flows.workspace import Run
from tests.servers import KEYS, REGION, Cluster, free_port, jobs_of, kubernetes_api, s3

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # DVC's own

DVC_YAML = """
stages:
  sampling:
    cmd: python -m components sampling inputs/numbers.json data/plan
    params: [sampling]
    deps: [inputs/numbers.json, components/sampling]
    outs: [data/plan]
    metrics: [metrics/sampling.json: {cache: false}]
    meta: {pod: cpu}
  pretraining:
    cmd: python -m components pretraining data/plan data/checkpoint
    params: [pretraining]
    deps: [data/plan, components/pretraining]
    outs: [data/checkpoint]
    metrics: [metrics/pretraining.json: {cache: false}]
    meta: {pod: train}
"""

STAGE = '''
import json, os, signal, sys, time
from pathlib import Path
from pydantic import BaseModel, Field
from components.errors import DataError, StoppedError
from components.outputs import whole_folder, write_json


class Config(BaseModel, frozen=True, extra="forbid"):
    times: int = Field(ge=1)


class Report(BaseModel):
    total: int


def stop(*_):
    raise StoppedError("saved at step 3")


def run({first}: Path, {second}: Path, *, config: Config) -> Report:
    with open(os.environ["STARTS"], "a") as file:
        print("{name}", os.environ.get("PET_NODE_RANK", "-"), file=file)
    signal.signal(signal.SIGTERM, stop)
    if config.times == 13:  # a long training
        time.sleep(60)
    source = {first} if {first}.is_file() else {first} / "numbers.json"
    numbers = json.loads(source.read_text())
    if min(numbers) < 0:
        raise DataError(f"{{source}}: expected numbers >= 0, got {{min(numbers)}}")
    meet()
    numbers = [n * config.times for n in numbers]
    with whole_folder({second}) as out:
        write_json(out / "numbers.json", numbers)
    return Report(total=sum(numbers)) if os.environ.get("PET_NODE_RANK", "0") == "0" else None


def meet() -> None:
    """A rendezvous: nobody goes on before all are there."""
    if "MEET" not in os.environ:
        return
    Path(os.environ["MEET"], os.environ["PET_NODE_RANK"]).touch()
    until = time.monotonic() + 60
    while len(os.listdir(os.environ["MEET"])) < int(os.environ["PET_NNODES"]):
        assert time.monotonic() < until, "the gang did not meet"
        time.sleep(0.05)
'''


@dataclass
class Place:
    """A git server, an S3 remote and the flow's worktree with `sampling` done and pushed."""

    git_url: str
    remote: str
    worktree: Path
    folder: Path
    revision: str = ""
    log: dict[int, str] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        shared = self.folder / "shared"
        (shared / "locks").mkdir(parents=True, exist_ok=True)
        return Run("monday", self.worktree, self.worktree, shared, self.revision)

    def told(self, index: int = 0, **more: str) -> dict[str, str]:
        """The environment of a pod."""
        folder = self.folder / f"pod{index}"
        folder.mkdir(exist_ok=True)
        return {
            "WAMFLOW_RUN": "monday",
            "WAMFLOW_STAGE": "pretraining",
            "WAMFLOW_REVISION": self.revision,
            "WAMFLOW_BRANCH": "run/monday",
            "WAMFLOW_GIT_URL": self.git_url,
            "WAMFLOW_REMOTE": self.remote,
            "WAMFLOW_FOLDER": str(folder),
            "WAMFLOW_TERMINATION": str(folder / "termination"),
            "JOB_COMPLETION_INDEX": str(index),
            "PET_NODE_RANK": str(index),
        } | more

    def ended(self, index: int = 0) -> dict[str, str]:
        """The termination message of a pod."""
        return json.loads((self.folder / f"pod{index}" / "termination").read_text())

    def starts(self) -> list[str]:
        return Path(os.environ["STARTS"]).read_text().splitlines()

    def commit(self, **values: int) -> None:
        """A commit of the flow with these values, its upstream results pushed."""
        text = "".join(f"{name}: {{times: {n}}}\n" for name, n in values.items())
        (self.worktree / "params.yaml").write_text(text)
        git(self.worktree, "commit", "--quiet", "--all", "--message", "values")
        self.revision = exchange.send_branch(self.worktree, self.git_url, "run/monday")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def dvc(folder: Path, *arguments: str, **settings: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | settings | {"PATH": path}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def project(folder: Path) -> None:
    """A miniature of this repository: the real command line, two small stages."""
    for name in ("__init__", "__main__", "errors", "outputs", "params"):
        target = folder / "components" / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "components" / f"{name}.py", target)
    for name, first, second in (
        ("sampling", "numbers", "plan"),
        ("pretraining", "plan", "checkpoint"),
    ):
        target = folder / "components" / name / "stage.py"
        target.parent.mkdir()
        target.write_text(STAGE.format(name=name, first=first, second=second))
        (target.parent / "__init__.py").touch()
    (folder / "inputs").mkdir()
    (folder / "inputs" / "numbers.json").write_text("[1, 2, 3]")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("sampling: {times: 2}\npretraining: {times: 5}\n")
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (folder / ".dvcignore").write_text("__pycache__/\n")
    (folder / ".gitignore").write_text("__pycache__/\nreport/\n/data\n/metrics\n")
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    shutil.copytree(ROOT / "k8s" / "pods", folder / "k8s" / "pods")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3() as url:
        yield url


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the git server and the flow's clone, where `sampling` has run; to be copied."""
    folder = tmp_path_factory.mktemp("template")
    git(folder, "init", "--quiet", "--bare", "server.git")
    git(folder, "init", "--quiet", "--initial-branch=run/monday", "flow")
    project(folder / "flow")
    git(folder / "flow", "add", "--all")
    git(folder / "flow", "commit", "--quiet", "--message", "code")
    dvc(folder / "flow", "repro", "--single-item", "sampling", STARTS=str(folder / "starts"))
    return folder


@pytest.fixture
def place(server: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    settings = KEYS | REGION | {"AWS_ENDPOINT_URL": server, "STARTS": str(tmp_path / "starts")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    bucket = f"b{abs(hash(str(tmp_path)))}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    found = Place(
        git_url=str(tmp_path / "server.git"),
        remote=f"s3://{bucket}/dvc",
        worktree=tmp_path / "flow",
        folder=tmp_path,
    )
    found.revision = exchange.send_branch(found.worktree, found.git_url, "run/monday")
    exchange.use_remote(found.worktree, found.remote)
    exchange.push(found.worktree)
    return found


def start(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.pods.entry"],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


@pytest.mark.slow
def test_sigterm_reaches_the_stage_and_the_pod_says_so(place: Place) -> None:
    place.commit(sampling=2, pretraining=13)
    process = start(place.told())
    until = time.monotonic() + 60
    while len(place.starts()) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, said = result(process)
    assert code == 13, said
    assert place.ended()["kind"] == "interrupted"
    assert "saved at step 3" in said
    left = [p for p in Path("/proc").glob("[0-9]*") if str(place.folder) in environ(p)]
    assert left == []
    assert not exchange.restore(place.worktree, "pretraining")


def environ(process: Path) -> str:
    """A process's WAMFLOW_WORKTREE; '' when it is gone or somebody else's."""
    try:
        pairs = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((p.decode() for p in pairs if p.startswith(b"WAMFLOW_WORKTREE=")), "")


def test_wrong_data_keep_their_class(place: Place) -> None:
    (place.worktree / "inputs" / "numbers.json").write_text("[-7]")
    place.commit(sampling=2, pretraining=5)
    assert pod.main(place.told(WAMFLOW_STAGE="sampling")) == DataError.exit_code
    assert place.ended()["kind"] == "data"
    assert "got -7" in place.ended()["message"]


def test_a_pod_never_makes_what_another_stage_should_have_made(place: Place) -> None:
    place.commit(sampling=4, pretraining=5)
    assert pod.main(place.told()) == UserError.exit_code
    assert "needs the result of sampling" in place.ended()["message"]
    assert place.starts() == ["sampling -"]


def test_what_a_pod_was_not_told_or_cannot_reach_is_said(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = place.told(WAMFLOW_STAGE="", WAMFLOW_REMOTE="")
    assert pod.main(told) == UserError.exit_code
    assert place.ended()["message"].endswith("WAMFLOW_STAGE, WAMFLOW_REMOTE.")
    assert pod.main(place.told(WAMFLOW_STAGE="training")) == UserError.exit_code
    assert "unknown stage 'training'" in place.ended()["message"]
    assert pod.main(place.told(WAMFLOW_GIT_URL="/no/such.git")) == UserError.exit_code
    nobody = f"http://user:hush@127.0.0.1:{free_port()}/x.git"
    assert pod.main(place.told(WAMFLOW_GIT_URL=nobody)) == TemporaryError.exit_code
    assert "hush" not in place.ended()["message"]
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert pod.main(place.told()) == TemporaryError.exit_code


def test_a_termination_message_fits_kubernetes(tmp_path: Path) -> None:
    code = pod._ended(tmp_path / "end", "data", "start " + "ä" * 9000 + " end", 11)
    written = (tmp_path / "end").read_bytes()
    assert code == 11
    assert len(written) <= pod.TERMINATION_BYTES
    message = json.loads(written)["message"]
    assert message.startswith("start ")
    assert message.endswith(" end")


def test_dvc_itself_moves_data_between_clones_through_s3(place: Place) -> None:
    """The plain commands that a person types: `dvc push` here, `dvc pull` there."""
    git(place.worktree, "add", "--all", "--force", "dvc.lock")
    git(place.worktree, "commit", "--quiet", "--message", "lock")
    dvc(place.worktree, "push")
    git(place.folder, "clone", "--quiet", str(place.worktree), "other")
    other = place.folder / "other"
    exchange.use_remote(other, place.remote)
    dvc(other, "pull", "sampling", "--allow-missing")
    assert json.loads((other / "data/plan/numbers.json").read_text()) == [2, 4, 6]


# --- the whole way: flow, API server, pods ------------------------------------------------------


class Nodes(threading.Thread):
    """Plays controller and kubelets: runs the containers of the first Job as processes."""

    def __init__(self, url: str, emulator: Cluster, place: Place) -> None:
        super().__init__(daemon=True)
        configuration = client.Configuration()
        configuration.host = url
        api = client.ApiClient(configuration)
        self.batch, self.core = client.BatchV1Api(api), client.CoreV1Api(api)
        self.emulator, self.place, self.error = emulator, place, ""

    def run(self) -> None:
        try:
            self.play()
        except Exception as error:
            self.error = repr(error)

    def play(self) -> None:
        while not (
            jobs := [o for k, o in list(self.emulator.objects.items()) if k[0].plural == "jobs"]
        ):
            time.sleep(0.02)
        job = jobs[0].raw
        name, (container,) = job["metadata"]["name"], job["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["python", "-m", "flows.pods.entry"]
        env = {e["name"]: e["value"] for e in container["env"] if "value" in e}
        env = {k: v for k, v in env.items() if k not in ("HOME", "TMPDIR")}
        asked = range(job["spec"]["completions"])
        processes = [start(env | self.local(index)) for index in asked]
        for index in asked:
            self.report(name, index, {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "Running")
        codes = []
        for index, process in enumerate(processes):
            code, said = result(process)
            self.place.log[index] = said
            lines = [f"2026-01-01T00:00:{n:02d}Z {s}" for n, s in enumerate(said.splitlines()[:50])]
            self.emulator.logs[f"{name}-{index}"] = lines
            folder = self.place.folder / f"pod{index}" / "termination"
            message = folder.read_text() if folder.exists() else ""
            end = {"exitCode": code, "message": message, "finishedAt": "2026-01-01T00:01:00Z"}
            self.report(name, index, {"terminated": end}, "Failed" if code else "Succeeded")
            codes.append(code)
        self.conclude(name, "Failed" if any(codes) else "Complete")

    def local(self, index: int) -> dict[str, str]:
        told = self.place.told(index)
        return {
            k: told[k] for k in told if "FOLDER" in k or "TERM" in k or "INDEX" in k or "RANK" in k
        }

    def report(self, name: str, index: int, state: dict, phase: str) -> None:
        labels = {INDEX: str(index), "batch.kubernetes.io/job-name": name}
        metadata = {"name": f"{name}-{index}", "labels": labels}
        containers = [{"name": "stage", "image": "wamflow"}]
        status = {"image": "", "imageID": "", "ready": False, "restartCount": 0}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"containers": containers},
        }
        if phase == "Running":
            self.core.create_namespaced_pod("wamflow", body)
        found = {"phase": phase, "containerStatuses": [status | {"name": "stage", "state": state}]}
        self.core.patch_namespaced_pod_status(f"{name}-{index}", "wamflow", {"status": found})

    def conclude(self, name: str, kind: str) -> None:
        body = {"status": {"conditions": [{"type": kind, "status": "True"}]}}
        self.batch.patch_namespaced_job_status(name, "wamflow", body)


def settings(place: Place, nodes: int) -> pods.Settings:
    return pods.Settings(
        image="wamflow@sha256:" + "1" * 64,
        git_url=place.git_url,
        remote=place.remote,
        nodes=nodes,
        gpus=0,
    )


def pretraining(place: Place) -> graph.Stage:
    (stage,) = [s for s in graph.stages(place.worktree) if s.name == "pretraining"]
    return stage


def over_the_cluster(place: Place, said: list[str], nodes: int) -> None:
    """`pods.run_stage` as the flow calls it, against an API server with real processes as pods."""
    with kubernetes_api() as (url, emulator):
        configuration = client.Configuration()
        configuration.host = url
        jobs = Jobs("wamflow", said.append, poll_s=0.1, client=client.ApiClient(configuration))
        cluster = Nodes(url, emulator, place)
        cluster.start()
        pods.run_stage(
            pretraining(place),
            place.run,
            attempt=1,
            log=said.append,
            settings=settings(place, nodes),
            jobs=jobs,
        )
        cluster.join(10)
        assert cluster.error == ""
        (name,) = jobs_of(emulator)
        found = jobs.get(name)
        assert found is not None
        assert found["spec"]["ttlSecondsAfterFinished"] > 0, "retired after the result was stored"


class Stopped(Jobs):
    """A signal arrives while the Job is watched."""

    signal: BaseException

    def watch(self, name: str) -> None:
        self.say(f"watching {name}")
        raise self.signal


def test_stopping_the_flow_ends_its_job_but_a_death_leaves_it(place: Place) -> None:
    class Death(BaseException):
        pass

    with kubernetes_api() as (url, emulator):
        configuration = client.Configuration()
        configuration.host = url
        jobs = Stopped("wamflow", print, client=client.ApiClient(configuration))
        left = []
        sigterm = TerminationSignal(signal.SIGTERM)  # what Prefect makes of it inside a flow
        for jobs.signal in (KeyboardInterrupt(), StoppedError("SIGTERM"), sigterm, Death()):
            with pytest.raises(type(jobs.signal)):
                pods.run_stage(
                    pretraining(place),
                    place.run,
                    attempt=1,
                    log=print,
                    settings=settings(place, 1),
                    jobs=jobs,
                )
            left.append(len(jobs_of(emulator)))
        assert left == [0, 0, 0, 1]


@pytest.mark.slow
def test_a_gang_on_a_cluster_makes_the_result_and_the_flow_takes_it_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.folder / "meet").mkdir()
    monkeypatch.setenv("MEET", str(place.folder / "meet"))
    said: list[str] = []
    assert place.starts() == ["sampling -"]
    over_the_cluster(place, said, nodes=2)
    starts = ["pretraining 0", "pretraining 1", "sampling -"]
    assert sorted(place.starts()) == starts, "pods restored what was before; nothing ran here"
    assert any("result pushed" in line for line in said), said
    assert "pushed" not in place.log[1], "only the first pod pushes"

    numbers = json.loads((place.worktree / "data/checkpoint/numbers.json").read_text())
    assert numbers == [10, 20, 30]
    metrics = json.loads((place.worktree / "metrics/pretraining.json").read_text())
    assert metrics == {"total": 60}
    assert "up to date" in dvc(place.worktree, "status")

    assert pod.main(place.told()) == 0, "another pod finds the result on the remote"
    assert sorted(place.starts()) == starts


@pytest.mark.slow
def test_a_failure_in_the_pod_is_the_failure_of_the_stage(place: Place) -> None:
    place.commit(sampling=2, pretraining=0)
    with pytest.raises(UserError, match=r"pretraining\.times"):
        over_the_cluster(place, [], nodes=1)
    assert not (place.worktree / "data/checkpoint").exists()
