"What a LoRA and a sample say of themselves, and who listens to it."

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import configure, make_place, names, told, train
from test_tracking import SAMPLES

from ltx_nb.data.batches import DummyDataset
from ltx_nb.data.clips import example_clips
from ltx_nb.data.endings import read_about
from ltx_nb.data.media import probe
from ltx_nb.data.prepare import prepare
from ltx_nb.data.store import note_trigger, noted_trigger
from ltx_nb.loading.checkpoint import read_metadata
from ltx_nb.loading.lora_tools import verify_lora
from ltx_nb.tiny.checkpoint import tiny_checkpoint
from ltx_nb.tools.cli import main
from ltx_nb.training.run import tell_export, weights_of
from ltx_nb.training.validation import generate

QUICK = ["--steps", "1", "--no-guidance", "--progress", "none"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("says"))
    note_trigger(place.data, "zanzibar")
    return place


@pytest.fixture(scope="module")
def trained(place):
    return train(place, place.folder / "run", **SAMPLES, **{"optimization.batch_size": 1})[0]


@pytest.fixture(scope="module")
def lora(trained):
    return trained.state.checkpoint


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, *capsys.readouterr()


def test_a_lora_says_what_it_was_trained_on(lora):
    said = read_metadata(lora)
    assert said["resolution_buckets"] == "32x32x9" and said["trigger"] == "zanzibar" and said["clips"] == "3"
    assert float(said["frame_rate"]) > 0


def test_the_most_frequent_size_comes_first(place, tmp_path):
    data = place.folder / "mixed"
    for name, count, frames in (("few", 1, 9), ("many", 3, 17)):
        DummyDataset(width=32, height=32, num_frames=frames, dataset_length=count, context_width=128,
                     audio_context_width=64, context_length=8).save(tmp_path / name)  # fmt: skip
        for path in (tmp_path / name).rglob("*.safetensors"):
            target = data / path.parent.name / f"{name}_{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    changes = {"data.preprocessed_data_root": data, "optimization.batch_size": 1, "optimization.steps": 1}
    trainer, _ = train(place, tmp_path / "run", **changes)
    assert read_metadata(trainer.state.checkpoint)["resolution_buckets"] == "32x32x17;32x32x9"
    assert "trigger" not in read_metadata(trainer.state.checkpoint)


def test_generate_takes_size_rate_and_trigger_where_nothing_else_is_said(place, lora, tmp_path, capsys):
    models = ["--model", place.model, "--text-encoder", place.text_encoder, "--lora", lora, *QUICK]
    code, _, err = call(capsys, "generate", "a red ball", *models, "-o", tmp_path / "own.mp4")
    film = probe(tmp_path / "own.mp4")
    assert code == 0 and (film.width, film.height, film.frames) == (32, 32, 9) and "'zanzibar', the trigger" in err
    assert float(film.fps) == float(read_metadata(lora)["frame_rate"])
    assert read_about(tmp_path / "own.mp4") == {"prompt": "zanzibar a red ball", "seed": 42, "inference_steps": 1}
    more = ["--width", "64", "--frames", "1", "--no-trigger", "--seed", "7", "--audio"]
    code, _, err = call(capsys, "generate", "a red ball", *models, *more, "-o", tmp_path / "other.mp4")
    film = probe(tmp_path / "other.mp4")
    assert code == 0 and (film.width, film.height) == (64, 32) and err == ""
    assert read_about(tmp_path / "other.mp4") == {"prompt": "a red ball", "seed": 7, "inference_steps": 1}


@pytest.mark.parametrize("name, more", [("a.png", ["--frames", "1"]), ("a.wav", ["--no-video", "--audio"])])
def test_a_picture_and_a_sound_say_what_they_were_asked_for(place, lora, tmp_path, capsys, name, more):
    models = ["--model", place.model, "--text-encoder", place.text_encoder, "--lora", lora, *QUICK]
    code, _, _ = call(capsys, "generate", "a red ball", *models, *more, "--seed", "3", "-o", tmp_path / name)
    assert code == 0 and read_about(tmp_path / name) == {
        "prompt": "zanzibar a red ball",
        "seed": 3,
        "inference_steps": 1,
    }


def test_the_python_function_takes_them_too(place, lora):
    clip = generate("a ball", place.model, place.text_encoder, lora=lora, steps=1, device="cpu", dtype=torch.float32)
    assert clip.frames.shape == (9, 3, 32, 32) and clip.about["prompt"] == "zanzibar a ball"
    clip = generate("a Zanzibar ball", place.model, place.text_encoder, lora=lora, steps=1, num_frames=17, audio=False,
                    device="cpu", dtype=torch.float32)  # fmt: skip
    assert len(clip.frames) == 17 and clip.about["prompt"] == "a Zanzibar ball"


def test_the_tiny_model_has_a_size_of_its_own(tmp_path, capsys):
    code, _, err = call(
        capsys, "generate", "the red ball rising at night", "--model", "tiny", *QUICK, "-o", tmp_path / "a.mp4"
    )
    film = probe(tmp_path / "a.mp4")
    assert code == 0 and err == "" and (film.width, film.height, film.frames, film.fps) == (64, 64, 17, 12)


@pytest.mark.parametrize("text", ["0x0x0", "axbxc", "9" * 40 + "x1x1", "", "64x64"])
def test_strange_words_in_a_lora_are_not_believed(lora, place, tmp_path, text, capsys):
    save_file(load_file(lora), tmp_path / "strange.safetensors", {"resolution_buckets": text, "frame_rate": "x"})
    asked = ["--model", place.model, "--text-encoder", place.text_encoder, "--lora", tmp_path / "strange.safetensors"]
    code, _, err = call(
        capsys,
        "generate",
        "a ball",
        *asked,
        *QUICK,
        "--width",
        "32",
        "--height",
        "32",
        "--frames",
        "9",
        "-o",
        tmp_path / "a.mp4",
    )
    assert code == 0 and probe(tmp_path / "a.mp4").frames == 9


def test_sample_films_carry_prompt_seed_and_step(place, trained):
    [film] = (place.folder / "run" / "samples").iterdir()
    said = read_about(film)
    assert said == {"prompt": "a red ball", "seed": 42, "inference_steps": 2, "training_step": 2}


def test_preparing_notes_the_trigger_and_forgets_it(tmp_path):
    tiny = tiny_checkpoint()
    clips = tmp_path / "clips"
    clips.mkdir()
    for suffix in (".mp4", ".txt"):
        (clips / f"bird{suffix}").write_bytes((example_clips() / f"acorn_hits_bird{suffix}").read_bytes())
    for word in ("zanzibar", None):
        prepare(clips, tmp_path / "data", tiny.model, tiny.text_encoder, "32x32x9", lora_trigger=word, device="cpu")
        assert noted_trigger(tmp_path / "data") == word
    (tmp_path / "data" / "dataset.json").write_text("[" * 50000)
    assert noted_trigger(tmp_path / "data") is None


# the export is read back


def test_a_saved_lora_was_read_back(trained):
    assert "read back: 16 layers of 16" in told(trained) and "NOT" not in told(trained)


def test_a_file_that_is_not_as_it_should_be_is_said_loudly(trained, lora, tmp_path):
    weights, _ = weights_of(trained.run)
    tensors = load_file(lora)
    key = next(key for key in tensors if key.endswith("lora_B.weight"))
    whole = lora.read_bytes()
    try:
        save_file(tensors | {key: tensors[key] + 1}, lora)
        tell_export(trained.run, weights)
    finally:
        lora.write_bytes(whole)
    assert "NOT as it should be" in told(trained) and "off by" in told(trained)


def test_diffusers_reads_the_same_layers(trained, lora):
    check = verify_lora(lora, weights_of(trained.run)[0], with_diffusers=True)
    assert not check.problems and check.by_diffusers == check.layers == 16


def test_full_fine_tuning_needs_no_reading_back(place, tmp_path):
    trainer, _ = train(place, tmp_path / "run", **{"model.training_mode": "full", "optimization.steps": 1})
    assert "read back" not in told(trainer) and "model_weights_step_00001.safetensors" in names(
        tmp_path / "run/checkpoints"
    )
    assert configure(place, tmp_path / "x").lora
