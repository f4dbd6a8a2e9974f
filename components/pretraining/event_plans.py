"""What training captions show for each task: its usual sequence of events."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa


def event_plans(manifest: pa.Table, plan: pa.Table, texts: list[str]) -> dict[str, list[str]]:
    """{task sentence: [action caption of event 1, event 2, ...]} from the training split.

    The plan of a task is the sequence of captions that most of its training episodes show; among
    equally common ones the shortest, then the first in alphabetical order.
    """
    tasks = dict(zip(manifest["episode_id"].to_pylist(), manifest["task"].to_pylist(), strict=True))
    events = sorted(
        (episode, start, text)
        for episode, start, split, text in zip(
            plan["episode_id"].to_pylist(),
            plan["start_frame"].to_pylist(),
            plan["split"].to_pylist(),
            texts,
            strict=True,
        )
        if split == "train"
    )
    sequences: dict[str, list[str]] = {}
    for episode, _, text in events:
        sequences.setdefault(episode, []).append(text)
    counts: dict[str, Counter[tuple[str, ...]]] = {}
    for episode, sequence in sequences.items():
        counts.setdefault(tasks[episode], Counter())[tuple(sequence)] += 1
    return {
        task: list(min(counter.items(), key=lambda item: (-item[1], len(item[0]), item[0]))[0])
        for task, counter in sorted(counts.items())
    }
