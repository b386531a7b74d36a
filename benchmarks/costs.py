"""What a run costs at the real size, by mode and by card, counted: `python benchmarks/costs.py --save`.

Memory is `ltx_nb.training.memory.memory_plan` on the header of LTX-2.3 with random clips of the real shape: weights, what is
trained, and what one step keeps. Work is counted from the shapes of the layers: products and attention, forward. Hours follow
from the work and from what a card does at best, times the share of it that training reaches (REACHED), which is an
assumption: nothing here was timed on a GPU. docs/costs.py makes a page of the result."""

import argparse
import datetime
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

from ltx_nb.config.files import load_config
from ltx_nb.data.batches import DummyDataset
from ltx_nb.flow.strategies import get_training_strategy
from ltx_nb.model.transformer import LTXModel
from ltx_nb.tiny.checkpoint import tiny_header, transformer_section
from ltx_nb.training.memory import memory_plan

RESULT = Path(__file__).parent / "results" / "costs.json"
REAL = {
    "num_layers": 48, "num_attention_heads": 32, "attention_head_dim": 128, "cross_attention_dim": 4096,
    "caption_channels": 3840, "audio_num_attention_heads": 32, "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
}  # fmt: skip
CONTEXT = 1024  # rows of a caption
MODES = {
    "text to video with sound": "t2v_lora", "image to video": "i2v_lora", "extension forward": "video_extend_lora",
    "extension backward": "video_suffix_lora", "inpainting": "video_inpainting_lora",
    "outpainting": "video_outpainting_lora", "IC-LoRA on video": "v2v_ic_lora", "sound to picture": "a2v_lora",
    "picture to sound": "v2a_lora", "text to audio": "t2a_lora", "audio extension forward": "audio_extend_lora",
    "audio extension backward": "audio_suffix_lora", "audio inpainting": "audio_inpainting_lora",
    "IC-LoRA on sound": "a2a_ic_lora", "IC-LoRA on both": "av2av_ic_lora",
}  # fmt: skip
SIZES = {"768x512x49": (768, 512, 49), "960x544x89": (960, 544, 89), "960x544x121": (960, 544, 121)}
USUAL = "960x544x89"
FORMATS = {"bf16": None, "int8": "int8", "nf4": "nf4"}
CARDS = {  # GB of memory, and 10^12 products and sums a second in bf16 without sparsity, from the makers' data sheets
    "RTX 4090": (24, 165), "RTX 5090": (32, 210), "L40S": (48, 362), "A100 80 GB": (80, 312), "H100 SXM": (80, 989),
    "H200": (141, 989),
}  # fmt: skip
REACHED = 0.4  # of that, in a whole training step
STEPS = 2000


def checkpoint(folder: Path) -> Path:
    "A file with the header of LTX-2.3 and nothing else."
    header = tiny_header("2.3") | {"transformer": transformer_section("2.3") | REAL}
    save_file({"none": torch.zeros(1)}, folder / "real.safetensors", {"config": json.dumps(header)})
    return folder / "real.safetensors"


def config_of(name: str, model: Path, store: Path, **changes):
    "A packaged example on these clips, in the form that needs least memory."
    paths = {
        "model.model_path": str(model),
        "data.preprocessed_data_root": str(store),
        "output_dir": str(store / "out"),
    }
    fixed = {"validation.samples": [], "optimization.enable_gradient_checkpointing": True}
    return load_config(name, paths | fixed | changes, check_files=False)


def clips(name: str, model: Path, store: Path, size: tuple[int, int, int]) -> Path:
    "One random clip with everything that the mode reads."
    strategy = get_training_strategy(config_of(name, model, store).training_strategy)
    width, height, frames = size
    DummyDataset(
        strategy.get_data_sources(),
        width=width,
        height=height,
        num_frames=frames,
        dataset_length=1,
        context_length=CONTEXT,
    ).save(store)
    return store


def forward_work(video: int, audio: int) -> float:
    "Operations of a forward pass: two for each number of a layer and token, four for each pair that attention looks at."
    with torch.device("meta"):
        block = LTXModel.from_config(
            {"transformer": transformer_section("2.3") | REAL | {"num_layers": 1}}
        ).transformer_blocks[0]
    asks = {"attn1": (video, video), "attn2": (video, CONTEXT), "ff": (video, 0), "audio_attn1": (audio, audio),
            "audio_attn2": (audio, CONTEXT), "audio_ff": (audio, 0), "audio_to_video_attn": (video, audio),
            "video_to_audio_attn": (audio, video)}  # fmt: skip
    total = 0.0
    for name, part in block.named_children():
        if name not in asks or not (asks[name][0] and (asks[name][1] or "ff" in name)):
            continue
        looking, seen = asks[name]
        for path, layer in part.named_modules():
            if isinstance(layer, torch.nn.Linear):
                total += 2 * layer.weight.numel() * (seen if path in ("to_k", "to_v") else looking)
                total += 4 * looking * seen * layer.out_features if path == "to_q" else 0
    return 48 * total


def measure() -> dict:
    "Every mode at the usual size, text to video at every size, and full fine-tuning."
    modes, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint(Path(folder))
        for mode, name in MODES.items():
            for size, shape in SIZES.items() if name == "t2v_lora" else [(USUAL, SIZES[USUAL])]:
                store = clips(name, model, Path(folder) / f"{name}-{size}", shape)
                memory, tokens = {}, {}
                for label, kind in FORMATS.items():
                    plan = memory_plan(config_of(name, model, store, **{"acceleration.quantization": kind}))
                    memory[label], tokens = round(plan.total / 1e9, 1), plan.tokens
                found = {"example": name, "tokens": tokens, "memory": memory,
                         "work": round(3 * forward_work(tokens.get("video", 0), tokens.get("audio", 0)) / 1e12)}  # fmt: skip
                print(mode, size, found, flush=True)
                sizes |= {size: found} if name == "t2v_lora" else {}
                modes |= {mode: found} if size == USUAL else {}
        store = Path(folder) / f"t2v_lora-{USUAL}"
        full = {"model.training_mode": "full", "optimization.optimizer_type": "adamw8bit"}
        shared = {
            n: round(memory_plan(config_of("t2v_lora", model, store, **full), n).total / 1e9, 1) for n in (2, 4, 8)
        }
    cards = {name: {"memory": memory, "peak": peak} for name, (memory, peak) in CARDS.items()}
    return {"date": datetime.date.today().isoformat(), "torch": version("torch"), "usual": USUAL, "steps": STEPS,
            "reached": REACHED, "cards": cards, "modes": modes, "sizes": sizes, "full": shared}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name}, from which the page is made")
    found = measure() if (args := parser.parse_args()) else {}
    if args.save:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
