"""Reads RLDS data sets as TFDS writes them: TFRecord files, one tf.train.Example an episode.

`features.json` says what is in an episode; TensorFlow is not needed. Pictures are JPEG or PNG files
and become one film for each camera. Source: google-research/rlds, tensorflow/datasets.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from components.ingestion import arrays, columns, metadata, pictures, tfrecord, who
from components.ingestion.columns import Signal
from components.ingestion.raw import Layout, RawEpisode, relative_s
from components.ingestion.reasons import Problem, Reason
from components.ingestion.source import Source
from components.packets import Span

RECORDS = re.compile(r"\.tfrecord(?:-\d+-of-\d+)?$")
SPLIT = re.compile(r"-(\w+)\.tfrecord")
RATES_HZ = {"bridge": 5.0, "fractal": 3.0, "rt1": 3.0, "droid": 15.0}  # as their papers say
RATE_HZ = 10.0
MAX_ROWS = 1_000_000
SENTENCES = ("language_instruction", "natural_language_instruction", "instruction", "task")
ENDS = ("is_last", "is_terminal")


def holds(source: Source) -> bool:
    """Whether the source has a description of features and files of records."""
    return _features_path(source) is not None and any(map(RECORDS.search, source.listed))


def _features_path(source: Source) -> str | None:
    return next((p for p in sorted(source.listed) if p.rsplit("/", 1)[-1] == "features.json"), None)


class Reader:
    """All episodes of all splits, in the order of their files."""

    format = "RLDS (TFDS TFRecord)"

    def __init__(self, source: Source, min_camera_share: float) -> None:
        self.source = source
        self._found: list[str] = []
        self._spec = self._features()
        self._places: list[tuple[str, int, tfrecord.Place | Problem]] = []
        for path in sorted(filter(RECORDS.search, source.listed), key=arrays.natural):
            self._places += self._index(path)
        self.indices = list(range(len(self._places)))
        self._films = pictures.Films(source)
        self._ends: dict[int, list[str]] = {}  # which marks of an end an episode has set
        self._cameras = {
            columns.camera(key.rsplit("/", 1)[-1]): key
            for key, spec in self._spec.items()
            if key.startswith("steps/") and spec["kind"] == "image"
        }
        self._state, self._action = self._choose()
        self._fps = self._rate()
        self.layout = Layout(
            robot_type=arrays.robot(self._name(), source.name),
            fps=self._fps,
            state_names=self._state.names,
            action_names=self._action.names,
            cameras=tuple(sorted(self._cameras)),
            taken=(self._state.columns, self._action.columns),
        )

    @property
    def warnings(self) -> list[str]:
        """What was inferred, and what the episodes read so far have in common."""
        never = [
            end
            for end in ENDS
            if f"steps/{end}" in self._spec
            and self._ends
            and not any(end in ends for ends in self._ends.values())
        ]
        said = [f"{' and '.join(never)} never set in {len(self._ends)} episodes"] if never else []
        return self._found + said

    def read(self, index: int) -> RawEpisode:
        """One episode; what cannot be read is said in its `problem`."""
        path, number, place = self._places[index]
        uri = f"{self.source.uri}/{path}#{number}"
        version = self.version(index)
        if isinstance(place, Problem):
            return RawEpisode(index, uri, version, problem=place)
        try:
            found = tfrecord.features(tfrecord.read(self.source.file(path), place))
        except (OSError, ValueError) as error:
            problem = Problem(Reason.UNREADABLE_DATA, f"{path}: {error}")
            return RawEpisode(index, uri, version, problem=problem)
        return self._episode(index, uri, version, found)

    def version(self, index: int) -> str:
        """Digest of the files that an episode is read from."""
        described = filter(None, [_features_path(self.source)])
        return self.source.version([self._places[index][0], *described])

    def identity(self, index: int) -> Any:
        """What decides all that `read` gives but address, version and task."""
        path, number, _ = self._places[index]
        digest = self.source.listed[path].version
        signals = [self._state.columns, self._state.widths, self._action.columns]
        place = [path, number, digest]
        return [*place, signals, self._action.widths, self._cameras, self._fps, self._spec]

    def spans(self, index: int) -> dict[str, Span] | None:
        """The films of an episode by camera, where they are still at hand."""
        return self._films.known(self.identity(index), self._cameras)

    def recall(self, index: int, notes: dict[str, Any]) -> str | None:
        """Take note of an episode that an earlier run read; its task."""
        self._ends[index] = notes.get("ends", [])
        return notes.get("text")

    def who(self, index: int, notes: dict[str, Any]) -> dict[str, str]:
        """Robot and operator by the episode's `episode_metadata`."""
        return dict(notes.get("who", {}))

    def _episode(self, index: int, uri: str, version: str, found: dict[str, Any]) -> RawEpisode:
        missing = [k for s in (self._state, self._action) for k in s.columns if k not in found]
        if missing or not self._state.columns or not self._action.columns:
            what = f"no {missing}" if missing else "no state or no action"
            problem = Problem(Reason.MISSING_COLUMN, f"{what} among {sorted(found)[:12]}")
            return RawEpisode(index, uri, version, problem=problem)
        state, action = (
            signal.join([self._matrix(key, found[key]) for key in signal.columns])
            for signal in (self._state, self._action)
        )
        both = arrays.same_rows(index, uri, version, state, action)
        if isinstance(both, RawEpisode):
            return both
        rows = len(both[0])
        videos: dict[str, Span] = {}
        of = self.identity(index)
        try:
            for camera, key in self._cameras.items():
                if files := found.get(key):
                    film = _film(key, files, rows)
                    videos[camera] = self._films.span(of, camera, film, self._fps)
        except (OSError, ValueError) as error:
            problem = Problem(Reason.UNREADABLE_VIDEO, str(error))
            return RawEpisode(index, uri, version, problem=problem)
        ends = [e for e in ENDS if np.any(found.get(f"steps/{e}", np.zeros(1)))]
        notes: dict[str, Any] = {"ends": ends, "text": _sentence(found), "who": _who(found)}
        return RawEpisode(
            index=index,
            uri=uri,
            version=version,
            task=self.recall(index, notes),
            notes=notes,
            timestamps_s=relative_s(np.arange(rows) / self._fps),
            state=both[0],
            action=both[1],
            videos=videos,
        )

    def _index(self, path: str) -> list[tuple[str, int, tfrecord.Place | Problem]]:
        """Places of a file's records; where it breaks off, a problem in place of the rest."""
        places, fault = tfrecord.places(self.source.file(path))
        found: list[tuple[str, int, tfrecord.Place | Problem]] = [
            (path, number, place) for number, place in enumerate(places)
        ]
        if fault is not None:
            problem = Problem(Reason.UNREADABLE_DATA, f"{path}: {fault}; what follows is lost")
            found.append((path, len(places), problem))
        return found

    def _features(self) -> dict[str, dict[str, Any]]:
        path = _features_path(self.source)
        assert path is not None, "holds() saw it"
        try:
            tree = json.loads(self.source.file(path).read_bytes())
            found = dict(_flat(tree, ""))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise metadata.damaged(self.source, path, "the features of a TFDS data set") from error
        if not any(key.startswith("steps/") for key in found):
            raise metadata.damaged(self.source, path, "features below `steps`")
        return found

    def _choose(self) -> tuple[Signal, Signal]:
        """State and action by the first episode that can be read."""
        for path, _, place in self._places:
            if isinstance(place, Problem):
                continue
            try:
                found = tfrecord.features(tfrecord.read(self.source.file(path), place))
            except (OSError, ValueError):
                continue
            numeric = {
                key: values
                for key, spec in self._spec.items()
                if key.startswith("steps/")
                and spec["kind"] == "numbers"
                and key in found
                and (values := self._matrix(key, found[key])) is not None
            }
            said = self.source.said
            state = arrays.find("state", numeric, said.state)
            action = arrays.find("action", numeric, said.action)
            plain = ("steps/is_", "steps/reward", "steps/discount")
            keys = [key for key in numeric if not key.startswith(plain)]
            self._found += arrays.name_warnings(state, action)
            self._found += arrays.not_taken(keys, state, action)
            return state, action
        return Signal((), (), ()), Signal((), (), ())

    def _matrix(self, key: str, values: Any) -> npt.NDArray[np.float64] | None:
        """(T, D); None when the numbers are no whole rows or too many."""
        width = self._spec[key]["width"]
        if not isinstance(values, np.ndarray) or width < 1 or len(values) % width:
            return None
        if len(values) // width > MAX_ROWS:
            return None
        return values.reshape(-1, width).astype(np.float64)

    def _name(self) -> str:
        info = next((p for p in self.source.listed if p.endswith("dataset_info.json")), None)
        if info is None:
            return self.source.name
        try:
            values = json.loads(self.source.file(info).read_bytes())
            self._check_counts(values)
            return str(values.get("name", self.source.name))
        except (ValueError, AttributeError, TypeError, KeyError):
            return self.source.name

    def _check_counts(self, info: dict[str, Any]) -> None:
        have = Counter(match[1] for p, _, _ in self._places if (match := SPLIT.search(p)))
        for split in info.get("splits", []):
            declared = sum(map(int, split.get("shardLengths", [])))
            if declared != have[split["name"]]:
                line = f"dataset_info.json: split {split['name']} has {declared} episodes, "
                self._found.append(f"{line}{have[split['name']]} are here")

    def _rate(self) -> float:
        """RLDS has no clock; a rate from the data set's name."""
        if self.source.said.fps is not None:
            return self.source.said.fps
        text = f"{self.source.name} {' '.join(list(self.source.listed)[:50])}".lower()
        for name, rate in RATES_HZ.items():
            if name in text:
                self._found.append(f"no clock in RLDS; {rate:g} Hz, the rate of {name} data")
                return rate
        self._found.append(f"no clock in RLDS; {RATE_HZ:g} Hz assumed")
        return RATE_HZ


def _flat(node: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Leaves of features.json by the name that the Example uses."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _flat(child, f"{key}/{name}" if key else name)
    elif "sequence" in node:
        yield from _flat(node["sequence"]["feature"], key)
    elif "image" in node:
        yield key, {"kind": "image", "width": 1}
    elif "tensor" in node:
        sides = node["tensor"].get("shape", {}).get("dimensions", [])
        width = 1
        for side in sides:
            width *= int(side)
        text = node["tensor"].get("dtype") in ("string", "object")
        yield key, {"kind": "text" if text else "numbers", "width": width}
    else:
        yield key, {"kind": "text", "width": 1}


def _film(key: str, files: Any, rows: int) -> Iterator[pictures.Picture]:
    if not isinstance(files, list) or abs(len(files) - rows) > 1:
        raise ValueError(f"{key}: {len(files)} pictures for {rows} rows")
    return (pictures.decode(file) for file in files[:rows])


def _sentence(found: dict[str, Any]) -> str | None:
    """The first sentence of the episode, on the step, its observation or the episode."""
    for name in SENTENCES:
        for place in ("steps/", "steps/observation/", "episode_metadata/"):
            values = found.get(place + name)
            if isinstance(values, list) and values:
                text: str = values[0].decode(errors="replace").strip()
                if text:
                    return text
    return None


def _who(found: dict[str, Any]) -> dict[str, str]:
    place = "episode_metadata/"
    return who.of({k.removeprefix(place): v for k, v in found.items() if k.startswith(place)})
