"""Per-embodiment normalisation: robust quantiles, from the signals alone (no video is decoded)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.episodes import Episode

Float = npt.NDArray[np.float32]
LIMIT = (
    1.5  # a normalised value further out is clipped: it is an outlier of the 1 % and 99 % quantiles
)


@dataclass(frozen=True)
class Normalisation:
    """Quantiles (q01, q99) of state (S,) and action (A,) of one robot."""

    state_q01: Float
    state_q99: Float
    action_q01: Float
    action_q99: Float

    def state(self, values: Float) -> Float:
        """Robot units (..., S) -> about -1..1."""
        return _normalised(values, self.state_q01, self.state_q99)

    def action(self, values: Float) -> Float:
        """Robot units (..., A) -> about -1..1."""
        return _normalised(values, self.action_q01, self.action_q99)

    def action_in_units(self, normalised: Float) -> Float:
        """The inverse of `action`."""
        span = self.action_q99 - self.action_q01
        return (self.action_q01 + (normalised + 1) / 2 * span).astype(np.float32)

    def as_dict(self) -> dict[str, dict[str, list[float]]]:
        """For normalisation.json."""
        return {
            "state": {"q01": self.state_q01.tolist(), "q99": self.state_q99.tolist()},
            "action": {"q01": self.action_q01.tolist(), "q99": self.action_q99.tolist()},
        }

    @staticmethod
    def from_dict(value: dict[str, dict[str, list[float]]]) -> Normalisation:
        """The inverse of `as_dict`."""
        return Normalisation(
            *(
                np.array(value[signal][quantile], dtype=np.float32)
                for signal in ("state", "action")
                for quantile in ("q01", "q99")
            )
        )


def quantiles(episodes: list[Episode]) -> dict[str, Normalisation]:
    """One Normalisation for each embodiment, over all its frames."""
    by_robot: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_robot.setdefault(episode.embodiment, []).append(episode)
    return {
        name: Normalisation(
            *_range(np.concatenate([e.state for e in group])),
            *_range(np.concatenate([e.action for e in group])),
        )
        for name, group in by_robot.items()
    }


def _range(values: Float) -> tuple[Float, Float]:
    """Quantiles (1 %, 99 %); a dimension that hardly moves keeps a span."""
    low, high = np.quantile(values.astype(np.float64), [0.01, 0.99], axis=0)
    still = high - low < 1e-6
    low, high = np.where(still, low - 1, low), np.where(still, high + 1, high)
    return low.astype(np.float32), high.astype(np.float32)


def _normalised(values: Float, q01: Float, q99: Float) -> Float:
    scaled = 2 * (values - q01) / (q99 - q01) - 1
    clipped: Float = np.clip(scaled, -LIMIT, LIMIT).astype(np.float32)
    return clipped
