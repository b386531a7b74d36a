"""What quantized weights cost a training step: `make bench`, or `python benchmarks/quantization.py --save`.

The same LoRA step as in step_time.py, beside weights in float32 and beside the same weights in each format. All models sit
in one process on one thread and take turns; a ratio is the median over rounds of quantized / dense within a round.
"""

import argparse
import copy
import datetime
import os
import platform
import statistics
import sys
from importlib.metadata import version

import torch
import torch.nn.functional as F
from step_time import ROOT, SIZES, clip, lora, models, peak_memory, processor, table, times
from torch import Tensor

from ltx_nb.model.transformer import LTXModel, Modality
from ltx_nb.quantization import FORMATS, QuantizedLinear, precision_report, quantize_layer

LAYOUT = "LTX-2.3"


def quantized(dense: LTXModel, name: str) -> LTXModel:
    "A copy with the same adapters beside quantized weights."
    model = copy.deepcopy(dense)
    for path, layer in dense.named_modules():
        if path.endswith(".base_layer"):  # an adapter sits in front of it
            model.set_submodule(path, QuantizedLinear(layer, name))
        else:
            quantize_layer(model, path, name)
    return model


def step_of(model: LTXModel, size: str):
    modalities = [Modality(**fields) for fields in clip(SIZES[size], LAYOUT).values()]
    targets = [torch.randn(m.latent.shape, generator=torch.Generator().manual_seed(2)) for m in modalities]

    def step() -> tuple[Tensor, Tensor]:
        for weight in lora(model).values():
            weight.grad = None
        out = model(*modalities)
        sum(F.mse_loss(a, b) for a, b in zip(out, targets)).backward()
        return out

    return step


def flat(tensors) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def measure(size: str, rounds: int | None) -> str:
    dense = models(SIZES[size], LAYOUT)[0]
    found = {"float32": dense} | {name: quantized(dense, name) for name in FORMATS}
    steps = {name: step_of(model, size) for name, model in found.items()}
    outs = {name: flat(step()) for name, step in steps.items()}
    grads = {name: flat(p.grad for p in lora(model).values()) for name, model in found.items()}
    seconds, rows = times(steps, rounds or SIZES[size].rounds), []
    for name, model in found.items():
        ratio = statistics.median(x / y for x, y in zip(seconds[name], seconds["float32"], strict=True))
        rows.append([
            name, f"{sum(row.bytes for row in precision_report(model)) / 2**20:.1f} MB",
            f"{1000 * statistics.median(seconds[name]):.0f} ms", f"**{ratio:.2f}**", f"{peak_memory(steps[name])[0] / 2**20:.1f} MB",
            f"{((outs[name] - outs['float32']).norm() / outs['float32'].norm()).item():.1%}",
            f"{F.cosine_similarity(grads[name], grads['float32'], dim=0).item():.4f}",
        ])  # fmt: skip
    columns = ["weights", "they take", "step", "ratio", "peak of a step", "outputs off by", "cosine of the LoRA gradient"]
    return f"## {size}\n\n{table(columns, rows)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, help="timed rounds; default 25 for tiny, 5 for mid")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/quantization-<date>.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    command, today = " ".join(["python benchmarks/quantization.py", *sys.argv[1:]]), datetime.date.today().isoformat()
    text = "\n\n".join([
        f"# Training step beside quantized weights, {today}",
        f"`{command}` with Python {platform.python_version()}, torch {version('torch')}; {processor()}, one thread, float32, {LAYOUT}, "
        f"random weights. Load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} processors.",
        *(measure(size, arguments.rounds) for size in arguments.size),
    ])  # fmt: skip
    print(text)
    if arguments.save:
        path = ROOT / "benchmarks" / "results" / f"quantization-{today}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
        print(f"written to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
