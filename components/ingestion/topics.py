"""What the topics of a recording hold, told by fields of their messages and words of their names.

Messages are mappings (JSON) or objects (CDR) with the fields of ROS 2's common interfaces, whatever
their schema is called: JointState, arrays of numbers, Twist, Pose, Image, CompressedImage, String.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from components.ingestion import columns, pictures
from components.ingestion import said as saying
from components.ingestion.reasons import Problem, Reason
from components.ingestion.said import Said

EPOCH_NS = 10**18  # September 2001: an earlier log time is no time since 1970
COMMAND = re.compile(
    r"action|command|cmd|setpoint|target|desired|goal|/in/|controller|leader|teleop"
)
TEXT = re.compile(r"task|instruction|language|prompt")
VIDEO = re.compile(r"^(?:h\.?26[45]|hevc|avc|vp[89]|av1|libx26)")
PROBE = 40  # messages of each topic that are looked at to tell what it is
COVERED = 0.5  # a topic that covers less of the recording is no signal of it
MAX_WIDTH = 512
PREFERRED = ("joints", "numbers", "pose", "twist")


class Message(NamedTuple):
    """One message; `body` decodes it to a mapping or an object. DamagedError when it cannot."""

    topic: str
    time_ns: int
    body: Callable[[], Any]


class DamagedError(ValueError):
    """A file that cannot be read to its end, or a message that is not what it should be."""


class UnknownEncodingError(DamagedError):
    """Messages that are whole, in an encoding that nobody here decodes."""


class Values(NamedTuple):
    """Numbers of one message and what they are called."""

    kind: str
    names: tuple[str, ...]
    numbers: tuple[float, ...]


@dataclass
class Topic:
    """What is known of one topic of one file."""

    times_ns: list[int] = field(default_factory=list)
    kind: str = ""  # joints, numbers, pose, twist, picture, text; empty: none of them
    names: tuple[str, ...] = ()
    unread: str = ""  # why its messages are not read, where no fault of theirs is the reason
    timeless: int = 0  # messages without a time, among others that have one
    lengths: dict[str, set[int]] = field(default_factory=dict)  # of lists of numbers in messages

    @property
    def span_ns(self) -> int:
        """From the first to the last message."""
        return self.times_ns[-1] - self.times_ns[0] if self.times_ns else 0

    @property
    def rate_hz(self) -> float:
        """Mean messages a second; 0 where it cannot be told."""
        return (len(self.times_ns) - 1) / self.span_ns * 1e9 if self.span_ns > 0 else 0.0


class Roles(NamedTuple):
    """Which topics become what."""

    state: tuple[str, ...]  # the first is the clock
    action: tuple[str, ...]
    cameras: dict[str, str]  # canonical camera -> topic
    text: str | None


def survey(messages: Iterator[Message]) -> dict[str, Topic]:
    """All topics of a file. DamagedError when the file is damaged."""
    found: dict[str, Topic] = {}
    for message in messages:
        topic = found.setdefault(message.topic, Topic())
        topic.times_ns.append(message.time_ns)
        if len(topic.times_ns) <= PROBE:
            _probe(topic, message)
    if any(topic.times_ns[-1] >= EPOCH_NS for topic in found.values()):
        for topic in found.values():
            timed = [time for time in topic.times_ns if time >= EPOCH_NS]
            topic.timeless, topic.times_ns = len(topic.times_ns) - len(timed), timed
    return found


def roles(topics: dict[str, Topic], said: Said) -> Roles | None:
    """State: joints measured for most of the recording; action: the commands. None without both.

    Topics that are said are taken instead; UserError lists what is there.
    """
    numeric = [name for name, topic in topics.items() if topic.kind in PREFERRED]
    whole_ns = max((topic.span_ns for topic in topics.values()), default=0)
    signals = {
        name: topic
        for name, topic in topics.items()
        if topic.kind in PREFERRED and topic.times_ns and topic.span_ns >= COVERED * whole_ns
    }
    states = {n: t for n, t in signals.items() if not COMMAND.search(n.lower())}
    commands = {n: t for n, t in signals.items() if COMMAND.search(n.lower())}
    state = saying.chosen("state", said.state, numeric) or ((_best(states),) if states else ())
    action = saying.chosen("action", said.action, numeric) or (
        (_best(commands),) if commands else ()
    )
    if not state or not action:
        return None
    cameras = {columns.camera(_camera(n)): n for n, t in topics.items() if t.kind == "picture"}
    text = next((n for n, t in sorted(topics.items()) if t.kind == "text"), None)
    return Roles(state, action, cameras, text)


def _best(signals: dict[str, Topic]) -> str:
    return min(
        signals, key=lambda n: (PREFERRED.index(signals[n].kind), -len(signals[n].times_ns), n)
    )


def _camera(topic: str) -> str:
    parts = [p for p in topic.split("/") if p and not re.match(r"image|compressed|rgb$|color$", p)]
    return "_".join(parts) or "camera"


def _probe(topic: Topic, message: Message) -> None:
    """Learn from one message; one that cannot be decoded teaches nothing."""
    try:
        body = message.body()
    except UnknownEncodingError as error:
        topic.unread = str(error)
        return
    except DamagedError:
        return
    if video := _video(body):
        topic.unread = f"holds compressed video ({video}), which is not read"
        return
    for name, value in _fields(body):
        if isinstance(value, list | np.ndarray) and all(isinstance(v, int | float) for v in value):
            topic.lengths.setdefault(name, set()).add(len(value))
    if topic.kind:
        return
    if (values := numbers(message.topic, body)) is not None:
        topic.kind, topic.names = values.kind, values.names
    elif is_picture(body):
        topic.kind = "picture"
    elif TEXT.search(message.topic.lower()) and isinstance(get(body, "data"), str):
        topic.kind = "text"


def _video(body: Any) -> str:
    """The codec of a message that holds a part of a video; empty for any other."""
    said = get(body, "format") or get(body, "encoding")
    codec = said.lower() if isinstance(said, str) and get(body, "data") is not None else ""
    return codec if VIDEO.match(codec) else ""


def get(body: Any, name: str) -> Any:
    """A field of a mapping or an object; None where it has none."""
    return body.get(name) if isinstance(body, dict) else getattr(body, name, None)


def _fields(body: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(body, dict):
        yield from body.items()
    else:
        for name in getattr(body, "__slots__", ()):
            yield name, getattr(body, name, None)


def numbers(topic: str, body: Any) -> Values | None:
    """The numbers of a message that could be state or action; None where it has none."""
    joints = get(body, "name") or get(body, "joint_names")
    points = get(body, "points")
    held = get(points[0], "positions") if _is_list(points) and points else get(body, "position")
    if _is_list(joints) and _is_row(held) and 0 < len(joints) == len(held):
        return Values("joints", tuple(map(str, joints)), tuple(map(float, held)))
    data = get(body, "data")
    if _is_row(data) and 1 < len(data) <= MAX_WIDTH and not isinstance(data, bytes):
        short = topic.rstrip("/").rsplit("/", 1)[-1] or "data"
        names = tuple(f"{short}_{i}" for i in range(len(data)))
        return Values("numbers", names, tuple(map(float, data)))
    inner = get(body, "twist") or get(body, "pose") or body
    inner = get(inner, "twist") or get(inner, "pose") or inner
    for kind, parts in _VECTORS.items():
        found = [(f"{short}{a}", get(get(inner, p), a)) for p, short, axes in parts for a in axes]
        if all(isinstance(value, int | float) for _, value in found):
            return Values(kind, tuple(n for n, _ in found), tuple(float(v) for _, v in found))
    return None


_VECTORS = {
    "twist": (("linear", "v", "xyz"), ("angular", "w", "xyz")),
    "pose": (("position", "ee_", "xyz"), ("orientation", "q", "xyzw")),
}


def row(topic: str, body: Any, names: tuple[str, ...]) -> tuple[float, ...] | Problem | None:
    """A message's numbers in the order of `names`; None where the message is empty."""
    found = numbers(topic, body)
    if found is None:
        return None
    if found.names == names:
        return found.numbers
    by_name = dict(zip(found.names, found.numbers, strict=True))
    if set(by_name) != set(names):
        said = f"expected {', '.join(names)}; got {', '.join(found.names)}"
        return Problem(Reason.WRONG_WIDTH, said)
    return tuple(by_name[name] for name in names)


def text(body: Any) -> str | None:
    """The sentence of a text message."""
    data = get(body, "data")
    return data.strip() or None if isinstance(data, str) else None


def is_picture(body: Any) -> bool:
    """Whether a message is an Image or a CompressedImage."""
    raw = all(isinstance(get(body, name), int) for name in ("height", "width"))
    return get(body, "data") is not None and (
        (raw and isinstance(get(body, "encoding"), str)) or isinstance(get(body, "format"), str)
    )


def picture(body: Any) -> pictures.Picture:
    """RGB (H, W, 3). ValueError or OSError when it is none."""
    data = get(body, "data")
    packed = base64.b64decode(data, validate=True) if isinstance(data, str) else bytes(data)
    if isinstance(get(body, "format"), str):
        return pictures.decode(packed)
    height, width = int(get(body, "height")), int(get(body, "width"))
    pictures.check_size(height, width)
    encoding = str(get(body, "encoding")).lower()
    channels = {"mono8": 1, "8uc1": 1, "rgb8": 3, "bgr8": 3, "8uc3": 3, "rgba8": 4, "bgra8": 4}
    if encoding not in channels:
        raise ValueError(f"pictures in encoding {encoding}; expected {', '.join(channels)}")
    depth = channels[encoding]
    step = int(get(body, "step") or width * depth)
    if step < width * depth or len(packed) != step * height:
        raise ValueError(f"{len(packed)} bytes for {height} x {width} pixels of {encoding}")
    lines = np.frombuffer(packed, np.uint8).reshape(height, step)[:, : width * depth]
    shown = pictures.rgb(lines.reshape(height, width, depth))
    return np.ascontiguousarray(shown[:, :, ::-1]) if encoding.startswith("bgr") else shown


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _is_row(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and np.issubdtype(value.dtype, np.number)
    typed = type(value).__name__ == "array"  # array.array, as the CDR decoder gives it
    return typed or (_is_list(value) and all(isinstance(v, int | float) for v in value))


def oddities(recordings: list[dict[str, Topic]], chosen: Roles | None) -> list[str]:
    """One sentence for each thing that is strange about the topics of all recordings."""
    found: list[str] = []
    timeless = sum(topic.timeless for topics in recordings for topic in topics.values())
    if timeless:
        found.append(
            f"log_time 0 mixed with time since 1970: {timeless} messages have no time and are "
            "left out of the clock; a naive duration would be 1.7e9 s"
        )
    lengths: dict[str, set[int]] = {}
    for topics in recordings:
        for name, topic in topics.items():
            for part, sizes in topic.lengths.items():
                lengths.setdefault(f"{name}.{part}", set()).update(sizes)
    sometimes = sorted(k for k, sizes in lengths.items() if 0 in sizes and len(sizes) > 1)
    if sometimes:
        found.append(f"sometimes empty: {', '.join(sometimes)}; not taken over")
    if chosen is not None and recordings:
        found += _about_roles(recordings[0], chosen)
    return found


def _about_roles(topics: dict[str, Topic], chosen: Roles) -> list[str]:
    found = []
    first, second = chosen.state[0], chosen.action[0]
    state, action = topics.get(first, Topic()), topics.get(second, Topic())
    if {state.kind, action.kind} == {"joints"} and set(state.names) != set(action.names):
        found.append(
            f"joints of the state are {', '.join(state.names)}, of the commands "
            f"{', '.join(action.names)}; both kept as named"
        )
    rates = sorted(topic.rate_hz for topic in topics.values() if topic.rate_hz > 0)
    if rates and rates[-1] > 1.5 * rates[0]:
        found.append(
            f"rates differ per topic, {rates[0]:.1f} to {rates[-1]:.0f} Hz: state {first} "
            f"{state.rate_hz:.1f} Hz is the clock, commands {second} {action.rate_hz:.1f} Hz"
        )
    taken = {*chosen.state, *chosen.action, chosen.text, *chosen.cameras.values()}
    left = sorted(topics.keys() - taken)
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        found.append(f"topics not taken over: {shown}")
    return found
