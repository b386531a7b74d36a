"The trained tiny checkpoint, and that a mode learns on it instead of only running."

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_nb.loading.checkpoint import read_metadata
from ltx_nb.tiny.checkpoint import tensor_hash, tiny_checkpoint
from ltx_nb.tiny.kept import KEPT, once
from ltx_nb.tiny.measure import load_world_model, sample, verdicts
from ltx_nb.tiny import modes
from ltx_nb.tiny.modes import LESSONS, Outcome, encode_lesson, learns, lesson_clips, next_scene, write_mode_lesson
from ltx_nb.tiny.world import ATTRIBUTES, captions, play, sample_scenes

LARGEST = 18e6  # bytes that the packaged checkpoint may have
# A lesson is asked 24 questions; a share p of them is known to sqrt(p (1 - p) / 24), a tenth at most. Another processor
# sums in another order, and after a hundred steps that is like another draw of the noise: shares move by as much again.
CHANCE = 0.25  # of a right answer without having been taught: 0 to 0.17 found, of five to seven possible ones
GAIN = 0.3  # what a lesson has to bring over what was there and over the control: 0.42 to 0.88 found; of a fault, 0 +- 0.14
QUESTIONS = 20
SURE, MOSTLY = 0.9, 0.6  # of 20 answers: backgrounds and pitches are all right, colours and motions 18 at least
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


HOLDER = """
import sys, time
from pathlib import Path
from ltx_nb.tiny.kept import once

def make(place):
    (place / "half.txt").write_text("half", encoding="utf-8")
    print("begun", flush=True)
    time.sleep(600)

once({"lesson": 1}, make, "unused")
"""


def test_what_a_killed_process_had_begun_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv(KEPT, str(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert holder.stdout.readline() == "begun\n"
    holder.kill()
    holder.communicate()
    (half,) = tmp_path.rglob("half.txt")
    place = once({"lesson": 1}, lambda place: (place / "whole.txt").write_text("whole", encoding="utf-8"), "unused")
    assert [path.name for path in place.iterdir()] == ["whole.txt"] and not half.exists()


def test_a_lesson_is_taught_once_where_lessons_are_kept(tmp_path, monkeypatch):
    taught = []

    def teach(lesson, place, steps, *_):
        taught.append((lesson.config, steps))
        (place / "lora.safetensors").write_bytes(b"weights")
        return Outcome({"pitch": 0.0}, {"pitch": 0.9}, {"pitch": 0.1}, place / "lora.safetensors")

    monkeypatch.setattr(modes, "_teach", teach)
    monkeypatch.setenv(KEPT, str(tmp_path / "kept"))
    first, again, longer = (learns("text to audio", tmp_path / "mine", steps) for steps in (2, 2, 3))
    assert again == first and first.checkpoint.read_bytes() == b"weights" and not (tmp_path / "mine").exists()
    assert taught == [("t2a_lora", 2), ("t2a_lora", 3)] and longer.checkpoint != first.checkpoint
    monkeypatch.delenv(KEPT)
    alone = learns("text to audio", tmp_path / "mine", 2)
    assert alone.checkpoint == tmp_path / "mine" / "lora.safetensors" and len(taught) == 3


def test_kept_encodings_are_those_of_the_encoder(base, tmp_path, monkeypatch):
    scenes = sample_scenes("base", 2, 4)
    monkeypatch.delenv(KEPT, raising=False)
    fresh = encode_lesson(base, None, play(scenes))["audio_latents"]["latents"]
    monkeypatch.setenv(KEPT, str(tmp_path))
    kept = [encode_lesson(base, None, play(scenes))["audio_latents"]["latents"] for _ in range(2)]
    assert all(torch.equal(fresh, latents) for latents in kept) and len(list(tmp_path.rglob("*.safetensors"))) == 1
    other = encode_lesson(base, None, play(scenes[:1]))["audio_latents"]["latents"]
    assert len(other) == 1 and len(list(tmp_path.rglob("*.safetensors"))) == 2


@pytest.mark.parametrize("mode", LESSONS)
def test_a_lesson_as_files_has_what_its_mode_needs(mode, tmp_path):
    rows = [
        json.loads(line)
        for line in write_mode_lesson(tmp_path / "clips", mode, count=2).read_text(encoding="utf-8").splitlines()
    ]
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
        right = {
            name: sum(v[name] == getattr(s, name) for v, s in zip(found, scenes, strict=True)) for name in ATTRIBUTES
        }
        assert min(right["background"], right["pitch"]) >= SURE * QUESTIONS
        assert min(right["colour"], right["motion"]) >= MOSTLY * QUESTIONS


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
