"Runs in several processes on this CPU, and the same steps made by hand in one."

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import torch
from tiny_runs import Place, make_trainer

from ltx_nb.data.batches import BucketedSampler, collate
from ltx_nb.training.optimizer import WeightAverage, make_optimizer, set_rates
from ltx_nb.training.held_out import sample_losses
from ltx_nb.training.weights import trained_parameters

COUNT, STEPS, SAMPLES, DECAY = 2, 4, 3, 0.6
HALF = STEPS // 2
OPTIONS = {
    "optimization__steps": STEPS, "checkpoints__interval": HALF, "checkpoints__precision": "float32", "lora__dropout": 0.0,
    "validation__interval": STEPS, "validation__skip_initial_validation": True,
    "validation__samples": [{"prompt": f"bird {n}", "seed": n} for n in range(SAMPLES)], "data__held_out": 1,
    "optimization__ema_decay": DECAY,
}  # fmt: skip
SCRIPT = """
import hashlib, json, os, signal, torch
from pathlib import Path
from tiny_runs import Place, make_trainer

place, folder = Place(*map(Path, {place!r})), Path({folder!r})
digest = lambda tensors: hashlib.sha256(torch.cat([t.detach().flatten() for t in tensors]).numpy().tobytes()).hexdigest()
here = lambda p: p.to_local() if hasattr(p, "to_local") else p

for name, options in {runs!r}.items():
    stop_after, resume, dies_in = (options.pop(name, None) for name in ("stop_after", "resume", "dies_in"))
    if resume:
        options["model__load_checkpoint"] = str(next((folder / resume / "checkpoints").glob("*_weights_*{half:05d}.safetensors")))
    trainer = make_trainer(place, folder / name, **options)
    losses, norms, held_out, error = [], [], dict(), None
    if dies_in:
        strategy = trainer.load().strategy
        usual = strategy.prepare_training_inputs

        def late(*given):
            inputs = usual(*given)
            if trainer.state.step + 1 == dies_in and trainer.runtime.processes.rank == 1:
                raise ValueError("out of luck")
            return inputs

        strategy.prepare_training_inputs = late
    try:
        for step in trainer.steps():
            losses.append(float(step.losses["loss"]))
            norms.append(float(step.grad_norm))
            held_out = step.held_out
            if step.step == stop_after and trainer.runtime.processes.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
    except Exception as caught:
        if not dies_in:
            raise
        error = f"{{type(caught).__name__}}: {{caught}}"
    frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
    said = {{
        "error": error, "losses": losses, "norms": norms, "held_out": held_out, "checkpoint": str(trainer.state.checkpoint),
        "samples": [str(path) for path in trainer.state.samples], "stopped": trainer.state.stopped, "steps": trainer.state.step,
        "weights": digest(trainer.run.weights.parameters.values()), "average": trainer.run.weights.average and digest(trainer.run.weights.average.weights.values()),
        "noise": float(torch.rand(1, generator=trainer.run.state.generator)),
        "numbers": sum(p.numel() for p in trainer.run.weights.parameters.values()), "frozen": sum(here(p).numel() for p in frozen),
        "dtypes": sorted({{str(p.dtype) for p in frozen}}),
    }}
    (folder / f"{{name}}_{{trainer.runtime.processes.rank}}.json").write_text(json.dumps(said), encoding="utf-8")
"""


def launched(*arguments, **environment) -> subprocess.CompletedProcess:
    "Python with these arguments, in several processes."
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={COUNT}",
        *map(str, arguments),
    ]
    found = os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": found} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def ran(place: Place, folder: Path, runs: dict[str, dict], **environment) -> dict[str, list[dict]]:
    "What each process says of each run; `resume` names an earlier run to go on from, at its half, and `stop_after` a step."
    script, paths = folder / "script.py", [str(getattr(place, f.name)) for f in fields(place)]
    script.write_text(SCRIPT.format(place=paths, folder=str(folder), runs=runs, half=HALF), encoding="utf-8")
    done = launched(script, **environment)
    assert done.returncode == 0, done.stderr
    return {
        name: [json.loads((folder / f"{name}_{rank}.json").read_text(encoding="utf-8")) for rank in range(COUNT)]
        for name in runs
    }


def by_hand(place: Place, output: Path, **options):
    "The same steps in one process: the clips and the noise of both, one after the other, and the mean of the gradients; an average."
    trainer = make_trainer(place, output, **options).load()
    config, weights = trainer.config, trained_parameters(trainer.model)
    optimizer, losses, norms, average = (
        make_optimizer(weights, config.optimization),
        [],
        [],
        WeightAverage(weights, DECAY),
    )
    shapes = [trainer.dataset.all_shapes()[i] for i in trainer.run.data.samples.indices]
    orders = [
        iter(BucketedSampler(shapes, config.optimization.batch_size, config.seed, rank, COUNT)) for rank in range(COUNT)
    ]
    noises = [torch.Generator().manual_seed(config.seed + rank) for rank in range(COUNT)]
    for step in range(STEPS):
        set_rates(optimizer, config.optimization, step)
        found = []
        for order, noise in zip(orders, noises, strict=True):
            batch = collate([trainer.run.data.samples[i] for i in next(order)])
            found.append(
                sample_losses(trainer.model, trainer.strategy, batch, trainer.run.data.timesteps, noise)[0].mean()
            )
            (found[-1] / COUNT).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(weights.values()), config.optimization.max_grad_norm)))
        optimizer.step(), optimizer.zero_grad()
        average.update()
        losses.append(sum(loss.item() for loss in found) / COUNT)
    return trainer, losses, norms, average.weights


def without(report: dict, *names: str) -> dict:
    "A report without what may differ between processes."
    return {name: value for name, value in report.items() if name not in names}
