"""`learns(mode)`: a short fine-tuning of one mode on the trained tiny checkpoint, judged, with a control.

The base model has never met orange, nor its pitch of 400 Hz. A mode is fine-tuned on clips that have both, mixed with
clips of what it knows, and then asked: by caption, by sound for a picture, by picture for a sound. The control asks with
the wrong thing, a caption, sound or picture of a known scene: if it gave the new concept as well, the mode would have
learned to ignore what it is given.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ltx_nb.config import load_config
from ltx_nb.data.store import write_record
from ltx_nb.loading import LtxModelComponents
from ltx_nb.progress import make_progress
from ltx_nb.strategies import TEXT_TO_VIDEO, Plan, StreamPlan
from ltx_nb.tiny.checkpoint import TinyCheckpoint, tiny_checkpoint
from ltx_nb.tiny.measure import SCALE, load_world_model, sample, verdicts
from ltx_nb.tiny.recipe import Latents, encode_scenes
from ltx_nb.tiny.world import TINY, captions, sample_scenes
from ltx_nb.training import LtxvTrainer

CONCEPT, NEW = "orange", {"colour": "orange", "pitch": 400}
CLIPS, QUESTIONS, SEED = 36, 32, 11
FROZEN = {"video": StreamPlan("latents", is_generated=False), "audio": StreamPlan("audio_latents", is_generated=False)}


@dataclass(frozen=True)
class Mode:
    "What is trained, and what is asked afterwards."

    plan: Plan
    attributes: tuple[str, ...]  # of the new concept, that the mode has to produce
    captioned: bool  # False: all that the model is told is the frozen stream
    changes: dict  # to the example configuration


MODES = {
    "text to video with sound": Mode(TEXT_TO_VIDEO, ("colour", "pitch"), True, {}),
    "text to video with sound, full": Mode(
        TEXT_TO_VIDEO, ("colour", "pitch"), True,
        {"model.training_mode": "full", "lora": None, "optimization.learning_rate": 5e-4},
    ),
    "audio to video": Mode(
        replace(TEXT_TO_VIDEO, audio=FROZEN["audio"]), ("colour",), False, {"training_strategy.audio.is_generated": False}
    ),
    "video to audio": Mode(
        replace(TEXT_TO_VIDEO, video=FROZEN["video"]), ("pitch",), False, {"training_strategy.video.is_generated": False}
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Lesson:
    "Share of answers that show the new concept, 0 to 1, the least of its attributes (the most, for the control)."

    before: float
    after: float
    control: float  # asked for something else


@lru_cache(maxsize=1)
def base() -> tuple[TinyCheckpoint, LtxModelComponents]:
    checkpoint = tiny_checkpoint()
    return checkpoint, load_world_model(checkpoint)


def encoded(split: str, count: int, seed: int) -> Latents:
    parts = base()[1]
    return encode_scenes(sample_scenes(split, count, seed), parts.video_vae_encoder, parts.audio_vae_encoder)


def write_clips(folder: Path, captioned: bool) -> Path:
    "New and known clips as a dataset of latents."
    text_encoder = base()[1].text_encoder
    for split, seed in ((CONCEPT, SEED), ("base", SEED + 1)):
        clips = encoded(split, CLIPS, seed)
        texts = captions(clips.scenes, SEED) if captioned else [""] * CLIPS
        context = text_encoder(texts, batch_size=CLIPS)
        place = dict(zip(("num_frames", "height", "width"), clips.video.shape[2:], strict=True)) | {"fps": TINY.fps}
        for i in range(CLIPS):
            write_record(folder, "latents", f"{split}_{i}", {"latents": clips.video[i]}, place)
            write_record(folder, "audio_latents", f"{split}_{i}", {"latents": clips.audio[i]}, {"duration": TINY.seconds})
            contexts = {"video_context": context.video[i], "audio_context": context.audio[i]}
            write_record(folder, "conditions", f"{split}_{i}", contexts)
    return folder


def shares(parts: LtxModelComponents, mode: Mode, split: str) -> list[float]:
    "How often each attribute of the answers is that of the new concept."
    asked = encoded(split, QUESTIONS, SEED + 2)
    texts = captions(asked.scenes, SEED) if mode.captioned else [""] * QUESTIONS
    made = sample(parts, texts, asked, mode.plan, SCALE if mode.captioned else 1.0, seed=SEED)
    given = {name for name in FROZEN if not getattr(mode.plan, name).is_generated}
    found = verdicts(parts, {name: latents for name, latents in made.items() if name not in given})
    return [sum(verdict[name] == NEW[name] for verdict in found) / QUESTIONS for name in mode.attributes]


def learns(name: str, folder: Path, steps: int = 200) -> Lesson:
    "Fine-tune a mode and ask it for what it was taught, and for something else."
    mode, (checkpoint, parts) = MODES[name], base()
    config = load_config(
        "tiny_lesson",
        {
            "model.model_path": str(checkpoint.model), "model.text_encoder_path": str(checkpoint.text_encoder),
            "data.preprocessed_data_root": str(write_clips(folder / "data", mode.captioned)),
            "output_dir": str(folder / "run"), "validation.interval": None, "checkpoints.interval": None,
            "optimization.steps": steps, **mode.changes,
        },
    )  # fmt: skip
    result = LtxvTrainer(config, make_progress("none"), "cpu").train()
    if config.model.training_mode == "full":
        after = load_world_model(checkpoint, transformer=result.checkpoint)
    else:
        after = load_world_model(checkpoint, result.checkpoint)
    return Lesson(
        before=max(shares(parts, mode, f"{CONCEPT}_held_out")),
        after=min(shares(after, mode, f"{CONCEPT}_held_out")),
        control=max(shares(after, mode, "base")),
    )
