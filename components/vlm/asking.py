"""Values that every stage needs which asks a vision-language model, and the model they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from components.vlm.dialogue import Model

KEY = "WAMFLOW_{}_KEY"  # environment variable that holds an endpoint's key, by what it is asked for


class Asking(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """Which model is asked, with what, and how patiently."""

    model: str = Field(description="Absolute folder of weights, or the endpoint's model name.")
    model_digest: str = Field(
        pattern="^([0-9a-f]{64})?$",
        description="Digest that the folder of weights must have; the stage says what it is.",
    )
    base_url: str = Field(description="The endpoint's address, such as http://127.0.0.1:8000/v1.")
    prompt: str = Field(
        pattern="^[a-z0-9_]+$", description="Name of a file in the stage's folder of prompts."
    )
    pictures: int = Field(ge=1, le=32, description="Moments on a contact sheet.")
    picture_px: int = Field(ge=32, le=1024, description="Width of each, pixels.")
    max_new_tokens: int = Field(ge=16, le=4096, description="Longest reply, tokens.")
    temperature: float = Field(ge=0, le=2, description="Of sampling; 0 takes the likeliest token.")
    seed: int = Field(ge=0, lt=2**31, description="Of sampling.")
    device: Literal["cpu", "cuda"] = Field(description="Where a local model runs.")
    asks: int = Field(ge=1, le=5, description="Times a question is asked until a reply is usable.")
    concurrent: int = Field(ge=1, le=256, description="Requests at a time.")
    tries: int = Field(ge=1, le=10, description="Of a request: 429, 5xx, time-outs, cut lines.")
    timeout_s: float = Field(gt=0, le=600, description="For a whole reply, seconds.")
    requests_per_minute: float = Field(gt=0, le=100_000, description="Not more are sent.")
    input_usd_per_million: float = Field(ge=0, description="Price of a million prompt tokens.")
    output_usd_per_million: float = Field(ge=0, description="Price of a million reply tokens.")

    @property
    def decoding(self) -> dict[str, Any]:
        """What a model's replies depend on beside its weights and the question."""
        names = ("max_new_tokens", "temperature", "seed")
        return {name: getattr(self, name) for name in names}

    def cost_usd(self, input_tokens: int, output_tokens: int) -> float:
        """Price of so many tokens."""
        cost = input_tokens * self.input_usd_per_million
        return round((cost + output_tokens * self.output_usd_per_million) / 1e6, 6)

    def check(self, kind: str, what: str) -> None:
        """ValueError where no model of this kind is named; `what` it is asked for names its key."""
        if kind == "transformers" and not Path(self.model).is_absolute():
            raise ValueError(
                f"model: expected the absolute path of a folder of weights, got {self.model!r}; a "
                "run works in a folder of its own"
            )
        if kind == "openai":
            from urllib.parse import urlsplit

            address = urlsplit(self.base_url)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise ValueError(f"base_url: expected http(s)://HOST/..., got {self.base_url!r}")
            if address.username or address.password or address.query:
                raise ValueError(f"base_url: no key belongs here; set ${KEY.format(what.upper())}")
            if not self.model:
                raise ValueError("model: expected the endpoint's name of a model, got none")


def model_of(asking: Asking, kind: str, section: str) -> Model | None:
    """The model of a kind, None for any other; `section` of the values is named in messages.

    UserError when it cannot be used.
    """
    if kind == "transformers":
        from components.vlm.local_model import LocalModel

        folder, device = Path(asking.model), asking.device
        return LocalModel(folder, asking.model_digest, device, asking.decoding, section)
    if kind == "openai":
        from components.vlm.endpoint import Endpoint, Limits

        limits = Limits(
            asking.concurrent, asking.tries, asking.timeout_s, asking.requests_per_minute
        )
        key = KEY.format(section.rpartition(".")[2].upper())
        return Endpoint(asking.base_url, asking.model, asking.decoding, limits, section, key)
    return None
