"""A vision-language model looks over the cuts, where `segmentation.refinement` says so.

It is shown a contact sheet of each whole episode and asked first what happens, then when one
behaviour ends and another begins. It is told nothing of the signals' cuts, so what it says depends
on the episode alone and is kept when those change. `refined.py` puts the two together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components import outputs, records, report
from components.episodes import Episode, Episodes
from components.errors import UserError
from components.segmentation.refined import Beside, Bounds, Verdict
from components.segmentation.refinement import Refined, Refinement
from components.segmentation.tables import Made
from components.shards import Shards, key
from components.vlm import dialogue
from components.vlm.asking import model_of
from components.vlm.dialogue import (
    NO_ANSWER,
    Answer,
    Dialogue,
    Question,
    all_answered,
    commonest,
    json_object,
)
from components.vlm.sheet import contact_sheet

PROMPTS = Path(__file__).parent / "prompts"
SECTION = "segmentation.refinement"
PLACES = ("task", "duration", "most")
THEN = "\n---\n"  # between a prompt's two parts
COLUMNS = 6  # of a contact sheet
AT_ONCE = 16  # episodes after which what was said is kept
LONGEST_WHAT = 200  # characters
FARTHEST_S = 1e9  # whatever is beyond, or no number, is outside of every recording
Said = list[tuple[float, str]]  # seconds and what changes, in time order


@dataclass(frozen=True)
class Look:
    """What the model says of one episode; `problem` where nothing of it can be used."""

    says: Said = field(default_factory=list)
    problem: str = ""
    description: str = ""
    reply: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


class Looks:
    """The looks at all episodes, and what they were made with."""

    def __init__(self, config: Refinement) -> None:
        """UserError when the model or the prompt cannot be used."""
        model = model_of(config, config.refiner, SECTION)
        assert model is not None, config.refiner
        self.config, self.model = config, model
        path = PROMPTS / f"{config.prompt}.md"
        self.template = dialogue.prompt(path, PLACES, f"{SECTION}.prompt")
        if THEN not in self.template:
            raise UserError(
                f"{path}: expected two parts with a line `---` between them, the second one asking "
                "for the times; got one."
            )
        self.kept = Shards("segmentation", {"refinement": self._settings()})
        self._looks: dict[str, Look] = {}
        self._verdicts: dict[str, list[Verdict]] = {}

    def _settings(self) -> dict[str, Any]:
        """What replies depend on beside the episode."""
        values = self.config.model_dump(include={"pictures", "picture_px", "asks"})
        about = {"model": self.model.digest, "decoding": self.model.decoding}
        return values | about | {"prompt": self.template}

    def at(self, recordings: Episodes, skip: Mapping[str, str]) -> dict[str, Look]:
        """A look at each episode; those that `skip` has are not looked at, for its reason.

        What was said before comes from the store. DataError when a video cannot be read,
        TemporaryError when an endpoint does not answer, or not every question.
        """
        names = {i: self._name(recordings, i) for i in recordings.ids if i not in skip}
        recalled = self.kept.recall(names.values())
        found = {i: Look(problem=skip[i]) for i in recordings.ids if i in skip}
        found |= {i: Look(**recalled[name]) for i, name in names.items() if name in recalled}
        left = [i for i in recordings.ids if i not in found]
        for at in range(0, len(left), AT_ONCE):
            some = left[at : at + AT_ONCE]
            new = dict(zip(some, self._asked([recordings[i] for i in some]), strict=True))
            self.kept.keep(
                {names[i]: asdict(e) for i, e in new.items() if not e.problem.startswith(NO_ANSWER)}
            )
            found |= new
            print(f"segmentation: looked at {len(found)} of {len(recordings)} episodes", flush=True)
        if sent := self.model.sent():
            outputs.write_json(report.folder("segmentation") / "requests.json", sent)
        all_answered([found[i].problem for i in left], SECTION, "episode")
        return found

    def _name(self, recordings: Episodes, episode_id: str) -> str:
        row = recordings.row(episode_id)
        cameras = recordings.embodiment(row["embodiment"]).cameras
        return key(episode_id, row["task"], cameras)

    def _asked(self, episodes: list[Episode]) -> list[Look]:
        """First what happens, then, of those that it can tell, when."""
        first, then = zip(*(self._prompts(e) for e in episodes), strict=True)
        begun = [
            Dialogue(Question(text, sheet(e, self.config)))
            for text, e in zip(first, episodes, strict=True)
        ]
        told = dialogue.ask(
            self.model, begun, [described] * len(begun), _describe_again, self.config.asks
        )
        able = [i for i, answer in enumerate(told) if answer.said is not None]
        seen = dialogue.ask(
            self.model,
            [begun[i].goes_on(told[i].reply, then[i]) for i in able],
            [
                partial(changes, last_s=episodes[i].duration_s, most=self.config.pictures - 1)
                for i in able
            ],
            _say_again,
            self.config.asks,
        )
        by_place = dict(zip(able, seen, strict=True))
        return [_look(answer, by_place.get(i)) for i, answer in enumerate(told)]

    def _prompts(self, episode: Episode) -> tuple[str, str]:
        first, _, then = self.template.partition(THEN)
        places = {
            "task": dialogue.one_line(episode.task) or "not said",
            "duration": f"{episode.duration_s:.2f}",
            "pictures": str(self.config.pictures),
            "most": str(self.config.pictures - 1),
        }
        return dialogue.filled(first, **places), dialogue.filled(then, **places)

    def over(
        self,
        recordings: Episodes,
        found: Mapping[str, Made],
        min_event_s: float,
        max_event_s: float,
    ) -> dict[str, Made]:
        """Of the episodes that the model sees changes in, the machine's cuts with them.

        `found` has the machine's own of all. Raises as `at` does.
        """
        self._looks = self.at(recordings, _not_looked_at(recordings, found, 2 * min_event_s))
        seen = {}
        for episode_id, look in self._looks.items():
            if look.says:
                own, times_s = found[episode_id], recordings[episode_id].timestamps_s
                gap_s = float(times_s[-1]) / (self.config.pictures - 1)
                reach_s = self.config.reach * gap_s
                bounds = Bounds(min_event_s, max_event_s, reach_s, gap_s / 2)
                both = Beside(own.rows, look.says, times_s, own.finer, bounds)
                seen[episode_id] = own._replace(rows=both.rows)
                self._verdicts[episode_id] = both.verdicts
        return seen

    def table(self) -> pa.Table:
        """`records.REFINEMENT` of what `over` saw."""
        rows = [self._row(i, look) for i, look in sorted(self._looks.items())]
        return pa.Table.from_pylist(rows, schema=records.REFINEMENT)

    def _row(self, episode_id: str, look: Look) -> dict[str, Any]:
        verdicts = self._verdicts.get(episode_id, [])
        return {
            "episode_id": episode_id,
            "refiner": self.config.refiner,
            "model_digest": self.model.digest,
            "prompt_digest": dialogue.digest(self.template),
            "decoding": self.model.decoding,
            "description": look.description,
            "reply": look.reply,
            "changes": json.dumps(verdicts, sort_keys=True),
            "problem": look.problem,
            "input_tokens": look.input_tokens,
            "output_tokens": look.output_tokens,
        }

    def report(self) -> Refined:
        """Counts of what `over` saw."""
        every = self._looks.values()
        did = Counter(v["did"] for verdicts in self._verdicts.values() for v in verdicts)
        problems = Counter(look.problem for look in every if look.problem)
        tokens = sum(e.input_tokens for e in every), sum(e.output_tokens for e in every)
        return Refined(
            episodes=len(every) - problems.total(),
            problems=commonest(problems),
            changes=dict(sorted(did.items())),
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cost_usd=self.config.cost_usd(*tokens),
        )


def _not_looked_at(
    recordings: Episodes, found: Mapping[str, Made], least_s: float
) -> dict[str, str]:
    """Episodes in which no cut could come of it, and why."""
    embodiments = recordings.column("embodiment")
    blind = {e for e in set(embodiments.values()) if not recordings.embodiment(e).cameras}
    reasons = {}
    for episode_id, embodiment in embodiments.items():
        rows = found[episode_id].rows
        if embodiment in blind:
            reasons[episode_id] = "no camera"
        elif all(row["kind"] == "idle" for row in rows):
            reasons[episode_id] = "at rest throughout"
        elif rows[-1]["end_s"] < least_s:
            reasons[episode_id] = "too short for two events"
    return reasons


def sheet(episode: Episode, config: Refinement) -> Any:
    """Pictures of the whole episode with their times."""
    times_s = np.linspace(0.0, episode.duration_s, config.pictures)
    return contact_sheet(episode, times_s, config.picture_px, COLUMNS)


def described(reply: str) -> tuple[str | None, str]:
    """What happens, in the model's words, or what is wrong with them."""
    if len(reply) > dialogue.LONGEST_REPLY:
        return None, "description too long"
    text = dialogue.one_line(reply)
    return (text, "") if text else (None, "nothing is described")


def changes(reply: str, last_s: float, most: int) -> tuple[Said | None, str]:
    """Times (seconds) and what changes there, or what is wrong with the reply."""
    found, problem = json_object(reply)
    if found is None:
        return None, problem
    listed = found.get("changes")
    if not isinstance(listed, list):
        return None, "reply lacks a list of changes"
    says = [change for each in listed if (change := _change(each))]
    if len(says) < len(listed):
        problem = "a change lacks its time or words"
    elif len(says) > most:
        problem = f"{len(says)} changes, over {most}"
    elif any(not 0 <= at_s <= last_s for at_s, _ in says):
        problem = "a time lies outside of the recording"
    elif any(a >= b for (a, _), (b, _) in pairwise(says)):
        problem = "times do not increase"
    return (None, problem) if problem else (says, "")


def _change(each: Any) -> tuple[float, str] | None:
    at_s, what = (each.get("time_s"), each.get("what")) if isinstance(each, dict) else (None, None)
    if not isinstance(at_s, int | float) or isinstance(at_s, bool) or not isinstance(what, str):
        return None
    text = dialogue.one_line(what)[:LONGEST_WHAT]
    return (float(at_s) if abs(at_s) < FARTHEST_S else np.inf, text) if text else None


def _describe_again(problem: str) -> str:
    return f"That cannot be used: {problem}. Describe in words what happens."


def _say_again(problem: str) -> str:
    return (
        f"That cannot be used: {problem}. Answer with one JSON object only, like "
        '{"changes": [{"time_s": 0.85, "what": "the fingers close on the cup"}]}.'
    )


def _look(told: Answer[str], seen: Answer[Said] | None) -> Look:
    if seen is None:
        return Look([], told.problem, "", told.reply, told.input_tokens, told.output_tokens)
    return Look(
        [(at_s, what) for at_s, what in seen.said or []],
        seen.problem,
        told.said or "",
        seen.reply,
        told.input_tokens + seen.input_tokens,
        told.output_tokens + seen.output_tokens,
    )
