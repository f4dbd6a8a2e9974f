"""What the parts of the full model are worth: each switched off, on several seeds, on real data.

A small preset is trained on the recorded demo by the trainer itself, with and without one part at a
time, on the same draws, noise and initial weights (paired by seed). Every part is judged by its own
metrics, on held-out events with fixed noise, at the averaged weights. Reported: the mean difference
(without less with) over seeds with a 95 % interval of Student's t; above zero the part helps. That
each loss falls is shown by its first and last values over seeds.

Parts of the asymmetric coupling (anchor, N_d, a video tower that was trained) are judged in the
recipe's stage `action`, its video tower frozen and taken from the whole training of the same seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from components import params
from components.pretraining import view
from components.pretraining.full_windows import FullWindows
from components.pretraining.stage import Config
from components.pretraining.training import Training
from models import schedule
from models.acting import denoised
from models.dct import dct_matrix
from models.draws import Chances, Draw
from models.packed import Packed
from models.presets import PRESETS
from models.rows import Rows, collate, of_event
from models.wall import WallModel, held, noised
from models.wan import fold
from models.windows import Window

ROOT = Path(__file__).parents[2]
LARGE_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # 95 %, two sides
NOISE_DRAWS = 4
FROZEN = {"stage": "action", "coupling": "asymmetric", "action_samples": 8}
Figures = dict[str, float]


class Run:
    """One training and what is asked of it."""

    def __init__(
        self, folder: Path, config: Config, steps: int, change: Change, whole: Run | None
    ) -> None:
        self.windows = FullWindows(folder, config)
        self.windows.steps = steps
        self.training = Training(self.windows, config)
        if change is not None:
            change(self.training, whole)
        for step in range(steps):
            self.training.step(step, self.windows.batch(step, 0, 1))
        for name, parameter in self.training.model.named_parameters():
            parameter.data.copy_(self.training.average[name])
        weights = self.model.shape.weights
        self.model.shape = replace(self.model.shape, weights=replace(weights, dct=1.0))  # be told

    @property
    def model(self) -> WallModel:
        """What was trained."""
        assert isinstance(self.training.model, WallModel)
        return self.training.model

    @cache  # noqa: B019  a run lives as long as its figures are asked for
    def held_out(self, *, words: bool = True) -> list[Window]:
        """Every event that is held out, from its start and from its middle."""
        w = self.windows
        events = np.flatnonzero(w.arrays["event_validation"]).tolist()
        spots = [
            (e, int(a + share * (b - a)))
            for e in events
            for a, b in [(w.arrays["event_start"][e], w.arrays["event_end"][e])]
            for share in (0.0, 0.5)
        ]
        return [w.window(e, w.span(e, at), w.words(e) if words else "") for e, at in spots]

    def noises(self, chances: Chances, *, words: bool = True) -> Iterator[tuple[Rows, Draw]]:
        """The held-out events under fixed noise, some times."""
        batch = Packed.of(self.held_out(words=words), self.windows.shape.limits, chances)
        for seed in range(NOISE_DRAWS):
            yield batch.with_noise(torch.Generator().manual_seed(seed))

    @cache  # noqa: B019
    @torch.no_grad()
    def losses(self, *, words: bool = True) -> Figures:
        """Mean losses over fixed noise, without tubes and with as many action draws for all."""
        chances = replace(self.windows.chances, tube_probability=0.0)
        if chances.coupling == "asymmetric":
            chances = replace(chances, action_samples=8)
        each = [self.model.losses(*drawn) for drawn in self.noises(chances, words=words)]
        return {
            name: float(np.mean([float(getattr(losses, name)) for losses in each]))
            for name in self.model.terms
        }

    @cache  # noqa: B019
    @torch.no_grad()
    def behind_tubes(self) -> float:
        """Mean square of what the video says is behind a tube, less what is there.

        A tube hides the noise too, so the best velocity is minus the expected latent there.
        """
        chances = replace(self.windows.chances, tube_probability=1.0)
        squares, counts = 0.0, 0.0
        for rows, drawn in self.noises(chances):
            sigma = torch.where(rows.clean, 0.0, of_event(drawn.sigma, rows.frame_event))
            seen = noised(rows.latents, drawn.noise, sigma)
            said, _ = self.model.video(seen, sigma, rows, drawn.hidden)
            off = (said + fold(rows.latents)).square().mean(dim=-1)
            asked = (drawn.hidden & rows.inside & ~rows.clean[:, None, :, None]).float()
            squares, counts = squares + float((off * asked).sum()), counts + float(asked.sum())
        return squares / counts

    @cache  # noqa: B019
    @torch.no_grad()
    def acted(self, steps: int = 5) -> Figures:
        """Generated actions against those recorded; `fast` is the upper half of frequencies."""
        rows = collate(self.held_out(), self.windows.shape.limits)
        still = replace(rows, latents=held(rows), actions=torch.zeros_like(rows.actions))
        mask, transform = rows.action_mask.float(), dct_matrix(rows)
        both = mask[:, 2:] * mask[:, 1:-1] * mask[:, :-2]
        fast = (2 * rows.step >= rows.steps)[..., None] * mask
        found: list[Figures] = []
        for seed in range(NOISE_DRAWS):
            random = torch.Generator().manual_seed(seed)
            made, _ = denoised(self.model, still, steps, random)
            error = (made - rows.actions) * mask
            bend = made[:, 2:] - 2 * made[:, 1:-1] + made[:, :-2]
            squares = (transform @ error).square()
            found.append({
                "error": float(error.abs().sum() / mask.sum()),
                "fast": float((squares * fast).sum() / fast.sum()),
                "jitter": float(((bend.square() * both).sum() / both.sum()).sqrt()),
            })  # fmt: skip
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}

    @cache  # noqa: B019
    @torch.no_grad()
    def ends(self) -> Figures:
        """Where the model thinks that events end: errors, and those of one constant."""
        windows = self.held_out()
        rows = collate(windows, self.windows.shape.limits)
        left, done = self.model.ends(rows.only_clean())
        known = np.array([w.left_s for w in windows]), np.array([w.done for w in windows])
        log = np.log(known[0])
        return {
            "left_error": float(np.abs(left[:, 0].numpy() - log).mean()),
            "left_constant": float(np.abs(log - np.median(log)).mean()),
            "done_error": float(np.abs(done[:, 0].sigmoid().numpy() - known[1]).mean()),
            "done_constant": float(np.abs(known[1] - np.median(known[1])).mean()),
        }


Change = Callable[[Training, Run | None], None] | None


def silenced(training: Training, names: Callable[[str], bool]) -> None:
    """Parameters that are zero and stay zero."""
    for name, parameter in training.model.named_parameters():
        if names(name):
            parameter.data.zero_()
            training.average[name].zero_()
            parameter.register_hook(torch.zeros_like)


def without_crossing(training: Training, whole: Run | None) -> None:
    """The branch across views stays what it is at its start: nothing."""
    silenced(training, lambda name: ".across.out." in name)


def without_words_at_the_end(training: Training, whole: Run | None) -> None:
    """The head that says where events end does not read the words."""
    silenced(training, lambda name: name == "action.ends.text.out.weight")


def without_time_codes(training: Training, whole: Run | None) -> None:
    """Action tokens and video keys carry no time."""
    silenced(training, lambda name: "action_code." in name or "video_code." in name)


def from_whole(training: Training, whole: Run | None, towers: str = "") -> None:
    """Start from the weights of the whole model's training."""
    assert whole is not None
    for name, parameter in whole.model.named_parameters():
        if name.startswith(towers):
            training.model.get_parameter(name).data.copy_(parameter.detach())
            training.average[name].copy_(parameter.detach())


def video_from_whole(training: Training, whole: Run | None) -> None:
    """Start from the video tower of the whole model's training, and a new action tower."""
    from_whole(training, whole, "video.")


@dataclass(frozen=True)
class Arm:
    """How one training differs from the whole: values, its start or its parts, its anchor."""

    values: dict[str, Any] = field(default_factory=dict)
    change: Change = None
    anchor: int = schedule.ANCHOR_STEP

    @property
    def key(self) -> str:
        """Equal arms are trained once."""
        return f"{sorted(self.values.items())} {self.change} {self.anchor}"


WHOLE, TUBES = Arm(), {"tube_probability": 1.0}
ACTION_STAGE = Arm(FROZEN, from_whole)
VIDEO_LOSS = {
    "video loss": lambda run: run.losses()["video"],
    "action loss": lambda run: run.losses()["action"],
    "error of generated actions": lambda run: run.acted()["error"],
}
ACTED = {
    "action loss": lambda run: run.losses()["action"],
    "error of generated actions": lambda run: run.acted()["error"],
}
SMOOTH = {
    "fast part of generated actions' error": lambda run: run.acted()["fast"],
    "jitter of generated actions": lambda run: run.acted()["jitter"],
}
BEHIND = {"what is behind tubes": lambda run: run.behind_tubes()}
# part -> with it, without it, its metrics
Part = tuple[Arm, Arm, dict[str, Callable[[Run], float]]]
PARTS: dict[str, Part] = {
    "tube masking": (WHOLE, Arm({"tube_probability": 0.0}), BEHIND),
    "attention across views, tubes in every window": (
        Arm(TUBES), Arm(TUBES, without_crossing), BEHIND,
    ),
    "caption drop": (
        WHOLE, Arm({"caption_drop_short": 0.0, "caption_drop_long": 0.0}),
        {"action loss without words": lambda run: run.losses(words=False)["action"]},
    ),
    "captions": (
        WHOLE, Arm({"caption_drop_short": 1.0, "caption_drop_long": 1.0}),
        {"action loss, told as in training": lambda run: run.losses(
            words=run.training.config.caption_drop_long < 1)["action"]},
    ),
    "DCT loss": (WHOLE, Arm({"dct_weight": 0.0}), SMOOTH),
    "DCT loss of weight 10": (Arm({"dct_weight": 10.0}), Arm({"dct_weight": 0.0}), SMOOTH),
    "video loss": (WHOLE, Arm({"video_weight": 0.0}), VIDEO_LOSS),
    "v-prediction, x instead": (WHOLE, Arm({"prediction": "x"}), {
        "error of generated actions": lambda run: run.acted()["error"],
    }),
    "two time codes": (WHOLE, Arm({}, without_time_codes), ACTED),
    "loss of the seconds left": (WHOLE, Arm({"left_weight": 0.0}), {
        "error of log seconds left": lambda run: run.ends()["left_error"],
    }),
    "loss of the part done": (WHOLE, Arm({"done_weight": 0.0}), {
        "error of the part done": lambda run: run.ends()["done_error"],
        "error of log seconds left": lambda run: run.ends()["left_error"],
    }),
    "words for the end": (WHOLE, Arm({}, without_words_at_the_end), {
        "error of log seconds left": lambda run: run.ends()["left_error"],
    }),
    "stage action: N_d = 8, 1 instead": (
        ACTION_STAGE, Arm(FROZEN | {"action_samples": 1}, from_whole), ACTED,
    ),
    "stage action: anchor at 45 of 50, 50 instead": (
        ACTION_STAGE, Arm(FROZEN, from_whole, schedule.ANCHOR_STEPS), ACTED,
    ),
    "stage action, new action tower: a trained video, a random one instead": (
        Arm(FROZEN, video_from_whole), Arm(FROZEN), ACTED,
    ),
}  # fmt: skip


@contextmanager
def anchored(step: int) -> Iterator[None]:
    """The anchor at another step of 50."""
    usual, schedule.ANCHOR_STEP = schedule.ANCHOR_STEP, step
    try:
        yield
    finally:
        schedule.ANCHOR_STEP = usual


def changed(config: Config, of: dict[str, Any]) -> Config:
    """The values with some of the full model's, or of all, replaced."""
    own = {name: value for name, value in of.items() if name in type(config.full).model_fields}
    rest = {name: value for name, value in of.items() if name not in own}
    return config.model_copy(update=rest | {"full": config.full.model_copy(update=own)})


def seed_of(folder: Path, config: Config, steps: int, parts: list[str]) -> dict[str, Any]:
    """All trainings of one seed: (with, without) of every metric of every part, losses, ends."""
    whole = Run(folder, config, steps, None, None)
    curve, part = whole.training.curve.numpy(), max(1, steps // 20)
    fall = {
        name: (float(curve[:part, i].mean()), float(curve[-part:, i].mean()))
        for i, name in enumerate(whole.training.columns)
        if name in whole.model.terms
    }
    asked: dict[str, list[tuple[str, Callable[[Run], float]]]] = {}
    arms: dict[str, Arm] = {}
    for name in parts:
        for arm in PARTS[name][:2]:
            arms[arm.key] = arm
            asked.setdefault(arm.key, []).extend(PARTS[name][2].items())
    told: dict[str, Figures] = {}
    for key, arm in arms.items():
        with anchored(arm.anchor):
            of = changed(config, arm.values)
            run = whole if arm == WHOLE else Run(folder, of, steps, arm.change, whole)
            told[key] = {metric: ask(run) for metric, ask in asked[key]}
    pairs = {
        f"{name} | {metric}": (told[with_.key][metric], told[without.key][metric])
        for name in parts
        for with_, without, metrics in [PARTS[name]]
        for metric in metrics
    }
    said = {"losses": fall, "ends": whole.ends(), "acted": whole.acted(), "pairs": pairs}
    print(json.dumps({"seed": config.seed} | said), file=sys.stderr, flush=True)
    return said


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean with its 95 % interval (Student's t)."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = LARGE_T.get(n, 2.0) * float(np.std(values, ddof=1)) / n**0.5
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


def main() -> None:
    """Print the tables, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--seed", type=int, help="one seed instead of several")
    parser.add_argument("--data", type=Path, required=True, help="`data` of a run that is finished")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--latent-px", type=int, default=8, help="side of a latent frame")
    parser.add_argument("--codec-px", type=int, default=4, help="side of a latent pixel")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS])
    given = parser.parse_args()
    values = params.load(ROOT / "params.yaml")["pretraining"]
    values |= {"preset": given.preset, "processes": 1, "batch_size": given.batch_size}
    values["full"] |= {"codec_px": given.codec_px}
    config = Config.model_validate(values | {"ema": 0.95})
    sized = replace(PRESETS[given.preset], latent_px=(given.latent_px, given.latent_px))
    PRESETS[given.preset] = sized
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="wamflow-ablation-") as name:
        folder = Path(name) / "view"
        folder.mkdir()
        dist.init_process_group("gloo", init_method=f"file://{name}/meet", rank=0, world_size=1)
        view.build(*(given.data / n for n in ("episodes", "captions", "plan")), folder, config)
        seeds = given.seeds if given.seed is None else [given.seed]
        found = [
            seed_of(folder, config.model_copy(update={"seed": s}), given.steps, given.parts)
            for s in seeds
        ]
        dist.destroy_process_group()
    text, figures = table(found)
    print(text)
    losses = {
        n: np.mean([f["losses"][n] for f in found], axis=0).tolist() for n in found[0]["losses"]
    }
    ends = {n: float(np.mean([f["ends"][n] for f in found])) for n in found[0]["ends"]}
    print(
        json.dumps(
            {
                "preset": given.preset, "latent_px": given.latent_px, "codec_px": given.codec_px,
                "seeds": seeds, "steps": given.steps,
                "batch_size": given.batch_size, "parts": figures,
                "losses_first_and_last": losses, "ends": ends,
                "cpu_s": round(time.process_time() - began),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
