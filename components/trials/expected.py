"""What the model expects to see of held-out events, beside what happened: strips for people.

For some events of the plan's split `validation`, a row of pictures for each camera: what the robot
saw at the event's start, then what the model expects, and below it what was recorded at the same
times. It decides nothing and no figure is made from it, so a picture that cannot be made is a line
in the log and no failed collection.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import DataError, StoppedError
from components.serving.client import PolicyClient
from components.trials import replay
from components.trials.settings import Config

EVENTS, FRAMES = 4, 6  # of the page; the most pictures to come of an event
CELL_PX, LINE_PX = 96, 14
Picture = npt.NDArray[np.uint8]  # (H, W, 3)
NAME = "expected.png"


def save(chosen: argparse.Namespace, config: Config, clients: dict[str, PolicyClient]) -> None:
    """`<out>/expected.png`, unless it is there; `clients` reach each robot's policy.

    Whoever goes on with trials needs connections of their own: an answer that came too late for a
    picture would be taken for the next one. StoppedError when a signal asks to stop.
    """
    path: Path = chosen.out / NAME
    if path.exists():
        return
    few = config.model_copy(update={"replay_events": EVENTS})
    try:
        tables = chosen.episodes, chosen.captions, chosen.plan, chosen.checkpoint
        events = [e for e in replay.read(*tables, few) if e.episode.embodiment in clients]
        if not events:
            raise DataError(f"no held-out event of {', '.join(sorted(clients)) or 'any robot'}.")
        _write(path, [_strip(event, clients[event.episode.embodiment]) for event in events])
    except StoppedError:
        raise
    except Exception as error:  # a courtesy: whatever else is wrong, trials go on
        print(f"trials: no picture of what the model expects: {type(error).__name__}: {error}")


def _strip(event: replay.Recorded, client: PolicyClient) -> Picture:
    """Title, and for each camera two rows: expected and happened."""
    asked = event.request(client.metadata, event.number) | {"expected": True}
    reply = client.infer(asked)
    if "expected_at_s" not in reply:
        raise DataError("policy server: expected an answer with expected_at_s, got none.")
    at_s = np.asarray(reply["expected_at_s"])
    some = np.unique(np.linspace(0, len(at_s) - 1, min(FRAMES, len(at_s))).round().astype(int))
    times = ["now", *(f"+{second:.2f} s" for second in at_s[some])]
    rows = [_titled(event.caption, times)]
    for camera, clip in sorted(event.episode.clips.items()):
        name = camera.removeprefix("observation.images.")
        if f"expected/{name}" not in reply:  # the model knows no such camera
            continue
        now = asked[f"observation/{name}"]
        rows.append(_row(f"{name}: expected", [now, *reply[f"expected/{name}"][some]]))
        happened = clip.frames(_instants(event, at_s[some]))
        rows.append(_row("happened", [now, *happened]))
    return np.concatenate(rows)


def _instants(event: replay.Recorded, at_s: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Recorded instants nearest to some seconds after the event's start."""
    every_s = event.episode.timestamps_s
    found = np.searchsorted(every_s, every_s[event.start] + at_s - 0.5 / event.episode.fps)
    instants: npt.NDArray[np.float64] = every_s[np.minimum(found, len(every_s) - 1)]
    return instants


def _row(label: str, pictures: list[Picture]) -> Picture:
    """Pictures of one size side by side, with what they are at the left; (CELL, width, 3)."""
    from PIL import Image

    row = _blank(CELL_PX)
    _say(row, label, 2, CELL_PX // 2)
    for column, picture in enumerate(pictures):
        cell = Image.fromarray(np.asarray(picture)).resize((CELL_PX, CELL_PX), Image.Resampling.BOX)
        row.paste(cell, ((column + 1) * CELL_PX + LINE_PX, 0))
    return np.asarray(row)


def _titled(caption: str, times: list[str]) -> Picture:
    """The event's words, and below them the instants of the columns."""
    row = _blank(3 * LINE_PX)
    _say(row, caption, 2, LINE_PX)
    for column, time in enumerate(times):
        _say(row, time, (column + 1) * CELL_PX + LINE_PX + 2, 2 * LINE_PX)
    return np.asarray(row)


def _blank(height: int) -> Any:
    from PIL import Image

    return Image.new("RGB", ((FRAMES + 2) * CELL_PX + LINE_PX, height), "white")


def _say(row: Any, text: str, x: int, y: int) -> None:
    from PIL import ImageDraw

    known = text.encode("latin-1", "replace").decode("latin-1")  # of the font that Pillow brings
    ImageDraw.Draw(row).text((x, y), known, fill="black")


def _write(path: Path, strips: list[Picture]) -> None:
    from PIL import Image

    page = np.concatenate(strips)
    used = np.flatnonzero((page < 255).any(axis=(0, 2)))[-1] + LINE_PX
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    Image.fromarray(page[:, :used]).save(partial, format="PNG")
    partial.replace(path)
