"""The offline captioner: kinematics and the task's own sentence become words, on four levels.

The action level is canonical, since it conditions the model and names the next event at test time:
the same behaviour gets the same words in every episode, without numbers. Its verb says what the
event is for (`phases.py`): reach, grasp, release, retreat, or the deed that the task's sentence
names. The segment level says more, in wording that varies with the event's id. Objects are named by
the task's sentence only; what is worked on is "it".
"""

from __future__ import annotations

import re

from components.captioning.kinematics import Kinematics

LEVELS = ("task", "subtask", "action", "segment")
TASK = "{task}"
SUBTASK = '{part} of "{task}": {phase}'
ACTION = "{task}: {action}"
SEGMENT = (
    "{who} moves{how} in {duration_s:.1f} s{gripper}.",
    "In {duration_s:.1f} s {who} moves{how}{gripper}.",
    "{who} moves{how}{gripper}; this takes {duration_s:.1f} s.",
    "For {duration_s:.1f} s {who} moves{how}{gripper}.",
)
REST = (
    "{who} holds still for {duration_s:.1f} s{gripper}.",
    "For {duration_s:.1f} s {who} holds still{gripper}.",
)
TEMPLATES = {
    "task": (TASK,),
    "subtask": (SUBTASK,),
    "action": (ACTION,),
    "segment": (*SEGMENT, *REST),
}
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
SHORTEST_SAID_M = 0.01
FINGERS = {"closes": "closing", "opens": "opening"}
DEEDS = re.compile(  # verbs of tasks that say what the hand does to the thing it touches
    "press|push|pull|open|close|turn|rotate|twist|lock|unlock|slide|sweep|wipe|hammer|hit|knock"
    "|insert|plug|unplug|fold|stir|pour|shake|flip|drag|roll|tilt|screw|unscrew|cut"
)


ONCE_CARRIED = {"insert", "plug", "pour", "hammer", "hit", "knock"}  # done with what is held
CLAUSES = re.compile(r"\b(and|then)\b", re.IGNORECASE)  # which of them an event does is not known


def sentence(task: str) -> str:
    """The task's sentence without its final full stop and doubled spaces."""
    return " ".join(task.split()).rstrip(".")


def verb_of(task: str) -> str:
    """The word that the task's sentence begins with, in lower case."""
    return (sentence(task).split() or [""])[0].lower()


def captions(task: str, facts: list[Kinematics], event_ids: list[str]) -> list[dict[str, str]]:
    """Of each event of one episode, in time order, its text by level."""
    said = sentence(task) or "unnamed task"
    return [
        {
            "task": TASK.format(task=said),
            "subtask": SUBTASK.format(part=part(i, len(facts)), task=said, phase=subtask(fact)),
            "action": ACTION.format(task=said, action=action(fact, deed)),
            "segment": segment(fact, int(event_id, 16)),
        }
        for i, (fact, deed, event_id) in enumerate(
            zip(facts, deeds(task, facts), event_ids, strict=True)
        )
    ]


def deeds(task: str, facts: list[Kinematics]) -> list[str]:
    """Of each event, the verb of the task's sentence where it does that; else empty.

    What is done with a thing in the hand, like inserting or pouring it, comes in the last event
    before it is let go.
    """
    verb = verb_of(task)
    if not DEEDS.fullmatch(verb) or CLAUSES.search(task):
        return [""] * len(facts)
    carried = [fact.phase.holding and fact.phase.name == "work" for fact in facts]
    later = [*carried[1:], False]
    return [
        "" if verb in ONCE_CARRIED and now and then else verb
        for now, then in zip(carried, later, strict=True)
    ]


def part(index: int, count: int) -> str:
    """`first part`, ... `last part`; `the whole` of one."""
    if count == 1:
        return "the whole"
    if index == count - 1:
        return "last part"
    return f"{ORDINALS[index]} part" if index < len(ORDINALS) else f"part {index + 1}"


def subtask(fact: Kinematics) -> str:
    """The event's part in the task."""
    if fact.phase.name == "work":
        return "move while holding" if fact.phase.holding else "act"
    return {"reach": "approach", "whole": "approach and act"}.get(fact.phase.name, fact.phase.name)


def action(fact: Kinematics, deed: str = "") -> str:
    """What the event does, short and canonical: `reach down while closing the gripper`.

    `deed` is the task's own verb where this event does it.
    """
    name, hand = fact.phase.name, fact.phase.hand
    if name == "wait":
        return "hold still" if not hand else f"hold still while {FINGERS[hand]} the gripper"
    ways = listed(fact.directions)
    if name == "move":
        joints = fact.displacement_m is None and fact.moving
        return f"move {ways}" if ways else "move the joints" if joints else "adjust the pose"
    if name in ("reach", "retreat"):
        return " ".join(filter(None, [name, ways, fingers(fact)]))
    if name == "whole":
        return " ".join(filter(None, ["reach", ways, "and", work(fact, deed), "it"]))
    verb = {"grasp": "grasp", "release": "release"}.get(name) or work(fact, deed)
    text = f"{verb} it, moving {ways}" if ways else f"{verb} it"
    if name == "work" and hand:
        text += f" after {FINGERS[hand]} the gripper"
    return text


def work(fact: Kinematics, deed: str) -> str:
    """What is done to the thing: the task's own deed, else what is seen."""
    if deed:
        return deed
    if not fact.phase.holding:
        return "handle"
    if fact.directions in (("up",), ("down",)):
        return {"up": "lift", "down": "lower"}[fact.directions[0]]
    return "carry"


def fingers(fact: Kinematics) -> str:
    """What the gripper does, or how it is."""
    if fact.phase.hand:
        return f"while {FINGERS[fact.phase.hand]} the gripper"
    return f"with the gripper {fact.phase.gripper}" if fact.phase.gripper else ""


def listed(names: tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def segment(fact: Kinematics, number: int) -> str:
    """The event in detail; `number` chooses among the wordings."""
    wordings = REST if fact.kind == "idle" else SEGMENT
    text = wordings[number % len(wordings)].format(
        who="the arm" if fact.displacement_m is None else "the end effector",
        how=how(fact),
        duration_s=fact.duration_s,
        gripper=gripper(fact),
    )
    return text[0].upper() + text[1:]


def how(fact: Kinematics) -> str:
    """How far it moves and where to, or which joints move."""
    if fact.displacement_m is None:
        return f" ({listed(fact.moving[:2])} most)" if fact.moving else " a little"
    parts = [
        f"{m * 100:.0f} cm {n}" for n, m in fact.displacement_m.items() if m >= SHORTEST_SAID_M
    ]
    travelled = f" over a way of {(fact.travelled_m or 0.0) * 100:.0f} cm"
    return (" " + listed(tuple(parts)) if parts else " about one place") + travelled


def gripper(fact: Kinematics) -> str:
    """What the gripper does meanwhile."""
    if fact.phase.hand:
        return f" while the gripper {fact.phase.hand}"
    return f" with the gripper {fact.phase.gripper}" if fact.phase.gripper else ""
