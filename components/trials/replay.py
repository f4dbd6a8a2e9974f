"""A robot without a station, replayed open loop: predicted against recorded actions.

For each held-out event (split `validation` of the plan; where there is none, `train`) the policy
server gets what the robot saw at the event's start and the event's caption; its actions are
compared with the recorded ones over the event's length, a prediction that is too short holding its
last action. The error is the mean absolute difference in normalised units: the span between q01
and q99 of an action (`normalisation.json`) is 2. It says nothing about success, so `success` stays
null.

Two baselines stand beside it: `hold_still` (velocities and changes, told by their names, are zero;
any other command is repeated as it was in the step before the event) and `random` (uniform between
q01 and q99, each draw held).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from components import records
from components.episodes import Episode, Episodes
from components.errors import DataError
from components.normalisation import Normalisation
from components.serving.client import PolicyClient
from components.stations.station import Float, Observation
from components.trials.actors import checked, history, request
from components.trials.settings import POLICIES, Config

CHANGE = re.compile(r"vel|delta|(^|_)d_?(x|y|z|rx|ry|rz|roll|pitch|yaw)$", re.IGNORECASE)


class Recorded(NamedTuple):
    """One event of a recording; L control steps."""

    number: int  # among the replayed ones
    episode: Episode
    start: int  # first frame
    end: int  # one past the last frame
    caption: str
    ranges: Normalisation

    @property
    def actions(self) -> Float:
        """What was done (L, A), in the robot's units."""
        return self.episode.action[self.start : self.end]

    def observation(self) -> Observation:
        """What the robot saw at the event's start."""
        at_s = self.episode.timestamps_s[[self.start]]
        images = {
            camera.removeprefix("observation.images."): clip.frames(at_s)[0]
            for camera, clip in self.episode.clips.items()
        }
        return Observation(images, self.episode.state[self.start])

    def request(self, metadata: dict[str, Any], seed: int) -> dict[str, Any]:
        """What a served model is asked at the event's start; its metadata say what it is shown."""
        count, every = history(metadata)
        at = [self.start - every * back for back in range(count, 0, -1)]
        instants = self.episode.timestamps_s[[frame for frame in at if frame >= 0]]
        named = {c.removeprefix("observation.images."): v for c, v in self.episode.clips.items()}
        seen = {camera: clip.frames(instants) for camera, clip in named.items()} if count else {}
        earlier = [{c: seen[c][n] for c in seen} for n in range(len(instants))]
        return request(self.observation(), self.caption, seed, earlier)

    def error(self, predicted: Float) -> float:
        """Mean |predicted - recorded| in normalised units, `predicted` (H, A)."""
        missing = max(0, len(self.actions) - len(predicted))
        held = np.concatenate([predicted, np.repeat(predicted[-1:], missing, axis=0)])
        gap = np.abs(held[: len(self.actions)] - self.actions)
        return float(
            np.mean(2 * gap / (self.ranges.action_q99 - self.ranges.action_q01), dtype=np.float64)
        )


def read(
    episodes: Path, captions: Path, plan: Path, checkpoint: Path, config: Config
) -> list[Recorded]:
    """At most `config.replay_events` events, drawn with the seed. DataError when there are none."""
    table = records.read(plan / "plan.parquet", records.PLAN).sort_by("event_id").to_pylist()
    rows = [row for row in table if row["split"] == "validation"] or table
    if not rows:
        raise DataError(f"{plan / 'plan.parquet'}: no events; nothing can be replayed.")
    count = min(config.replay_events, len(rows))
    chosen = np.sort(np.random.default_rng(config.seed).choice(len(rows), count, replace=False))
    texts = {
        row["event_id"]: row["text"]
        for row in records.read(captions / "captions.parquet", records.CAPTIONS).to_pylist()
        if row["level"] == "action"
    }
    text = (checkpoint / "normalisation.json").read_text()
    ranges = {name: Normalisation.from_dict(v) for name, v in json.loads(text).items()}
    source = Episodes(episodes)
    return [_recorded(n, rows[index], source, texts, ranges) for n, index in enumerate(chosen)]


def replay(
    recordings: list[Recorded], clients: dict[str, PolicyClient], config: Config, digest: str
) -> list[dict[str, Any]]:
    """Three rows of trials.parquet for each event; `clients` reach each embodiment's policy."""
    rows: list[dict[str, Any]] = []
    for event in recordings:
        predictions = {
            "model": _asked(event, clients[event.episode.embodiment], config),
            "hold_still": hold_still(event),
            "random": _random(event, config),
        }
        for policy in POLICIES:
            rows.append(
                {
                    "trial": len(rows),
                    "station": "replay",
                    "task": event.episode.task,
                    "policy": policy,
                    "seed": event.number,
                    "success": None,
                    "steps": len(event.actions),
                    "error": event.error(predictions[policy]),
                    "events": json.dumps([(event.caption, len(event.actions))]),
                    "checkpoint_digest": digest,
                }
            )
    return rows


def hold_still(event: Recorded) -> Float:
    """The command (1, A) of a robot that keeps its place."""
    before: Float = event.episode.action[max(event.start - 1, 0)].copy()
    changes = [bool(CHANGE.search(name)) for name in event.episode.action_names]
    before[changes] = 0
    return before[None]


def _random(event: Recorded, config: Config) -> Float:
    random = np.random.default_rng((config.seed, event.number))
    low, high = event.ranges.action_q01, event.ranges.action_q99
    draws = -(-len(event.actions) // config.random_hold_steps)
    drawn = random.uniform(low, high, (draws, len(low)))
    return np.repeat(drawn, config.random_hold_steps, axis=0).astype(np.float32)


def _asked(event: Recorded, client: PolicyClient, config: Config) -> Float:
    seed = int(np.random.SeedSequence((config.seed, event.number)).generate_state(1)[0]) >> 1
    reply = client.infer(event.request(client.metadata, seed))
    actions, _ = checked(reply, event.actions.shape[1])
    return actions


def _recorded(
    number: int,
    row: dict[str, Any],
    source: Episodes,
    texts: dict[str, str],
    ranges: dict[str, Normalisation],
) -> Recorded:
    episode = source[row["episode_id"]]
    if row["event_id"] not in texts or episode.embodiment not in ranges:
        raise DataError(
            f"replay: event {row['event_id']} of {episode.embodiment}: expected an action caption "
            "and a range in normalisation.json; run the chain from captioning on."
        )
    frames, caption = (row["start_frame"], row["end_frame"]), texts[row["event_id"]]
    return Recorded(number, episode, *frames, caption, ranges[episode.embodiment])
