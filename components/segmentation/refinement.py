"""Values and report of the model that looks over the cuts, if any (`looks.py`).

Apart, since every run reads them and few runs ask a model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from components.vlm.asking import Asking


class Refiner(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """Who looks at the cuts, and how far they may move."""

    refiner: Literal["none", "transformers", "openai"] = Field(
        description="none: the signals alone. transformers: a model in a local folder. openai: any "
        "OpenAI-compatible endpoint; its key is read from $WAMFLOW_REFINEMENT_KEY."
    )
    reach: float = Field(
        ge=0,
        le=10,
        description="The farthest that a cut moves to where the model sees one, in times between "
        "two pictures.",
    )


class Refinement(Asking, Refiner, frozen=True, extra="forbid"):  # forms show Refiner's fields first
    """Who looks at the cuts, and how a model is asked."""

    pictures: int = Field(
        ge=4,
        le=96,
        description="Moments of an episode that the model sees; more changes than lie between them "
        "are not believed.",
    )

    @model_validator(mode="after")
    def _a_model_is_named(self) -> Refinement:
        self.check(self.refiner, "refinement")
        return self


class Refined(BaseModel):
    """What the model said, and what became of it."""

    episodes: int  # whose changes are known
    problems: dict[str, int]  # why nothing could be used -> episodes
    changes: dict[str, int]  # confirmed, moved, added, left out
    input_tokens: int  # what it cost when it was said
    output_tokens: int
    cost_usd: float
