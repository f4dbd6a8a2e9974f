"""What a training starts from: `inputs/init.json`, by digest, so that lineage reaches the weights.

    {"video": {"from": "/weights/Wan2.1/transformer", "sha256": {"config.json": "..", ..}},
     "vae": {..}, "text": {..}, "model": {..}, "vlm": {..}, "lm": {..}, "staircase": {..}}

Every part may be missing; `{}` starts from random numbers, with the offline encoders. `video` is a
Wan transformer, `vae` its frozen VAE, `text` a folder with UMT5's `text_encoder` and `tokenizer`,
`model` a checkpoint or a registered version of ours, whose tower of the same sizes goes on. `vlm`
and `lm` are the large and the small frozen Qwen3.5 of the stage staircase; `vlm` and `staircase`,
that stage's checkpoint, are for a model that acts on its states (words staircase).
`python -m components.pretraining.initial video=FOLDER ..` prints the file. Safetensors only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.errors import DataError, UserError, WamflowError
from components.outputs import sha256
from components.weights import weights

PARTS = ("model", "video", "vae", "text", "vlm", "lm", "staircase")
Initial = dict[str, dict[str, Any]]  # part -> {"from": address, "sha256": {file: digest}}


def read(path: Path) -> Initial:
    """The declared parts, their files verified. UserError for another form or missing weights.

    DataError, which lists every file that differs, when weights are not those that were declared.
    """
    declared = _declared(path)
    for part, entry in declared.items():
        expected, got = entry["sha256"], listed(part, Path(entry["from"]))
        wrong = sorted(n for n in expected.keys() | got.keys() if expected.get(n) != got.get(n))
        if wrong:
            said = "; ".join(
                f"{n}: expected {expected.get(n, 'no such file')}, got {got.get(n, 'no such file')}"
                for n in wrong
            )
            raise DataError(
                f"{path}: {part}: {entry['from']}: {said}. Fetch the weights that were declared "
                "again, or declare these."
            )
    return declared


def listed(part: str, folder: Path) -> dict[str, str]:
    """sha256 of every file that is opened for a part, by its path in the folder."""
    if part in ("model", "staircase"):
        names = ["config.json", "model.safetensors"]
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"{folder}: expected a checkpoint of ours with {' and '.join(names)}; "
                f"{' and '.join(missing)} is missing."
            )
        return {name: sha256(folder / name) for name in names}
    if part in ("vlm", "lm"):
        from components.reasoning import files

        return files(folder)
    if part != "text":
        return weights(folder).digests()
    found = {f"text_encoder/{n}": d for n, d in weights(folder / "text_encoder").digests().items()}
    tokenizer = sorted(p for p in (folder / "tokenizer").rglob("*") if p.is_file())
    if not tokenizer:
        raise UserError(f"{folder / 'tokenizer'}: no such folder; expected UMT5's tokenizer.")
    return found | {p.relative_to(folder).as_posix(): sha256(p) for p in tokenizer}


def digests(initial: Initial) -> dict[str, dict[str, str]]:
    """What shapes a training; where the files lie does not."""
    return {part: entry["sha256"] for part, entry in sorted(initial.items())}


def _declared(path: Path) -> Initial:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected JSON, {{}} to start from random numbers: {error}"
        ) from None
    wrong = [f"expected an object, got {type(value).__name__}"] * (not isinstance(value, dict))
    for part, entry in value.items() if isinstance(value, dict) else ():
        if part not in PARTS:
            wrong.append(f"{part}: unknown; expected one of {', '.join(PARTS)}")
        elif not _is_entry(entry):
            wrong.append(f'{part}: expected {{"from": folder, "sha256": {{file: digest}}}}')
        elif not Path(entry["from"]).is_absolute():  # runs have folders of their own
            wrong.append(f"{part}: expected an absolute folder, got {entry['from']}")
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}.")
    return dict(value)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or set(entry) != {"from", "sha256"}:
        return False
    files = entry["sha256"]
    return (
        isinstance(entry["from"], str)
        and isinstance(files, Mapping)
        and bool(files)
        and all(isinstance(d, str) and len(d) == 64 for d in files.values())
    )


def _check_stays(place: Path) -> None:
    """UserError for a folder in the project's `data/`, which is gone when the stage reads it."""
    if place.is_relative_to(Path("data").resolve()):
        raise UserError(
            f"{place}: expected a folder outside the project's data/: DVC removes its outputs "
            "before a stage runs. Copy the checkpoint elsewhere and name the copy."
        )


def main(given: list[str]) -> int:
    """Print the file for `part=folder` ..; the exit code says a failure's class."""
    try:
        found: Initial = {}
        for argument in given:
            part, _, folder = argument.partition("=")
            if part not in PARTS or not folder:
                raise UserError(f"{argument}: expected one of {', '.join(PARTS)}, =, a folder.")
            place = Path(folder).resolve()
            _check_stays(place)
            found[part] = {"from": str(place), "sha256": listed(part, place)}
    except WamflowError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, indent=2, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
