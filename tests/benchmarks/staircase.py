"""What the parts of the staircase are worth: each switched off, on several seeds, on captions.

No published Qwen3.5 is at hand offline, so both language models are small random ones; the one that
says first learns the captions of the training events (a language model that knows no language
cannot tell whether a state says something). Then the staircase is trained through the one trainer,
with and without a part, paired by seed. The metric, written down before anything was run: the
reconstruction loss on held-out events, nats a token; above zero the part helps.

- attachment: the stairs read the prompt; without, themselves alone, so what is left is what all
  events share.
- parallel states: each stair has a start of its own; without, all say the same state.
- relay: the lower layers run once for all stairs; instead, fewer of them do (relay depth 1, the
  least). It is there to save work and promises no loss of quality, so its metric is the FLOPs of a
  pass of the staircase for one prompt, which depend on no seed, and the loss stands beside them.
  Two settings, three stairs in both: 2 layers of 3, and 4 of 8 as in `params.yaml`
  (`--attention-layers 8`). The FLOPs are those of meta tensors: on a CPU `FlopCounterMode` does not
  know the kernel of the attention.
- reconstruction: the loss itself; without training at all.
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
from torch.utils.flop_counter import FlopCounterMode

from components import params
from components.outputs import write_json
from components.pretraining import initial, view
from components.pretraining.reasons import ReasonWindows
from components.pretraining.stage import Config
from components.pretraining.training import Training
from components.reasoning import SmallModel
from models.reasoner import Reasoner, Reasons
from models.staircase import Remembered, Staircase, StairShape
from tests import made_qwen
from tests.benchmarks.ablation import ROOT, interval, silenced

SPEAKER_STEPS = 400
WHOLE, RELAY = "whole", "relay depth, 1 instead"


class Figures(NamedTuple):
    """Of one training: nats a token held out, and what a pass of the staircase costs."""

    loss: float
    pass_s: float  # of all held-out prompts
    pass_mflop: float  # of one prompt


class Unattached(ReasonWindows):
    """Stairs that see nothing of their prompts."""

    def _windows(self, *of: Any) -> Reasons:  # type: ignore[override]
        reasons = super()._windows(*of)
        mask = torch.zeros_like(reasons.prompt.mask)
        return replace(reasons, prompt=reasons.prompt._replace(mask=mask))


def one_start(training: Training) -> None:
    """All stairs begin where the relay ends."""
    silenced(training, lambda name: name == "staircase.stairs")


def speaker(folder: Path, texts: list[str], seed: int) -> None:
    """Teach the small language model in `folder` to say `texts`, and keep it there."""
    torch.manual_seed(seed)
    small = SmallModel.of(folder)
    small.model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(small.model.parameters(), 3e-3)
    random = np.random.default_rng(seed)
    for step in range(SPEAKER_STEPS):
        ids, mask = small.tokens([[texts[i]] for i in random.integers(len(texts), size=16)], 64)
        ids, mask = ids[:, 0], mask[:, 0]
        wanted = torch.where(mask, ids, -100)
        loss = small.model(input_ids=ids, attention_mask=mask.long(), labels=wanted).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == SPEAKER_STEPS - 1:
            print(f"speaker: step {step} loss {float(loss.detach()):.3f}", flush=True)
    small.model.save_pretrained(folder)


def flops(shape: StairShape, prompt: Remembered) -> float:
    """FLOPs of a pass of a staircase, a prompt."""
    keys, values, *rest = prompt
    meta = Remembered(
        [k.to("meta") for k in keys], [v.to("meta") for v in values], *(r.to("meta") for r in rest)
    )
    with torch.device("meta"):
        staircase = Staircase(shape)
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        staircase(meta)
    return float(counter.get_total_flops() / len(prompt.mask))


@torch.no_grad()
def held_out(training: Training, steps: int) -> Figures:
    """At the averaged weights."""
    model = training.model
    assert isinstance(model, Reasoner)
    if steps:
        training.take_average()
    windows = training.windows
    events = np.flatnonzero(windows.arrays["event_validation"])
    start = windows.arrays["event_start"][events]
    reasons: Any = windows._windows(events, start, np.ones(len(events), bool))
    loss = float(model.losses(reasons).reconstruction)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        model.staircase(reasons.prompt)
        times.append(time.perf_counter() - began)
    cost = flops(model.shape.stair, reasons.prompt)
    return Figures(loss, float(np.median(times)), cost / 1e6)


def trained(
    kind: type[ReasonWindows], folder: Path, config: Config, steps: int,
    change: Callable[[Training], None] | None = None,
) -> Figures:  # fmt: skip
    """One training's held-out loss and costs."""
    windows = kind(folder, config)
    windows.steps = max(steps, 1)
    training = Training(windows, config)
    if change is not None:
        change(training)
    for step in range(steps):
        training.step(step, windows.batch(step, 0, 1))
    return held_out(training, steps)


def prepared(data: Path, root: Path, config: Config, attention_layers: int) -> Path:
    """The training view, beside both language models; the one that says has learned to."""
    made_qwen.write_large(root / "vlm", attention_layers)
    made_qwen.write_small(root / "lm")
    info, arrays = built(data, root, config, "before")
    held_out = arrays["event_validation"]
    known = [r for r, held in zip(info["reasons"], held_out, strict=True) if not held]
    speaker(root / "lm", sorted({text for some in known for text in some}), 0)
    built(data, root, config, "view")
    return root / "view"


def built(data: Path, root: Path, config: Config, name: str) -> tuple[dict[str, Any], Any]:
    """The training view `name`, with the language models as they are now."""
    models = {
        part: {"from": str(root / part), "sha256": initial.listed(part, root / part)}
        for part in ("vlm", "lm")
    }
    write_json(root / "init.json", models)
    folder = root / name
    folder.mkdir()
    parts = (data / n for n in ("episodes", "captions", "plan"))
    view.build(*parts, folder, config, initial.read(root / "init.json"))
    return json.loads((folder / "view.json").read_text()), np.load(folder / "arrays.npz")


def relayed(config: Config, depth: int) -> Config:
    """The same with another relay depth."""
    stairs = config.full.staircase.model_copy(update={"relay_depth": depth})
    return config.model_copy(update={"full": config.full.model_copy(update={"staircase": stairs})})


ARMS: dict[str, Callable[[Path, Config, int], Figures]] = {
    WHOLE: lambda folder, config, steps: trained(ReasonWindows, folder, config, steps),
    "attachment": lambda folder, config, steps: trained(Unattached, folder, config, steps),
    "parallel states": lambda folder, config, steps: trained(
        ReasonWindows, folder, config, steps, one_start
    ),
    RELAY: lambda folder, config, steps: trained(ReasonWindows, folder, relayed(config, 1), steps),
    "reconstruction": lambda folder, config, steps: trained(ReasonWindows, folder, config, 0),
}


def main() -> None:
    """Print a table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, help="one seed instead of several")
    parser.add_argument("--data", type=Path, required=True, help="`data` of a run that is finished")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--attention-layers", type=int, default=3, help="of the backbone")
    parser.add_argument("--parts", nargs="+", default=[*ARMS][1:], choices=[*ARMS][1:])
    given = parser.parse_args()
    values = params.load(ROOT / "params.yaml")["pretraining"]
    values |= {"preset": "tiny", "processes": 1, "batch_size": 8, "ema": 0.95, "adamw_lr": 0.003}
    depth = (given.attention_layers + 1) // 2
    stairs = values["full"]["staircase"] | {"relay_depth": depth, "width": 64}
    values["full"] |= {"stage": "staircase", "staircase": stairs}
    config = Config.model_validate(values)
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    seeds = given.seeds if given.seed is None else [given.seed]
    with tempfile.TemporaryDirectory(prefix="wamflow-staircase-") as name:
        dist.init_process_group("gloo", init_method=f"file://{name}/meet", rank=0, world_size=1)
        folder = prepared(given.data, Path(name), config, given.attention_layers)
        found: list[dict[str, Figures]] = []
        for seed in seeds:
            seeded = config.model_copy(update={"seed": seed})
            found.append(
                {arm: ARMS[arm](folder, seeded, given.steps) for arm in (WHOLE, *given.parts)}
            )
            print(json.dumps({"seed": seed} | found[-1]), file=sys.stderr, flush=True)
        dist.destroy_process_group()
    figures = {}
    for part in given.parts:
        have, without = ([arms[name].loss for arms in found] for name in (WHOLE, part))
        mean, low, high = interval([b - a for a, b in zip(have, without, strict=True)])
        of = float(np.mean(have)), float(np.mean(without))
        figures[part] = {"with": of[0], "without": of[1], "difference": mean, "ci": [low, high]}
        print(f"| {part} | {of[0]:.3f} | {of[1]:.3f} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) |")
    passes = {
        name: {
            "s": float(np.mean([arms[name].pass_s for arms in found])),
            "mflop": float(np.mean([arms[name].pass_mflop for arms in found])),
        }
        for name in (WHOLE, RELAY)
        if name in found[0]
    }
    print(f"A pass of relay depth {depth}, and of 1 instead: {passes}")
    said = {"seeds": seeds, "steps": given.steps, "relay_depth": depth, "parts": figures}
    print(json.dumps(said | {"attention_layers": given.attention_layers, "passes": passes}))


if __name__ == "__main__":
    main()
