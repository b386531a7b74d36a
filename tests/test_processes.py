"Several processes: one model, the same everywhere, and the same as one process would make it by hand."

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from tiny_runs import make_place, make_trainer

from ltx_nb.data.store import BucketedSampler, collate
from ltx_nb.lora import read_lora
from ltx_nb.optimizer import WeightAverage, make_optimizer, set_rates
from ltx_nb.processes import check_distribution
from ltx_nb.training import sample_losses, trained_parameters

COUNT, STEPS, SAMPLES, DECAY = 2, 4, 3, 0.6
OPTIONS = {
    "optimization__steps": STEPS, "checkpoints__interval": STEPS // 2, "checkpoints__precision": "float32", "lora__dropout": 0.0,
    "validation__interval": STEPS, "validation__skip_initial_validation": True,
    "validation__samples": [{"prompt": f"bird {n}", "seed": n} for n in range(SAMPLES)], "data__held_out": 1,
    "optimization__ema_decay": DECAY,
}  # fmt: skip
SCRIPT = """
import json, os, signal
from pathlib import Path
from tiny_runs import Place, make_trainer
from ltx_nb.training import trained_parameters
import hashlib, torch

place, folder, options = Place(*map(Path, {place!r})), Path({folder!r}), {options!r}

def report(name, output, stop_after=None, **more):
    trainer = make_trainer(place, folder / output, **options | more)
    losses = []
    for step in trainer.steps():
        losses.append(float(step.losses["loss"]))
        if step.step == stop_after and trainer.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
    digest = lambda tensors: hashlib.sha256(torch.cat([t.detach().flatten() for t in tensors]).numpy().tobytes()).hexdigest()
    said = {{
        "losses": losses, "weights": digest(trained_parameters(trainer.model).values()), "checkpoint": str(trainer.checkpoint),
        "average": digest(trainer.average.weights.values()),
        "samples": [str(path) for path in trainer.samples], "stopped": trainer.stopped, "steps": trainer.step,
        "noise": float(torch.rand(1, generator=trainer.generator)),
    }}
    (folder / f"{{name}}_{{trainer.processes.rank}}.json").write_text(json.dumps(said))

report("whole", "whole")
report("resumed", "resumed", model__load_checkpoint=str(next((folder / "whole" / "checkpoints").glob("*{half:05d}.safetensors"))))
report("stopped", "stopped", stop_after=1)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("processes")).with_data("more", 2 * COUNT + 1)


def launched(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={COUNT}", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(__file__)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def runs(place, tmp_path_factory):
    "What each of two processes says of a whole run, of its second half again, and of one that was stopped."
    folder = tmp_path_factory.mktemp("runs")
    paths = [str(getattr(place, f.name)) for f in fields(place)]
    script = folder / "script.py"
    script.write_text(SCRIPT.format(place=paths, folder=str(folder), options=OPTIONS, half=STEPS // 2))
    done = launched(script)
    assert done.returncode == 0, done.stderr
    return {
        name: [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in range(COUNT)]
        for name in ("whole", "resumed", "stopped")
    }


def by_hand(place, output):
    "The same steps in one process: the clips and the noise of both, one after the other, and the mean of the gradients; an average."
    trainer = make_trainer(place, output, **OPTIONS).load()
    config, weights = trainer.config, trained_parameters(trainer.model)
    optimizer, losses, average = make_optimizer(weights, config.optimization), [], WeightAverage(weights, DECAY)
    shapes = [trainer.dataset.all_shapes()[i] for i in trainer.trained_samples.indices]
    orders = [iter(BucketedSampler(shapes, config.optimization.batch_size, config.seed, rank, COUNT)) for rank in range(COUNT)]
    noises = [torch.Generator().manual_seed(config.seed + rank) for rank in range(COUNT)]
    for step in range(STEPS):
        set_rates(optimizer, config.optimization, step)
        found = []
        for order, noise in zip(orders, noises, strict=True):
            batch = collate([trainer.trained_samples[i] for i in next(order)])
            found.append(sample_losses(trainer.model, trainer.strategy, batch, trainer.timesteps, noise)[0].mean())
            (found[-1] / COUNT).backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), config.optimization.max_grad_norm)
        optimizer.step(), optimizer.zero_grad()
        average.update()
        losses.append(sum(loss.item() for loss in found) / COUNT)
    return trainer, losses, average.weights


def test_all_processes_hold_the_same_weights_and_say_the_same(runs):
    for first, second in runs.values():
        assert {k: v for k, v in first.items() if k != "noise"} == {k: v for k, v in second.items() if k != "noise"}


def test_processes_draw_different_noise(runs):
    assert all(first["noise"] != second["noise"] for first, second in runs.values())


def test_two_processes_make_the_step_that_one_makes_of_both_batches(place, runs, tmp_path):
    trainer, losses, average = by_hand(place, tmp_path)
    assert runs["whole"][0]["losses"] == pytest.approx(losses, rel=1e-5)
    saved = read_lora(runs["whole"][0]["checkpoint"])[0]
    for name, (A, B) in saved.items():
        scale = trainer.model.get_submodule(name).scaling["default"]
        torch.testing.assert_close(A, average[f"{name}.lora_A.default.weight"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(B, average[f"{name}.lora_B.default.weight"] * scale, rtol=1e-3, atol=1e-6)


def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one(runs):
    whole, resumed = runs["whole"][0], runs["resumed"][0]
    assert all(resumed[name] == whole[name] for name in ("weights", "average")) and resumed["losses"] == whole["losses"][STEPS // 2 :]


def test_samples_are_dealt_out_and_are_those_that_one_process_makes(place, runs, tmp_path):
    paths = [Path(path) for path in runs["whole"][0]["samples"]]
    assert [path.stem.rsplit("_", 1)[1] for path in paths] == [str(n + 1) for n in range(SAMPLES)]
    alone = make_trainer(place, tmp_path, **OPTIONS, model__load_checkpoint=runs["whole"][0]["checkpoint"], checkpoints__no_resume=True)
    alone.load().step = STEPS
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


def test_a_model_that_would_be_split_is_refused():
    with pytest.raises(NotImplementedError, match="FSDP, which splits the model.*accelerate ddp"):
        check_distribution(SimpleNamespace(distributed_type=DistributedType.FSDP))
