"""Every number times the temperature."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from components import outputs


class Config(BaseModel, frozen=True, extra="forbid"):
    temperature: float = Field(gt=0, le=10, description="What every number is multiplied by.")


class Report(BaseModel):
    total: float


def run(episodes: Path, plan: Path, *, config: Config) -> Report:
    numbers = [
        float(n) * config.temperature for n in (episodes / "numbers.txt").read_text().split()
    ]
    with outputs.whole_folder(plan) as out:
        (out / "plan.txt").write_text(" ".join(map(str, numbers)))
    return Report(total=sum(numbers))
