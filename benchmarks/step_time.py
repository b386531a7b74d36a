"""How long a training step takes, beside the oracle: `make bench`, or `python benchmarks/step_time.py --save`.

A step is forward, loss and backward with a LoRA on all attentions. Both models carry the same weights and adapters, see
the same inputs and take turns in one process on one thread. What is compared is the process's CPU time, which other work
on the machine disturbs least; a ratio is the median over rounds of oracle / ours within a round.
"""

import argparse
import datetime
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import oracle  # noqa: E402, F401, I001  (first: it makes ltx_core importable without torchaudio)
from ltx_core.model.transformer.modality import Modality as OracleModality  # noqa: E402
from ltx_core.model.transformer.model_configurator import LTXModelConfigurator  # noqa: E402

from ltx_nb.model.latents import audio_positions, video_positions  # noqa: E402
from ltx_nb.loading.lora import TARGETS, add_lora  # noqa: E402
from ltx_nb.model.transformer import LTXModel, Modality  # noqa: E402
from ltx_nb.tiny.checkpoint import transformer_section  # noqa: E402

RANK = 16
SIGMA = {"video": 0.7, "audio": 0.4}  # different, so that nothing agrees by accident
LIMIT = {"outputs": 1e-5, "gradients": 1e-5}
COMMON = (
    "mm",
    "addmm",
    "bmm",
    "scaled_dot_product",
    "gelu",
)  # beginnings of operators that both sides have to call alike


@dataclass(frozen=True)
class Size:
    "Sizes of a model and of a clip."

    head_dim: int  # of video; audio has half of it
    grid: tuple[int, int, int]  # latent frames, height, width; the first frame is given
    audio_tokens: int
    text_tokens: int
    rounds: int
    heads: int = 4
    layers: int = 4

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


SIZES = {
    "tiny": Size(head_dim=32, grid=(6, 4, 4), audio_tokens=16, text_tokens=32, rounds=25),
    "mid": Size(head_dim=128, grid=(12, 10, 12), audio_tokens=64, text_tokens=128, rounds=5),
}
VERSIONS = {"LTX-2": "2", "LTX-2.3": "2.3"}
COMPARISONS = {  # what: oracle's variant, ours
    "no checkpointing on both sides": ("oracle", "ours"),
    'the same, ours in its default mode, cross_timestep="own"': ("oracle", "ours own"),
    "checkpointing on both sides": ("oracle checkpointed", "ours checkpointed"),
    "oracle checkpointed (its default), ours not": ("oracle checkpointed", "ours"),
}

# ---- two models with the same weights, and what they see ----


def header(size: Size, layout: str) -> dict:
    widths = {
        "num_layers": size.layers, "num_attention_heads": size.heads, "attention_head_dim": size.head_dim,
        "cross_attention_dim": size.dim, "audio_num_attention_heads": size.heads,
        "audio_attention_head_dim": size.head_dim // 2, "audio_cross_attention_dim": size.dim // 2,
        "caption_channels": size.dim,
    }  # fmt: skip
    return {"transformer": transformer_section(VERSIONS[layout]) | widths}


@torch.no_grad()
def models(size: Size, layout: str) -> tuple[LTXModel, nn.Module]:
    "Ours, and the oracle under PEFT as the public trainer wraps it."
    torch.manual_seed(0)
    ours = LTXModel.from_config(header(size, layout), cross_timestep="other")
    theirs = LTXModelConfigurator.from_config(header(size, layout))
    for name, weight in ours.named_parameters():
        if weight.ndim == 1 and "norm" in name:
            weight.add_(0.05 * torch.randn_like(weight))
    weights = {name: weight.clone() for name, weight in ours.state_dict().items()}
    theirs.load_state_dict(weights, assign=True)  # parts of it are built on the meta device
    add_lora(ours, rank=RANK)
    theirs = get_peft_model(theirs, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS["all"], bias="none"))
    adapters, copies = lora(ours), lora(theirs)
    assert adapters.keys() == copies.keys() and len(adapters) == 48 * size.layers
    for name, weight in adapters.items():
        weight.normal_(0, 0.02 if "lora_B" in name else weight.shape[1] ** -0.5)  # B = 0 would leave A without gradient
        copies[name].copy_(weight)
    return ours.train(), theirs.train()


def lora(model: nn.Module) -> dict[str, Tensor]:
    return {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if p.requires_grad}


def clip(size: Size, layout: str) -> dict[str, dict[str, Tensor]]:
    "The fields of both modalities: a first frame that is given, noise levels that differ."
    generator = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(shape, generator=generator)
    frames, height, width = size.grid
    tokens = {"video": frames * height * width, "audio": size.audio_tokens}
    places = {"video": video_positions(size.grid, 24.0), "audio": audio_positions(size.audio_tokens)}
    context = {"video": size.dim, "audio": size.dim if layout == "LTX-2" else size.dim // 2}
    fields = {}
    for name, count in tokens.items():
        sigma = torch.tensor([SIGMA[name]])
        timesteps = sigma.repeat(count)[None]
        if name == "video":
            timesteps[:, : height * width] = 0
        fields[name] = {
            "latent": normal(1, count, 128), "sigma": sigma, "timesteps": timesteps, "positions": places[name],
            "context": normal(1, size.text_tokens, context[name]),
        }  # fmt: skip
    return fields


# ---- one step of each variant ----


def targets_of(modalities: list) -> list[Tensor]:
    return [torch.randn(m.latent.shape, generator=torch.Generator().manual_seed(2)) for m in modalities]


def train_step(model: nn.Module, weights: list[Tensor], inputs: tuple, targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    "Forward, loss and backward; gradients are those of this step alone."
    for weight in weights:
        weight.grad = None
    out = model(*inputs)
    (F.mse_loss(out[0], targets[0]) + F.mse_loss(out[1], targets[1])).backward()
    return out


def variants(size: Size, layout: str) -> tuple[dict[str, Callable[[], tuple]], LTXModel, nn.Module]:
    ours, theirs = models(size, layout)
    inputs = clip(size, layout)
    own = [Modality(**inputs[name]) for name in ("video", "audio")]
    other = [OracleModality(**inputs[name], enabled=True, context_mask=None) for name in ("video", "audio")]
    targets, trained = targets_of(own), {model: list(lora(model).values()) for model in (ours, theirs)}
    step = lambda model, modalities: train_step(model, trained[model], (*modalities, None), targets)

    def our_step(checkpointing: bool = False, cross_timestep: str = "other") -> tuple:
        ours.gradient_checkpointing, ours.cross_timestep = checkpointing, cross_timestep
        return step(ours, own)

    def their_step(checkpointing: bool = False) -> tuple:
        theirs.base_model.model.set_gradient_checkpointing(checkpointing)
        return step(theirs, other)

    steps = {
        "oracle": their_step, "ours": our_step, "ours own": lambda: our_step(cross_timestep="own"),
        "oracle checkpointed": lambda: their_step(True), "ours checkpointed": lambda: our_step(True),
    }  # fmt: skip
    return steps, ours, theirs


def differences(steps: dict, ours: LTXModel, theirs: nn.Module, checkpointed: str = "") -> tuple[float, float, str]:
    "Largest difference of an output; of a LoRA gradient relative to its largest entry, and in which adapter."
    outputs = zip(steps["ours" + checkpointed](), steps["oracle" + checkpointed](), strict=True)
    output = max((a - b).abs().max().item() for a, b in outputs)
    found = lora(theirs)
    relative = {
        n: ((p.grad - found[n].grad).abs().max() / found[n].grad.abs().max()).item() for n, p in lora(ours).items()
    }
    worst = max(relative, key=relative.get)
    return output, relative[worst], worst.removeprefix("transformer_blocks.")


def peak_memory(step: Callable[[], tuple]) -> tuple[int, int]:
    "Most bytes that a step holds at once beyond what was there before, and how many operators it calls."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    now = peak = 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak, sum(event.name().startswith("aten::") for event in events)


def common_work(step: Callable[[], tuple], rounds: int = 3) -> float:
    "Share of a step's time that goes into matrix products, attention and the activation function."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(rounds):
            step()
    spent = lambda events: sum(event.self_cpu_time_total for event in events)
    events = profile.key_averages()
    return spent(e for e in events if e.key.removeprefix("aten::").removeprefix("_").startswith(COMMON)) / spent(events)


def times(steps: dict[str, Callable[[], tuple]], rounds: int) -> dict[str, list[float]]:
    "CPU seconds of every variant, round by round; every other round in reverse order."
    found = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name in list(steps)[:: 1 if i % 2 else -1]:
            gc.collect()
            gc.disable()  # as timeit does: when Python collects garbage is chance
            start = time.process_time()
            steps[name]()
            found[name].append(time.process_time() - start)
            gc.enable()
    return {name: seconds[1:] for name, seconds in found.items()}  # the first round warms up


# ---- tables ----


def table(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def measure(names: list[str], layouts: list[str], rounds: int | None) -> tuple[str, bool]:
    speed, equal, memory, most, good = [], [], [], [], True
    for name in names:
        for layout in layouts:
            where = [name, layout]
            print(f"{name} {layout} ...", file=sys.stderr, flush=True)
            steps, ours, theirs = variants(SIZES[name], layout)
            for what in ("", " checkpointed"):
                output, gradient, worst = differences(steps, ours, theirs, what)
                good &= output <= LIMIT["outputs"] and gradient <= LIMIT["gradients"]
                equal.append([*where, what.strip() or "plain", f"{output:.1e}", f"{gradient:.1e}", f"`{worst}`"])
            seconds = times(steps, rounds or SIZES[name].rounds)
            peaks = {variant: peak_memory(step) for variant, step in steps.items()}
            shares = {variant: common_work(steps[variant]) for variant in ("oracle", "ours")}
            most.append([*where, *(f"{100 * share:.0f} %" for share in shares.values()), f"{1 / shares['oracle']:.2f}"])
            for what, (a, b) in COMPARISONS.items():
                ratios = [x / y for x, y in zip(seconds[a], seconds[b], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
                lowest = min(seconds[a]) / min(seconds[b])
                plain = [f"{1000 * statistics.median(seconds[v]):.0f} ms" for v in (a, b)]
                speed.append([*where, what, *plain, f"**{middle:.2f}**", f"{low:.2f} - {high:.2f}", f"{lowest:.2f}"])
                (m, n), (p, q) = peaks[a], peaks[b]
                memory.append(
                    [*where, what, f"{m / 2**20:.1f} MB", f"{p / 2**20:.1f} MB", f"{m / p:.2f}", f"{n}", f"{q}"]
                )
    return "\n\n".join([
        "## CPU time of a step",
        table(["size", "layout", "compared", "oracle", "ours", "ratio", "middle half", "fastest / fastest"], speed),
        "## Differences",
        "Outputs: largest absolute difference. Gradients: largest difference in an adapter, relative to its largest entry.",
        table(["size", "layout", "step", "outputs", "LoRA gradients", "worst adapter"], equal),
        "## What there is to gain",
        "Without checkpointing, in float32, both sides have to make the same matrix products, attentions and activations. If all "
        "the rest of our step took no time, the ratio would be the last column.",
        table(["size", "layout", "of the oracle's step", "of ours", "largest possible ratio"], most),
        "## Memory and operators",
        "Most bytes held at once during a step beyond weights and inputs, gradients included; operators called.",
        table(["size", "layout", "compared", "oracle", "ours", "ratio", "oracle ops", "our ops"], memory),
    ]), good  # fmt: skip


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def heading(command: str) -> str:
    today = datetime.date.today().isoformat()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ltx-core", "peft"))
    sizes = "; ".join(
        f"{name}: {s.layers} layers, width {s.dim}/{s.dim // 2}, {s.heads} heads, {torch.Size(s.grid).numel()} video tokens "
        f"({s.grid[1] * s.grid[2]} of them given), {s.audio_tokens} audio tokens, {s.text_tokens} text tokens"
        for name, s in SIZES.items()
    )
    return "\n\n".join([
        f"# Training step beside the oracle, {today}",
        f"`{command}` with Python {platform.python_version()}, {packages}; {processor()}, one thread, float32. "
        f"Load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} processors; above one a processor, times and ratios are noisy.",
        f"LoRA of rank {RANK} on all attentions. {sizes[0].upper()}{sizes[1:]}.",
    ])  # fmt: skip


def options(description: str, name: str) -> argparse.ArgumentParser:
    "What every benchmark can be asked."
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, help="timed rounds; default 25 for tiny, 5 for mid")
    parser.add_argument("--save", action="store_true", help=f"also write benchmarks/results/{name}-<date>.md")
    return parser


def command_of(name: str) -> str:
    return " ".join([f"python benchmarks/{name}.py", *sys.argv[1:]])


def publish(text: str, name: str, save: bool) -> None:
    "Print, and keep with the date if that was asked for."
    print(text)
    if save:
        path = ROOT / "benchmarks" / "results" / f"{name}-{datetime.date.today().isoformat()}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(f"written to {path.relative_to(ROOT)}")


def main() -> int:
    parser = options(__doc__, "step_time")
    parser.add_argument("--layout", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found, good = measure(arguments.size, arguments.layout, arguments.rounds)
    publish(f"{heading(command_of('step_time'))}\n\n{found}\n", "step_time", arguments.save)
    if not good:
        print("outputs or gradients differ from the oracle's by more than 1e-5", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
