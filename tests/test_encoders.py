"""Weights by folder and frozen encoders, on small random models saved as publishers save them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from components.encoders import Cache, PatchCodec, SentenceTokens, Umt5, WanVae
from components.errors import DataError, UserError
from components.pretraining import initial
from components.weights import load_wan, video_shape, weights
from models.rows import collate
from models.wan import WanTower, unfold
from tests.made_wan import SHAPES, inherited, reference
from tests.made_windows import LIMITS, window


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A pipeline's folder with a transformer in several shards."""
    torch.manual_seed(0)
    model = reference(SHAPES["wan2.1"])
    model.save_pretrained(tmp_path / "wan" / "transformer", max_shard_size="60KB")
    return tmp_path / "wan"


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_published_folder_becomes_our_tower(name: str, tmp_path: Path) -> None:
    theirs, _ = inherited(SHAPES[name], seed=5)
    theirs.save_pretrained(tmp_path / "transformer", max_shard_size="60KB")
    source = weights(tmp_path)
    assert len(set(source.files.values())) > 2
    tower = WanTower(video_shape(source.config, cameras=3)).eval()
    digests = load_wan(tower, source)
    assert set(digests) == {p.name for p in source.files.values()} | {"config.json"}
    assert digests == source.digests()
    limits = replace(
        LIMITS, latent_channels=tower.shape.latent_channels, text_width=tower.shape.text_width
    )
    rows = collate([window(0, views=1, limits=limits)], limits)
    velocity, _ = tower(rows.latents, torch.full((1, 3), 0.4), rows)
    expected = theirs(rows.latents[:, 0], torch.tensor([400.0]), rows.text[:, 0]).sample
    assert (unfold(velocity, rows=2)[:, 0] - expected).abs().max() < 1e-5


def tower() -> WanTower:
    return WanTower(SHAPES["wan2.1"])


def changed(folder: Path, **renamed: str | None) -> None:
    """Take parameters out of one unindexed file, or give them other names."""
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    for old, new in renamed.items():
        tensor = tensors.pop(old.replace("__", "."))
        if new:
            tensors[new] = tensor
    save_file(tensors, path)


def test_missing_and_unknown_parameters_are_named(tmp_path: Path) -> None:
    reference(SHAPES["wan2.1"]).save_pretrained(tmp_path)
    ours = tower()
    before = {n: p.clone() for n, p in ours.named_parameters()}
    changed(tmp_path, proj_out__bias="proj_out.bais", blocks__1__attn1__to_q__weight=None)
    with pytest.raises(DataError) as error:
        load_wan(ours, weights(tmp_path))
    assert "2 missing parameters: blocks.1.within.query.weight, head.bias" in str(error.value)
    assert "1 unknown parameters: head.bais" in str(error.value)
    assert all(torch.equal(p, before[n]) for n, p in ours.named_parameters()), "nothing was copied"


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    reference(SHAPES["wan2.1"]).save_pretrained(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    save_file(load_file(path) | {"proj_out.bias": torch.zeros(5)}, path)
    with pytest.raises(DataError, match=r"head\.bias: expected shape \(64,\), got \(5,\)"):
        load_wan(tower(), weights(tmp_path))
    with pytest.raises(UserError, match="expected weights of VideoShape"):
        load_wan(WanTower(SHAPES["wan2.2"]), weights(tmp_path))


def test_broken_folders_are_refused(published: Path, tmp_path: Path) -> None:
    folder = published / "transformer"
    with pytest.raises(UserError, match="no such file; expected a folder of weights"):
        weights(tmp_path / "nowhere")
    index = next(folder.glob("*.index.json"))
    whole = index.read_text()
    listed = json.loads(whole)
    name, file = next(iter(listed["weight_map"].items()))
    for change, message in (
        ({name: "../outside.safetensors"}, "expected names of files beside it, got"),
        ({name: "absent.safetensors"}, "absent.safetensors: expected a safetensors file, got"),
        ({"made.up": file}, "1 missing parameters: made.up"),
    ):
        index.write_text(json.dumps({"weight_map": listed["weight_map"] | change}))
        with pytest.raises(DataError, match=message):
            weights(published)
    index.write_text(whole)
    shard = folder / file
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=f"{file}: expected a safetensors file, got"):
        weights(published)
    shard.unlink()
    index.unlink()
    with pytest.raises(DataError, match="a file or shards with an index, got"):
        weights(published)
    alone = tmp_path / "alone"
    reference(SHAPES["wan2.1"]).save_pretrained(alone)
    digests = weights(alone).digests() | {"config.json": "0" * 64}
    declared = tmp_path / "init.json"
    declared.write_text(json.dumps({"video": {"from": str(alone), "sha256": digests}}))
    with pytest.raises(DataError, match=r"video: .*config\.json: expected 000"):
        initial.read(declared)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    model = reference(SHAPES["wan2.1"])
    model.save_pretrained(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    torch.save(model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickles \(diffusion_pytorch_model.bin\)"):
        weights(tmp_path)


def test_other_models_are_refused(published: Path) -> None:
    config = weights(published).config
    with pytest.raises(UserError, match=r"patch_size: expected \[1, 2, 2\], got \[1, 4, 4\]"):
        video_shape(config | {"patch_size": [1, 4, 4]}, cameras=1)
    with pytest.raises(UserError, match="ffn_dim: expected a number, got none"):
        video_shape({k: v for k, v in config.items() if k != "ffn_dim"}, cameras=1)


VAES = {
    "wan2.1": {},
    "wan2.2": {
        "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12,
        "scale_factor_spatial": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", VAES)
def test_wans_vae_is_used_as_its_pipelines_do(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    reference = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=mean,
        latents_std=std, **VAES[kind],
    ).eval()  # fmt: skip
    reference.save_pretrained(tmp_path / "vae")
    vae = WanVae(tmp_path / "vae")
    pictures = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    latents = vae.encode(pictures)
    side = 2 if kind == "wan2.2" else 4
    assert latents.shape == (2, 4, 2, side, side)
    with torch.no_grad():
        posterior = reference.encode(pictures).latent_dist
        seen = reference.decode(posterior.mode()).sample
    normalised = (posterior.mode() - torch.tensor(mean).view(1, 4, 1, 1, 1)) / torch.tensor(
        std
    ).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(latents, normalised)
    torch.testing.assert_close(vae.decode(latents), seen, atol=1e-4, rtol=1e-4)
    assert not latents.requires_grad
    with pytest.raises(DataError, match="F one more than a multiple of 4"):
        vae.encode(pictures[:, :, :4])
    first = vae.digest
    changed(tmp_path / "vae", quant_conv__bias=None)
    assert WanVae(tmp_path / "vae").digest != first
    with pytest.raises(DataError, match=r"missing_keys: quant_conv\.bias"):
        WanVae(tmp_path / "vae").encode(pictures)


def test_the_patch_codec_is_honest() -> None:
    codec = PatchCodec(side_px=4)
    pictures = torch.rand(2, 3, 9, 8, 12)
    latents = codec.encode(pictures)
    assert latents.shape == (2, 48, 3, 2, 3)
    corner = pictures[1, :, 4, 4:8, 8:12]
    assert torch.equal(latents[1, :, 1, 1, 2].view(3, 4, 4), corner)
    seen = codec.decode(latents)
    assert seen.shape == pictures.shape
    assert torch.equal(seen[:, :, [0, 4, 8]], pictures[:, :, [0, 4, 8]])
    assert torch.equal(seen[:, :, 1], pictures[:, :, 4]), "a latent stands for four frames"
    assert codec.digest != PatchCodec(side_px=2).digest
    with pytest.raises(DataError, match="multiples of 4, got"):
        codec.encode(torch.zeros(1, 3, 1, 6, 8))
    with pytest.raises(DataError, match="expected finite numbers"):
        codec.encode(torch.full((1, 3, 1, 4, 4), float("nan")))


@pytest.fixture
def umt5(tmp_path: Path) -> tuple[Path, UMT5EncoderModel]:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=12, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    model = UMT5EncoderModel(config).eval()
    model.save_pretrained(tmp_path / "text_encoder")
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "pick": 3, "up": 4, "the": 5, "cup": 6}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "tokenizer")
    return tmp_path, model


def test_umt5_pads_with_zeros_as_wans_pipelines_do(umt5: tuple[Path, UMT5EncoderModel]) -> None:
    folder, model = umt5
    encoder = Umt5(folder, tokens=8)
    tokens = encoder.encode(["pick up  the cup", "cup"])
    assert tokens.shape == (2, 8, 16)
    ids = torch.tensor([[3, 4, 5, 6, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        expected = model(ids, attention_mask=(ids > 0).long()).last_hidden_state
    torch.testing.assert_close(tokens, expected * (ids > 0)[..., None], atol=1e-5, rtol=1e-4)
    assert torch.equal(tokens[1:], encoder.encode(["cup"])), "a text depends on nothing else"
    assert encoder.encode(["the cup " * 9]).shape == (1, 8, 16)
    assert encoder.digest != Umt5(folder, tokens=9).digest
    with pytest.raises(UserError, match="no such folder; expected UMT5's tokenizer"):
        Umt5(folder / "text_encoder").encode(["cup"])


class Counting:
    """A text encoder that counts its calls."""

    def __init__(self, digest: str, device: str) -> None:
        self.digest, self.device, self.calls = digest, device, 0

    def encode(self, texts: list[str]) -> torch.Tensor:
        self.calls += 1
        return torch.full((len(texts), 1, 3), float(self.calls))


def test_what_was_encoded_once_is_not_encoded_again(tmp_path: Path) -> None:
    cache, text = Cache(tmp_path), Counting("a", "cuda:0")
    said = cache.texts(text, ["one", "two", "one"])
    assert said.shape == (3, 1, 3) and text.calls == 2
    second = Counting("a", "cuda:1")
    assert torch.equal(cache.texts(second, ["one"]), said[:1]) and second.calls == 0
    for other in (Counting("b", "cuda:0"), Counting("a", "cpu")):
        cache.texts(other, ["one"])
        assert other.calls == 1, "another encoder or kind of device says something else"
    for broken in tmp_path.rglob("*.safetensors"):
        broken.write_bytes(broken.read_bytes()[:9])
    assert torch.equal(cache.texts(text, ["one"]), torch.full((1, 1, 3), 3.0)), "made again"


def test_sentences_are_one_token_each() -> None:
    tokens = SentenceTokens().encode(["pick up the cup", "open the drawer"])
    assert tokens.shape == (2, 1, 384)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.full((2, 1), 384**0.5))  # variance 1
