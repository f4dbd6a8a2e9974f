"""Projects to run: copies of this checkout in repositories of their own, and one Prefect server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.faulty_s3 import FaultyS3

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# The same examples each time, so that a failure is of the change under test;
# `--hypothesis-profile default` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

# A suite in the background of a shell ignores Ctrl-C, and so would all programs that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _session_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a module's fixtures run keeps its pieces in this checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAMFLOW_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """SVT-AV1's encoder makes whoever calls it as root real-time, and what it starts then, too.

    Browsers and servers of later tests kept a machine of two cores from everything else.
    """
    yield
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another one kept (the store lies beside `tmp_path`)."""
    monkeypatch.setenv("WAMFLOW_STORE", str(tmp_path.with_name(f"{tmp_path.name}.store")))


def git(folder: Path, *arguments: str) -> str:
    """Git as a user of the project would call it, with an identity."""
    who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    command = ["git", *who, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def copy_checkout(target: Path) -> Path:
    """The working tree's files (what git tracks or would track) at `target`, without history."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def first_commit(project: Path) -> Path:
    """Make a folder a repository with one commit."""
    git(project, "init", "--quiet", "--initial-branch=main")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "the project")
    return project


@pytest.fixture(scope="session")
def checkout_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout as a repository with one commit."""
    return first_commit(copy_checkout(tmp_path_factory.mktemp("template") / "wamflow"))


@pytest.fixture
def checkout(checkout_template: Path, tmp_path: Path) -> Path:
    """A fresh copy of the whole project."""
    return Path(shutil.copytree(checkout_template, tmp_path / "wamflow"))


@pytest.fixture(scope="session")
def miniature_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real flows over three small real stages (`tests/miniature`)."""
    project = tmp_path_factory.mktemp("template") / "miniature"
    for name in ("flows", "models", ".dvc", ".dvcignore", ".gitignore", "prefect.yaml"):
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=ignored)
        else:
            shutil.copy2(source, project / name)
    (project / "components").mkdir()
    for source in (ROOT / "components").glob("*.py"):
        shutil.copy2(source, project / "components" / source.name)
    shutil.copytree(ROOT / "tests" / "miniature", project, dirs_exist_ok=True)
    numbers = project / "recordings" / "numbers"
    numbers.mkdir(parents=True)
    (numbers / "a.txt").write_text("1 2 3")
    return first_commit(project)


@pytest.fixture
def miniature(miniature_template: Path, tmp_path: Path) -> Path:
    """A fresh copy of the miniature project."""
    return Path(shutil.copytree(miniature_template, tmp_path / "miniature"))


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Prefect server for all tests that run flows."""
    from flows import server

    shared = tmp_path_factory.mktemp("prefect")
    before = dict(os.environ)
    server.environment(shared)
    os.environ.pop("PREFECT_API_URL", None)
    try:
        with server.reached(shared) as url:
            yield url
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """One S3 server for all tests that ask for a bucket."""
    from tests.servers import s3

    with s3() as url:
        yield url


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket of its own for each test, reached through the environment as in production."""
    import boto3

    from tests.servers import KEYS, REGION

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (KEYS | REGION | {"AWS_ENDPOINT_URL": s3_server}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WAMFLOW_STORE", str(tmp_path / "store"))
    name = f"b{abs(hash(str(tmp_path)))}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def faulty(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The way to the bucket leads through a proxy that can fail and counts."""
    found = FaultyS3(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
    yield found
    found.close()


def wamflow(
    project: Path, *arguments: str, api: str | None = None, **settings: str
) -> subprocess.Popen[str]:
    """The command line of a project, with its own code, as a process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    env |= {"WAMFLOW_RETRY_S": "0.1", "PYTHONWARNINGS": "default", **settings}
    if api:
        env["PREFECT_API_URL"] = api
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=project,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """A test that fails leaves none of the processes that it started."""
    yield
    for process in _started:
        process.kill()
        process.communicate()
    _started.clear()
