"The audio autoencoder and what stands before it: resampling, mel, encoder, decoder."

import math

import oracle  # noqa: F401  (before ltx_core)
import numpy as np
import pytest
import torch
from bars import near
from audio_headers import audio_header, fill, randn, shapes, small_audio_header
from ltx_core.model import audio_vae as reference
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from ltx_nb.model.latents import ConfigError, audio_latent_length
from ltx_nb.model.audio_vae import (
    AudioConfig,
    AudioDecoder,
    AudioEncoder,
    encode_audio,
    fit_audio_latents,
    mel_filterbank,
    resample,
    waveform_to_mel,
)

TOLERANCE = 1e-4
VARIANTS = {
    "published": {},
    "attention": {"mid_block_add_attention": True, "attn_resolutions": [128]},
    "attention by default": {"mid_block_add_attention": ..., "attn_resolutions": ...},
    "group norm": {"norm_type": "group", "causality_axis": None, "attn_resolutions": [64]},
    "not causal": {"causality_axis": None},
    "causal in pitch": {"causality_axis": "width"},
    "causal in pitch, compatible": {"causality_axis": "width-compatibility"},
    "no residual blocks": {"num_res_blocks": 0, "ch_mult": [1, 1, 1]},
}


def tone(frequency: float, seconds: float, rate: int) -> torch.Tensor:
    t = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    return (0.5 * torch.sin(2 * math.pi * frequency * t)).float()[None, None]


def pair(half: str, **ddconfig):
    "Our network and the oracle's with the same weights."
    header = small_audio_header(**ddconfig)
    ours = {"encoder": AudioEncoder, "decoder": AudioDecoder}[half].from_config(header).eval()
    configurator = {"encoder": reference.AudioEncoderConfigurator, "decoder": reference.AudioDecoderConfigurator}[half]
    theirs = fill(configurator.from_config(header).eval(), {"encoder": 100, "decoder": 500}[half])
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def quick(half: str):
    "A network for questions that do not need the oracle."
    sizes = AudioConfig(channels=16, latent_channels=4, mel_bins=32, multipliers=(1, 1, 2), blocks=1)
    return fill({"encoder": AudioEncoder, "decoder": AudioDecoder}[half](sizes).eval(), 0)


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize(
    "source, target, total, samples",  # the sum, and the first, a middle and the last sample of torchaudio 2.11
    [
        (44100, 16000, 35.933518, (0.015711, -0.019358, -1.242574)),
        (48000, 16000, 19.863114, (0.026660, -0.159482, -1.183827)),
        (24000, 16000, 48.400636, (-0.183842, 0.772711, 0.104382)),
        (22050, 16000, 31.272650, (-0.205022, 1.029671, 0.083101)),
        (8000, 16000, -114.223217, (-0.134711, 0.441677, 1.016875)),
        (11025, 16000, -51.747114, (-0.134711, 1.383194, 0.517778)),
        (96000, 16000, 5.319414, (-0.075342, 0.155684, -0.137680)),
        (16000, 44100, 49.836041, (-0.134711, -0.098527, 0.584482)),
    ],
)
def test_resampled_noise_equals_torchaudio(source, target, total, samples):
    out = resample(randn(12, 1, 2, source // 10), source, target)
    assert out.shape == (1, 2, math.ceil(source // 10 * target / source))
    assert out.double().sum().item() == near(total, out.abs().sum().item())
    here = out[0, 0, 0].item(), out[0, 0, out.shape[-1] // 2].item(), out[0, 1, -1].item()
    assert here == near(samples, magnitude=1)


@pytest.mark.parametrize("source, target", [(44100, 16000), (16000, 22050), (7919, 16000)])
def test_resampling_follows_the_formula_sample_by_sample(source, target):
    x = randn(0, 300)
    common = math.gcd(source, target)
    o, n = source // common, target // common
    cutoff = 0.99 * min(o, n)
    m, i = np.arange(math.ceil(300 * n / o))[:, None], np.arange(300)[None]
    t = np.clip(cutoff * (i / o - m / n), -6, 6)
    expected = (cutoff / o * np.sinc(t) * np.cos(np.pi * t / 12) ** 2) @ x.double().numpy()
    assert largest_difference(resample(x, source, target), torch.tensor(expected).float()) < TOLERANCE


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 44099])
def test_a_resampled_tone_keeps_pitch_and_level(rate):
    heard = resample(tone(440, 1, rate), rate, 16000)[0, 0]
    assert heard.shape == (16000,)
    assert torch.fft.rfft(heard * torch.hann_window(16000)).abs().argmax().item() == 440
    assert heard[2000:14000].abs().max().item() == pytest.approx(0.5, abs=0.005)


def test_what_the_lower_rate_cannot_carry_is_removed():
    assert resample(tone(12000, 1, 48000), 48000, 16000)[..., 500:-500].abs().max() < 0.002


def test_equal_rates_change_nothing():
    x = randn(0, 2, 2, 100)
    assert resample(x, 16000, 16000) is x


def test_resampling_is_differentiable_and_leaves_its_input_alone():
    x = randn(0, 1, 2, 500).requires_grad_()
    before = x.detach().clone()
    resample(x, 44100, 16000).square().sum().backward()
    assert x.grad.abs().sum() > 0 and torch.equal(x.detach(), before)


@pytest.mark.parametrize("rates", [(0, 16000), (44100.5, 16000), (44100, -1)])
def test_impossible_rates_are_refused(rates):
    with pytest.raises(ValueError, match="positive whole numbers"):
        resample(torch.zeros(1, 10), *rates)


@pytest.mark.parametrize("fft_size, bins", [(1024, 64), (512, 64), (1024, 32)])
def test_mel_filters_equal_an_independent_implementation(fft_size, bins):
    expected = mel_filter_bank(fft_size // 2 + 1, bins, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    assert largest_difference(mel_filterbank(fft_size, bins), torch.tensor(expected).float()) < 1e-6


@pytest.mark.parametrize("bins", [64, 32])
def test_mel_equals_an_independent_implementation(bins):
    waveform = 0.3 * randn(11, 1, 2, 16000)
    filters = mel_filter_bank(513, bins, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    window = window_function(1024, "hann")
    options = dict(power=1.0, mel_filters=filters, mel_floor=1e-5, log_mel="log", dtype=np.float64)
    for channel in 0, 1:
        expected = spectrogram(waveform[0, channel].double().numpy(), window, 1024, 160, 1024, **options)
        ours = waveform_to_mel(waveform, 16000, AudioConfig(mel_bins=bins))[0, channel]
        assert largest_difference(ours, torch.tensor(expected.T.copy()).float()) < TOLERANCE


@pytest.mark.parametrize(
    "seed, rate, total, first, last",  # measured on ltx-core 1.0.0 with torchaudio 2.11
    [(11, 16000, -14673.158368, -1.868063, -1.024386), (13, 44100, -21389.897022, -1.587020, -1.849090)],
)
def test_mel_has_the_published_checksum(seed, rate, total, first, last):
    mel = waveform_to_mel(0.3 * randn(seed, 1, 2, rate), rate)
    assert mel.shape == (1, 2, 101, 64)
    assert mel.double().sum().item() == near(total, magnitude=abs(total))
    assert (mel.flatten()[0].item(), mel.flatten()[-1].item()) == near((first, last), magnitude=2)


def test_mel_stays_float32_under_mixed_precision():
    waveform = 0.3 * randn(0, 1, 2, 4000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = waveform_to_mel(waveform, 16000)
    assert torch.equal(mixed, waveform_to_mel(waveform, 16000))


def test_silence_is_the_floor_and_has_a_finite_gradient():
    silence = torch.zeros(1, 2, 2000, requires_grad=True)
    mel = waveform_to_mel(silence, 16000)
    mel.sum().backward()
    assert mel.detach().unique().tolist() == pytest.approx([math.log(1e-5)])
    assert silence.grad.isfinite().all()


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_half_equals_the_oracle(half, variant):
    ours, theirs = pair(half, **VARIANTS[variant])
    for length in (9, 10) if half == "decoder" else (33, 34):
        x = randn(15, 1, 4, length, 8) if half == "decoder" else randn(14, 1, 2, length, 32)
        with torch.no_grad():
            assert largest_difference(ours(x), theirs(x)) < TOLERANCE


def test_a_batch_is_the_samples_one_by_one():
    ours = quick("encoder")
    x = randn(1, 3, 2, 17, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), torch.cat([ours(x[i : i + 1]) for i in range(3)]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "half, variant, total, total_abs, first, last",  # ltx-core 1.0.0
    [
        ("encoder", "published", -28.298403, 113.344064, -0.214951, -0.443784),
        ("decoder", "published", 60.235546, 1213.758267, -0.182491, 0.723272),
        ("encoder", "attention", -27.255505, 126.969811, -0.408164, -0.051698),
        ("decoder", "attention", -1490.639611, 1517.857160, -0.377478, -0.673713),
    ],
)
def test_a_half_has_the_published_checksum(half, variant, total, total_abs, first, last):
    x = randn(15, 1, 4, 9, 8) if half == "decoder" else randn(14, 1, 2, 33, 32)
    with torch.no_grad():
        out = pair(half, **VARIANTS[variant])[0](x)
    sums = out.double().sum().item(), out.double().abs().sum().item()
    assert sums == near((total, total_abs), total_abs)
    assert (out.flatten()[0].item(), out.flatten()[-1].item()) == near((first, last), magnitude=1)


def test_encode_audio_has_the_published_checksum():
    ours, _ = pair("encoder")
    with torch.no_grad():
        latents = encode_audio(ours, 0.3 * randn(11, 1, 2, 16000), 16000)
    assert latents.shape == (1, 4, 26, 8)
    sums = latents.double().sum().item(), latents.double().abs().sum().item()
    assert sums == near((-152.155401, 326.620969), magnitude=326)


@pytest.mark.parametrize(
    "ours, theirs, tensors, parameters",
    [
        (AudioEncoder, reference.AudioEncoderConfigurator, 46, 21_333_008),
        (AudioDecoder, reference.AudioDecoderConfigurator, 58, 31_915_138),
    ],
)
def test_the_real_size_on_the_meta_device(ours, theirs, tensors, parameters):
    with torch.device("meta"):
        model, expected = ours.from_config(audio_header()), theirs.from_config(audio_header())
    assert shapes(model) == shapes(expected) and len(shapes(model)) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(value.is_meta for value in model.state_dict().values())
    assert shapes(model)["per_channel_statistics.mean-of-means"] == (128,)


def test_a_narrow_network_keeps_a_statistic_for_each_feature():
    encoder = AudioEncoder.from_config(audio_header(ch=32, ch_mult=[1, 1, 2], num_res_blocks=1))
    assert shapes(encoder)["per_channel_statistics.std-of-means"] == (128,)
    with torch.no_grad():
        encoder.get_buffer("per_channel_statistics.mean-of-means")[3 * 16 + 5] += 10
        moved = encoder(torch.zeros(1, 2, 5, 64))
        encoder.get_buffer("per_channel_statistics.mean-of-means").zero_()
        difference = moved - encoder(torch.zeros(1, 2, 5, 64))
    assert difference[:, 3, :, 5].tolist() == [pytest.approx([-10, -10], abs=1e-5)]
    assert (difference.abs() > 1e-5).sum() == 2


@pytest.mark.parametrize("samples", [513, 639, 640, 16000, 16159, 16160, 32000])
def test_how_many_latents_a_sound_has(samples):
    encoder = quick("encoder")
    with torch.no_grad():
        latents = encode_audio(encoder, 0.1 * randn(0, 1, 2, samples), 16000)
    assert latents.shape[2] == math.ceil((1 + samples // 160) / 4)


@pytest.mark.parametrize("frames, fps", [(97, 24), (121, 24), (121, 25), (9, 25)])
def test_with_a_duration_there_are_as_many_latents_as_planned(frames, fps):
    encoder = quick("encoder")
    seconds = frames / fps
    sound = 0.1 * randn(0, 1, 1, int(seconds * 16000))
    with torch.no_grad():
        free, planned = encode_audio(encoder, sound, 16000), encode_audio(encoder, sound, 16000, seconds=seconds)
    assert planned.shape[2] == audio_latent_length(seconds)
    common = min(free.shape[2], planned.shape[2])
    assert torch.equal(planned[:, :, :common], free[:, :, :common]) and planned[:, :, common:].abs().sum() == 0


def test_latents_that_are_too_few_are_filled_with_zeros():
    latents = randn(0, 1, 8, 3, 16)
    fitted = fit_audio_latents(latents, 5)
    assert torch.equal(fitted[:, :, :3], latents) and fitted[:, :, 3:].abs().sum() == 0 and fitted.shape[2] == 5


@pytest.mark.parametrize("changed_at, first_latent", [(1, 1), (4, 1), (5, 2), (20, 5)])
def test_the_encoder_is_causal_in_time(changed_at, first_latent):
    encoder = quick("encoder")
    mel = randn(0, 1, 2, 33, 32)
    changed = torch.cat([mel[:, :, :changed_at], mel[:, :, changed_at:] + 1], dim=2)
    with torch.no_grad():
        moved = (encoder(mel) - encoder(changed)).abs().amax((0, 1, 3)) > 0
    assert moved.nonzero()[0].item() == first_latent


def test_the_decoder_is_causal_in_time():
    decoder = quick("decoder")
    latents = randn(0, 1, 4, 9, 8)
    changed = torch.cat([latents[:, :, :5], latents[:, :, 5:] + 1], dim=2)
    with torch.no_grad():
        moved = (decoder(latents) - decoder(changed)).abs().amax((0, 1, 3)) > 0
    assert moved.nonzero()[0].item() == 4 * 5 - 3


def test_mono_is_the_same_sound_on_both_sides():
    encoder = quick("encoder")
    mono = 0.1 * randn(0, 1, 1, 4410)
    with torch.no_grad():
        assert torch.equal(encode_audio(encoder, mono, 44100), encode_audio(encoder, mono.repeat(1, 2, 1), 44100))


def test_the_sides_are_not_mixed_up():
    encoder = quick("encoder")
    stereo = 0.1 * randn(0, 1, 2, 4000)
    with torch.no_grad():
        assert (
            largest_difference(encode_audio(encoder, stereo, 16000), encode_audio(encoder, stereo.flip(1), 16000))
            > 0.01
        )


def test_silence_encodes_and_decodes_to_finite_numbers():
    encoder, decoder = quick("encoder"), quick("decoder")
    with torch.no_grad():
        latents = encode_audio(encoder, torch.zeros(1, 2, 8000), 16000)
        assert latents.isfinite().all() and decoder(latents).isfinite().all()


def test_bfloat16_is_close_to_float32():
    encoder, decoder = quick("encoder"), quick("decoder")
    sound = 0.3 * randn(0, 1, 2, 8000)
    with torch.no_grad():
        full = encode_audio(encoder, sound, 16000)
        mel = decoder(full)
        half = encode_audio(encoder.to(torch.bfloat16), sound, 16000)
        assert half.dtype == torch.bfloat16 and (half - full).abs().mean() < 0.03 * full.abs().mean()
        low = decoder.to(torch.bfloat16)(half)
    assert low.dtype == torch.bfloat16 and (low - mel).abs().mean() < 0.05 * mel.abs().mean()


def test_every_weight_gets_a_gradient():
    encoder, decoder = quick("encoder"), quick("decoder")
    decoder(encode_audio(encoder, 0.3 * randn(0, 1, 2, 4000), 16000)).square().mean().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm_type": "batch"}, "norm_type = 'batch'"),
        ({"norm_type": "group"}, "cannot be causal"),
        ({"causality_axis": "depth"}, "causality_axis = 'depth'"),
        ({"ch_mult": [1, 2]}, "three levels"),
        ({"mel_bins": 30}, "multiple of 4"),
        ({"double_z": False}, "double_z"),
        ({"attn_type": "linear"}, "attn_type = 'linear'"),
        ({"resamp_with_conv": False}, "resamp_with_conv"),
    ],
)
@pytest.mark.parametrize("half", [AudioEncoder, AudioDecoder])
def test_a_header_that_asks_for_something_unknown_is_refused(half, change, words):
    with pytest.raises(ConfigError, match=words):
        half.from_config(audio_header(**change))


def test_a_header_that_lacks_something_is_refused():
    with pytest.raises(ConfigError, match="no audio_vae section .it has: transformer, vae"):
        AudioEncoder.from_config({"transformer": {}, "vae": {}})
    with pytest.raises(ConfigError, match="ddconfig"):
        AudioDecoder.from_config({"audio_vae": {"model": {}}})
    header = audio_header(mel_bins=...)
    assert AudioConfig.from_config(header).mel_bins == 64  # said elsewhere in the header
    del header["audio_vae"]["preprocessing"]["mel"]
    with pytest.raises(ConfigError, match="mel_bins"):
        AudioEncoder.from_config(header)


@pytest.mark.parametrize("section, key, value", [("params", "sampling_rate", 24000), ("stft", "causal", False)])
def test_a_header_with_another_clock_is_refused(section, key, value):
    header = audio_header()
    place = (
        header["audio_vae"]["model"]["params"] if section == "params" else header["audio_vae"]["preprocessing"]["stft"]
    )
    place[key] = value
    with pytest.raises(ConfigError, match="expected"):
        AudioEncoder.from_config(header)


@pytest.mark.parametrize(
    "waveform, words",
    [
        (torch.zeros(2, 16000), "batch axis"),
        (torch.zeros(1, 6, 16000), "mix more channels down"),
        (torch.zeros(1, 2, 512), "at least 513"),
        (torch.zeros(1, 2, 0), "0 samples"),
        (torch.zeros(1, 2, 16000, dtype=torch.int16), "floating-point"),
    ],
)
def test_a_sound_that_cannot_be_encoded_is_explained(waveform, words):
    with pytest.raises(ValueError, match=words):
        encode_audio(quick("encoder"), waveform, 16000)


def test_a_mel_or_latents_of_the_wrong_shape_are_explained():
    with pytest.raises(ValueError, match=r"\[batch, 2, frames, 32\], got \[1, 1, 9, 32\]"):
        quick("encoder")(torch.zeros(1, 1, 9, 32))
    with pytest.raises(ValueError, match=r"\[batch, 4, time, 8\], got \[1, 9, 32\]"):
        quick("decoder")(torch.zeros(1, 9, 32))
