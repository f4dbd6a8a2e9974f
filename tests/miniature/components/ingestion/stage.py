"""Numbers from the listed sources, one file after the other."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, Field

from components import outputs


class Config(BaseModel, frozen=True, extra="forbid"):
    sources: list[str] = Field(min_length=1, description="Addresses of data sets.")


class Report(BaseModel):
    numbers: int


def run(sources: Path, episodes: Path, *, config: Config) -> Report:
    numbers = []
    for source in json.loads(sources.read_text())["sources"]:
        for item in source["objects"]:
            numbers += (Path(source["uri"]) / item["path"]).read_text().split()
    with outputs.whole_folder(episodes) as out:
        (out / "numbers.txt").write_text("\n".join(numbers))
    return Report(numbers=len(numbers))
