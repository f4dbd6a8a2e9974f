"""Training and validation, by episode: an episode's place does not depend on the others."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

ENOUGH_EPISODES = 5  # from here on, a wanted validation split is never empty


def validation_episodes(episode_ids: Collection[str], fraction: float, seed: int) -> set[str]:
    """The episodes held out: those whose hash falls below `fraction` (0 to below 1).

    More episodes never move those that are there. Two exceptions keep both splits in use: with at
    least 5 episodes and a fraction above 0 the lowest one is held out in any case, and the highest
    one never is.
    """
    if fraction == 0 or not episode_ids:
        return set()
    ordered = sorted(
        set(episode_ids), key=lambda episode_id: (_place(episode_id, seed), episode_id)
    )
    held = {episode_id for episode_id in ordered if _place(episode_id, seed) < fraction}
    if len(ordered) >= ENOUGH_EPISODES:
        held.add(ordered[0])
    return held - {ordered[-1]}


def _place(episode_id: str, seed: int) -> float:
    """A number in [0, 1) that only the id and the seed decide."""
    digest = hashlib.sha256(f"{seed}:{episode_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
