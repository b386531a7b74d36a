"Headers of the audio parts, real and small, and the published recipe for filling a model with known weights."

import copy
import math

import torch

DDCONFIG = {
    "double_z": True, "mel_bins": 64, "z_channels": 8, "resolution": 256, "in_channels": 2, "out_ch": 2, "ch": 128,
    "ch_mult": [1, 2, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    "mid_block_add_attention": False, "norm_type": "pixel", "causality_axis": "height",
}  # fmt: skip
PREPROCESSING = {
    "audio": {"sampling_rate": 16000, "max_wav_value": 32768.0, "stereo": True, "causal_padding": 3},
    "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
    "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
}
SMALL = {"ch": 32, "z_channels": 4, "mel_bins": 32}  # the oracle wants ch == z_channels * mel_bins / 4

BLOCKS = {"resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3, "stereo": True}
PLAIN = {
    **BLOCKS, "resblock": "1", "upsample_initial_channel": 1024, "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
}  # fmt: skip
SNAKE = {
    **BLOCKS, "resblock": "AMP1", "activation": "snakebeta", "use_tanh_at_final": False, "use_bias_at_final": False,
}  # fmt: skip
MAIN = {
    **SNAKE, "upsample_initial_channel": 1536, "upsample_rates": [5, 2, 2, 2, 2, 2],
    "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
}  # fmt: skip
EXTENSION = {
    **SNAKE, "upsample_initial_channel": 512, "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [12, 11, 4, 4, 4], "apply_final_activation": False, "input_sampling_rate": 16000,
    "output_sampling_rate": 48000, "hop_length": 80, "n_fft": 512, "win_size": 512, "num_mels": 64,
}  # fmt: skip


def audio_header(**ddconfig) -> dict:
    "The real header with some values of the network changed; `...` takes a key away."
    section = {"model": {"params": {"sampling_rate": 16000, "ddconfig": {**DDCONFIG, **ddconfig}}}}
    for key, value in ddconfig.items():
        if value is ...:
            del section["model"]["params"]["ddconfig"][key]
    return {"audio_vae": {**section, "preprocessing": copy.deepcopy(PREPROCESSING)}}


def small_audio_header(**ddconfig) -> dict:
    "A network that is quick and that the oracle accepts."
    header = audio_header(**{**SMALL, **ddconfig})
    header["audio_vae"]["preprocessing"]["mel"]["n_mel_channels"] = SMALL["mel_bins"]
    return header


def plain_header(**changes) -> dict:
    "LTX-2's vocoder."
    return {"vocoder": {**PLAIN, **changes}}


def paired_header(main: dict | None = None, extension: dict | None = None) -> dict:
    "LTX-2.3's vocoder with its bandwidth extension."
    return {"vocoder": {"vocoder": {**MAIN, **(main or {})}, "bwe": {**EXTENSION, **(extension or {})}}}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


@torch.no_grad()
def fill(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    "The published recipe: key j in plain order is drawn with seed + j and scaled by its kind."
    for j, (key, value) in enumerate(sorted(model.state_dict().items())):
        r = torch.randn(value.shape, generator=seeded(seed + j))
        if key.endswith("std-of-means"):
            value.copy_(0.5 + r.abs())
        elif key.endswith("mean-of-means"):
            value.copy_(0.3 * r)
        elif not key.endswith(".filter") and "mel_stft" not in key:
            scale = 1 / math.sqrt(r.numel() / r.shape[0]) if r.ndim >= 2 else 0.1
            value.copy_(r * scale * (0.1 if key.endswith("conv_post.weight") else 1))
    return model


def shapes(model: torch.nn.Module) -> dict:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}
