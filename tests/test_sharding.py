"One model split over processes: the same run as with a copy in each, with the rows of this process in memory."

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_processes import COUNT, HALF, OPTIONS, SAMPLES, STEPS, by_hand, ran, without
from tiny_runs import configure, make_place, make_trainer, one_thread

from ltx_nb.training.checkpoints import load_training_state
from ltx_nb.model.latents import ConfigError
from ltx_nb.loading.lora import read_lora
from ltx_nb.training.sharding import check_split
from ltx_nb.training.weights import trained_parameters

SPLIT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
FULL = {name: value for name, value in OPTIONS.items() if not name.startswith("lora")} | {
    "model__training_mode": "full"
}
EXACT = FULL | {"checkpoints__save_training_state": "full", "optimization__enable_gradient_checkpointing": True}
SHORT = {"optimization__steps": 1, "validation__samples": [], "acceleration__mixed_precision_mode": "bf16"}
EIGHT_BIT = {"optimization__optimizer_type": "adamw8bit"}
RUNS = {
    "lora": OPTIONS, "full": EXACT, "resumed": EXACT | {"resume": "full", "validation__samples": []},
    "lora_bf16": OPTIONS | SHORT, "full_bf16": EXACT | SHORT | EIGHT_BIT,
}  # fmt: skip
OWN = "noise", "weights", "average", "numbers", "frozen"  # what each process has of its own


@pytest.fixture(scope="module", autouse=True)
def as_launched():
    "One thread, as in the processes that are launched here: bytes are compared."
    with one_thread():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("sharding")).with_data("more", 2 * COUNT + 1)


@pytest.fixture(scope="module")
def runs(place, tmp_path_factory):
    return ran(place, tmp_path_factory.mktemp("runs"), RUNS, **SPLIT)


@pytest.fixture(scope="module")
def hand(place, tmp_path_factory):
    "The same steps with a whole model in one process."
    output = tmp_path_factory.mktemp("hand")
    return {name: by_hand(place, output / name, **RUNS[name]) for name in ("lora", "full")}


def numbers(trainer) -> int:
    return sum(p.numel() for p in trained_parameters(trainer.model).values())


def test_all_processes_say_the_same(runs):
    for first, second in runs.values():
        assert without(first, *OWN) == without(second, *OWN)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_w41_losses_and_lengths_of_gradients_are_those_of_a_whole_model(runs, hand, mode):
    _, losses, norms, _ = hand[mode]
    # float32 sums in another order: 1e-7, more in the length of millions of squares. A length of one process's rows only (W41)
    # is off by a third, the gradient of one clip by half.
    assert runs[mode][0]["losses"] == pytest.approx(losses, rel=1e-5)
    assert runs[mode][0]["norms"] == pytest.approx(norms, rel=1e-4)


def test_w42_each_process_reads_and_holds_its_own_rows_only(runs, hand):
    whole = numbers(hand["full"][0])
    held = [report["numbers"] for report in runs["full"]]
    assert sum(held) == whole and max(held) < 0.51 * whole


def test_w40_adapters_are_whole_and_what_is_frozen_is_split_in_its_own_dtype(runs, hand):
    trainer = hand["lora"][0]
    frozen = sum(p.numel() for p in trainer.model.parameters()) - numbers(trainer)
    for name in ("lora", "lora_bf16"):
        assert [report["numbers"] for report in runs[name]] == [numbers(trainer)] * COUNT
        assert sum(report["frozen"] for report in runs[name]) == frozen
    assert runs["lora_bf16"][0]["dtypes"] == ["torch.bfloat16"] and runs["lora"][0]["dtypes"] == ["torch.float32"]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_bf16_is_as_near_as_its_rounding(runs, mode):
    exact, rounded = runs[mode][0], runs[f"{mode}_bf16"][0]
    # bfloat16 rounds at 2**-9 = 2e-3, in some dozen layers one after the other, and a loss is a mean of thousands of numbers
    assert rounded["losses"][0] == pytest.approx(exact["losses"][0], rel=5e-3)
    assert rounded["losses"][0] != exact["losses"][0]
    assert rounded["norms"][0] == pytest.approx(exact["norms"][0], rel=2e-2)


def test_a_saved_lora_is_that_of_a_whole_model(runs, hand):
    trainer, *_, average = hand["lora"]
    for name, (A, B) in read_lora(runs["lora"][0]["checkpoint"])[0].items():
        # moves of 3e-3; where a gradient is a rounding away from zero, Adam's move is chance, but small beside the weight
        scale = trainer.model.get_submodule(name).scaling["default"]
        torch.testing.assert_close(A, average[f"{name}.lora_A.default.weight"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(B, average[f"{name}.lora_B.default.weight"] * scale, rtol=1e-3, atol=1e-6)


def test_the_saved_model_is_that_of_a_whole_model(runs, hand):
    *_, average = hand["full"]
    saved = load_file(runs["full"][0]["checkpoint"])
    assert len(saved) == len(average)
    off = [(saved[f"model.diffusion_model.{name}"] - weight).abs().max().item() for name, weight in average.items()]
    moved = hand["full"][0].config.optimization.learning_rate
    assert max(off) < 0.05 * moved  # Adam's first steps have the size of the rate, whatever the gradient's


def test_a_resumed_run_is_the_uninterrupted_one(runs):
    for whole, resumed in zip(runs["full"], runs["resumed"], strict=True):
        assert resumed["losses"] == whole["losses"][HALF:] and resumed["norms"] == whole["norms"][HALF:]
        assert all(resumed[name] == whole[name] for name in ("weights", "average", "held_out"))


def test_one_process_goes_on_from_what_several_saved(place, runs, tmp_path):
    half = next(Path(runs["full"][0]["checkpoint"]).parent.glob(f"model_weights_*{HALF:05d}.safetensors"))
    trainer = make_trainer(place, tmp_path, **EXACT, model__load_checkpoint=half).load()
    assert trainer.state.step == HALF and len(trainer.run.weights.optimizer.state_dict()["state"]) == len(
        trainer.run.weights.parameters
    )
    report = next(trainer.steps())
    assert report.step == HALF + 1 and report.losses["loss"] < runs["full"][0]["losses"][0]


def test_an_eight_bit_optimizer_moves_rows_and_its_state_is_left_out(runs):
    state = load_training_state(runs["full_bf16"][0]["checkpoint"])
    assert state.step == 1 and state.optimizer is None
    before = load_training_state(runs["full"][0]["checkpoint"])
    assert before.optimizer and {n: w.shape for n, w in state.master_weights.items()} == {
        n: w.shape for n, w in before.master_weights.items()
    }


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_samples_and_held_out_losses_are_those_of_the_saved_file(place, runs, tmp_path, mode):
    report = runs[mode][0]
    paths = [Path(path) for path in report["samples"]]
    assert [path.stem.rsplit("_", 1)[1] for path in paths] == [str(n + 1) for n in range(SAMPLES)]
    alone = make_trainer(
        place, tmp_path, **RUNS[mode], model__load_checkpoint=report["checkpoint"], checkpoints__no_resume=True
    )
    alone.load().state.step = STEPS
    assert [path.read_bytes() for path in alone.validate()] == [path.read_bytes() for path in paths]
    # one process and a whole model, against rows that were gathered: the same sums, 1e-6; another step of the run: 1e-2
    assert alone.measure() == pytest.approx(report["held_out"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "environment", "words"),
    [
        ({"acceleration__quantization": "int8"}, {}, "quantized weights are not split.*accelerate ddp"),
        (
            {"model__training_mode": "full", "acceleration__mixed_precision_mode": "fp16"},
            {},
            "mixed_precision_mode is fp16.*use bf16",
        ),
        ({}, {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is true"),
        ({}, {"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}, "fsdp_sharding_strategy is HYBRID_SHARD.*FULL_SHARD"),
    ],
)
def test_what_does_not_go_with_a_split_model_is_refused(place, tmp_path, monkeypatch, changes, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        check_split(configure(place, tmp_path, **changes))
