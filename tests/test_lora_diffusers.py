"""The file that we save, read by diffusers, on a diffusers LTX-2 that carries the same weights as ours."""

import re
from dataclasses import dataclass

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from diffusers.loaders import LTX2LoraLoaderMixin
from peft.tuners.lora import LoraLayer

from ltx_nb.flow.conditions import audio_tokens, to_modality, video_tokens
from ltx_nb.loading.lora import TARGETS, add_lora, lora_layers, read_lora, save_lora
from ltx_nb.model.transformer import LTXModel, Modality
from ltx_nb.tiny.checkpoint import tiny_header

CLOSE = 1e-4
RENAMES = {  # ours, that is the official file's -> diffusers'
    r"^(audio_)?patchify_proj\.": r"\1proj_in.",
    r"^(audio_)?adaln_single\.": r"\1time_embed.",
    r"^(audio_)?prompt_adaln_single\.": r"\1prompt_adaln.",
    r"^av_ca_(video|audio)_scale_shift_adaln_single\.": r"av_cross_attn_\1_scale_shift.",
    r"^av_ca_a2v_gate_adaln_single\.": "av_cross_attn_video_a2v_gate.",
    r"^av_ca_v2a_gate_adaln_single\.": "av_cross_attn_audio_v2a_gate.",
    r"scale_shift_table_a2v_ca_(video|audio)$": r"\1_a2v_cross_attn_scale_shift_table",
    r"\.(q|k)_norm\.": r".norm_\1.",
}


@dataclass
class Pair:
    ours: LTXModel
    theirs: LTX2VideoTransformer3DModel
    video: Modality
    audio: Modality


def renamed(key: str) -> str:
    for pattern, name in RENAMES.items():
        key = re.sub(pattern, name, key)
    return key


def their_options(section: dict, version: str) -> dict:
    "A header's transformer section in the words of diffusers."
    second = version == "2.3"
    return {
        "num_layers": section["num_layers"],
        "num_attention_heads": section["num_attention_heads"],
        "attention_head_dim": section["attention_head_dim"],
        "cross_attention_dim": section["cross_attention_dim"],
        "audio_num_attention_heads": section["audio_num_attention_heads"],
        "audio_attention_head_dim": section["audio_attention_head_dim"],
        "audio_cross_attention_dim": section["audio_cross_attention_dim"],
        "caption_channels": section["caption_channels"],
        "rope_type": section["rope_type"],
        "cross_attn_timestep_scale_multiplier": int(section["av_ca_timestep_scale_multiplier"]),
        "use_prompt_embeddings": not second,
        **{name: second for name in ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod")},
    }


def make_pair(version: str) -> Pair:
    header = tiny_header(version)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = LTXModel.from_config(header, cross_timestep="other").requires_grad_(False).eval()
        theirs = (
            LTX2VideoTransformer3DModel(**their_options(header["transformer"], version)).requires_grad_(False).eval()
        )
    theirs.load_state_dict({renamed(key): tensor for key, tensor in ours.state_dict().items()}, strict=True)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    streams = video_tokens(draw(2, 128, 3, 2, 2), 24.0), audio_tokens(draw(2, 8, 9, 16))
    widths = (64, 64) if version == "2" else (128, 64)
    levels = torch.tensor([0.9, 0.4]), torch.tensor([0.6, 0.7])
    seen = [to_modality(t, t.clean, sigma, draw(2, 7, width)) for t, sigma, width in zip(streams, levels, widths)]
    return Pair(ours, theirs, *seen)


@pytest.fixture(params=["2", "2.3"])
def pair(request) -> Pair:
    return make_pair(request.param)


def our_answer(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return pair.ours(pair.video, pair.audio)


def their_answer(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    scale = pair.theirs.config.timestep_scale_multiplier
    v, a = pair.video, pair.audio
    each = lambda seen: (seen.timesteps * scale).expand(-1, seen.latent.shape[1])
    with torch.no_grad():
        return pair.theirs(
            v.latent, a.latent, v.context, a.context, each(v), each(a), sigma=v.sigma * scale, audio_sigma=a.sigma * scale,
            video_coords=v.positions.expand(2, -1, -1, -1), audio_coords=a.positions.expand(2, -1, -1, -1),
            use_cross_timestep=True, return_dict=False,
        )  # fmt: skip


def train(model: LTXModel, rank: int = 4, alpha: float = 4, targets: str = "all", seed: int = 5):
    "Adapters of a size that shows."
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add_lora(model, rank, alpha, TARGETS[targets])
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B["default"].weight.normal_(std=0.05, generator=generator)


class Pipeline(LTX2LoraLoaderMixin):
    "diffusers' own loader of LoRA files, around a transformer alone."

    def __init__(self, transformer):
        self.transformer, self.components, self.hf_device_map = transformer, {"transformer": transformer}, None


def give(path, theirs) -> None:
    Pipeline(theirs).load_lora_weights(str(path), adapter_name="ours")


def assert_agree(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    found, expected = our_answer(pair), their_answer(pair)
    for ours, theirs in zip(found, expected):
        assert theirs.std() > 0.01
        torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=0)
    return found


@pytest.mark.parametrize("targets, rank, alpha", [("all", 4, 4), ("audio_cross", 3, 12), ("video_ff", 8, 2)])
def test_base_and_adapted_outputs_agree(pair, tmp_path, targets, rank, alpha):
    base = assert_agree(pair)
    train(pair.ours, rank, alpha, targets)
    give(save_lora(pair.ours, tmp_path / "lora.safetensors", torch.float32), pair.theirs)
    adapted = assert_agree(pair)
    assert max((new - old).abs().max() for new, old in zip(adapted, base)) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_key_of_the_file_is_left_over(pair, tmp_path, dtype):
    train(pair.ours)
    path = save_lora(
        pair.ours, tmp_path / "lora.safetensors", dtype, base_model="ltx-2.3", target_modules=TARGETS["all"]
    )
    give(path, pair.theirs)
    taken = {name: layer for name, layer in pair.theirs.named_modules() if isinstance(layer, LoraLayer)}
    pairs, _ = read_lora(path)
    assert taken.keys() == pairs.keys() and len(taken) == 4 * 24
    for name, (A, B) in pairs.items():
        layer = taken[name]
        assert torch.equal(layer.lora_A["ours"].weight.float(), A) and torch.equal(
            layer.lora_B["ours"].weight.float(), B
        )
        assert layer.scaling["ours"] == 1.0


def test_what_diffusers_saves_comes_back(pair, tmp_path):
    train(pair.ours, rank=4, alpha=8)
    path = save_lora(pair.ours, tmp_path / "lora.safetensors", torch.float32)
    give(path, pair.theirs)
    pair.theirs.save_lora_adapter(tmp_path / "theirs", adapter_name="ours", weight_name="back.safetensors")
    first, back = read_lora(path)[0], read_lora(tmp_path / "theirs" / "back.safetensors")[0]
    assert first.keys() == back.keys()
    for name in first:
        assert all(torch.equal(a, b) for a, b in zip(first[name], back[name]))
