import pytest
import torch
from recorded import assert_checksum, recipe, seeded

from ltx_nb.flow.samplers import (
    DISTILLED_SIGMAS,
    ShiftedLogitNormalTimestepSampler,
    TimestepSampler,
    UniformTimestepSampler,
    euler_step,
    get_timestep_sampler,
    sigma_schedule,
    sigma_shift,
    to_denoised,
)

SHIFTS = {126: 0.628451, 256: 0.675, 1024: 0.95, 2048: 1.316667, 4096: 2.05, 6144: 2.783333}
SCHEDULES = {  # steps -> levels at 4096 tokens, as the public scheduler gives them
    2: [1.0, 0.1, 0],
    8: [1.0, 0.965712, 0.921875, 0.863856, 0.783445, 0.664579, 0.471003, 0.1, 0],
    15: [1.0, 0.98725, 0.972823, 0.956368, 0.937421, 0.915374, 0.889394, 0.858329, 0.820523, 0.773514, 0.713477, 0.634123,
         0.524345, 0.362494, 0.1, 0],
    30: [1.0, 0.994957, 0.989603, 0.983908, 0.97784, 0.971358, 0.964421, 0.956978, 0.948972, 0.940336, 0.930994, 0.920854,
         0.90981, 0.897735, 0.884479, 0.869858, 0.853651, 0.835584, 0.815319, 0.792427, 0.766363, 0.736418, 0.701656,
         0.660813, 0.612141, 0.553148, 0.480164, 0.387541, 0.26612, 0.1, 0],
    40: [1.0, 0.996449, 0.992737, 0.988851, 0.98478, 0.98051, 0.976026, 0.971312, 0.966349, 0.961116, 0.955593, 0.949753,
         0.943568, 0.937008, 0.930037, 0.922614, 0.914696, 0.906229, 0.897156, 0.887408, 0.876908, 0.865565, 0.853273,
         0.839908, 0.825323, 0.809343, 0.791758, 0.772313, 0.750697, 0.726524, 0.699312, 0.66845, 0.633152, 0.592384,
         0.544771, 0.48843, 0.420719, 0.337809, 0.233936, 0.1, 0],
}  # fmt: skip
SCHEDULES_OF_SIZES = {  # latent frames, rows, columns -> eight steps
    (2, 16, 24): [1.0, 0.931296, 0.85103, 0.756018, 0.641784, 0.501837, 0.326398, 0.1, 0],
    (16, 16, 24): [1.0, 0.973913, 0.939833, 0.893422, 0.826507, 0.721651, 0.533815, 0.1, 0],
    (12, 17, 30): [1.0, 0.973847, 0.939687, 0.893177, 0.826142, 0.72115, 0.53323, 0.1, 0],
}
UNSTRETCHED = [1.0, 0.981941, 0.958854, 0.928297, 0.885948, 0.823345, 0.721394, 0.525999, 0]
DRAWN = {  # tokens -> eight levels of the public sampler, seed 0
    4096: [0.966261, 0.772921, 0.154734, 0.282986, 0.566454, 0.459031, 0.882168, 0.924638],
    1024: [0.927653, 0.603789, 0.07575, 0.282986, 0.369073, 0.275311, 0.770215, 0.845992],
}
STATISTICS = {4096: (0.7419, 0.2553, 0.8111, 0.9694), 1024: (0.6250, 0.1670, 0.6676, 0.9366)}  # mean; 5, 50, 95 %
# Six digits were recorded (5e-7), and a level next to 1 is rounded by 6e-8 here and there; found: 5.4e-7. Four tokens more
# or less in the shift move one by 1.5e-4.
DIGITS = 1.1e-6


def assert_levels(found: torch.Tensor, expected: list[float]):
    torch.testing.assert_close(found, torch.tensor(expected), atol=DIGITS, rtol=0)


@pytest.mark.parametrize("tokens", SHIFTS)
def test_shift_follows_the_line_beyond_both_anchors(tokens):
    assert sigma_shift(tokens) == pytest.approx(SHIFTS[tokens], abs=DIGITS)


@pytest.mark.parametrize("tokens", [0, -5])
def test_shift_of_no_tokens_is_refused(tokens):
    with pytest.raises(ValueError, match=f"at least one token, got {tokens}"):
        sigma_shift(tokens)


@pytest.mark.parametrize("steps", SCHEDULES)
def test_schedule_equals_the_public_one(steps):
    assert_levels(sigma_schedule(steps), SCHEDULES[steps])


@pytest.mark.parametrize("grid", SCHEDULES_OF_SIZES)
def test_schedule_of_a_size_equals_the_public_one(grid):
    assert_levels(sigma_schedule(8, tokens=torch.Size(grid).numel()), SCHEDULES_OF_SIZES[grid])


def test_schedule_without_a_terminal_level_is_not_stretched():
    assert_levels(sigma_schedule(8, terminal=None), UNSTRETCHED)


@pytest.mark.parametrize("terminal", [0.1, None])
@pytest.mark.parametrize("tokens", [25, 4096, 60_000])
def test_one_step_goes_from_noise_to_the_end(tokens, terminal):
    "The public scheduler stretches its only level, a rounding below 1, to 0.1: the model is told of a tenth of the noise."
    assert sigma_schedule(1, tokens, terminal).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("steps", [0, -3])
def test_schedule_of_no_step_is_refused(steps):
    with pytest.raises(ValueError, match=f"at least 1 step, got {steps}"):
        sigma_schedule(steps)


@pytest.mark.parametrize("tokens", DRAWN)
def test_drawn_levels_equal_the_public_ones(tokens):
    assert_levels(ShiftedLogitNormalTimestepSampler().sample(8, tokens, seeded()), DRAWN[tokens])


@pytest.mark.parametrize("tokens", STATISTICS)
def test_statistics_of_many_draws(tokens):
    levels = ShiftedLogitNormalTimestepSampler().sample(100_000, tokens, seeded())
    found = (levels.mean(), *levels.quantile(torch.tensor([0.05, 0.5, 0.95])))
    # four digits were recorded (5e-5), and processors draw normal numbers that differ by 1e-6; found: 6.3e-5. A std of 1.01
    # moves one of the four by 1e-3, and a uniform share of 0.11 the mean by as much.
    assert [float(x) for x in found] == pytest.approx(STATISTICS[tokens], abs=1e-4)
    assert 1e-3 <= levels.min() < 1.2e-3 and levels.max() == 1  # of 100,000 draws some come near both ends


@pytest.mark.parametrize("tokens", [1, 25, 126, 6120, 100_000])
def test_levels_of_any_length_lie_on_the_path(tokens):
    levels = ShiftedLogitNormalTimestepSampler().sample(10_000, tokens, seeded())
    assert levels.isfinite().all() and levels.min() >= 1e-3 and levels.max() <= 1


def test_small_levels_are_mirrored_not_clamped():
    eps, options = 0.1, {"uniform_prob": 0.0}
    levels = ShiftedLogitNormalTimestepSampler(eps=eps, **options).sample(50_000, 1024, seeded())
    # |r|, but for a millionth
    bare = ShiftedLogitNormalTimestepSampler(eps=1e-6, **options).sample(50_000, 1024, seeded())
    near = lambda expected: (levels - expected).abs() < 1e-5  # 2e-6 for the millionth, 1e-7 for float32; eps is 0.1
    kept, small, negative = near(bare), near(2 * eps - bare), near(2 * eps + bare)
    assert (kept | small | negative).all()
    assert (bare[kept & ~small] >= eps).all() and (bare[small & ~kept] < eps).all()
    assert negative.float().mean() == pytest.approx(0.005, abs=0.001)  # below the 0.5th percentile; three deviations


def test_uniform_share_ignores_the_length():
    everywhere = ShiftedLogitNormalTimestepSampler(uniform_prob=1.0)
    assert torch.equal(everywhere.sample(100, 25, seeded()), everywhere.sample(100, 6120, seeded()))
    short, long = (ShiftedLogitNormalTimestepSampler(uniform_prob=0.25).sample(20_000, n, seeded()) for n in (25, 6120))
    assert (short == long).float().mean() == pytest.approx(0.25, abs=0.015)  # of 20,000 coins: five deviations


@pytest.mark.parametrize("sampler", [UniformTimestepSampler(), ShiftedLogitNormalTimestepSampler()])
def test_draws_come_from_the_given_generator_alone(sampler):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    generator = seeded(5)
    first, second = sampler.sample(16, 126, generator), sampler.sample(16, 126, generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, sampler.sample(16, 126, seeded(5))) and not torch.equal(first, second)
    assert first.dtype == torch.float32 and first.shape == (16,)


@pytest.mark.parametrize("sampler", [UniformTimestepSampler(0.2, 0.9), ShiftedLogitNormalTimestepSampler()])
def test_tokens_say_how_many_levels_and_for_which_length(sampler):
    found = sampler.sample_for(torch.zeros(3, 126, 128), seeded(2))
    assert torch.equal(found, sampler.sample(3, 126, seeded(2)))
    assert sampler.sample(3, 126, device="meta").device.type == "meta"
    with pytest.raises(ValueError, match=r"three dimensions, \[B, N, C\]; got \[3, 128, 2, 2, 2\]"):
        sampler.sample_for(torch.zeros(3, 128, 2, 2, 2))


def test_a_sampler_of_ones_own_has_to_sample():
    class Nothing(TimestepSampler):
        pass

    with pytest.raises(TypeError, match="sample"):
        Nothing()


@pytest.mark.parametrize(
    "mode, params, said",
    [
        ("logit", {}, "'logit'; expected one of uniform, shifted_logit_normal"),
        ("uniform", {"std": 1.0}, "does not know std"),
        ("uniform", {"min_value": 0.5, "max_value": 0.5}, "min_value < max_value"),
        ("shifted_logit_normal", {"std": 0.0}, "std > 0"),
        ("shifted_logit_normal", {"uniform_prob": 1.5}, "uniform_prob <= 1"),
    ],
)
def test_bad_sampler_settings_are_refused_at_once(mode, params, said):
    with pytest.raises(ValueError, match=said):
        get_timestep_sampler(mode, params)


def test_no_setting_gives_the_default_sampler():
    assert (
        get_timestep_sampler()
        == ShiftedLogitNormalTimestepSampler()
        == get_timestep_sampler("shifted_logit_normal", None)
    )


def test_euler_step_equals_the_recorded_one():
    a, b = recipe((1, 12, 4), 0.1), recipe((1, 12, 4), 0.5)
    sigmas = sigma_schedule(8).tolist()
    assert_checksum(euler_step(a, b, sigmas[3], sigmas[4]), (2.171912, -0.116750, 4.822923), roundings=4)


def test_denoised_equals_the_recorded_one():
    a, b = recipe((1, 12, 4), 0.1), recipe((1, 12, 4), 0.5)
    found = to_denoised(a, b, torch.full((1, 12), 0.5))
    assert_checksum(found, (1.433442, 0.235415, 2.761552), roundings=4)


def test_one_level_may_stand_for_all_tokens():
    a, b = recipe((2, 12, 4), 0.1), recipe((2, 12, 4), 0.5)
    each = to_denoised(a, b, torch.full((2, 12), 0.3))
    assert torch.equal(to_denoised(a, b, 0.3), each) and torch.equal(to_denoised(a, b, torch.tensor(0.3)), each)


def test_last_step_lands_on_the_denoised_tokens_exactly():
    a, b = recipe((1, 12, 4), 0.1), recipe((1, 12, 4), 0.5)
    assert torch.equal(euler_step(a, b, 0.1, 0.0), b)


def test_a_step_from_zero_is_refused():
    with pytest.raises(ValueError, match="above sigma = 0"):
        euler_step(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_are_taken_in_float32(dtype):
    x, v = recipe((1, 12, 4), 0.1), recipe((1, 12, 4), 0.5).to(dtype)
    denoised = to_denoised(x, v, torch.full((1, 12), 0.9))
    assert denoised.dtype == torch.float32 and torch.equal(denoised, x - v.float() * 0.9)


def test_distilled_levels_are_the_published_ones():
    assert DISTILLED_SIGMAS == (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
