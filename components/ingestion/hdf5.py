"""Reads HDF5 recordings: robomimic and Isaac Lab (`data/demo_0/...`), ALOHA (one file an episode).

Only hard links are followed: external links, external storage and virtual data sets would lead out
of the file. What an array holds is bounded by what is stored, so that absurd shapes are refused.
Formats: robomimic.github.io/docs/datasets/overview.html, tonyzhaozh/act `record_sim_episodes.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from components.ingestion import arrays, columns, magic, pictures, who
from components.ingestion.columns import Signal
from components.ingestion.raw import Layout, RawEpisode, relative_s
from components.ingestion.reasons import Problem, Reason
from components.ingestion.source import Source
from components.packets import Span

MAGIC = b"\x89HDF\r\n\x1a\n"
SUFFIXES = (".hdf5", ".h5")
DEPTH, OBJECTS = 8, 20_000  # of the tree of one file
FREE_BYTES, RATIO = 64 * 2**20, 2000  # an array may be larger than stored by so much (gzip: 1032)
SIGNAL_BYTES = 2**27
CHUNK_BYTES = 2**28  # of the unit that is unpacked at once
ROBOMIMIC_HZ, ALOHA_HZ = 20.0, 50.0  # the control rates of the two projects
BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError)
SENTENCE = re.compile(r"^(?:task|language_instruction|language_raw|instruction|lang)$")


def holds(source: Source) -> bool:
    """Whether one of the source's files is HDF5."""
    return bool(magic.files(source, MAGIC, SUFFIXES))


@dataclass(frozen=True)
class _Demo:
    """One episode: a group of a file, or why the file has none."""

    path: str
    group: str
    problem: Problem | None = None
    films: tuple[str, ...] = ()  # arrays of pictures
    who: dict[str, str] = field(default_factory=dict)


class Reader:
    """All episodes of the HDF5 files of a source, demonstrations in natural order."""

    def __init__(self, source: Source, min_camera_share: float) -> None:
        self.source = source
        self._attributes: dict[str, Any] = {}
        self._demos = [
            demo for path in magic.files(source, MAGIC, SUFFIXES) for demo in self._list(path)
        ]
        self.indices = list(range(len(self._demos)))
        aloha = any(demo.group == "/" and demo.problem is None for demo in self._demos)
        self.format = "HDF5, ALOHA" if aloha else "HDF5, robomimic / Isaac Lab"
        self._state = self._action = Signal((), (), ())
        self._films = pictures.Films(source)
        self._found: list[str] = []
        self._failures: dict[str, dict[int, bool]] = {}
        self._cameras: dict[str, str] = {}
        self._infer(min_camera_share)
        self._fps, clock = self._rate(aloha)
        self._task, said = self._sentence()
        self._found += [*clock, *said]
        text = (json.dumps(self._attributes, default=str), source.name)
        self.layout = Layout(
            robot_type="aloha" if aloha else arrays.robot(*text),
            fps=self._fps,
            state_names=self._state.names,
            action_names=self._action.names,
            cameras=tuple(sorted(self._cameras)),
            taken=(self._state.columns, self._action.columns),
        )

    @property
    def warnings(self) -> list[str]:
        """What was inferred, and what the episodes read so far say of themselves."""
        only = [path for path, failed in sorted(self._failures.items()) if all(failed.values())]
        return [
            *self._found,
            *(
                f"{p} holds failures only: success is false in all {len(self._failures[p])}"
                for p in only
            ),
        ]

    def read(self, index: int) -> RawEpisode:
        """One episode; what cannot be read is said in its `problem`."""
        demo = self._demos[index]
        uri = f"{self.source.uri}/{demo.path}#{demo.group.rsplit('/', 1)[-1]}"
        version = self.version(index)
        if demo.problem is not None:
            return RawEpisode(index, uri, version, problem=demo.problem)
        try:
            with self._opened(demo) as file:
                return self._read(index, uri, version, demo, file[demo.group])
        except BROKEN as error:
            problem = Problem(Reason.UNREADABLE_DATA, f"{demo.path}: {_said(error)}")
            return RawEpisode(index, uri, version, problem=problem)

    def version(self, index: int) -> str:
        """Digest of the file that an episode is read from."""
        return self.source.version([self._demos[index].path])

    def identity(self, index: int) -> Any:
        """What decides all that `read` gives but address, version and task."""
        demo = self._demos[index]
        digest = self.source.listed[demo.path].version
        signals = [self._state.columns, self._state.widths, self._action.columns]
        place = [demo.path, demo.group, digest]
        return [*place, signals, self._action.widths, self._cameras, self._fps]

    def spans(self, index: int) -> dict[str, Span] | None:
        """The films of an episode by camera, where they are still at hand."""
        return self._films.known(self.identity(index), self._cameras)

    def recall(self, index: int, notes: dict[str, Any]) -> str | None:
        """Take note of an episode that an earlier run read; its task."""
        if "success" in notes:
            path = self._demos[index].path
            self._failures.setdefault(path, {})[index] = not notes["success"]
        return notes.get("text") or self._task

    def who(self, index: int, notes: dict[str, Any]) -> dict[str, str]:
        """Robot and operator by the attributes of the demonstration, else of the file."""
        return self._demos[index].who

    def _read(
        self, index: int, uri: str, version: str, demo: _Demo, group: h5py.Group
    ) -> RawEpisode:
        found = dict(_datasets(group))
        missing = [k for s in (self._state, self._action) for k in s.columns if k not in found]
        if missing or not self._state.columns or not self._action.columns:
            what = f"no array {missing}" if missing else "no state or no action"
            problem = Problem(Reason.MISSING_COLUMN, f"{what} among {sorted(found)[:12]}")
            return RawEpisode(index, uri, version, problem=problem)
        state, action = (
            signal.join([_signal(found[key]) for key in signal.columns])
            for signal in (self._state, self._action)
        )
        both = arrays.same_rows(index, uri, version, state, action)
        if isinstance(both, RawEpisode):
            return both
        rows = len(both[0])
        success, text = _success(group), _text(group)
        notes = {"text": text} | ({} if success is None else {"success": success})
        task = self.recall(index, notes)
        failed = Problem(Reason.FAILED_DEMONSTRATION, "the recording says success is false")
        videos: dict[str, Span] = {}
        if success is not False:
            try:
                videos = self._videos(index, found, rows)
            except BROKEN as error:
                problem = Problem(Reason.UNREADABLE_VIDEO, _said(error))
                return RawEpisode(index, uri, version, problem=problem, notes=notes)
        return RawEpisode(
            index=index,
            uri=uri,
            version=version,
            task=task,
            notes=notes,
            timestamps_s=_clock(found, rows, self._fps),
            state=both[0],
            action=both[1],
            videos=videos,
            problem=failed if success is False else None,
        )

    def _list(self, path: str) -> list[_Demo]:
        """The demonstrations of one file. Never fails on what the file holds."""
        try:
            told = self.source.once(path, "demos", partial(self._look, path))
        except BROKEN as error:
            return [_Demo(path, "/", Problem(Reason.UNREADABLE_DATA, f"{path}: {_said(error)}"))]
        self._attributes |= told["attributes"]
        if told["missing"]:
            return [_Demo(path, "/", Problem(Reason.MISSING_COLUMN, f"{path}: {told['missing']}"))]
        return [_Demo(path, group, None, tuple(f), whose) for group, f, whose in told["demos"]]

    def _look(self, path: str) -> dict[str, Any]:
        """What one file holds: its attributes, and groups of demonstrations with their films."""
        with h5py.File(self.source.file(path), "r", locking=False) as file:
            attributes = _attributes(file)
            root, groups = _child(file, "data"), []
            if isinstance(root, h5py.Group):
                attributes |= _attributes(root)
                names = sorted(root.keys(), key=arrays.natural)
                groups = [f"/data/{n}" for n in names if isinstance(_child(root, n), h5py.Group)]
            whole = _child(file, "action") is not None and _child(file, "observations") is not None
            said = f"expected data/<demo>/actions, or action and observations; got {list(file)}"
            demos = groups or (["/"] if whole else [])
            return {
                "attributes": attributes,
                "demos": [
                    (name, _films(file[name]), who.of(_attributes(file[name]), attributes))
                    for name in demos
                ],
                "missing": "" if demos else said,
            }

    def _opened(self, demo: _Demo) -> h5py.File:
        return h5py.File(self.source.file(demo.path), "r", locking=False)

    def _infer(self, share: float) -> None:
        """State, action and cameras by the first demonstration that has them."""
        have: dict[str, int] = {}
        sound = [demo for demo in self._demos if demo.problem is None]
        for demo in sound:
            for key in demo.films:
                have[key] = have.get(key, 0) + 1
            if not (self._state.columns and self._action.columns):
                with suppress(*BROKEN), self._opened(demo) as file:
                    self._choose(dict(_datasets(file[demo.group])))
        for key, count in sorted(have.items()):
            if count < share * len(sound):
                self._found.append(
                    f"camera {key}: {count} of {len(sound)} episodes have it; dropped"
                )
            else:
                self._cameras[columns.camera(key.rsplit("/", 1)[-1])] = key

    def _choose(self, found: dict[str, h5py.Dataset]) -> None:
        rows = max((item.shape[0] for item in found.values() if item.ndim), default=0)
        numeric = {
            key: values
            for key, item in found.items()
            if not _is_film(key, item)
            and item.ndim
            and item.shape[0] in (rows, rows - 1)
            and np.issubdtype(item.dtype, np.number)
            and not key.startswith(("states/", "initial_state/"))
            and (values := _signal(item)) is not None
        }
        said = self.source.said
        self._state = arrays.find("state", numeric, said.state)
        self._action = arrays.find("action", numeric, said.action)
        left = arrays.not_taken(list(numeric), self._state, self._action)
        self._found += arrays.name_warnings(self._state, self._action) + left

    def _rate(self, aloha: bool) -> tuple[float, list[str]]:
        """The control rate, and a warning where nothing says it."""
        if self.source.said.fps is not None:
            return self.source.said.fps, []
        for key in ("control_freq", "fps", "frequency", "hz"):
            if (value := _number(self._attributes.get(key))) is not None and 0 < value <= 2000:
                return value, []
        step_s = _number(self._attributes.get("dt"))
        every = _number(self._attributes.get("decimation")) or 1.0
        if step_s is not None and 0 < step_s * every < 10:
            return 1 / (step_s * every), []
        rate = ALOHA_HZ if aloha else ROBOMIMIC_HZ
        return rate, [f"no clock and no rate in the file; {rate:g} Hz assumed"]

    def _sentence(self) -> tuple[str, list[str]]:
        name = str(self._attributes.get("env_name") or self._attributes.get("env") or "")
        words = arrays.sentence(name) or arrays.sentence(self.source.name)
        origin = f"the environment {name}" if arrays.sentence(name) else "the source's name"
        said = [f"no task sentence; {words!r} taken from {origin}"]
        return words, said if not self._any_text() else []

    def _any_text(self) -> bool:
        return any(SENTENCE.match(key) for key in self._attributes)

    def _videos(self, index: int, found: dict[str, h5py.Dataset], rows: int) -> dict[str, Span]:
        of = self.identity(index)
        return {
            camera: self._films.span(of, camera, _pictures(found[key], rows), self._fps)
            for camera, key in self._cameras.items()
            if key in found
        }


def _child(group: h5py.Group, name: str) -> Any:
    """What a hard link leads to; None for other links or where there is nothing."""
    if isinstance(group.get(name, getlink=True), h5py.HardLink):
        return group[name]
    return None


def _datasets(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Arrays that lie in this file, by path. ValueError when the tree is absurd."""
    if prefix.count("/") > DEPTH:
        raise ValueError(f"groups nested deeper than {DEPTH}")
    if len(group) > OBJECTS:
        raise ValueError(f"a group of {len(group)} objects; at most {OBJECTS} are read")
    for name in group:
        item = _child(group, name)
        if isinstance(item, h5py.Group):
            yield from _datasets(item, f"{prefix}{name}/")
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            if item.is_virtual or item.external:
                raise ValueError(f"{prefix}{name} refers to data outside the file; never followed")
            yield f"{prefix}{name}", item


def _check_bytes(item: h5py.Dataset) -> None:
    logical = int(np.prod(item.shape, dtype=object)) * item.dtype.itemsize
    stored = int(item.id.get_storage_size())
    if logical > max(FREE_BYTES, RATIO * stored):
        raise ValueError(f"{item.name}: shape {item.shape} with {stored} bytes stored is absurd")
    chunk = int(np.prod(item.chunks or (0,), dtype=object)) * item.dtype.itemsize
    if chunk > CHUNK_BYTES:
        raise ValueError(f"{item.name}: chunks of {item.chunks} unpack to {chunk} bytes each")


def _signal(item: h5py.Dataset) -> npt.NDArray[np.float64] | None:
    """(T, D), all dimensions after the first in one; None for a scalar."""
    _check_bytes(item)
    if item.ndim == 0 or not np.issubdtype(item.dtype, np.number):
        return None
    if item.size * item.dtype.itemsize > SIGNAL_BYTES:
        raise ValueError(f"{item.name}: {item.size} numbers are no signal")
    values = np.asarray(item[()], dtype=np.float64)
    return values.reshape(len(values), int(np.prod(values.shape[1:], dtype=np.int64)))


def _films(group: h5py.Group) -> list[str]:
    """Names of arrays of pictures; none where the tree is absurd, which reading says."""
    try:
        return [key for key, item in _datasets(group) if _is_film(key, item)]
    except BROKEN:
        return []


def _is_film(key: str, item: h5py.Dataset) -> bool:
    """(T, H, W, 3) pictures, or ALOHA's compressed ones: T files padded with zeros."""
    coloured = item.ndim == 4 and item.dtype == np.uint8 and item.shape[-1] in (1, 3, 4)
    packed = item.ndim == 2 and item.dtype == np.uint8 and "images/" in key
    return bool(coloured or packed)


def _pictures(item: h5py.Dataset, rows: int) -> Iterator[pictures.Picture]:
    _check_bytes(item)
    if abs(item.shape[0] - rows) > 1:
        raise ValueError(f"{item.name}: {item.shape[0]} pictures for {rows} rows")
    if item.ndim == 4:
        pictures.check_size(*item.shape[1:3])
    for row in range(min(rows, item.shape[0])):
        values = item[row]
        yield pictures.rgb(values) if item.ndim == 4 else pictures.decode(values.tobytes())


def _clock(found: dict[str, h5py.Dataset], rows: int, fps: float) -> npt.NDArray[np.float64]:
    for key, item in found.items():
        if re.fullmatch(r"(?:obs/|observations/)?timestamps?", key) and item.shape[:1] == (rows,):
            values = _signal(item)
            if values is not None and values.shape == (rows, 1):
                return relative_s(values[:, 0])
    return relative_s(np.arange(rows) / fps)


def _success(group: h5py.Group) -> bool | None:
    """What the demonstration says of itself; None where it says nothing."""
    value = group.attrs.get("success")
    return None if value is None or np.size(value) != 1 else bool(np.asarray(value).item())


def _text(group: h5py.Group) -> str | None:
    """A sentence among the attributes of the demonstration."""
    for key in filter(SENTENCE.match, group.attrs):
        value = group.attrs[key]
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if isinstance(text, str) and text.strip():
            return text.strip().encode(errors="replace").decode()
    return None


def _attributes(group: h5py.Group) -> dict[str, Any]:
    """Attributes as JSON says them, mappings in them (`env_args`) flattened."""
    found: dict[str, Any] = {}
    for key in group.attrs:
        try:
            value = group.attrs[key]
        except BROKEN:  # of a type that numpy has not: it says nothing to us
            continue
        found[key] = _plain(value)
        if isinstance(value, str) and value.startswith("{"):
            try:
                found |= _flat(json.loads(value))
            except ValueError:
                continue
    return found


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item) if isinstance(item, dict) else {key: item}
    return found


def _plain(value: Any) -> Any:
    """A number or a text."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, int | float | np.integer | np.floating):
        return np.asarray(value).item()
    return str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
