"""The contract that all stages keep: light forms, typed values, one command line, whole outputs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import params
from components.__main__ import STAGES
from components.errors import OutOfSpaceError, UserError, WamflowError
from components.outputs import sha256_folder, whole_folder, write_json

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "sklearn", "great_expectations", "wandb", "matplotlib")


def components(*arguments: str, cwd: Path, failure: Path | None = None) -> tuple[int, str]:
    """(exit code, standard error) of the stages' command line."""
    env = (
        os.environ
        | {"PYTHONPATH": str(ROOT)}
        | ({"WAMFLOW_FAILURE": str(failure)} if failure else {})
    )
    command = [sys.executable, "-m", "components", *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_form_imports_nothing_heavy() -> None:
    code = "import sys\n" + "".join(f"import components.{s}.stage\n" for s in STAGES)
    code += f"print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_every_value_stands_in_params_yaml_once(stage: str) -> None:
    config = importlib.import_module(f"components.{stage}.stage").Config
    values = params.load(ROOT / "params.yaml")
    params.section(values, stage, config)
    for name, field in config.model_fields.items():
        assert field.is_required(), f"{stage}.{name} has a default beside params.yaml"
        assert field.description or name == "model", f"{stage}.{name} has no description"
    broken = {**values, stage: {**values[stage], "no_such_key": 1}}
    broken[stage].pop(next(iter(values[stage])))
    with pytest.raises(UserError, match=f"{stage}.no_such_key") as caught:
        params.section(broken, stage, config)
    assert f"{stage}.{next(iter(values[stage]))}: missing" in str(caught.value)


def test_wrong_types_are_named_with_what_was_got() -> None:
    from components.sampling.stage import Config

    values = params.load(ROOT / "params.yaml")
    values["sampling"]["temperature"] = "warm"
    with pytest.raises(UserError, match=r"sampling\.temperature: .*number.* \(got 'warm'\)"):
        params.section(values, "sampling", Config)


def test_the_command_line_says_what_was_wrong(tmp_path: Path) -> None:
    failure = tmp_path / "failure.json"
    code, said = components("fly", cwd=tmp_path, failure=failure)
    assert code == UserError.exit_code and "unknown stage 'fly'" in said and "Traceback" not in said
    assert json.loads(failure.read_text())["kind"] == "user"
    code, said = components("segmentation", "one", cwd=tmp_path)
    assert code == UserError.exit_code and "expected paths episodes corrections events; got" in said
    code, said = components("segmentation", "a", "b", "c", cwd=tmp_path)
    assert code == UserError.exit_code and "params.yaml: no such file" in said
    (tmp_path / "params.yaml").write_text("segmentation: [")
    code, said = components("segmentation", "a", "b", "c", cwd=tmp_path)
    assert code == UserError.exit_code and "not valid YAML" in said


def test_a_missing_input_is_one_message_and_leaves_no_output(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "said.jsonl").touch()
    code, said = components("segmentation", "episodes", "said.jsonl", "events", cwd=tmp_path)
    assert code == 11 and "episodes/manifest.parquet: no such file" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["params.yaml", "said.jsonl"]


def test_outputs_are_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "events"
    with whole_folder(target) as out:
        write_json(out / "a.json", {"x": 1})
    before = sha256_folder(target)
    with pytest.raises(RuntimeError), whole_folder(target) as out:
        write_json(out / "a.json", {"x": 2})
        raise RuntimeError("killed in the middle")
    assert sha256_folder(target) == before
    leftover = tmp_path / ".events.partial"
    leftover.mkdir()
    (leftover / "old.json").write_text("half")
    with whole_folder(target) as out:
        assert list(out.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["events"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_said_and_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutOfSpaceError, match="no space left"), whole_folder(tmp_path / "x") as out:
        (out / "a").write_text("kept?")
        with Path("/dev/full").open("w") as full:
            full.write("x" * 10_000)
            full.flush()
    assert list(tmp_path.iterdir()) == []


def test_every_failure_has_a_code_of_its_own() -> None:
    kinds = [k for k in WamflowError.__subclasses__() if k.__module__ == "components.errors"]
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    assert all(0 < kind.exit_code < 126 for kind in kinds)


def test_the_graph_and_the_command_line_agree() -> None:
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(graph) == list(STAGES)
    for name, stage in graph.items():
        assert stage["cmd"].startswith(f"python -m components {name} ")
        assert stage["params"] == [name] and stage["meta"]["pod"] in ("cpu", "gpu", "train")
