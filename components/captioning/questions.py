"""What a vision-language model is asked about one event, and what counts as an answer.

A question is a contact sheet with times on it, the measured facts and the task's sentence, put into
a prompt file of `prompts/`. An answer is one JSON object with a text for each wanted level.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.vlm import dialogue
from components.vlm.dialogue import json_object, one_line

PROMPTS = Path(__file__).parent / "prompts"
PLACES = ("task", "facts", "rule", "levels")
LEVELS = {
    "task": "what the whole recording is about",
    "subtask": "which part of the task this event is, such as reaching, grasping, placing",
    "action": "what arm and gripper do, in the imperative, in as few words as will do",
    "segment": "everything that happens in this event, with directions, distances and times",
}
LONGEST_TEXT = 2_000


def prompt(name: str) -> str:
    """Text of `prompts/<name>.md`. UserError names the prompts there are, or what it lacks."""
    return dialogue.prompt(PROMPTS / f"{name}.md", PLACES, "captioning.prompt")


def filled(template: str, levels: Sequence[str], **places: str) -> str:
    """The prompt with its places filled."""
    wanted = "\n".join(f'- "{level}": {LEVELS[level]}' for level in levels)
    return dialogue.filled(template, **places, levels=wanted)


def read(reply: str, levels: Sequence[str]) -> tuple[dict[str, str] | None, str]:
    """(text by level, ''), or (None, what is wrong with the reply)."""
    found, problem = json_object(reply)
    if found is None:
        return None, problem
    texts = {}
    for level in levels:
        text = found.get(level)
        if not isinstance(text, str):
            return None, f"reply lacks {level}"
        texts[level] = one_line(text)
        if not texts[level]:
            return None, f"{level} is empty"
        if len(texts[level]) > LONGEST_TEXT:
            return None, f"{level} is over {LONGEST_TEXT} characters"
    return texts, ""


def correction(problem: str, levels: Sequence[str]) -> str:
    """What a model is told of a reply that was no answer."""
    keys = ", ".join(f'"{level}"' for level in levels)
    return f"That cannot be used: {problem}. Answer with one JSON object with the keys {keys} only."
