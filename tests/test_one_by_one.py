"Every weight on one card: gradients that are released, bfloat16 weights, what the optimizer remembers with the host."

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import Place, configure, make_place, make_trainer, same, told, train, trained

from benchmarks.same_loss import RESULT, table
from ltx_nb.config.files import example_configs, load_config
from ltx_nb.model.latents import ConfigError
from ltx_nb.training.memory import memory_plan
from ltx_nb.training.one_by_one import OneByOne
from ltx_nb.training.optimizers import counted_state
from ltx_nb.training.progress import make_progress
from ltx_nb.training.sharding import check_split
from ltx_nb.training.trainer import LtxvTrainer

N = 2
ROOT = Path(__file__).resolve().parents[1]
FULL = {
    "model__training_mode": "full", "lora": None, "optimization__steps": 2 * N, "checkpoints__interval": N,
    "checkpoints__save_training_state": "full", "checkpoints__precision": "float32", "optimization__learning_rate": 1e-3,
}  # fmt: skip
RELEASED = {"acceleration__release_gradients": True}
HALF = {"acceleration__trained_weights": "bfloat16", "acceleration__mixed_precision_mode": "bf16"}
HOST = {"acceleration__offload_optimizer": True}
KINDS = "adamw", "adamw8bit", "adamw_bf16", "adafactor", "muon"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return make_place(tmp_path_factory.mktemp("one_by_one"))


@pytest.fixture(scope="module")
def plain(place):
    "Four steps as they are usually made, without clipping."
    return train(place, place.folder / "plain", **FULL, optimization__max_grad_norm=0)


def test_released_gradients_make_the_same_run(place, tmp_path, plain):
    trainer, reports = train(place, tmp_path, **FULL, **RELEASED, **HOST, optimization__max_grad_norm=0)
    assert same(trained(trainer), trained(plain[0]))
    for mine, theirs in zip(reports, plain[1], strict=True):
        assert mine.numbers() == pytest.approx(theirs.numbers(), rel=1e-5)  # a length is summed in another order
    assert all(p.grad is None for p in trainer.model.parameters())


def test_each_weight_is_clipped_by_itself_and_that_is_said(place, tmp_path, plain):
    trainer, reports = train(place, tmp_path, **FULL, **RELEASED, optimization__max_grad_norm=1e-3)
    assert "max_grad_norm, 0.001, holds for the gradient of each weight by itself" in told(trainer)
    norms = [[float(report.grad_norm) for report in found] for found in (reports, plain[1])]
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-5) and norms[0][0] > 1e-3  # before it is shortened
    assert not same(trained(trainer), trained(plain[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_bfloat16_goes_on_as_if_nothing_had_been(place, tmp_path, kind):
    more = FULL | RELEASED | HALF | {"optimization__optimizer_type": kind, "optimization__ema_decay": 0.6}
    trainer, reports = train(place, tmp_path / "whole", **more)
    assert {p.dtype for p in trained(trainer).values()} == {torch.bfloat16}
    assert {w.dtype for w in trainer.run.weights.average.weights.values()} == {torch.float32}
    resumed = make_trainer(place, tmp_path / "resumed", **more, model__load_checkpoint=reports[N - 1].checkpoint)
    later = list(resumed.steps())
    assert [r.numbers() for r in later] == [r.numbers() for r in reports[N:]]
    assert same(trained(resumed), trained(trainer))
    averages = [each.run.weights.average.weights for each in (trainer, resumed)]
    assert same(*averages)


def test_what_stays_in_memory_is_what_was_foretold(place, tmp_path):
    for kind in ("adamw8bit", "adafactor"):
        more = FULL | RELEASED | HALF | {"optimization__optimizer_type": kind, "optimization__steps": 1}
        trainer, _ = train(place, tmp_path / kind, **more)
        plans = [memory_plan(configure(place, tmp_path, **more | where)) for where in ({}, HOST)]
        assert plans[0].weights == sum(p.nbytes for p in trainer.model.parameters())
        assert plans[0].trained - plans[1].trained == counted_state(trainer.run.weights.optimizer)
        usual = memory_plan(configure(place, tmp_path, **FULL))
        assert plans[1].weights == usual.weights // 2 and plans[1].trained < usual.trained / 5


def test_a_step_that_fails_half_way_is_not_saved(place, tmp_path, monkeypatch):
    trainer, moved, move = make_trainer(place, tmp_path, **FULL, **RELEASED).load(), [], OneByOne.move

    def breaks(self, p, share=1.0):
        moved.append(p)
        if len(moved) > 300:  # of more than that in a step
            raise RuntimeError("the card is gone")
        move(self, p, share)

    steps = trainer.steps()
    next(steps)
    moved.clear()
    monkeypatch.setattr(OneByOne, "move", breaks)
    with pytest.raises(RuntimeError, match="the card is gone"):
        next(steps)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_an_adapter_whose_optimizer_waits_with_the_host_makes_the_same_run(place, tmp_path):
    runs = [train(place, tmp_path / str(n), **more)[0] for n, more in enumerate(({}, HOST))]
    assert isinstance(runs[1].run.weights.optimizer.optimizer, OneByOne) and same(*map(trained, runs))


REFUSED = {
    "adapters": ({"acceleration.trained_weights": "bfloat16"}, "adapters are few and always float32"),
    "sums": (
        {"optimization.gradient_accumulation_steps": 2, "acceleration.release_gradients": True},
        "gradient_accumulation_steps: given 2, but acceleration.release_gradients forgets each gradient",
    ),
    "float16": (
        {"acceleration.mixed_precision_mode": "fp16", "acceleration.release_gradients": True}, "float16 looks at all gradients"
    ),
    "precision": ({"acceleration.trained_weights": "bfloat16"}, "mixed_precision_mode is no; set that to bf16"),
    "prodigy": (
        {"optimization.optimizer_type": "prodigy", "optimization.learning_rate": 1.0, "acceleration.offload_optimizer": True},
        "prodigy', which moves all weights together",
    ),
}  # fmt: skip


@pytest.mark.parametrize("given, said", REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_said_before_anything_is_loaded(given, said):
    whole = {} if "few" in said else {"model.training_mode": "full", "lora": None}
    with pytest.raises(ConfigError, match=said):
        load_config("tiny_t2v_lora", whole | given, check_files=False)


@pytest.mark.parametrize("change", [HALF, RELEASED, HOST], ids=["bfloat16", "released", "host"])
def test_a_model_that_is_split_has_room_and_is_refused(place, tmp_path, change):
    with pytest.raises(ConfigError, match="which is for a whole model on one GPU: leave it out"):
        check_split(configure(place, tmp_path, **FULL, **change))


PRESETS = [name for name in example_configs() if "_full_" in name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_every_weight_of_the_tiny_model(place, tmp_path, name):
    config = load_config(name, {
        "model.model_path": str(place.model), "model.text_encoder_path": None, "output_dir": str(tmp_path),
        "data.preprocessed_data_root": str(place.data), "optimization.steps": 2, "validation.interval": None,
        "data.num_dataloader_workers": 0, "optimization.warmup_steps": 0,
    })  # fmt: skip
    before = make_trainer(place, tmp_path / "other", **FULL).load()
    trainer = LtxvTrainer(config, make_progress("none"), "cpu")
    assert trainer.train().steps == 2
    moved = [not torch.equal(p.float(), before.model.get_parameter(n)) for n, p in trainer.model.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


def test_the_chapter_shows_that_all_ways_learn_the_same():
    (chapter,) = (ROOT / "nbs" / "6_training").glob("*_one_by_one.ipynb")
    result, text = json.loads(RESULT.read_text(encoding="utf-8")), chapter.read_text(encoding="utf-8")
    assert all(row in text for row in table(result).splitlines()), "python -m benchmarks.same_loss --table"
    for way, row in result["ways"].items():
        assert way == "plain" or abs(row["from_plain"]) < 2 * row["error"], way
        assert row["mean"] + 2 * row["spread"] < result["before"]  # and they do learn


def test_there_is_a_preset_for_two_cards():
    assert PRESETS == ["t2v_full_48gb", "t2v_full_80gb"]
