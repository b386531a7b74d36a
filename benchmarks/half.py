"""Whether float16 learns as bfloat16 does: `python -m benchmarks.half --save`, from the root of the project, five minutes on a CPU.

The preset for a T4 trains on a tiny LTX-2.3 with random weights and three random clips, 500 steps in float16 and as many in
bfloat16, with the same clips, noise and levels of noise. Written down: the mean loss of every fifty steps, how often the
gradient was not finite, so that the step was skipped (an overflow), and the largest number that passed from block to block.
A CPU computes float16 as a GPU does, with the same range; what it cannot show is the size of numbers in the real model."""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch

from ltx_nb.config.files import load_config
from ltx_nb.data.batches import DummyDataset
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.training.progress import make_progress
from ltx_nb.training.trainer import LtxvTrainer

RESULT = Path(__file__).parent / "results" / "half.json"
SIZE = {"width": 32, "height": 32, "num_frames": 9}
CONTEXT = {"context_width": 128, "audio_context_width": 64, "context_length": 8}
PART = 50  # steps of which the mean loss is written down


def configured(folder: Path, mode: str, steps: int, **changes):
    "The preset on tiny files."
    tiny = make_tiny_checkpoint(folder / "tiny")
    data = folder / "data"
    if not data.exists():
        DummyDataset(**SIZE, **CONTEXT, dataset_length=3).save(data)
    given = {
        "model.model_path": str(tiny.model), "model.text_encoder_path": None, "output_dir": str(folder / mode),
        "data.preprocessed_data_root": str(data), "data.num_dataloader_workers": 0, "validation.samples": [],
        "optimization.steps": steps, "optimization.learning_rate": 1e-3, "checkpoints.interval": None,
        "acceleration.mixed_precision_mode": mode, "acceleration.stream": 0,
    }  # fmt: skip
    return load_config("t2v_lora_t4", given | changes)


def train(config) -> dict:
    "Losses, overflows and the largest number between blocks."
    trainer, losses, lost, largest = LtxvTrainer(config, make_progress("none"), "cpu"), [], 0, 0.0
    model = trainer.load().run.weights.model

    def look(block, inputs):
        nonlocal largest
        largest = max(largest, *(float(x.detach().abs().max()) for x in inputs[0].values()))

    for block in model.transformer_blocks:
        block.register_forward_pre_hook(look)
    began = time.monotonic()
    for report in trainer.steps():
        losses.append(float(report.losses["loss"]))
        lost += not math.isfinite(float(report.grad_norm))
    parts = [losses[i : i + PART] for i in range(0, len(losses), PART)]
    return {
        "losses": [round(sum(part) / len(part), 4) for part in parts], "overflows": lost,
        "largest": round(largest, 2), "seconds": round(time.monotonic() - began),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "steps": options.steps, "part": PART}
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("bf16", "fp16"):
            found[mode] = train(configured(Path(folder), mode, options.steps))
            print(mode, found[mode], flush=True)
    if options.save:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
