"""`params.yaml`: one section per stage, read into its Config; every wrong key is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from components.errors import UserError

C = TypeVar("C", bound=BaseModel)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is fast; not every build has it


def load(path: Path) -> dict[str, dict[str, Any]]:
    """The whole file: {section: {key: value}}. UserError when it is missing or no mapping."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; expected the values of all stages. "
            "Run from the project folder, or restore it with `git checkout params.yaml`."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text; {error}. Save it as UTF-8.") from None
    try:
        values = yaml.load(text, Loader=LOADER)  # noqa: S506  # a safe one
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise UserError(f"{path}: expected a mapping of sections, one for each stage.")
    return values


def section(values: dict[str, Any], stage: str, config: type[C], where: str = "params.yaml") -> C:
    """The Config of one stage. UserError lists every wrong, missing and unknown key by its path."""
    if stage not in values:
        raise UserError(f"{where}: section {stage!r} is missing; expected one for each stage.")
    try:
        return config.model_validate(values[stage])
    except ValidationError as error:
        lines = [
            f"  {stage}.{'.'.join(str(part) for part in e['loc'])}: {e['msg']} (got {e['input']!r})"
            * (e["type"] != "missing")
            or f"  {stage}.{'.'.join(str(part) for part in e['loc'])}: missing"
            for e in error.errors()
        ]
        raise UserError(
            f"{where}: {len(lines)} wrong value(s); correct them and run again:\n"
            + "\n".join(lines)
        ) from None
