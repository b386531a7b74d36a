"Several processes: one model, the same everywhere, and the same as one process would make it by hand."

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from tiny_processes import COUNT, HALF, OPTIONS, SAMPLES, STEPS, by_hand, launched, ran, without
from tiny_runs import make_place, make_trainer, one_thread

from ltx_nb.loading.lora import read_lora
from ltx_nb.training.processes import check_distribution

RUNS = {"whole": OPTIONS, "resumed": OPTIONS | {"resume": "whole"}, "stopped": OPTIONS | {"stop_after": 1}}
RUNS |= {"died": OPTIONS | {"dies_in": HALF + 1, "checkpoints__interval": None}, "again": OPTIONS | {"resume": "died"}}
SHORT = {"optimization__steps": 2, "checkpoints__interval": None, "validation__samples": [], "data__held_out": 0}
OTHERS = {
    kind: OPTIONS | SHORT | {"optimization__optimizer_type": kind} for kind in ("adafactor", "muon", "adamw_bf16")
}
OTHERS["prodigy"] = OPTIONS | SHORT | {"optimization__optimizer_type": "prodigy", "optimization__learning_rate": 1.0}
OTHERS["schedulefree"] = OPTIONS | SHORT | {
    "optimization__optimizer_type": "schedulefree", "optimization__scheduler_type": "constant", "optimization__ema_decay": None,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def as_launched():
    "One thread, as in the processes that are launched here: bytes are compared."
    with one_thread():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("processes")).with_data("more", 2 * COUNT + 1)


@pytest.fixture(scope="module")
def runs(place, tmp_path_factory):
    "What each of two processes says of a whole run, of its second half again, and of one that was stopped."
    return ran(place, tmp_path_factory.mktemp("runs"), RUNS | OTHERS)


def test_all_processes_hold_the_same_weights_and_say_the_same(runs):
    for first, second in runs.values():
        assert without(first, "noise", "error") == without(second, "noise", "error")


def test_every_optimizer_moves_the_weights_of_both_alike(runs):
    ends = {kind: {said["weights"] for said in runs[kind]} for kind in OTHERS}
    assert all(len(found) == 1 for found in ends.values()), ends
    assert len(set.union(*ends.values())) == len(OTHERS)  # each in its own way


def test_processes_draw_different_noise(runs):
    assert all(first["noise"] != second["noise"] for first, second in runs.values())


def test_two_processes_make_the_step_that_one_makes_of_both_batches(place, runs, tmp_path):
    trainer, losses, norms, average = by_hand(place, tmp_path, **OPTIONS)
    # Half the sum of two gradients, or the sum of two halves: float32 rounds at 6e-8, and four steps add it up. The gradient of
    # one clip only, or the sum of both, is off by half and more.
    for name, numbers in (("losses", losses), ("norms", norms)):
        assert runs["whole"][0][name] == pytest.approx(numbers, rel=1e-5)
    saved = read_lora(runs["whole"][0]["checkpoint"])[0]
    for name, (A, B) in saved.items():
        # moves of 3e-3; where a gradient is a rounding away from zero, Adam's move is chance, but small beside the weight
        scale = trainer.model.get_submodule(name).scaling["default"]
        torch.testing.assert_close(A, average[f"{name}.lora_A.default.weight"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(B, average[f"{name}.lora_B.default.weight"] * scale, rtol=1e-3, atol=1e-6)


def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one(runs):
    whole, resumed = runs["whole"][0], runs["resumed"][0]
    assert (
        all(resumed[name] == whole[name] for name in ("weights", "average"))
        and resumed["losses"] == whole["losses"][HALF:]
    )


def test_samples_are_dealt_out_and_are_those_that_one_process_makes(place, runs, tmp_path):
    paths = [Path(path) for path in runs["whole"][0]["samples"]]
    assert [path.stem.rsplit("_", 1)[1] for path in paths] == [str(n + 1) for n in range(SAMPLES)]
    alone = make_trainer(
        place, tmp_path, **OPTIONS, model__load_checkpoint=runs["whole"][0]["checkpoint"], checkpoints__no_resume=True
    )
    alone.load().state.step = STEPS
    assert [path.read_bytes() for path in alone.validate()] == [path.read_bytes() for path in paths]


def test_a_signal_to_one_process_stops_all_of_them_after_the_same_step(runs):
    assert {run["steps"] for run in runs["stopped"]} <= {1, 2} and len({run["steps"] for run in runs["stopped"]}) == 1
    assert all(run["stopped"] == "SIGTERM" and Path(run["checkpoint"]).exists() for run in runs["stopped"])


def test_the_command_speaks_once(place, tmp_path):
    settings = {
        "model.model_path": place.model, "model.text_encoder_path": place.text_encoder, "data.preprocessed_data_root": place.data,
        "output_dir": tmp_path, "optimization.steps": 1, "validation.interval": "null", "checkpoints.interval": "null",
        "lora.target_modules": '["attn1.to_q"]',
    }  # fmt: skip
    changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = launched("-m", "ltx_nb", "train", "tiny_t2v_lora", *changes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("1 steps done") == 1 and len(list((tmp_path / "checkpoints").glob("lora_*"))) == 1


def test_other_ways_of_using_several_gpus_are_refused():
    with pytest.raises(NotImplementedError, match="DEEPSPEED; this library knows.*accelerate ddp.*fsdp"):
        check_distribution(SimpleNamespace(distributed_type=DistributedType.DEEPSPEED))


def test_where_one_process_fails_all_of_them_save_end_and_go_on_to_the_same_bits(runs):
    died, again, whole = runs["died"], runs["again"], runs["whole"]
    assert [run["error"] for run in died] == [
        "OtherProcessFailed: process 1 of 2 failed: ValueError: out of luck", "ValueError: out of luck",
    ]  # fmt: skip
    assert all(run["steps"] == HALF and Path(run["checkpoint"]).exists() for run in died)
    for name in "weights", "average":
        assert [run[name] for run in again] == [run[name] for run in whole]
    assert again[0]["losses"] == whole[0]["losses"][HALF:]
