"""Registration: the model folder that gets a version, or a refusal that lists every reason.

The folder holds all that a policy needs, a model card and digests that tie it to the plan, the
checkpoint and the evaluation. The flow then commits and tags it; equal content has equal bytes
here, so it is the version that exists already.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pydantic import BaseModel, Field

from components import outputs
from components.errors import DataError


class Config(BaseModel, frozen=True, extra="forbid"):
    """What is registered, and what it takes."""

    model_name: str = Field(
        pattern=r"^[a-z][a-z0-9-]*[a-z0-9]$", description="Name in the registry, as GTO allows it."
    )
    licence: str = Field(min_length=1, description="SPDX identifier of the weights' licence.")
    require_above_baselines: bool = Field(
        description="Refuse a model whose closed-loop success is not shown to beat the baselines."
    )


class Report(BaseModel):
    """What was packed."""

    model_name: str
    weights_sha256: str
    passport_sha256: str = Field(description="Digest of all files; equal for equal content.")
    files: int
    bytes: int
    result: str = Field(description="The evaluation in one sentence.")


def run(
    checkpoint: Path, plan: Path, evaluation: Path, passport: Path, *, config: Config
) -> Report:
    """Write the passport; DataError with all reasons when the chain of digests is broken."""
    from components.registration import card, chain

    if broken := chain.reasons(checkpoint, plan, evaluation, config.require_above_baselines):
        lines = "\n".join(f"  {reason}" for reason in broken)
        raise DataError(
            f"{passport}: refused, {len(broken)} reason(s); run `dvc repro` to bring plan, "
            f"checkpoint, trials and evaluation together again:\n{lines}"
        )
    with outputs.whole_folder(passport) as out:
        for name in chain.CARRIED:
            _place(checkpoint / name, out / name)
        text = card.write(checkpoint, plan, evaluation, config.model_name, config.licence)
        (out / "README.md").write_text(text)
        inputs = {"checkpoint": checkpoint, "plan": plan, "evaluation": evaluation}
        files = _digests(out)
        digests = {
            "model_name": config.model_name,
            "files": files,
            "initial_weights": chain.initial_weights(checkpoint),
            "inputs": {
                f"{name}/{file}": digest
                for name, folder in inputs.items()
                for file, digest in _digests(folder).items()
            },
        }
        outputs.write_json(out / "digests.json", digests)
    written = [path for path in passport.rglob("*") if path.is_file()]
    return Report(
        model_name=config.model_name,
        weights_sha256=files["model.safetensors"],
        passport_sha256=outputs.sha256_folder(passport),
        files=len(written),
        bytes=sum(path.stat().st_size for path in written),
        result=chain.read_json(evaluation / "results.json")["result"],
    )


def _place(source: Path, target: Path) -> None:
    """The same file by hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _digests(folder: Path) -> dict[str, str]:
    """{path below the folder: sha256} of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): outputs.sha256(path) for path in files}
