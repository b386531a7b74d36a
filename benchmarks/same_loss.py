"""Whether the ways that save memory learn what the plain way learns: `python -m benchmarks.same_loss --save`, from the root of the
project, some minutes on a CPU.

Every weight of a tiny LTX-2.3 is trained for forty steps on eight random clips, two more are held out, once for each way and
seed. A seed decides the order of the clips, noise and levels; ways of one seed have the same ones, and so does what is
measured. Written down: the held-out loss before and after, by seed, its mean and spread over seeds, and the mean distance
from the plain way of the same seed with its standard error."""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ltx_nb.config.files import load_config
from ltx_nb.data.batches import DummyDataset
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.training.progress import make_progress
from ltx_nb.training.trainer import LtxvTrainer

RESULT = Path(__file__).parent / "results" / "same_loss.json"
SIZE = {"width": 32, "height": 32, "num_frames": 9}
CONTEXT = {"context_width": 128, "audio_context_width": 64, "context_length": 8}
CLIPS, KEPT_OUT, STEPS, SEEDS = 10, 2, 40, range(12)
ONE_BY_ONE = {
    "acceleration.mixed_precision_mode": "bf16", "acceleration.trained_weights": "bfloat16",
    "acceleration.release_gradients": True, "acceleration.offload_optimizer": True,
}  # fmt: skip
WAYS = {
    "plain": {},
    "one by one": ONE_BY_ONE,
    "one by one, 8 bits": ONE_BY_ONE | {"optimization.optimizer_type": "adamw8bit"},
    "one by one, Adafactor": ONE_BY_ONE | {"optimization.optimizer_type": "adafactor"},
}


def configured(folder: Path, way: str, seed: int, steps: int = STEPS):
    "Full fine-tuning of tiny files in one of the ways."
    tiny, data = make_tiny_checkpoint(folder / "tiny"), folder / "data"
    if not data.exists():
        DummyDataset(**SIZE, **CONTEXT, dataset_length=CLIPS).save(data)
    given = {
        "model.model_path": str(tiny.model), "model.text_encoder_path": None, "model.training_mode": "full", "lora": None,
        "output_dir": str(folder / f"{way} {seed}"), "data.preprocessed_data_root": str(data), "data.held_out": KEPT_OUT,
        "validation.samples": [], "validation.interval": None, "checkpoints.interval": None,
        "checkpoints.save_training_state": "off", "optimization.steps": steps, "optimization.learning_rate": 1e-3,
        "optimization.scheduler_type": "constant", "optimization.warmup_steps": 0, "seed": seed,
    }  # fmt: skip
    return load_config("tiny_t2v_lora", given | WAYS[way])


def learned(config) -> tuple[float, float]:
    "The held-out loss before the first step and after the last."
    result = LtxvTrainer(config, make_progress("none"), "cpu").train()
    return result.held_out["base"]["loss"], result.held_out["now"]["loss"]


def compared(losses: dict[str, list[float]]) -> dict:  # by way: a loss for each seed
    "Means, spreads, and distances from the plain way."
    rows = {}
    for way, found in losses.items():
        apart = [loss - plain for loss, plain in zip(found, losses["plain"], strict=True)]
        rows[way] = {
            "losses": [round(loss, 4) for loss in found], "mean": round(statistics.mean(found), 4),
            "spread": round(statistics.stdev(found), 4), "from_plain": round(statistics.mean(apart), 4),
            "error": round(statistics.stdev(apart) / math.sqrt(len(apart)), 4),
        }  # fmt: skip
    return rows


def table(result: dict) -> str:
    "What the chapter shows."
    lines = ["| way | held-out loss | from plain |", "| --- | --- | --- |"]
    for way, row in result["ways"].items():
        apart = "-" if way == "plain" else f"{row['from_plain']:+.3f} ± {row['error']:.3f}"
        lines.append(f"| {way} | {row['mean']:.3f} ± {row['spread']:.3f} | {apart} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--table", action="store_true", help="print the table of that file, and run nothing")
    options = parser.parse_args(argv)
    if options.table:
        print(table(result := json.loads(RESULT.read_text(encoding="utf-8"))))
        return result
    torch.set_num_threads(1)
    losses, before, began = {way: [] for way in WAYS}, [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for way in WAYS:
                base, now = learned(configured(Path(folder), way, seed))
                losses[way].append(now)
                before += [base] if way == "plain" else []
                print(f"seed {seed}, {way}: {base:.4f} -> {now:.4f}", flush=True)
    found = {
        "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "steps": STEPS, "seeds": len(SEEDS),
        "before": round(statistics.mean(before), 4), "ways": compared(losses), "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    print(table(found))
    if options.save:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
