"""Which registered versions a version's weights go back to, by `inputs/init.json` of its commit.

An episode teaches every version that starts from one that learned from it, however its own data
look. Weights are known by sha256: the passport's `digests.json` says those of a version.
"""

from __future__ import annotations

import json
from pathlib import Path

from flows.lineage import chain, history
from flows.lineage.cache import Cache
from flows.lineage.history import PastRun, Version

WEIGHTS = "model.safetensors"


def before(
    repo: Path, versions: list[Version], runs: dict[str, PastRun], cache: Cache
) -> tuple[dict[str, list[str]], list[chain.Check]]:
    """Of each version the tags that it goes back to, the nearest first.

    A version whose declared weights are of no registered version is an unchecked link.
    """
    declared = {tag: digest for tag, digest in _declared(repo, versions).items() if digest}
    if not declared:
        return {}, []
    made = {chain.passport_weights(runs[v.commit], cache): v.tag for v in reversed(versions)}
    why = "no registered version has these weights, so what they were trained on is not searched"
    lost = [
        chain.Check(f"{tag}: inputs/init.json: model", why, None)
        for tag, digest in declared.items()
        if digest not in made
    ]
    parent = {tag: made[digest] for tag, digest in declared.items() if digest in made}
    return {v.tag: _line(v.tag, parent) for v in versions}, lost


def _declared(repo: Path, versions: list[Version]) -> dict[str, str]:
    """sha256 of the earlier model's weights, of each version; empty where there is none."""
    specs = {v.tag: f"{v.commit}:inputs/init.json" for v in versions}
    texts = history.blobs(repo, specs.values())
    told = {tag: json.loads(texts.get(spec, b"{}")) for tag, spec in specs.items()}
    return {t: d.get("model", {}).get("sha256", {}).get(WEIGHTS, "") for t, d in told.items()}


def _line(tag: str, parent: dict[str, str]) -> list[str]:
    found: list[str] = []
    at = parent.get(tag)
    while at and at not in (tag, *found):
        found.append(at)
        at = parent.get(at)
    return found
