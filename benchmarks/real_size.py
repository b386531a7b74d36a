"""What a real model takes, without a card: `python -m benchmarks.real_size t2v_lora`, run from the root of the project.

    python -m benchmarks.real_size t2v_lora --set acceleration.quantization=nf4   # LTX-2.3, 960x544x121 with sound
    python -m benchmarks.real_size t2v_lora --version 2 --size 576x576x49 --parts training
    python -m benchmarks.real_size t2v_lora --reference                            # ltx-core under PEFT and autocast

Checkpoint and Gemma are as large as the published ones, their weights are a hole (`ltx_nb.tools.hollow`), and the device is
pretended (`ltx_nb.tools.pretend_gpu`): tensors on it have shapes and no contents. The code is the library's own: it
prepares one clip, loads the transformer, makes two steps and one denoising step of a sample, and decodes that. What is
counted is printed as a line of JSON, beside what the memory plan foretold; a floor in seconds is the time that a card
of these rates needs for the bytes and products of a step, and no card is faster. --save puts the line into
benchmarks/results/real_size.jsonl, --table makes tables of all lines there, and --foretell, after the plan was changed,
writes what it says today beside what was counted.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from ltx_nb.tools.pretend_gpu import Seen, pretend_device, register, watch

ROOT = Path(__file__).resolve().parents[1]
CARDS = {  # bytes a second of the memory, operations a second of a product in bfloat16, from the data sheets
    "H200": (4.8e12, 989e12), "H100": (3.35e12, 989e12), "A100 80 GB": (2.04e12, 312e12), "RTX 4090": (1.01e12, 165e12),
}  # fmt: skip
PARTS = ("preparation", "training", "sampling")
LONG = "slow wide pan over a beach at dusk, waves roll in and gulls cry, " * 120  # fills the 1,024 rows of a caption
FPS = 24.0


def spare_memory() -> str | None:
    "Large blocks are used again, and files are where a hole needs no cache; gives the folder for them."
    import ctypes

    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc: no block is a map of its own, and none is given back
            libc.mallopt(-4, 0), libc.mallopt(-1, 2**31 - 1)
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# ---- what happened, phase by phase ----


@dataclass
class Counts:
    "What was counted from one place to another."

    peak: int = 0
    kernels: int = 0
    waits: int = 0
    to_device: int = 0
    to_host: int = 0
    to_device_bytes: int = 0
    to_host_bytes: int = 0
    moved: int = 0
    flops: int = 0
    places: dict = field(default_factory=dict)  # where the host waited

    def add(self, seen: Seen) -> None:
        self.peak = max(self.peak, seen.peak)
        for name in ("kernels", "waits", "to_device", "to_host", "to_device_bytes", "to_host_bytes", "moved", "flops"):
            setattr(self, name, getattr(self, name) + getattr(seen, name))
        for place, times in seen.waited.items():
            place = place.replace(f"{ROOT}{os.sep}", "").rpartition("site-packages/")[2]
            self.places[place] = self.places.get(place, 0) + times

    def facts(self, foretold: int | None = None) -> dict:
        "For the line of JSON."
        known = {} if foretold is None else {"foretold_gb": gb(foretold), "off_percent": off(foretold, self.peak)}
        copies = {"to_device": self.to_device, "to_host": self.to_host}
        copies |= {"to_device_gb": gb(self.to_device_bytes), "to_host_gb": gb(self.to_host_bytes)}
        floor = {name: round(self.moved / b + self.flops / f, 3) for name, (b, f) in CARDS.items()}
        work = {"kernels": self.kernels, "moved_gb": gb(self.moved), "tflop": round(self.flops / 1e12, 2)}
        return {"peak_gb": gb(self.peak), **known, "waits": self.waits, "copies": copies, **work, "floor_s": floor}


def most_waited(places: dict[str, int], few: int = 8) -> dict[str, int]:
    "Where the host waited most often."
    return dict(sorted(places.items(), key=lambda item: -item[1])[:few])


def gb(size: float) -> float:
    return round(size / 1e9, 3)


def off(foretold: float, counted: float) -> float:
    "By how many percent the plan says more than was counted."
    return round(100 * (foretold / counted - 1), 2)


def phases_view(seen: Seen, found: dict[str, Counts]):
    "A view of a run's progress that counts each of its phases; what happens in a phase inside a phase is counted there."
    from ltx_nb.training.progress import View

    class Phases(View):
        def __init__(self):
            self.running = []

        def settle(self) -> None:
            if self.running:
                name = self.running[-1].name
                found.setdefault({"Validation": "Decoding"}.get(name, name), Counts()).add(seen)
            seen.restart()

        def changed(self, progress, phase, event):
            if event == "advance":
                return
            self.settle()
            (self.running.append if event == "start" else self.running.remove)(phase)

    return Phases()


@contextlib.contextmanager
def counted(seen: Seen, found: dict[str, Counts], name: str) -> Iterator[None]:
    "Count a block."
    seen.restart()
    yield
    found.setdefault(name, Counts()).add(seen)
    seen.restart()


# ---- one clip of the size, and the files of a model ----


@dataclass
class Stage:
    "Where the files are, and how large the clip is."

    folder: Path
    version: str
    size: tuple[int, int, int]  # width, height, frames
    layers: int | None = None  # as many blocks of the transformer and of Gemma; None: all

    @property
    def model(self) -> Path:
        return self.folder / f"ltx-{self.version}.safetensors"

    @property
    def gemma(self) -> Path:
        return self.folder / "gemma"

    def write(self) -> "Stage":
        "Checkpoint and Gemma."
        from ltx_nb.tools.hollow import hollow_checkpoint, hollow_gemma, real_gemma_config, real_header

        header, config = real_header(self.version), real_gemma_config()
        if self.layers:
            header["transformer"]["num_layers"] = self.layers
            header["text_encoder"] = {"hidden_size": 3840, "num_hidden_layers": self.layers}
            config["text_config"]["num_hidden_layers"] = self.layers
        hollow_checkpoint(self.model, self.version, header)
        hollow_gemma(self.gemma, config)
        return self

    def write_film(self) -> Path:
        "A black film with a tone, and a caption that fills all rows."
        import torch

        from ltx_nb.data.media import write_video

        (clips := self.folder / "clips").mkdir(exist_ok=True)
        width, height, frames = self.size
        moments = torch.arange(round(frames / FPS * 48000)) / 48000
        sound = (torch.sin(2 * torch.pi * 440 * moments) / 10).expand(2, -1)
        write_video(clips / "black.mp4", torch.zeros(frames, 3, height, width, dtype=torch.uint8), FPS, sound, 48000)
        (clips / "black.txt").write_text(LONG, encoding="utf-8")
        return clips

    def write_records(self, name: str, given: list[str]) -> Path:
        "The dataset that a preparation would have made, without one: all that the mode reads."
        from ltx_nb.config.files import load_config
        from ltx_nb.data.batches import DummyDataset
        from ltx_nb.flow.strategies import get_training_strategy

        config = load_config(name, given, check_files=False)
        roles = get_training_strategy(config.training_strategy).get_data_sources()
        width, height, frames = self.size
        contexts = {"2": (3840, 3840), "2.3": (4096, 2048)}[self.version]
        sizes = {"context_width": contexts[0], "audio_context_width": contexts[1], "context_length": 1024}
        clip = {"width": width, "height": height, "num_frames": frames, "fps": FPS}
        return DummyDataset(roles, **clip, **sizes, dataset_length=1).save(self.folder / "records")

    def config(self, name: str, data: Path, output: Path, given: list[str], sampling: bool = True):
        "A configuration for it, with one sample of the same size or none."
        from ltx_nb.config.files import load_config

        sample = {"prompt": LONG, "video_dims": list(self.size)}
        own = {
            "model.model_path": self.model, "model.text_encoder_path": self.gemma, "output_dir": output,
            "data.preprocessed_data_root": data, "data.num_dataloader_workers": 0, "checkpoints.interval": None,
            "validation.samples": [sample] if sampling else [], "validation.inference_steps": 1, "validation.interval": 1000,
            "validation.skip_initial_validation": True, "validation.negative_prompt": LONG, "optimization.steps": 100,
        }  # fmt: skip
        if self.layers:
            own["validation.stg_blocks"] = [0]
        saves = load_config(name, given, check_files=False).acceleration
        if saves.stream != "off" and saves.quantization:
            own["acceleration.stream_from"] = "memory"  # slabs of a hole take nothing of the host
        own = [f"{key}={json.dumps(str(value) if isinstance(value, Path) else value)}" for key, value in own.items()]
        return load_config(name, [*own, *given])


# ---- the three parts ----


def small(name: str, given: list[str]) -> bool:
    "Whether a configuration is for a small card, so that its dataset is prepared on one: the text encoder streams, pictures go in tiles."
    from ltx_nb.config.files import load_config

    return load_config(name, given, check_files=False).acceleration.stream_text_encoder


def prepare_clip(stage: Stage, seen: Seen, less: bool = False) -> dict[str, Counts]:
    "The library's preparation of one clip, previews too; `less`: in little memory."
    from ltx_nb.data.prepare import prepare
    from ltx_nb.training.progress import Progress

    found, size = {}, "x".join(map(str, stage.size))
    with Progress(phases_view(seen, found)) as progress:
        prepare(
            stage.write_film(), stage.folder / "data", stage.model, stage.gemma, size, fps=FPS, decode=True,
            device=str(pretend_device()), progress=progress, stream_text_encoder=less, vae_tiling=less,
        )  # fmt: skip
    return found


def train_steps(config, seen: Seen, steps: int = 2) -> tuple[dict[str, Counts], object]:
    "Everything up to the first step, and the last step alone: the first one makes the optimizer's state."
    from ltx_nb.training.progress import Progress
    from ltx_nb.training.trainer import LtxvTrainer

    found = {}
    trainer = LtxvTrainer(config, Progress(phases_view(seen, found)), pretend_device())
    trainer.load()
    view, trainer.runtime.progress.view = trainer.runtime.progress.view, phases_view(seen, {})
    seen.restart()
    for report in trainer.steps():
        if report.step == steps:
            found["step"] = Counts()
            found["step"].add(seen)
            break
        del report
        seen.restart()
    trainer.runtime.progress.view = view
    return found, trainer


def sample_clip(trainer, seen: Seen) -> dict[str, Counts]:
    "A sample of the run: one denoising step with all guidance, and the decoders."
    found = {}
    trainer.runtime.progress.view = phases_view(seen, found)
    trainer.validate()
    return found


def reference_model(header: dict, config, device):
    "ltx-core's transformer with PEFT's LoRA, in memory of the device that nothing was written to yet."
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    import oracle  # noqa: F401, I001  (first: it makes ltx_core importable without torchaudio)
    from ltx_core.model.transformer.model_configurator import LTXModelConfigurator
    from peft import LoraConfig, get_peft_model

    lora = config.model.training_mode == "lora"
    with torch.device("meta"):
        model = LTXModelConfigurator.from_config(header)
    model = model.to(torch.bfloat16 if lora else torch.float32).to_empty(device=device).requires_grad_(not lora)
    model.set_gradient_checkpointing(config.optimization.enable_gradient_checkpointing)
    if not lora:
        return model.train()
    how = LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=config.lora.target_modules)
    return get_peft_model(model, how).train()


def reference_inputs(given, device) -> list:
    "The library's inputs as ltx-core's, with the mask of ones that the public trainer passes."
    import torch
    from ltx_core.model.transformer.modality import Modality

    found = []
    for m in (given.video, given.audio):
        there = {name: getattr(m, name).to(device) for name in ("sigma", "timesteps", "positions")}
        rows = torch.ones(m.context.shape[:2], dtype=torch.int64, device=device)
        numbers = {name: getattr(m, name).to(device, torch.bfloat16) for name in ("latent", "context")}
        there["timesteps"] = there["timesteps"].expand(m.latent.shape[:2]).contiguous()
        found.append(Modality(enabled=True, context_mask=rows, attention_mask=None, **there, **numbers))
    return found


def plain_step(model, inputs: list, targets: list, trained: list, optimizer, autocast) -> None:
    "Forward, loss, backward, clipping and the optimizer, as both programs do them."
    import torch

    with autocast:
        out = model(*inputs)
        loss = sum((x - target).square().mean() for x, target in zip(out, targets))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def reference_step(stage: Stage, config, seen: Seen) -> dict[str, Counts]:
    "ltx-core's transformer with PEFT's LoRA under autocast, as the public trainer runs it: the second step."
    import torch

    from ltx_nb.loading.checkpoint import read_header
    from ltx_nb.training.memory import largest_batch

    device = pretend_device()
    model, given = reference_model(read_header(stage.model), config, device), largest_batch(config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    for _ in range(2):
        found: dict[str, Counts] = {}
        with counted(seen, found, "step"):
            inputs = reference_inputs(given, device)
            targets = [m.latent.to(device) for m in (given.video, given.audio)]
            autocast = torch.autocast(device.type, torch.bfloat16)
            plain_step(lambda *x: model(*x, None), inputs, targets, trained, optimizer, autocast)
            del inputs, targets
    return found


# ---- the line ----


def foretell(stage: Stage, config, parts: list[str]) -> dict[str, int]:
    "What the plans say, by phase."
    from ltx_nb.model.tiling import Tiling
    from ltx_nb.training.memory import memory_plan
    from ltx_nb.training.peaks import preparation_peaks

    plan, found = memory_plan(config, sampling="sampling" in parts), {}
    if "preparation" in parts:
        less = config.acceleration.stream_text_encoder
        needs = preparation_peaks(
            stage.model, stage.gemma, stage.size, FPS, tiling=Tiling() if less else None, streamed=less
        )
        found = {name: need.total for name, need in needs.items()}
    return found | {"step": plan.total} | plan.phases


def count(stage: Stage, name: str, given: list[str], parts: list[str], reference: bool = False, steps: int = 2) -> dict:
    "The facts of one configuration."
    register()
    warnings.filterwarnings("ignore", ".* is cut to ")  # so that it fills all rows
    logging.getLogger("ltx_nb").setLevel(logging.ERROR)
    began, stage = time.monotonic(), stage.write()
    with contextlib.ExitStack() as stack, watch(hollow=True) as seen:
        for where in ("loading.streaming", "loading.offload", "training.one_by_one"):
            stack.enter_context(patch(f"ltx_nb.{where}.host_memory", alike))
        prepared = prepare_clip(stage, seen, small(name, given)) if "preparation" in parts else {}
        data = stage.write_records(name, given)
        output = stack.enter_context(tempfile.TemporaryDirectory())  # a run looks whether it has room for checkpoints
        config = stage.config(name, data, Path(output), given, "sampling" in parts)
        foretold = {} if reference else foretell(stage, config, parts)
        found = dict(prepared)
        if reference:
            found |= reference_step(stage, config, seen)
        elif "training" in parts or "sampling" in parts:
            more, trainer = train_steps(config, seen, steps)
            found |= more
            if "sampling" in parts:
                found |= sample_clip(trainer, seen)
    return {
        "config": name, "set": given, "version": stage.version, "size": "x".join(map(str, stage.size)),
        "program": "ltx-core, PEFT, autocast" if reference else "ltx_nb", **({"layers": stage.layers} if stage.layers else {}),
        "phases": {phase: counts.facts(foretold.get(phase)) for phase, counts in found.items() if counts.peak},
        "waited": {phase: most_waited(counts.places) for phase, counts in found.items() if counts.places},
        "command": "python -m benchmarks.real_size " + " ".join(sys.argv[1:]),
        "host_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2), "seconds": round(time.monotonic() - began),
    }  # fmt: skip


@functools.cache
def alike(size: int, device: object):
    "Memory of the host for something of a hole: all that is as large shares it, or this machine would need 38 GB."
    import torch

    return torch.empty(size, dtype=torch.uint8)


# ---- many lines, and a table of them ----

RESULTS = ROOT / "benchmarks" / "results" / "real_size.jsonl"
NO_CHECKPOINTING = "optimization.enable_gradient_checkpointing=false"


def key(line: dict) -> tuple:
    "Lines of the same question."
    return (
        line["version"],
        line["program"],
        line["config"],
        tuple(sorted(line["set"])),
        line["size"],
        line.get("layers", 0),
    )


def read_lines(path: Path = RESULTS) -> list[dict]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def save_line(line: dict, path: Path = RESULTS) -> None:
    "Put a line in the place of an older one; phases that the new one does not have stay."
    import torch

    old = {key(one): one for one in read_lines(path)}.get(key(line), {})
    for part in ("phases", "waited"):
        line[part] = old.get(part, {}) | line[part]
    write_line(line | {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}, path)


def write_line(line: dict, path: Path = RESULTS) -> None:
    "Put a line into the file, in the place of the one of the same question."
    lines = {key(old): old for old in read_lines(path)} | {key(line): line}
    unfinished = path.with_suffix(".part")
    unfinished.write_text("".join(json.dumps(one) + "\n" for one in lines.values()), encoding="utf-8")
    os.replace(unfinished, path)


def foretell_again(line: dict) -> dict:
    "The line with what the plans say today beside what was counted."
    phases, folder = line["phases"], tempfile.TemporaryDirectory(dir=spare_memory())
    asked = {"preparation": "Captions", "sampling": "Denoising"}
    parts = ["training", *(part for part, phase in asked.items() if phase in phases)]
    with folder as place:
        stage = Stage(
            Path(place), line["version"], tuple(map(int, line["size"].split("x"))), line.get("layers")
        ).write()
        data = stage.write_records(line["config"], line["set"])
        config = stage.config(line["config"], data, Path(place) / "run", line["set"], "sampling" in parts)
        foretold = {} if line["program"] != "ltx_nb" else foretell(stage, config, parts)
    for name in foretold.keys() & phases.keys():
        peak = phases[name]["peak_gb"]
        phases[name] |= {"foretold_gb": gb(foretold[name]), "off_percent": off(foretold[name] / 1e9, peak)}
    return line


def title(line: dict) -> str:
    "What was run, in a few words."
    given = dict(entry.split("=", 1) for entry in line["set"])
    full = given.pop("model.training_mode", "lora") == "full"
    form = given.pop("acceleration.quantization", "float32 weights" if full else "bf16")
    kept = "everything kept" if NO_CHECKPOINTING in line["set"] else "checkpointing"
    given.pop(NO_CHECKPOINTING.partition("=")[0], None)
    if line["config"] != "t2v_lora":
        return ", ".join([line["config"], *line["set"]])
    who = "the reference: " if line["program"] != "ltx_nb" else ""
    return ", ".join([f"{who}{'full' if full else 'LoRA r32'}", form, kept, *map("=".join, given.items())])


def order(line: dict) -> tuple:
    "Of the rows of a table: by model, then ours and the reference, then as they train."
    return (
        line["version"],
        line["program"] != "ltx_nb",
        line["config"],
        "full" in title(line),
        NO_CHECKPOINTING in line["set"],
    )


def drawn(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def tables(lines: list[dict]) -> tuple[str, str]:  # steps; everything else
    "Of lines with all their blocks."
    head = ["model", "training", "foretold GB", "peak GB", "kernels", "moved GB", "TFLOP", "waits", "H200 at least s"]
    steps, others, told = [head, ["---"] * len(head)], [["model", "stage", *head[2:]], ["---"] * len(head)], set()
    cell = lambda x: f"{x:,.2f}" if isinstance(x, float) else f"{x:,}" if isinstance(x, int) else "-"
    for line in sorted((line for line in lines if not line.get("layers")), key=order):
        for name, facts in line["phases"].items():
            work = (facts[number] for number in ("peak_gb", "kernels", "moved_gb", "tflop", "waits"))
            numbers = list(map(cell, [facts.get("foretold_gb"), *work, facts["floor_s"]["H200"]]))
            what = f"{name} ({title(line)})" if name in ("Denoising", "Decoding") else name
            if name == "step":
                steps.append([f"LTX-{line['version']}", title(line), *numbers])
            elif name != "Loading the transformer" and (line["version"], what) not in told:
                told.add((line["version"], what))  # a caption or a picture is the same in all of them
                others.append([f"LTX-{line['version']}", what, *numbers])
    return drawn(steps), drawn(others)


def table(lines: list[dict]) -> str:
    "What the chapters show: the example in its forms, then the presets."
    example = [line for line in lines if line["config"] == "t2v_lora"]
    presets = [line for line in lines if line["config"] != "t2v_lora"]
    return "\n\n".join([*tables(example), *(tables(presets) if presets else ())])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="t2v_lora", help="YAML file, or the name of an example")
    parser.add_argument("--set", action="append", default=[], dest="given", help="dotted.field=value")
    parser.add_argument("--version", choices=("2", "2.3"), default="2.3")
    parser.add_argument("--size", default="960x544x121", help="width x height x frames")
    parser.add_argument(
        "--layers", type=int, help="blocks of the transformer and of Gemma, to look at something quickly"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which of " + ", ".join(PARTS))
    parser.add_argument("--steps", type=int, default=2, help="of training; the last one is counted")
    parser.add_argument("--reference", action="store_true", help="a step of ltx-core under PEFT and autocast instead")
    parser.add_argument("--save", action="store_true", help=f"put the line into {RESULTS.relative_to(ROOT)}, too")
    parser.add_argument("--foretell", action="store_true", help="what the plans say today, into that file; run nothing")
    parser.add_argument("--table", action="store_true", help="print a table of that file, and run nothing")
    options = parser.parse_args(argv)
    if options.table:
        return print(table(read_lines()))
    if options.foretell:
        for line in read_lines():
            write_line(foretell_again(line))
            print(title(line), {name: facts.get("off_percent") for name, facts in line["phases"].items()}, flush=True)
        return None
    with tempfile.TemporaryDirectory(dir=spare_memory()) as folder:
        stage = Stage(Path(folder), options.version, tuple(map(int, options.size.split("x"))), options.layers)
        how = options.given, options.parts.split(","), options.reference, options.steps
        line = count(stage, options.config, *how)
    print(json.dumps(line), flush=True)
    if options.save:
        save_line(line)


if __name__ == "__main__":
    main()
