"""Does a caption fit? Length, language, and whether its words contradict what arm and gripper did.

It reads words only, so it judges any captioner's text the same way. The task's own sentence is left
out: "close the drawer" says nothing about the gripper.
"""

from __future__ import annotations

import re

from components.captioning.kinematics import OPPOSITE, Kinematics

CLOSES = re.compile(
    r"\b(grasp|grabb?|gripp?|pinch)(s|es|ing|ed)?\b|\b(clos(e|es|ed|ing)) (the |its )?gripper\b"
    r"|\bgripper (closes|is closing)\b",
    re.IGNORECASE,
)
OPENS = re.compile(
    r"\breleas(e|es|ed|ing)\b|\blet(s|ting)? go\b|\bopen(s|ed|ing)? (the |its )?gripper\b"
    r"|\bgripper (opens|is opening)\b",
    re.IGNORECASE,
)
STATE = re.compile(r"\b(with the )?gripper (open|closed)\b", re.IGNORECASE)
RESTS = re.compile(r"\b(holds? still|stands? still|waits?|idle)\b", re.IGNORECASE)
MOVES = re.compile(r"\b(mov(e|es|ing)|reach(es)?|push(es)?|pull(s)?|lift(s)?)\b", re.IGNORECASE)
LATIN = 0.9  # of an English text's letters
SENTENCE = 6  # words from which on an English text has one of the commonest
COMMON = re.compile(
    r"\b(the|an?|to|of|and|in|on|with|its?|is|at|from|for|by|up|down|left|right|while|then|as|into"
    r"|onto|over|towards?|this|that|off|out)\b",
    re.IGNORECASE,
)


def checks(
    text: str, level: str, task: str, fact: Kinematics, longest_words: int
) -> dict[str, str]:
    """{check: "ok" or what is wrong} for one caption of one event."""
    own = re.sub(re.escape(task), " ", text, flags=re.IGNORECASE) if task else text
    wrong = "" if level == "task" else contradiction(own, fact)
    return {
        "length": length(text, longest_words),
        "language": language(own),
        "contradiction": wrong or "ok",
    }


def length(text: str, longest_words: int) -> str:
    """Whether the text has between 1 and `longest_words` words."""
    count = len(text.split())
    if count == 0:
        return "empty"
    return "ok" if count <= longest_words else f"{count} words, over {longest_words}"


def language(text: str) -> str:
    """Whether a text reads as English: its letters, and for a whole sentence its commonest words.

    The task's own sentence, in whatever language people gave it, is not judged.
    """
    letters = [c for c in text if c.isalpha()]
    if sum(c.isascii() for c in letters) < LATIN * len(letters):
        return "not English: other letters"
    if len(re.findall(r"[a-z']+", text.lower())) >= SENTENCE and not COMMON.search(text):
        return "not English: none of its commonest words"
    return "ok"


def contradiction(text: str, fact: Kinematics) -> str:
    """What the text claims that did not happen; empty where nothing."""
    states = {match[1].lower() for match in STATE.findall(text)}
    says = STATE.sub(" ", text)
    if CLOSES.search(says) and fact.kind != "grasp":
        return "says that the gripper closes, but nothing closed"
    if OPENS.search(says) and fact.kind != "release":
        return "says that the gripper opens, but nothing opened"
    if states and fact.kind in ("motion", "idle") and fact.gripper and states != {fact.gripper}:
        return f"says that the gripper is {' and '.join(sorted(states))}, but it is {fact.gripper}"
    if RESTS.search(says) and fact.kind != "idle":
        return "says that the arm rests, but it moves"
    if MOVES.search(says) and fact.kind == "idle":
        return "says that the arm moves, but it rests"
    return wrong_way(says, fact)


def wrong_way(text: str, fact: Kinematics) -> str:
    """A direction opposite to one that dominates the displacement, unless both are said."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    for name in fact.directions:
        if OPPOSITE[name] in words and name not in words:
            return f"says {OPPOSITE[name]}, but it went {name}"
    return ""
