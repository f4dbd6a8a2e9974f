"""What the parts of the full model are worth: each switched off, on several seeds, on real data.

A small preset is trained on the recorded demo by the trainer itself, with and without one part at a
time, on the same draws, noise and initial weights (paired by seed), and judged on held-out events
(`ablation_runs.py`). Reported: the mean difference (without less with) over seeds with a 95 %
interval of Student's t; above zero the part helps. That each loss falls is shown by its first and
last values. Towers of width 64, pictures of 16 px in patches of 48 numbers, so that a patch passes.

`PARTS` below is the whole plan: the part, the setting in which it could matter, and the metrics of
what it is for, all of them written down before anything was run.

- Joint: both towers, the event's caption told or dropped as in `params.yaml`.
- Video: stage `video`, for 10/3 of the steps. What is behind a tube is asked as a share of what the
  camera's mean picture leaves (1: nothing but that is known).
- Hidden view: the same without words, a tube hiding one of the two views in every window, all of
  it, so that only the other view can tell where the hand and the object are. Without words, since
  they tell the task and with it most of what differs between pictures. The sight-cone mask can be
  judged on `--data` with two calibrated cameras or more, and is left out elsewhere: episodes of
  `wamflow record --cameras top,corner,corner2`. Camera RoPE is asked on those as well: as they are,
  and with one of the three cameras missing in each event, another by turns. Then what the one view
  that is left shows does not say which of the other two is hidden, and nothing but its turn does.
- Borders: stage `video` on pictures squeezed between black borders; judged inside the picture.
- Action: the recipe's stage `action` without words, so that the picture must say what there is to
  do; the video tower frozen, taken from the video setting (10/3 of the steps).
- Two robots: joint; every second episode is another robot's, with three columns of the four in
  another order and sense, in the same vectors.
- Two siblings: joint; every second episode is another robot's that looks the same in words, state,
  masks and pictures, but obeys three of its four commands in another order and sense. Above, the
  turned state told the robots apart, so their names were not needed. Tried with embeddings that
  start at size 0.02, as the model had them, and at size 1, as it has them since (LOG.md); what
  the larger start does to one robot alone is asked, too.
- Chunks: unified mode, half a second whatever happens in it; the state knows no speeds. A frame of
  history is a quarter of a second older than the next. Two settings more, without words: without
  any state, so that hand and speed must be seen; and with pictures that come late, so that none is
  there at the anchor (grey), only those before.

The DCT loss's default becomes the largest of the weights 1, 3 and 10 that takes something off the
fast part of the error (interval above zero) at no cost in action loss or in the error of generated
actions (no interval below zero); none, if there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from scipy import stats

from components import params
from components.pretraining import view
from components.pretraining.stage import Config
from components.pretraining.training import Training
from models import schedule
from models.presets import PRESETS
from tests.benchmarks.ablation_runs import (
    Arm,
    BordersUnknown,
    CameraAway,
    LatePictures,
    Letterboxed,
    NoMasks,
    NoState,
    OneName,
    Run,
    Siblings,
    SiblingsUnnamed,
    TwoRobots,
    anchored,
    changed,
)

ROOT = Path(__file__).parents[2]
WIDTH, LATENT_PX, CODEC_PX, VIDEO_LENGTH = 64, 8, 2, 10 / 3


def silenced(training: Training, names: Callable[[str], bool]) -> None:
    """Parameters that are zero and stay zero."""
    for name, parameter in training.model.named_parameters():
        if names(name):
            parameter.data.zero_()
            training.average[name].zero_()
            parameter.register_hook(torch.zeros_like)


def without_crossing(training: Training) -> None:
    """The branch across views stays what it is at its start: nothing."""
    silenced(training, lambda name: ".across.out." in name)


def without_camera_turns(training: Training) -> None:
    """All cameras are turned by nothing."""
    silenced(training, lambda name: name == "video.cameras.angles")


def without_words_at_the_end(training: Training) -> None:
    """The head that says where events end does not read the words."""
    silenced(training, lambda name: name == "action.ends.text.out.weight")


def without_time_codes(training: Training) -> None:
    """Action tokens and video keys carry no time."""
    silenced(training, lambda name: "action_code." in name or "video_code." in name)


def without_places(training: Training) -> None:
    """Video keys do not say by which camera and where in its picture they were seen."""
    silenced(training, lambda name: "place_code." in name)


def robots_nearly_alike(training: Training) -> None:
    """Embeddings of robots start at size 0.02 instead of 1."""
    name = "action.embodiment.weight"
    training.model.get_parameter(name).data.mul_(0.02)
    training.average[name].mul_(0.02)


METRICS: dict[str, Callable[[Run], float]] = {
    "video loss": lambda run: run.video_loss(),
    "behind a tube": lambda run: run.behind(2),
    "a hidden view": lambda run: run.behind(LATENT_PX),
    "action loss": lambda run: run.action_loss(),
    "action loss without words": lambda run: run.action_loss(silent=True),
    "error of actions": lambda run: run.acted()["error"],
    "fast part of the error": lambda run: run.acted()["fast"],
    "jitter": lambda run: run.acted()["jitter"],
    "log of seconds left": lambda run: run.ends()["left"],
    "part done": lambda run: run.ends()["done"],
}
ACTING = ("action loss", "error of actions")
SILENT = {"caption_drop_short": 1.0, "caption_drop_long": 1.0}
HIDDEN = SILENT | {
    "stage": "video",
    "tube_probability": 1.0,
    "tube_side": LATENT_PX,
    "sight_cones": "none",
}
FROZEN = SILENT | {"stage": "action", "coupling": "asymmetric", "action_samples": 8}
CHUNK = {"windows": "chunk", "chunk_s": 0.5}
PAST = {"history_frames": 2}

JOINT, DCT_OFF = Arm(), Arm({"dct_weight": 0.0})
VIDEO = Arm({"stage": "video"}, length=VIDEO_LENGTH)
VIEW = Arm(HIDDEN, length=VIDEO_LENGTH)
AWAY = replace(VIEW, windows=CameraAway)
BOXED = Arm({"stage": "video"}, windows=Letterboxed)
ACTION = Arm(FROZEN, video_from=VIDEO)
ROBOTS = Arm(windows=TwoRobots)
SIGHT = "sight-cone mask"


class Part(NamedTuple):
    """The training with the part, the one without, and what the part is for."""

    have: Arm
    without: Arm
    metrics: tuple[str, ...]


PARTS: dict[str, Part] = {
    "tube masking": Part(
        VIDEO, replace(VIDEO, values={"stage": "video", "tube_probability": 0.0}),
        ("behind a tube",),
    ),
    "tube weight 2, 1 instead": Part(
        VIDEO, replace(VIDEO, values={"stage": "video", "tube_weight": 1.0}), ("behind a tube",)
    ),
    "attention across views": Part(
        VIEW, replace(VIEW, change=without_crossing), ("a hidden view",)
    ),
    "camera RoPE": Part(VIEW, replace(VIEW, change=without_camera_turns), ("a hidden view",)),
    "camera RoPE, a camera missing": Part(
        AWAY, replace(AWAY, change=without_camera_turns), ("a hidden view",)
    ),
    SIGHT: Part(replace(VIEW, values=HIDDEN | {"sight_cones": "always"}), VIEW, ("a hidden view",)),
    "border mask": Part(
        BOXED, replace(BOXED, windows=BordersUnknown, truth=Letterboxed), ("video loss",)
    ),
    "trained video, random instead": Part(
        ACTION, Arm(FROZEN), (*ACTING, "log of seconds left")
    ),
    "N_d = 8, 1 instead": Part(
        ACTION, replace(ACTION, values=FROZEN | {"action_samples": 1}), ACTING
    ),
    "anchor at 45 of 50, 50 instead": Part(
        ACTION, replace(ACTION, anchor=schedule.ANCHOR_STEPS), ACTING
    ),
    "video loss": Part(
        JOINT, Arm({"video_weight": 0.0}), ("video loss", *ACTING, "log of seconds left")
    ),
    "video loss, no words": Part(
        Arm(SILENT), Arm(SILENT | {"video_weight": 0.0}), (*ACTING, "log of seconds left")
    ),
    "captions": Part(JOINT, Arm(SILENT), ACTING),
    "caption drop": Part(
        JOINT, Arm({"caption_drop_short": 0.0, "caption_drop_long": 0.0}),
        ("action loss without words",),
    ),
    "words for the end": Part(JOINT, Arm({}, without_words_at_the_end), ("log of seconds left",)),
    "loss of the seconds left": Part(JOINT, Arm({"left_weight": 0.0}), ("log of seconds left",)),
    "loss of the part done": Part(JOINT, Arm({"done_weight": 0.0}), ("part done",)),
    "two time codes": Part(JOINT, Arm({}, without_time_codes), ACTING),
    "code of camera and place": Part(JOINT, Arm({}, without_places), ACTING),
    "v-prediction, x instead": Part(JOINT, Arm({"prediction": "x"}), ("error of actions",)),
    **{
        f"DCT loss of weight {weight:g}": Part(
            JOINT if weight == 0.1 else Arm({"dct_weight": weight}), DCT_OFF,
            ("fast part of the error", "jitter", *ACTING),
        )
        for weight in (0.1, 1.0, 3.0, 10.0)
    },
    "masks of a robot's columns": Part(
        ROBOTS, Arm(windows=NoMasks, truth=TwoRobots), ("error of actions",)
    ),
    "a robot's embedding": Part(ROBOTS, Arm(windows=OneName), ("error of actions",)),
    "a robot's embedding, siblings": Part(
        Arm(windows=Siblings), Arm(windows=SiblingsUnnamed), ACTING
    ),
    "embeddings of size 1, 0.02 instead, siblings": Part(
        Arm(windows=Siblings), Arm({}, robots_nearly_alike, Siblings), ACTING
    ),
    "embeddings of size 1, 0.02 instead, one robot": Part(
        JOINT, Arm({}, robots_nearly_alike), ACTING
    ),
    "history of 2 frames": Part(
        Arm(CHUNK | PAST), Arm(CHUNK), ("error of actions", "video loss")
    ),
    **{
        f"history of 2 frames, {name}": Part(
            Arm(CHUNK | SILENT | PAST, windows=kind), Arm(CHUNK | SILENT, windows=kind),
            (*ACTING, "video loss"),
        )
        for name, kind in (("no state", NoState), ("late pictures", LatePictures))
    },
}  # fmt: skip


class Trainings:
    """Every arm of one seed, trained once."""

    def __init__(self, folders: dict[str, Path], config: Config, steps: int) -> None:
        self.folders, self.config, self.steps = folders, config, steps
        self.runs: dict[str, Run] = {}
        self.batches: dict[str, Any] = {}

    def of(self, arm: Arm) -> Run:
        """The arm's training, begun from the arm that it starts from."""
        if arm.key not in self.runs:
            start = self.of(arm.video_from) if arm.video_from else None
            config = changed(self.config, arm.values)
            steps = round(arm.length * self.steps)
            with anchored(arm.anchor):
                self.runs[arm.key] = Run(
                    self.folders[config.full.windows], config, arm, steps, start, self.batches
                )
        return self.runs[arm.key]

    def pair(self, part: Part) -> dict[str, tuple[float, float]]:
        """(with, without) of each metric."""
        told = []
        for arm in part[:2]:
            run = self.of(arm)
            with anchored(arm.anchor):
                told.append({name: METRICS[name](run) for name in part.metrics})
        return {name: (told[0][name], told[1][name]) for name in part.metrics}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean with its 95 % interval (Student's t)."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def table(found: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Markdown, and the same figures by part."""
    lines = ["| switched off | metric | with | without | difference | 95 % interval |"]
    lines += ["|---|---|---|---|---|---|"]
    figures = {}
    for name in found[0]["pairs"]:
        pairs = [one["pairs"][name] for one in found]
        mean, low, high = interval([without - have for have, without in pairs])
        have, without = (float(np.mean([p[k] for p in pairs])) for k in (0, 1))
        figures[name] = {"with": have, "without": without, "difference": mean, "ci": [low, high]}
        lines.append(
            f"| {name} | {have:.4f} | {without:.4f} | {mean:+.4f} | {low:+.4f} to {high:+.4f} |"
        )
    return "\n".join(lines), figures


def seed_of(trainings: Trainings, parts: list[str]) -> dict[str, Any]:
    """All parts of one seed, each told as soon as it is known; how losses fell."""
    pairs: dict[str, tuple[float, float]] = {}
    for name in parts:
        new = trainings.pair(PARTS[name])
        said = {"seed": trainings.config.seed, "part": name, "pairs": new}
        print(json.dumps(said), file=sys.stderr, flush=True)
        pairs |= {f"{name} | {metric}": pair for metric, pair in new.items()}
    arms = {"joint": JOINT, "video": VIDEO}
    whole = {name: run for name, a in arms.items() if (run := trainings.runs.get(a.key))}
    said = {"pairs": pairs, "losses": {name: run.fall for name, run in whole.items()}}
    print(json.dumps({"seed": trainings.config.seed} | said), file=sys.stderr, flush=True)
    return said


def known_cameras(folder: Path) -> int:
    """Of the robot of whose cameras the most places are known."""
    robots = json.loads((folder / "view.json").read_text())["embodiments"]
    return max(len(robot["calibration"]) for robot in robots)


def views(data: Path, folder: Path, config: Config) -> dict[str, Path]:
    """The training view of events, and the wider one of chunks with history."""
    chunk = CHUNK | PAST
    folders = {name: folder / name for name in ("event", "chunk")}
    for name, of in (("event", config), ("chunk", changed(config, chunk))):
        folders[name].mkdir()
        view.build(*(data / n for n in ("episodes", "captions", "plan")), folders[name], of)
    return folders


def main() -> None:
    """Print the tables, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, help="one seed instead of several")
    parser.add_argument("--data", type=Path, required=True, help="`data` of a run that is finished")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS])
    given = parser.parse_args()
    values = params.load(ROOT / "params.yaml")["pretraining"]
    values |= {"preset": "tiny", "processes": 1, "batch_size": given.batch_size, "ema": 0.95}
    values["full"] |= {"codec_px": CODEC_PX, "dct_weight": 0.1, "coupling": "symmetric"}
    config = Config.model_validate(values)
    shape = PRESETS["tiny"].shape
    shape = replace(
        shape,
        video=replace(shape.video, head_width=WIDTH // 4, feed_width=4 * WIDTH),
        action=replace(shape.action, head_width=WIDTH // 4),
    )
    PRESETS["tiny"] = replace(PRESETS["tiny"], shape=shape, latent_px=(LATENT_PX, LATENT_PX))
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    began = time.process_time()
    seeds = given.seeds if given.seed is None else [given.seed]
    with tempfile.TemporaryDirectory(prefix="wamflow-ablation-") as name:
        dist.init_process_group("gloo", init_method=f"file://{name}/meet", rank=0, world_size=1)
        folders = views(given.data, Path(name), config)
        if known_cameras(folders["event"]) < 2 and SIGHT in given.parts:
            given.parts.remove(SIGHT)
            print(f"{SIGHT}: left out, no two cameras of {given.data} are calibrated.", flush=True)
        found = [
            seed_of(
                Trainings(folders, config.model_copy(update={"seed": seed}), given.steps),
                given.parts,
            )
            for seed in seeds
        ]
        dist.destroy_process_group()
    text, figures = table(found)
    print(text)
    falls = {
        arm: {n: np.mean([f["losses"][arm][n] for f in found], axis=0).tolist() for n in names}
        for arm, names in found[0]["losses"].items()
    }
    print(
        json.dumps(
            {
                "width": WIDTH, "latent_px": LATENT_PX, "codec_px": CODEC_PX, "seeds": seeds,
                "steps": given.steps, "batch_size": given.batch_size, "parts": figures,
                "losses_first_and_last": falls,
                "cpu_s": round(time.process_time() - began),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
