"""How the tiny base model fares on combinations that it never saw, while it trains: `python tools/held_out_curve.py FOLDER`.

FOLDER holds a finished run of `ltx-nb tiny train`. The base model is trained once more from nothing in FOLDER/curve, with
stops on the way; what the judge says at each of them goes to FOLDER/curve/curve.json. An hour on one core; the same command
goes on where it was stopped.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from ltx_nb.data.store import write_json
from ltx_nb.training.progress import make_progress
from ltx_nb.tiny.checkpoint import TinyCheckpoint, tiny_header
from ltx_nb.tiny.measure import accuracy_table, load_world_model, sample, verdicts
from ltx_nb.tiny.recipe import BASE_STAGE, make_latents, train_base
from ltx_nb.tiny.world import captions, sample_scenes

STOPS = (400, 800, 1200, 1800, 3600)
SEED, CLIPS = 2_000_000, 96


def main(run: Path) -> None:
    folder, gemma = run / "curve", run / "gemma-3-tiny"
    folder.mkdir(exist_ok=True)
    shutil.copy2(run / "latents.safetensors", folder)
    parts, path = load_world_model(TinyCheckpoint(run / "ltx-2.3-tiny.safetensors", gemma)), folder / "curve.json"
    found, done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}, 0
    with make_progress() as shown:
        latents = make_latents(folder, parts.video_vae_encoder, parts.audio_vae_encoder, shown)
        for stop in STOPS:
            if str(stop) not in found:
                model, processor, _ = train_base(
                    tiny_header(), folder, gemma, latents, shown, BASE_STAGE, limit=stop - done
                )
                parts.transformer, parts.text_encoder.embeddings_processor = model.eval(), processor.eval()
                found[str(stop)] = {}
                for split in ("base", "held_out"):
                    scenes = sample_scenes(split, CLIPS, SEED + 2)
                    made = sample(parts, captions(scenes, SEED), seed=SEED)
                    found[str(stop)][split] = accuracy_table(verdicts(parts, made), scenes)
                write_json(path, found)
            done = stop


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
