"""Frozen encoders of pictures and sentences: Wan's VAE and UMT5 by folder, or offline defaults.

`AutoencoderKLWan` (diffusers, an optional dependency: `pip install wamflow[wan]`) and
`UMT5EncoderModel` (transformers) are used as the Wan pipelines use them. Without weights there is a
codec that is fixed and honest (patches of a picture, nothing learned, nothing hidden) and the small
sentence model of `sentences.py`. Every encoder has a digest; `Cache` keeps sentences under it.

Letters: V views, F frames, H x W pixels, C latent channels, L text tokens, X width of a token.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from components import sentences
from components.errors import DataError, UserError
from components.outputs import sha256_folder
from components.weights import Weights, weights

if TYPE_CHECKING:
    from torch import Tensor

FRAMES_PER_LATENT = 4  # after the first frame, which has a latent of its own, as in Wan's VAE
LOADING_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


class PictureCodec(Protocol):
    """Pictures (V, 3, F, H, W) in -1..1 to latents (V, C, 1 + (F - 1) / 4, h, w) and back."""

    @property
    def digest(self) -> str: ...
    @property
    def side_px(self) -> int: ...  # of the square that is one latent pixel
    @property
    def channels(self) -> int: ...  # C
    def encode(self, pictures: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


class TextEncoder(Protocol):
    """Sentences to tokens (n, L, X); what is padded is zero, and counts, as in Wan."""

    @property
    def digest(self) -> str: ...
    @property
    def width(self) -> int: ...  # X
    @property
    def device(self) -> str: ...
    def encode(self, texts: list[str]) -> Tensor: ...


@dataclass(frozen=True)
class PatchCodec:
    """Every fourth frame, its patches as channels: nothing is learned and a frame comes back whole.

    Decoding shows each kept frame for as long as it stood for. C = 3 side^2.
    """

    side_px: int

    @property
    def digest(self) -> str:
        """Changes when what `encode` gives would."""
        return hashlib.sha256(f"patches of {self.side_px} px, version 1".encode()).hexdigest()

    @property
    def channels(self) -> int:
        """C."""
        return 3 * self.side_px**2

    def encode(self, pictures: Tensor) -> Tensor:
        """See `PictureCodec`."""
        _check_pictures(pictures, self.side_px)
        return self.stills(pictures[:, :, ::FRAMES_PER_LATENT])

    def stills(self, pictures: Tensor) -> Tensor:
        """Latents (V, C, F, h, w) of the pictures (V, 3, F, H, W) that are kept, and no others."""
        from torch.nn.functional import pixel_unshuffle

        shuffled = pixel_unshuffle(pictures.transpose(1, 2), self.side_px)
        return shuffled.transpose(1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """See `PictureCodec`."""
        import torch
        from torch.nn.functional import pixel_shuffle

        frames = pixel_shuffle(latents.transpose(1, 2), self.side_px).transpose(1, 2)
        first, rest = frames[:, :, :1], frames[:, :, 1:]
        return torch.cat([first, rest.repeat_interleave(FRAMES_PER_LATENT, dim=2)], dim=2)


@dataclass(frozen=True)
class WanVae:
    """`AutoencoderKLWan`, frozen; latents are normalised as the Wan pipelines do."""

    folder: Path
    device: str = "cpu"

    @cached_property
    def digest(self) -> str:
        """Of weights and config."""
        return _digest(weights(self.folder))

    @cached_property
    def side_px(self) -> int:
        """Of the square that is one latent pixel: 8 in Wan 2.1, 16 in Wan 2.2."""
        return int(weights(self.folder).config.get("scale_factor_spatial", 8))

    @cached_property
    def channels(self) -> int:
        """C: 16 in Wan 2.1, 48 in Wan 2.2."""
        return int(weights(self.folder).config["z_dim"])

    def encode(self, pictures: Tensor) -> Tensor:
        """See `PictureCodec`; the mode of the posterior, so equal pictures give equal latents."""
        import torch

        vae, mean, std = self._vae
        _check_pictures(pictures, vae.config.scale_factor_spatial)
        with torch.inference_mode():
            latents = vae.encode(pictures.to(self.device)).latent_dist.mode()
            out: Tensor = ((latents - mean) / std).cpu()
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """See `PictureCodec`."""
        import torch

        vae, mean, std = self._vae
        with torch.inference_mode():
            out: Tensor = vae.decode(latents.to(self.device) * std + mean).sample.cpu()
        return out

    @cached_property
    def _vae(self) -> tuple[Any, Tensor, Tensor]:
        import torch

        source = weights(self.folder)
        try:
            from diffusers import AutoencoderKLWan
        except ImportError as error:
            raise UserError(
                "Python package diffusers is not installed; expected it for Wan's VAE. "
                "Install it with `pip install -c constraints.txt diffusers`."
            ) from error
        vae = pretrained(AutoencoderKLWan, source).to(self.device)
        shape = (1, -1, 1, 1, 1)
        mean, std = (
            torch.tensor(values, device=self.device).view(shape)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return vae, mean, std


@dataclass(frozen=True)
class Umt5:
    """UMT5's encoder, frozen, from a pipeline's folder: `text_encoder` and `tokenizer` in it."""

    folder: Path
    tokens: int = 512  # L, as the Wan towers were trained
    device: str = "cpu"

    @cached_property
    def digest(self) -> str:
        """Of weights, config, tokenizer and length."""
        parts = [_digest(weights(self.folder / "text_encoder"))]
        parts += [sha256_folder(self.folder / "tokenizer"), str(self.tokens)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def width(self) -> int:
        """X."""
        return int(weights(self.folder / "text_encoder").config["d_model"])

    def encode(self, texts: list[str]) -> Tensor:
        """See `TextEncoder`; each text alone, so that its tokens depend on nothing else."""
        import torch

        return torch.stack([self._one(" ".join(text.split())) for text in texts])

    def _one(self, text: str) -> Tensor:
        import torch
        from torch.nn.functional import pad

        tokenizer, model = self._encoder
        found = tokenizer(text, max_length=self.tokens, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            ids, mask = found.input_ids.to(self.device), found.attention_mask.to(self.device)
            states = model(ids, attention_mask=mask).last_hidden_state[0].float().cpu()
        out: Tensor = pad(states, (0, 0, 0, self.tokens - len(states)))
        return out

    @cached_property
    def _encoder(self) -> tuple[Any, Any]:
        from transformers import AutoTokenizer, UMT5EncoderModel

        if not (self.folder / "tokenizer").is_dir():
            raise UserError(
                f"{self.folder / 'tokenizer'}: no such folder; expected UMT5's tokenizer."
            )
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        model = pretrained(UMT5EncoderModel, weights(self.folder / "text_encoder"))
        return tokenizer, model.to(self.device)


@dataclass(frozen=True)
class SentenceTokens:
    """The small sentence model of `sentences.py`: one token of 384 numbers a text.

    Numbers of variance 1, as networks want them: those of unit vectors are so small that towers
    take long to hear the words (LOG.md).
    """

    digest: str = hashlib.sha256(f"{sentences.DIGEST}, of variance 1".encode()).hexdigest()
    width: int = sentences.WIDTH
    device: str = "cpu"

    def encode(self, texts: list[str]) -> Tensor:
        """See `TextEncoder`."""
        import torch

        return torch.from_numpy(sentences.embed(texts) * sentences.WIDTH**0.5)[:, None]


def picture_codec(vae: Path | None, patch_px: int, device: str) -> PictureCodec:
    """The VAE in a folder, or the codec that needs none."""
    return PatchCodec(patch_px) if vae is None else WanVae(vae, device)


def text_encoder(umt5: Path | None, tokens: int, device: str) -> TextEncoder:
    """The UMT5 in a folder, or the small sentence model."""
    return SentenceTokens() if umt5 is None else Umt5(umt5, tokens, device)


@dataclass(frozen=True)
class Cache:
    """What text encoders said, by encoder, device and text; safe to delete at any time."""

    folder: Path

    def texts(self, encoder: TextEncoder, texts: list[str]) -> Tensor:
        """`encoder.encode(texts)`, each text made once on each kind of device."""
        import torch

        by = f"{encoder.digest} {encoder.device.partition(':')[0]}"
        return torch.cat([
            self._once(by, hashlib.sha256(t.encode()).hexdigest(), partial(encoder.encode, [t]))
            for t in texts
        ])  # fmt: skip

    def _once(self, encoder: str, content: str, make: Callable[[], Tensor]) -> Tensor:
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        key = hashlib.sha256(f"{encoder}\n{content}".encode()).hexdigest()
        path = self.folder / key[:2] / f"{key}.safetensors"
        try:
            return load_file(path)["value"]
        except (FileNotFoundError, SafetensorError, KeyError):  # not there, or cut short
            value = make().contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_name(f".{key}.{os.getpid()}.partial")
        save_file({"value": value}, partial_path)
        partial_path.replace(path)
        return value


def pretrained(kind: Any, source: Weights) -> Any:
    """A frozen model of diffusers or transformers; DataError unless every parameter is there."""
    model, info = kind.from_pretrained(
        source.folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    wrong = {k: sorted(map(str, info.get(k) or [])) for k in LOADING_PROBLEMS}
    if any(wrong.values()):
        said = "; ".join(f"{k}: {', '.join(v[:5])}" for k, v in wrong.items() if v)
        raise DataError(f"{source.folder}: expected all weights of {kind.__name__}, got {said}.")
    return model.requires_grad_(False).eval()


def _digest(source: Weights) -> str:
    listed = "\n".join(f"{name} {digest}" for name, digest in source.digests().items())
    return hashlib.sha256(listed.encode()).hexdigest()


def _check_pictures(pictures: Tensor, side_px: int) -> None:
    """DataError unless the shape is one that latents can stand for, and all numbers are finite."""
    shape = tuple(pictures.shape)
    fits = len(shape) == 5 and shape[1] == 3 and shape[2] % FRAMES_PER_LATENT == 1
    if not fits or shape[3] % side_px or shape[4] % side_px:
        raise DataError(
            f"Pictures: expected (V, 3, F, H, W) with F one more than a multiple of "
            f"{FRAMES_PER_LATENT} and H, W multiples of {side_px}, got {shape}."
        )
    if not bool(pictures.isfinite().all()):
        raise DataError("Pictures: expected finite numbers, got NaN or infinite ones.")
