"""What quantized weights cost a training step: `make bench`, or `python benchmarks/quantization.py --save`.

The same LoRA step as in step_time.py, beside weights in float32 and beside the same weights in each format. All models sit
in one process on one thread and take turns; a ratio is the median over rounds of quantized / dense within a round.
"""

import copy
import datetime
import os
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
import torch.nn.functional as F
from step_time import SIZES, clip, command_of, lora, models, options, peak_memory, processor, publish, table, targets_of
from step_time import times, train_step
from torch import Tensor

from ltx_nb.model.transformer import LTXModel, Modality
from ltx_nb.loading.quantization import FORMATS, QuantizedLinear, precision_report, quantize_layer

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


def step_of(model: LTXModel, size: str) -> Callable[[], tuple]:
    modalities = [Modality(**fields) for fields in clip(SIZES[size], LAYOUT).values()]
    return partial(train_step, model, list(lora(model).values()), modalities, targets_of(modalities))


def flat(tensors) -> Tensor:
    return torch.cat(
        [tensor.detach().flatten() for tensor in tensors]
    ).double()  # a cosine over millions of numbers needs more than float32


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
    columns = [
        "weights",
        "they take",
        "step",
        "ratio",
        "peak of a step",
        "outputs off by",
        "cosine of the LoRA gradient",
    ]
    return f"## {size}\n\n{table(columns, rows)}"


def main() -> int:
    arguments = options(__doc__, "quantization").parse_args()
    torch.set_num_threads(1)
    text = "\n\n".join([
        f"# Training step beside quantized weights, {datetime.date.today().isoformat()}",
        f"`{command_of('quantization')}` with Python {platform.python_version()}, torch {version('torch')}; {processor()}, one thread, "
        f"float32, {LAYOUT}, random weights. Load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} processors.",
        *(measure(size, arguments.rounds) for size in arguments.size),
    ])  # fmt: skip
    publish(f"{text}\n", "quantization", arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
