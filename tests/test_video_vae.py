"The video autoencoder: parity with ltx-core 1.0.0 on copied weights, the published layouts, and wrong input."

import functools

import oracle  # noqa: F401  (first: lets ltx_core import without torchaudio)
import pytest
import torch
from bars import near
from ltx_core.model import video_vae as reference

from ltx_nb.model.latents import ConfigError, ScaleFactors
from ltx_nb.model.tiling import Tiling, decode_chunks, decode_spans, decode_video, encode_spans, encode_video
from ltx_nb.model.video_vae import VideoDecoder, VideoEncoder, from_uint8, to_uint8

TOLERANCE = {"rtol": 0, "atol": 1e-4}  # outputs reach 10, after thirty convolutions; a wrong layer gives 0.1 and more


def sums(x):
    x = x.double()
    return x.sum().item(), x.abs().sum().item()


SCALARS = {
    "dims": 3, "in_channels": 3, "out_channels": 3, "patch_size": 4, "norm_layer": "pixel_norm",
    "latent_log_var": "uniform", "causal_decoder": False, "timestep_conditioning": False,
}  # fmt: skip
DOUBLE = {"multiplier": 2}
LTX2 = {
    **SCALARS, "latent_channels": 128, "decoder_base_channels": 128,
    "encoder_blocks": [
        ["res_x", {"num_layers": 4}], ["compress_space_res", DOUBLE],
        ["res_x", {"num_layers": 6}], ["compress_time_res", DOUBLE],
        ["res_x", {"num_layers": 6}], ["compress_all_res", DOUBLE],
        ["res_x", {"num_layers": 2}], ["compress_all_res", DOUBLE],
        ["res_x", {"num_layers": 2}],
    ],
    "decoder_blocks": [["res_x", {"num_layers": 5, "inject_noise": False}]]
    + 3 * [["compress_all", {"residual": True, "multiplier": 2}], ["res_x", {"num_layers": 5, "inject_noise": False}]],
}  # fmt: skip
LTX23 = {
    **SCALARS, "latent_channels": 128, "decoder_base_channels": 128, "spatial_padding_mode": "zeros",
    "encoder_base_channels": 128, "scaling_factor": 1.0, "use_quant_conv": False, "normalize_latent_channels": False,
    "encoder_blocks": [
        ["res_x", {"num_layers": 4}], ["compress_space_res", DOUBLE],
        ["res_x", {"num_layers": 6}], ["compress_time_res", DOUBLE],
        ["res_x", {"num_layers": 4}], ["compress_all_res", DOUBLE],
        ["res_x", {"num_layers": 2}], ["compress_all_res", {"multiplier": 1}],
        ["res_x", {"num_layers": 2}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 4}], ["compress_space", DOUBLE],
        ["res_x", {"num_layers": 6}], ["compress_time", DOUBLE],
        ["res_x", {"num_layers": 4}], ["compress_all", {"multiplier": 1}],
        ["res_x", {"num_layers": 2}], ["compress_all", DOUBLE],
        ["res_x", {"num_layers": 2}],
    ],
}  # fmt: skip
REAL = {"LTX-2": LTX2, "LTX-2.3": LTX23}


def shallow(vae: dict, layers: int = 1, latent_channels: int = 16, base: int = 8, **changes) -> dict:
    "The same layout with few and narrow layers."
    one = lambda name, params: [name, {**params, "num_layers": layers} if name == "res_x" else params]
    lists = {key: [one(*entry) for entry in vae[key]] for key in ("encoder_blocks", "decoder_blocks")}
    return {**vae, **lists, "latent_channels": latent_channels, "decoder_base_channels": base, **changes}


A, B = shallow(LTX2), shallow(LTX23)
C = {  # every path that no published LTX-2 file takes
    **SCALARS, "latent_channels": 16, "decoder_base_channels": 8,
    "timestep_conditioning": True, "causal_decoder": True, "latent_log_var": "per_channel",
    "encoder_blocks": [
        ["res_x", 1], ["compress_space", 1], ["res_x_y", 1], ["compress_time", 1], ["compress_all", 1],
        ["compress_all_x_y", DOUBLE],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 1, "inject_noise": True}], ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x_y", {"multiplier": 2, "inject_noise": False}], ["compress_time", {}], ["res_x", {"num_layers": 1}],
        ["compress_space", {}],
    ],
}  # fmt: skip
GROUPED = {**C, "norm_layer": "group_norm", "timestep_conditioning": False, "latent_channels": 32,
           "decoder_base_channels": 16, "latent_log_var": "constant", "spatial_padding_mode": "replicate"}  # fmt: skip
GROUPED = {**GROUPED, "decoder_blocks": [b for b in C["decoder_blocks"] if b[0] != "res_x_y"]}
CONFIGS = {"A": A, "B": B, "C": C, "grouped": GROUPED}
_built = {}


def recipe(module, seed):
    "Weights that anyone can draw again: tensor j of the sorted keys comes from seed + j."
    state = module.state_dict()
    for j, key in enumerate(sorted(state)):
        r = torch.randn(state[key].shape, generator=torch.Generator().manual_seed(seed + j))
        if key.endswith("std-of-means"):
            state[key] = 0.5 + r.abs()
        elif key.endswith("mean-of-means"):
            state[key] = 0.3 * r
        elif "scale_shift" in key or "per_channel_scale" in key:
            state[key] = 0.1 * r
        elif r.ndim >= 2:
            state[key] = r / (r.numel() / r.shape[0]) ** 0.5
        elif key != "timestep_scale_multiplier":
            state[key] = 0.1 * r
    return state


def both(name, half):
    "Ours and the reference's with the same weights, built once for all tests; neither is changed by them."
    if (name, half) not in _built:
        ours, theirs, seed = {
            "encoder": (VideoEncoder, reference.VideoEncoderConfigurator, 100),
            "decoder": (VideoDecoder, reference.VideoDecoderConfigurator, 500),
        }[half]
        header = {"vae": CONFIGS[name]}
        mine, oracles = ours.from_config(header).eval(), theirs.from_config(header).eval()
        state = recipe(oracles, seed)
        oracles.load_state_dict(state)
        mine.load_state_dict(state)  # strict: the keys are the file's keys
        _built[name, half] = mine, oracles
    return _built[name, half]


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def reference_tiling(size=None, overlap=None, frames=None, frame_overlap=None):
    return reference.TilingConfig(
        spatial_config=size and reference.SpatialTilingConfig(size, overlap),
        temporal_config=frames and reference.TemporalTilingConfig(frames, frame_overlap),
    )


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# ---- the published layouts at real size


@functools.cache
def without_memory(version, half):
    with torch.device("meta"):
        return half.from_config({"vae": REAL[version]})


@pytest.mark.parametrize("half, ours, theirs", [
    ("encoder", VideoEncoder, reference.VideoEncoderConfigurator),
    ("decoder", VideoDecoder, reference.VideoDecoderConfigurator),
])  # fmt: skip
@pytest.mark.parametrize("version, tensors, parameters", [
    ("LTX-2", {"encoder": 94, "decoder": 92}, {"encoder": 694_098_881, "decoder": 528_380_720}),
    ("LTX-2.3", {"encoder": 86, "decoder": 86}, {"encoder": 318_936_897, "decoder": 407_169_072}),
])  # fmt: skip
def test_real_size_has_the_keys_and_shapes_of_the_file(version, tensors, parameters, half, ours, theirs):
    mine, oracles = without_memory(version, ours), without_memory(version, theirs)
    shapes = {key: tuple(value.shape) for key, value in mine.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in oracles.state_dict().items()}
    assert len(shapes) == tensors[half]
    assert sum(p.numel() for p in mine.parameters()) == parameters[half]
    assert sum(b.numel() for b in mine.buffers()) == 256
    assert {name for name, _ in mine.named_parameters()} == {name for name, _ in oracles.named_parameters()}


@pytest.mark.parametrize("version", REAL)
def test_real_size_runs_down_to_the_latent_grid_and_back_up(version):
    latents = without_memory(version, VideoEncoder)(torch.empty(1, 3, 25, 512, 768, device="meta"))
    assert latents.shape == (1, 128, 4, 16, 24)
    assert without_memory(version, VideoDecoder)(latents).shape == (1, 3, 25, 512, 768)


def test_checkpoint_keys_cover_the_file_and_leave_the_other_statistics_out():
    statistics = ["vae.per_channel_statistics.mean-of-means", "vae.per_channel_statistics.std-of-means"]
    keys = ["vae.encoder.conv_in.conv.weight", *statistics]
    found = set()
    for key in keys:
        for prefix, into in VideoEncoder.CHECKPOINT_KEYS.items():
            if key.startswith(prefix):
                found.add(into + key[len(prefix) :])
    assert found == {"conv_in.conv.weight", *(key.removeprefix("vae.") for key in statistics)}
    assert not any(key.startswith(VideoEncoder.IGNORED_KEYS) for key in keys)
    for extra in "channel", "mean-of-stds", "mean-of-stds_over_std-of-means":
        assert f"vae.per_channel_statistics.{extra}".startswith(VideoEncoder.IGNORED_KEYS)


# ---- parity


@pytest.mark.parametrize("name, total, total_abs", [
    ("A", -31.513973, 71.557282), ("B", -30.991675, 55.763793), ("C", -1.075140, 51.531385), ("grouped", None, None),
])  # fmt: skip
def test_encoder_equals_the_reference(name, total, total_abs):
    mine, oracles = both(name, "encoder")
    x = torch.tanh(draw(1, 1, 3, 9, 64, 96))
    found = mine(x)
    torch.testing.assert_close(found, oracles(x), **TOLERANCE)
    if total is not None:
        assert sums(found) == near((total, total_abs), total_abs)


@pytest.mark.parametrize("name, total, total_abs", [
    ("A", -9249.096607, 80779.942259), ("B", -5558.746191, 78340.180362), ("grouped", None, None),
])  # fmt: skip
def test_decoder_equals_the_reference(name, total, total_abs):
    mine, oracles = both(name, "decoder")
    z = draw(2, 1, CONFIGS[name]["latent_channels"], 2, 2, 3)
    found = mine(z, generator=generator(7))
    torch.testing.assert_close(found, oracles(z, generator=generator(7)), **TOLERANCE)
    if total is not None:
        assert sums(found) == near((total, total_abs), total_abs)


@pytest.mark.parametrize("timestep, total, total_abs", [
    (None, -3102.890199, 41202.776871), ([0.2, 0.4], -3899.402174, 43865.434401),
])  # fmt: skip
def test_steered_noisy_causal_decoder_equals_the_reference(timestep, total, total_abs):
    mine, oracles = both("C", "decoder")
    z, timestep = draw(2, 2, 16, 2, 3, 3), timestep and torch.tensor(timestep)
    found = mine(z, generator=generator(7), timestep=timestep)
    torch.testing.assert_close(found, oracles(z, timestep=timestep, generator=generator(7)), **TOLERANCE)
    assert sums(found) == near((total, total_abs), total_abs)
    assert not torch.allclose(found, mine(z, generator=generator(8), timestep=timestep))


@pytest.mark.parametrize("name", ["A", "B"])
@pytest.mark.parametrize("frames", [1, 17])
def test_stills_and_batches_equal_the_reference(name, frames):
    encoder, oracle_encoder = both(name, "encoder")
    decoder, oracle_decoder = both(name, "decoder")
    x = torch.tanh(draw(3, 2, 3, frames, 64, 64))
    latents = encoder(x)
    torch.testing.assert_close(latents, oracle_encoder(x), **TOLERANCE)
    torch.testing.assert_close(decoder(latents), oracle_decoder(latents), **TOLERANCE)


def test_gradients_equal_the_reference():
    mine, oracles = both("A", "decoder")
    with torch.enable_grad():
        grads = []
        for decoder in mine, oracles:
            z = draw(2, 1, 16, 2, 2, 2).requires_grad_()
            grads.append(torch.autograd.grad(decoder(z).square().mean(), [z, decoder.up_blocks[1].conv.conv.weight]))
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tiling, chunks, total_abs", [
    ((512, 64, 64, 24), [32, 33], 2266429.392778),
    ((None, 0, 32, 8), [16, 24, 25], 2240356.665470),
    ((128, 32, 32, 16), [8, 16, 16, 25], 2090071.209275),
])  # fmt: skip
def test_tiled_decode_equals_the_reference(tiling, chunks, total_abs):
    mine, oracles = both("A", "decoder")
    z = draw(5, 1, 16, 9, 6, 4)
    theirs = list(oracles.tiled_decode(z, reference_tiling(*tiling)))
    found = list(decode_chunks(mine, z, Tiling(*tiling)))
    assert [c.shape[2] for c in found] == chunks == [c.shape[2] for c in theirs]
    torch.testing.assert_close(torch.cat(found, 2), torch.cat(theirs, 2), **TOLERANCE)
    assert sums(torch.cat(found, 2))[1] == near(total_abs, total_abs)


@pytest.mark.parametrize("tiling, total, total_abs", [
    ((512, 64, 64, 24), -155.835711, 410.928489),
    ((128, 64, None, 0), -157.667426, 408.381663),
    ((None, 0, 24, 16), -170.373800, 395.106994),
    ((128, 64, 24, 16), -171.581754, 394.098403),
    ((128, 96, 24, 16), None, None),
])  # fmt: skip
def test_tiled_encode_equals_the_reference(tiling, total, total_abs):
    mine, oracles = both("A", "encoder")
    x = torch.tanh(draw(6, 1, 3, 41, 192, 64))
    if total is None:
        x = x[:, :, :25]
    found = encode_video(mine, x, Tiling(*tiling))
    torch.testing.assert_close(found, oracles.tiled_encode(x, reference_tiling(*tiling)), **TOLERANCE)
    if total is not None:
        assert sums(found) == near((total, total_abs), total_abs)


def test_bytes_equal_the_reference():
    mine, oracles = both("A", "decoder")
    z = draw(2, 1, 16, 2, 2, 3)
    found = to_uint8(mine(z))[0]
    theirs = torch.cat(list(reference.decode_video(z, oracles)))
    assert found.shape == theirs.shape == (9, 64, 96, 3) and found.dtype == theirs.dtype
    off = (found.int() - theirs.int()).abs()
    # A value on the edge of two bytes may fall either way: of 165,888 values, each off by 127 ROOM at most, 210 or fewer
    # are that near to an edge. Against the reference, on one machine, it is a handful.
    assert off.max() <= 1 and off.sum() <= 20
    assert int(found.sum()) == pytest.approx(20012638, abs=210)
    assert found.flatten()[:6].tolist() == [116, 130, 150, 104, 255, 178]


# ---- what sees what


@pytest.mark.parametrize("name", ["A", "B"])
def test_a_latent_depends_on_its_own_frames_and_the_past_only(name):
    encoder, _ = both(name, "encoder")
    x = torch.tanh(draw(4, 1, 3, 17, 64, 64))
    before = encoder(x)
    for frame, first_changed in (16, 2), (9, 2), (8, 1), (0, 0):
        changed = x.clone()
        changed[:, :, frame] = -changed[:, :, frame]
        moved = (encoder(changed) - before).abs().amax((0, 1, 3, 4)) > 1e-4
        assert moved.tolist() == [latent >= first_changed for latent in range(3)]


def test_the_first_latent_of_a_clip_is_that_of_its_first_frame():
    encoder, _ = both("B", "encoder")
    x = torch.tanh(draw(4, 1, 3, 17, 64, 64))
    torch.testing.assert_close(encoder(x)[:, :, :1], encoder(x[:, :, :1]), rtol=0, atol=1e-5)


def test_a_causal_decoder_looks_back_only_and_a_published_one_ahead():
    published, causal = both("B", "decoder")[0], VideoDecoder.from_config({"vae": {**B, "causal_decoder": True}}).eval()
    causal.load_state_dict(published.state_dict())
    z = draw(5, 1, 16, 3, 2, 2)
    changed = torch.cat([z[:, :, :2], -z[:, :, 2:]], dim=2)
    moved = lambda decoder: (decoder(z) - decoder(changed)).abs().amax((0, 1, 3, 4)) > 1e-4
    assert not moved(causal)[:9].any() and moved(causal)[9:].all()
    assert moved(published)[:9].any()


# ---- the ways that save memory


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_convolving_a_few_frames_at_a_time_is_exact(name):
    encoder, decoder = both(name, "encoder")[0], both(name, "decoder")[0]
    x, z = torch.tanh(draw(1, 1, 3, 17, 64, 64)), draw(2, 1, 16, 3, 3, 3)
    whole = encoder(x), decoder(z, generator=generator(7))
    convolutions = [m for half in (encoder, decoder) for m in half.modules() if hasattr(m, "largest_copy")]
    try:
        for convolution in convolutions:
            convolution.largest_copy = 1
        pieces = encoder(x), decoder(z, generator=generator(7))
    finally:
        for convolution in convolutions:
            del convolution.largest_copy
    for a, b in zip(whole, pieces):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_nothing_is_written_into_the_inputs():
    encoder, decoder = both("A", "encoder")[0], both("A", "decoder")[0]
    x, z = torch.tanh(draw(1, 1, 3, 9, 64, 64)), draw(2, 1, 16, 2, 2, 2)
    x_before, z_before = x.clone(), z.clone()
    encode_video(encoder, x, Tiling()), decode_video(decoder, z, Tiling()), to_uint8(x)
    assert torch.equal(x, x_before) and torch.equal(z, z_before)


def test_half_precision_stays_close_and_keeps_its_type():
    decoder, encoder = (half.from_config({"vae": B}).eval() for half in (VideoDecoder, VideoEncoder))
    for half, name in (decoder, "decoder"), (encoder, "encoder"):
        half.load_state_dict(both("B", name)[0].state_dict())
        half.to(torch.bfloat16)
    x = torch.tanh(draw(1, 1, 3, 9, 64, 64))
    latents = encode_video(encoder, x)  # float32 in, the weights' type out
    assert latents.dtype == torch.bfloat16 and decode_video(decoder, latents.float()).dtype == torch.bfloat16
    exact = both("B", "encoder")[0](x)
    assert (latents - exact).abs().mean() < 0.05 * exact.abs().mean()
    tiled = encode_video(encoder, x, Tiling())
    assert tiled.dtype == torch.bfloat16 and torch.equal(tiled, latents)


# ---- tiles


def test_tiles_larger_than_the_clip_are_the_whole_clip():
    encoder, decoder = both("A", "encoder")[0], both("A", "decoder")[0]
    x, z = torch.tanh(draw(1, 1, 3, 9, 64, 96)), draw(2, 2, 16, 2, 2, 3)
    assert torch.equal(encode_video(encoder, x, Tiling()), encode_video(encoder, x))
    assert torch.equal(decode_video(decoder, z, Tiling()), decode_video(decoder, z))
    assert torch.equal(decode_video(decoder, z, Tiling(size=None, frames=None)), decoder(z))


def pointwise(header, half):
    "Networks whose convolutions look at one frame and pixel of their window only: no tile can see a border."
    network, frame = half.from_config(header).eval(), 1 if half is VideoDecoder else 2
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            kept = module.weight[..., frame, 1, 1].clone()
            module.weight.zero_()[..., frame, 1, 1] = kept
    return network


@pytest.mark.parametrize("tiling", [Tiling(64, 32, 16, 8), Tiling(96, 64, None), Tiling(None, 0, 32, 24)])
def test_tiled_decode_is_exact_where_no_frame_sees_its_neighbours(tiling):
    torch.manual_seed(0)
    decoder, z = pointwise({"vae": B}, VideoDecoder), draw(2, 1, 16, 5, 3, 4)
    torch.testing.assert_close(decode_video(decoder, z, tiling), decode_video(decoder, z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tiling", [Tiling(96, 64, 24, 16), Tiling(128, 64, None), Tiling(None, 0, 32, 24)])
def test_tiled_encode_is_exact_where_no_frame_sees_its_neighbours(tiling):
    torch.manual_seed(0)
    encoder, x = pointwise({"vae": B}, VideoEncoder), torch.tanh(draw(2, 1, 3, 41, 32, 160))
    torch.testing.assert_close(encode_video(encoder, x, tiling), encode_video(encoder, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 4, 8), (31, 17, 30), (2, 40, 3), (1, 2, 2)])
@pytest.mark.parametrize(
    "tiling", [Tiling(), Tiling(384, 192, 48, 24), Tiling(128, 32, 32, 8), Tiling(64, 0, 16, 0), Tiling(512, 128, None)]
)
def test_decode_weights_add_up_to_one_everywhere(shape, tiling):
    for spans, length in zip(decode_spans(shape, tiling), (1 + 8 * (shape[0] - 1), 32 * shape[1], 32 * shape[2])):
        total = torch.zeros(length)
        for span in spans:
            total[span.target] += span.weight
        torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize("frames, expected", [
    (9, [(0, 8), (4, 9)]), (16, [(0, 8), (4, 13), (9, 16)]),
    (31, [(0, 8), (4, 13), (9, 18), (14, 23), (19, 28), (24, 31)]),
])  # fmt: skip
def test_tiles_in_time_are_those_of_the_reference(frames, expected):
    spans, _, _ = decode_spans((frames, 2, 2), Tiling())
    assert [(span.source.start, span.source.stop) for span in spans] == expected


@pytest.mark.parametrize("frames, height, width", [(121, 544, 960), (41, 192, 64), (65, 1088, 1920), (1, 64, 64)])
@pytest.mark.parametrize("tiling", [Tiling(), Tiling(128, 64, 24, 16), Tiling(256, 128, None), Tiling(96, 64, 64, 56)])
def test_encode_tiles_are_legal_clips_and_own_every_latent(frames, height, width, tiling):
    time, *space = encode_spans((frames, height, width), tiling)
    assert all((span.source.stop - span.source.start) % 8 == 1 for span in time)
    for spans, cells in zip((time, *space), ((frames - 1) // 8 + 1, height // 32, width // 32)):
        total = torch.zeros(cells)
        for span in spans:
            total[span.target] += span.weight
        assert total.tolist() == [1] * cells


def test_a_tiled_decode_never_shows_the_network_more_than_a_tile():
    decoder, seen = both("B", "decoder")[0], []
    hook = decoder.conv_in.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape[2:])))
    try:
        decode_video(decoder, draw(2, 1, 16, 4, 3, 3), Tiling(64, 32, 16, 8))
    finally:
        hook.remove()
    assert len(seen) == 3 * 2 * 2 and all(t <= 3 and h <= 2 and w <= 2 for t, h, w in seen)


def test_noisy_tiles_follow_the_generator():
    decoder, z, tiling = both("C", "decoder")[0], draw(2, 1, 16, 5, 4, 6), Tiling(64, 32, 16, 8)
    first, again, other = (decode_video(decoder, z, tiling, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert decoder.factors == ScaleFactors(4, 16, 16) and first.shape == (1, 3, 17, 64, 96)


# ---- bytes


def test_bytes_survive_the_round_trip_but_for_truncation():
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(2, 1, 16, 16, 3)
    video = from_uint8(frames)
    assert video.shape == (2, 3, 1, 16, 16) and video.min() == -1 and video.max() == 1
    lost = frames.int() - to_uint8(video).int()
    assert set(lost.unique().tolist()) <= {0, 1}


# ---- what a user can do wrong


@pytest.mark.parametrize("shape, words", [
    ((1, 3, 8, 64, 64), "1 or 9"), ((1, 3, 9, 60, 64), "32 or 64"), ((1, 3, 9, 64, 100), "96 or 128"),
    ((1, 4, 9, 64, 64), r"\[B, 3, F, H, W\]"), ((3, 9, 64, 64), r"\[B, 3, F, H, W\]"),
])  # fmt: skip
@pytest.mark.parametrize("tiling", [None, Tiling()])
def test_wrong_videos_are_refused_with_what_would_fit(shape, words, tiling):
    with pytest.raises(ValueError, match=words):
        encode_video(both("A", "encoder")[0], torch.zeros(shape), tiling)


@pytest.mark.parametrize("shape, words", [
    ((1, 16, 2, 1, 4), "64x64"), ((1, 8, 2, 2, 2), r"\[B, 16, F, H, W\]"), ((16, 2, 2, 2), r"\[B, 16, F, H, W\]"),
    ((1, 16, 0, 2, 2), r"\[B, 16, F, H, W\]"),
])  # fmt: skip
@pytest.mark.parametrize("tiling", [None, Tiling()])
def test_wrong_latents_are_refused_with_what_would_fit(shape, words, tiling):
    with pytest.raises(ValueError, match=words):
        decode_video(both("A", "decoder")[0], torch.zeros(shape), tiling)


def test_the_zero_padding_decoder_takes_a_single_cell():
    mine, oracles = both("B", "decoder")
    z = draw(2, 1, 16, 2, 1, 1)
    torch.testing.assert_close(mine(z), oracles(z), **TOLERANCE)


@pytest.mark.parametrize("settings", [
    {"size": 32, "overlap": 0}, {"size": 100}, {"size": 512, "overlap": 40}, {"size": 128, "overlap": 128},
    {"frames": 8, "frame_overlap": 0}, {"frames": 20}, {"frames": 32, "frame_overlap": 4},
    {"frames": 32, "frame_overlap": 32}, {"frame_overlap": -8},
])  # fmt: skip
def test_impossible_tilings_are_refused(settings):
    with pytest.raises(ValueError, match="expected multiples of"):
        Tiling(**settings)


@pytest.mark.parametrize(
    "tiling, words", [(Tiling(overlap=32), "overlap=64"), (Tiling(frame_overlap=8), "frame_overlap=16")]
)
def test_overlaps_that_show_in_encoding_are_refused(tiling, words):
    with pytest.raises(ValueError, match=words):
        encode_video(both("A", "encoder")[0], torch.zeros(1, 3, 9, 64, 64), tiling)


@pytest.mark.parametrize("changes, half, words", [
    ({"dims": 2}, VideoEncoder, "vae.dims"),
    ({"dims": [2, 1]}, VideoDecoder, "vae.dims"),
    ({"latent_log_var": "none"}, VideoEncoder, "latent_log_var"),
    ({"norm_layer": "layer_norm"}, VideoEncoder, "norm_layer"),
    ({"norm_layer": "group_norm"}, VideoEncoder, "divide by 32"),
    ({"spatial_padding_mode": "same"}, VideoDecoder, "spatial_padding_mode"),
    ({"_class_name": "CausalDiffusionVAE"}, VideoDecoder, "_class_name"),
    ({"latent_channels": "many"}, VideoDecoder, "latent_channels"),
    ({"latent_channels": 0}, VideoEncoder, "latent_channels"),
    ({"encoder_blocks": []}, VideoEncoder, "encoder_blocks"),
    ({"decoder_blocks": None}, VideoDecoder, "decoder_blocks"),
    ({"decoder_blocks": [["attn_res_x", {"num_layers": 1}]]}, VideoDecoder, "attn_res_x"),
    ({"encoder_blocks": [["attn", {}]]}, VideoEncoder, "unknown block 'attn'"),
    ({"encoder_blocks": [["compress_all_res", {"multiplier": 2, "heads": 3}]]}, VideoEncoder, "heads"),
    ({"encoder_blocks": ["res_x"]}, VideoEncoder, "expected"),
    ({"encoder_blocks": [["res_x", {"num_layers": -1}]]}, VideoEncoder, "num_layers"),
    ({"encoder_blocks": [["compress_all_res", {"multiplier": 3}]], "latent_channels": 10}, VideoEncoder, "fold"),
    ({"decoder_blocks": [["compress_all", {"multiplier": 7}]]}, VideoDecoder, "compress_all"),
    ({"decoder_blocks": [["res_x_y", {"inject_noise": True}]]}, VideoDecoder, "inject_noise"),
])  # fmt: skip
def test_headers_that_ask_for_something_else_are_refused(changes, half, words):
    vae = {key: value for key, value in {**A, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=words):
        half.from_config({"vae": vae})


@pytest.mark.parametrize("header", [{}, {"vae": None}, {"transformer": {}}])
@pytest.mark.parametrize("half", [VideoEncoder, VideoDecoder])
def test_a_header_without_a_video_autoencoder_is_refused(header, half):
    with pytest.raises(ConfigError, match="vae"):
        half.from_config(header)


def test_a_missing_timestep_conditioning_means_on_as_in_the_reference():
    vae = {key: value for key, value in A.items() if key != "timestep_conditioning"}
    with torch.device("meta"):
        mine = VideoDecoder.from_config({"vae": vae})
        oracles = reference.VideoDecoderConfigurator.from_config({"vae": vae})
    assert mine.state_dict().keys() == oracles.state_dict().keys()
    assert "timestep_scale_multiplier" in mine.state_dict()


def test_missing_padding_means_two_things():
    vae = {key: value for key, value in A.items() if key != "spatial_padding_mode"}
    assert VideoEncoder.from_config({"vae": vae}).config.padding == "zeros"
    assert VideoDecoder.from_config({"vae": vae}).config.padding == "reflect"
