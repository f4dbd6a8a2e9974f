"""A reader's episodes under the names that somebody said (`said.py`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from components.calibration import Calibration
from components.episodes import GRIPPER
from components.ingestion.raw import Layout, RawEpisode, Reader
from components.ingestion.said import Names, Said, chosen, refuse
from components.packets import Span


@dataclass
class Mapped:
    """A reader whose layout and cameras are as somebody said."""

    inner: Reader
    said: Said

    def __post_init__(self) -> None:
        self.format, self.indices = self.inner.format, self.inner.indices
        layout, said = self.inner.layout, self.said
        self._cameras = _cameras(layout, said.cameras)
        state = _names("state_names", layout.state_names, said.state_names)
        action = _names("action_names", layout.action_names, said.action_names)
        everything = {*state, *action}
        for kind, names in (("gripper", said.gripper), ("units", tuple(said.units))):
            chosen(kind, names, everything)
        chosen("limits", tuple(said.limits), state)
        self.layout = replace(
            layout,
            robot_type=said.robot or layout.robot_type,
            state_names=_gripped(state, said.gripper),
            action_names=_gripped(action, said.gripper),
            cameras=tuple(sorted(self._cameras.values())),
            units=tuple(sorted((_called(k, said.gripper), v) for k, v in said.units.items())),
            limits=tuple(sorted((_called(k, said.gripper), *v) for k, v in said.limits.items())),
            calibration=tuple(sorted(self._calibrated().items())),
        )

    @property
    def warnings(self) -> list[str]:
        """The reader's own."""
        return self.inner.warnings

    def read(self, index: int) -> RawEpisode:
        """One episode with the cameras as named."""
        raw = self.inner.read(index)
        return replace(raw, videos=self._renamed(raw.videos), task=raw.task or self.said.task)

    def version(self, index: int) -> str:
        """The reader's own."""
        return self.inner.version(index)

    def identity(self, index: int) -> Any:
        """The reader's own, and what was said; a calibration changes nothing of an episode."""
        said = self.said.model_dump(mode="json", exclude={"calibration"})
        return [self.inner.identity(index), said]

    def recall(self, index: int, notes: dict[str, Any]) -> str | None:
        """The reader's own, or the sentence that was said."""
        return self.inner.recall(index, notes) or self.said.task

    def who(self, index: int, notes: dict[str, Any]) -> dict[str, str]:
        """The reader's own."""
        return self.inner.who(index, notes)

    def spans(self, index: int) -> dict[str, Span] | None:
        """The videos of an episode by camera as named."""
        found = self.inner.spans(index)
        return None if found is None else self._renamed(found)

    def _calibrated(self) -> dict[str, Calibration]:
        """By camera as named; what was said counts more than what the recordings say."""
        short = {name.rpartition(".")[2]: name for name in self._cameras.values()}
        chosen("calibration", tuple(self.said.calibration), short)
        told = {self._cameras[c]: k for c, k in self.inner.layout.calibration if c in self._cameras}
        return told | {short[name]: k for name, k in self.said.calibration.items()}

    def _renamed(self, videos: dict[str, Span]) -> dict[str, Span]:
        return {self._cameras[key]: span for key, span in videos.items() if key in self._cameras}


def _cameras(layout: Layout, said: dict[str, str]) -> dict[str, str]:
    """Feature of the reader -> feature as named."""
    short = {key.rpartition(".")[2]: key for key in layout.cameras}
    chosen("cameras", tuple(said), short)
    if not said:
        return {key: key for key in layout.cameras}
    return {short[old]: f"observation.images.{new}" for old, new in said.items()}


def _names(kind: str, inferred: Names, said: Names) -> Names:
    if said and len(said) != len(inferred):
        refuse(kind, f"expected {len(inferred)} names ({', '.join(inferred)}), got {len(said)}")
    if len(set(said)) != len(said):
        refuse(kind, "a name is there twice")
    return said or inferred


def _gripped(names: Names, gripper: Names) -> Names:
    """A gripper is what is called one."""
    return tuple(_called(name, gripper) for name in names)


def _called(name: str, gripper: Names) -> str:
    return f"{name}_gripper" if name in gripper and not GRIPPER.search(name) else name
