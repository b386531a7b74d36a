"""The page "What it costs", from the numbers that benchmarks/costs.py counted."""

import json
from pathlib import Path

NUMBERS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "costs.json"
HALF = NUMBERS.with_name("half.json")  # float16 and bfloat16 on the tiny model
COUNTED = NUMBERS.with_name("real_size.jsonl")  # steps of real models on the pretend GPU
TITLE = "What it costs"
PRESETS = {"t2v_lora_24gb": 24, "t2v_lora_16gb": 16, "t2v_lora_12gb": 12, "t2v_lora_8gb": 8, "t2v_lora_t4": 16}
PEERS = [
    [
        "[LTX Trainer](https://github.com/Lightricks/LTX-2/blob/5b3fda32d5cfb2f0d8716d3f1e94cc9e3b412e0f/packages/ltx-trainer/README.md)",
        "80 GB; 32 GB with its configuration for little memory",
        "LTX-2, its standard configurations",
    ],
    [
        "[SimpleTuner](https://raw.githubusercontent.com/bghira/SimpleTuner/54dafa482dd654ad9c155ac4454549da96564a7c/documentation/quickstart/LTXVIDEO2.md)",
        "48 GB in bf16, 29 to 30 in int8, about 13 where weights are streamed from the host",
        "LTX-2 (19B), 480p, 17 frames, two clips a step; reports of its users",
    ],
    [
        "this library, counted",
        "46 GB in bf16, 28 in int8; 10.4 or 6.4 where they are streamed from the host",
        "LTX-2.3 (22B) with sound, 960x544x121; the last at 576x576x49",
    ],
]
PREPARING = ("Captions", "Pictures", "Sound", "Previews")
SAMPLING = ("Reading the validation prompts", "Denoising", "Decoding")


def table(head: list[str], rows: list[list[str]]) -> str:
    "Markdown."
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def hours(work: float, peak: float, numbers: dict) -> float:
    "Of a whole run, from 10^12 operations a step and 10^12 a second."
    return work / (peak * numbers["reached"]) * numbers["steps"] / 3600


def fits(memory: dict[str, float], gigabytes: float) -> str:
    "The format that keeps the most and leaves a tenth of the card free."
    return next((name for name, needed in memory.items() if needed <= 0.9 * gigabytes), "")


def about(value: float) -> str:
    "Hours as one would say them."
    return (
        "minutes"
        if value < 0.1
        else f"{60 * value:.0f} min"
        if value < 0.95
        else f"{value:.1f} h"
        if value < 10
        else f"{value:.0f} h"
    )


def preset_rows() -> list[list[str]]:
    "The presets for small cards, as they were counted at the real size."
    lines = [json.loads(line) for line in COUNTED.read_text(encoding="utf-8").splitlines()]
    known = {line["config"]: line for line in lines if line["config"] in PRESETS and not line["set"]}
    prepared = {line["size"]: line for line in known.values() if "Captions" in line["phases"]}
    rows = []
    for name, card in PRESETS.items():
        if name not in known:
            continue
        line, gigabytes = known[name], lambda size: f"{size:.1f} GB"
        phases = line["phases"]
        most = lambda stages, found: max(found[stage]["peak_gb"] for stage in stages if stage in found)
        rows.append(
            [f"`{name}`", f"{card} GB", line["size"], gigabytes(phases["step"]["peak_gb"]), gigabytes(most(SAMPLING, phases)),
             gigabytes(most(PREPARING, prepared[line["size"]]["phases"])), gigabytes(phases["step"]["copies"]["to_device_gb"])]
        )  # fmt: skip
    return rows


def counted_step(name: str, given: list[str]) -> dict:
    "A step of a preset with other values."
    lines = [json.loads(line) for line in COUNTED.read_text(encoding="utf-8").splitlines()]
    return next(line for line in lines if (line["config"], line["set"]) == (name, given))["phases"]["step"]


def markdown() -> str:
    "The page."
    away = "acceleration.offload_activations=true"
    exact = counted_step("t2v_lora_12gb", ["acceleration.quantization=null", away])
    one_card = counted_step("t2v_full_48gb", ["optimization.warmup_steps=0"])
    full_size = counted_step("t2v_lora_8gb", ["optimization.optimizer_type=adamw8bit", away])
    n, half = json.loads(NUMBERS.read_text(encoding="utf-8")), json.loads(HALF.read_text(encoding="utf-8"))
    usual, cards = n["modes"]["text to video with sound"], n["cards"]
    by_card = [
        [
            card,
            f"{c['memory']} GB",
            fits(usual["memory"], c["memory"]) or "too small",
            about(hours(usual["work"], c["peak"], n)),
        ]
        for card, c in cards.items()
    ]
    by_size = [
        [size, f"{s['tokens']['video']:,}", *(f"{m:.0f} GB" for m in s["memory"].values()), about(hours(s["work"], cards["H100 SXM"]["peak"], n))]
        for size, s in n["sizes"].items()
    ]  # fmt: skip
    by_mode = [
        [mode, f"`{m['example']}`", ", ".join(f"{count:,} {stream}" for stream, count in m["tokens"].items()),
         *(f"{v:.0f} GB" for v in m["memory"].values()), about(hours(m["work"], cards["H100 SXM"]["peak"], n))]
        for mode, m in n["modes"].items()
    ]  # fmt: skip
    full = [[str(gpus), f"{memory:.0f} GB"] for gpus, memory in n["full"].items()]
    formats = [f"memory, {name}" for name in usual["memory"]]
    return f"""---
title: {TITLE}
---

Memory, steps and hours of training a LoRA for LTX-2.3 (22B), by card and by mode. **Memory is counted** at the real size, to the byte; **hours are calculated** from counted work and a share of what a card can do at best. None of it was timed: this library has been run on no GPU yet. The tiny model costs nothing of this: `make demo` takes about five minutes on a laptop's processor.

## By card

{n["steps"]:,} steps of text to video with sound, {n["usual"]} (3.7 seconds at 24 frames), one clip a step, LoRA of rank 32, with gradient checkpointing.

{table(["card", "memory", "weights kept as", f"{n['steps']:,} steps"], by_card)}

*Weights kept as* is the format that fits with a tenth of the card to spare: `acceleration.quantization` in a configuration, see [quantization](2_loading/quantization.html). Weights in int8 or nf4 are made into bf16 anew at every use, which costs some time that is not in the hours. Where a card is smaller still, frozen weights can lie with the host and [pass through a block at a time](2_loading/streaming.html), for more time. On a rented card, hours times its price is the cost of a run. A validation clip with the usual guidance is thirty steps of four forward passes, about as much work as forty training steps.

## Small cards

Five examples are made for them: weights in int8, of which as many blocks stay on the card as there is room for while the others [pass through](2_loading/streaming.html) once forward and once on the way back, and a text encoder that passes through too. Every number is a peak of all that is on the card, counted on LTX-2.3 with sound and a LoRA of rank 32 by the library's own code on a [pretended GPU](8_tools/pretend_gpu.html) (`python -m benchmarks.real_size t2v_lora_12gb`); of a card, CUDA and the allocator's gaps take about a gigabyte more.

{table(["example", "card", "clip", "a step", "a sample", "preparing", "copied to the card a step"], preset_rows())}

Where the inputs of blocks wait with the host as well (`acceleration.offload_activations: true`), a step of `t2v_lora_12gb` without quantization, exact in bf16, takes {exact["peak_gb"]:.1f} GB, with {exact["copies"]["to_device_gb"]:.0f} GB copied to the card; and `t2v_lora_8gb` with `optimizer_type: adamw8bit` does the 121 frames of 960x544 in {full_size["peak_gb"]:.1f} GB.

What lies with the host, 18.6 GB where all blocks pass through, can be read from the file each time instead, once `ltx-nb quantize` has written it in int8; a machine with little memory can train that way. `t2v_lora_t4` computes products in float16, since a T4 has no bfloat16; its autoencoders are float32 there, for which the plan says 13.2 GB where a sample takes most. In {half["steps"]} steps on the tiny model {half["fp16"]["overflows"]} gradients overflowed, and the loss went from {half["fp16"]["losses"][0]:.2f} to {half["fp16"]["losses"][-1]:.2f}, in bfloat16 from {half["bf16"]["losses"][0]:.2f} to {half["bf16"]["losses"][-1]:.2f} (`python -m benchmarks.half`). How large numbers become inside the real model, the tiny one cannot say. For a card of yours, `ltx-nb plan my_config.yaml --gpu 4090` looks for the nearest configuration that fits, and `acceleration.memory: auto` does so when a run begins.

## Other trainers

What a LoRA needs by the word of each project, and what is counted here. Models, clips and ranks differ, so this is a map and not a race.

{table(["trainer", "card, by its own page", "for"], PEERS)}

## By size

{table(["size", "video tokens", *formats, f"{n['steps']:,} steps on an H100"], by_size)}

Memory grows little with the clip, because with checkpointing a step keeps little beside the weights; time grows more than the clip, because every token looks at every other.

## By mode

{n["usual"]}, each with the packaged example of its name.

{table(["mode", "example", "tokens", *formats, f"{n['steps']:,} steps on an H100"], by_mode)}

An IC-LoRA reads its reference beside the clip: at full size that is twice the tokens. A reference at half the width and height has a quarter of them (`reference` in the chapter on [masks and references](4_data/roles.html)). Modes of sound alone are cheap in time, but the model is as large as ever.

## All weights

Full fine-tuning as it is usually done needs several GPUs: weights in float32, their gradients, and two moments in 8 bits, split over all of them ([sharding](6_training/sharding.html)). On one card it takes {one_card["peak_gb"]:.1f} GB where weights are bfloat16, rounded by a coin, and each moves as soon as its gradient is there ([one card](6_training/one_by_one.html), example `t2v_full_48gb`, `python -m benchmarks.real_size t2v_full_48gb --parts training --set optimization.warmup_steps=0`).

{table(["GPUs", "memory on each, at least"], full)}

## How many steps

The packaged examples train for 2,000 steps, and for 3,000 where sound is learned by itself or a reference is followed, as those of the LTX Trainer do. Fewer may be enough for a style and more for a motion; nobody can say beforehand. [Held-out losses](6_training/held_out.html) say when a run has had enough, and a run that is stopped early keeps what it has.

## How the numbers were made

- **Memory**: [`memory_plan`](6_training/memory.html#memory_plan) on the header of the released LTX-2.3 and random clips of the real shape, the same that `ltx-nb config check my_config.yaml` prints for a configuration of yours. It counts weights, gradients, moments, and what one step keeps for its backward pass; not the working space of kernels, the allocator's gaps, or the text encoder, which is gone before the transformer comes (Gemma takes 24 GB, half with `load_text_encoder_in_8bit`).
- **Work**: two operations for each number of a layer and each token, four for each pair of tokens that attention looks at, in 48 blocks; three times that for a step of a LoRA with checkpointing: forward, forward again, and back through frozen layers.
- **Hours**: work divided by {n["reached"]:.0%} of the card's dense bf16 rate in its maker's data sheet ({", ".join(f"{card} {c['peak']}" for card, c in cards.items())} teraflops). That share is an assumption; a first run of yours says what it is on your machine.
- Counted on {n["date"]} with PyTorch {n["torch"]} by `python benchmarks/costs.py --save`; the numbers are in `benchmarks/results/costs.json`.
"""
