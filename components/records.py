"""Rows that cross stage borders: Parquet schemas and ids. These column names are fixed (design)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import DataError
from components.outputs import write_table

MANIFEST = pa.schema(
    {
        "episode_id": pa.string(),
        "source": pa.string(),  # name of the source in params.yaml's list: last part of its address
        "source_uri": pa.string(),  # the recording's own address
        "source_version": pa.string(),  # digest of the recording's files when they were listed
        "embodiment": pa.string(),  # the sub-folder of data/episodes that holds the episode
        "episode_index": pa.int64(),  # within that sub-folder's LeRobot data set
        "task": pa.string(),
        "n_frames": pa.int64(),
        "duration_s": pa.float64(),
        "fps": pa.float64(),
        "robot_serial": pa.string(),  # empty where unknown
        "operator": pa.string(),  # the same
        "origins": pa.list_(pa.string()),  # every address that held this content
        "checks": pa.string(),  # JSON: warning -> what was found; {} where nothing was
        "video_lag_s": pa.float64(),  # how late pictures show the state; null where not clear
        "action_lag_s": pa.float64(),  # how late the state follows the action; null where not clear
    }
)
QUARANTINE = pa.schema(
    {
        "source_uri": pa.string(),
        "episode_index": pa.int64(),  # null for an object of no episode
        "reason": pa.string(),  # a value of components.ingestion.reasons.Reason
        "detail": pa.string(),
    }
)
PERSON = "person"  # captioner of words that people gave
EVENTS = pa.schema(
    {
        "event_id": pa.string(),
        "episode_id": pa.string(),
        "start_s": pa.float64(),  # timestamps are the truth, relative to the episode's start
        "end_s": pa.float64(),  # timestamp of the last frame for the last event
        "start_frame": pa.int64(),  # first frame
        "end_frame": pa.int64(),  # one past the last frame
        "kind": pa.string(),  # motion, grasp, release or idle
        "score": pa.float64(),  # of the boundary at its start, 0 to 1
        "evidence": pa.string(),  # JSON: which signals voted for the boundary at its start; person:
        # author and time of who set this event, or only the boundary at its start; vlm: a model
        # sees a change there, too, or alone (score 0), as refinement.parquet says
    }
)
REFINEMENT = pa.schema(  # where a vision-language model looked at episodes; else there is no such
    {
        "episode_id": pa.string(),
        "refiner": pa.string(),  # transformers or openai
        "model_digest": pa.string(),
        "prompt_digest": pa.string(),
        "decoding": pa.string(),  # JSON: parameters of the model's decoding
        "description": pa.string(),  # what the model says that happens
        "reply": pa.string(),  # then, with the times of changes, as it came
        # JSON: for each time says_s, what changes, what became of it (did: confirmed, moved, added
        # or left out, and why), at_s: the boundary's own time
        "changes": pa.string(),
        "problem": pa.string(),  # why nothing of it could be used; empty otherwise
        "input_tokens": pa.int64(),
        "output_tokens": pa.int64(),
    }
)
HIERARCHY = pa.schema(
    {
        "node_id": pa.string(),  # of an action, its event_id
        "parent_id": pa.string(),  # empty for a task
        "episode_id": pa.string(),
        "level": pa.string(),  # task, subtask, action (the event), segment
        "start_s": pa.float64(),
        "end_s": pa.float64(),
        "start_frame": pa.int64(),
        "end_frame": pa.int64(),  # one past the last frame
        "score": pa.float64(),  # of the boundary at its start, as the event's
    }
)
CAPTIONS = pa.schema(
    {
        "event_id": pa.string(),
        "level": pa.string(),  # task, subtask, action, segment
        "text": pa.string(),
        "captioner": pa.string(),  # kinematics, transformers, openai, or person
        "model_digest": pa.string(),
        "prompt_digest": pa.string(),
        "decoding": pa.string(),  # JSON: parameters of a language model's decoding; {} for others
        # JSON: {check: "ok" or what is wrong}; `fallback`: why a model's text is not here
        "checks": pa.string(),
        "author": pa.string(),  # of a person's words; empty otherwise, as the next two
        "time": pa.string(),  # when they were said, ISO 8601
        "machine_text": pa.string(),  # what the machine says there
    }
)
CLUSTERS = pa.schema(
    {
        "event_id": pa.string(),
        "joint_cluster": pa.int64(),
        "action_cluster": pa.int64(),
    }
)
PLAN = pa.schema(
    {
        "event_id": pa.string(),
        "episode_id": pa.string(),
        "weight": pa.float64(),  # probability of a draw; sums to 1 over the split
        "draws": pa.int64(),  # planned draws
        "split": pa.string(),  # train or validation
    }
)
EXPOSURE = pa.schema(
    {
        "event_id": pa.string(),
        "episode_id": pa.string(),
        "planned_draws": pa.int64(),
        "draws": pa.int64(),  # draws that training really made
    }
)
SKIPPED_DRAWS = pa.field("skipped_draws", pa.int64())  # of an EXPOSURE: made, but changed no weight
TRIALS = pa.schema(
    {
        "trial": pa.int64(),  # position in the interleaved list
        "station": pa.string(),  # metaworld, or replay (open loop, no robot moved)
        "task": pa.string(),
        "policy": pa.string(),  # model, hold_still or random
        "seed": pa.int64(),  # of the reset; in replay, the event's number
        "success": pa.bool_(),  # null in replay
        "steps": pa.int64(),
        "error": pa.float64(),  # open loop: mean |action error| in normalised units; null otherwise
        "events": pa.string(),  # JSON: captions executed with their lengths in control steps
        "checkpoint_digest": pa.string(),
    }
)


def event_id(episode_id: str, start_s: float, end_s: float) -> str:
    """An event is named by (episode id, start, end), to the microsecond; 20 hexadecimal digits."""
    return hashlib.sha256(f"{episode_id}:{start_s:.6f}:{end_s:.6f}".encode()).hexdigest()[:20]


def write(path: Path, rows: list[dict[str, object]], schema: pa.Schema, sort_by: str) -> None:
    """Rows in a fixed order and schema, so that equal rows give equal bytes."""
    table = pa.Table.from_pylist(rows, schema=schema)
    write_table(path, table.sort_by(sort_by) if len(rows) else table)


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """A table that has at least the schema's columns. DataError names what is missing."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; run the stage that writes it.")
    try:
        table = pq.ParquetFile(path).read()  # read_table imports pyarrow.dataset and pandas first
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: columns {missing} are missing; got {table.column_names}.")
    return table
