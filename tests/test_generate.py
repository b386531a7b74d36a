from dataclasses import fields, replace

import pytest
import torch
from recorded import assert_checksum, recipe, seeded

from ltx_nb.flow.conditions import Condition, audio_tokens, video_tokens
from ltx_nb.flow import sampling
from ltx_nb.flow.sampling import (
    FEW_TOKENS,
    TOKEN_BYTES,
    GuidedModel,
    Guidance,
    Prompt,
    blank_record,
    combine,
    default_guidance,
    denoise,
    fits_at_once,
    generate_latents,
    guidance_passes,
)
from ltx_nb.model.transformer import LTXModel, Modality
from ltx_nb.flow.samplers import euler_step, sigma_schedule
from ltx_nb.flow.strategies import TEXT_TO_VIDEO, FlexibleStrategy, Plan, StreamPlan, read_streams
from ltx_nb.tiny.checkpoint import tiny_header

GRID = F, H, W = 3, 2, 2
STEPS = 7
FRAME, TOKENS = H * W, F * H * W
WIDTHS = {"2": (64, 64), "2.3": (128, 64)}  # of the contexts
# Latents of spread 1 by a model in float32 whose roundings guidance multiplies by up to 19, twice: batches of another size are
# summed in another order, which changed them by 8e-6. Two negative prompts that trade places change them by 0.4 and more.
BATCHED = 1e-4
VIDEO, AUDIO = StreamPlan("latents"), StreamPlan("audio_latents")


def recipe_streams(audio_generated: bool = True):
    "The states of the recorded loops: 3x2x2 of film at 24 frames a second, five steps of sound."
    streams = {"video": video_tokens(torch.zeros(1, 4, 3, 2, 2), 24.0), "audio": audio_tokens(torch.zeros(1, 8, 5, 16))}
    x = {"video": recipe((1, 12, 4), 0.3), "audio": recipe((1, 5, 128), 0.8)}
    if not audio_generated:
        given = torch.ones(1, 5, dtype=torch.bool)
        streams["audio"] = replace(streams["audio"], clean=x["audio"], given=given, generated=False)
    return streams, x


def make_record(samples: int = 1, seed: int = 0, fps=24.0) -> dict:
    draw = lambda *shape, generator=seeded(seed): torch.randn(samples, *shape, generator=generator)
    return {
        "latents": {"latents": draw(128, *GRID), "fps": fps},
        "audio_latents": {"latents": draw(8, STEPS, 16)},
        "conditions": {"video_context": draw(6, 64), "audio_context": draw(6, 64)},
        "edges": {"latents": draw(128, *GRID), "fps": fps},
        "small": {"latents": draw(128, 2, 1, 1), "fps": fps},
        "voice": {"latents": draw(8, 4, 16)},
        "masks": {"mask": (draw(*GRID) > 0).float()},
    }


def make_prompt(samples: int = 1, version: str = "2", dtype=torch.float32) -> Prompt:
    video, audio = WIDTHS[version]
    draw = lambda width, seed: torch.randn(samples, 6, width, generator=seeded(seed)).to(dtype)
    return Prompt(draw(video, 1), draw(audio, 2), draw(video, 3), draw(audio, 4))


class Toy(torch.nn.Module):
    "Notes its inputs and answers with a formula."

    def __init__(self, velocity=lambda seen, perturbations: torch.zeros_like(seen.latent), blocks: int = 48):
        super().__init__()
        self.velocity, self.transformer_blocks, self.calls, self.modes = velocity, [None] * blocks, [], []

    def forward(self, video, audio, perturbations=None):
        self.calls.append({"video": video, "audio": audio, "perturbations": perturbations})
        self.modes.append(self.training)
        return tuple(None if seen is None else self.velocity(seen, perturbations) for seen in (video, audio))


@pytest.fixture(scope="module")
def models() -> dict[str, LTXModel]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = {version: LTXModel.from_config(tiny_header(version)) for version in WIDTHS}
    return {version: model.requires_grad_(False) for version, model in built.items()}


# ---- guidance


def test_guided_prediction_equals_the_recorded_one():
    a, b, c, d = (recipe((1, 12, 4), start) for start in (0.1, 0.5, 0.9, 1.7))
    others = [(2.0, b), (1.0, c), (2.0, d)]
    assert_checksum(combine(a, others, 0.7), (5.292834, 2.049083, 10.578611), roundings=4)
    assert_checksum(combine(a, others), (11.978399, 4.637352, 23.940824), roundings=4)


def test_guided_walk_of_four_calls_equals_the_recorded_step():
    "Two streams, all four opinions, LTX-2's parameters, the third step of eight."

    def velocity(seen: Modality, perturbations):
        skip = perturbations.samples[0] if perturbations else {}
        strength = 0.5 if 29 in (skip.get("video_self") or ()) else 0.7 if "a2v" in skip else 1.0
        return 0.3 * strength * seen.latent + 0.1 * seen.context.mean()

    contexts = [
        recipe((1, 8, 4), 0.2) + 1,
        recipe((1, 8, 4), 0.25) + 1,
        recipe((1, 8, 4), 0.6),
        recipe((1, 8, 4), 0.65),
    ]
    guidance = Guidance(stg_blocks=(29,))
    (streams, x), sigma = recipe_streams(), sigma_schedule(8)[2].item()
    found = GuidedModel(Toy(velocity), streams, Prompt(*contexts), guidance).predict(x, sigma)
    assert_checksum(found["video"], (-18.683660, -10.022560, 4.094576))
    assert_checksum(found["audio"], (-616.487588, -308.388843, 26.866391))

    (streams, x) = recipe_streams(audio_generated=False)
    frozen = GuidedModel(Toy(velocity), streams, Prompt(*contexts), guidance).predict(x, sigma)
    assert list(frozen) == ["video"] and torch.equal(frozen["video"], found["video"])


def test_walk_of_two_streams_equals_the_recorded_one():
    def velocity(seen: Modality, perturbations):
        start = seen.positions[:, 0, :, 0, None]
        return 0.3 * seen.latent + 0.1 * start.sin() - 0.2 * seen.timesteps[..., None]

    (streams, x), sigmas = recipe_streams(), sigma_schedule(8).tolist()
    for sigma, next_sigma in zip(sigmas, sigmas[1:]):
        clean = GuidedModel(Toy(velocity), streams, Prompt(*torch.zeros(2, 1, 1, 4))).predict(x, sigma)
        x = {name: euler_step(x[name], clean[name], sigma, next_sigma) for name in x}
    assert_checksum(x["video"], (5.828696, 1.946178, 3.671256))
    assert_checksum(x["audio"], (63.063755, 31.507172, 13.358636))


@pytest.mark.parametrize(
    "scales, plan, names",
    [
        ({}, Plan(VIDEO, AUDIO), ["negative", "perturbed", "isolated"]),
        ({}, Plan(VIDEO), ["negative", "perturbed"]),
        ({}, Plan(None, AUDIO), ["negative", "perturbed"]),
        ({"stg_blocks": []}, Plan(VIDEO, AUDIO), ["negative", "isolated"]),
        ({"stg_blocks": None}, Plan(VIDEO, AUDIO), ["negative", "perturbed", "isolated"]),
        ({"video_cfg_scale": 1.0}, Plan(VIDEO, AUDIO), ["negative", "perturbed", "isolated"]),
        ({"video_cfg_scale": 1.0}, Plan(VIDEO, replace(AUDIO, is_generated=False)), ["perturbed", "isolated"]),
        ({"video_cfg_scale": 1.0, "audio_cfg_scale": 1.0}, Plan(VIDEO, AUDIO), ["perturbed", "isolated"]),
        ({"video_stg_scale": 0.0, "audio_stg_scale": 0.0}, Plan(VIDEO, AUDIO), ["negative", "isolated"]),
        ({"audio_stg_scale": 0.0}, Plan(replace(VIDEO, is_generated=False), AUDIO), ["negative", "isolated"]),
    ],
)
def test_only_calls_that_have_weight_are_made(scales, plan, names):
    guidance, record = Guidance(**scales), make_record()
    assert [call.name for call in guidance_passes(guidance, read_streams(plan, record))] == names
    model = Toy()
    generate_latents(model, record, make_prompt(), plan, sigmas=(1.0, 0.5, 0.0), guidance=guidance, together=False)
    assert len(model.calls) == 2 * (1 + len(names))
    together = Toy()
    generate_latents(together, record, make_prompt(), plan, sigmas=(1.0, 0.5, 0.0), guidance=guidance, together=True)
    assert len(together.calls) == 2


def test_under_autocast_the_model_is_given_the_same():
    "A context in bfloat16 is not joined under autocast to float16, which a CPU refuses."
    models = Toy(), Toy()
    for model, enabled in zip(models, (False, True)):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            generate_latents(model, make_record(), make_prompt(dtype=torch.bfloat16), sigmas=(1.0, 0.0), together=True)
    for name in ("video", "audio"):
        usual, found = (model.calls[0][name] for model in models)
        assert torch.equal(usual.context, found.context) and found.context.dtype is torch.bfloat16
        assert torch.equal(usual.latent, found.latent) and found.latent.dtype is usual.latent.dtype


def test_each_call_takes_away_its_own():
    model, prompt = Toy(), make_prompt()
    guidance = Guidance(audio_stg_scale=0.0)
    generate_latents(model, make_record(), prompt, sigmas=(1.0, 0.0), guidance=guidance, together=False)
    plain, negative, perturbed, isolated = model.calls
    for call, video, audio in (
        (plain, prompt.video_context, prompt.audio_context),
        (negative, prompt.negative_video_context, prompt.negative_audio_context),
        (perturbed, prompt.video_context, prompt.audio_context),
        (isolated, prompt.video_context, prompt.audio_context),
    ):
        assert torch.equal(call["video"].context, video) and torch.equal(call["audio"].context, audio)
    assert plain["perturbations"] is None and negative["perturbations"] is None
    assert perturbed["perturbations"].samples == ({"video_self": (28,)},)
    assert isolated["perturbations"].samples == ({"a2v": None, "v2a": None},)


def test_rescale_treats_each_sample_by_itself():
    plain, other = torch.randn(2, 3, 5, 4, generator=seeded())
    plain[1] *= 9
    together = combine(plain, [(4.0, other)], 0.7)
    alone = [combine(plain[i : i + 1], [(4.0, other[i : i + 1])], 0.7) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))  # 1.3e-6; one spread for all: 3e-3


@pytest.mark.parametrize("blocks, skipped", [(48, 28), (4, 2), (1, 0)])
def test_default_guidance_skips_a_block_that_exists(blocks, skipped):
    assert default_guidance(Toy(blocks=blocks)).stg_blocks == (skipped,)
    assert default_guidance(Toy(blocks=blocks), stg_blocks=[3], video_cfg_scale=2.0) == Guidance(2.0, stg_blocks=(3,))


@pytest.mark.parametrize(
    "lack, said",
    [
        ({"negative_video_context": None}, "video_cfg_scale is not 1.*negative prompt"),
        ({"negative_audio_context": None}, "audio_cfg_scale is not 1.*negative prompt"),
        ({"video_context": None}, "video stream needs an encoded prompt"),
    ],
)
def test_a_prompt_that_is_needed_and_missing_is_named(lack, said):
    with pytest.raises(ValueError, match=said):
        generate_latents(Toy(), make_record(), replace(make_prompt(), **lack), sigmas=(1.0, 0.0), guidance=Guidance())


def test_a_frozen_stream_needs_no_negative_prompt():
    plan, prompt = Plan(VIDEO, replace(AUDIO, is_generated=False)), replace(make_prompt(), negative_audio_context=None)
    model = Toy()
    generate_latents(model, make_record(), prompt, plan, sigmas=(1.0, 0.0), guidance=Guidance(), together=False)
    assert torch.equal(model.calls[1]["audio"].context, prompt.audio_context)


def test_predictions_are_made_from_float32_tokens():
    streams, x = recipe_streams()
    prompt = make_prompt(dtype=torch.bfloat16)
    model = Toy()
    found = GuidedModel(model, streams, prompt).predict(x, 0.9)
    assert model.calls[0]["video"].latent.dtype == torch.bfloat16
    assert torch.equal(found["video"], x["video"]) and torch.equal(found["audio"], x["audio"])


# ---- the walk


@pytest.mark.parametrize(("size", "calls"), [((32, 32, 9), 2), ((512, 320, 57), 8)])
def test_calls_of_small_clips_are_made_together_unless_told_otherwise(size, calls):
    "W44: four calls a step one after the other, even where one larger batch has room."
    model, record = Toy(), blank_record(*size, 24.0)
    generate_latents(model, record, make_prompt(), sigmas=(1.0, 0.5, 0.0), guidance=Guidance())
    assert len(model.calls) == calls


@pytest.mark.parametrize("free", [2**30, 16 * 2**30])
def test_a_gpu_is_asked_for_room_twice_over(monkeypatch, free):
    asked, most = [], free // (2 * TOKEN_BYTES)
    monkeypatch.setattr(sampling, "free_bytes", lambda device: asked.append(device) or free)
    assert fits_at_once(most, "cuda") and not fits_at_once(most + 1, "cuda")
    assert fits_at_once(FEW_TOKENS, "cpu") and not fits_at_once(FEW_TOKENS + 1, "cpu")
    assert asked == ["cuda", "cuda"]  # nobody asks about a processor


def test_a_gpu_that_does_not_say_what_is_free_is_treated_as_a_processor(monkeypatch):
    monkeypatch.setattr(sampling, "free_bytes", lambda device: None)
    assert fits_at_once(FEW_TOKENS, "cuda") and not fits_at_once(FEW_TOKENS + 1, "cuda")


@pytest.mark.parametrize("version", WIDTHS)
def test_calls_together_equal_calls_one_by_one(models, version):
    "In a batch of two with different frame rates, a first frame and a reference."
    rules = Condition("first_frame"), Condition("reference", latents_dir="edges")
    plan, record = Plan(replace(VIDEO, conditions=rules), AUDIO), make_record(2, fps=torch.tensor([24.0, 12.0]))
    options = {"steps": 2, "guidance": default_guidance(models[version])}
    apart, together = (
        generate_latents(models[version], record, make_prompt(2, version), plan, together=t, **options)
        for t in (False, True)
    )
    for name in apart:
        torch.testing.assert_close(apart[name], together[name], atol=BATCHED, rtol=0)


def test_a_batch_equals_its_samples(models):
    record, prompt = make_record(2), make_prompt(2)
    streams = read_streams(TEXT_TO_VIDEO, record)
    noise = {name: torch.randn(tokens.clean.shape, generator=seeded(7)) for name, tokens in streams.items()}
    guidance = default_guidance(models["2"])
    both = GuidedModel(models["2"], streams, prompt, guidance).predict(noise, 0.8)
    for i in range(2):
        one = {n: replace(t, clean=t.clean[i : i + 1], given=t.given[i : i + 1]) for n, t in streams.items()}
        words = Prompt(*(getattr(prompt, f.name)[i : i + 1] for f in fields(Prompt)))
        alone = GuidedModel(models["2"], one, words, guidance).predict({n: x[i : i + 1] for n, x in noise.items()}, 0.8)
        for name in both:
            torch.testing.assert_close(both[name][i : i + 1], alone[name], atol=BATCHED, rtol=0)


GIVEN = {
    "first_frame": Condition("first_frame"),
    "prefix": Condition("prefix", temporal_boundary=2),
    "suffix": Condition("suffix", temporal_boundary=1),
    "spatial_crop": Condition("spatial_crop", spatial_region=(0, 0, 32, 64)),
    "mask": Condition("mask", mask_dir="masks"),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_what_is_given_comes_out_bit_for_bit(models, kind):
    plan, record = Plan(replace(VIDEO, conditions=(GIVEN[kind],)), AUDIO), make_record()
    given = read_streams(plan, record, certain=True)["video"].given.view(1, 1, *GRID).expand(1, 128, *GRID)
    found = generate_latents(models["2"], record, make_prompt(), plan, steps=2)["video"]
    assert torch.equal(found[given], record["latents"]["latents"][given])
    assert not (found[~given] == record["latents"]["latents"][~given]).any()


@pytest.mark.parametrize("frozen, folder", [("video", "latents"), ("audio", "audio_latents")])
def test_a_frozen_stream_comes_out_as_it_went_in(models, frozen, folder):
    plan, record = (
        replace(TEXT_TO_VIDEO, **{frozen: replace(getattr(TEXT_TO_VIDEO, frozen), is_generated=False)}),
        make_record(),
    )
    found = generate_latents(models["2"], record, make_prompt(), plan, steps=2)
    other = generate_latents(models["2"], make_record(seed=1), make_prompt(), plan, steps=2)
    generated = "audio" if frozen == "video" else "video"
    assert torch.equal(found[frozen], record[folder]["latents"])
    assert not torch.equal(found[generated], other[generated])  # it is listened to


def test_nothing_leaks_from_what_is_to_be_generated(models):
    first, second = (generate_latents(models["2"], make_record(seed=s), make_prompt(), steps=2) for s in (0, 1))
    assert torch.equal(first["video"], second["video"]) and torch.equal(first["audio"], second["audio"])


def test_a_reference_is_looked_at_and_left_out_of_the_result(models):
    plan = Plan(replace(VIDEO, conditions=(Condition("reference", latents_dir="edges"),)), AUDIO)
    first = generate_latents(models["2"], make_record(), make_prompt(), plan, steps=2)
    other = generate_latents(
        models["2"], make_record() | {"edges": make_record(seed=1)["edges"]}, make_prompt(), plan, steps=2
    )
    assert first["video"].shape == (1, 128, *GRID) and not torch.equal(first["video"], other["video"])


def test_every_seed_counts_and_zero_is_one_of_them(models):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    clips = [
        generate_latents(models["2"], make_record(), make_prompt(), steps=2, seed=seed)["video"]
        for seed in (0, 0, 42, 1)
    ]
    default = generate_latents(models["2"], make_record(), make_prompt(), steps=2)["video"]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(clips[0], clips[1]) and torch.equal(clips[2], default)
    assert len({clip.sum().item() for clip in clips}) == 3


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_asked_in_evaluation_mode_and_left_as_it_was(training):
    model = Toy().train(training)
    streams = read_streams(TEXT_TO_VIDEO, make_record())
    denoise(GuidedModel(model, streams, make_prompt()), [1.0, 0.5, 0.0])
    assert model.modes == [False, False] and model.training == training

    def broken(seen, perturbations):
        raise RuntimeError("out of memory")

    model = Toy(broken).train(training)
    with pytest.raises(RuntimeError, match="out of memory"):
        denoise(GuidedModel(model, streams, make_prompt()), [1.0, 0.0])
    assert model.training == training


def test_progress_is_told_after_every_step():
    told = []
    generate_latents(
        Toy(), make_record(), make_prompt(), steps=3, guidance=Guidance.off(), on_step=lambda *x: told.append(x)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("tokens, used", [(None, 4096), (TOKENS, TOKENS)])
def test_the_schedule_takes_the_token_count_it_is_told(tokens, used):
    model = Toy()
    generate_latents(model, make_record(), make_prompt(), steps=4, guidance=Guidance.off(), tokens=tokens)
    assert [call["video"].sigma.item() for call in model.calls] == sigma_schedule(4, used)[:-1].tolist()


def test_one_step_is_a_walk():
    "A distilled model that needs no second look: asked once, of pure noise, and believed."
    ends = {"video": recipe((1, TOKENS, 128), 0.2), "audio": recipe((1, STEPS, 128), 0.4)}
    model = Toy(lambda seen, _: seen.latent - ends["video" if seen.latent.shape[1] == TOKENS else "audio"])
    found = generate_latents(model, make_record(), make_prompt(), steps=1, guidance=Guidance.off())
    (call,) = model.calls
    assert call["video"].sigma.tolist() == call["audio"].sigma.tolist() == [1.0]
    video, audio = video_tokens(found["video"], 24.0).clean, audio_tokens(found["audio"]).clean
    # numbers up to 4, subtracted and added again: 2.4e-7 each; the noise itself would be off by 4
    torch.testing.assert_close(video, ends["video"], atol=1e-6, rtol=0)
    torch.testing.assert_close(audio, ends["audio"], atol=1e-6, rtol=0)


def test_a_schedule_of_ones_own_is_walked():
    model, sigmas = Toy(), (0.9, 0.4, 0.0)
    generate_latents(model, make_record(), make_prompt(), guidance=Guidance.off(), sigmas=sigmas)
    assert [call["audio"].sigma.item() for call in model.calls] == pytest.approx([0.9, 0.4])  # float32, a millionth


def test_one_stream_alone(models):
    found = generate_latents(models["2"], make_record(), make_prompt(), Plan(None, AUDIO), steps=2)
    assert list(found) == ["audio"] and found["audio"].shape == (1, 8, STEPS, 16)


@pytest.mark.parametrize(
    "width, height, frames, fps, grid, steps", [(768, 512, 121, 24, (16, 16, 24), 126), (64, 32, 9, 24, (2, 1, 2), 9)]
)
def test_a_blank_record_has_the_shapes_of_its_size(width, height, frames, fps, grid, steps):
    record = blank_record(width, height, frames, fps, samples=2)
    assert record["latents"]["latents"].shape == (2, 128, *grid) and record["latents"]["fps"].tolist() == [fps] * 2
    assert record["audio_latents"]["latents"].shape == (2, 8, steps, 16)


# ---- one path for training and generation


class Fixed:
    "A sampler that always draws the same level."

    def __init__(self, sigma: float):
        self.sigma = sigma

    def sample(self, batch_size, seq_length, generator=None):
        return torch.full((batch_size,), self.sigma)


SMALL = Condition("reference", latents_dir="small")
PLANS = {
    "text to film with sound": TEXT_TO_VIDEO,
    "film alone": Plan(VIDEO),
    "sound alone": Plan(None, AUDIO),
    "sound for a film": Plan(replace(VIDEO, is_generated=False), AUDIO),
    "film for a sound": Plan(VIDEO, replace(AUDIO, is_generated=False)),
    **{kind: Plan(replace(VIDEO, conditions=(rule,)), AUDIO) for kind, rule in GIVEN.items()},
    "sound prefix": Plan(VIDEO, replace(AUDIO, conditions=(Condition("prefix", temporal_boundary=2),))),
    "reference": Plan(replace(VIDEO, conditions=(Condition("reference", latents_dir="edges"),)), AUDIO),
    "smaller, sparser reference": Plan(replace(VIDEO, conditions=(SMALL,)), AUDIO),
    "voice": Plan(VIDEO, replace(AUDIO, conditions=(Condition("reference", latents_dir="voice"),))),
    "several": Plan(replace(VIDEO, conditions=(GIVEN["first_frame"], GIVEN["mask"], SMALL)), AUDIO),
}


def differences(first: Modality | None, second: Modality | None) -> list[str]:
    "The fields in which two inputs of the model differ, be it by one bit."
    if first is None or second is None:
        return [] if first is second else ["presence"]
    different = []
    for field in fields(Modality):
        a, b = getattr(first, field.name), getattr(second, field.name)
        same = (
            torch.equal(a, b) and a.dtype == b.dtype
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
            else a is b
        )
        different += [] if same else [field.name]
    return different


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sigma", [1.0, 0.37])
@pytest.mark.parametrize("mode", PLANS)
def test_training_and_generation_give_the_model_the_same(mode, sigma, dtype):
    plan, seed = PLANS[mode], 3
    record = make_record(2, fps=torch.tensor([24.0, 12.0]))
    contexts = {name: context.to(dtype) for name, context in record["conditions"].items()}
    trained = FlexibleStrategy(plan, dtype=dtype).prepare_training_inputs(record, Fixed(sigma), seeded(seed))
    model = Toy()
    generate_latents(model, record, Prompt(**contexts), plan, seed=seed, sigmas=(sigma, 0.0), guidance=Guidance.off())
    (seen,) = model.calls
    assert differences(trained.video, seen["video"]) == [] and differences(trained.audio, seen["audio"]) == []
    assert (trained.video is None) == (plan.video is None) and (trained.audio is None) == (plan.audio is None)
