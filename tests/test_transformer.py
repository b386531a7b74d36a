"The transformer: known numbers, real sizes, refusals, and savings that change nothing."

import copy
import pickle
import warnings

import pytest
import torch
from bars import near
import torch.nn.functional as F
from transformer_cases import BASE, CASES, fill, inputs, tiny_header

from ltx_nb.model.latents import ConfigError, audio_positions, video_positions
from ltx_nb.model.attention import Rope, RopeTable, rms_norm, rope_angles, rope_frequencies, rope_table, rotate
from ltx_nb.model.transformer import LTXModel, Perturbations, distinct_levels, needed_mask
from dataclasses import replace

REAL = {
    "19B": {**BASE, "caption_channels": 3840},
    "22B": {
        **BASE,
        "apply_gated_attention": True,
        "cross_attention_adaln": True,
        "caption_proj_before_connector": True,
    },
}
VIDEO = {
    "V1-int": (-32.081380, 90.438346, -0.277485, 0.081672), "V1-split": (-27.621313, 91.722808, -0.229751, 0.047251),
    "V2": (-11.363805, 111.227628, -0.041409, -0.453891), "V2 no audio": (-16.725961, 109.269842, -0.050823, -0.586629),
    "V2 no video": None, "V2 video disabled": (-13.228217, 117.144425, 0.042095, -0.484254),
    "V2 context mask": (-10.984136, 111.645949, -0.004356, -0.442008),
    "V2 attention mask": (-11.722479, 110.727203, -0.045085, -0.478277),
    "V2 self skip": (-14.549090, 109.929634, -0.004614, -0.457935),
    "V2 self skip of one": (-12.491456, 109.453008, -0.004614, -0.453891),
    "V2 apart": (-16.725961, 109.269842, -0.050823, -0.586629),
    "V2 one apart": (-16.083964, 111.520603, -0.041409, -0.586629),
    "V2 uniform": (-10.004601, 92.252314, -0.056216, -0.885711),
    "V2 video only": (-25.116813, 84.099961, -0.077581, 0.065609), "V2 audio only": None,
}  # fmt: skip
AUDIO = {
    "V1-int": (-1.316087, 25.775403, -0.293677, 1.132446), "V1-split": (-1.092816, 25.693734, -0.303710, 1.130547),
    "V2": (0.368821, 23.193019, -0.261699, 0.071681), "V2 no audio": None,
    "V2 no video": (1.354177, 22.857630, -0.256137, 0.113079),
    "V2 video disabled": (0.473583, 23.140029, -0.257918, 0.072958),
    "V2 context mask": (0.377865, 23.176940, -0.257417, 0.064586),
    "V2 attention mask": (0.333072, 23.222924, -0.262526, 0.071303),
    "V2 self skip": (0.520487, 22.854549, -0.272984, 0.062087),
    "V2 self skip of one": (0.382344, 23.117057, -0.272984, 0.071681),
    "V2 apart": (1.354177, 22.857630, -0.256137, 0.113079), "V2 one apart": (0.982343, 22.918242, -0.261699, 0.113079),
    "V2 uniform": (-1.631397, 25.976575, -0.343994, -0.172263),
    "V2 video only": None, "V2 audio only": (-14.327856, 30.218969, -0.933454, -0.194610),
}  # fmt: skip


def build(variant, kind="av", cross_timestep="other"):
    model = LTXModel.from_config(tiny_header(variant), kind, cross_timestep)
    model.load_state_dict(fill(model.state_dict()))
    return model.eval()


def assert_checksum(velocity, expected):
    if expected is None:
        assert velocity is None
        return
    total, magnitude, first, last = expected
    flat = velocity.double().flatten()
    assert (flat.sum().item(), flat.abs().sum().item()) == near((total, magnitude), magnitude)
    assert flat[[0, -1]].tolist() == near([first, last], magnitude=1)


def run(model, case, **changes):
    variant, kind, change = CASES[case]
    video, audio, skips = change(*inputs(variant, kind))
    video, audio = (m and replace(m, **changes) for m in (video, audio))
    with torch.no_grad():
        return model(video, audio, Perturbations(skips) if skips else None)


@pytest.mark.parametrize("case", CASES)
def test_velocities_have_the_known_checksums(case):
    video, audio = run(build(*CASES[case][:2]), case)
    assert_checksum(video, VIDEO[case])
    assert_checksum(audio, AUDIO[case])


def test_seeded_weights_are_those_of_the_recipe():
    weights = fill(build("V2").state_dict())
    assert len(weights) == 230 and sum(w.numel() for w in weights.values()) == 128_120
    torch.testing.assert_close(
        weights["adaln_single.emb.timestep_embedder.linear_1.bias"][:3],
        torch.tensor([-0.11258399, -0.11523602, -0.02505786]),
    )
    assert abs(sum(w.double().sum().item() for w in weights.values()) - 454.315636) < 1e-3


def test_own_timesteps_give_the_checksum_of_upstream_1_2_0():
    video, audio = run(build("V2", cross_timestep="own"), "V2")
    for velocity, total, magnitude in (video, -10.737879, 111.005097), (audio, 0.315041, 23.139119):
        assert (velocity.sum().item(), velocity.abs().sum().item()) == near((total, magnitude), magnitude)


def test_both_timestep_modes_agree_when_all_is_equally_noisy():
    for own, other in zip(run(build("V2", cross_timestep="own"), "V2 uniform"), run(build("V2"), "V2 uniform")):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6)


def test_an_unknown_timestep_mode_is_refused():
    with pytest.raises(ValueError, match="own.*other"):
        build("V2", cross_timestep="both")


@pytest.mark.parametrize(
    "version, kind, keys, parameters",
    [
        ("19B", "av", 3510, 18_876_174_592), ("22B", "av", 4186, 18_988_838_144),
        ("19B", "video", 1215, 13_041_520_768), ("22B", "video", 1457, 13_124_316_288), ("22B", "audio", 1457, 3_286_408_320),
    ],
)  # fmt: skip
def test_real_sizes_have_the_released_counts(version, kind, keys, parameters):
    with torch.device("meta"):
        model = LTXModel.from_config({"transformer": REAL[version]}, kind)
    assert len(model.state_dict()) == keys
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert not list(model.buffers())


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_model_of_one_stream_ignores_exactly_the_rest_of_the_file(kind):
    file = ["model.diffusion_model." + key for key in build("V2").state_dict()]
    one = build("V2", kind)
    kept = {key.removeprefix("model.diffusion_model.") for key in file if not key.startswith(one.IGNORED_KEYS)}
    assert kept == set(one.state_dict())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm', expected 'rms_norm'"),
        ({"dropout": 0.1}, "dropout is 0.1, expected 0.0"),
        ({"share_ff": None}, "share_ff"),
        ({"num_vector_embeds": 4}, "num_vector_embeds"),
        ({"ff_bias": False}, "ff_bias is False"),
        ({"rope_type": "spiral"}, "expected 'split' or 'interleaved'"),
        ({"attention_type": "linear"}, "attention_type"),
        ({"num_layers": "many"}, "num_layers is 'many'"),
        ({"cross_attention_dim": 64}, "cross_attention_dim is 64, expected 2 heads x 16 = 32"),
        ({"audio_num_attention_heads": 4, "audio_attention_head_dim": 4}, "video 2 heads and audio 4"),
        ({"caption_proj_before_connector": False, "caption_channels": None}, "caption_channels is missing"),
    ],
)
def test_a_header_that_asks_for_something_else_is_refused(change, message):
    header = tiny_header("V2")
    header["transformer"].update(change)
    with pytest.raises(ConfigError, match=message):
        LTXModel.from_config(header)


def test_every_missing_required_key_is_named():
    header = tiny_header("V2")
    for key in ("standardization_norm", "av_cross_ada_norm"):
        del header["transformer"][key]
    with pytest.raises(ConfigError, match="standardization_norm is missing.*av_cross_ada_norm is missing"):
        LTXModel.from_config(header)
    with pytest.raises(ConfigError, match="no transformer section, only: vae"):
        LTXModel.from_config({"vae": {}})


def test_keys_of_the_text_side_are_no_surprise_but_unknown_ones_are_told():
    header = tiny_header("V2")
    header["transformer"].update(
        {"connector_num_layers": 8, "_class_name": "AVTransformer3DModel", "norm_num_groups": 32}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LTXModel.from_config(header)
    header["transformer"]["time_travel"] = True
    with pytest.warns(UserWarning, match="time_travel"):
        LTXModel.from_config(header)


def test_a_missing_rope_type_means_split():
    header = tiny_header("V2")
    del header["transformer"]["rope_type"]
    assert LTXModel.from_config(header).config.rope_layout == "split"


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(latent=torch.zeros(2, 12, 4)), "video latent has shape .2, 12, 4., expected .* 8"),
        (dict(context=torch.zeros(2, 4, 24)), "video context has shape .2, 4, 24., expected .2, S, 32."),
        (dict(timesteps=torch.zeros(2, 5)), "video timesteps"),
        (dict(sigma=torch.zeros(3)), "video sigma"),
        (dict(positions=torch.zeros(1, 1, 12, 2)), "video positions"),
        (dict(positions=torch.zeros(1, 3, 12, 2, dtype=torch.bfloat16)), "keep them in float32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(change, message):
    video, audio = inputs("V2")
    with pytest.raises(ValueError, match=message):
        build("V2")(replace(video, **change), audio)


def test_streams_that_do_not_exist_and_streams_that_are_missing_are_refused():
    video, audio = inputs("V2")
    with pytest.raises(ValueError, match="no audio stream"):
        build("V2", "video")(video, audio)
    with pytest.raises(ValueError, match="Both streams are None"):
        build("V2")(None, None)
    with pytest.raises(ValueError, match="for 3 samples"):
        build("V2")(video, audio, Perturbations(({},) * 3))


# --- savings that change nothing


def test_levels_by_hint_by_search_and_token_by_token_agree():
    model, (video, audio) = build("V2", cross_timestep="own"), inputs("V2")
    zeros = torch.zeros_like(video.sigma)
    with torch.no_grad():
        found = model(video, audio)
        for levels in torch.stack([video.sigma, zeros], 1), video.timesteps:
            for a, b in zip(found, model(replace(video, levels=levels), audio)):
                torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_one_level_a_sample_is_seen_without_looking_at_values():
    sigma = torch.tensor([0.7, 0.3])
    on_meta = sigma[:, None].to("meta").expand(2, 12)  # values cannot be read there
    assert distinct_levels(on_meta)[0].shape == (2,) and distinct_levels(on_meta)[1] is None
    model, (video, audio) = build("V2"), inputs("V2")
    with torch.no_grad():
        by_token = model(replace(video, timesteps=video.sigma[:, None].repeat(1, 12)), audio)
        by_sample = model(
            replace(video, timesteps=video.sigma[:, None]), replace(audio, timesteps=audio.sigma[:, None])
        )
    for a, b in zip(by_token, by_sample):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_a_wrong_promise_about_levels_is_caught():
    video, audio = inputs("V2")
    with pytest.raises(ValueError, match="not among the given levels"):
        build("V2")(replace(video, levels=video.sigma[:, None]), audio)


def test_heads_run_once_a_level_and_keep_no_graph_when_frozen():
    model, (video, audio) = build("V2"), inputs("V2")
    model.requires_grad_(False)
    model.transformer_blocks.requires_grad_(True)
    seen = {}
    model.adaln_single.register_forward_hook(lambda m, args, out: seen.update(rows=len(out[0]), graph=out[0].grad_fn))
    levels = torch.stack([video.sigma, torch.zeros(2)], 1)
    model(replace(video, levels=levels), audio)
    assert seen == {"rows": 4, "graph": None}


@pytest.mark.parametrize("case", ["V1-split", "V2"])
def test_checkpointing_changes_no_gradient(case):
    model, (video, audio) = build(CASES[case][0]), inputs(CASES[case][0])
    found = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        sum(v.square().mean() for v in model(video, audio)).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name


def test_every_parameter_gets_the_gradient_of_a_small_step():
    model, (video, audio) = build("V2", cross_timestep="own").double(), inputs("V2")
    as_double = lambda m: replace(m, latent=m.latent.double(), context=m.context.double())
    loss = lambda: sum(v.square().mean() for v in model(as_double(video), as_double(audio)))
    loss().backward()
    generator, step = torch.Generator().manual_seed(0), 1e-6
    directions = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
    for part in "attn", "adaln", "table", "ff", "proj", "norm":
        chosen = [(p, directions[n]) for n, p in model.named_parameters() if part in n]
        predicted = sum((p.grad * d).sum() for p, d in chosen).item()
        with torch.no_grad():
            ends = []
            for sign in 1, -2:
                for p, d in chosen:
                    p.add_(d, alpha=sign * step)
                ends.append(loss().item())
            for p, d in chosen:
                p.add_(d, alpha=step)
        assert abs((ends[0] - ends[1]) / (2 * step) - predicted) < 1e-6 * max(1, abs(predicted)), part


def test_inputs_are_never_written_to():
    video, audio = inputs("V2")
    before = copy.deepcopy((video, audio))
    model = build("V2")
    sum(v.sum() for v in model(video, audio, Perturbations(({}, {"video_self": None, "a2v": [0]})))).backward()
    for given, kept in zip((video, audio), before):
        assert all(
            torch.equal(getattr(given, n), getattr(kept, n))
            for n in ("latent", "sigma", "timesteps", "positions", "context")
        )


def test_bf16_is_close_and_keeps_noise_levels_in_float32():
    model = build("V2").bfloat16()
    video, audio = (replace(m, latent=m.latent.bfloat16(), context=m.context.bfloat16()) for m in inputs("V2"))
    with torch.no_grad():
        found = model(video, audio)
    exact = run(build("V2"), "V2")
    for a, b in zip(found, exact):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).norm() < 2e-2 * b.norm()


def test_autocast_runs_forward_and_backward():
    model, (video, audio) = build("V2"), inputs("V2")
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(v.float().square().mean() for v in model(video, audio))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_forward_pass_works_on_shapes_alone():
    with torch.device("meta"):
        model = LTXModel.from_config(tiny_header("V2"))
    on_meta = lambda m: replace(
        m,
        **{n: getattr(m, n).to("meta") for n in ("latent", "sigma", "positions", "context")},
        timesteps=m.sigma[:, None].to("meta"),
    )
    video, audio = model(*map(on_meta, inputs("V2")))
    assert video.shape == (2, 12, 8) and audio.shape == (2, 5, 8)


@pytest.mark.parametrize(
    "name, attention", [("a2v", "audio_to_video_attn"), ("v2a", "video_to_audio_attn"), ("video_self", "attn1")]
)
def test_what_everybody_skips_is_not_computed(name, attention):
    model, (video, audio) = build("V2"), inputs("V2")
    calls = []
    for block in model.transformer_blocks:
        getattr(block, attention).to_q.register_forward_hook(lambda *_: calls.append(1))
    model(video, audio, Perturbations(({name: None},) * 2))
    assert not calls
    model(video, audio, Perturbations(({name: None}, {})))
    assert len(calls) == 2


def test_a_mask_of_ones_is_no_mask():
    ones, some = torch.ones(2, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 0]])
    assert needed_mask(None) is None and needed_mask(ones) is None and needed_mask(some) is some
    model, (video, audio) = build("V2"), inputs("V2")
    with torch.no_grad():
        for a, b in zip(
            model(video, audio), model(replace(video, context_mask=ones), replace(audio, context_mask=ones.bool()))
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# --- rotary tables


def test_tables_are_remembered_exactly_and_not_for_ever():
    rope, positions = Rope(32, 2, (20, 2048, 2048), remember=3), video_positions((3, 2, 2), 24)
    first = rope(positions, torch.float32)
    assert rope(positions.clone(), torch.float32) is first
    assert rope(positions.expand(4, -1, -1, -1), torch.float32) is first
    assert rope(positions, torch.bfloat16).cos.dtype == torch.bfloat16 and rope(positions, torch.float32) is first
    positions.add_(1)
    assert not torch.equal(rope(positions, torch.float32).cos, first.cos)
    for fps in range(20, 30):
        rope(video_positions((3, 2, 2), fps), torch.float32)
    assert len(rope.kept) == 3
    assert rope(video_positions((3, 2, 2), 24), torch.float32) is not first
    assert not pickle.loads(pickle.dumps(rope)).kept and not copy.deepcopy(rope).kept


def test_tables_made_while_sampling_serve_training():
    model, (video, audio) = build("V2"), inputs("V2")
    with torch.inference_mode():
        model(video, audio)
    sum(v.sum() for v in model(video, audio)).backward()
    assert model.transformer_blocks[0].attn1.to_q.weight.grad is not None


def test_the_model_remembers_its_tables_and_they_are_not_in_its_state():
    model, (video, audio) = build("V2"), inputs("V2")
    keys = list(model.state_dict())
    with torch.no_grad():
        a, b = model(video, audio), model(video, audio)
        moved = replace(video, positions=video.positions + 1)
        c = model(moved, audio)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[0], c[0])
    assert list(model.state_dict()) == keys and len(model.ropes["video"].kept) == 2


def test_rope_numbers_of_the_official_implementation():
    table = rope_table(rope_angles(video_positions((3, 2, 2), 24), 32, (20, 2048, 2048)), 2)
    sine = [0.8819225, 0.8819225, 0.9658922, -0.9807786, -0.9807786, 0.5001438, 0.9239354, 0.9239354]
    torch.testing.assert_close(table.sin[0, 7, 1], torch.tensor(sine), rtol=0, atol=2e-6)
    wide = rope_angles(video_positions((3, 2, 2), 24), 4096, (20, 2048, 2048))
    assert wide.shape == (1, 12, 2048) and (wide[..., :2] == 0).all()
    assert abs(wide.cos().sum().item() + 963.22006) < 2e-2 and abs(wide.sin().sum().item() + 172.19999) < 2e-2
    assert rope_frequencies(682, double=False)[-1].item() == 15707.9638671875


@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_rotation_and_norm_have_the_right_gradients(layout):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    angles = draw(1, 3, 2, 4)
    x, weight = draw(2, 3, 2, 8).requires_grad_(), draw(8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotate(x, RopeTable(angles.cos(), angles.sin()), layout), x)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w), (x, weight))
    assert torch.autograd.gradcheck(lambda x: rms_norm(x), x)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_rms_norm_is_torchs(dtype, tolerance):
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.linspace(0.5, 1.5, 64).to(dtype)
    for w in None, weight:
        torch.testing.assert_close(rms_norm(x, w), F.rms_norm(x, (64,), w, 1e-6), rtol=tolerance, atol=tolerance)


def test_positions_of_sound_and_picture_share_a_clock():
    video, audio = video_positions((7, 1, 1), 24)[0, 0], audio_positions(51)[0, 0]
    assert abs(video[-1, 1] - audio[-1, 1]) < 1 / 24
