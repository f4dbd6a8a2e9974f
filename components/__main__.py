"""`python -m components STAGE PATH...`: the one small command line of all stages.

Values come from `params.yaml` in the current folder, the report goes to `metrics/<stage>.json`. The
exit code is the failure's class (`errors.py`); where `WAMFLOW_FAILURE` names a file, the class and
the message are written there too, because `dvc repro` turns every failure into 255.
"""

from __future__ import annotations

import os
import sys

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # another number of threads gives other bytes

import importlib
import inspect
import json
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components import params
from components.errors import OutOfSpaceError, UserError, WamflowError
from components.outputs import is_full_disk, write_json

STAGES = (
    "ingestion",
    "segmentation",
    "captioning",
    "clustering",
    "sampling",
    "pretraining",
    "evaluation",
    "registration",
)
WITHOUT_PANDAS = {  # stages that never touch it, and what of theirs would import it
    "segmentation": (),
    "captioning": (),
    "clustering": ("sklearn.cluster",),
    "sampling": (),
}


class _Absent:
    """Nothing of pandas is found."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is left out", name=name)


def keep_pandas_out(modules: Iterable[str] = ()) -> None:
    """Let pyarrow and these modules look for pandas, which they do once, and find none.

    They would import it, pyarrow with its first array: 0.2 s, a third of such a stage when little
    is new.
    """
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        import pyarrow as pa

        pa.array([0])
        for module in modules:
            importlib.import_module(module)
    finally:
        sys.meta_path.remove(absent)


def run_stage(stage: str, paths: list[str]) -> None:
    """Run one stage with its section of `params.yaml` and write its report."""
    if stage not in STAGES:
        raise UserError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}.")
    if stage in WITHOUT_PANDAS:
        keep_pandas_out(WITHOUT_PANDAS[stage])
    module = importlib.import_module(f"components.{stage}.stage")
    wanted = [n for n in inspect.signature(module.run).parameters if n != "config"]
    if len(paths) != len(wanted):
        raise UserError(
            f"{stage}: expected paths {' '.join(wanted)}; got {' '.join(paths) or 'none'}."
        )
    config = params.section(params.load(Path("params.yaml")), stage, module.Config)
    report = module.run(*map(Path, paths), config=config)
    if report is not None:  # ranks other than 0 have none
        write_json(Path("metrics") / f"{stage}.json", report.model_dump(mode="json"))


def main(arguments: list[str]) -> int:
    """Exit code of the stage; the message of a failure goes to standard error."""
    try:
        if not arguments:
            raise UserError(
                f"usage: python -m components STAGE PATH...; stages: {', '.join(STAGES)}"
            )
        run_stage(arguments[0], arguments[1:])
    except WamflowError as error:
        return failed(error)
    except Exception as error:
        if is_full_disk(error):
            return failed(OutOfSpaceError(f"{arguments[0]}: no space left on the disk; make room."))
        return crashed(error)
    return 0


def failed(error: WamflowError) -> int:
    """Say an expected failure in one message."""
    print(f"error ({error.kind}): {error}", file=sys.stderr)
    record_failure(error.kind, str(error))
    return error.exit_code


def crashed(error: BaseException) -> int:
    """A crash is a crash: keep the whole traceback."""
    traceback.print_exception(error)
    record_failure("crash", f"{type(error).__name__}: {error}")
    return 1


def record_failure(kind: str, message: str) -> None:
    """Leave the failure's class where the supervisor looks for it."""
    if path := os.environ.get("WAMFLOW_FAILURE"):
        Path(path).write_text(json.dumps({"kind": kind, "message": message}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
