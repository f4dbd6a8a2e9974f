"""The command line: quick, and one message with an exit code for whatever a person does wrong."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import summaries
from tests.conftest import ROOT, git, wamflow

COMMANDS = ("demo", "run", "up", "snapshot", "trials", "record", "models", "trace")


def said(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_help_is_there_at_once_and_names_every_command() -> None:
    began = time.monotonic()
    code, out, _ = said(wamflow(ROOT, "--help"))
    assert code == 0
    assert time.monotonic() - began < 3, "0.3 s alone; the machine may be busy"
    assert all(command in out for command in COMMANDS)


def test_the_command_line_imports_nothing_heavy() -> None:
    program = (
        "import sys, flows.cli\n"
        "heavy = {'torch', 'prefect', 'dvc', 'numpy', 'pyarrow', 'mujoco', 'kubernetes'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_forms_need_no_torch() -> None:
    """The Prefect form imports every Config; that must not cost seconds."""
    program = (
        "import sys; from pathlib import Path; from flows import values\n"
        "values.form(Path('.'))\n"
        "heavy = {'torch', 'great_expectations', 'sklearn', 'transformers', 'wandb',"
        " 'matplotlib', 'mujoco'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


WRONG = {
    "an unknown value": (["run", "--set", "sampling.temprature=1"], "sampling.temperature?"),
    "an unknown section": (["run", "--set", "smapling.temperature=1"], "did you mean sampling?"),
    "a value out of bounds": (["run", "--set", "sampling.temperature=11"], "got 11"),
    "a value of another type": (["run", "--set", "sampling.temperature=hot"], "got 'hot'"),
    "an assignment without a value": (["run", "--set", "sampling"], "SECTION.NAME=VALUE"),
    "a commit that does not exist": (["run", "--revision", "nowhere"], "no commit 'nowhere'"),
    "a place that does not exist": (["run", "--runner", "moon"], "expected local or kubernetes"),
    "nothing to trace": (["trace"], "expected a MODEL or --episode"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_message(miniature: Path, case: str) -> None:
    arguments, words = WRONG[case]
    code, out, err = said(wamflow(miniature, *arguments))
    assert (code, out) == (10, ""), err
    assert err.startswith("error (user): ") and words in err
    assert "Traceback" not in err
    assert not (miniature / ".runs").exists(), "nothing was started"


def test_code_that_is_not_committed_is_refused_before_anything_starts(miniature: Path) -> None:
    (miniature / "flows" / "new.py").write_text("")
    code, _, err = said(wamflow(miniature, "run"))
    assert code == 10 and "flows/new.py" in err and "git commit" in err


def test_a_folder_that_is_no_project(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from flows.cli import main; main()", "run"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    code, _, err = said(process)
    assert code == 10 and "git init" in err and "Traceback" not in err


def test_an_occupied_port_is_one_message(miniature: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = said(wamflow(miniature, "up", "--port", str(port)))
    assert code == 10
    assert str(port) in err and "--port" in err and "Traceback" not in err


def test_wrong_values_in_params_yaml_are_one_message(miniature: Path) -> None:
    values = miniature / "params.yaml"
    values.write_text(values.read_text().replace("temperature: 2.0", "temperature: cold"))
    code, _, err = said(wamflow(miniature, "run"))
    assert code == 10 and "sampling.temperature" in err and "got 'cold'" in err


def test_snapshot_lists_the_sources_of_this_checkout(miniature: Path) -> None:
    code, out, err = said(wamflow(miniature, "snapshot"))
    assert code == 0, err
    target = miniature / "inputs" / "sources.json"
    assert out.strip() == str(target)
    (source,) = json.loads(target.read_text())["sources"]
    assert source["uri"] == str(miniature / "recordings" / "numbers")
    assert [o["path"] for o in source["objects"]] == ["a.txt"]
    assert git(miniature, "status", "--porcelain") == "?? inputs/"


def test_a_source_that_is_missing_is_one_message(miniature: Path) -> None:
    (miniature / "recordings" / "numbers" / "a.txt").unlink()
    code, _, err = said(wamflow(miniature, "snapshot"))
    assert code == 10 and "empty" in err
    assert not (miniature / "inputs").exists()


def test_options_for_a_recording_that_is_there_are_not_used_in_silence(miniature: Path) -> None:
    (miniature / "recordings" / "demo").mkdir()
    values = miniature / "params.yaml"
    values.write_text(values.read_text().replace("temperature: 2.0", "temperature: cold"))
    code, _, err = said(wamflow(miniature, "demo", "--episodes", "7", "--tasks", "reach"))
    assert code == 10, "no run is needed to see it"
    where = miniature / "recordings" / "demo"
    assert err.startswith(f"{where} is there already; not used: --episodes, --tasks\n")
    _, _, err = said(wamflow(miniature, "demo"))
    assert "not used" not in err


SUMMARY = {
    "run": "one", "seconds": 1.0, "stages": {}, "reports": {}, "branch": "run/one",
    "commit": "0" * 40, "model": "wam@v0.0.1", "model_existed": False,
}  # fmt: skip


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_next_commands_can_be_typed_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """`make demo` puts nothing on PATH; another installation does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ("other" if elsewhere else ".venv")))
    lines = summaries.text(SUMMARY).split("next\n")[1].splitlines()
    program = "wamflow" if elsewhere else ".venv/bin/wamflow"
    assert [line.split()[:2] for line in lines] == [
        [program, "trace"],
        [program, "run"],
        [program, "up"],
    ]
    assert len({line.index(line.split("   ")[-1].strip()) for line in lines}) == 1, lines


def test_what_a_captioning_model_cost_and_left_out_is_said() -> None:
    report = {"captions": 12, "levels": {"task": 3, "action": 3}, "flagged": 1}
    assert summaries._captioning(report) == "12 captions on 2 levels, 1 flagged by checks"
    more = report | {"fallbacks": {"openai: reply too long": 2, "openai: x": 1}, "cost_usd": 1.234}
    assert summaries._captioning(more).endswith("nothing usable, 1.23 USD")
    assert ", 3 by rules" in summaries._captioning(more)
