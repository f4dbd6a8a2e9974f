"""The registry: versions in GTO's form, one for each content, made under a lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from components.errors import UserError
from flows import registry
from tests.past_runs import command, commit

PROJECT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No person's git identity is to be found."""
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{role}_NAME", raising=False)
        monkeypatch.delenv(f"GIT_{role}_EMAIL", raising=False)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    command(folder, "git", "init", "-q", "-b", "main")
    (folder / ".gitignore").write_text(".wamflow/\n")
    commit(folder, "project")
    return folder


def finished(repo: Path, name: str, passport: str) -> Path:
    """A run's worktree whose last commit has a passport of this content."""
    worktree = repo.parent / name
    command(repo, "git", "worktree", "add", "-q", "-b", f"run/{name}", str(worktree), "main")
    lock = {"outs": [{"path": "data/passport", "hash": "md5", "md5": f"{passport}.dir"}]}
    (worktree / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"r": lock}}))
    commit(worktree, f"results of {name}")
    return worktree


def test_versions_count_up_and_lie_on_the_runs_last_commit(repo: Path) -> None:
    one, two = finished(repo, "one", "aa"), finished(repo, "two", "bb")
    assert registry.register(repo, one, "wam").tag == "wam@v0.0.1"
    second = registry.register(repo, two, "wam")
    head = command(two, "git", "rev-parse", "HEAD").strip()
    assert second == registry.Registered("v0.0.2", "wam@v0.0.2", head, existed=False)
    assert command(repo, "git", "rev-parse", "wam@v0.0.2^{commit}").strip() == head
    assert command(repo, "git", "cat-file", "-t", "wam@v0.0.2").strip() == "tag"  # annotated
    assert registry.register(repo, one, "other").version == "v0.0.1"


def test_gto_itself_reads_the_versions_and_its_bumps_are_counted_on(repo: Path) -> None:
    import gto.api

    registry.register(repo, finished(repo, "one", "aa"), "wam")
    two = finished(repo, "two", "bb")
    head = command(two, "git", "rev-parse", "HEAD").strip()
    gto.api.register(repo, "wam", head, bump_minor=True, author="p", author_email="p@q")
    third = registry.register(repo, finished(repo, "three", "cc"), "wam")
    assert third.version == "v0.1.1"
    shown = [v["version"] for v in gto.api.show(repo, "wam")]
    assert sorted(shown) == ["v0.0.1", "v0.1.0", "v0.1.1"]


def test_equal_content_is_the_version_that_exists(repo: Path) -> None:
    first = registry.register(repo, finished(repo, "one", "aa"), "wam")
    again = registry.register(repo, finished(repo, "two", "aa"), "wam")
    assert again.existed
    assert (again.tag, again.commit) == (first.tag, first.commit)
    assert len(registry.models(repo)) == 1


def test_a_deregistered_version_is_no_answer(repo: Path) -> None:
    import gto.api

    one = finished(repo, "one", "aa")
    registry.register(repo, one, "wam")
    gto.api.deregister(repo, "wam", version="v0.0.1", author="p", author_email="p@q")
    assert registry.models(repo) == []
    with pytest.raises(UserError, match="GTO cannot register"):
        registry.register(repo, one, "wam")  # a person took this very commit back
    assert not registry.register(repo, finished(repo, "two", "aa"), "wam").existed
    assert [m.version for m in registry.models(repo)] == ["v0.0.2"]  # no number twice


def test_two_runs_at_once_get_two_versions(repo: Path) -> None:
    runs = [finished(repo, f"r{n}", f"{n}{n}") for n in range(4)]
    code = (
        "import sys; from pathlib import Path; from flows import registry\n"
        "print(registry.register(Path(sys.argv[1]), Path(sys.argv[2]), 'wam').version)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(repo), str(run)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for run in runs
    ]
    said = [process.communicate()[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0, 0]
    assert sorted(said) == ["v0.0.1", "v0.0.2", "v0.0.3", "v0.0.4"]
    assert {m.run for m in registry.models(repo)} == {f"run/r{n}" for n in range(4)}


def test_tags_are_in_the_platforms_name_and_the_users_checkout_stays(repo: Path) -> None:
    before = command(repo, "git", "rev-parse", "HEAD", "--abbrev-ref", "HEAD")
    (repo / "notes.txt").write_text("not committed")
    registry.register(repo, finished(repo, "one", "aa"), "wam")
    (model,) = registry.models(repo)
    assert (model.by, model.run, model.passport) == ("wamflow", "run/one", "aa.dir")
    assert command(repo, "git", "rev-parse", "HEAD", "--abbrev-ref", "HEAD") == before
    assert command(repo, "git", "status", "--porcelain") == "?? notes.txt\n"
    assert "GIT_COMMITTER_NAME" not in os.environ


def test_an_unfinished_run_is_refused(repo: Path) -> None:
    with pytest.raises(UserError, match=r"no data/passport in dvc\.lock; expected a finished"):
        registry.register(repo, repo, "wam")
    assert command(repo, "git", "tag") == ""


def test_an_uncommitted_lock_is_refused(repo: Path) -> None:
    run = finished(repo, "one", "aa")
    (run / "dvc.lock").write_text("{}")
    with pytest.raises(UserError, match=r"dvc\.lock differs from commit"):
        registry.register(repo, run, "wam")


@pytest.mark.parametrize("name", ["", "wam@v1", "two words", "-x"])
def test_a_name_that_gto_does_not_take_is_refused(repo: Path, name: str) -> None:
    with pytest.raises(UserError, match="GTO cannot register"):
        registry.register(repo, finished(repo, "one", "aa"), name)
    assert command(repo, "git", "tag") == ""


def test_a_folder_outside_of_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a git repository"):
        registry.models(tmp_path)


def test_the_table_and_the_json_say_the_same(repo: Path) -> None:
    for n in range(11):
        registry.register(repo, finished(repo, f"r{n}", f"{n:02}"), "wam")
    found = registry.models(repo, "wam")
    assert [m.version for m in found] == [f"v0.0.{n + 1}" for n in range(11)]  # 10 after 9
    assert [row["tag"] for row in json.loads(registry.to_json(found))] == [m.tag for m in found]
    console = Console(width=120)
    with console.capture() as said:
        console.print(registry.render(found))
    lines = said.get().splitlines()
    assert [line.split()[0] for line in lines[1:]] == [m.tag for m in reversed(found)]


def test_another_models_versions_are_not_shown(repo: Path) -> None:
    registry.register(repo, finished(repo, "one", "aa"), "wam")
    command(repo, "git", "tag", "v1.0")  # not of GTO's form, and not annotated
    assert registry.models(repo, "other") == []
    assert "no model is registered" in str(registry.render([]))
