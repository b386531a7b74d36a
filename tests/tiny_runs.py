"A tiny checkpoint, a tiny dataset, and runs over them in a fraction of a second."

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ltx_nb.config.schema import LtxTrainerConfig
from ltx_nb.config.files import load_config
from ltx_nb.data.batches import DummyDataset
from ltx_nb.training.progress import Progress, View
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.training.trainer import LtxvTrainer

SIZE = {"width": 32, "height": 32, "num_frames": 9}
CONTEXT = {"context_width": 128, "audio_context_width": 64, "context_length": 8}
SAMPLES = 3
TARGETS = ["attn1.to_q", "attn2.to_v", "audio_attn1.to_out.0", "audio_to_video_attn.to_k"]  # few: PEFT takes its time


@dataclass(frozen=True)
class Place:
    "Where the files of a test module are."

    folder: Path
    model: Path
    text_encoder: Path
    data: Path

    def with_data(self, name: str, samples: int) -> "Place":
        "The same, with random clips of its own."
        data = DummyDataset(**SIZE, **CONTEXT, dataset_length=samples).save(self.folder / name)
        return replace(self, data=data)


def make_place(folder: Path) -> Place:
    tiny = make_tiny_checkpoint(folder / "tiny")
    return Place(folder, tiny.model, tiny.text_encoder, folder).with_data("data", SAMPLES)


def configure(place: Place, output: Path, **changes) -> LtxTrainerConfig:
    "The tiny example with a few steps and no samples; `section__field=value` changes it."
    usual = {
        "model.model_path": place.model, "model.text_encoder_path": place.text_encoder, "output_dir": output,
        "data.preprocessed_data_root": place.data, "optimization.steps": 2, "optimization.scheduler_type": "linear",
        "validation.interval": None, "validation.video_dims": [32, 32, 9], "validation.inference_steps": 2,
        "checkpoints.interval": None, "checkpoints.keep_last_n": -1, "lora.target_modules": TARGETS,
    }  # fmt: skip
    changes = usual | {name.replace("__", "."): value for name, value in changes.items()}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in changes.items()}
    return load_config("tiny_t2v_lora", plain)


class Notes(View):
    "Keeps what a user would have been told."

    def __init__(self):
        self.texts = []

    def note(self, progress, text):
        self.texts.append(text)


def make_trainer(place: Place, output: Path, overwrite: bool = False, **changes) -> LtxvTrainer:
    return LtxvTrainer(configure(place, output, **changes), Progress(Notes()), "cpu", overwrite=overwrite)


def told(trainer: LtxvTrainer) -> str:
    "All notes that a run has given its user."
    return "\n".join(trainer.runtime.progress.view.texts)


def train(place: Place, output: Path, **changes):
    "A finished run: the trainer, and a report for each step."
    trainer = make_trainer(place, output, **changes)
    return trainer, list(trainer.steps())


def trained(trainer: LtxvTrainer) -> dict[str, torch.Tensor]:
    "What the run has learnt so far, as copies."
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@contextmanager
def ctrl_c(disposition=signal.default_int_handler) -> Iterator[None]:
    "What a Ctrl-C does, however this process was started: behind a script or under `nohup` it is ignored."
    former = signal.signal(signal.SIGINT, disposition)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


@contextmanager
def one_thread() -> Iterator[None]:
    "Sums in one order, as in processes that were started with one thread, so that bytes can be compared."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
