import random
import re

import pytest
import torch
from recorded import checksum, seeded

from ltx_nb.flow.conditions import (
    Condition,
    add_noise,
    append_reference,
    audio_tokens,
    condition_tokens,
    crop_mask,
    reference_factors,
    span_mask,
    to_modality,
    video_tokens,
)
from ltx_nb.config.strategy import FlexibleStrategyConfig
from ltx_nb.model.latents import ScaleFactors

GRID = F, H, W = 5, 3, 4
STEPS = 20
FPS = 24.0
# float32 rounds a second by 6e-8 and times up to 4 s by 2.4e-7; the shortest wrong step is a frame, 0.04
SECONDS = 1e-6


def video(samples: int = 2, grid=GRID, fps=FPS, seed: int = 0):
    return video_tokens(torch.randn(samples, 128, *grid, generator=seeded(seed)), fps)


def audio(samples: int = 2, steps: int = STEPS, seed: int = 0):
    return audio_tokens(torch.randn(samples, 8, steps, 16, generator=seeded(seed)))


def expected_mask(given_frames=range(0), rows=range(0), columns=range(0)) -> torch.Tensor:
    "Written as loops over the grid, unlike the code."
    cells = [(f in given_frames) or (r in rows and c in columns) for f in range(F) for r in range(H) for c in range(W)]
    return torch.tensor(cells)


VIDEO_CASES = {
    "first_frame": (Condition("first_frame"), expected_mask(range(1))),
    "prefix": (Condition("prefix", temporal_boundary=3), expected_mask(range(3))),
    "suffix": (Condition("suffix", temporal_boundary=2), expected_mask(range(3, 5))),
    "whole cells": (
        Condition("spatial_crop", spatial_region=(32, 32, 96, 128)),
        expected_mask((), range(1, 3), range(1, 4)),
    ),
    "partly covered cells": (
        Condition("spatial_crop", spatial_region=(1, 20, 95, 127)),
        expected_mask((), range(1, 2), range(1, 3)),
    ),
    "beyond the picture": (
        Condition("spatial_crop", spatial_region=(64, 96, 500, 500)),
        expected_mask((), range(2, 3), range(3, 4)),
    ),
}


@pytest.mark.parametrize("case", VIDEO_CASES)
def test_what_a_condition_gives(case):
    "W19: a cell that a rectangle covers in part is not given."
    condition, expected = VIDEO_CASES[case]
    for given in condition_tokens(video(), [condition]).given:
        assert torch.equal(given, expected)


@pytest.mark.parametrize("kind, first, last", [("prefix", 0, 7), ("suffix", STEPS - 7, STEPS)])
def test_what_a_span_of_sound_gives(kind, first, last):
    given = condition_tokens(audio(), [Condition(kind, temporal_boundary=7)]).given
    assert given[0].nonzero().flatten().tolist() == list(range(first, last)) and torch.equal(given[0], given[1])


def test_mask_files_speak_for_each_sample_and_half_is_not_given():
    marks = torch.zeros(2, F, H, W)
    marks[0, 2], marks[1, :, 0, 0], marks[1, 4, 2, 3] = 1.0, 0.51, 0.5
    given = condition_tokens(video(), [Condition("mask", mask_dir="masks")], {"masks": {"mask": marks}}).given
    assert torch.equal(given[0], expected_mask([2]))
    assert torch.equal(given[1], expected_mask((), range(1), range(1)))


@pytest.mark.parametrize("shape", [(2, STEPS), (2, STEPS, 1)])
def test_mask_files_of_sound(shape):
    marks = torch.zeros(shape)
    marks[0, 3:5] = 1
    given = condition_tokens(audio(), [Condition("mask", mask_dir="m")], {"m": {"mask": marks}}).given
    assert given.nonzero().tolist() == [[0, 3], [0, 4]]


def test_scale_factors_of_the_checkpoint_decide_what_a_cell_is():
    condition = Condition("spatial_crop", spatial_region=(0, 0, 48, 32))
    given = condition_tokens(video(), [condition], factors=ScaleFactors(8, 16, 16)).given[0]
    assert torch.equal(given, expected_mask((), range(3), range(2)))


# 30 are three deviations of 400 coins; one coin for the whole batch gives 0 or 400
@pytest.mark.parametrize("probability, expected", [(0.0, 0), (1.0, 400), (0.3, pytest.approx(120, abs=30))])
def test_each_sample_tosses_its_own_coin(probability, expected):
    given = condition_tokens(
        audio(400), [Condition("prefix", probability, temporal_boundary=3)], generator=seeded()
    ).given
    assert torch.equal(given[:, 0], given[:, 2]) and not given[:, 3:].any()
    assert given[:, 0].sum().item() == expected


def test_coins_of_two_conditions_are_independent():
    both = [Condition("prefix", 0.5, temporal_boundary=1), Condition("suffix", 0.5, temporal_boundary=1)]
    given = condition_tokens(audio(2000), both, generator=seeded()).given
    first, last = given[:, 0], given[:, -1]
    # of 2000 coins: deviations of 0.010 and 0.011; one coin for both would give 0.5 and 0
    assert (first & last).float().mean() == pytest.approx(0.25, abs=0.03)
    assert (first ^ last).float().mean() == pytest.approx(0.5, abs=0.04)


def test_a_generation_applies_doubtful_conditions_and_draws_nothing():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rules = [Condition("first_frame", 0.01), Condition("reference", 0.0, latents_dir="edges")]
    batch = {"edges": {"latents": torch.ones(2, 128, *GRID), "fps": FPS}}
    tokens = condition_tokens(video(), rules, batch, certain=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        torch.equal(tokens.given[0, : tokens.length], expected_mask(range(1)))
        and tokens.given.shape[1] == 2 * F * H * W
    )


def test_order_of_conditions_does_not_matter():
    "W53: one canonical order, whatever the list says."
    marks = torch.zeros(2, F, H, W)
    marks[:, 3, 1, 1] = 1
    batch = {
        "masks": {"mask": marks},
        "edges": {"latents": torch.ones(2, 128, *GRID), "fps": FPS},
        "poses": {"latents": -torch.ones(2, 128, *GRID), "fps": FPS},
    }
    rules = [
        Condition("mask", mask_dir="masks"), Condition("reference", latents_dir="edges"), Condition("first_frame"),
        Condition("reference", latents_dir="poses"), Condition("spatial_crop", spatial_region=(0, 0, 32, 32)),
    ]  # fmt: skip
    first = condition_tokens(video(), rules, batch)
    union = expected_mask(range(1), range(1), range(1)) | (torch.arange(F * H * W) == 3 * H * W + W + 1)
    assert torch.equal(first.given[0, : first.length], union)
    for seed in range(4):
        other = condition_tokens(video(), random.Random(seed).sample(rules, len(rules)), batch)
        for field in ("clean", "given", "positions"):
            assert torch.equal(getattr(first, field), getattr(other, field))


def test_a_sample_that_would_be_complete_tosses_again():
    "W14: drawn anew and counted, not a step without a loss."
    rules = [Condition("prefix", 0.5, temporal_boundary=3), Condition("suffix", 0.5, temporal_boundary=2)]
    tokens = condition_tokens(video(2000), rules, generator=seeded())
    given = tokens.given
    assert not given.all(1).any() and tokens.redrawn == pytest.approx(500, abs=60)  # three deviations
    assert condition_tokens(video(2000), rules[:1], generator=seeded()).redrawn == 0
    shares = [given[:, 0].float().mean(), given[:, -1].float().mean(), (~given.any(1)).float().mean()]
    # four deviations; samples that are made bare instead of tossing again: 1/4, 1/4, 1/2
    assert [float(share) for share in shares] == pytest.approx([1 / 3] * 3, abs=0.04)


@pytest.mark.parametrize(
    "tokens, rules, said",
    [
        (video(), [Condition("prefix", temporal_boundary=5)], "of 60 tokens, prefix gives 60"),
        (video(), [Condition("suffix", temporal_boundary=9)], "suffix gives 60"),
        (video(grid=(1, 3, 4)), [Condition("first_frame")], "of 12 tokens, first_frame gives 12"),
        (
            video(),
            [Condition("prefix", temporal_boundary=3), Condition("suffix", temporal_boundary=2)],
            "prefix gives 36, suffix gives 24; give less, or use longer clips",
        ),
        (video(), [Condition("spatial_crop", spatial_region=(0, 0, 31, 31))], "covers no whole cell of a 128x96 video"),
        (video(), [Condition("spatial_crop", spatial_region=(96, 96, 32, 32))], r"\(top, left, bottom, right\)"),
        (video(), [Condition("dream")], "no condition is called 'dream'"),
        (video(), [Condition("prefix")], "needs temporal_boundary"),
        (audio(), [Condition("first_frame")], "first_frame is a condition of video"),
        (audio(), [Condition("spatial_crop", spatial_region=(0, 0, 64, 64))], "spatial_crop is a condition of video"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(tokens, rules, said):
    "W14, W15, W19: with numbers, and never a silent nothing."
    with pytest.raises(ValueError, match=said):
        condition_tokens(tokens, rules)


@pytest.mark.parametrize("shape", [(5, 3, 3), (5, 4, 3), (3, 5, 4), (61,)])
def test_a_mask_of_another_shape_is_refused(shape):
    "As many values are not enough: a mask on its side would give the wrong places."
    said = re.escape(f"holds masks of {list(shape)}") + r".* 60 tokens.*\[5, 3, 4\]"
    with pytest.raises(ValueError, match=said):
        condition_tokens(video(), [Condition("mask", mask_dir="masks")], {"masks": {"mask": torch.ones(2, *shape)}})


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_masks_of_every_dtype_and_layout_say_the_same(dtype, flat):
    marks = torch.zeros(2, F, H, W)
    marks[0, 2], marks[1, :, 0, 0] = 1, 1
    written = marks.to(dtype).flatten(1) if flat else marks.to(dtype)
    given = condition_tokens(video(), [Condition("mask", mask_dir="m")], {"m": {"mask": written}}).given
    assert torch.equal(given, marks.bool().flatten(1))


def test_a_mask_for_one_frame():
    marks = torch.zeros(2, 1, H, W)
    marks[:, :, 1] = 1
    given = condition_tokens(video(grid=(1, H, W)), [Condition("mask", mask_dir="m")], {"m": {"mask": marks}}).given
    assert given[0].nonzero().flatten().tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    "tokens, rule", [(video(), Condition("first_frame")), (audio(), Condition("prefix", temporal_boundary=2))]
)
def test_a_frozen_stream_is_given_whole_and_takes_no_inner_conditions(tokens, rule):
    frozen = condition_tokens(tokens, [rule], generated=False)
    assert frozen.given.all() and not frozen.generated and torch.equal(frozen.clean, tokens.clean)


def test_configuration_classes_stand_in_for_conditions():
    block = {
        "is_generated": True,
        "latents_dir": "latents",
        "conditions": [
            {"type": "first_frame"},
            {"type": "prefix", "temporal_boundary": 2},
            {"type": "suffix", "temporal_boundary": 1},
            {"type": "spatial_crop", "spatial_region": [0, 0, 32, 64]},
            {"type": "mask", "mask_dir": "masks"},
            {"type": "reference", "latents_dir": "edges"},
        ],
    }
    config = FlexibleStrategyConfig(name="flexible", video=block)
    marks = torch.zeros(2, F, H, W)
    marks[:, 2, 2, 2] = 1
    batch = {"masks": {"mask": marks}, "edges": {"latents": torch.ones(2, 128, *GRID), "fps": FPS}}
    tokens = condition_tokens(video(), config.video.conditions, batch)
    expected = expected_mask([0, 1, 4], range(1), range(2)) | (torch.arange(F * H * W) == 2 * H * W + 2 * W + 2)
    assert torch.equal(tokens.given[0, : tokens.length], expected) and tokens.given[0, tokens.length :].all()


def test_reference_positions_equal_the_recorded_ones():
    "Recipe S4: a 3x1x1 reference of half the size beside a 3x2x2 clip at 24 frames a second."
    pair = append_reference(video(1, (3, 2, 2)), video(1, (3, 1, 1)))
    # pixels are whole numbers, so only the seconds round; found: 9e-6. A frame more or less is 0.04 in each of them
    assert checksum(pair.positions) == pytest.approx((1927.708333, 946.443042, 313.540958), rel=0, abs=1e-4)


def test_reference_of_half_the_frames_is_late_by_one_frame():
    "Temporal factor 2: first token [0, 1/24], the first of the next frame [1/24, 17/24]."
    pair = append_reference(video(1, (3, 2, 2), 24.0), video(1, (2, 2, 2), 12.0))
    time = pair.positions[0, 0, 12:]
    torch.testing.assert_close(time[[0, 4]], torch.tensor([[0, 1 / 24], [1 / 24, 17 / 24]]), atol=SECONDS, rtol=0)


def formula(grid, fps, sample_fps, downscale=1, slowdown=1) -> torch.Tensor:
    "Spec trainer 3.2, items 4 and 6, token by token: [N, axis, bound]."
    cells = []
    for f in range(grid[0]):
        time = [max(0.0, max(0, 8 * (f + end) + 1 - 8) / fps - (slowdown - 1) / sample_fps) for end in (0, 1)]
        for y in range(grid[1]):
            for x in range(grid[2]):
                space = [[(at + end) * 32 * downscale for end in (0, 1)] for at in (y, x)]
                cells.append([time, *space])
    return torch.tensor(cells)


@pytest.mark.parametrize("fps", [12.0, 10.0, 24.0])
def test_reference_positions_follow_the_reference_own_rate(fps):
    "W10: the reference's record says how fast it is; the shift is counted in the sample's rate."
    batch = {"small": {"latents": torch.ones(2, 128, 3, 2, 2), "fps": torch.full((2,), fps)}}
    tokens = condition_tokens(video(grid=(5, 4, 4)), [Condition("reference", latents_dir="small")], batch)
    expected = torch.cat([formula((5, 4, 4), FPS, FPS), formula((3, 2, 2), fps, FPS, 2, 2)])
    for positions in tokens.positions:
        torch.testing.assert_close(positions.movedim(0, 1), expected, atol=SECONDS, rtol=0)


def test_a_reference_without_a_rate_is_as_fast_as_its_sample():
    latents, rule = torch.ones(2, 128, 3, 3, 4), [Condition("reference", latents_dir="r")]
    rates = torch.tensor([24.0, 30.0])
    told = condition_tokens(video(fps=rates), rule, {"r": {"latents": latents, "fps": rates / 2}})
    assert torch.equal(condition_tokens(video(fps=rates), rule, {"r": {"latents": latents}}).positions, told.positions)


@pytest.mark.parametrize("length", [6, STEPS, 3 * STEPS])
def test_reference_of_sound_may_be_of_any_length_and_overlaps_from_the_start(length):
    voice = {"voice": {"latents": torch.ones(2, 8, length, 16)}}
    tokens = condition_tokens(audio(), [Condition("reference", latents_dir="voice")], voice)
    assert torch.equal(tokens.positions[:, :, STEPS:], audio(steps=length).positions)
    assert tokens.given[:, STEPS:].all() and not tokens.given[:, :STEPS].any() and tokens.length == STEPS


def test_reference_of_samples_with_different_rates():
    "W10: each sample of a batch gets what it would get alone."
    rates = [24.0, 30.0]
    pair = append_reference(video(2, (5, 2, 2), rates), video(2, (3, 1, 1), [r / 2 for r in rates]))
    for sample, rate in enumerate(rates):
        alone = append_reference(video(1, (5, 2, 2), rate), video(1, (3, 1, 1), rate / 2))
        torch.testing.assert_close(pair.positions[sample], alone.positions[0], atol=SECONDS, rtol=0)


@pytest.mark.parametrize(
    "grid, reference, factors",
    [
        ((7, 6, 4), (7, 6, 4), (1, 1)),
        ((7, 6, 4), (4, 3, 2), (2, 2)),
        ((9, 6, 6), (3, 2, 2), (3, 4)),
        ((1, 4, 4), (1, 1, 1), (4, 1)),
        ((7, 6, 4), (1, 3, 2), (2, 1)),
    ],
)
def test_reference_factors_are_read_off_the_shapes(grid, reference, factors):
    assert reference_factors(grid, reference) == factors


@pytest.mark.parametrize(
    "grid, reference",
    [
        ((7, 6, 4), (7, 3, 1)),
        ((7, 3, 2), (7, 6, 4)),
        ((7, 6, 4), (5, 6, 4)),
        ((7, 6, 4), (13, 6, 4)),
    ],
)
def test_references_that_do_not_fit_are_refused(grid, reference):
    "W2: exactly or not at all, be it larger than the sample or of a broken ratio."
    with pytest.raises(ValueError, match="does not fit a sample of 7 frames"):
        reference_factors(grid, reference)


def test_reference_draw_is_one_for_the_batch():
    "W15: samples of one batch have equally many tokens."
    rule = Condition("reference", 0.5, latents_dir="edges")
    batch = {"edges": {"latents": torch.ones(3, 128, *GRID), "fps": FPS}}
    generator = seeded()
    lengths = [condition_tokens(video(3), [rule], batch, generator=generator).given.shape[1] for _ in range(60)]
    assert set(lengths) == {F * H * W, 2 * F * H * W} and 15 < lengths.count(F * H * W) < 45  # four deviations of 30


@pytest.mark.parametrize("rates", [[24.0], [24.0, 24.0, 24.0]])
def test_frame_rates_have_to_fit_the_batch(rates):
    latents = torch.zeros(2, 128, *GRID)
    if len(rates) == 1:
        assert video_tokens(latents, rates).fps == (24.0, 24.0)
    else:
        with pytest.raises(ValueError, match="3 frame rates for 2 samples"):
            video_tokens(latents, rates)


def test_noise_never_reaches_what_is_given():
    rules = [Condition("first_frame"), Condition("reference", latents_dir="edges")]
    tokens = condition_tokens(video(), rules, {"edges": {"latents": torch.ones(2, 128, *GRID), "fps": FPS}})
    noise = torch.full((2, tokens.length, 128), torch.inf)
    x = add_noise(tokens, torch.tensor([1.0, 0.3]), noise)
    assert torch.equal(x[tokens.given], tokens.clean[tokens.given]) and not x[~tokens.given].isfinite().any()


def test_noise_at_one_leaves_nothing_of_what_is_not_given():
    tokens, noise = video(), torch.randn(2, F * H * W, 128, generator=seeded(1))
    assert torch.equal(add_noise(tokens, torch.ones(2), noise), noise)
    assert torch.equal(add_noise(tokens, torch.zeros(2), noise), tokens.clean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_the_model_is_told(dtype):
    tokens = condition_tokens(video(), [Condition("first_frame")])
    sigma = torch.tensor([0.9001, 0.2])
    seen = to_modality(tokens, tokens.clean, sigma, torch.zeros(2, 4, 8), dtype)
    assert seen.latent.dtype == dtype and {x.dtype for x in (seen.sigma, seen.timesteps, seen.positions)} == {
        torch.float32
    }
    assert torch.equal(seen.timesteps, torch.where(tokens.given, 0.0, sigma[:, None])) and torch.equal(
        seen.sigma, sigma
    )
    assert seen.context_mask is None and seen.attention_mask is None and seen.enabled


@pytest.mark.parametrize("rules, generated", [([], True), ([Condition("first_frame")], True), ([], False)])
def test_known_levels_are_all_that_occur(rules, generated):
    tokens = condition_tokens(video(), rules, generated=generated)
    seen = to_modality(tokens, tokens.clean, torch.tensor([0.9, 0.2]), torch.zeros(2, 4, 8))
    for levels, timesteps in zip(seen.levels, seen.timesteps):
        assert set(timesteps.tolist()) <= set(levels.tolist())
    if not generated:
        assert not seen.sigma.any() and not seen.timesteps.any()


def test_span_and_crop_cover_the_grid_between_them():
    parts = [span_mask(GRID, 0, 2), span_mask(GRID, 2, 4), span_mask(GRID, 4, 5)]
    assert torch.equal(torch.stack(parts).sum(0), torch.ones(F * H * W, dtype=torch.int64))
    halves = [crop_mask(GRID, (0, 0, 96, 64)), crop_mask(GRID, (0, 64, 96, 128))]
    assert torch.equal(torch.stack(halves).sum(0), torch.ones(F * H * W, dtype=torch.int64))
