"The recipe of the tiny checkpoint: resumable, and clear about what it was asked."

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ltx_nb.flow.sampling import Guidance
from ltx_nb.training.progress import make_progress
from ltx_nb.tiny.checkpoint import tensor_hash
from ltx_nb.tiny.codecs import start_video_vae
from ltx_nb.tiny.fitting import Muon, Stage, fit, load_state, orthogonalize, save_state, set_by_least_squares, unit_gain
from ltx_nb.tiny.lesson import write_lesson
from ltx_nb.tiny.recipe import STAGES, Recipe, thin, train_tiny
from ltx_nb.training.validation import generate

STAGE = Stage("net", steps=30, rate=0.02, batch=8)
# What these bars are measured on differs by less than 1e-5 between kernels (AVX2 and none); each says what was found, and
# what a fault would give.
LEARNED = 0.1  # of the first loss after 200 steps: 0.0015; of weights that do not move, 1
SINGULAR = (
    0.6,
    1.2,
)  # where six rounds of the polynomial leave singular values: 0.68 to 1.13; untouched, 0.05 to 6 and more
STEP = 0.6, 1.1  # root mean square of a step, of 0.2 of the rate: 0.81 to 0.90; without the root of the size, below 0.4
EXACT = 1e-5  # of numbers up to 8.6, sums of five products: 5e-7 found, 10 roundings of 8.6; of the wrong tap, 9.5


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))
    unit_gain(net)
    return net


def run(folder, limit=None, stage=STAGE, fail_at=None):
    "Train a small network; its weights and its log."
    net = network()

    def loss_at(step):
        if step == fail_at:
            raise RuntimeError("the power went out")
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return {"error": (net(x) - x.sum(1, keepdim=True)).square().mean()}

    with make_progress("none") as progress:
        log = fit(stage, {"net": net}, loss_at, folder, progress, save_every=0.0, limit=limit)
    return torch.cat([p.detach().flatten() for p in net.parameters()]), log


@pytest.mark.parametrize("limits", [[1], [10, 10], [29]])
def test_a_run_in_pieces_ends_like_one_in_one_go(tmp_path, limits):
    whole, log = run(tmp_path / "whole")
    for limit in limits:
        run(tmp_path / "parts", limit)
    parts, again = run(tmp_path / "parts")
    assert torch.equal(whole, parts)
    assert [entry["error"] for entry in again] == [entry["error"] for entry in log]


def test_a_run_that_broke_off_goes_on_from_what_was_saved(tmp_path):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path / "parts", fail_at=17)
    assert torch.equal(run(tmp_path / "parts")[0], whole)


def test_milestones_are_kept_once_with_the_averaged_weights(tmp_path):
    net, looks = network(), []

    def look():
        looks.append(net[0].weight.detach().clone())
        return torch.zeros(3, 2, 2)

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    ask = lambda step: {"error": (net(x) - x.sum(1, keepdim=True)).square().mean()}
    for limit in (10, None, None):
        with make_progress("none") as progress:
            fit(STAGE, {"net": net}, ask, tmp_path, progress, limit=limit, look=look)
    assert sorted(path.name for path in (tmp_path / "growth").iterdir()) == ["net_00000.png", "net_00030.png"]
    assert len(looks) == 2 and torch.equal(looks[-1], net[0].weight)


def test_a_finished_stage_is_not_trained_again(tmp_path):
    whole, log = run(tmp_path)
    again, same = run(tmp_path, fail_at=0)
    assert torch.equal(whole, again) and len(same) == len(log) == STAGE.steps


def test_the_loss_falls(tmp_path):
    _, log = run(tmp_path, stage=replace(STAGE, steps=200))
    assert log[-1]["error"] < LEARNED * log[0]["error"]


def test_a_state_of_other_settings_is_refused_with_both_values(tmp_path):
    run(tmp_path, 3)
    with pytest.raises(ValueError, match=r"net.safetensors was begun with rate 0.02 \(now 0.5\).*another folder"):
        run(tmp_path, stage=replace(STAGE, rate=0.5))


def test_a_foreign_file_is_no_state(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="is no state of a recipe"):
        run(tmp_path)


def test_a_state_survives_the_disk(tmp_path):
    tree = {"step": 3, "list": [1, None, "x"], "tensor": torch.arange(4.0)}
    save_state(tmp_path / "s.safetensors", STAGE, tree)
    found = load_state(tmp_path / "s.safetensors")
    assert found["list"] == tree["list"] and torch.equal(found["tensor"], tree["tensor"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 64), (2, 64, 8)])
def test_orthogonal_steps_have_singular_values_near_one(shape):
    values = torch.linalg.svdvals(
        orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), rounds=6)
    )
    assert SINGULAR[0] < values.min() and values.max() < SINGULAR[1]


@pytest.mark.parametrize("shape", [(6, 5), (130, 4), (8, 3, 3, 3), (4, 8, 5)])
def test_muon_steps_have_the_size_of_the_rate(shape):
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.1).step()
    assert STEP[0] < weight.detach().square().mean().sqrt() / (0.1 * 0.2) < STEP[1]


def test_least_squares_finds_the_middle_tap():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 3, 6, 6, generator=generator)
    mix, bias = torch.randn(2, 5, generator=generator), torch.randn(2, generator=generator)
    target = torch.einsum("kc,bcfhw->bkfhw", mix, x) + bias[:, None, None, None]
    conv = nn.Conv3d(5, 2, 3, padding=1)
    assert set_by_least_squares(conv, x, target, tap=1, ridge=1e-9) > 0.999
    assert torch.allclose(conv(x), target, rtol=0, atol=EXACT)


def test_an_unknown_stage_is_refused_before_anything_is_written(tmp_path):
    with (
        pytest.raises(ValueError, match="no stage decoder; there are " + ", ".join(STAGES)),
        make_progress("none") as progress,
    ):
        train_tiny(tmp_path / "recipe", progress, ["decoder"])
    assert not (tmp_path / "recipe").exists()


def test_the_whole_recipe_in_small_makes_a_checkpoint_that_loads_and_is_not_made_twice(tmp_path):
    small = {name: replace(stage, steps=1, batch=2, tests=4) for name, stage in STAGES.items()}
    recipe = Recipe(small, start=11, wide=4, base=4)

    def make():
        with make_progress("none") as progress:
            return train_tiny(tmp_path, progress, recipe=recipe)

    made = make()
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert record["sha256"] == tensor_hash(made.model) and set(record["curves"]) == set(STAGES)
    clip = generate(
        "the red ball rising by day",
        made.model,
        made.text_encoder,
        width=64,
        height=64,
        frames=17,
        fps=12,
        steps=2,
        guidance=Guidance.off(),
    )
    assert clip.frames.shape == (17, 3, 64, 64) and torch.isfinite(clip.sound).all()
    kinds = {path.name.rsplit("_", 1)[0] for path in (tmp_path / "growth").iterdir()}
    assert kinds == set(STAGES)
    first = tensor_hash(made.model)
    assert tensor_hash(make().model) == first


def test_too_few_clips_for_the_start_in_closed_form():
    with pytest.raises(ValueError, match="give 11 clips or more"):
        start_video_vae({}, clips=4)


@pytest.mark.parametrize("concept", ["red", "mauve"])
def test_a_lesson_teaches_only_what_the_base_does_not_know(tmp_path, concept):
    with pytest.raises(ValueError, match="orange or pink"):
        write_lesson(tmp_path / "clips", concept)
    assert not (tmp_path / "clips").exists()


def test_a_thinned_curve_keeps_its_ends_and_means():
    log = [{"step": i + 1, "loss": float(i)} for i in range(1000)]
    kept = thin(log, points=100)
    assert len(kept) == 100 and kept[-1]["step"] == 1000
    assert kept[0]["loss"] == 4.5
