"""Learning rates over a training, as shares of their peaks: warmup, then WSD's or a cosine's way.

WSD (warmup, stable, decay; Hu et al. 2024, MiniCPM) holds the peak and falls in a line over the
last `cooldown` share of the steps; a cosine (Loshchilov & Hutter 2017) falls from the warmup's end.
"""

from __future__ import annotations

import math

from components.pretraining.stage import Config


def rate(step: int, steps: int, config: Config) -> float:
    """Share of the peak rate in `step` of `steps`, above 0 and at most 1."""
    share = (step + 1) / steps
    up = share / config.warmup if config.warmup else 1.0
    if config.schedule == "cosine":
        fallen = max(0.0, (share - config.warmup) / max(1 - config.warmup, 1 / steps))
        return min(up, 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * fallen)) / 2)
    down = (1 - share) / config.cooldown + 1e-3 if config.cooldown else 1.0
    return min(up, down, 1.0)
