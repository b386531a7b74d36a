"The trained tiny checkpoint, and that a mode learns on it instead of only running."

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_nb.loading import read_metadata
from ltx_nb.tiny.checkpoint import tensor_hash, tiny_checkpoint
from ltx_nb.tiny.measure import load_world_model, sample, verdicts
from ltx_nb.tiny.modes import LESSONS, learns, lesson_clips, next_scene, write_mode_lesson
from ltx_nb.tiny.world import ATTRIBUTES, captions, sample_scenes

LARGEST = 18e6  # bytes that the packaged checkpoint may have
CHANCE = 0.25  # of a right answer without having been taught: one of seven colours or pitches, and some luck
GAIN = 0.3  # what a lesson has to bring, beyond what was there and beyond what the control shows
QUESTIONS = 20
IN_TUTORIALS = {  # taught, examined and asserted there, with a control
    "text to video with sound", "image to video", "video inpainting", "V2V IC-LoRA", "audio inpainting", "audio to video",
}  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    "The packaged checkpoint where a test may damage it."
    return shutil.copytree(tiny_checkpoint().model.parent, tmp_path / "tiny")


@pytest.fixture(scope="module")
def base():
    return load_world_model(tiny_checkpoint())


@pytest.mark.parametrize("mode", [mode for mode in LESSONS if mode not in IN_TUTORIALS])
def test_a_mode_learns_what_it_is_given_for(mode, base, tmp_path):
    lesson = learns(mode, tmp_path, parts=base)
    assert max(lesson.before.values()) <= CHANCE, lesson
    assert lesson.gain >= GAIN, lesson


@pytest.mark.parametrize("mode", LESSONS)
def test_a_lesson_as_files_has_what_its_mode_needs(mode, tmp_path):
    rows = [json.loads(line) for line in write_mode_lesson(tmp_path / "clips", mode, count=2).read_text().splitlines()]
    lesson = LESSONS[mode]
    assert len(rows) == (3 if lesson.kind == "colour" else 2)
    for row in rows:
        assert ("video" in row) == ("video" in lesson.streams) and row["caption"]
        assert ("reference_video" in row) == (lesson.kind == "answer" and "video" in lesson.streams)
        assert ("reference_audio" in row) == (lesson.kind == "answer" and "audio" in lesson.streams)
        files = [value for key, value in row.items() if key not in ("caption", "audio_mask")]
        assert files and all((tmp_path / "clips" / name).is_file() for name in files)


def test_a_wrong_question_keeps_its_right_answer(base):
    clips = lesson_clips(LESSONS["A2A IC-LoRA"], base, "base", 4, 1)
    turned = clips.turned()
    assert turned.answers == clips.answers
    ours, theirs = (each.records["reference_audio_latents"]["latents"] for each in (clips, turned))
    assert torch.equal(ours.roll(2, 0), theirs)


def test_the_rule_of_the_lessons_comes_round():
    scene = sample_scenes("base", 1, 0)[0]
    around = scene
    for _ in range(5):
        around = next_scene(around)
        assert around.pitch != scene.pitch or around == scene
    assert around == scene


def test_the_packaged_checkpoint_is_small_and_in_bfloat16():
    checkpoint = tiny_checkpoint()
    assert checkpoint.model.stat().st_size <= LARGEST
    floats = {tensor.dtype for tensor in load_file(checkpoint.model).values()}
    assert floats == {torch.bfloat16}


def test_the_base_follows_captions_and_differs_with_the_seed():
    parts = load_world_model(tiny_checkpoint())
    scenes = sample_scenes("base", QUESTIONS, 5)
    one, other = (sample(parts, captions(scenes, 5), seed=seed) for seed in (0, 1))
    assert not torch.allclose(one["video"], other["video"])
    for made in (one, other):
        found = verdicts(parts, made)
        right = {name: sum(v[name] == getattr(s, name) for v, s in zip(found, scenes, strict=True)) for name in ATTRIBUTES}
        assert right["background"] >= 0.9 * QUESTIONS and right["pitch"] >= 0.9 * QUESTIONS
        assert right["colour"] >= 0.6 * QUESTIONS and right["motion"] >= 0.6 * QUESTIONS


def test_a_changed_checkpoint_is_refused_with_both_hashes(copy):
    model = copy / "ltx-2.3-tiny.safetensors"
    tensors, metadata = load_file(model), read_metadata(model)
    expected = tensor_hash(model)
    first = min(tensors)
    tensors[first] = tensors[first] + 1
    save_file(tensors, model, metadata)
    with pytest.raises(ValueError, match=f"{tensor_hash(model)[:12]}.*{expected[:12]}.*Install the library again"):
        tiny_checkpoint(copy)


def test_metadata_in_another_order_is_the_same_checkpoint(copy):
    model = copy / "ltx-2.3-tiny.safetensors"
    save_file(load_file(model), model, dict(reversed(read_metadata(model).items())) | {"note": "copied"})
    assert tiny_checkpoint(copy).model == model


@pytest.mark.parametrize("missing", ["ltx-2.3-tiny.safetensors", "record.json", "gemma-3-tiny/config.json"])
def test_a_missing_part_of_the_checkpoint_is_named(copy, missing):
    (copy / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing.split("/")[-1]):
        tiny_checkpoint(copy)
