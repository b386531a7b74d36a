"""The first minutes on a card: `make gpu`, or `python -m benchmarks.gpu` from the root of the project.

    python -m benchmarks.gpu                      # 8 minutes on one CUDA GPU; results in benchmarks/results/
    python -m benchmarks.gpu --only steps         # one part: card, steps, profile, numbers, modes, tests, presets
    python -m benchmarks.gpu --dry --output DIR   # the same at tiny sizes on the CPU, in less than a minute
    python -m benchmarks.gpu --prepare            # beforehand, anywhere: what the plan foretells, into gpu_rows.json

What the card can do at all; training steps of a model of 19 billion random weights beside what the memory plan foretold
and the pretend GPU counted, and the kernels of one of them; the tiny model against the CPU, every mode too; the tests that
need a card; the examples for smaller cards, in as much memory as those have, from files of the real size. `card`, `steps`
and `profile` need nothing but PyTorch; what the others miss can lie as wheels in build/gpu-wheels (`make gpu-wheels`). Each part is a process of its
own with a limit, so that none that hangs or breaks the device takes the others along, and what is known is written after
every row: whoever ends the program early has all of it up to there. Where a machine keeps one folder alone: --output.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(__file__).with_name("gpu_rows.json")
WHEELS = ROOT / "build" / "gpu-wheels"
SIZES = ("512x288x49", "576x576x49", "960x544x89", "960x544x121")  # the quick ones first
FORMS = {  # what is trained: overrides of the example t2v_lora
    "bf16, checkpointing": [],
    "nf4, checkpointing": ["acceleration.quantization=nf4"],
    "int8, checkpointing": ["acceleration.quantization=int8"],
    "bf16, everything kept": ["optimization.enable_gradient_checkpointing=false"],
}
REFERENCE = "ltx-core under PEFT and autocast, checkpointing"
COMPILED = "bf16, checkpointing, compiled"
PLAIN = "bf16, checkpointing, no kernels of our own", "nf4, checkpointing, no kernels of our own"
CARDS = {  # the examples for cards, and their memory in GiB as CUDA says it
    "t2v_lora_24gb": 23.5, "t2v_lora_16gb": 15.5, "t2v_lora_12gb": 11.6, "t2v_lora_8gb": 7.6, "t2v_lora_t4": 14.5,
    "t2v_full_48gb": 44.4, "t2v_full_80gb": 79.1,
}  # fmt: skip
FPS = 24.0


@dataclass(frozen=True)
class Bench:
    "Where and how large."

    dry: bool  # tiny sizes

    @property
    def device(self):
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        import torch

        if self.cuda:
            torch.cuda.synchronize()

    def times(self, work: Callable[[], object], times: int = 5) -> tuple[float, float]:
        "Medians of a few runs, after one that does not count: until all is done, and until all is queued."
        found = []
        for _ in range(1 + (1 if self.dry else times)):
            self.wait()
            began = time.perf_counter()
            work()
            queued = time.perf_counter() - began
            self.wait()
            found.append((time.perf_counter() - began, queued))
        return tuple(map(statistics.median, zip(*found[1:])))


# ---- 1. what the card can do at all ----


def about(bench: Bench) -> dict:
    "What and where."
    import torch

    name = torch.cuda.get_device_name() if bench.cuda else platform.processor() or platform.machine()
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if bench.cuda else None
    return {
        "device": name, "memory_gb": memory, "torch": torch.__version__, "cuda": torch.version.cuda,
        "python": platform.python_version(), "cores": os.cpu_count(),
    }  # fmt: skip


def card(bench: Bench) -> Iterator[dict]:
    "Versions, and the ceilings of products, copies and attention."
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    n, tokens, heads = (64, 64, 2) if bench.dry else (8192, 6120, 32)
    make = lambda *shape: torch.randn(shape, device=bench.device, dtype=torch.bfloat16)
    a, b = make(n, n), make(n, n)
    yield {"product_tflops": 2 * n**3 / bench.times(lambda: a @ b)[0] / 1e12}
    source = torch.empty(2**16 if bench.dry else 2**30, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    yield {"copy_gb_s": 2 * source.nbytes / bench.times(lambda: target.copy_(source))[0] / 1e9}
    q, k, v = (make(1, heads, tokens, 128).requires_grad_() for _ in range(3))
    grad, flops = make(1, heads, tokens, 128), 4 * heads * tokens**2 * 128
    forward, _ = bench.times(lambda: attend(q.detach(), k.detach(), v.detach()))
    both, _ = bench.times(lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), grad))
    yield {"attention_forward_tflops": flops / forward / 1e12, "attention_both_tflops": 3.5 * flops / both / 1e12}
    yield {"attention_by_backend_tflops": by_backend(bench, (q, k, v), grad, flops)}
    if bench.cuda:
        host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        there = bench.times(lambda: source[: 2**28].copy_(host, non_blocking=True))[0]
        yield {"from_pinned_gb_s": host.nbytes / there / 1e9}


def by_backend(bench: Bench, qkv: tuple, grad, flops: int) -> dict[str, list[float | None]]:
    "Forward, and forward and backward, of each implementation that PyTorch has; the first of all is what it takes by itself."
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attend

    found = {}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                forward, _ = bench.times(lambda: attend(*(t.detach() for t in qkv)))
                both, _ = bench.times(lambda: torch.autograd.grad(attend(*qkv), qkv, grad))
            found[name] = f"{flops / forward / 1e12:.0f} / {3.5 * flops / both / 1e12:.0f}"
        except RuntimeError as error:
            found[name] = str(error)[:60]
    return found


# ---- 2. steps of a model of the real size: nothing but PyTorch is needed ----


def stand_in_for_files() -> None:
    "`ltx_nb.loading.lora` imports safetensors, which nothing here calls: where it is not installed, an empty one does."
    if "safetensors" not in sys.modules and importlib.util.find_spec("safetensors") is None:
        empty = types.ModuleType("safetensors")
        empty.torch = types.ModuleType("safetensors.torch")
        empty.SafetensorError = OSError
        for name in ("safe_open", "save_file", "load_file", "save", "load"):
            setattr(empty, name, None), setattr(empty.torch, name, None)
        sys.modules |= {"safetensors": empty, "safetensors.torch": empty.torch}


def shape_of_model(bench: Bench) -> dict:
    "The header of LTX-2.3, or a small one."
    header = {"transformer": json.loads(ROWS.read_text(encoding="utf-8"))["transformer"]}
    if bench.dry:
        few = {"num_attention_heads": 2, "audio_num_attention_heads": 2, "num_layers": 1}
        header["transformer"] |= few | {"cross_attention_dim": 256, "audio_cross_attention_dim": 128}
    return header


def random_weights(module, device) -> None:
    "Numbers for the weights that a module holds itself, made on the device and never zero throughout."
    import torch

    near = 1.0 if isinstance(module, torch.nn.RMSNorm) else 0.0
    for name, weight in list(module.named_parameters(recurse=False)):
        made = torch.empty(weight.shape, dtype=weight.dtype, device=device).normal_(near, 0.02)
        setattr(module, name, torch.nn.Parameter(made, requires_grad=False))


def our_model(bench: Bench, header: dict, form: str, lora: dict):
    "The library's transformer; a large weight is quantized as soon as it is there."
    import torch

    from ltx_nb.loading.lora import add_lora
    from ltx_nb.loading.quantization import quantize_layer
    from ltx_nb.model.transformer import LTXModel, compile_blocks

    with torch.device("meta"):
        model = LTXModel.from_config(header).to(torch.bfloat16)
    kept = form.partition(",")[0]
    for path in [path for path, _ in model.named_modules()]:
        module = model.get_submodule(path)  # asked for one by one, so that nothing keeps what is replaced
        random_weights(module, bench.device)
        if kept != "bf16" and isinstance(module, torch.nn.Linear):
            quantize_layer(model, path, kept)
    model.gradient_checkpointing = "checkpointing" in form
    with torch.device(bench.device):
        add_lora(model.requires_grad_(False), lora["rank"], lora["alpha"], lora["target_modules"])
    if form == COMPILED:
        compile_blocks(model)
    return model.to(bench.device).train()


def reference(bench: Bench, header: dict):
    "ltx-core's, with random weights too."
    from ltx_nb.config.files import load_config

    from .real_size import reference_model

    given = {"model.model_path": "none", "data.preprocessed_data_root": "none"}
    model = reference_model(header, load_config("t2v_lora", given, check_files=False), bench.device)
    for weight in model.parameters():
        weight.data.normal_(0, 0.02)
    return model


def inputs_of(model_config, size: str, device, rows: int):
    "Random tokens of a clip with sound, and a caption."
    import torch

    from ltx_nb.model.latents import audio_latent_length, audio_positions, latent_shape, video_positions
    from ltx_nb.model.transformer import Modality

    width, height, frames = map(int, size.split("x"))
    grid, steps = latent_shape(width, height, frames), audio_latent_length(frames / FPS)
    places = {"video": video_positions(grid, FPS, device=device), "audio": audio_positions(steps, device=device)}
    level, found = torch.full((1,), 0.6, device=device), {}
    for name, positions in places.items():
        stream = model_config.streams[name]
        wide = stream.dim if model_config.caption_channels is None else model_config.caption_channels
        make = lambda *shape: torch.randn(1, *shape, device=device, dtype=torch.bfloat16)
        latent, caption = make(positions.shape[2], stream.in_channels), make(rows, wide)
        found[name] = Modality(latent, level, level[:, None], positions, caption, levels=level[:, None])
    return types.SimpleNamespace(**found)


def optimizer_of(trained: list):
    "The library's, or PyTorch's where pydantic is missing: one kernel either way."
    import torch

    try:
        from ltx_nb.training.optimizer import AdamW
    except ImportError:
        from torch.optim import AdamW
    return AdamW(trained, 1e-4, fused=True) if torch.cuda.is_available() else torch.optim.AdamW(trained, 1e-4)


def waits_in(bench: Bench, step: Callable[[], object]) -> int | None:
    "How often PyTorch says that the host waited."
    import torch

    if not bench.cuda:
        return None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in said)


def step_of(model, given: list, autocast, call) -> Callable:
    "A training step: forward, loss, backward, clipping, optimizer."
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(trained)
    targets = [torch.randn_like(m.latent.float()) for m in given]

    def step():
        with autocast:
            loss = sum((x.float() - target).square().mean() for x, target in zip(call(*given), targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def measured(bench: Bench, step: Callable) -> dict:
    "Seconds, waits and peak of a step."
    import torch

    loss = step()  # makes the optimizer's state
    total, queued = bench.times(step, 3)
    found = {"seconds": total, "host_s": queued, "waits": waits_in(bench, step), "loss": float(loss.detach())}
    if bench.cuda:
        found |= {
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
        }
    return found


def let_go(bench: Bench) -> None:
    import gc

    import torch

    gc.collect()
    if bench.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def rows_of(bench: Bench, form: str) -> Iterator[dict]:
    "One form at every size, on one model; a size that fails says why."
    import torch

    stand_in_for_files()
    if form in PLAIN:
        os.environ["LTX_NB_KERNELS"] = "0"  # asked once a process, at the first step
    prepared, header, model = json.loads(ROWS.read_text(encoding="utf-8")), shape_of_model(bench), None
    known = {(row["form"], row["size"]): row for row in prepared["rows"]}
    room = torch.cuda.get_device_properties(0).total_memory / 1e9 if bench.cuda else float("inf")
    from ltx_nb.model.transformer import read_config

    for size in ("64x64x9",) if bench.dry else SIZES[-1:] if form == COMPILED else SIZES:
        row = {"form": form, "size": size} | known.get((form, size), {})
        if row.get("foretold_gb", 0) > room:
            yield row | {"error": f"not tried: the card has {room:.1f} GB"}
            continue
        try:
            if model is None:
                began = time.perf_counter()
                model = (
                    reference(bench, header) if form == REFERENCE else our_model(bench, header, form, prepared["lora"])
                )
                bench.wait()
                row["made_s"] = time.perf_counter() - began
            let_go(bench)
            inputs = inputs_of(read_config(header), size, bench.device, 8 if bench.dry else 1024)
            given, call, autocast = [inputs.video, inputs.audio], model, contextlib.nullcontext()
            if form == REFERENCE:
                from .real_size import reference_inputs

                given, call = reference_inputs(inputs, bench.device), lambda *x, model=model: model(*x, None)
                autocast = torch.autocast(bench.device.type, torch.bfloat16)
            row |= measured(bench, step_of(model, given, autocast, call))
        except torch.OutOfMemoryError as error:
            row["error"] = f"out of memory: {str(error)[:120]}"
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        yield row
        if model is None or "CUDA error" in row.get("error", ""):
            return  # nothing more will work in this process


KINDS = {  # of kernels, by what their names have; the first that fits
    "products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "matmul"), "attention": ("flash", "fmha", "sdpa", "attention"),
    "norms": ("norm",), "copies and casts": ("copy", "memcpy", "cat", "memset"), "sums": ("reduce",),
}  # fmt: skip


def profile(bench: Bench) -> Iterator[dict]:
    "Where the time of one step goes on the device: by kind of kernel, and the longest kernels."
    import torch
    from torch.profiler import ProfilerActivity

    from ltx_nb.model.transformer import read_config

    stand_in_for_files()
    prepared, header = json.loads(ROWS.read_text(encoding="utf-8")), shape_of_model(bench)
    model = our_model(bench, header, next(iter(FORMS)), prepared["lora"])
    size = "64x64x9" if bench.dry else SIZES[-1]
    inputs = inputs_of(read_config(header), size, bench.device, 8 if bench.dry else 1024)
    step = step_of(model, [inputs.video, inputs.audio], contextlib.nullcontext(), model)
    step(), step(), bench.wait()
    began = time.perf_counter()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if bench.cuda else ProfilerActivity.CPU]) as seen:
        step()
        bench.wait()
        took = time.perf_counter() - began
    kernels = [
        (one.key, one.self_device_time_total if bench.cuda else one.self_cpu_time_total, one.count)
        for one in seen.key_averages()
    ]
    kinds: dict[str, list] = {}
    for name, micros, times in kernels:
        kind = next(
            (kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), "elementwise"
        )
        found = kinds.setdefault(kind, [0.0, 0])
        found[0], found[1] = found[0] + micros / 1e6, found[1] + times
    yield {"size": size, "with_profiler_s": took, "on_device_s": sum(micros for _, micros, _ in kernels) / 1e6}
    yield {"by_kind": {kind: f"{seconds:.3f} s, {times} kernels" for kind, (seconds, times) in kinds.items()}}
    longest = sorted(kernels, key=lambda one: -one[1])[:30]
    yield {"longest": {name[:110]: f"{micros / 1e3:.1f} ms, {times}" for name, micros, times in longest}}


# ---- 3. the tiny model against the CPU, and the tests ----


def tiny_numbers(device: str, dry: bool) -> dict:
    "Losses of a few trainings and a sample of the tiny model on one device."
    import torch

    from ltx_nb.config.files import load_config
    from ltx_nb.data.batches import DummyDataset
    from ltx_nb.flow.sampling import Guidance
    from ltx_nb.tiny.checkpoint import tiny_checkpoint
    from ltx_nb.training.trainer import LtxvTrainer
    from ltx_nb.training.validation import generate

    torch.set_num_threads(1)  # of a model so small that several would wait for each other
    tiny, found = tiny_checkpoint(), {}
    with tempfile.TemporaryDirectory() as folder:
        clips = {"width": 64, "height": 64, "num_frames": 17, "dataset_length": 3}
        contexts = {"context_width": 128, "audio_context_width": 64, "context_length": 128}
        data = DummyDataset(**clips, **contexts).save(Path(folder) / "data")
        usual = [f"model.model_path={tiny.model}", f"model.text_encoder_path={tiny.text_encoder}"]
        usual += ["validation.samples=[]", "validation.interval=null", f"data.preprocessed_data_root={data}"]
        for mode in ("no", "bf16", "fp16"):
            own = [f"output_dir={folder}/{mode}", f"acceleration.mixed_precision_mode={mode}"]
            own += [f"optimization.steps={3 if dry else 50}"]
            trainer = LtxvTrainer(load_config("tiny_t2v_lora", [*usual, *own]), device=device)
            trainer.train(disable_progress_bars=True, on_step=lambda r, to=found.setdefault(mode, []): to.append(r))
            found[mode] = [float(report.losses["loss"]) for report in found[mode]]
        asked = {"width": 64, "height": 64, "frames": 17, "steps": 2 if dry else 10, "guidance": Guidance.off()}
        for name in ("float32",) if dry else ("float32", "bfloat16", "float16"):
            given = "a red circle", tiny.model, tiny.text_encoder
            made = generate(*given, device=device, dtype=getattr(torch, name), **asked)
            found[f"sample {name}"] = made.frames.float().mean((2, 3)).flatten().tolist()
    return found


def numbers(bench: Bench) -> Iterator[dict]:
    "The first loss (a forward pass), the second (a step), the last, and a sample: how far the card is from the CPU."
    extra = ["--dry"] if bench.dry else []
    asked = lambda device: [sys.executable, "-m", "benchmarks.gpu", "--tiny-numbers", device, *extra]
    both = [subprocess.Popen(asked(str(d)), cwd=ROOT, stdout=subprocess.PIPE, text=True) for d in ("cpu", bench.device)]
    told = [program.communicate()[0] for program in both]  # at the same time
    if any(program.returncode for program in both):
        raise RuntimeError("the tiny model did not run, see above")
    here, there = (json.loads(text.splitlines()[-1]) for text in told)
    for name, values in here.items():
        others = there[name]
        if name.startswith("sample"):
            yield {name: {"largest difference of a mean, of 255": max(abs(a - b) for a, b in zip(values, others))}}
        else:
            off = [abs(b / a - 1) for a, b in zip(values, others)]
            yield {f"training {name}": {"forward": off[0], "one step": off[1], f"{len(off)} steps": off[-1]}}


def modes(bench: Bench) -> Iterator[dict]:
    "Every mode, form, preparation and generation of tests/pretend_runs.py, on the card and on the CPU."
    for part in ("modes", "forms", "prepared"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "tests/pretend_runs.py", part, folder, str(bench.device)]
            program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for line in program.stdout:
                if line.startswith("{"):
                    facts = json.loads(line)
                    case, kept = facts.pop("case"), ("error", "off", "first off", "frames off", "sound off")
                    yield {f"{part}: {case}": {name: facts[name] for name in kept if facts.get(name) is not None}}
                    if bench.dry:
                        program.kill()
            if (said := program.stderr.read()) and program.wait() and not bench.dry:
                yield {f"{part}: failed": said[-1000:]}
        if bench.dry:
            return


def tests(bench: Bench) -> Iterator[dict]:
    "The tests marked `gpu`, from the files that have some."
    marked = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    which = [str(path) for path in (marked[:1] if bench.dry else marked)]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", *which]
    if importlib.util.find_spec("xdist") is None:
        command.remove("-n"), command.remove("0")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    told = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    yield {"summary": told[-1]} | ({"failed": "\n".join(told)[-1500:]} if done.returncode else {})


# ---- 4. the examples for cards ----


def told_of(name: str, foretold: dict[str, int], cuda: bool):
    "A view of a run's progress that prints each phase as it ends: what it took, and what was foretold."
    import torch

    from ltx_nb.training.progress import View

    class Told(View):
        def __init__(self):
            self.running, self.began = [], time.perf_counter()

        def changed(self, progress, phase, event):
            if event != "advance":
                if self.running:
                    self.say({"Validation": "Decoding"}.get(self.running[-1].name, self.running[-1].name))
                (self.running.append if event == "start" else self.running.remove)(phase)

        def say(self, what: str, **more) -> None:
            row = {"took_s": round(time.perf_counter() - self.began, 2)} | more
            if cuda:
                peak = torch.cuda.max_memory_allocated()
                row |= {"peak_gb": peak / 1e9, "reserved_gb": torch.cuda.max_memory_reserved() / 1e9}
                if what in foretold:
                    row |= {"foretold_gb": foretold[what] / 1e9, "off_percent": 100 * (foretold[what] / peak - 1)}
                torch.cuda.reset_peak_memory_stats()
            print(json.dumps({f"{name}: {what}": row}), flush=True)
            self.began = time.perf_counter()

    return Told()


def preset(bench: Bench, name: str) -> None:
    "An example in the memory of its card: loading, steps, a sample, from files as large as the published ones, all zeros."
    import torch

    from ltx_nb.training.progress import Progress
    from ltx_nb.training.trainer import LtxvTrainer

    from .real_size import Stage, foretell, spare_memory

    if bench.cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CARDS[name] * 2**30 / total))
    with tempfile.TemporaryDirectory(dir=spare_memory()) as place:
        stage = Stage(Path(place), "2.3", (64, 64, 9) if bench.dry else (960, 544, 121), 1 if bench.dry else None)
        data = stage.write().write_records(name, [])
        given = ["acceleration.stream=0"] if bench.dry else ["optimization.warmup_steps=0"]
        config = stage.config(name, data, Path(place) / "run", given, not bench.dry)
        foretold = {} if bench.dry else foretell(stage, config, ["training", "sampling"])
        trainer = LtxvTrainer(config, Progress(view := told_of(name, foretold, bench.cuda)), bench.device)
        trainer.load()
        view.say("loaded")
        times = [time.perf_counter()]
        for report in trainer.steps():
            bench.wait()
            times.append(time.perf_counter())
            if report.step == (2 if bench.dry else 5):
                break
        seconds = statistics.median(b - a for a, b in zip(times[1:], times[2:]))  # the first one makes states
        view.say("step", seconds=seconds, loss=float(report.losses["loss"]))
        if not bench.dry:
            trainer.validate()
            view.say("sample")


def presets(bench: Bench, names: list[str] | None = None) -> Iterator[dict]:
    "One after the other, each in a process of its own, which is let go whatever becomes of it."
    for name in names or list(CARDS)[: 1 if bench.dry else -1]:  # the largest needs a host of 128 GB
        command = [sys.executable, "-m", "benchmarks.gpu", "--preset", name, *(["--dry"] if bench.dry else [])]
        for line in lines_of(command, 120, dict(os.environ)):
            yield {f"{name}: failed": line["error"]} if "error" in line else line


# ---- all of it: each part in a process of its own ----

PARTS = {"card": card, "profile": profile, "numbers": numbers, "modes": modes, "tests": tests, "presets": presets}


@dataclass(frozen=True)
class Job:
    "A part, or a form of the steps, and how long it may take."

    part: str
    seconds: float
    forms: tuple[str, ...] = ()

    def command(self, dry: bool) -> list[str]:
        forms = [word for form in self.forms for word in ("--form", form)]
        return [sys.executable, "-m", "benchmarks.gpu", "--part", self.part, *forms, *(["--dry"] if dry else [])]


def jobs(dry: bool) -> list[Job]:
    "What tells most comes first."
    if dry:
        forms = Job("steps", 60, (*FORMS, REFERENCE))
        return [
            Job("card", 60),
            forms,
            *(Job(part, 90) for part in ("profile", "numbers", "modes", "tests", "presets")),
        ]
    bf16, *quantized, kept = (Job("steps", 110, (form,)) for form in FORMS)
    return [
        Job("card", 60),
        bf16,
        Job("profile", 90),
        Job("numbers", 120),
        *quantized,
        Job("tests", 90),
        kept,
        Job("steps", 110, (REFERENCE,)),
        *(Job("steps", 110, (form,)) for form in PLAIN),
        Job("steps", 200, (COMPILED,)),
        Job("presets", 480),
        Job("modes", 300),
    ]


def lines_of(command: list[str], seconds: float, env: dict) -> Iterator[dict]:
    "The lines of JSON that a program prints, as they come; the last one may be an error. It is gone at the end."
    with tempfile.TemporaryFile("w+") as said:
        program = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        )
        lines, until = queue.Queue(), time.monotonic() + seconds
        threading.Thread(target=lambda: [*map(lines.put, program.stdout), lines.put(None)], daemon=True).start()
        try:
            while (line := lines.get(timeout=max(0.01, until - time.monotonic()))) is not None:
                if line.startswith("{"):
                    yield json.loads(line)
            if program.wait(timeout=max(1.0, until - time.monotonic())):
                said.seek(0)
                yield {"error": f"ended with {program.returncode}: {said.read()[-1500:].strip()}"}
        except (queue.Empty, subprocess.TimeoutExpired):
            yield {"error": f"not done after {seconds:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)  # with what it started
            program.wait()


def take(results: dict, job: Job, line: dict) -> None:
    "Put a line where it belongs."
    results["about"] |= line.pop("about", {})
    facts = results["parts"].setdefault(job.part, {"rows": []} if job.part == "steps" else {})
    if job.part == "steps":
        facts["rows"] += [line if "form" in line else {"form": ", ".join(job.forms)} | line] if line else []
    else:
        facts |= line


def run_jobs(todo: list[Job], dry: bool, until: float, write: Callable[[dict], None], env: dict | None = None) -> dict:
    "Each job, whatever becomes of the others; what there is so far is written after each line."
    command = "python -m benchmarks.gpu " + " ".join(sys.argv[1:])
    results = {"about": {"date": time.strftime("%Y-%m-%d %H:%M"), "dry": dry, "command": command}, "parts": {}}
    for job in todo:
        began, left = time.monotonic(), until - time.monotonic()
        late = [{"error": "no time was left"}]
        for line in lines_of(job.command(dry), min(job.seconds, left), env or dict(os.environ)) if left > 1 else late:
            take(results, job, line)
            write(results)
        facts = results["parts"].setdefault(job.part, {})
        facts["took_s"] = round(facts.get("took_s", 0) + time.monotonic() - began, 1)
        write(results)
    return results


def table(results: dict) -> str:
    "What a person reads."
    told, parts = results["about"], results["parts"]
    cell = lambda x: "-" if x is None else f"{x:,.4g}" if isinstance(x, float) else str(x).replace("\n", " ")
    facts_of = lambda facts: ", ".join(f"{name}: {cell(value)}" for name, value in facts.items())
    lines = [f"# {told.get('device', 'no device')}", "", facts_of({k: v for k, v in told.items() if k != "device"})]
    for name, facts in parts.items():
        lines += ["", f"## {name} ({facts.get('took_s', '-')} s)", ""]
        if "rows" in facts:
            heads = [
                "form",
                "size",
                "seconds",
                "host_s",
                "waits",
                "peak_gb",
                "foretold_gb",
                "counted_gb",
                "reserved_gb",
                "error",
            ]
            lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
            lines += ["| " + " | ".join(cell(row.get(head)) for head in heads) + " |" for row in facts["rows"]]
        for key, value in facts.items():
            if key == "error":
                lines.append(f"failed: {value}")
            elif key not in ("rows", "took_s"):
                lines.append(f"- {key}: {facts_of(value) if isinstance(value, dict) else cell(value)}")
    return "\n".join(lines) + "\n"


def with_wheels(folder: str) -> dict:
    "The environment of the parts: with the packages that were brought along."
    found = sorted(WHEELS.glob("*.whl")) if WHEELS.is_dir() else []
    for wheel in found:
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), *([folder] if found else [])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def prepare() -> dict:
    "What a step needs to be made, foretold and counted, so that a card spends no time on it."
    from ltx_nb.config.files import load_config
    from ltx_nb.tools.hollow import real_header
    from ltx_nb.training.memory import memory_plan

    from .real_size import Stage, key, read_lines

    rows, lines = [], {key(line): line for line in read_lines()}
    for size in SIZES:
        for form, given in FORMS.items():
            with tempfile.TemporaryDirectory() as folder:
                stage = Stage(Path(folder), "2.3", tuple(map(int, size.split("x")))).write()
                data = stage.write_records("t2v_lora", given)
                plan = memory_plan(stage.config("t2v_lora", data, Path(folder) / "run", given, False), sampling=False)
            same = {"version": "2.3", "program": "ltx_nb", "config": "t2v_lora", "set": given, "size": size}
            counted = lines.get(key(same), {}).get("phases", {}).get("step", {}).get("peak_gb")
            rows.append({"form": form, "size": size, "foretold_gb": round(plan.total / 1e9, 3), "counted_gb": counted})
            print(rows[-1], flush=True)
    given = {"model.model_path": "none", "data.preprocessed_data_root": "none"}
    lora = load_config("t2v_lora", given, check_files=False).lora
    lora = {"rank": lora.rank, "alpha": lora.alpha, "target_modules": lora.target_modules}
    return {"transformer": real_header("2.3")["transformer"], "lora": lora, "rows": rows}


def run_part(part: str, forms: list[str], bench: Bench) -> None:
    "In a process of its own: lines of JSON."
    if part in ("card", "steps", "profile"):
        print(json.dumps({"about": about(bench)}), flush=True)
    found = (row for form in forms for row in rows_of(bench, form)) if part == "steps" else PARTS[part](bench)
    for line in found:
        print(json.dumps(line), flush=True)


def has_cuda() -> bool:
    "Asked in a process of its own, so that this one holds nothing of the card."
    ask = [sys.executable, "-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"]
    return subprocess.run(ask, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on the CPU where there is no GPU")
    parser.add_argument("--only", action="append", choices=[*PARTS, "steps"], help="a part; may be given several times")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which everything ends")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="for JSON and table")
    parser.add_argument("--prepare", action="store_true", help=f"write {ROWS.name}, and run nothing")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--form", action="append", default=[], help="a form of the steps, such as 'nf4, checkpointing'")
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    parser.add_argument("--tiny-numbers", metavar="DEVICE", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.prepare:
        ROWS.write_text(json.dumps(prepare(), indent=1) + "\n", encoding="utf-8")
    elif options.tiny_numbers:
        print(json.dumps(tiny_numbers(options.tiny_numbers, options.dry)))
    elif options.preset:
        preset(Bench(options.dry), options.preset)
    elif options.part:
        run_part(options.part, options.form, Bench(options.dry))
    elif not options.dry and not has_cuda():
        print("There is no CUDA device here. `--dry --output DIR` runs it at tiny sizes on the CPU.", file=sys.stderr)
        return 2
    else:
        run_all(options)
    return 0


def run_all(options: argparse.Namespace) -> None:
    "Jobs, results and the table."
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the part that runs, too
    until = time.monotonic() + 60 * options.minutes
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"gpu-{time.strftime('%Y-%m-%d')}{'-dry' if options.dry else ''}"

    def write(results: dict) -> None:
        for suffix, text in (".json", json.dumps(results, indent=1)), (".md", table(results)):
            unfinished = stem.with_suffix(f"{suffix}.part")
            unfinished.write_text(text, encoding="utf-8")
            os.replace(unfinished, stem.with_suffix(suffix))

    asked = lambda job: (
        (not options.only or job.part in options.only)
        and (not (options.form and job.forms) or set(options.form) & set(job.forms))
    )
    todo = [job for job in jobs(options.dry) if asked(job)]
    with tempfile.TemporaryDirectory() as folder:
        print(table(run_jobs(todo, options.dry, until, write, with_wheels(folder))))


if __name__ == "__main__":
    sys.exit(main())
