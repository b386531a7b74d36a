"What a run is said to need of a device, against what it takes."

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretend_runs import REAL
from test_pretend_gpu import run
from tiny_runs import configure, make_place, make_trainer

from benchmarks.real_size import read_lines, tables
from ltx_nb.data.batches import collate
from ltx_nb.training.memory import largest_batch, memory_plan, step_bytes, step_course

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
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
    moments = sum(
        t.nbytes
        for state in trainer.run.weights.optimizer.state.values()
        for t in state.values()
        if torch.is_tensor(t) and t.ndim
    )
    average = (
        sum(weight.nbytes for weight in trainer.run.weights.average.weights.values())
        if trainer.run.weights.average
        else 0
    )
    used = [p for p in trainer.run.weights.parameters.values() if p in trainer.run.weights.optimizer.state]
    assert plan.weights == weights
    assert plan.trained >= sum(p.nbytes for p in used) + moments + average
    if len(used) == len(trainer.run.weights.parameters):
        assert plan.trained == sum(p.nbytes for p in used) + moments + average


@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("changes", [*MODES.values(), *ROUNDED.values()], ids=[*MODES, *ROUNDED])
def test_what_a_step_takes_is_what_was_foreseen(place, tmp_path, changes, again):
    trainer = make_trainer(place, tmp_path, **changes, optimization__enable_gradient_checkpointing=again).load()
    batch = collate([trainer.dataset[0]] * trainer.config.optimization.batch_size)
    inputs = trainer.strategy.prepare_training_inputs(
        batch, trainer.run.data.timesteps, torch.Generator().manual_seed(0)
    )
    with trainer.runtime.precision.autocast(trainer.runtime.device):
        _, most = step_course(trainer.model, inputs)
    foreseen = step_bytes(trainer.config, largest_batch(trainer.config))
    assert foreseen == pytest.approx(most, rel=0.01)  # bytes; autocast casts a little beside


def test_gradients_of_several_clips_are_there_from_the_second_on(place, tmp_path):
    plan = lambda **changes: memory_plan(configure(place, tmp_path, **changes, **MODES["full"]))
    once, twice = plan(), plan(optimization__gradient_accumulation_steps=2)
    assert once.total < twice.total < once.total + once.trained // 3  # a third of them is gradients


def test_checkpointing_quantization_and_fewer_bits_save_what_they_promise(place, tmp_path):
    plan = lambda **changes: memory_plan(configure(place, tmp_path, **changes))
    usual = plan(**BF16)
    assert plan(**BF16, acceleration__quantization="int8").weights < usual.weights
    assert plan(optimization__enable_gradient_checkpointing=True).activations < plan().activations
    whole = {"model__training_mode": "full"}
    eight = plan(**whole, optimization__optimizer_type="adamw8bit").trained / plan(**whole).trained
    assert 0.5 < eight < 0.53  # a scale for 256 numbers makes 0.503; matrices below 4,096 numbers keep float32
    assert plan(optimization__optimizer_type="adamw8bit").trained == plan().trained  # such as these adapters'
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
    assert (
        plan.activations is None and "and what a step keeps" in str(plan) and plan.total == plan.weights + plan.trained
    )
    assert f"{memory_plan(configure(place, tmp_path)).tokens['audio']} of audio tokens" in str(
        memory_plan(configure(place, tmp_path))
    )


def test_what_real_models_take_is_what_was_foretold():
    "Two blocks of LTX-2.3 at their real size, Gemma's width, the real autoencoders: a clip of 960x544x121, counted hollow."
    command = [sys.executable, "-m", "benchmarks.real_size", "t2v_lora", "--layers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    phases = json.loads(done.stdout.splitlines()[-1])["phases"]
    off = {name: facts["off_percent"] for name, facts in phases.items() if "off_percent" in facts}
    assert {"Captions", "Pictures", "Sound", "Previews", "step", "Denoising", "Decoding"} < off.keys()
    assert all(abs(percent) < 2 for percent in off.values()), off
    assert phases["step"]["waits"] == 0 and phases["step"]["kernels"] < 2100


def test_what_real_steps_take_is_what_was_foretold(tmp_path):
    "The other forms of a step, at two blocks of their real size; the fourth step, so that what is left behind shows."
    found = run("real", tmp_path)
    assert found.keys() == REAL.keys()
    for name, facts in found.items():
        assert abs(facts["off_percent"]) < 2 and facts["waits"] == 0, (name, facts)


def test_what_was_counted_at_real_size_is_what_was_foretold():
    lines = [json.loads(line) for line in (RESULTS / "real_size.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["version"] for line in lines} == {"2", "2.3"}
    for line in lines:
        assert line["phases"]["step"]["waits"] == 0 or line["program"] != "ltx_nb"
        off = {name: facts["off_percent"] for name, facts in line["phases"].items() if "off_percent" in facts}
        if line["config"] == "t2v_lora_t4":  # the plan has autoencoders in float32, as a card without bfloat16 needs
            assert 10 < off.pop("Decoding") < 20  # and the pretended card has it: 11.3 GB there, 13.2 on a T4
        assert all(abs(percent) < 2 for percent in off.values()), (line["command"], off)


def test_the_chapter_shows_what_was_counted():
    (chapter,) = (path.read_text(encoding="utf-8") for path in (ROOT / "nbs" / "6_training").glob("*_memory.ipynb"))
    lines = [line for line in read_lines() if line["config"] == "t2v_lora" and line["size"] == "960x544x121"]
    rows = "\n".join(tables(lines)).splitlines()
    missing = [row for row in rows if row and row not in chapter]
    assert len(rows) > 30 and not missing, ("python -m benchmarks.real_size --table", missing)
