"""Worktrees of runs: what they hold, what is refused, what is cleaned up, who is not touched."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components import corrections
from components.errors import UserError
from flows import retrain, workspace
from tests.conftest import ROOT, git


def test_a_run_is_a_branch_in_a_worktree_of_its_own(miniature: Path) -> None:
    head = git(miniature, "rev-parse", "HEAD")
    with workspace.opened(miniature, name="first") as run:
        assert run.worktree == miniature / ".runs" / "first"
        assert git(run.worktree, "branch", "--show-current") == "run/first"
        (run.worktree / "inputs").mkdir()
        (run.worktree / "inputs" / "sources.json").write_text("{}")
        commit = workspace.commit(run, "what the run saw")
    said = git(miniature, "show", "--no-patch", "--format=%an <%ae> %cn %P", commit)
    assert said == f"wamflow <wamflow@localhost> wamflow {head}"
    assert git(miniature, "rev-parse", "HEAD") == head
    assert git(miniature, "status", "--porcelain") == ""


def test_what_people_corrected_comes_along_uncommitted(miniature: Path) -> None:
    overlay = miniature / corrections.EVENTS
    overlay.parent.mkdir(parents=True)
    overlay.write_text("")
    git(miniature, "add", "--all")
    git(miniature, "commit", "--quiet", "--message", "no corrections yet")
    line = (
        '{"author":"Ada","time":"2026-01-02T00:00:00Z","episode_id":"e","did":"merge",'
        '"times_s":[0,1],"kinds":["motion"]}\n'
    )
    overlay.write_text(line)
    with workspace.opened(miniature) as run:
        assert (run.worktree / corrections.EVENTS).read_text() == line
    with workspace.opened(miniature, git(miniature, "rev-parse", "HEAD")) as run:
        assert (run.worktree / corrections.EVENTS).read_text() == "", "as it was committed"
    overlay.write_text("{}\n")
    with (
        pytest.raises(UserError, match=r"events\.jsonl:1: author"),
        workspace.opened(miniature) as run,
    ):
        retrain.prepare(run, {})
    assert not run.worktree.exists(), "a refused run leaves nothing"
    overlay.unlink()
    with workspace.opened(miniature) as run:
        assert (run.worktree / corrections.EVENTS).read_text() == "", "deleted is empty"


def test_no_identity_hook_or_signature_of_the_user_is_needed(
    miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
    git(miniature, "config", "commit.gpgsign", "true")
    hook = miniature / ".git/hooks/post-checkout"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with workspace.opened(miniature) as run:
        commit = workspace.commit(run, "empty")
    assert git(miniature, "show", "--no-patch", "--format=%an", commit) == "wamflow"


def test_uncommitted_values_come_along_and_stay_uncommitted(miniature: Path) -> None:
    values = miniature / "params.yaml"
    values.write_text(values.read_text().replace("temperature: 2.0", "temperature: 5.0"))
    with workspace.opened(miniature) as run:
        assert "temperature: 5.0" in (run.worktree / "params.yaml").read_text()
    assert git(miniature, "status", "--porcelain") == "M params.yaml"
    with workspace.opened(miniature, revision="main") as run:
        assert "temperature: 2.0" in (run.worktree / "params.yaml").read_text()


@pytest.mark.parametrize("name", ["components/sampling/stage.py", "models/new.py", "dvc.yaml"])
def test_uncommitted_code_is_refused_with_advice(miniature: Path, name: str) -> None:
    with (miniature / name).open("a") as file:
        file.write("# one more line\n")
    with pytest.raises(UserError) as failure, workspace.opened(miniature):
        pass
    assert name in str(failure.value)
    assert "git commit" in str(failure.value) and "--revision" in str(failure.value)
    assert not (miniature / ".runs").exists()
    with workspace.opened(miniature, revision=git(miniature, "rev-parse", "HEAD")) as run:
        assert run.worktree.is_dir(), "a commit that is named can be run in any case"


def test_files_that_are_no_code_may_differ(miniature: Path) -> None:
    (miniature / "notes.txt").write_text("mine")
    with workspace.opened(miniature):
        pass


def test_what_is_no_repository_says_so(tmp_path: Path, miniature: Path) -> None:
    with pytest.raises(UserError, match="git init"):
        workspace.project(tmp_path)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(UserError, match="Commit your work first"), workspace.opened(tmp_path):
        pass
    with (
        pytest.raises(UserError, match="no commit 'nowhere'"),
        workspace.opened(miniature, revision="nowhere"),
    ):
        pass


@pytest.mark.parametrize("name", ["Big", "a b", "../out", "x" * 41, "a..b", "a.lock", "-x"])
def test_names_that_no_branch_can_have_are_refused(miniature: Path, name: str) -> None:
    with pytest.raises(UserError, match="run name"), workspace.opened(miniature, name=name):
        pass


def test_a_name_is_used_once(miniature: Path) -> None:
    with workspace.opened(miniature, name="mine"):
        pass
    with pytest.raises(UserError, match="taken"), workspace.opened(miniature, name="mine"):
        pass


def test_ended_worktrees_go_and_running_ones_stay(
    miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "KEEP", 1)
    with workspace.opened(miniature, name="running") as running:
        for name in ("a", "b", "c"):
            with workspace.opened(miniature, name=name):
                pass
        left = {f.name for f in (miniature / ".runs").iterdir()}
        assert left == {"running", "b", "c"}, "the one that goes on, one ended, and the newest"
        assert running.worktree.is_dir()
    branches = git(miniature, "branch", "--list", "run/*", "--format=%(refname:short)").split()
    assert branches == ["run/a", "run/b", "run/c", "run/running"], "history stays"


def test_many_runs_start_at_once(miniature: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from flows import workspace\n"
        "with workspace.opened(Path(sys.argv[1])) as run: print(run.name)"
    )

    def start(_: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, str(miniature)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(start, range(4)))
    assert len(set(names)) == 4
    assert {f.name for f in (miniature / ".runs").iterdir()} == set(names)


def test_state_is_shared_with_the_users_own_worktrees(miniature: Path, tmp_path: Path) -> None:
    git(miniature, "worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    assert workspace.shared(tmp_path / "linked") == miniature / ".wamflow"


def test_a_folder_that_was_deleted_by_hand_does_not_disturb(miniature: Path) -> None:
    with workspace.opened(miniature, name="gone") as run:
        pass
    shutil.rmtree(run.worktree)
    with workspace.opened(miniature, name="next"):
        pass


def test_a_project_that_was_moved_goes_on(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git knows nothing of worktrees at their new places; the oldest go all the same."""
    monkeypatch.setattr(workspace, "KEEP", 1)
    for name in ("a", "b"):
        with workspace.opened(miniature, name=name):
            pass
    moved = miniature.rename(miniature.with_name("moved"))
    (moved / "recordings" / "kept").mkdir()
    (moved / ".runs" / "link").symlink_to(moved / "recordings" / "kept")
    with workspace.opened(moved, name="next") as run:
        assert git(run.worktree, "branch", "--show-current") == "run/next"
    assert {f.name for f in (moved / ".runs").iterdir()} == {"b", "next", "link"}
    assert (moved / "recordings" / "kept").is_dir()
