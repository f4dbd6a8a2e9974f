"""Small random models of the two published Wan shapes: diffusers' and ours with its weights."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel

from models import wan_keys
from models.wan import VideoShape, WanTower

SHAPES = {
    "wan2.1": VideoShape(
        heads=3, head_width=16, depth=2, feed_width=70, latent_channels=16, text_width=20,
        time_width=32, cameras=3,
    ),
    "wan2.2": VideoShape(
        heads=2, head_width=24, depth=3, feed_width=56, latent_channels=48, text_width=28,
        time_width=32, cameras=3,
    ),
}  # fmt: skip


def reference(shape: VideoShape) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=shape.heads, attention_head_dim=shape.head_width,
        in_channels=shape.latent_channels, out_channels=shape.latent_channels,
        text_dim=shape.text_width, freq_dim=shape.time_width, ffn_dim=shape.feed_width,
        num_layers=shape.depth,
    )  # fmt: skip


def inherited(shape: VideoShape, seed: int) -> tuple[WanTransformer3DModel, WanTower]:
    """A reference with random weights everywhere, norms and biases too, and our tower with them."""
    torch.manual_seed(seed)
    theirs, ours = reference(shape).eval(), WanTower(shape).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    renamed = {wan_keys.ours(name): value for name, value in theirs.state_dict().items()}
    missing, unexpected = ours.load_state_dict(renamed, strict=False)
    assert not unexpected and all(wan_keys.ADDED.fullmatch(name) for name in missing)
    return theirs, ours
