"The vocoders: parity with ltx-core 1.0.0 on copied weights, lengths, float32, and wrong input."

import math

import oracle  # noqa: F401  (before ltx_core)
import pytest
import torch
from bars import near
from audio_headers import EXTENSION, MAIN, PLAIN, fill, paired_header, plain_header, randn, shapes
from ltx_core.model import audio_vae as reference

from ltx_nb.model.latents import ConfigError
from ltx_nb.model.audio_vae import AudioConfig, AudioDecoder, AudioEncoder, encode_audio, mel_filterbank, resample
from ltx_nb.model.vocoder import Vocoder, decode_audio, fourier_basis, kaiser_sinc_filter, sinc_upsample

TOLERANCE = 1e-4
ONE_BLOCK = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]]}
PLAIN_VARIANTS = {
    "narrow": {"upsample_initial_channel": 64},
    "other rates": {"upsample_initial_channel": 16, "upsample_rates": [4, 3], "upsample_kernel_sizes": [8, 7]},
    "bounded by a clamp": {"upsample_initial_channel": 32, "use_tanh_at_final": False},
    "no last bias": {"upsample_initial_channel": 32, "use_bias_at_final": False},
    "two kinds of block": {
        "upsample_initial_channel": 32, "resblock_kernel_sizes": [5, 9], "resblock_dilation_sizes": [[1, 2, 3], [2, 1, 4]],
    },
}  # fmt: skip
FEW_STAGES = {"upsample_rates": [5, 8, 4], "upsample_kernel_sizes": [11, 16, 8]}
PAIRED_VARIANTS = {
    "one block": ({"upsample_initial_channel": 64, **ONE_BLOCK}, {"upsample_initial_channel": 32, **ONE_BLOCK}),
    "few stages": (
        {"upsample_initial_channel": 32, **FEW_STAGES, **ONE_BLOCK},
        {"upsample_initial_channel": 32, "n_fft": 256, **ONE_BLOCK},
    ),
    "tanh and bias": (
        {
            "upsample_initial_channel": 32,
            **FEW_STAGES,
            **ONE_BLOCK,
            "use_tanh_at_final": True,
            "use_bias_at_final": True,
        },
        {"upsample_initial_channel": 32, **ONE_BLOCK, "use_tanh_at_final": True},
    ),
}


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def with_bases(model: torch.nn.Module, size: int) -> torch.nn.Module:
    "The oracle starts with bases of zero; the published recipe gives it a Fourier transform and mel filters."
    state = model.state_dict()
    state["mel_stft.stft_fn.forward_basis"].copy_(fourier_basis(size))
    state["mel_stft.mel_basis"].copy_(mel_filterbank(size).T)
    return model


def both(header: dict) -> tuple[Vocoder, torch.nn.Module]:
    "Our vocoder and the oracle's with the same weights."
    ours, theirs = (
        Vocoder.from_config(header).eval(),
        fill(reference.VocoderConfigurator.from_config(header).eval(), 900),
    )
    if "bwe" in header["vocoder"]:
        with_bases(theirs, header["vocoder"]["bwe"]["n_fft"])
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def tiny_plain() -> Vocoder:
    return fill(Vocoder.from_config(plain_header(upsample_initial_channel=32, **ONE_BLOCK)).eval(), 0)


def tiny_pair() -> Vocoder:
    return fill(Vocoder.from_config(paired_header(*PAIRED_VARIANTS["few stages"])).eval(), 0)


VOCODERS = pytest.mark.parametrize("make, factor", [(tiny_plain, 240), (tiny_pair, 480)])


@pytest.mark.parametrize("frames", [1, 5, 12])
@pytest.mark.parametrize("variant", PLAIN_VARIANTS)
def test_the_plain_vocoder_equals_the_oracle(variant, frames):
    ours, theirs = both(plain_header(**PLAIN_VARIANTS[variant]))
    mel = randn(16, 2, 2, frames, 64)
    with torch.no_grad():
        assert largest_difference(ours(mel), theirs(mel)) < TOLERANCE
    assert ours.sample_rate == theirs.output_sampling_rate == 24000


@pytest.mark.parametrize("frames", [1, 12])
@pytest.mark.parametrize("variant", PAIRED_VARIANTS)
def test_the_pair_equals_the_oracle(variant, frames):
    ours, theirs = both(paired_header(*PAIRED_VARIANTS[variant]))
    mel = randn(16, 2, 2, frames, 64)
    with torch.no_grad():
        assert largest_difference(ours(mel), theirs(mel)) < TOLERANCE
        assert largest_difference(ours.vocoder(mel), theirs.vocoder(mel)) < TOLERANCE
    assert ours.sample_rate == theirs.output_sampling_rate == 48000


def test_with_bases_of_zero_the_pair_still_equals_the_oracle():
    ours, theirs = both(paired_header(*PAIRED_VARIANTS["few stages"]))
    for model in ours, theirs:
        model.state_dict()["mel_stft.stft_fn.forward_basis"].zero_()
    mel = randn(16, 1, 2, 4, 64)
    with torch.no_grad():
        assert largest_difference(ours(mel), theirs(mel)) < TOLERANCE


def checksum(x: torch.Tensor) -> tuple[float, ...]:
    return x.double().sum().item(), x.double().abs().sum().item(), x.flatten()[0].item(), x.flatten()[-1].item()


def test_the_plain_vocoder_has_the_published_checksum():
    with torch.no_grad():
        out = fill(Vocoder.from_config(plain_header(upsample_initial_channel=64)), 900)(randn(16, 1, 2, 5, 64))
    assert out.shape == (1, 2, 1200)
    assert checksum(out) == near((155.185809, 155.185809, 0.033729, 0.096185), magnitude=155)


def test_the_stages_of_the_pair_have_the_published_checksums():
    header = paired_header({"upsample_initial_channel": 128}, {"upsample_initial_channel": 64})
    model = with_bases(fill(Vocoder.from_config(header), 900), 512)
    mel = randn(16, 1, 2, 5, 64)
    with torch.no_grad():
        draft = model.vocoder(mel)
        heard = model.mel_stft(draft)
        extension, skip, out = model.bwe_generator.generate(heard), sinc_upsample(draft, 3), model(mel)
    assert heard.shape == (1, 2, 10, 64) and out.shape == (1, 2, 2400)
    close = lambda *values: near(values, magnitude=values[1])  # the oracle test is stricter
    assert checksum(draft) == close(42.969234, 792.289406, -0.011467, 0.025633)
    assert checksum(heard.transpose(2, 3)) == close(-3044.630571, 3063.864319, -4.577801, -2.693761)
    assert checksum(extension) == close(-229.837423, 2973.083995, 0.241148, 0.117199)
    assert checksum(skip) == close(128.888175, 2368.906658, -0.010996, 0.040561)
    assert checksum(out) == close(-24.597742, 2915.782187, 0.230152, 0.157760)


@pytest.mark.parametrize(
    "header, tensors, parameters", [(plain_header(), 194, 55_592_802), (paired_header(), 1227, 128_537_448)]
)
def test_the_real_size_on_the_meta_device(header, tensors, parameters):
    with torch.device("meta"):
        model = Vocoder.from_config(header)
    expected = reference.VocoderConfigurator.from_config(header)  # slower on the meta device than with numbers
    assert shapes(model) == shapes(expected) and len(shapes(model)) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(value.is_meta for value in model.state_dict().values())


def test_weights_assigned_to_a_model_without_numbers_work():
    source = tiny_pair()
    with torch.device("meta"):
        model = Vocoder.from_config(paired_header(*PAIRED_VARIANTS["few stages"])).eval()
    model.load_state_dict(source.state_dict(), assign=True)
    mel = randn(0, 1, 2, 3, 64)
    with torch.no_grad():
        assert torch.equal(model(mel), source(mel))


def test_filters_that_come_with_the_file_are_used():
    model, mel = tiny_pair(), randn(0, 1, 2, 3, 64)
    with torch.no_grad():
        before = model(mel)
        model.state_dict()["vocoder.act_post.downsample.lowpass.filter"].mul_(0.5)
        assert largest_difference(model(mel), before) > 1e-3


@VOCODERS
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_every_frame_becomes_the_same_number_of_samples(make, factor, frames):
    with torch.no_grad():
        out = make()(randn(0, 1, 2, frames, 64))
    assert out.shape == (1, 2, factor * frames) and out.abs().max() <= 1


@VOCODERS
def test_the_arithmetic_is_float32_whatever_comes_in(make, factor):
    model, mel = make(), randn(0, 1, 2, 5, 64).to(torch.bfloat16)
    with torch.no_grad():
        full = model(mel.float())
        assert full.dtype == torch.float32 and torch.equal(model(mel), full)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(mel), full)


@VOCODERS
def test_weights_stored_in_bfloat16_lose_no_more_than_their_own_rounding(make, factor):
    rounded, stored = make(), make().to(torch.bfloat16)
    with torch.no_grad():
        for parameter in [*rounded.parameters(), *rounded.buffers()]:
            parameter.copy_(parameter.to(torch.bfloat16))
        mel = randn(0, 1, 2, 5, 64)
        out = stored(mel)
        assert out.dtype == torch.float32 and largest_difference(out, rounded(mel)) < 1e-5


@VOCODERS
def test_silence_has_finite_sound_and_gradient(make, factor):
    model = make()
    mel = torch.full((1, 2, 4, 64), math.log(1e-5)).requires_grad_()
    out = model(mel)
    out.square().sum().backward()
    assert out.isfinite().all() and mel.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_silent_draft_has_a_finite_gradient():
    model = tiny_pair()
    with torch.no_grad():
        model.vocoder.conv_post.weight.zero_()  # the second network then listens to exact zeros
    mel = randn(0, 1, 2, 4, 64).requires_grad_()
    model(mel).sum().backward()
    assert model.vocoder.conv_post.weight.grad.isfinite().all()


def test_the_pair_without_its_extension_is_the_upsampled_draft():
    model, mel = tiny_pair(), randn(0, 1, 2, 20, 64)
    with torch.no_grad():
        model.bwe_generator.conv_post.weight.zero_()
        draft = model.vocoder(mel)
        expected = resample(draft, 16000, 48000)
        inside = slice(30, -30)
        assert largest_difference(model(mel)[..., inside], expected[..., inside].clamp(-1, 1)) < 1e-5


def test_the_straight_way_up_keeps_a_constant_up_to_the_ends():
    assert (sinc_upsample(torch.full((1, 2, 9), 0.5), 3) - 0.5).abs().max() < 1e-3


@pytest.mark.parametrize("taps", [2, 8, 11, 12, 24])
def test_the_low_pass_filter_is_symmetric_and_sums_to_one(taps):
    kernel = kaiser_sinc_filter(2, taps)[0, 0]
    assert kernel.shape == (taps,) and kernel.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(kernel, kernel.flip(0))


def test_the_whole_way_from_sound_to_sound_keeps_the_duration():
    sizes = AudioConfig(channels=16, multipliers=(1, 1, 2), blocks=1)
    encoder, decoder = fill(AudioEncoder(sizes).eval(), 0), fill(AudioDecoder(sizes).eval(), 0)
    with torch.no_grad():
        for make in tiny_plain, tiny_pair:
            voice = make()
            for seconds in 0.2, 9 / 24:
                latents = encode_audio(encoder, 0.1 * randn(0, 1, 1, int(seconds * 44100)), 44100, seconds)
                out = decode_audio(decoder, voice, latents, seconds)
                assert out.shape == (1, 2, round(seconds * voice.sample_rate)) and out.dtype == torch.float32
            free = decode_audio(decoder.to(torch.bfloat16), voice, latents)
            decoder.to(torch.float32)
            assert free.shape[-1] == (4 * latents.shape[2] - 3) * voice.sample_rate // 100
            assert free.dtype == torch.float32 and free.isfinite().all()


def test_sound_that_ends_early_is_filled_with_silence_and_surplus_is_cut():
    decoder, voice = fill(AudioDecoder(AudioConfig(channels=16, multipliers=(1, 1, 1), blocks=0)), 0), tiny_plain()
    latents = randn(0, 1, 8, 10, 16)  # 37 mel frames, 0.37 s
    with torch.no_grad():
        free = decode_audio(decoder, voice, latents)
        longer, shorter = decode_audio(decoder, voice, latents, 0.4), decode_audio(decoder, voice, latents, 0.3)
    assert torch.equal(longer[..., :8880], free) and longer[..., 8880:].abs().sum() == 0 and longer.shape[-1] == 9600
    assert torch.equal(shorter, free[..., :7200])
    for seconds in 0.5, -1:
        with pytest.raises(ValueError, match="10 audio latents make 0.37 s"):
            decode_audio(decoder, voice, latents, seconds)


@pytest.mark.parametrize(
    "header, words",
    [
        ({"vae": {}}, "no vocoder section .it has: vae"),
        (plain_header(resblock="2"), "vocoder.resblock = '2'; expected '1'"),
        (plain_header(stereo=None), "vocoder.stereo = None; expected True"),
        (plain_header(upsample_rates=None), "lacks upsample_rates"),
        (plain_header(upsample_kernel_sizes=[16, 15]), "equally many"),
        (plain_header(upsample_kernel_sizes=[16, 15, 7, 4, 4]), "larger by an even number"),
        (plain_header(resblock_kernel_sizes=[3]), "1 resblock_kernel_sizes, 3 lists"),
        (plain_header(upsample_initial_channel=100), "cannot be halved 5 times"),
        (paired_header({"resblock": "1"}), "vocoder.vocoder.resblock"),
        (paired_header({"stereo": False}), "vocoder.vocoder.stereo"),
        (paired_header(None, {"activation": "snake"}), "vocoder.bwe.activation = 'snake'"),
        (paired_header(None, {"hop_length": None}), "lacks vocoder.bwe.hop_length"),
        (paired_header(None, {"hop_length": 60}), "60 samples must become a whole 180"),
        (paired_header(None, {"output_sampling_rate": 44100}), "16000 to 44100 Hz"),
        (paired_header(None, {"num_mels": 80}), "num_mels = 80; expected 64"),
        ({"vocoder": {"bwe": EXTENSION}}, "lacks vocoder.vocoder"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(header, words):
    with pytest.raises(ConfigError, match=words):
        Vocoder.from_config(header)


@VOCODERS
@pytest.mark.parametrize("shape", [(2, 5, 64), (1, 1, 5, 64), (1, 2, 5, 32), (1, 2, 0, 64)])
def test_a_mel_of_the_wrong_shape_is_explained(make, factor, shape):
    with pytest.raises(ValueError, match="Expected a stereo mel"):
        make()(torch.zeros(shape))


def test_the_headers_of_this_file_are_the_published_ones():
    assert math.prod(PLAIN["upsample_rates"]) == 240 and math.prod(MAIN["upsample_rates"]) == 160
    assert math.prod(EXTENSION["upsample_rates"]) == 240
