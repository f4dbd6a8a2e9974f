"""The values of a run: the form that people fill, what they changed, and the run's `params.yaml`.

A section of `params.yaml` becomes one parameter of the flow: the stage's `Config` with the values
of the section as defaults, so that the Prefect UI shows names, bounds, units and what is set now.
Only what differs from the form's defaults goes into a run, or what the command line says; an older
revision keeps its own values. In the form a mapping, like `segmentation.refinement`, is one value.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, create_model

from components import params
from components.errors import UserError

Changes = dict[str, dict[str, Any]]  # section -> name -> value; a nested one's is `outer.inner`


def form(project: Path) -> dict[str, BaseModel | dict[str, Any]]:
    """Section -> its Config with the values of `params.yaml` as defaults.

    A section that is no stage of `components` (somebody's own command) stays a plain mapping.
    UserError names every wrong value.
    """
    values = params.load(project / "params.yaml")
    _refuse_missing(project, values)
    return {
        name: _filled(name, params.section(values, name, config)) if config else dict(section)
        for name, section in values.items()
        for config in [_config(name)]
    }


def _refuse_missing(project: Path, values: Mapping[str, Any]) -> None:
    """Every section that `dvc.yaml` names must be there, or its stage would fail in the middle."""
    graph = yaml.safe_load((project / "dvc.yaml").read_text())
    named = {name for stage in graph["stages"].values() for name in stage.get("params", [])}
    if missing := sorted(name for name in named if isinstance(name, str) and name not in values):
        raise UserError(
            f"{project / 'params.yaml'}: sections {missing} are missing, which dvc.yaml names; got "
            f"{sorted(values)}. Restore them (`git diff params.yaml` shows what changed)."
        )


def _config(stage: str) -> type[BaseModel] | None:
    """`Config` of `components.<stage>.stage` or, for trials, `.settings`; if there is one."""
    if importlib.util.find_spec(f"components.{stage}") is None:
        return None
    for name in (f"components.{stage}.stage", f"components.{stage}.settings"):
        if importlib.util.find_spec(name) is not None:
            config: type[BaseModel] = importlib.import_module(name).Config
            return config
    return None


def _filled(section: str, values: BaseModel) -> BaseModel:
    """The same values in a model, named as the section, whose fields have them as defaults."""
    fields: dict[str, Any] = {}
    for name, field in type(values).model_fields.items():
        shown = copy.copy(field)
        shown.default = getattr(values, name)
        fields[name] = (field.annotation, shown)
    filled = create_model(section.capitalize(), __base__=type(values), **fields)
    return filled()


def plain(section: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A section as it stands in YAML."""
    return section.model_dump(mode="json") if isinstance(section, BaseModel) else dict(section)


def changed(defaults: Mapping[str, Any], chosen: Mapping[str, Any]) -> Changes:
    """What somebody chose that differs from the form's defaults."""
    found: Changes = {}
    for name, section in chosen.items():
        before = plain(defaults[name])
        different = {k: v for k, v in plain(section).items() if k not in before or before[k] != v}
        if different:
            found[name] = different
    return found


def chosen(form: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The form with changes filled in. UserError lists every unknown name or wrong value."""
    if wrong := unknown(form, changes):
        raise UserError(f"{len(wrong)} unknown value(s):\n" + "\n".join(wrong))
    filled: dict[str, Any] = {}
    for name, section in form.items():
        values = copy.deepcopy(plain(section))
        for path, value in changes.get(name, {}).items():
            _put(values, path, value)
        known = isinstance(section, BaseModel)
        filled[name] = params.section({name: values}, name, type(section)) if known else values
    return filled


def parse(assignments: Iterable[str]) -> Changes:
    """`sampling.temperature=0.5` as on the command line; values are YAML. UserError otherwise."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    found: Changes = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, name = path.strip().partition(".")
        if not (equals and dot and section and name):
            raise UserError(
                f"--set {assignment}: expected SECTION.NAME=VALUE, like sampling.temperature=0.5."
            )
        try:
            found.setdefault(section, {})[name] = YAML(typ="safe").load(text)
        except YAMLError as error:
            raise UserError(f"--set {assignment}: the value is not valid YAML: {error}") from None
    return found


def apply(path: Path, changes: Changes) -> None:
    """Set values in a `params.yaml`, comments and order kept. UserError lists all unknown names."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    document = yaml.load(path.read_text())
    if wrong := unknown(document, changes):
        raise UserError(f"{path}: {len(wrong)} unknown value(s):\n" + "\n".join(wrong))
    for section, values in changes.items():
        for name, value in values.items():
            _put(document[section], name, value)
    with path.open("w") as file:
        yaml.dump(document, file)


def unknown(known: Mapping[str, Any], changes: Changes) -> list[str]:
    """One line for each section or name that does not exist, with the nearest that does."""
    lines = []
    for section, values in changes.items():
        if section not in known:
            lines.append(_unknown(section, known))
            continue
        names = list(_names(plain(known[section])))
        lines += [
            _unknown(f"{section}.{n}", [f"{section}.{k}" for k in names])
            for n in values
            if n not in names
        ]
    return lines


def at(section: Mapping[str, Any], path: str) -> Any:
    """One value of a section, as `parse` and `apply` name it."""
    found, name = _place(section, path)
    return found[name]


def _put(section: Any, path: str, value: Any) -> None:
    """Set one value of a section in place."""
    found, name = _place(section, path)
    found[name] = value


def _place(values: Any, path: str) -> tuple[Any, str]:
    """The mapping that holds a value, and its name there; a name may hold dots itself."""
    outer = next((n for n in values if path.startswith(f"{n}.") and path not in values), None)
    return (values, path) if outer is None else _place(values[outer], path[len(outer) + 1 :])


def _names(values: Mapping[str, Any]) -> Iterator[str]:
    """All names of a section, those in mappings as `outer.inner`."""
    for name, value in values.items():
        yield name
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in _names(value))


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}."
    return f"  {name}: unknown; {meant}"
