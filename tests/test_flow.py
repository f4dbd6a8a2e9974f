"""The flow over the miniature: two commits, nothing twice, side by side, and what a person sees."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from components.errors import UserError
from components.stations import recording
from flows import graph, retrain, server, supervisor, workspace
from tests.conftest import ROOT, git, wamflow
from tests.servers import jobs_of, kubernetes_api

LIMIT_S = 120


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The summary of a run that must succeed."""
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    summary: dict[str, Any] = json.loads(out)
    return summary


def failed(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and the message of a run that must fail: the lines from `error (` on."""
    out, err = process.communicate(timeout=LIMIT_S)
    assert out == ""
    assert "Traceback" not in err, err
    return process.returncode, err[err.index("error (") :]


def ask(api: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def digests(worktree: Path) -> dict[str, list[str]]:
    """What `dvc.lock` says of each stage's outputs."""
    stages = yaml.safe_load((worktree / "dvc.lock").read_text())["stages"]
    return {name: [out["md5"] for out in stage["outs"]] for name, stage in stages.items()}


def test_a_run_then_nothing_to_do_then_one_number(miniature: Path, prefect_api: str) -> None:
    head = git(miniature, "rev-parse", "HEAD")
    first = finished(wamflow(miniature, "run", "--json", "--name", "first", api=prefect_api))
    assert first["stages"] == {"ingestion": "ran", "sampling": "ran", "pretraining": "ran"}
    assert first["reports"]["pretraining"] == {"result": 12.0}, "(1 + 2 + 3) * 2"

    log = git(miniature, "log", "--format=%an: %s", f"{head}..run/first").splitlines()
    assert log == ["wamflow: run first: results", "wamflow: run first: values and inputs"]
    recorded = git(miniature, "ls-tree", "-r", "--name-only", "run/first").split()
    assert {"inputs/sources.json", "dvc.lock", "report.dvc", "metrics/sampling.json"} <= {*recorded}
    assert not any(name.startswith(("data/plan", "report/", ".wamflow")) for name in recorded)
    assert git(miniature, "rev-parse", "run/first") == first["commit"]

    again = finished(wamflow(miniature, "run", "--json", "--name", "again", api=prefect_api))
    assert set(again["stages"].values()) == {"cached"}
    worktrees = [Path(s["worktree"]) for s in (first, again)]
    assert digests(worktrees[0]) == digests(worktrees[1])
    assert (worktrees[1] / "data/checkpoint/model.txt").read_text() == "12.0", "it is complete"

    change = ["--set", "sampling.temperature=3"]
    other = finished(wamflow(miniature, "run", "--json", *change, api=prefect_api))
    assert other["stages"] == {"ingestion": "cached", "sampling": "ran", "pretraining": "ran"}
    assert other["reports"]["sampling"] == {"total": 18.0}
    values = git(miniature, "show", f"{other['branch']}:params.yaml")
    assert "temperature: 3.0  # a comment that stays" in values

    assert git(miniature, "status", "--porcelain") == "", "the user's checkout is untouched"
    assert git(miniature, "rev-parse", "HEAD") == head
    seen = ask(prefect_api, "artifacts/latest/filter", {})
    tables = {a["key"]: a["data"] for a in seen}
    assert tables["pretraining-progress"] == 100
    assert "| total | 18 |" in tables["sampling"]
    names = {t["name"] for t in ask(prefect_api, "task_runs/filter", {})}
    assert {"ingestion", "sampling", "pretraining"} <= names


def test_a_value_that_was_said_holds_at_an_older_commit_too(
    miniature: Path, prefect_api: str
) -> None:
    """Though the checkout has that value already, and the commit another one."""
    old = git(miniature, "rev-parse", "HEAD")
    values = miniature / "params.yaml"
    values.write_text(values.read_text().replace("temperature: 2.0", "temperature: 3.0"))
    git(miniature, "commit", "--quiet", "--all", "--message", "other values")
    said = ["--revision", old, "--set", "sampling.temperature=3"]
    summary = finished(wamflow(miniature, "run", "--json", *said, api=prefect_api))
    assert summary["reports"]["sampling"] == {"total": 18.0}


def test_two_runs_at_the_same_time(miniature: Path, prefect_api: str) -> None:
    runs = [
        wamflow(miniature, "run", "--json", "--set", f"sampling.temperature={t}", api=prefect_api)
        for t in (4, 5)
    ]
    totals = [finished(run)["reports"]["sampling"]["total"] for run in runs]
    assert totals == [24.0, 30.0]
    assert git(miniature, "status", "--porcelain") == ""


def test_temporary_failures_are_tried_again_and_others_are_not(
    miniature: Path, prefect_api: str
) -> None:
    twice = wamflow(
        miniature, "run", "--json", "--set", "pretraining.temporary_failures=2", api=prefect_api
    )
    wrong = wamflow(miniature, "run", "--set", "pretraining.failure=data", api=prefect_api)
    assert finished(twice)["stages"]["pretraining"] == "ran"
    state = json.loads((miniature / ".wamflow/miniature.json").read_text())
    assert state["failures"] == 2
    code, message = failed(wrong)
    assert code == 11
    assert "pretraining: the miniature's data are wrong" in message


def test_sigterm_reaches_the_stage_and_kill_leaves_nobody(
    miniature: Path, prefect_api: str
) -> None:
    """Two flows at work: one is asked to stop, its stage saves; the other is killed outright."""
    slow = ["run", "--set", "pretraining.seconds=60", "--name"]
    asked = wamflow(miniature, *slow, "asked", api=prefect_api)
    until(lambda: "working" in log_of(miniature, "asked"))
    asked.send_signal(signal.SIGTERM)
    code, message = failed(asked)
    assert code == 13 and "stopped" in message
    assert json.loads((miniature / ".wamflow/miniature.json").read_text())["steps"] > 0
    assert processes_of(miniature) == []

    killed = wamflow(miniature, *slow, "killed", api=prefect_api)
    until(lambda: "working" in log_of(miniature, "killed"))
    assert len(processes_of(miniature)) >= 4
    killed.kill()
    killed.communicate()
    until(lambda: not processes_of(miniature))


def test_sigterm_to_a_flow_deletes_its_job_on_the_cluster(
    miniature: Path, prefect_api: str, tmp_path: Path
) -> None:
    """The real signal: inside a flow it arrives as an exception of Prefect's."""
    shutil.copytree(ROOT / "k8s" / "pods", miniature / "k8s" / "pods")
    git(miniature, "add", "--all")
    git(miniature, "commit", "--quiet", "--message", "pods")
    git(tmp_path, "init", "--quiet", "--bare", "server.git")
    with kubernetes_api() as (url, emulator):
        cluster = {
            "KUBECONFIG": kubeconfig(tmp_path / "kubeconfig", url),
            "WAMFLOW_IMAGE": "wamflow@sha256:" + "1" * 64,
            "WAMFLOW_GIT_URL": str(tmp_path / "server.git"),
            "WAMFLOW_REMOTE": str(tmp_path / "remote"),
        }
        flow = wamflow(miniature, "run", "--runner", "kubernetes", api=prefect_api, **cluster)
        until(lambda: flow.poll() is not None or jobs_of(emulator))
        assert len(jobs_of(emulator)) == 1, flow.communicate()
        flow.send_signal(signal.SIGTERM)
        code, message = failed(flow)
        assert code == 13 and "stopped" in message
        assert jobs_of(emulator) == []


def kubeconfig(path: Path, url: str) -> str:
    """A file that names one cluster, as text."""
    named = {"cluster": "c", "user": "u"}
    written = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": named}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(written))
    return str(path)


def log_of(project: Path, run: str) -> str:
    log = project / ".runs" / run / "report" / "pretraining.log"
    return log.read_text() if log.exists() else ""


def processes_of(project: Path) -> list[psutil.Process]:
    """Stage processes of any run of a project."""
    found = []
    for process in psutil.process_iter():
        try:
            worktree = process.environ().get("WAMFLOW_WORKTREE", "")
            if worktree.startswith(str(project)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@pytest.mark.slow
def test_without_a_server_a_temporary_one_comes_and_goes(miniature: Path) -> None:
    """Two at once, from nothing: each gets a database of its own, and no server stays."""
    runs = [wamflow(miniature, "run", "--json", "--name", name) for name in ("one", "two")]
    for run in runs:
        assert finished(run)["reports"]["pretraining"] == {"result": 12.0}
    assert {p.name for p in (miniature / ".wamflow/prefect").glob("prefect*.db")} == {
        "prefect.db",
        "prefect-1.db",
    }
    assert servers_of(miniature) == []


def servers_of(project: Path) -> list[psutil.Process]:
    """Prefect servers whose database lies in the project."""
    found = []
    for process in psutil.process_iter():
        try:
            url = process.environ().get("PREFECT_SERVER_DATABASE_CONNECTION_URL", "")
        except psutil.Error:
            continue
        if str(project) in url and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.slow
def test_up_serves_the_form_with_a_paused_schedule(miniature: Path) -> None:
    """A person's way: the form in the UI starts a run; the end of `up` ends everything."""
    port = server._free_port()
    up = wamflow(miniature, "up", "--port", str(port))
    api = f"http://127.0.0.1:{port}/api"
    assert up.stdout
    assert f"http://127.0.0.1:{port}" in up.stdout.readline()
    found: list[dict[str, Any]] = []
    until(lambda: found.extend(ask(api, "deployments/filter", {})) or found)
    (deployment,) = found
    assert [s["active"] for s in deployment["schedules"]] == [False]
    form = deployment["parameter_openapi_schema"]
    section = form["properties"]["sampling"]
    assert section["default"] == {"temperature": 2.0}
    assert section["description"] == "Values of the stage sampling."
    shown = form["definitions"]["Sampling"]["properties"]["temperature"]
    assert (shown["maximum"], shown["default"]) == (10, 2.0)

    second = wamflow(miniature, "up", "--port", str(port))
    code, message = failed(second)
    assert code == 10 and "up already" in message

    body = {"parameters": {"name": "from-the-form", "sampling": {"temperature": 7.0}}}
    run = ask(api, f"deployments/{deployment['id']}/create_flow_run", body)
    done = ("COMPLETED", "FAILED", "CRASHED")
    until(lambda: state_of(api, run["id"]) in done, LIMIT_S)
    assert state_of(api, run["id"]) == "COMPLETED"
    report = json.loads(git(miniature, "show", "run/from-the-form:metrics/sampling.json"))
    assert report == {"total": 42.0}

    body = {"parameters": {"name": "slow", "pretraining": {"seconds": 60.0}}}
    ask(api, f"deployments/{deployment['id']}/create_flow_run", body)
    until(lambda: "working" in log_of(miniature, "slow"))
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=server.SERVING_STOP_S + 15)
    saved = json.loads((miniature / ".wamflow/miniature.json").read_text())
    assert saved["steps"] > 0, "the stage was asked to end, and saved"
    assert processes_of(miniature) == [] and servers_of(miniature) == []


@pytest.mark.slow
def test_the_first_real_stages_come_back_in_a_second_run(checkout: Path) -> None:
    """Recordings of the simulated station through ingestion and segmentation, twice."""
    recording.record("metaworld", ["reach"], 2, checkout / "recordings" / "few")
    changes = {"ingestion": {"sources": ["recordings/few"]}}
    found = []
    for name in ("one", "two"):
        with workspace.opened(checkout, name=name) as run:
            retrain.prepare(run, changes)
            for stage in ("ingestion", "segmentation"):
                if restored := graph.restore(run.worktree, stage):
                    assert name == "two"
                else:
                    supervisor.reproduce(stage, run, log=print)
                found.append((stage, restored, digests(run.worktree)[stage]))
            report = json.loads((run.worktree / "metrics/ingestion.json").read_text())
            assert report["episodes"] == 2
    (first, second), (again, also) = found[:2], found[2:]
    assert (first[1], second[1], again[1], also[1]) == (False, False, True, True)
    assert (first[2], second[2]) == (again[2], also[2])


def state_of(api: str, run: str) -> str:
    with urllib.request.urlopen(f"{api}/flow_runs/{run}") as answer:
        return str(json.load(answer)["state"]["type"])


def test_a_refused_run_is_one_message_and_leaves_nothing(miniature: Path) -> None:
    """Also where a temporary server was started: its own lock must not swallow the failure."""
    git(miniature, "rm", "-rq", "--cached", "--ignore-unmatch", "recordings")
    shutil.rmtree(miniature / "recordings")
    before = git(miniature, "branch", "--list")
    process = wamflow(miniature, "run", "--name", "refused")
    _, err = process.communicate(timeout=170)
    assert process.returncode == UserError.exit_code, err
    assert "Traceback" not in err and "no such folder; expected recordings there" in err
    assert git(miniature, "branch", "--list") == before
    assert not (miniature / ".runs" / "refused").exists()


def test_git_variables_of_another_repository_change_nothing(
    miniature: Path, tmp_path: Path
) -> None:
    git(tmp_path, "init", "--quiet", "other")
    process = wamflow(miniature, "models", "--json", GIT_DIR=str(tmp_path / "other/.git"))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, "[]"), err
