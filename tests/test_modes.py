"Every packaged configuration, from real clips to a clip that its LoRA made; and what a LoRA for one stream leaves alone."

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltx_nb.config.files import config_text, example_configs, load_config, read_yaml
from ltx_nb.data.clips import example_clips
from ltx_nb.data.media import probe, write_image
from ltx_nb.data.prepare import prepare
from ltx_nb.data.store import list_records, read_record
from ltx_nb.flow.sampling import Guidance, blank_record
from ltx_nb.model.latents import patchify_video
from ltx_nb.loading.checkpoint import load_embeddings_processor, load_text_encoder, load_transformer, read_metadata
from ltx_nb.loading.lora import fuse_lora
from ltx_nb.training.progress import make_progress
from ltx_nb.flow.strategies import TEXT_TO_VIDEO, FlexibleStrategy
from ltx_nb.flow.samplers import UniformTimestepSampler
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.training.trainer import LtxvTrainer
from ltx_nb.training.validation import generate

# The first of these modes on certain cards; tests/test_fit.py and tests/test_one_by_one.py train them.
FOR_CARDS = "gb", "_t4"
CONFIGS = [name for name in example_configs() if not name.startswith("tiny_") and not name.endswith(FOR_CARDS)]
SIZE, FPS, CLIPS, STEPS = (64, 64, 17), 12, 3, 6  # a few steps: whether a mode learns, test_learning asks
OWN = {
    "video": r"(^|\.)(attn[12]|ff|audio_to_video_attn)\.",
    "audio": r"(^|\.)(audio_attn[12]|audio_ff|video_to_audio_attn)\.",
}
TINY = {
    "lora.rank": 4, "lora.alpha": 4, "optimization.steps": STEPS, "optimization.learning_rate": 1e-3, "optimization.optimizer_type": "adamw",
    "optimization.enable_gradient_checkpointing": False, "acceleration.mixed_precision_mode": "no", "acceleration.load_text_encoder_in_8bit": False,
    "acceleration.offload_optimizer_during_validation": False,
    "data.num_dataloader_workers": 0, "validation.video_dims": list(SIZE), "validation.frame_rate": FPS, "validation.inference_steps": 2,
    "validation.interval": STEPS, "validation.skip_initial_validation": True, "validation.stg_blocks": [0], "checkpoints.interval": None,
}  # fmt: skip


def make_world(folder, **options):
    "A tiny checkpoint of random weights, and a dataset with every role made from the clips that ship; `options` of `prepare`."
    folder.mkdir(parents=True, exist_ok=True)
    tiny, clips = make_tiny_checkpoint(folder / "tiny"), sorted(example_clips().glob("*.mp4"))[:CLIPS]
    info = probe(clips[0])
    mask = torch.zeros(3, info.height, info.width, dtype=torch.uint8)
    mask[:, :, : info.width // 2] = 255
    write_image(folder / "mask.png", mask)
    rows = [
        {
            "caption": clip.with_suffix(".txt").read_text(encoding="utf-8").strip(), "video": str(clip), "reference_video": str(clip), "reference_audio": str(clip),
            "video_mask": str(folder / "mask.png"), "audio_mask": "0.0-0.5; 1.0-1.3",
        }
        for clip in clips
    ]  # fmt: skip
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "keep.txt").write_text("0.0-0.5", encoding="utf-8")
    report = prepare(
        folder / "clips.jsonl",
        folder / "data",
        tiny.model,
        tiny.text_encoder,
        "x".join(map(str, SIZE)),
        fps=FPS,
        **options,
    )
    assert len(report.usable) == CLIPS
    return folder, tiny, clips[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("modes"))


def short_lengths(name):
    "The lengths of a configuration, cut to tiny clips."
    strategy, changes = read_yaml(config_text(name), name)["training_strategy"], {}
    for stream in ("video", "audio"):
        for i, condition in enumerate((strategy.get(stream) or {}).get("conditions") or ()):
            place = f"training_strategy.{stream}.conditions.{i}"
            changes |= {f"{place}.temporal_boundary": 1} if "temporal_boundary" in condition else {}
            changes |= {f"{place}.spatial_region": [0, 0, 32, 64]} if "spatial_region" in condition else {}
    return changes


def own_media(samples, folder, clip):
    "The validation samples of a configuration, with files that exist and fit."
    for condition in (condition for sample in samples for condition in sample.get("conditions", ())):
        for field in ("image_or_video", "video", "audio"):
            if field in condition:
                condition[field] = str(clip)
        if "num_frames" in condition:
            condition["num_frames"] = 9 if condition["type"] == "prefix" else 8
        if "duration" in condition:
            condition["duration"] = 0.4
        if "spatial_region" in condition:
            condition["spatial_region"] = [0, 0, 32, 64]
        if "mask" in condition:
            condition["mask"] = str(folder / ("mask.png" if "video" in condition else "keep.txt"))
    return samples


def configure(name, world, output, **changes):
    "A packaged configuration for the tiny dataset, with one of its samples."
    folder, tiny, clip = world
    samples = own_media(read_yaml(config_text(name), name)["validation"]["samples"][:1], folder, clip)
    return load_config(
        name,
        {
            **TINY, **short_lengths(name), "model.model_path": str(tiny.model), "model.text_encoder_path": str(tiny.text_encoder),
            "data.preprocessed_data_root": str(folder / "data"), "output_dir": str(output), "validation.samples": samples, **changes,
        },
    )  # fmt: skip


def run(name, world, output, **changes):
    "Train a packaged configuration on the tiny dataset."
    config = configure(name, world, output, **changes)
    return config, LtxvTrainer(config, make_progress("none"), "cpu").train()


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    "Runs of this module by name: each is made once."
    runs = {}

    def of(name):
        if name not in runs:
            runs[name] = run(name, world, tmp_path_factory.mktemp(name))
        return runs[name]

    return of


def test_there_are_sixteen_configurations():
    assert len(CONFIGS) == 16


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packaged_configuration_trains_saves_samples_and_generates(name, world, trained, tmp_path):
    config, result = trained(name)
    assert result.steps == STEPS and result.checkpoint.is_file()
    (sample,) = result.samples
    made_video = config.validation.generate_video or any(
        c.type == "video_to_audio" for c in config.validation.samples[0].conditions
    )
    assert sample.suffix == (".mp4" if made_video else ".wav") and probe(sample).has_video == made_video
    assert any(t.abs().max() > 0 for key, t in load_file(result.checkpoint).items() if "lora_B" in key)
    options = dict(width=SIZE[0], height=SIZE[1], frames=SIZE[2], fps=FPS, steps=2, guidance=Guidance.off())
    options |= {"video": config.validation.generate_video, "audio": config.validation.generate_audio}
    options |= {"conditions": config.validation.samples[0].conditions}
    clip, plain = (
        generate("a rabbit", world[1].model, world[1].text_encoder, tmp_path / "out", lora=lora, **options)
        for lora in (result.checkpoint, None)
    )
    differs = [
        not torch.equal(a, b) for a, b in ((clip.frames, plain.frames), (clip.sound, plain.sound)) if a is not None
    ]
    assert any(differs)


def test_the_factors_of_a_reference_are_in_the_file(world, tmp_path):
    "W1: the reference looks for the pair in the working folder, finds none and writes nothing."
    folder, tiny, _ = world
    prepare(
        folder / "clips.jsonl", tmp_path / "data", tiny.model, tiny.text_encoder, "x".join(map(str, SIZE)), fps=FPS,
        reference_downscale_factor=2, reference_temporal_scale_factor=2,
    )  # fmt: skip
    changes = {"data.preprocessed_data_root": str(tmp_path / "data"), "validation.samples": [], "optimization.steps": 1}
    _, result = run("v2v_ic_lora", world, tmp_path / "run", **changes)
    said = read_metadata(result.checkpoint, "LoRA")
    assert (said["reference_downscale_factor"], said["reference_temporal_scale_factor"]) == ("2", "2")


def test_a_picture_is_a_reference_beside_a_film(world, tmp_path):
    "A face or a style: one frame in preparation, training, metadata and generation."
    folder, tiny, clip = world
    face = write_image(tmp_path / "face.png", torch.randint(0, 256, (3, 90, 70), dtype=torch.uint8))
    rows = [
        json.loads(line) | {"reference_video": str(face)} for line in (folder / "clips.jsonl").read_text().splitlines()
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    size = "x".join(map(str, SIZE))
    report = prepare(tmp_path / "clips.jsonl", tmp_path / "data", tiny.model, tiny.text_encoder, size, fps=FPS)
    assert len(report.usable) == CLIPS
    sample = {"prompt": "x", "conditions": [{"type": "reference", "video": str(face), "include_in_output": True}]}
    changes = {
        "data.preprocessed_data_root": str(tmp_path / "data"),
        "validation.samples": [sample],
        "optimization.steps": 2,
        "validation.interval": 2,
    }
    _, result = run("v2v_ic_lora", world, tmp_path / "run", **changes)
    assert read_metadata(result.checkpoint, "LoRA")["reference_num_frames"] == "1"
    films = sorted((tmp_path / "run").rglob("*.mp4"))
    assert films and probe(films[-1]).frames == SIZE[2]


@pytest.fixture(scope="module")
def old_folder(world, tmp_path_factory):
    "The same dataset as the LTX Trainer would have written it: .pt files, features before the connectors, patchified latents."
    folder, tiny, _ = world
    root = tmp_path_factory.mktemp("old") / ".precomputed"
    processor = load_embeddings_processor(tiny.model, dtype=torch.float32)
    encoder = load_text_encoder(tiny.text_encoder, dtype=torch.float32, embeddings_processor=processor)
    rows = [json.loads(line) for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    features = encoder.precompute([row["caption"] for row in rows])
    clips = [
        Path(row["video"]).name for row in rows
    ]  # records are in the order of their names, which have a hash of the path
    for role in sorted(path.name for path in (folder / "data").iterdir() if path.is_dir() and path.name[0] != "."):
        for name, path in list_records(folder / "data" / role).items():
            record, number = read_record(path), next(i for i, clip in enumerate(clips) if name.endswith(clip))
            if role == "latents":
                record["latents"] = patchify_video(record["latents"][None])[0]  # [F H W, C], as its oldest files are
            if role == "conditions":
                streams = {"video_prompt_embeds": features.video[number], "audio_prompt_embeds": features.audio[number]}
                record = streams | {"prompt_attention_mask": features.mask[number]}
            if role.endswith("masks"):
                record = {"mask": record["mask"].float()}
            target = root / role / f"{name}.pt"
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.save(record, target)
    return root.parent


@pytest.mark.parametrize("name", ["t2v_lora", "video_inpainting_lora", "av2av_ic_lora", "audio_inpainting_lora"])
def test_a_dataset_of_the_reference_trainer_is_trained_on(name, world, old_folder, tmp_path):
    "All seven roles, patchified latents, captions before the connectors; the parent of .precomputed is given (W63)."
    changes = {"data.preprocessed_data_root": str(old_folder), "validation.samples": [], "optimization.steps": 2}
    _, old = run(name, world, tmp_path / "old", **changes)
    _, new = run(name, world, tmp_path / "new", **changes | {"data.preprocessed_data_root": str(world[0] / "data")})
    assert old.steps == new.steps == 2 and old.checkpoint.is_file()
    assert old.losses["loss"] == pytest.approx(new.losses["loss"], rel=1e-4)  # the same clips, noise and captions


@pytest.fixture(scope="module")
def inputs(world):
    "What the model is asked, with both streams, with fixed noise."
    _, tiny, _ = world
    width = {"video": 128, "audio": 64}
    record = blank_record(*SIZE, FPS)
    draw = torch.Generator().manual_seed(0)
    record["conditions"] = {f"{name}_context": torch.randn(1, 8, size, generator=draw) for name, size in width.items()}
    return FlexibleStrategy(TEXT_TO_VIDEO).prepare_training_inputs(record, UniformTimestepSampler(), draw)


SILENT = [n for n in CONFIGS if "audio" not in read_yaml(config_text(n), n)["training_strategy"]]
UNSEEN = [n for n in CONFIGS if "video" not in read_yaml(config_text(n), n)["training_strategy"]]


@pytest.mark.parametrize(("name", "stream"), [(n, "video") for n in SILENT] + [(n, "audio") for n in UNSEEN])
def test_a_lora_for_one_stream_leaves_the_other_alone(name, stream, world, trained, inputs):
    "Peers' users lost their sound to adapters on modules that were never trained."
    _, result = trained(name)
    modules = {re.sub(r"\.lora_[AB]\.weight$", "", key) for key in load_file(result.checkpoint)}
    assert modules and all(re.search(OWN[stream], module) for module in modules)
    other = "audio" if stream == "video" else "video"
    base, adapted = (load_transformer(world[1].model, dtype=torch.float32) for _ in range(2))
    fuse_lora(adapted, result.checkpoint)
    alone = {"video": inputs.video if other == "video" else None, "audio": inputs.audio if other == "audio" else None}
    both = {"video": inputs.video, "audio": inputs.audio}
    index = ("video", "audio").index(other)
    with torch.no_grad():
        apart, together = (
            [model(given["video"], given["audio"])[index] for model in (base, adapted)] for given in (alone, both)
        )
        own = [model(*both.values())[1 - index] for model in (base, adapted)]
    assert torch.equal(*apart)  # nothing couples the streams: no drift at all
    drift, change = ((two - one).norm() / one.norm() for one, two in (together, own))
    assert drift < change  # coupled, it hears of the change, and less than what was trained


@pytest.mark.parametrize("name", ["v2v_ic_lora", "audio_inpainting_lora", "video_extend_lora"])
def test_full_fine_tuning_is_the_same_file_with_another_mode(name, world, tmp_path):
    _, result = run(
        name, world, tmp_path, **{"model.training_mode": "full", "validation.samples": [], "optimization.steps": 2}
    )
    before, after = (
        load_transformer(path, dtype=torch.float32).state_dict() for path in (world[1].model, result.checkpoint)
    )
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    trained_streams = read_yaml(config_text(name), name)["training_strategy"]
    for stream, module in (
        ("video", "transformer_blocks.0.attn1.to_q.weight"),
        ("audio", "transformer_blocks.0.audio_attn1.to_q.weight"),
    ):
        assert (module in moved) == (stream in trained_streams)
