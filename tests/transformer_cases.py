"Tiny transformers with seeded weights and inputs, and the cases that are run on them and on the official implementation."

from dataclasses import replace

import torch

from ltx_nb.model.latents import audio_positions, video_positions
from ltx_nb.model.transformer import IF_PRESENT, REQUIRED, REQUIRED_OF_TWO_STREAMS, Modality

BASE = {**REQUIRED, **REQUIRED_OF_TWO_STREAMS, "num_vector_embeds": IF_PRESENT["num_vector_embeds"]}
TINY = {
    "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8, "in_channels": 8, "out_channels": 8, "audio_in_channels": 8, "audio_out_channels": 8,
    "cross_attention_dim": 32, "audio_cross_attention_dim": 16, "caption_channels": 24,
}  # fmt: skip
SPLIT = {"rope_type": "split", "frequencies_precision": "float64", "av_ca_timestep_scale_multiplier": 1000.0}
SWITCHES = {"apply_gated_attention": True, "cross_attention_adaln": True, "caption_proj_before_connector": True}
VARIANTS = {
    "V1-int": {"rope_type": "interleaved", "av_ca_timestep_scale_multiplier": 1},
    "V1-split": SPLIT,
    "V2": {**SPLIT, **SWITCHES},
}


def tiny_header(variant):
    return {"transformer": {**BASE, **TINY, **VARIANTS[variant]}}


def fill(state, seed=0):
    "Seeded weights, drawn in the lexicographic order of their names."
    generator, filled = torch.Generator().manual_seed(seed), {}
    for name in sorted(state):
        noise = 0.1 * torch.randn(state[name].shape, generator=generator)
        filled[name] = 1 + noise if name.endswith("_norm.weight") else noise
    return filled


def inputs(variant, kind="av"):
    generator = torch.Generator().manual_seed(1)
    widths = (32, 16) if variant == "V2" else (24, 24)
    latent, sound, caption, audio_caption = (
        torch.randn(2, n, c, generator=generator) for n, c in ((12, 8), (5, 8), (4, widths[0]), (4, widths[1]))
    )
    sigma, audio_sigma = torch.tensor([0.7, 0.3]), torch.tensor([0.6, 0.2])
    timesteps = sigma[:, None].repeat(1, 12)
    timesteps[:, :6] = 0
    video = Modality(latent, sigma, timesteps, video_positions((2, 2, 3), 24).repeat(2, 1, 1, 1), caption)
    audio = Modality(
        sound, audio_sigma, audio_sigma[:, None].repeat(1, 5), audio_positions(5).repeat(2, 1, 1, 1), audio_caption
    )
    return (video if kind != "audio" else None), (audio if kind != "video" else None)


def masked(video, audio):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    return replace(video, context_mask=mask), replace(audio, context_mask=mask), None


def weighted(video, audio):
    mask = torch.ones(2, 12, 12)
    mask[:, :6, 6:], mask[:, 6:, 0] = 0.5, 0.0
    return replace(video, attention_mask=mask), audio, None


def uniform(video, audio):
    half = lambda m: replace(m, sigma=torch.full((2,), 0.5), timesteps=torch.full(m.latent.shape[:2], 0.5))
    return half(video), half(audio), None


SELF, APART = {"video_self": [1], "audio_self": [1]}, {"a2v": None, "v2a": None}
CASES = {  # name: variant, kind, what becomes of the inputs
    "V1-int": ("V1-int", "av", lambda v, a: (v, a, None)),
    "V1-split": ("V1-split", "av", lambda v, a: (v, a, None)),
    "V2": ("V2", "av", lambda v, a: (v, a, None)),
    "V2 no audio": ("V2", "av", lambda v, a: (v, None, None)),
    "V2 no video": ("V2", "av", lambda v, a: (None, a, None)),
    "V2 video disabled": ("V2", "av", lambda v, a: (replace(v, enabled=False), a, None)),
    "V2 context mask": ("V2", "av", masked),
    "V2 attention mask": ("V2", "av", weighted),
    "V2 self skip": ("V2", "av", lambda v, a: (v, a, (SELF, SELF))),
    "V2 self skip of one": ("V2", "av", lambda v, a: (v, a, (SELF, {}))),
    "V2 apart": ("V2", "av", lambda v, a: (v, a, (APART, APART))),
    "V2 one apart": ("V2", "av", lambda v, a: (v, a, ({}, APART))),
    "V2 uniform": ("V2", "av", uniform),
    "V2 video only": ("V2", "video", lambda v, a: (v, None, None)),
    "V2 audio only": ("V2", "audio", lambda v, a: (None, a, None)),
}
