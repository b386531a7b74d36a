"The transformer against ltx-core 1.0.0 with the same weights, live."

import random
from dataclasses import replace

import oracle  # noqa: F401  (before ltx_core)
import pytest
import torch
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords
from ltx_core.guidance import perturbations as core_perturbations
from ltx_core.model.transformer.modality import Modality as CoreModality
from ltx_core.model.transformer.model import LTXModel as CoreModel
from ltx_core.model.transformer.model import LTXModelType
from ltx_core.model.transformer.model_configurator import LTXModelConfigurator, LTXVideoOnlyModelConfigurator
from ltx_core.model.transformer.rope import LTXRopeType
from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape
from peft import LoraConfig, get_peft_model
from transformer_cases import BASE, CASES, VARIANTS, fill, inputs, tiny_header

from ltx_nb.model.latents import audio_positions, video_positions
from ltx_nb.model.transformer import LTXModel, Modality, Perturbations

KINDS = {"video_self": "skip_video_self_attn", "audio_self": "skip_audio_self_attn"}
KINDS |= {"a2v": "skip_a2v_cross_attn", "v2a": "skip_v2a_cross_attn"}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "audio_ff.net.0.proj", "audio_ff.net.2"]


def core_model(header, kind="av"):
    if kind == "audio":  # 1.0.0 has no configurator for it
        section = header["transformer"]
        return CoreModel(
            model_type=LTXModelType.AudioOnly, num_layers=section["num_layers"], apply_gated_attention=True,
            audio_num_attention_heads=section["audio_num_attention_heads"], cross_attention_adaln=True,
            audio_attention_head_dim=section["audio_attention_head_dim"], rope_type=LTXRopeType.SPLIT,
            audio_in_channels=section["audio_in_channels"], audio_out_channels=section["audio_out_channels"],
            audio_cross_attention_dim=section["audio_cross_attention_dim"], double_precision_rope=True,
        )  # fmt: skip
    return (LTXModelConfigurator if kind == "av" else LTXVideoOnlyModelConfigurator).from_config(header)


def pair(header, kind="av"):
    "Our model and the oracle, with the same weights."
    ours = LTXModel.from_config(header, kind, cross_timestep="other")
    weights = fill(ours.state_dict())
    ours.load_state_dict(weights)
    core = core_model(header, kind)
    if any(p.is_meta for p in core.parameters()):
        core.to_empty(device="cpu")
    core.load_state_dict(weights, strict=True)
    return ours.eval(), core.eval()


def to_core(modality):
    fields = ("latent", "sigma", "timesteps", "positions", "context", "enabled", "context_mask", "attention_mask")
    return modality and CoreModality(**{name: getattr(modality, name) for name in fields})


def to_core_perturbations(skips, batch=2):
    kind, one, some = (
        getattr(core_perturbations, n) for n in ("PerturbationType", "Perturbation", "PerturbationConfig")
    )
    samples = [[one(kind(KINDS[n]), blocks) for n, blocks in sample.items()] for sample in skips or ({},) * batch]
    return core_perturbations.BatchedPerturbationConfig([some(sample) for sample in samples])


def assert_equal_outputs(ours, core, video, audio, skips=None):
    with torch.no_grad():
        found = ours(video, audio, Perturbations(skips) if skips else None)
        batch = len((video or audio).latent)
        expected = core(to_core(video), to_core(audio), to_core_perturbations(skips, batch))
    for mine, theirs in zip(found, expected):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_every_case(case):
    variant, kind, change = CASES[case]
    assert_equal_outputs(*pair(tiny_header(variant), kind), *change(*inputs(variant, kind)))


def random_header(dice):
    heads, dim, audio_dim = dice.choice([1, 2, 3, 4]), dice.choice([8, 12, 16, 24]), dice.choice([4, 8, 12])
    inside = dice.random() < 0.5
    return {
        "transformer": BASE | {
            "num_layers": dice.choice([1, 2, 3]), "num_attention_heads": heads, "attention_head_dim": dim,
            "audio_num_attention_heads": heads, "audio_attention_head_dim": audio_dim,
            "in_channels": dice.choice([4, 8]), "out_channels": dice.choice([4, 6]),
            "audio_in_channels": 6, "audio_out_channels": 6,
            "cross_attention_dim": heads * dim, "audio_cross_attention_dim": heads * audio_dim, "caption_channels": 20,
            "caption_proj_before_connector": not inside, "apply_gated_attention": dice.random() < 0.5,
            "cross_attention_adaln": dice.random() < 0.5, "rope_type": dice.choice(["split", "interleaved"]),
            "frequencies_precision": dice.choice(["float64", "float32"]), "norm_eps": dice.choice([1e-6, 1e-5]),
            "av_ca_timestep_scale_multiplier": dice.choice([1, 1000.0]),
            "timestep_scale_multiplier": dice.choice([1000, 500]), "positional_embedding_theta": dice.choice([1e4, 1e3]),
            "positional_embedding_max_pos": [dice.choice([10, 20]), 1024, 2048],
        }
    }  # fmt: skip


def random_inputs(header, dice, seed):
    section, generator = header["transformer"], torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    batch, grid, moments, words = (
        dice.choice([1, 2, 3]),
        (dice.choice([1, 3]), 2, dice.choice([1, 3])),
        dice.choice([1, 7]),
        5,
    )
    tokens = grid[0] * grid[1] * grid[2]
    inside = not section["caption_proj_before_connector"]
    widths = (20, 20) if inside else (section["cross_attention_dim"], section["audio_cross_attention_dim"])
    sigma, audio_sigma = torch.rand(batch, generator=generator), torch.rand(batch, generator=generator)
    strengths = torch.randint(0, 4, (batch, tokens), generator=generator) / 3  # tokens between given and free
    return (
        Modality(draw(batch, tokens, section["in_channels"]), sigma, sigma[:, None] * strengths,
                 video_positions(grid, 25).repeat(batch, 1, 1, 1), draw(batch, words, widths[0])),
        Modality(draw(batch, moments, 6), audio_sigma, audio_sigma[:, None].repeat(1, moments),
                 audio_positions(moments).repeat(batch, 1, 1, 1), draw(batch, words, widths[1])),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_random_models_and_inputs(seed):
    dice = random.Random(seed)
    header = random_header(dice)
    assert_equal_outputs(*pair(header), *random_inputs(header, dice, seed))


@pytest.mark.parametrize("variant", ["V1-split", "V2"])
def test_a_lora_on_every_target_gets_the_same_gradients(variant):
    video, audio = inputs(variant)
    gradients = []
    models = [
        get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
        for model in pair(tiny_header(variant))
    ]
    adapters = {name: p for name, p in models[0].named_parameters() if p.requires_grad}
    weights = {name: w / 5 for name, w in fill(adapters, seed=2).items()}  # B too: zeros would hide every A
    for model, call in zip(
        models, (lambda m: m(video, audio), lambda m: m(to_core(video), to_core(audio), to_core_perturbations(None)))
    ):
        model.load_state_dict(weights, strict=False)
        sum(v.square().mean() for v in call(model)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    ours, core = gradients
    modules = {name.split(".lora_")[0] for name in ours}
    assert len(modules) == 2 * (6 * 4 + 2 * 2) and ours.keys() == core.keys()
    for name, theirs in core.items():
        assert theirs.norm() > 0
        assert (ours[name] - theirs).norm() <= 1e-5 * theirs.norm(), name


@pytest.mark.parametrize("version, kind", [("19B", "av"), ("22B", "av"), ("19B", "video"), ("22B", "video")])
def test_real_sizes_have_the_oracles_names_and_shapes(version, kind):
    switches = VARIANTS["V2" if version == "22B" else "V1-split"]
    sizes = {"num_attention_heads": 32, "attention_head_dim": 128, "caption_channels": 3840}
    sizes |= {"audio_num_attention_heads": 32, "audio_attention_head_dim": 64}
    header = {"transformer": {**BASE, **switches, **sizes}}
    with torch.device("meta"):
        ours, core = LTXModel.from_config(header, kind), core_model(header, kind)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in core.state_dict().items()}


@pytest.mark.parametrize("fps", [24, 25, 23.976])
@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 2, 2), (16, 16, 24)])
def test_video_positions_are_the_oracles(grid, fps):
    shape = VideoLatentShape(1, 128, *grid)
    bounds = VideoLatentPatchifier(patch_size=1).get_patch_grid_bounds(shape)
    expected = get_pixel_coords(bounds, SpatioTemporalScaleFactors.default(), causal_fix=True).float()
    expected[:, 0] = expected[:, 0] / fps
    assert torch.equal(video_positions(grid, fps), expected)


@pytest.mark.parametrize("moments", [1, 2, 126])
def test_audio_positions_are_the_oracles(moments):
    expected = AudioPatchifier(patch_size=1).get_patch_grid_bounds(AudioLatentShape(1, 8, moments, 16))
    assert torch.equal(audio_positions(moments), expected)


def test_one_sample_may_have_a_scalar_sigma():
    ours, core = pair(tiny_header("V2"))
    first = lambda m: replace(
        m,
        latent=m.latent[:1],
        sigma=m.sigma[0],
        timesteps=m.timesteps[:1],
        positions=m.positions[:1],
        context=m.context[:1],
    )
    video, audio = map(first, inputs("V2"))
    assert_equal_outputs(ours, core, video, audio)
