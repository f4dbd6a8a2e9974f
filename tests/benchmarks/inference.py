"""How often a second the full model plans an event: `python -m tests.benchmarks.inference`.

Prints one JSON line. Weights are random, since speed does not depend on them; pictures are latents
already. One plan: where the event ends, one forward of the video at the anchor, `--steps` denoising
steps of the actions of an event of `--seconds`. On a GPU wan2.1-1.3b in bfloat16 (the paper's 10 Hz
are distilled, FP8 and include encoding), elsewhere `demo` in float32. `coupling` is asymmetric.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace

import torch

from models.acting import Chunk, plan
from models.presets import PRESETS
from models.wall import WallModel
from models.windows import Window


def scene(window: Window, device: torch.device, dtype: torch.dtype, random: int) -> Window:
    """A window of random content on the device; masks stay where they are cheap to check."""
    torch.manual_seed(random)
    return replace(
        window,
        **{
            name: torch.randn(getattr(window, name).shape).to(device, dtype)
            for name in ("latents", "text", "state")
        },
        **{
            name: getattr(window, name).to(device)
            for name in ("frame_s", "camera", "inside", "text_mask", "state_mask", "action_mask")
        },
        actions=window.actions.to(device, dtype), left_s=None,
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="wan2.1-1.3b" if gpu else "demo")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the event")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of the actions")
    parser.add_argument("--plans", type=int, default=200 if gpu else 20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu else torch.float32
    preset = PRESETS[args.preset]
    torch.manual_seed(args.seed)
    with device:
        model = WallModel(replace(preset.shape, coupling="asymmetric")).to(dtype).eval()
    window = scene(preset.window(args.seconds, future=False), device, dtype, args.seed)
    span = Chunk(
        frames=math.ceil(args.seconds * preset.shape.latent_hz),
        steps=math.ceil(args.seconds * preset.control_hz),
    )
    random = torch.Generator().manual_seed(args.seed)

    def once() -> float:
        start = time.perf_counter()
        plan(model, [window], denoise_steps=args.steps, random=random, chunk=span)
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(3):
        once()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    times = sorted(once() for _ in range(args.plans))
    peak = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
    print(
        json.dumps(
            {
                "preset": args.preset,
                "hz": round(1 / (sum(times) / len(times)), 2),
                "p50_ms": round(1000 * times[len(times) // 2], 1),
                "p99_ms": round(1000 * times[min(int(0.99 * len(times)), len(times) - 1)], 1),
                "peak_gb": peak and round(peak, 2),
                "seconds": args.seconds,
                "denoise_steps": args.steps,
                "device": torch.cuda.get_device_name() if gpu else "cpu",
            }
        )
    )


if __name__ == "__main__":
    main()
