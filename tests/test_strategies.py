from dataclasses import dataclass, replace

import pytest
import torch
from recorded import seeded

from ltx_nb.flow.conditions import Condition, to_modality
from ltx_nb.config.strategy import FlexibleStrategyConfig
from ltx_nb.model.latents import ScaleFactors
from ltx_nb.flow.samplers import ShiftedLogitNormalTimestepSampler, UniformTimestepSampler
from ltx_nb.flow.strategies import (
    TEXT_TO_VIDEO,
    FlexibleStrategy,
    ModelInputs,
    Plan,
    StreamPlan,
    TrainingStrategy,
    get_training_strategy,
    read_streams,
    velocity_loss,
)

GRID = F, H, W = 4, 2, 3
TOKENS = F * H * W
STEPS = 15
FRAME = H * W


def make_batch(samples: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict:
    generator = seeded(seed)
    draw = lambda *shape: torch.randn(samples, *shape, generator=generator).to(dtype)
    return {
        "latents": {"latents": draw(128, *GRID), "fps": torch.full((samples,), 24.0)},
        "audio_latents": {"latents": draw(8, STEPS, 16)},
        "conditions": {"video_context": draw(5, 32), "audio_context": draw(5, 16)},
        "edges": {"latents": draw(128, *GRID), "fps": torch.full((samples,), 24.0)},
        "small": {"latents": draw(128, 2, 1, 1), "fps": torch.full((samples,), 8.0)},
        "voice": {"latents": draw(8, 4, 16)},
        "masks": {"mask": (draw(*GRID) > 0.3).float()},
    }


def video_plan(*conditions, **options) -> Plan:
    return Plan(StreamPlan("latents", conditions=conditions, **options))


def prepare(plan, batch=None, sampler=None, seed: int = 0, **options):
    batch = make_batch() if batch is None else batch
    return FlexibleStrategy(plan, **options).prepare_training_inputs(
        batch, sampler or UniformTimestepSampler(), seeded(seed)
    )


def clean_tokens(batch: dict) -> dict[str, torch.Tensor]:
    "By hand: token by token, channel by channel."
    video, sound = batch["latents"]["latents"].float(), batch["audio_latents"]["latents"].float()
    cells = [(f, y, x) for f in range(F) for y in range(H) for x in range(W)]
    return {
        "video": torch.stack([video[:, :, f, y, x] for f, y, x in cells], 1),
        "audio": torch.stack([sound[:, :, t].flatten(1) for t in range(STEPS)], 1),
    }


@dataclass(frozen=True)
class Listening:
    "A sampler that notes what it was asked."

    asked: list

    def sample(self, batch_size, seq_length, generator=None):
        self.asked.append((batch_size, seq_length))
        return torch.full((batch_size,), 0.25 * len(self.asked))


def test_input_is_a_mixture_and_target_its_direction():
    batch, inputs = make_batch(), prepare(TEXT_TO_VIDEO)
    for name, clean in clean_tokens(batch).items():
        seen, target = getattr(inputs, name), getattr(inputs, f"{name}_targets")
        sigma = seen.sigma.view(-1, 1, 1)
        noise = target + clean
        # numbers up to 9 in float32, a handful of roundings of 2.4e-7; the weights the other way round are off by 1
        torch.testing.assert_close(seen.latent, (1 - sigma) * clean + sigma * noise, atol=1e-5, rtol=0)
        # of 3840 numbers and more: deviations of 0.016 and 0.011
        assert noise.mean().abs() < 0.1 and noise.std() == pytest.approx(1, abs=0.05)
        assert getattr(inputs, f"{name}_loss_mask").all() and seen.latent.shape == target.shape


def test_streams_draw_levels_and_noise_of_their_own():
    inputs = prepare(TEXT_TO_VIDEO, make_batch(samples=16))
    assert not (inputs.video.sigma[:, None] == inputs.audio.sigma).any()
    noise = {n: getattr(inputs, f"{n}_targets") + clean for n, clean in clean_tokens(make_batch(samples=16)).items()}
    assert not torch.equal(noise["video"][:, :STEPS], noise["audio"])
    assert not torch.equal(noise["video"][0], noise["video"][1])


def test_levels_follow_the_length_of_the_sample_without_its_references():
    asked = []
    rules = Condition("reference", latents_dir="edges"), Condition("first_frame")
    prepare(Plan(StreamPlan("latents", conditions=rules), StreamPlan("audio_latents")), sampler=Listening(asked))
    assert asked == [(2, TOKENS), (2, STEPS)]


@pytest.mark.parametrize("frozen", ["video", "audio"])
def test_a_frozen_stream_is_clean_silent_about_noise_and_without_loss(frozen):
    blocks = {"video": StreamPlan("latents"), "audio": StreamPlan("audio_latents")}
    blocks[frozen] = replace(blocks[frozen], is_generated=False)
    asked, batch = [], make_batch()
    inputs = prepare(Plan(**blocks), batch, Listening(asked))
    seen = getattr(inputs, frozen)
    assert torch.equal(seen.latent, clean_tokens(batch)[frozen]) and not seen.sigma.any() and not seen.timesteps.any()
    assert getattr(inputs, f"{frozen}_targets") is None and getattr(inputs, f"{frozen}_loss_mask") is None
    assert asked == [(2, STEPS if frozen == "video" else TOKENS)]


GIVEN = {
    "first_frame": (Condition("first_frame"), range(FRAME)),
    "prefix": (Condition("prefix", temporal_boundary=2), range(2 * FRAME)),
    "suffix": (Condition("suffix", temporal_boundary=1), range(3 * FRAME, 4 * FRAME)),
    "spatial_crop": (
        Condition("spatial_crop", spatial_region=(0, 0, 32, 64)),
        [i for i in range(TOKENS) if i % FRAME in (0, 1)],
    ),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_given_tokens_are_clean_at_level_zero_and_not_trained(kind):
    condition, where = GIVEN[kind]
    batch = make_batch()
    inputs, bare = prepare(video_plan(condition), batch), prepare(video_plan(), batch)
    given = torch.zeros(2, TOKENS, dtype=torch.bool)
    given[:, list(where)] = True
    assert torch.equal(inputs.video.latent[given], clean_tokens(batch)["video"][given])
    assert torch.equal(inputs.video.timesteps == 0, given) and torch.equal(inputs.video_loss_mask, ~given)
    assert torch.equal(inputs.video.sigma, bare.video.sigma)  # of the sample, whatever is given
    assert torch.equal(
        inputs.video.latent[~given], bare.video.latent[~given]
    )  # a certain condition uses no random number
    assert torch.equal(inputs.video_targets, bare.video_targets)


def test_mask_files_give_what_they_mark():
    batch = make_batch()
    inputs = prepare(video_plan(Condition("mask", mask_dir="masks")), batch)
    assert torch.equal(inputs.video_loss_mask, batch["masks"]["mask"].flatten(1) == 0)


def test_sound_takes_prefix_and_suffix_of_its_own():
    rules = Condition("prefix", temporal_boundary=3), Condition("suffix", temporal_boundary=4)
    inputs = prepare(Plan(None, StreamPlan("audio_latents", conditions=rules)))
    assert inputs.video is None and inputs.video_targets is None
    assert (~inputs.audio_loss_mask[0]).nonzero().flatten().tolist() == [0, 1, 2, 11, 12, 13, 14]


def test_reference_tokens_are_clean_and_nothing_is_asked_of_them():
    batch = make_batch()
    inputs = prepare(video_plan(Condition("reference", latents_dir="edges")), batch)
    edges = clean_tokens(batch | {"latents": batch["edges"]})["video"]
    assert torch.equal(inputs.video.latent[:, TOKENS:], edges) and not inputs.video.timesteps[:, TOKENS:].any()
    assert inputs.video.positions.shape[2] == inputs.video.latent.shape[1] == 2 * TOKENS
    assert inputs.video_targets.shape[1] == inputs.video_loss_mask.shape[1] == TOKENS
    prediction = torch.cat([inputs.video_targets, torch.full((2, TOKENS, 128), 1e6)], 1)
    assert not FlexibleStrategy(video_plan()).compute_loss(prediction, None, inputs).any()


def test_a_frozen_stream_may_have_a_reference():
    voice = StreamPlan("audio_latents", is_generated=False, conditions=(Condition("reference", latents_dir="voice"),))
    inputs = prepare(Plan(StreamPlan("latents"), voice))
    assert inputs.audio.latent.shape[1] == STEPS + 4 and not inputs.audio.timesteps.any()


def test_metadata_names_factors_only_when_they_are_not_one():
    "W1: read off the batches themselves, under the names that the public tools know."
    same = FlexibleStrategy(video_plan(Condition("reference", latents_dir="edges")))
    same.prepare_training_inputs(make_batch(), UniformTimestepSampler(), seeded())
    small = FlexibleStrategy(video_plan(Condition("reference", latents_dir="small")))
    batch = make_batch()
    batch["latents"]["latents"], batch["small"]["latents"] = torch.zeros(2, 128, 4, 2, 2), torch.zeros(2, 128, 2, 1, 1)
    small.prepare_training_inputs(batch, UniformTimestepSampler(), seeded())
    assert same.get_checkpoint_metadata() == {} == FlexibleStrategy(TEXT_TO_VIDEO).get_checkpoint_metadata()
    assert small.get_checkpoint_metadata() == {
        "reference_spatial_scale_factor": "2", "reference_downscale_factor": "2", "reference_temporal_scale_factor": "3",
    }  # fmt: skip


@pytest.mark.parametrize("still_first", [True, False])
def test_stills_say_nothing_about_how_slow_references_are(still_first):
    strategy = FlexibleStrategy(video_plan(Condition("reference", latents_dir="small")))
    grids = [((4, 2, 2), (2, 1, 1)), ((1, 2, 2), (1, 1, 1))]
    for sample, reference in reversed(grids) if still_first else grids:
        batch = make_batch()
        batch["latents"]["latents"], batch["small"]["latents"] = (
            torch.zeros(2, 128, *sample),
            torch.zeros(2, 128, *reference),
        )
        strategy.prepare_training_inputs(batch, UniformTimestepSampler(), seeded())
    assert strategy.get_checkpoint_metadata()["reference_temporal_scale_factor"] == "3"
    batch["latents"]["latents"], batch["small"]["latents"] = torch.zeros(2, 128, 4, 2, 2), torch.zeros(2, 128, 4, 1, 1)
    with pytest.raises(ValueError, match=r"factors \(2, 3\) and \(2, 1\)"):
        strategy.prepare_training_inputs(batch, UniformTimestepSampler(), seeded())


def test_references_of_other_factors_are_refused_in_the_same_run():
    "W2: every batch is looked at, not the first pair."
    strategy = FlexibleStrategy(video_plan(Condition("reference", latents_dir="edges")))
    strategy.prepare_training_inputs(make_batch(), UniformTimestepSampler(), seeded())
    batch = make_batch()
    batch["latents"]["latents"], batch["edges"]["latents"] = torch.zeros(2, 128, 4, 2, 2), torch.zeros(2, 128, 4, 1, 1)
    with pytest.raises(ValueError, match=r"edges mixes references of factors \(1, 1\) and \(2, 1\)"):
        strategy.prepare_training_inputs(batch, UniformTimestepSampler(), seeded())


def test_loss_equals_the_recorded_one():
    "Spec recipe: two of six tokens masked in the first sample."
    wave = lambda start: torch.sin(start + 0.61803398875 * torch.arange(48, dtype=torch.float64)).float().view(2, 6, 4)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :2], mask[1] = False, False
    assert velocity_loss(wave(0.1), wave(0.6), mask).tolist() == pytest.approx([0.119273, 0.0], abs=1e-6)  # its digits


def test_loss_is_the_mean_of_what_counts_sample_by_sample():
    prediction, target = torch.randn(2, 3, 7, 5, generator=seeded())
    mask = torch.rand(3, 7, generator=seeded(1)) > 0.4
    mask[:, 0] = True
    expected = [((prediction[b] - target[b]) ** 2)[mask[b]].mean() for b in range(3)]
    # 1.3e-6 of it, of up to 35 summands: one token more or less is a seventh of it
    torch.testing.assert_close(velocity_loss(prediction, target, mask), torch.stack(expected), atol=0, rtol=1.3e-6)


def test_total_loss_is_the_sum_of_the_streams():
    inputs = ModelInputs(
        video_targets=torch.zeros(2, 3, 4), audio_targets=torch.zeros(2, 5, 4),
        video_loss_mask=torch.ones(2, 3, dtype=torch.bool), audio_loss_mask=torch.ones(2, 5, dtype=torch.bool),
    )  # fmt: skip
    strategy = FlexibleStrategy(TEXT_TO_VIDEO)
    video, audio = torch.full((2, 3, 4), 2.0), torch.full((2, 5, 4), 3.0)
    assert strategy.compute_loss(video, audio, inputs).tolist() == [13.0, 13.0]
    assert {n: x.tolist() for n, x in strategy.stream_losses(video, audio, inputs).items()} == {
        "video": [4.0] * 2,
        "audio": [9.0] * 2,
    }


def test_loss_reaches_every_stream_and_is_float32():
    inputs = prepare(TEXT_TO_VIDEO)
    predictions = [torch.zeros(2, n, 128, dtype=torch.bfloat16, requires_grad=True) for n in (TOKENS, STEPS)]
    loss = FlexibleStrategy(TEXT_TO_VIDEO).compute_loss(*predictions, inputs)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and all(p.grad.abs().sum() > 0 for p in predictions)


def test_nothing_to_train_is_an_error():
    both_frozen = Plan(StreamPlan("latents", is_generated=False), StreamPlan("audio_latents", is_generated=False))
    with pytest.raises(ValueError, match="no stream has a target"):
        FlexibleStrategy(both_frozen).compute_loss(None, None, prepare(both_frozen))


def test_stored_bfloat16_becomes_float32_noise_and_targets():
    "W7: noise, mixture and targets in float32, whatever is stored."
    batch = make_batch(dtype=torch.bfloat16)
    inputs = prepare(TEXT_TO_VIDEO, batch, dtype=torch.bfloat16)
    assert inputs.video.latent.dtype == inputs.video.context.dtype == torch.bfloat16
    assert inputs.video_targets.dtype == inputs.video.sigma.dtype == inputs.video.positions.dtype == torch.float32
    noise = inputs.video_targets + clean_tokens(batch)["video"]
    assert (noise != noise.bfloat16().float()).float().mean() > 0.9  # not drawn in bfloat16


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
def test_contexts_and_latents_arrive_in_the_dtype_of_the_model(model_dtype):
    inputs = prepare(TEXT_TO_VIDEO, make_batch(dtype=torch.float16), dtype=model_dtype)
    for seen in (inputs.video, inputs.audio):
        assert seen.latent.dtype == seen.context.dtype == model_dtype


def test_the_same_seed_gives_the_same_step_and_no_other_randomness_is_used():
    rules = Condition("first_frame", 0.5), Condition("reference", 0.5, latents_dir="edges")
    plan = Plan(StreamPlan("latents", conditions=rules), StreamPlan("audio_latents"))
    first = prepare(plan, sampler=ShiftedLogitNormalTimestepSampler(), seed=4)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = prepare(plan, sampler=ShiftedLogitNormalTimestepSampler(), seed=4)
    other = prepare(plan, sampler=ShiftedLogitNormalTimestepSampler(), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.video.latent, again.video.latent) and torch.equal(first.audio.latent, again.audio.latent)
    assert not torch.equal(first.audio.latent, other.audio.latent)


def test_batch_is_not_changed():
    batch, untouched = make_batch(), make_batch()
    rules = Condition("first_frame"), Condition("mask", mask_dir="masks"), Condition("reference", latents_dir="edges")
    prepare(Plan(StreamPlan("latents", conditions=rules), StreamPlan("audio_latents")), batch)
    for folder, record in untouched.items():
        for name, tensor in record.items():
            assert torch.equal(batch[folder][name], tensor)


def test_a_record_without_a_frame_rate_is_read_at_24():
    batch, silent = make_batch(), make_batch()
    del silent["latents"]["fps"]
    assert torch.equal(prepare(TEXT_TO_VIDEO, silent).video.positions, prepare(TEXT_TO_VIDEO, batch).video.positions)


def test_samples_of_different_rates_share_a_batch():
    "W10: positions of its own for each sample."
    batch = make_batch()
    batch["latents"]["fps"] = torch.tensor([24.0, 12.0])
    positions = prepare(TEXT_TO_VIDEO, batch).video.positions
    torch.testing.assert_close(positions[0, 0] * 2, positions[1, 0])  # seconds, to 1.3e-6 of each
    assert torch.equal(positions[0, 1:], positions[1, 1:])


def test_scale_factors_reach_positions_and_crops():
    condition = Condition("spatial_crop", spatial_region=(0, 0, 16, 16))
    inputs = prepare(video_plan(condition), factors=ScaleFactors(8, 16, 16))
    assert (~inputs.video_loss_mask[0]).sum() == F and inputs.video.positions[0, 1].max() == 16 * H


def test_sources_are_every_folder_that_a_batch_needs():
    rules = Condition("mask", mask_dir="masks"), Condition("reference", latents_dir="edges"), Condition("first_frame")
    plan = Plan(StreamPlan("latents", conditions=rules), StreamPlan("audio_latents"))
    sources = FlexibleStrategy(plan).get_data_sources()
    assert sources == {name: name for name in ("conditions", "latents", "masks", "edges", "audio_latents")}
    prepare(plan, {name: make_batch()[name] for name in sources})  # and nothing else is read


def test_a_folder_may_serve_in_two_roles():
    "W16: a clip as its own reference; nothing of the batch gets lost."
    plan = video_plan(Condition("reference", latents_dir="latents"))
    strategy = FlexibleStrategy(plan)
    assert strategy.get_data_sources() == {"conditions": "conditions", "latents": "latents"}
    seen = prepare(plan).video
    assert torch.equal(seen.latent[:, TOKENS:], clean_tokens(make_batch())["video"])


def test_redraws_are_counted_and_told_once(caplog):
    "W14."
    whole = Condition("prefix", 0.5, temporal_boundary=3), Condition("suffix", 0.5, temporal_boundary=1)
    strategy = FlexibleStrategy(video_plan(*whole))
    for seed in range(20):
        inputs = strategy.prepare_training_inputs(make_batch(8), UniformTimestepSampler(), seeded(seed))
        assert inputs.video_loss_mask.any(1).all()
    assert strategy.redrawn == pytest.approx(160 / 4, abs=15)  # 2.7 deviations; one coin for both conditions: 80
    assert [record.message.count(f"gave all {TOKENS} tokens") for record in caplog.records] == [1]


def test_weights_of_streams():
    "W18: what is minimised is weighted, what is logged is not; and 1 changes no bit."
    plan = replace(
        TEXT_TO_VIDEO, video=StreamPlan("latents", loss_weight=2.0), audio=StreamPlan("audio_latents", loss_weight=0.5)
    )
    inputs = prepare(plan)
    predictions = [torch.zeros_like(target) for target in (inputs.video_targets, inputs.audio_targets)]
    plain, weighted = FlexibleStrategy(TEXT_TO_VIDEO), FlexibleStrategy(plan)
    parts = plain.stream_losses(*predictions, inputs)
    for name, loss in weighted.stream_losses(*predictions, inputs).items():
        assert torch.equal(loss, parts[name])
    assert torch.equal(plain.compute_loss(*predictions, inputs), parts["video"] + parts["audio"])
    torch.testing.assert_close(weighted.compute_loss(*predictions, inputs), 2 * parts["video"] + 0.5 * parts["audio"])
    assert torch.equal(inputs.video.latent, prepare(TEXT_TO_VIDEO).video.latent)


def test_weights_and_dropout_of_a_configuration_are_read():
    block = {"is_generated": True, "latents_dir": "latents", "loss_weight": 0.25}
    strategy = get_training_strategy(FlexibleStrategyConfig(video=block, caption_dropout=0.2))
    assert strategy.loss_weights["video"] == 0.25 and strategy.caption_dropout == 0.2


EMPTY = {"video_context": torch.full((5, 32), 7.0), "audio_context": torch.full((5, 16), 7.0)}


def deaf(share: float, empty=EMPTY) -> FlexibleStrategy:
    strategy = FlexibleStrategy(replace(TEXT_TO_VIDEO, caption_dropout=share))
    strategy.empty_caption = empty
    return strategy


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_dropped_captions(share):
    "W17: one coin a sample for both streams; none where the outcome is certain."
    batch = make_batch(200)
    inputs = deaf(share).prepare_training_inputs(batch, UniformTimestepSampler(), seeded())
    dropped = {name: (getattr(inputs, name).context == 7).all((1, 2)) for name in ("video", "audio")}
    assert torch.equal(dropped["video"], dropped["audio"])
    # of 200 coins: 2.6 deviations
    assert dropped["video"].float().mean().item() == pytest.approx(share, abs=0.08 if 0 < share < 1 else 0)
    kept = ~dropped["video"]
    assert torch.equal(inputs.audio.context[kept], batch["conditions"]["audio_context"][kept])
    if share in (0.0, 1.0):
        assert torch.equal(inputs.video.latent, prepare(TEXT_TO_VIDEO, batch).video.latent)


@pytest.mark.parametrize(
    "empty, said",
    [(None, "is missing"), ({"video_context": torch.zeros(4, 32)}, r"\[5, 32\], the empty caption is \[4, 32\]")],
)
def test_an_empty_caption_that_does_not_fit_is_refused(empty, said):
    with pytest.raises(ValueError, match=said):
        deaf(1.0, empty).prepare_training_inputs(make_batch(), UniformTimestepSampler(), seeded())


def test_configuration_and_plan_say_the_same():
    block = {"is_generated": True, "latents_dir": "latents", "conditions": [{"type": "prefix", "temporal_boundary": 2}]}
    sound = {"is_generated": True, "latents_dir": "audio_latents"}
    config = FlexibleStrategyConfig(name="flexible", video=block, audio=sound)
    plan = Plan(
        StreamPlan("latents", conditions=(Condition("prefix", temporal_boundary=2),)), StreamPlan("audio_latents")
    )
    strategy = get_training_strategy(config)
    assert strategy.get_data_sources() == FlexibleStrategy(plan).get_data_sources()
    found, expected = strategy.prepare_training_inputs(make_batch(), UniformTimestepSampler(), seeded()), prepare(plan)
    assert torch.equal(found.video.latent, expected.video.latent) and torch.equal(
        found.video_loss_mask, expected.video_loss_mask
    )


def test_streams_keep_given_and_references_apart():
    streams = read_streams(
        video_plan(Condition("reference", latents_dir="edges"), Condition("first_frame")), make_batch()
    )
    assert list(streams) == ["video"] and streams["video"].length == TOKENS
    assert streams["video"].given.sum(1).tolist() == [FRAME + TOKENS] * 2


class SoundAtOneLevel(TrainingStrategy):
    "A strategy of one's own, from nothing."

    def __init__(self, level: float):
        super().__init__({"level": level})

    def get_data_sources(self):
        return {"conditions": "conditions", "audio_latents": "audio_latents"}

    def prepare_training_inputs(self, batch, timestep_sampler, generator=None):
        tokens = read_streams(Plan(None, StreamPlan("audio_latents")), batch, self.factors, self.device)["audio"]
        noise, sigma = torch.zeros_like(tokens.clean), torch.full((len(tokens.clean),), self.config["level"])
        seen = to_modality(tokens, 0.5 * tokens.clean, sigma, batch["conditions"]["audio_context"], self.dtype)
        return ModelInputs(audio=seen, audio_targets=noise - tokens.clean)


def test_a_strategy_of_ones_own_is_told_its_place_and_inherits_the_losses():
    strategy = SoundAtOneLevel(0.5)
    strategy.place(ScaleFactors(4, 16, 16), "cpu", torch.bfloat16)
    inputs = strategy.prepare_training_inputs(make_batch(), None)
    assert inputs.audio.latent.dtype == torch.bfloat16 and strategy.video_scale_factors.time == 4
    assert inputs.audio.sigma.tolist() == [0.5, 0.5]
    loss = strategy.compute_loss(None, inputs.audio_targets + 2, inputs)
    assert loss.tolist() == [4.0, 4.0] and strategy.get_checkpoint_metadata() == {}
    strategy.loss_weights = {"audio": 0.5}
    assert strategy.compute_loss(None, inputs.audio_targets + 2, inputs).tolist() == [2.0, 2.0]


def test_a_name_that_no_strategy_has_is_answered_with_the_way_to_bring_one():
    with pytest.raises(
        ValueError, match=r"'mine'; expected flexible, or a class of your own as my_package.my_module:MyStrategy"
    ):
        get_training_strategy(replace(TEXT_TO_VIDEO, name="mine"))


def test_a_strategy_of_ones_own_needs_two_methods():
    class Half(TrainingStrategy):
        def get_data_sources(self):
            return {}

    with pytest.raises(TypeError, match="prepare_training_inputs"):
        Half()
