"""Initial weights from folders as Hugging Face libraries write them: config.json and safetensors.

Never a pickle: a `.bin`, `.pt` or `.ckpt` file runs code when it is opened, so it is not opened.
Shards and their index are checked against each other before a number is read, and digests say what
was loaded, so that lineage reaches the weights a model started from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, UserError
from components.outputs import sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.wan import VideoShape, WanTower

INDEX = ".safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WAN_CLASS = "WanTransformer3DModel"


@dataclass(frozen=True)
class Weights:
    """A folder whose files are there and agree with each other."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, Path]  # parameter -> the shard that holds it

    def digests(self) -> dict[str, str]:
        """sha256 of config.json and of every shard, by file name."""
        paths = {self.folder / "config.json", *self.files.values()}
        return {path.name: sha256(path) for path in sorted(paths)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, from the headers alone."""
        return {
            name: tuple(shard.get_slice(name).get_shape())
            for _, shard, names in self._opened()
            for name in names
        }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, one in memory at a time."""
        for _, shard, names in self._opened():
            for name in names:
                yield name, shard.get_tensor(name)

    def _opened(self) -> Iterator[tuple[Path, Any, list[str]]]:
        for path in sorted(set(self.files.values())):
            with _open(path) as shard:
                yield path, shard, sorted(n for n, file in self.files.items() if file == path)


def weights(folder: Path) -> Weights:
    """Open a folder, or the folder `transformer` of a whole pipeline.

    UserError where there is no such folder or nothing but pickles, DataError where its files
    contradict each other.
    """
    folder = next(
        (f for f in (folder, folder / "transformer") if (f / "config.json").is_file()), folder
    )
    config = _json(folder / "config.json")
    indices = sorted(folder.glob(f"*{INDEX}"))
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        got = f"only pickles ({', '.join(pickles)}), which are never opened" if pickles else "none"
        raise UserError(
            f"{folder}: expected weights as .safetensors files, got {got}. "
            "Publishers offer both; fetch the safetensors."
        )
    if len(indices) > 1 or (len(shards) > 1 and not indices):
        names = ", ".join(p.name for p in indices or shards)
        raise DataError(
            f"{folder}: expected one model, a file or shards with an index, got {names}."
        )
    files = _indexed(folder, indices[0]) if indices else dict.fromkeys(_keys(shards[0]), shards[0])
    return Weights(folder, config, files)


def video_shape(config: Mapping[str, Any], cameras: int) -> VideoShape:
    """The video tower that continues a published `config.json`; UserError for another kind."""
    from models.wan import VideoShape

    fixed = {
        "_class_name": WAN_CLASS, "patch_size": [1, 2, 2], "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads", "image_dim": None, "added_kv_proj_dim": None,
        "out_channels": config.get("in_channels"),
    }  # fmt: skip
    names = {
        "num_attention_heads": "heads", "attention_head_dim": "head_width", "num_layers": "depth",
        "ffn_dim": "feed_width", "in_channels": "latent_channels", "text_dim": "text_width",
        "freq_dim": "time_width", "eps": "eps",
    }  # fmt: skip
    wrong = [
        f"{key}: expected {value!r}, got {config.get(key)!r}"
        for key, value in fixed.items()
        if config.get(key) != value
    ]
    wrong += [f"{key}: expected a number, got none" for key in names if key not in config]
    if wrong:
        raise UserError(
            f"config.json of {WAN_CLASS}: {'; '.join(wrong)}. Wan 2.1 T2V and Wan 2.2 TI2V fit."
        )
    return VideoShape(**{ours: config[theirs] for theirs, ours in names.items()}, cameras=cameras)


def load_wan(tower: WanTower, source: Weights) -> dict[str, str]:
    """Put published weights into a video tower; returns their digests.

    What we add to Wan keeps its start, which changes nothing. All is checked before the first
    number is copied: UserError for another shape, DataError for missing or unknown parameters.
    """
    from models import wan_keys

    wanted = video_shape(source.config, tower.shape.cameras)
    if wanted != tower.shape:
        raise UserError(f"{source.folder}: expected weights of {tower.shape}, got {wanted}.")
    parameters = dict(tower.named_parameters())
    got = {wan_keys.ours(name): shape for name, shape in source.shapes().items()}
    needed = {n for n in parameters if not wan_keys.ADDED.fullmatch(n)}
    wrong = [
        *_named("missing", needed - got.keys()),
        *_named("unknown", got.keys() - needed),
        *(
            f"{n}: expected shape {tuple(parameters[n].shape)}, got {got[n]}"
            for n in sorted(needed & got.keys())
            if tuple(parameters[n].shape) != got[n]
        ),
    ]
    if wrong:
        raise DataError(f"{source.folder}: {'; '.join(wrong)}. These are other or broken weights.")
    for name, tensor in source.tensors():
        parameters[wan_keys.ours(name)].data.copy_(tensor)
    return source.digests()


def load_all(model: nn.Module, path: Path, besides: tuple[str, ...] = ()) -> None:
    """One of our files of weights into a model of the same sizes, whole or not at all.

    Parameters whose names begin with one of `besides` are no part of it, on either side.
    DataError, before the first number is copied, for a file that is none, for parameters that are
    missing, unknown or misshapen, and for NaN.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        every = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: expected a safetensors file, got: {error}") from error
    found = {n: t for n, t in every.items() if not n.startswith(besides)}
    parameters: dict[str, Tensor] = {
        n: p for n, p in model.named_parameters() if not n.startswith(besides)
    }
    problems = [f"{n}: missing" for n in sorted(parameters.keys() - found.keys())]
    problems += [f"{n}: unknown" for n in sorted(found.keys() - parameters.keys())]
    problems += [
        f"{n}: expected shape {tuple(parameters[n].shape)}, got {tuple(found[n].shape)}"
        for n in sorted(parameters.keys() & found.keys())
        if parameters[n].shape != found[n].shape
    ]
    problems += [f"{n}: NaN or infinite" for n, t in found.items() if not t.isfinite().all()]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(f"{path}: {'; '.join(problems[:5])}{more}.")
    for name, parameter in parameters.items():
        parameter.data.copy_(found[name])


def _named(what: str, names: Iterable[str], most: int = 5) -> list[str]:
    """One message that names the first few."""
    listed = sorted(names)
    if not listed:
        return []
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return [f"{len(listed)} {what} parameters: {', '.join(listed[:most])}{more}"]


def _indexed(folder: Path, index: Path) -> dict[str, Path]:
    """Parameter -> shard; DataError unless index and shards say the same."""
    listed = _json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
        raise DataError(f"{index}: expected weight_map, parameter names to file names, got none.")
    if outside := sorted({f for f in listed.values() if Path(f).name != f}):
        raise DataError(f"{index}: expected names of files beside it, got {', '.join(outside)}.")
    files = {name: folder / file for name, file in listed.items()}
    there = {name: path for path in sorted(set(files.values())) for name in _keys(path)}
    wrong = [
        *_named("missing", files.keys() - there.keys()),
        *_named("unlisted", there.keys() - files.keys()),
        *_named("misplaced", {n for n in files.keys() & there.keys() if files[n] != there[n]}),
    ]
    if wrong:
        raise DataError(f"{index}: {'; '.join(wrong)}. Fetch index and shards again.")
    return files


def _keys(path: Path) -> list[str]:
    with _open(path) as shard:
        return list(shard.keys())


def _open(path: Path) -> Any:
    """safetensors' reader; DataError for a file that is missing, cut short or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: expected a safetensors file, got: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a folder of weights with a config.json.")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, got: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value
