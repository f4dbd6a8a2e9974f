"""What the parts of the full model are worth: each switched off, on several seeds, on real data.

A small preset is trained on the recorded demo by the trainer itself, whole and with one part off at
a time, on the same draws, noise and initial weights (paired by seed). Every part is judged by its
own metric, on held-out events with fixed noise, at the averaged weights. Reported: the mean
difference (off less whole) over seeds with a 95 % interval of Student's t; above zero the part
helps. That each loss falls is shown by its first and last values over seeds.
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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from components import params
from components.pretraining import view
from components.pretraining.full_windows import FullWindows
from components.pretraining.stage import Config
from components.pretraining.training import Training
from models import schedule
from models.acting import denoised
from models.packed import Packed
from models.presets import PRESETS
from models.rows import collate
from models.windows import Window

ROOT = Path(__file__).parents[2]
LARGE_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # 95 %, two sides
NOISE_DRAWS = 4
Figures = dict[str, float]


class Run:
    """One training and what is asked of it."""

    def __init__(self, folder: Path, config: Config, steps: int, change: Change) -> None:
        self.windows = FullWindows(folder, config)
        self.windows.steps = steps
        self.training = Training(self.windows, config)
        if change is not None:
            change(self.training)
        for step in range(steps):
            self.training.step(step, self.windows.batch(step, 0, 1))
        for name, parameter in self.training.model.named_parameters():
            parameter.data.copy_(self.training.average[name])
        model, weights = self.training.model, self.training.model.shape.weights
        model.shape = replace(model.shape, weights=replace(weights, dct=1.0))  # to be asked for

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

    @cache  # noqa: B019
    @torch.no_grad()
    def losses(self, *, words: bool = True, tubes: float = 0.0, n: int = NOISE_DRAWS) -> Figures:
        """Mean losses over fixed noise; with tubes, `behind` is the video's loss there alone."""
        chances = replace(self.windows.chances, tube_probability=tubes)
        batch = Packed.of(self.held_out(words=words), self.windows.shape.limits, chances)
        found: dict[str, list[float]] = {}
        for seed in range(n):
            rows, draw = batch.with_noise(torch.Generator().manual_seed(seed))
            losses = self.training.model.losses(rows, draw)
            for name in self.training.model.terms:
                found.setdefault(name, []).append(float(getattr(losses, name)))
            if tubes:
                only = replace(rows, inside=rows.inside & draw.hidden)
                sigma = torch.where(rows.clean, 0.0, _of(draw.sigma, rows))
                found.setdefault("behind", []).append(self._behind(rows, only, draw, sigma))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def _behind(self, rows: Any, only: Any, draw: Any, sigma: Tensor) -> float:
        from models.wall import noised

        model = self.training.model
        noisy = noised(rows.latents, draw.noise, sigma)
        predicted, _ = model.video(noisy, sigma, rows, draw.hidden)
        return float(model._video_loss(predicted, only, draw))

    @cache  # noqa: B019
    @torch.no_grad()
    def acted(self, steps: int = 5) -> Figures:
        """Generated actions against those recorded: mean absolute error, and jitter's share."""
        windows = self.held_out()
        rows = collate(windows, self.windows.shape.limits)
        still = replace(rows, latents=_held(rows), actions=torch.zeros_like(rows.actions))
        made, _ = denoised(self.training.model, still, steps, torch.Generator().manual_seed(1))
        mask = rows.action_mask.float()
        off = ((made - rows.actions).abs() * mask).sum() / mask.sum()
        both = mask[:, 2:] * mask[:, 1:-1] * mask[:, :-2]
        bends = [
            (((a[:, 2:] - 2 * a[:, 1:-1] + a[:, :-2]).square() * both).sum() / both.sum()).sqrt()
            for a in (made, rows.actions)
        ]
        return {"action_error": float(off), "jitter": float(bends[0]), "recorded": float(bends[1])}

    @cache  # noqa: B019
    @torch.no_grad()
    def ends(self) -> Figures:
        """Where the model thinks that events end: errors, and those of one constant."""
        windows = self.held_out()
        rows = collate(windows, self.windows.shape.limits)
        left, done = self.training.model.ends(rows.only_clean())
        known = np.array([w.left_s for w in windows]), np.array([w.done for w in windows])
        log = np.log(known[0])
        return {
            "left_error": float(np.abs(left[:, 0].numpy() - log).mean()),
            "left_constant": float(np.abs(log - np.median(log)).mean()),
            "done_error": float(np.abs(done[:, 0].sigmoid().numpy() - known[1]).mean()),
            "done_constant": float(np.abs(known[1] - np.median(known[1])).mean()),
        }


Change = Callable[[Training], None] | None


def _of(sigma: Tensor, rows: Any) -> Tensor:
    from models.rows import of_event

    return of_event(sigma, rows.frame_event)


def _held(rows: Any) -> Tensor:
    from models.wall import held

    return held(rows)


def without_crossing(training: Training) -> None:
    """The branch across views stays what it is at its start: nothing."""
    for block in training.model.video.blocks:  # type: ignore[union-attr]
        for parameter in block.across.out.parameters():  # type: ignore[union-attr]
            parameter.register_hook(torch.zeros_like)
    out = [b.across.out for b in training.model.video.blocks]  # type: ignore[union-attr]
    assert not any(bool(layer.weight.any()) for layer in out)  # type: ignore[union-attr]


def without_words_at_the_end(training: Training) -> None:
    """The head that says where events end does not read the words."""
    out = training.model.action.ends.text.out.weight  # type: ignore[union-attr]
    out.data.zero_()  # type: ignore[union-attr, operator]
    out.register_hook(torch.zeros_like)  # type: ignore[union-attr, operator]


def from_whole(whole: Run) -> Change:
    """Start from the weights of the whole model's training."""
    weights = {n: p.detach().clone() for n, p in whole.training.model.named_parameters()}

    def start(training: Training) -> None:
        for name, parameter in training.model.named_parameters():
            parameter.data.copy_(weights[name])
            training.average[name].copy_(weights[name])

    return start


# part -> (values without it, change of the model without it, its metric)
PARTS: dict[str, tuple[dict[str, Any], Change, Callable[[Run], float]]] = {
    "tube masking": (
        {"tube_probability": 0.0}, None, lambda run: run.losses(tubes=1.0)["behind"],
    ),
    "attention across views": (
        {}, without_crossing, lambda run: run.losses(tubes=1.0)["behind"],
    ),
    "caption drop": (
        {"caption_drop_short": 0.0, "caption_drop_long": 0.0}, None,
        lambda run: run.losses(words=False)["action"],
    ),
    "captions": (
        {"caption_drop_short": 1.0, "caption_drop_long": 1.0}, None,
        lambda run: run.losses(words=run.training.config.caption_drop_long < 1)["action"],
    ),
    "DCT loss": ({"dct_weight": 0.0}, None, lambda run: run.losses()["dct"]),
    "video loss": ({"video_weight": 0.0}, None, lambda run: run.losses()["action"]),
    "v-prediction, x instead": (
        {"prediction": "x"}, None, lambda run: run.acted()["action_error"],
    ),
    "loss of the part done": ({"done_weight": 0.0}, None, lambda run: run.ends()["left_error"]),
    "words for the end": ({}, without_words_at_the_end, lambda run: run.ends()["left_error"]),
}  # fmt: skip
METRICS = {
    "tube masking": "video loss behind tubes", "attention across views": "the same",
    "caption drop": "action loss without words", "captions": "action loss, told as in training",
    "DCT loss": "DCT of the action's error", "video loss": "action loss",
    "v-prediction, x instead": "error of generated actions",
    "loss of the part done": "error of log seconds left",
    "words for the end": "error of log seconds left",
    "anchor at 45 of 50, 50 instead": "error of generated actions",
    "N_d = 8, 1 instead": "the same",
}  # fmt: skip


def frozen(folder: Path, config: Config, steps: int, whole: Run) -> dict[str, tuple[float, float]]:
    """Stage action from the whole model, its video frozen: (with, without) of two parts."""
    start = from_whole(whole)
    values = {"stage": "action", "coupling": "asymmetric", "action_samples": 8}

    def error(of: dict[str, Any]) -> float:
        return Run(folder, changed(config, of), steps, start).acted()["action_error"]

    with_both = error(values)
    found = {"N_d = 8, 1 instead": (with_both, error(values | {"action_samples": 1}))}
    usual, schedule.ANCHOR_STEP = schedule.ANCHOR_STEP, schedule.ANCHOR_STEPS
    try:
        without = error(values)
    finally:
        schedule.ANCHOR_STEP = usual
    return found | {"anchor at 45 of 50, 50 instead": (with_both, without)}


def changed(config: Config, of: dict[str, Any]) -> Config:
    """The values with some of the full model's, or of all, replaced."""
    own = {name: value for name, value in of.items() if name in type(config.full).model_fields}
    rest = {name: value for name, value in of.items() if name not in own}
    return config.model_copy(update=rest | {"full": config.full.model_copy(update=own)})


def seed_of(folder: Path, config: Config, steps: int, parts: list[str]) -> dict[str, Any]:
    """All trainings of one seed: (with, without) of every part, losses, ends."""
    whole = Run(folder, config, steps, None)
    curve, part = whole.training.curve.numpy(), max(1, steps // 20)
    fall = {
        name: (float(curve[:part, i].mean()), float(curve[-part:, i].mean()))
        for i, name in enumerate(whole.training.columns)
        if name in whole.training.model.terms
    }
    pairs = {}
    for name in [n for n in PARTS if n in parts]:
        of, change, metric = PARTS[name]
        without = metric(Run(folder, changed(config, of), steps, change))
        pairs[name] = (metric(whole), without)
        print(f"seed {config.seed}: {name}: {pairs[name]}", file=sys.stderr, flush=True)
    if "frozen" in parts:
        pairs |= frozen(folder, config, steps, whole)
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
            f"| {name} | {METRICS[name]} | {have:.4f} | {without:.4f} | {mean:+.4f} | "
            f"{low:+.4f} to {high:+.4f} |"
        )
    return "\n".join(lines), figures


def main() -> None:
    """Print the tables, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--seed", type=int, help="one seed instead of several")
    parser.add_argument("--data", type=Path, required=True, help="`data` of a run that is finished")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--latent-px", type=int, default=4, help="side of a latent frame")
    parser.add_argument("--codec-px", type=int, default=8, help="side of a latent pixel")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--parts", nargs="+", default=[*PARTS, "frozen"])
    given = parser.parse_args()
    values = params.load(ROOT / "params.yaml")["pretraining"]
    values |= {"preset": given.preset, "processes": 1, "batch_size": given.batch_size}
    values["full"] |= {"codec_px": given.codec_px, "tube_side": 1}
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
