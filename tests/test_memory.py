"What a run is said to need of a device, against what it takes."

import pytest
import torch
from tiny_runs import configure, make_place, make_trainer

from ltx_nb.data.store import collate
from ltx_nb.memory import activation_bytes, kept_bytes, largest_batch, memory_plan

BF16 = {"acceleration__mixed_precision_mode": "bf16"}
MODES = {
    "lora": {}, "full": {"model__training_mode": "full"}, "average": {"optimization__ema_decay": 0.9},
    "two clips": {"optimization__batch_size": 2},
    "sound only": {"training_strategy__video": None, "lora__target_modules": ["audio_attn1.to_q"]},
    "listening": {"training_strategy__video__is_generated": False},
}  # fmt: skip
ROUNDED = {"lora, bf16": BF16, "full, bf16": MODES["full"] | BF16}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("memory"))


@pytest.mark.parametrize("changes", MODES.values(), ids=MODES)
def test_what_a_run_holds_is_what_was_foreseen(place, tmp_path, changes):
    trainer = make_trainer(place, tmp_path, **changes)
    plan = memory_plan(trainer.config)
    next(trainer.load().steps())
    weights = sum(p.nbytes for p in trainer.model.parameters())
    moments = sum(t.nbytes for state in trainer.optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.ndim)
    average = sum(weight.nbytes for weight in trainer.average.weights.values()) if trainer.average else 0
    used = [p for p in trainer.parameters.values() if p in trainer.optimizer.state]
    assert plan.weights == weights
    assert plan.trained >= sum(p.nbytes for p in used) + moments + average
    if len(used) == len(trainer.parameters):
        assert plan.trained == sum(p.nbytes for p in used) + moments + average


@pytest.mark.parametrize("changes", [*MODES.values(), *ROUNDED.values()], ids=[*MODES, *ROUNDED])
def test_what_a_step_keeps_is_what_was_foreseen(place, tmp_path, changes):
    trainer = make_trainer(place, tmp_path, **changes).load()
    batch = collate([trainer.dataset[0]] * trainer.config.optimization.batch_size)
    inputs = trainer.strategy.prepare_training_inputs(batch, trainer.timesteps, torch.Generator().manual_seed(0))
    with trainer.precision.autocast(trainer.device):
        kept = kept_bytes(trainer.model, inputs)
    assert activation_bytes(trainer.config, largest_batch(trainer.config)) == pytest.approx(kept, rel=0.03)


def test_checkpointing_quantization_and_fewer_bits_save_what_they_promise(place, tmp_path):
    plan = lambda **changes: memory_plan(configure(place, tmp_path, **changes))
    usual = plan(**BF16)
    assert plan(**BF16, acceleration__quantization="int8").weights < usual.weights
    assert plan(optimization__enable_gradient_checkpointing=True).activations < plan().activations
    assert plan(optimization__optimizer_type="adamw8bit").trained == plan().trained // 2
    assert usual.weights < plan().weights and usual.activations < plan().activations


def test_a_model_that_is_split_is_shared_and_adapters_are_not(place, tmp_path):
    config, full = configure(place, tmp_path), configure(place, tmp_path, model__training_mode="full")
    one, two, many = (memory_plan(full, processes).trained for processes in (1, 2, 1000))
    assert two == one // 2 and many < one // 900
    assert memory_plan(config, 2).trained == memory_plan(config).trained


def test_without_a_dataset_the_rest_is_said(place, tmp_path):
    nowhere = configure(place, tmp_path)
    nowhere.data.preprocessed_data_root = str(tmp_path / "nowhere")
    plan = memory_plan(nowhere)
    assert plan.activations is None and "and what a step keeps" in str(plan) and plan.total == plan.weights + plan.trained
    assert f"{memory_plan(configure(place, tmp_path)).tokens['audio']} of audio tokens" in str(memory_plan(configure(place, tmp_path)))
