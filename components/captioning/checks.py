"""Does a caption fit? Length, language, and whether its words contradict what arm and gripper did.

It reads words only, so it judges any captioner's text the same way. The task's own sentence is left
out: "close the drawer" says nothing about the gripper.
"""

from __future__ import annotations

import re

from components.captioning.kinematics import OPPOSITE, Kinematics

CLOSES = re.compile(
    r"\b(grasp|grabb?|gripp?|pinch|seiz)(e|es|s|ed|ing)?\b|\bpick(s|ed|ing)? (\w+ ){0,4}?up\b"
    r"|\btak(es?|ing) hold\b|\b(clos(e|es|ed|ing)) (the |its )?(gripper|fingers)\b"
    r"|\b(gripper|fingers) (closes?|is closing|are closing)\b",
    re.IGNORECASE,
)
HOLDS = re.compile(r"\b(grasp|grabb|gripp|pinch|seiz)(ed|ing)\b", re.IGNORECASE)  # or closes
OPENS = re.compile(
    r"\breleas(e|es|ed|ing)\b|\blet(s|ting)? go\b|\bdrop(s|ped|ping)?\b"
    r"|\bopen(s|ed|ing)? (the |its )?(gripper|fingers)\b"
    r"|\b(gripper|fingers) (opens?|is opening|are opening)\b",
    re.IGNORECASE,
)
CARRIES = re.compile(r"\b(carr(y|ies|ied|ying)|lift(s|ed|ing)? (it|the|an?))\b", re.IGNORECASE)
STATE = re.compile(r"\b(with (the |its )?)?gripper (open|closed)\b", re.IGNORECASE)
RESTS = re.compile(
    r"\b(hold(s|ing)? still|stand(s|ing)? still|wait(s|ing)?|idle|idles"
    r"|(?<!the )rest(s|ing)?(?! (of|position|pose)\b))\b",
    re.IGNORECASE,
)
MOVES = re.compile(
    r"\b(mov(e|es|ing)|reach(es|ing)?|push(es|ing)?|pull(s|ing)?|lift(s|ing)?|carr(y|ies|ying)"
    r"|retreat(s|ing)?|lower(s|ing)?|press(es|ing)?)\b",
    re.IGNORECASE,
)
WARDS = re.compile(r"\b(up|down|left|right|for|back)wards?\b")
NO_WAY = re.compile(  # a thing's own side, and back to where it was
    r"\b(the|its|an?) (left|right)[ -](?!(and|or|while|then|with|by|in|at|for|over|to|from|as|of"
    r"|until|before|after|slowly|quickly|again)\b)(?=[a-z])"
    r"|\bthe back\b|\bback (?=(on|in)(to)?\b)"
    r"|\b(put|puts|putting|place|places|placing|set|sets|setting|return|returns|returning)"
    r" (\w+ ){0,5}back\b"
)
RISES = re.compile(r"\b(lift|rais|ascend|rise)(e|es|s|ed|ing)?\b")
SINKS = re.compile(r"\b(lower|descend|sink)(s|ed|ing)?\b")
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
    hand, gripper, idle = fact.phase.hand, fact.phase.gripper, fact.kind == "idle"
    states = {match[2].lower() for match in STATE.findall(text)}
    says = STATE.sub(" ", text)
    if fact.phase.holding and hand != "closes":
        says = HOLDS.sub(" ", says)
    claims = {
        "the gripper closes, but nothing closed": CLOSES.search(says) and hand != "closes",
        "the gripper opens, but nothing opened": OPENS.search(says) and hand != "opens",
        "something is carried, but the gripper is open": CARRIES.search(says)
        and gripper == "open"
        and not hand,
        f"the gripper is {' and '.join(sorted(states))}, but it is {gripper}": states
        and gripper
        and not hand
        and states != {gripper},
        "the arm rests, but it moves": RESTS.search(says) and not idle,
        "the arm moves, but it rests": MOVES.search(says) and idle,
    }
    wrong = [f"says that {claim}" for claim, is_wrong in claims.items() if is_wrong]
    return wrong[0] if wrong else wrong_way(CLOSES.sub(" ", says), fact)


def wrong_way(text: str, fact: Kinematics) -> str:
    """A direction opposite to one that dominates the displacement, unless both are said."""
    said = WARDS.sub(lambda match: {"for": "forward"}.get(match[1], match[1]), text.lower())
    said = NO_WAY.sub(" ", said)
    said = SINKS.sub(" down ", RISES.sub(" up ", said))
    words = set(re.findall(r"[a-z]+", said))
    for name in fact.directions:
        if OPPOSITE[name] in words and name not in words:
            return f"says {OPPOSITE[name]}, but it went {name}"
    return ""
