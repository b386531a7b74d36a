"""Runs on the CPU and on the pretend GPU, in a process of its own: `python tests/pretend_runs.py modes FOLDER`; with a
third word, such as cuda, on that device, where nothing is counted and numbers are close instead of equal.

Prints a line of JSON for each case: whether both gave the same numbers, and where the host waited in a step between two
log lines. A tensor on the wrong device ends it with an error."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from ltx_nb.data.media import read_video
from ltx_nb.flow.sampling import Guidance
from ltx_nb.tools.pretend_gpu import NAME, Seen, register, watch
from ltx_nb.training.progress import make_progress
from ltx_nb.training.request import Request
from ltx_nb.training.trainer import LtxvTrainer
from ltx_nb.training.validation import generate

STEPS = 3  # the first fills caches, the second is counted, the third is logged and saved
BF16 = {"acceleration__mixed_precision_mode": "bf16"}
FP16 = {"acceleration__mixed_precision_mode": "fp16"}
FULL = {"model__training_mode": "full"}
EXACT = {  # products are computed in one dtype on both devices
    "bf16, checkpointing": BF16 | {"optimization__enable_gradient_checkpointing": True},
    "int8": BF16 | {"acceleration__quantization": "int8"},
    "nf4, average": BF16 | {"acceleration__quantization": "nf4", "optimization__ema_decay": 0.9},
    "held out": {"data__held_out": 1},
    "two clips, twice": {"optimization__batch_size": 2, "optimization__gradient_accumulation_steps": 2},
}  # fmt: skip
CLOSE = {  # sums in another order; under autocast, whose lists for a GPU and for a CPU differ, in other dtypes
    "full": FULL, "full bf16": FULL | BF16, "fp16": FP16, "fp16, nf4": FP16 | {"acceleration__quantization": "nf4"},
    "full fp16, checkpointing": FULL | FP16 | {"optimization__enable_gradient_checkpointing": True},
}  # fmt: skip

CARD = {  # what goes other ways on CUDA: queues and pinned memory, fused kernels, packages
    "streamed": BF16 | {"acceleration__stream": 0, "optimization__enable_gradient_checkpointing": True},
    "streamed from the file": BF16 | {"acceleration__stream": 0, "acceleration__stream_from": "file"},
    "streamed nf4": BF16 | {"acceleration__stream": 1, "acceleration__quantization": "nf4"},
    "activations with the host": {"acceleration__offload_activations": True, "optimization__enable_gradient_checkpointing": True},
    "one by one": FULL | BF16 | {"acceleration__trained_weights": "bfloat16", "acceleration__release_gradients": True},
    "states with the host": FULL | {"acceleration__release_gradients": True, "acceleration__offload_optimizer": True},
    **{kind: {"optimization__optimizer_type": kind} for kind in ("adafactor", "muon", "adamw_bf16")},
    "prodigy": {"optimization__optimizer_type": "prodigy", "optimization__learning_rate": 1.0},
    "schedulefree": {"optimization__optimizer_type": "schedulefree", "optimization__scheduler_type": "constant"},
}  # fmt: skip
REAL = {  # at real width, hollow: an example and what is set there
    "nf4": ("t2v_lora", ["acceleration.quantization=nf4"]),
    "everything kept": ("t2v_lora", ["optimization.enable_gradient_checkpointing=false"]),
    "full": ("t2v_lora", ["model.training_mode=full"]),
    "with a reference": ("v2v_ic_lora", []),
}  # fmt: skip


def pretended() -> bool:
    return DEVICE.partition(":")[0] == NAME


def watched():
    "Counts, where the device is pretended."
    return watch() if pretended() else contextlib.nullcontext(Seen())


def trained(config, device) -> tuple[dict, dict]:
    "A run's numbers, and where the host waited in its second step."
    if not pretended():  # Accelerate stays with the first device of a process
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    trainer, losses, waited, peak = LtxvTrainer(config, make_progress("none"), device), [], {}, 0
    with watched() as seen:
        for report in trainer.steps():
            waited = dict(seen.waited) if report.step == 2 else waited
            peak = seen.peak if report.step == 2 else peak
            losses.append(report.losses | {"norm": report.grad_norm})
            seen.restart()
    losses = [{name: float(loss) for name, loss in each.items()} for each in losses]
    memory = {name: stage.foretold / stage.peak - 1 for name, stage in trainer.run.state.memory.items()}
    beside = trainer.run.state.memory["step"].peak - peak if memory else None
    made = {"weights": load_file(report.checkpoint), "samples": report.samples, "memory": memory, "beside": beside}
    return {"losses": losses} | made, waited


def same_files(one: list[Path], other: list[Path]) -> bool:
    if len(one) != len(other):
        return False
    for a, b in zip(one, other):
        if a.suffix == ".wav" and a.read_bytes() != b.read_bytes():
            return False
        if a.suffix == ".mp4":
            (frames, sound), (others, heard) = ((film.frames, film.sound) for film in map(read_video, (a, b)))
            if not torch.equal(frames, others) or (sound is None) != (heard is None):
                return False
            if sound is not None and not torch.equal(sound, heard):
                return False
    return True


def compared(make: Callable, folder: Path) -> dict:
    "A configuration on both devices; a real one may fail, and the next case begins."
    try:
        return _compared(make, folder)
    except Exception as error:
        if pretended():
            raise
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def _compared(make: Callable, folder: Path) -> dict:
    (here, _), (there, waited) = (trained(make(folder / str(i)), name) for i, name in enumerate(("cpu", DEVICE)))
    same = here["losses"] == there["losses"] and here["weights"].keys() == there["weights"].keys()
    same = same and all(torch.equal(w, there["weights"][name]) for name, w in here["weights"].items())
    first, last = ([run["losses"][i]["loss"] for run in (here, there)] for i in (0, -1))
    return {
        "same": same, "samples": len(there["samples"]), "same samples": same_files(here["samples"], there["samples"]),
        "off": abs(last[1] / last[0] - 1), "first off": abs(first[1] / first[0] - 1), "waited": waited,
        "memory": there["memory"], "beside": there["beside"],
    }  # fmt: skip


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    "How long the difference is beside the tensor."
    one, other = one.double(), other.double()
    return float((one - other).norm() / one.norm().clamp(min=1e-12))


def modes(folder: Path) -> Iterator[tuple[str, dict]]:
    "Every packaged configuration, with a sample that has all its conditions."
    import test_modes

    world = test_modes.make_world(folder / "world")
    short = {"optimization.steps": STEPS, "validation.interval": STEPS, "validation.inference_steps": 1}
    for name in test_modes.CONFIGS:
        yield (
            name,
            compared(lambda output, name=name: test_modes.configure(name, world, output, **short), folder / name),
        )


def forms(folder: Path) -> Iterator[tuple[str, dict]]:
    "Precision, quantization, averages, held-out clips, batches."
    from tiny_runs import configure, make_place

    place = make_place(folder / "place")
    short = {"validation__samples": [], "optimization__steps": STEPS}
    for name, changes in (EXACT | CLOSE | ({} if pretended() else CARD)).items():
        yield (
            name,
            compared(lambda output, changes=changes: configure(place, output, **short, **changes), folder / name),
        )


def offloads(folder: Path) -> Iterator[tuple[str, dict]]:
    "Each optimizer on the device, with its memory sent to the host between two steps, and without."
    from ltx_nb.config.settings import OptimizationConfig
    from ltx_nb.training.optimizer import make_optimizer, offloaded

    def walked(kind: str, leaves: bool) -> tuple[dict, bool]:
        noise, away = torch.Generator().manual_seed(0), True
        shapes = {"a.lora_A.weight": (16, 64), "a.lora_B.weight": (64, 16)}
        weights = {name: torch.randn(size, generator=noise) / 8 for name, size in shapes.items()}
        weights = {name: torch.nn.Parameter(w.to(DEVICE)) for name, w in weights.items()}
        optimizer = make_optimizer(
            weights, OptimizationConfig(optimizer_type=kind, learning_rate=1.0 if kind == "prodigy" else 1e-2)
        )
        for _ in range(3):
            for p in weights.values():
                p.grad = torch.randn(p.shape, generator=noise).to(DEVICE)
            optimizer.step()
            if leaves:
                with offloaded(optimizer):
                    there = [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
                    away = away and bool(there) and all(x.device.type == "cpu" for x in there)
        return {name: p.detach().cpu() for name, p in weights.items()}, away

    with watched():
        for kind in ("adamw", "adafactor", "muon", "adamw_bf16", "prodigy", "schedulefree"):
            (plain, _), (left, away) = walked(kind, False), walked(kind, True)
            yield kind, {"same": all(torch.equal(w, left[name]) for name, w in plain.items()), "away": away}


def prepared(folder: Path) -> Iterator[tuple[str, dict]]:
    "A dataset of every role, and clips on request."
    import test_modes

    world = test_modes.make_world(folder / "cpu", decode=True)
    with watched():
        test_modes.make_world(folder / "there", device=DEVICE, dtype="float32", decode=True)
    folders = [path for path in (folder / "cpu" / "data").iterdir() if path.is_dir() and path.name[0] != "."]
    roles = sorted(path.name for path in folders if not path.name.startswith("decoded"))
    for role in roles:
        records = [sorted((folder / name / "data" / role).rglob("*.safetensors")) for name in ("cpu", "there")]
        pairs = [[load_file(path) for path in both] for both in zip(*records)]
        same = all(torch.equal(value, there[name]) for here, there in pairs for name, value in here.items())
        far = max((distance(value, there[name]) for here, there in pairs for name, value in here.items()), default=None)
        yield role, {"same": bool(pairs) and same, "records": len(pairs), "off": far}
    films = [sorted((folder / name / "data" / "decoded_videos").rglob("*.mp4")) for name in ("cpu", "there")]
    yield "previews", {"same": len(films[0]) == 3 and same_files(*films)}
    width, height, frames = test_modes.SIZE
    still = {"type": "first_frame", "image_or_video": str(world[2])}
    request = Request("a rabbit yawns", width=width, height=height, frames=frames, fps=test_modes.FPS, steps=2)
    request = replace(request, guidance=Guidance(stg_blocks=(1,)))
    asked = [request, Request(**vars(request) | {"conditions": [still], "seed": 1})]
    given = asked, world[1].model, world[1].text_encoder
    with watched():
        here, there = (generate(*given, device=device, dtype=torch.float32) for device in ("cpu", DEVICE))
    for name, one, other in zip(("generation", "generation from a picture"), here, there, strict=True):
        far = {"frames off": distance(one.frames, other.frames), "sound off": distance(one.sound, other.sound)}
        yield name, {"same": torch.equal(one.frames, other.frames) and torch.equal(one.sound, other.sound), **far}


def real(folder: Path) -> Iterator[tuple[str, dict]]:
    "What a step of two blocks of LTX-2.3 takes, and what was foretold."
    from benchmarks.real_size import Stage, count

    for name, (example, given) in REAL.items():
        (place := folder / name).mkdir()
        line = count(Stage(place, "2.3", (960, 544, 121), 2), example, given, ["training"], steps=4)
        yield name, line["phases"]["step"]


if __name__ == "__main__":
    DEVICE = sys.argv[3] if len(sys.argv) > 3 else str(register())
    torch.set_num_threads(1)
    for case, facts in {"modes": modes, "forms": forms, "offloads": offloads, "prepared": prepared, "real": real}[
        sys.argv[1]
    ](Path(sys.argv[2])):
        print(json.dumps({"case": case} | facts), flush=True)
