"""From timed messages of many topics to episodes on one clock. The same for MCAP and ROS 2 bags.

One file is one episode, or the files of a split bag are (`split.py`). The clock is the state
topic's: each row takes the last command and the last picture that were there at its time; rows
before the first command or picture are cut. Times are the recorder's (`log_time`), since clocks of
different machines do not agree in headers.
"""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from components.ingestion import arrays, pictures, split, topics, who
from components.ingestion.raw import Float, Layout, RawEpisode, relative_s
from components.ingestion.reasons import Problem, Reason
from components.ingestion.source import Source
from components.ingestion.topics import (
    DamagedError,
    Message,
    Roles,
    Topic,
    UnknownEncodingError,
)
from components.packets import Span

Times = npt.NDArray[np.int64]
Timed = tuple[Times, Float]  # (T,) nanoseconds, (T, D)
_TOPICS = TypeAdapter(dict[str, Topic])
BAD_PICTURE = (OSError, ValueError, TypeError, KeyError, OverflowError)


class Format(NamedTuple):
    """What a format gives for one file of a source."""

    name: str
    messages: Callable[[Source, str], Iterator[Message]]  # DamagedError when damaged
    notes: Callable[[Source, str], dict[str, str]]  # robot_type, task, success, ... as recorded


@dataclass
class _Series:
    """Rows of one topic as they come."""

    names: tuple[str, ...]
    times: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def done(self, *, ordered: bool) -> tuple[Times, Float]:
        """Times (T,) in nanoseconds and values (T, D)."""
        times = np.array(self.times, np.int64)
        values = np.array(self.values, np.float64).reshape(len(times), len(self.names))
        order = np.argsort(times, kind="stable") if ordered else np.arange(len(times))
        with np.errstate(over="ignore"):  # beyond float32 is infinite: a check sees it
            return times[order], values[order].astype(np.float32)


class Reader:
    """All recordings of one source, one episode a file."""

    def __init__(self, source: Source, files: list[str], reads: Format) -> None:
        self.source, self._reads, self.format = source, reads, reads.name
        self._bags = split.bags(source, files)
        self.indices = list(range(len(self._bags)))
        self._films = pictures.Films(source)
        self._found: list[str] = []
        self._cut: dict[int, int] = {}
        self._surveys: dict[int, dict[str, Topic] | Problem] = {}
        self._notes: dict[int, dict[str, str]] = {
            index: bag.notes | source.once(path, "notes", partial(reads.notes, source, path))
            for index, bag in enumerate(self._bags)
            for path in bag.files[:1]
        }
        sound = [s for i in self.indices if not isinstance(s := self._survey(i), Problem)]
        chosen = [(s, r) for s in sound if (r := topics.roles(s, source.said)) is not None]
        self._roles = chosen[0][1] if chosen else None
        self._task = self._sentence()
        self.layout = self._layout(chosen[0][0] if chosen else {}, sound)

    @property
    def warnings(self) -> list[str]:
        """What was inferred, and what the recordings read so far have in common."""
        sound = [s for s in self._surveys.values() if not isinstance(s, Problem)]
        cut = sum(self._cut.values())
        said = [f"{cut} rows before the first command or picture are cut"] if cut else []
        return [*topics.oddities(sound, self._roles), *said, *self._found]

    def read(self, index: int) -> RawEpisode:
        """One recording; what cannot be read is said in its `problem`."""
        path = self._bags[index].name
        uri, version = f"{self.source.uri}/{path}", self.version(index)
        try:
            found = self._read(index, uri, version)
        except UnknownEncodingError as error:
            found = Problem(Reason.UNKNOWN_ENCODING, f"{path}: {error}")
        except DamagedError as error:
            found = Problem(Reason.UNREADABLE_DATA, f"{path}: {error}")
        if isinstance(found, Problem):
            return RawEpisode(index, uri, version, problem=found)
        return found

    def version(self, index: int) -> str:
        """Digest of the files that an episode is read from."""
        return self.source.version(list(self._bags[index].files))

    def identity(self, index: int) -> Any:
        """What decides all that `read` gives but address, version and task."""
        bag = self._bags[index]
        digests = [self.source.listed[path].version for path in bag.files]
        known = [bag.files, digests, bag.missing, self._roles, self.layout.fps]
        return [*known, self._failed(index)]

    def _failed(self, index: int) -> bool:
        """Whether the recording says that its task was not done."""
        return self._notes[index].get("success", "").lower() == "false"

    def spans(self, index: int) -> dict[str, Span] | None:
        """The films of an episode by camera, where they are still at hand."""
        cameras = self._roles.cameras if self._roles is not None else {}
        return self._films.known(self.identity(index), cameras)

    def recall(self, index: int, notes: dict[str, Any]) -> str | None:
        """Take note of an episode that an earlier run read; its task."""
        if "cut" in notes:
            self._cut[index] = notes["cut"]
        return notes.get("text") or self._notes[index].get("task") or self._task

    def who(self, index: int, notes: dict[str, Any]) -> dict[str, str]:
        """Robot and operator by what the recording notes beside its messages."""
        return who.of(self._notes[index])

    def _read(self, index: int, uri: str, version: str) -> RawEpisode | Problem:
        survey = self._survey(index)
        problem = survey if isinstance(survey, Problem) else self._lacks(survey)
        if problem is not None or isinstance(survey, Problem) or self._roles is None:
            return problem or Problem(Reason.MISSING_COLUMN, "no state and commands")
        signals = self._signals(index, self._roles, survey)
        if isinstance(signals, Problem):
            return signals
        states, actions, text = signals
        times = states[0][0]
        shown = {
            camera: np.maximum.accumulate(np.array(survey[topic].times_ns))
            for camera, topic in self._roles.cameras.items()
            if topic in survey and survey[topic].times_ns
        }
        held = [*states[1:], *actions]
        if not all(len(series[0]) for series in (*states, *actions)):
            return Problem(Reason.EMPTY_EPISODE, "no state or no command with a time and a value")
        first = max(
            *(int(series[0][0]) for series in held), *(int(t[0]) for t in shown.values()), 0
        )
        rows = times >= first
        read = {"text": text, "cut": int((~rows).sum())}
        task = self.recall(index, read)
        times = times[rows]
        state = np.hstack([states[0][1][rows], *(_held(s, times) for s in states[1:])])
        action = np.hstack([_held(series, times) for series in actions])
        videos: dict[str, Span] = {}
        for camera, at in shown.items():
            film = self._film(index, camera, np.searchsorted(at, times, side="right") - 1, len(at))
            if isinstance(film, Problem):
                return film
            videos[camera] = film
        failed = Problem(Reason.FAILED_DEMONSTRATION, "the recording says success is false")
        return RawEpisode(
            index=index,
            uri=uri,
            version=version,
            task=task,
            notes=read,
            timestamps_s=relative_s((times - times[:1]) / 1e9),
            state=state,
            action=action,
            videos=videos,
            problem=failed if self._failed(index) else None,
        )

    def _signals(
        self, index: int, wanted: Roles, survey: dict[str, Topic]
    ) -> tuple[list[Timed], list[Timed], str | None] | Problem:
        """The clock's topic in the order it was recorded, others by time, and a sentence."""
        series = {name: _Series(self._names[name]) for name in (*wanted.state, *wanted.action)}
        sentence = None
        for message in self._timed(index, survey):
            if message.topic == wanted.text and sentence is None:
                sentence = topics.text(message.body())
            if (target := series.get(message.topic)) is None:
                continue
            row = topics.row(message.topic, message.body(), target.names)
            if isinstance(row, Problem):
                at = f"{message.topic}, message {len(target.times)}: "
                return Problem(row.reason, at + row.detail)
            if row is not None:
                target.times.append(message.time_ns)
                target.values.extend(row)
        states = [series[name].done(ordered=n > 0) for n, name in enumerate(wanted.state)]
        return states, [series[name].done(ordered=True) for name in wanted.action], sentence

    def _film(
        self, index: int, camera: str, wanted: npt.NDArray[np.intp], count: int
    ) -> Span | Problem:
        """The picture with number `wanted[row]` (of `count`) for each row, as a film."""
        assert self._roles is not None
        topic, survey = self._roles.cameras[camera], self._surveys[index]
        assert not isinstance(survey, Problem)
        repeats = np.bincount(wanted, minlength=count)

        def frames() -> Iterator[pictures.Picture]:
            ours = (m for m in self._timed(index, survey) if m.topic == topic)
            for message, times in zip(ours, repeats, strict=True):
                if times:
                    yield from [topics.picture(message.body())] * int(times)

        try:
            return self._films.span(self.identity(index), camera, frames(), self.layout.fps)
        except DamagedError:
            raise
        except BAD_PICTURE as error:
            return Problem(Reason.UNREADABLE_VIDEO, f"{topic}: {error}")

    def _timed(self, index: int, survey: dict[str, Topic]) -> Iterator[Message]:
        """Messages of a file without those that have no time where others have one."""
        epoch = any(t.times_ns and t.times_ns[-1] >= topics.EPOCH_NS for t in survey.values())
        for message in self._messages(index):
            if not epoch or message.time_ns >= topics.EPOCH_NS:
                yield message

    def _messages(self, index: int) -> Iterator[Message]:
        """Of all files of a recording, one after the other; DamagedError says which is damaged."""
        files = self._bags[index].files
        for path in files:
            try:
                yield from self._reads.messages(self.source, path)
            except DamagedError as error:
                name = posixpath.basename(path)  # not the address: what is said is kept by content
                raise error if len(files) == 1 else type(error)(f"{name}: {error}") from error

    def _survey(self, index: int) -> dict[str, Topic] | Problem:
        """All topics of a recording with their times; kept, since it is read more than once."""
        if index not in self._surveys:
            self._surveys[index] = self._known_survey(index)
        return self._surveys[index]

    def _known_survey(self, index: int) -> dict[str, Topic] | Problem:
        bag = self._bags[index]
        if bag.missing:
            named = ", ".join(bag.missing[:3])
            detail = f"{len(bag.missing)} of the files that {split.NAME} names are missing: {named}"
            return Problem(Reason.MISSING_DATA, detail)
        first, *others = bag.files
        name = " ".join(["topics", *(self.source.listed[path].version for path in others)])
        found = self.source.once(first, name, partial(self._survey_now, index))
        if isinstance(found, str):
            return Problem(Reason.UNREADABLE_DATA, f"{bag.name}: {found}")
        return _TOPICS.validate_python(found)

    def _survey_now(self, index: int) -> Any:
        """All topics of a recording, as JSON, or one sentence about its damage."""
        try:
            found = topics.survey(self._messages(index))
        except DamagedError as error:
            return str(error)
        return _TOPICS.dump_python(found, mode="json")

    def _lacks(self, survey: dict[str, Topic]) -> Problem | None:
        if not survey:
            return Problem(Reason.EMPTY_EPISODE, "the file holds no message")
        unread = {name: topic.unread for name, topic in survey.items() if topic.unread}
        video = next((name for name, why in unread.items() if "video" in why), None)
        if unread and (self._roles is None or video is not None):
            name = video or min(unread)
            return Problem(Reason.UNKNOWN_ENCODING, f"{name}: {unread[name]}")
        if self._roles is None:
            seen = ", ".join(sorted(survey)[:12])
            return Problem(Reason.MISSING_COLUMN, f"no states and commands among topics {seen}")
        missing = [t for t in (*self._roles.state, *self._roles.action) if t not in survey]
        return Problem(Reason.MISSING_COLUMN, f"no topic {missing}") if missing else None

    def _joined(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Dimensions of several topics; with the topic in front where two would be the same."""
        plain = tuple(d for name in names for d in self._names[name])
        if len(set(plain)) == len(plain):
            return plain
        return tuple(f"{name.strip('/')}/{d}" for name in names for d in self._names[name])

    def _sentence(self) -> str | None:
        """The task where a recording names none."""
        said = self._roles is not None and self._roles.text is not None
        words = arrays.sentence(self.source.name) or None
        if not said and not all(notes.get("task") for notes in self._notes.values()):
            self._found.append(f"no task sentence; {words!r} taken from the source's name")
        return words

    def _layout(self, first: dict[str, Topic], sound: list[dict[str, Topic]]) -> Layout:
        said = [" ".join(notes.values()) for notes in self._notes.values()]
        named = [n["robot_type"] for n in self._notes.values() if n.get("robot_type")]
        states, actions, cameras, _ = self._roles or Roles((), (), {}, None)
        self._names = {name: first[name].names for name in (*states, *actions)}
        clock = states[0] if states else ""
        rates = [s[clock].rate_hz for s in sound if clock in s and s[clock].rate_hz > 0]
        if rates and max(rates) > 1.2 * min(rates):
            self._found.append(
                f"the state's rate differs between recordings, {min(rates):.1f} to "
                f"{max(rates):.1f} Hz; {_round(float(np.median(rates))):g} Hz is taken"
            )
        return Layout(
            robot_type=named[0] if named else arrays.robot(*said, self.source.name),
            fps=self.source.said.fps or (_round(float(np.median(rates))) if rates else 1.0),
            state_names=self._joined(states),
            action_names=self._joined(actions),
            cameras=tuple(sorted(cameras)),
            taken=(states, actions),
        )


def _held(series: Timed, times: Times) -> Float:
    """The last row of a series at each time: (T,) -> (T, D)."""
    return np.asarray(series[1][np.searchsorted(series[0], times, side="right") - 1])


def _round(rate_hz: float) -> float:
    """A whole number where one is within 2 %, else one digit after the point."""
    whole = abs(rate_hz - round(rate_hz)) < 0.02 * rate_hz
    return float(round(rate_hz)) if whole else max(round(rate_hz, 1), 0.1)
