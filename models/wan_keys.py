"""Names of diffusers' `WanTransformer3DModel` parameters and ours: a renaming, nothing else.

What we add to Wan (`ADDED`) is not in its weights and starts so that it changes nothing.
"""

from __future__ import annotations

import re

ADDED = re.compile(
    r"hidden|cameras\.angles|blocks\.\d+\.across_gate|blocks\.\d+\.across\.\w+\.(weight|bias)"
)

_RENAMED = (  # (theirs, ours), matched from the start, in this order
    (r"condition_embedder\.time_embedder\.linear_1", "time_in"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_out"),
    (r"condition_embedder\.time_proj", "time_levels"),
    (r"condition_embedder\.text_embedder\.linear_1", "text.up"),
    (r"condition_embedder\.text_embedder\.linear_2", "text.down"),
    (r"proj_out", "head"),
    (r"(blocks\.\d+)\.norm2", r"\1.text_norm"),
    (r"(blocks\.\d+)\.ffn\.net\.0\.proj", r"\1.feed.up"),
    (r"(blocks\.\d+)\.ffn\.net\.2", r"\1.feed.down"),
    (r"(blocks\.\d+)\.attn1\.", r"\1.within."),
    (r"(blocks\.\d+)\.attn2\.", r"\1.read_text."),
)
_PROJECTIONS = {
    "to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out",
    "norm_q": "query_norm", "norm_k": "key_norm",
}  # fmt: skip


def ours(theirs: str) -> str:
    """Our name of a parameter of diffusers' model; names that need no change pass through."""
    name = theirs
    for pattern, replacement in _RENAMED:
        name = re.sub(f"^{pattern}", replacement, name)
    place = re.fullmatch(r"(blocks\.\d+\.(?:within|read_text))\.(.+)\.(weight|bias)", name)
    if place and place[2] in _PROJECTIONS:
        name = f"{place[1]}.{_PROJECTIONS[place[2]]}.{place[3]}"
    return name
