"""The model that `pretraining.preset` names, and its windows.

Three models are trained by one loop: the small one, the full one, and the staircase beside it. What
it asks of them: windows whose `batch` has `to(device)`, `packing` and `with_noise(random)`; a model
with `shape`, `terms` (the names of its losses) and `losses(*batch.with_noise(random))`, whose
`total` is minimised.
"""

from __future__ import annotations

from pathlib import Path

from components.pretraining.stage import Config
from components.pretraining.windows import Windows
from models.reasoner import Reasoner
from models.wall import WallModel
from models.wam import Shape, WorldActionModel

Model = WorldActionModel | WallModel | Reasoner


def windows(folder: Path, config: Config) -> Windows:
    """The training view in `folder`, as the model wants to be shown it."""
    if config.preset == "small":
        return Windows(folder, config)
    if config.full.stage == "staircase":
        from components.pretraining.reasons import ReasonWindows

        return ReasonWindows(folder, config)
    from components.pretraining.full_windows import FullWindows

    return FullWindows(folder, config)


def model(windows: Windows, config: Config) -> Model:
    """With initial weights: random ones from torch's generator, or those that were declared."""
    from components.pretraining import full, reasons, starting

    if isinstance(windows, reasons.ReasonWindows):
        return reasons.model(windows)
    if config.preset != "small":
        return full.model(config, windows.info["initial"])
    made = WorldActionModel(shape(windows, config))
    starting.load(made, windows.info["initial"])
    return made


def shape(windows: Windows, config: Config) -> Shape:
    """The small model's sizes: the configured ones and those that the data bring."""
    return Shape(
        **config.model.model_dump(),
        views=len(windows.info["cameras"]),
        text_width=windows.arrays["text"].shape[1],
        state_width=windows.arrays["state"].shape[1],
        action_width=windows.arrays["action"].shape[1],
    )
