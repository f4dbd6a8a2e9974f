"""The offline captioner: kinematics and the task's own sentence become words, on four levels.

The action level is canonical, since it conditions the model and names the next event at test time:
the same behaviour gets the same words in every episode, without numbers. The segment level says
more, in wording that varies with the event's id. Objects are named by the task's sentence only.
"""

from __future__ import annotations

from components.captioning.kinematics import Kinematics

LEVELS = ("task", "subtask", "action", "segment")
TASK = "{task}"
SUBTASK = '{part} of "{task}": {phase}'
ACTION = "{task}: {action}"
SEGMENT = (
    "{who} {did}{how} in {duration_s:.1f} s{gripper}.",
    "In {duration_s:.1f} s {who} {did}{how}{gripper}.",
    "{who} {did}{how}{gripper}; this takes {duration_s:.1f} s.",
    "For {duration_s:.1f} s {who} {did}{how}{gripper}.",
)
TEMPLATES = {"task": (TASK,), "subtask": (SUBTASK,), "action": (ACTION,), "segment": SEGMENT}
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
SHORTEST_SAID_M = 0.01


def sentence(task: str) -> str:
    """The task's sentence without its final full stop and doubled spaces."""
    return " ".join(task.split()).rstrip(".")


def captions(task: str, facts: list[Kinematics], event_ids: list[str]) -> list[dict[str, str]]:
    """Of each event of one episode, in time order, its text by level."""
    said = sentence(task) or "unnamed task"
    phases = phases_of([fact.kind for fact in facts])
    return [
        {
            "task": TASK.format(task=said),
            "subtask": SUBTASK.format(part=part(i, len(facts)), task=said, phase=phases[i]),
            "action": ACTION.format(task=said, action=action(fact)),
            "segment": segment(fact, int(event_id, 16)),
        }
        for i, (fact, event_id) in enumerate(zip(facts, event_ids, strict=True))
    ]


def part(index: int, count: int) -> str:
    """`first part`, ... `last part`; `the whole` of one."""
    if count == 1:
        return "the whole"
    if index == count - 1:
        return "last part"
    return f"{ORDINALS[index]} part" if index < len(ORDINALS) else f"part {index + 1}"


def phases_of(kinds: list[str]) -> list[str]:
    """A phase for each event, from what the gripper has done so far."""
    phases: list[str] = []
    holding = held = False
    for index, kind in enumerate(kinds):
        if kind == "grasp":
            holding, held = index > 0, held or index > 0  # closing from the start holds nothing
            phases.append("grasp" if index else "approach")
        elif kind == "release":
            phases.append("release" if index else "approach")
            holding = False
        elif kind == "idle":
            phases.append("wait")
        elif holding:
            phases.append("move while holding")
        elif held:
            phases.append("retreat")
        else:
            phases.append(_without_gripper(index, kinds))
    return phases


def _without_gripper(index: int, kinds: list[str]) -> str:
    ahead = any(kind in ("grasp", "release") for kind in kinds[index:])
    if index == 0 or ahead:
        return "approach"
    return "act" if index == len(kinds) - 1 else "get in place"


def action(fact: Kinematics) -> str:
    """What the event does, short and canonical: `move right and down with the gripper closed`."""
    if fact.kind == "idle":
        return "hold still"
    move = movement(fact)
    if fact.kind == "grasp":
        return f"{move} and close the gripper" if move else "close the gripper"
    if fact.kind == "release":
        return f"{move} and open the gripper" if move else "open the gripper"
    return (move or "adjust the pose") + (
        f" with the gripper {fact.gripper}" if fact.gripper else ""
    )


def movement(fact: Kinematics) -> str:
    """`move ...` where something moves with a direction, else empty."""
    if fact.displacement_m is None:
        return "move the joints" if fact.moving else ""
    return f"move {listed(fact.directions)}" if fact.directions else ""


def listed(names: tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def segment(fact: Kinematics, number: int) -> str:
    """The event in detail; `number` chooses among the wordings."""
    text = SEGMENT[number % len(SEGMENT)].format(
        who="the arm" if fact.displacement_m is None else "the end effector",
        did="holds still" if fact.kind == "idle" else "moves",
        how="" if fact.kind == "idle" else how(fact),
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
    if fact.kind == "grasp":
        return " while the gripper closes"
    if fact.kind == "release":
        return " while the gripper opens"
    return f" with the gripper {fact.gripper}" if fact.gripper else ""
