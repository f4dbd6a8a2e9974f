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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, Field

from components import outputs, records
from components.errors import DataError

if TYPE_CHECKING:
    from components.episodes import Episode, Episodes
    from components.events_by_episode import EventsByEpisode
    from components.row_shards import RowShards
    from components.shards import Shards

SPAN = ["event_id", "episode_id", "start_frame", "end_frame", "start_s"]
LEVELS = ("task", "subtask", "action", "segment")
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
    from components.events_by_episode import EventsByEpisode
    from components.row_shards import RowShards

    table = records.read(events / "events.parquet", records.EVENTS).select(SPAN)
    if not len(table):
        raise DataError(f"{events}/events.parquet: no events; expected some. See data/quarantine.")
    kept = RowShards("clustering", {"sentences": sentences.DIGEST})
    pictured = config.picture_share > 0
    measured = _measured(Episodes(episodes), EventsByEpisode(table), pictured, kept)
    event_ids = measured["event_id"].to_pylist()
    said = _captions(captions / "captions.parquet", event_ids)
    texts, of_text = said.joined(config.caption_levels)
    sentence = descriptors.compact(_embed(texts, kept))
    joint = descriptors.joint_features(
        sentence, of_text, descriptors.seen(measured), config.picture_share
    )
    action = descriptors.action_features(measured)
    by_joint, joint_explained = groups.group(
        joint, config.joint_clusters, config.seed, config.restarts
    )
    by_action, action_explained = groups.group(
        action, config.action_clusters, config.seed, config.restarts
    )
    named = {
        "joint": names.caption_names(by_joint, said.texts("action")),
        "action": names.action_names(by_action, measured, action),
    }
    with outputs.whole_folder(clusters) as out:
        columns = {"event_id": event_ids, "joint_cluster": by_joint, "action_cluster": by_action}
        outputs.write_table(out / "clusters.parquet", pa.table(columns, schema=records.CLUSTERS))
        outputs.write_json(out / "names.json", named)
    return Report(
        events=len(event_ids),
        joint_clusters=len(named["joint"]),
        action_clusters=len(named["action"]),
        joint_explained=round(joint_explained, 6),
        action_explained=round(action_explained, 6),
        joint_sizes=_sizes(by_joint, named["joint"]),
        action_sizes=_sizes(by_action, named["action"]),
    )


class Said(NamedTuple):
    """What is said of N events on each level: `different[of[i, level]]`."""

    different: list[str]
    of: npt.NDArray[np.int64]  # (N, 4), levels in the order of LEVELS

    def texts(self, level: str) -> list[str]:
        """One level of all events."""
        return [self.different[place] for place in self.of[:, LEVELS.index(level)].tolist()]

    def joined(self, levels: Sequence[str]) -> tuple[list[str], npt.NDArray[np.intp]]:
        """Different texts (D,) of some levels read together, and which one each event has (N,)."""
        chosen = self.of[:, [LEVELS.index(level) for level in levels]]
        rows, of = np.unique(chosen, axis=0, return_inverse=True)
        return [". ".join(self.different[place] for place in row) for row in rows], of


def _captions(path: Path, event_ids: list[str]) -> Said:
    """What is said of each event. DataError names events that lack a text on any level."""
    from components.row_shards import encoded, values

    table = encoded(records.read(path, records.CAPTIONS).select(["event_id", "level", "text"]))
    ids, of_event = values(table["event_id"])
    levels, of_level = values(table["level"])
    texts, of_text = values(table["text"])
    place = {event_id: number for number, event_id in enumerate(event_ids)}
    rows = np.array([place.get(i, -1) for i in ids], dtype=np.int64)[of_event]
    places = [LEVELS.index(v) if v in LEVELS else -1 for v in levels]
    columns = np.array(places, dtype=np.int64)[of_level]
    empty = np.array([not text for text in texts], dtype=bool)[of_text]
    there = (rows >= 0) & (columns >= 0) & ~empty
    of = np.full((len(event_ids), len(LEVELS)), -1)
    of[rows[there], columns[there]] = of_text[there]
    if (lacking := np.argwhere(of < 0)).size:
        first = ", ".join(f"{event_ids[row]} ({LEVELS[column]})" for row, column in lacking[:3])
        raise DataError(
            f"{path}: {len(lacking)} caption(s) are missing, first {first}; "
            f"expected one for each event and level ({', '.join(LEVELS)}). Run captioning again."
        )
    return Said(texts, of)


def _embed(texts: list[str], kept: Shards) -> Any:
    """Vectors of the texts, float32 (D, 384); each different text is embedded once, ever."""
    from components.sentences import embed
    from components.shards import key

    names = {text: key("text", text) for text in texts}
    found = kept.recall(names.values())
    new = sorted(text for text, name in names.items() if name not in found)
    for at in range(0, len(new), AT_ONCE):
        some = new[at : at + AT_ONCE]
        packed = {names[t]: _packed(v) for t, v in zip(some, embed(some), strict=True)}
        kept.keep(packed)
        found |= packed
    return np.stack([np.frombuffer(b64decode(found[names[text]]), "<f4") for text in texts])


def _packed(vector: Any) -> str:
    return b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def _measured(
    episodes: Episodes, events: EventsByEpisode, pictured: bool, kept: RowShards
) -> pa.Table:
    """`descriptors.MEASURED` of all events, by event id; an episode is read once, ever."""
    from components.clustering import descriptors
    from components.row_shards import PIECE, encoded, numbers, values

    names = _names(episodes, events, pictured)
    found = kept.recall_rows(names.values(), descriptors.MEASURED)
    done = set(values(found[PIECE])[0])
    new = [i for i in episodes.ids if i in events and names[i] not in done]
    tables = [found]
    for at in range(0, len(new), AT_ONCE):
        rows = [
            row | {PIECE: names[i]}
            for i in new[at : at + AT_ONCE]
            for row in _rows(episodes[i], events[i], pictured)
        ]
        made = pa.Table.from_pylist(rows, schema=_with_piece(descriptors.MEASURED))
        kept.keep_rows(made)
        tables.append(encoded(made))
    whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    ids, of = values(whole["event_id"])
    return whole.take(numbers(np.argsort(np.array(ids)[of])))


def _with_piece(schema: pa.Schema) -> pa.Schema:
    from components.row_shards import PIECE

    return pa.schema([pa.field(PIECE, pa.string()), *schema])


def _names(episodes: Episodes, events: EventsByEpisode, pictured: bool) -> dict[str, str]:
    """Of each episode the name of its measurements in the store: all that they depend on."""
    from components.shards import key

    columns = _columns(episodes, list(events))
    return {
        i: key("episode", i, pictured, columns[i], text)
        for i, text in events.texts("event_id", "start_frame", "end_frame").items()
    }


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


def _rows(episode: Episode, events: list[dict[str, Any]], pictured: bool) -> list[dict[str, Any]]:
    """Rows of `descriptors.MEASURED` of one episode's events."""
    from components.clustering import descriptors

    for event in events:
        _check_span(episode, event)
    pictures: list[bytes | None] = [None] * len(events)
    if pictured and episode.clips:
        shown = descriptors.thumbnails(episode, np.array([event["start_s"] for event in events]))
        pictures = [one.tobytes() for one in shown]
    return [
        descriptors.measure(episode, event["start_frame"], event["end_frame"]).row()
        | {"event_id": event["event_id"], "picture": picture}
        for event, picture in zip(events, pictures, strict=True)
    ]


def _check_span(episode: Episode, row: dict[str, Any]) -> None:
    if not 0 <= row["start_frame"] < row["end_frame"] <= len(episode):
        raise DataError(
            f"event {row['event_id']}: frames {row['start_frame']} to {row['end_frame']} do not "
            f"lie in episode {row['episode_id']}, which has {len(episode)}. Run segmentation again."
        )


def _sizes(labels: Any, named: dict[str, str]) -> dict[str, int]:
    return {name: int((labels == int(label)).sum()) for label, name in named.items()}
