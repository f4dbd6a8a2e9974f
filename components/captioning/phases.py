"""What each event is for: reach, grasp, work, release, retreat, wait or move. From signals alone.

People and scripts move in the same order: the hand reaches, takes hold or touches, works, lets go
and retreats. The gripper shows most of it; of several hands one may hold while another lets go.
Where it takes nothing in the whole episode, contact shows as an arm that lags or fingers that give
way without a command, else the last thing done is the work. A robot without a gripper's signal just
moves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.episodes import Episode, gripper_names

CHANGE = 1 / 3  # of the command's own range in the episode is a new command
BEGUN, SETTLED = 0.1, 0.9  # of a change of the fingers
MOVED = 0.25  # of the fingers' way in the episode: less is giving way to what they hold
EARLY_S = 0.1  # fingers that move so soon after a start were told to before it
AFTER = 0.6  # an event whose fingers have settled for this share of it is about what follows,
GOES_ON = 0.1  # where the arm then moves by more than this share of its range in the episode
CONTACT, FELT = ("lag", "gripper"), 0.1  # votes of a boundary, together: an arm that meets a thing
Row = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """What an event is for, and what the gripper has to do with it."""

    name: str  # reach, grasp, work, whole (reach, then work), release, retreat, wait or move
    hand: str  # closes, opens, or empty where the fingers do nothing of their own
    holding: bool  # something may be between the fingers
    gripper: str  # open or closed at the start; empty where it never moves, or of several hands


@dataclass(frozen=True)
class _Hand:
    does: str  # closes, opens, touches, or empty
    early: bool = False  # from the first moment on: it takes and leaves nothing
    then: bool = False  # for most of the event the fingers are done and the arm goes on
    which: frozenset[str] = frozenset()  # whose fingers, as `Episode.hand_of` says

    @property
    def takes(self) -> bool:
        """Whether something may be between the fingers from now on."""
        return self.does == "closes" and not self.early


def phases(episode: Episode, events: list[Row], task_verb: str) -> list[Phase]:
    """Of each event, in time order; `task_verb` is what the task's sentence begins with."""
    hands = [_hand(episode, event) for event in events]
    states = _states([hand.does for hand in hands])
    if len(frozenset().union(*(hand.which for hand in hands))) > 1:
        states = [""] * len(hands)
    if episode.gripper is None and episode.gripper_command is None:
        names = ["wait" if event["kind"] == "idle" else "move" for event in events]
    elif any(hand.takes for hand in hands):
        names = _taking(events, hands)
    else:
        names = _touching(events, hands, task_verb)
    found = []
    for name, hand, state, holding in zip(names, hands, states, _holding(hands), strict=True):
        does = hand.does if hand.does in ("closes", "opens") else ""
        found.append(Phase(name, does, holding or hand.takes, state))
    return found


def _holding(hands: list[_Hand]) -> list[bool]:
    """Of each event, whether any hand may hold something when it starts."""
    full, found = frozenset[str](), []
    for hand in hands:
        found.append(bool(full))
        if hand.takes:
            full |= hand.which
        elif hand.does == "opens":
            full -= hand.which
    return found


def _taking(events: list[Row], hands: list[_Hand]) -> list[str]:
    """An episode in which the gripper takes something."""
    names = []
    held = False
    for event, hand, holding in zip(events, hands, _holding(hands), strict=True):
        if hand.takes:
            names.append("work" if hand.then else "grasp")
            held = True
        elif hand.does == "opens" and holding:
            names.append("release")
        elif event["kind"] == "idle":
            names.append("wait")
        else:
            names.append("work" if holding else "retreat" if held else "reach")
    last = max(i for i, name in enumerate(names) if name in ("grasp", "work"))
    return ["reach" if name == "retreat" and i < last else name for i, name in enumerate(names)]


def _touching(events: list[Row], hands: list[_Hand], task_verb: str) -> list[str]:
    """An episode in which the gripper takes nothing.

    Its first event has the way to the thing in it, also where no cut parts that from the work.
    """
    moving = [i for i, event in enumerate(events) if event["kind"] != "idle"]
    touched = next((i for i, hand in enumerate(hands) if hand.does == "touches"), len(events))
    first = min(touched, moving[-1] if moving else len(events))
    if task_verb in ("reach", "approach"):
        first = len(events)
    names = ["work" if i >= first else "reach" for i in range(len(events))]
    if moving and moving[0] == first:
        names[first] = "whole"
    idle = [event["kind"] == "idle" for event in events]
    return ["wait" if still else name for still, name in zip(idle, names, strict=True)]


def _states(hands: list[str]) -> list[str]:
    """Of each event, whether the gripper is open or closed when it starts."""
    turns = [hand for hand in hands if hand in ("closes", "opens")]
    now = {"closes": "open", "opens": "closed"}[turns[0]] if turns else ""
    states = []
    for hand in hands:
        states.append(now)
        now = {"closes": "closed", "opens": "open"}.get(hand, now)
    return states


def felt(event: Row) -> float:
    """How strongly an event's boundary speaks of contact."""
    votes = json.loads(event.get("evidence") or "{}")
    return float(sum(votes.get(name, 0.0) for name in CONTACT))


def _hand(episode: Episode, event: Row) -> _Hand:
    """What the fingers do in one event, as its kind says, and of whose will."""
    does = {"grasp": "closes", "release": "opens"}.get(event["kind"], "")
    if not does:
        return _Hand("touches" if felt(event) >= FELT else "")
    span = slice(event["start_frame"], min(event["end_frame"] + 1, len(episode)))
    begun, _ = _change(episode, span)
    _, settled = _change(episode, slice(_shortly_before(event), span.stop))
    settled = max(settled, span.start)  # a cut may come after the fingers have closed
    after = (span.stop - 1 - settled) / max(span.stop - 1 - span.start, 1)
    way = np.linalg.norm(episode.motion[span.stop - 1] - episode.motion[settled])
    then = after > AFTER and bool(way > GOES_ON * np.ptp(episode.motion, axis=0).max(initial=0.0))
    if does == "opens" and not _moved(episode, span):
        return _Hand("")  # told to open a little, they still press on what they hold
    soon = float(episode.timestamps_s[begun] - episode.timestamps_s[0]) <= EARLY_S
    which = _which(episode, event)
    if episode.gripper_command is None:
        return _Hand(does, soon, then, which)
    if not _commanded(episode, event):
        return _Hand(does, True, then, which) if soon else _Hand("touches")
    return _Hand(does, False, then, which)


def _which(episode: Episode, event: Row) -> frozenset[str]:
    """Whose fingers close or open in an event: those told to, else all that ever move."""
    told = episode.gripper_command is not None
    values = episode.gripper_command if told else episode.gripper
    names = gripper_names(episode.action_names if told else episode.state_names)
    assert values is not None, episode.episode_id
    start_s = float(episode.timestamps_s[event["start_frame"]]) - EARLY_S
    span = values[np.searchsorted(episode.timestamps_s, start_s) : event["end_frame"]]
    whole = np.ptp(values, axis=0)
    moves = whole >= MOVED * whole.max()
    turned = moves & (np.ptp(span, axis=0) > CHANGE * whole)
    those = turned if turned.any() else moves
    return frozenset(episode.hand_of(name) for name, one in zip(names, those, strict=True) if one)


def _commanded(episode: Episode, event: Row) -> bool:
    """Whether a new command is given in the event, or shortly before."""
    command = np.asarray(episode.gripper_command, dtype=np.float64)
    span = command[_shortly_before(event) : event["end_frame"]]
    whole = np.ptp(command, axis=0)
    return bool(np.any((whole > 0) & (np.ptp(span, axis=0) >= CHANGE * whole)))


def _shortly_before(event: Row) -> int:
    """The frame as long before an event as it lasts."""
    return int(max(2 * event["start_frame"] - event["end_frame"], 0))


def _moved(episode: Episode, span: slice) -> bool:
    """Whether the measured fingers, where there are any, move by more than they give way."""
    if episode.gripper is None:
        return True
    ways = np.ptp(episode.gripper[span], axis=0), np.ptp(episode.gripper, axis=0)
    return bool(np.any(ways[0] > MOVED * ways[1]))


def _change(episode: Episode, span: slice) -> tuple[int, int]:
    """Frames in which the fingers begin to move and in which they settle."""
    fingers = episode.gripper if episode.gripper is not None else episode.gripper_command
    if fingers is None:
        return span.start, span.stop - 1
    way = np.abs(np.asarray(fingers[span], dtype=np.float64) - fingers[span.start]).sum(axis=1)
    if way.max() <= 0:
        return span.start, span.stop - 1
    begun = int(np.argmax(way >= BEGUN * way.max()))
    settled = int(np.argmax(way >= SETTLED * way.max()))
    return span.start + begun, span.start + settled
