"""Clustering: group events by what is said and seen (joint) and by what is done (action).

Joint clusters: k-means over the sentence embedding of the captions beside a thumbnail of the
event's first picture. Action clusters: k-means over kinematics, relative to the event's own
embodiment. Both follow the data section of WALL-WM (arXiv 2606.01955), which balances sampling over
the two; the choice of descriptors is ours.

What is measured of an episode and the vector of a text are kept in the shard store, so that new
episodes cost what they are; k-means itself sees all events at once, in every run.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from components import outputs, records
from components.errors import DataError

if TYPE_CHECKING:
    from components.episodes import Episode, Episodes
    from components.shards import Shards

SPAN = ["event_id", "episode_id", "start_frame", "end_frame", "start_s"]
AT_ONCE = 1024  # episodes or texts after which what is done is kept


class Config(BaseModel, frozen=True, extra="forbid"):
    """How events are grouped."""

    joint_clusters: int = Field(
        ge=1, le=10_000, description="Clusters by words and picture, at most."
    )
    action_clusters: int = Field(ge=1, le=10_000, description="Clusters by kinematics, at most.")
    caption_levels: list[Literal["task", "subtask", "action", "segment"]] = Field(
        min_length=1, description="Caption levels that are read together, in this order."
    )
    picture_share: float = Field(
        ge=0, le=1, description="Share of the joint variance from pictures; 0 opens no video."
    )
    restarts: int = Field(ge=1, le=100, description="k-means starts; the best one is kept.")
    seed: int = Field(ge=0, description="Seed of k-means.")


class Report(BaseModel):
    """What came out: numbers of clusters, their sizes by name, and how much they explain."""

    events: int
    joint_clusters: int
    action_clusters: int
    joint_explained: float = Field(
        description="Share of the joint variance between clusters, 0 to 1."
    )
    action_explained: float = Field(description="Share of the action variance, 0 to 1.")
    joint_sizes: dict[str, int]
    action_sizes: dict[str, int]


def run(episodes: Path, events: Path, captions: Path, clusters: Path, *, config: Config) -> Report:
    """Write `clusters.parquet` (one row an event) and `names.json`.

    DataError when an event has no caption, no episode or no frames.
    """
    from components import sentences
    from components.clustering import descriptors, groups, names
    from components.episodes import Episodes
    from components.shards import Shards

    table = records.read(events / "events.parquet", records.EVENTS).select(SPAN)
    rows = table.sort_by("event_id").to_pylist()
    if not rows:
        raise DataError(f"{events}/events.parquet: no events; expected some. See data/quarantine.")
    said = _captions(captions / "captions.parquet", [row["event_id"] for row in rows])
    kept = Shards("clustering", {"sentences": sentences.DIGEST})
    done, seen = _describe(Episodes(episodes), rows, config.picture_share > 0, kept)
    texts = [". ".join(levels[level] for level in config.caption_levels) for levels in said]
    joint = descriptors.joint_features(_embed(texts, kept), seen, config.picture_share)
    action = descriptors.action_features(done)
    by_joint, joint_explained = groups.group(
        joint, config.joint_clusters, config.seed, config.restarts
    )
    by_action, action_explained = groups.group(
        action, config.action_clusters, config.seed, config.restarts
    )
    named = {
        "joint": names.caption_names(by_joint, [levels["action"] for levels in said]),
        "action": names.action_names(by_action, done, action),
    }
    with outputs.whole_folder(clusters) as out:
        table = [
            {"event_id": row["event_id"], "joint_cluster": int(j), "action_cluster": int(a)}
            for row, j, a in zip(rows, by_joint, by_action, strict=True)
        ]
        records.write(out / "clusters.parquet", table, records.CLUSTERS, "event_id")
        outputs.write_json(out / "names.json", named)
    return Report(
        events=len(rows),
        joint_clusters=len(named["joint"]),
        action_clusters=len(named["action"]),
        joint_explained=round(joint_explained, 6),
        action_explained=round(action_explained, 6),
        joint_sizes=_sizes(by_joint, named["joint"]),
        action_sizes=_sizes(by_action, named["action"]),
    )


def _captions(path: Path, event_ids: list[str]) -> list[dict[str, str]]:
    """Of each event its texts by level, all four. DataError names events that lack one."""
    texts: dict[str, dict[str, str]] = {}
    table = records.read(path, records.CAPTIONS)
    columns = (table[name].to_pylist() for name in ("event_id", "level", "text"))
    for event_id, level, text in zip(*columns, strict=True):
        texts.setdefault(event_id, {})[level] = text
    levels = ("task", "subtask", "action", "segment")
    lacking = [
        f"{event_id} ({level})"
        for event_id in event_ids
        if not all(map(texts.get(event_id, {}).get, levels))
        for level in levels
        if not texts.get(event_id, {}).get(level)
    ]
    if lacking:
        raise DataError(
            f"{path}: {len(lacking)} caption(s) are missing, first {', '.join(lacking[:3])}; "
            f"expected one for each event and level ({', '.join(levels)}). Run captioning again."
        )
    return [texts[event_id] for event_id in event_ids]


def _embed(texts: list[str], kept: Shards) -> Any:
    """Vectors of the texts, float32 (N, 384); each different text is embedded once, ever."""
    from components.sentences import WIDTH, embed
    from components.shards import key

    names = {text: key("text", text) for text in texts}
    found = kept.recall(names.values())
    new = sorted(text for text, name in names.items() if name not in found)
    for at in range(0, len(new), AT_ONCE):
        some = new[at : at + AT_ONCE]
        packed = {names[t]: _packed(v) for t, v in zip(some, embed(some), strict=True)}
        kept.keep(packed)
        found |= packed
    vectors = np.stack([np.frombuffer(b64decode(found[name]), "<f4") for name in names.values()])
    place = {text: number for number, text in enumerate(names)}
    return vectors.reshape(-1, WIDTH)[[place[text] for text in texts]]


def _packed(vector: Any) -> str:
    return b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def _describe(
    episodes: Episodes, rows: list[dict[str, Any]], with_pictures: bool, kept: Shards
) -> tuple[list[Any], Any]:
    """Kinematics of each row, and its thumbnail (NaN if not asked for); episodes are read once."""
    from components.clustering import descriptors
    from components.shards import key

    by_episode: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_episode.setdefault(row["episode_id"], []).append(index)
    columns = _columns(episodes, list(by_episode))
    names = {
        i: key("episode", i, with_pictures, columns[i], [_span(rows[n]) for n in of])
        for i, of in by_episode.items()
    }
    found = kept.recall(names.values())
    known = [episode_id for episode_id in episodes.ids if episode_id in by_episode]
    new = [episode_id for episode_id in known if names[episode_id] not in found]
    for at in range(0, len(new), AT_ONCE):
        some = {
            names[i]: _measured(episodes[i], [rows[n] for n in by_episode[i]], with_pictures)
            for i in new[at : at + AT_ONCE]
        }
        kept.keep(some)
        found |= some
    done: list[Any] = [None] * len(rows)
    seen = np.full((len(rows), 3 * descriptors.THUMBNAIL[0] * descriptors.THUMBNAIL[1]), np.nan)
    for episode_id, indices in by_episode.items():
        for index, (motion, picture) in zip(indices, found[names[episode_id]], strict=True):
            done[index] = descriptors.Kinematics.from_dict(motion)
            if picture:
                seen[index] = np.frombuffer(b64decode(picture), np.uint8) / 255.0
    return done, seen


def _columns(episodes: Episodes, ids: list[str]) -> dict[str, Any]:
    """Of each episode embodiment and names of state and action. DataError for an unknown one."""
    embodiments = episodes.column("embodiment")
    if others := [i for i in ids if i not in embodiments]:
        episodes.row(others[0])  # says what is wrong
    named = {}
    for embodiment in {embodiments[i] for i in ids}:
        features = episodes.embodiment(embodiment).info["features"]
        names = [features[signal]["names"] for signal in ("observation.state", "action")]
        named[embodiment] = (embodiment, *names)
    return {i: named[embodiments[i]] for i in ids}


def _span(row: dict[str, Any]) -> list[Any]:
    return [row["start_frame"], row["end_frame"], row["start_s"]]


def _measured(
    episode: Episode, rows: list[dict[str, Any]], with_pictures: bool
) -> list[tuple[dict[str, Any], str]]:
    """Of each event its kinematics, and its thumbnail where there is one, as JSON can say them."""
    from components.clustering import descriptors

    for row in rows:
        _check_span(episode, row)
    done = [descriptors.measure(episode, row["start_frame"], row["end_frame"]) for row in rows]
    pictures = [""] * len(rows)
    if with_pictures and episode.clips:
        shown = descriptors.thumbnails(episode, np.array([row["start_s"] for row in rows]))
        pictures = [b64encode(one.tobytes()).decode() for one in shown]
    return [(each.as_dict(), picture) for each, picture in zip(done, pictures, strict=True)]


def _check_span(episode: Episode, row: dict[str, Any]) -> None:
    if not 0 <= row["start_frame"] < row["end_frame"] <= len(episode):
        raise DataError(
            f"event {row['event_id']}: frames {row['start_frame']} to {row['end_frame']} do not "
            f"lie in episode {row['episode_id']}, which has {len(episode)}. Run segmentation again."
        )


def _sizes(labels: Any, named: dict[str, str]) -> dict[str, int]:
    return {name: int((labels == int(label)).sum()) for label, name in named.items()}
