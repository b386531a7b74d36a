"The command `ltx-nb`: the whole way through, and one sentence for each kind of bad input."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import TARGETS, make_place, names

from ltx_nb.tools.cli import main
from ltx_nb.config.files import example_configs, load_config
from ltx_nb.data.clips import example_clips
from ltx_nb.data.media import probe
from ltx_nb.loading.lora import read_lora
from ltx_nb.tiny.checkpoint import tiny_checkpoint
from ltx_nb.tiny.text import make_tiny_gemma

SMALL = ["--width", "32", "--height", "32", "--frames", "9", "--steps", "2", "--no-guidance"]
COMMANDS = (
    "scenes", "caption", "caption-doctor", "prepare", "train", "generate", "config", "tiny", "demo", "runs", "plot", "push", "lora", "reference", "mask", "decode",
    "quantize", "plan",
)  # fmt: skip
QUICK = 2.0  # seconds of work for a help text; with torch it would be several times that


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("cli"))


def call(capsys, *arguments):
    "Exit code, stdout and stderr of a command."
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def unfolded(table: str) -> str:
    "A table's text without its white space: a long path is folded at the terminal's width, wherever that falls."
    return "".join(table.split())


def models(place, **other):
    found = {"--model": place.model, "--text-encoder": place.text_encoder} | {f"--{k}": v for k, v in other.items()}
    return [part for pair in found.items() for part in pair]


def sets(place, output, **changes):
    "The options of a short training run."
    usual = {
        "model.model_path": place.model, "model.text_encoder_path": place.text_encoder, "output_dir": output,
        "data.preprocessed_data_root": place.data, "optimization.steps": 2, "checkpoints.interval": 1,
        "lora.target_modules": json.dumps(TARGETS), "validation.interval": "null",
    }  # fmt: skip
    changes = usual | {name.replace("__", "."): value for name, value in changes.items()}
    return [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]


# the installed command


def test_the_installed_command_helps_at_once_and_without_torch(tmp_path):
    script = Path(sys.executable).with_name("ltx-nb")
    probe_file = (
        tmp_path / "sitecustomize.py"
    )  # runs in the child: at its end it tells what was imported and how long it worked
    probe_file.write_text(
        "import atexit, sys, time\n"
        "atexit.register(lambda: print(sorted({'torch', 'transformers'} & sys.modules.keys()), time.process_time(), file=sys.stderr))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "100"}
    done = subprocess.run([script, "--help"], capture_output=True, text=True, env=environment, timeout=60)
    heavy, seconds = done.stderr.rsplit(maxsplit=1)
    assert done.returncode == 0 and heavy == "[]" and float(seconds) < QUICK
    assert all(f"\n  {command}" in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    code, out, err = call(capsys, command, "--help")
    assert code == 0 and err == "" and f"Usage: ltx-nb {command}" in out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["prepair"], "prepair"),
        (["prepare"], "clips"),
        (["generate", "a rabbit"], "--model"),
        (["generate", "a rabbit", "--modle", "m"], "--model"),
        (["generate", "a rabbit", "--model", "m", "--text-encoder", "t", "--width", "wide"], "--width"),
        (["train", "tiny_t2v_lora", "--stteps", "3"], "--stteps"),
    ],
)
def test_a_mistyped_command_line(capsys, arguments, word):
    code, out, err = call(capsys, *arguments)
    assert code == 2 and word in err and "Traceback" not in err


# the whole way


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name in ("acorn_hits_bird", "bunny_smiles"):
        for suffix in (".mp4", ".txt"):
            shutil.copy(example_clips() / f"{name}{suffix}", folder)
    return folder


def test_from_clips_to_a_clip(capsys, place, clips, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    ask = ["prepare", clips, "-o", data, *models(place), "--resolution-buckets", "32x32x9", "--progress", "plain"]
    code, out, _ = call(capsys, *ask)
    assert code == 0 and "2 of 2 samples" in out and "acorn_hits_bird" in out
    assert {len(names(data / role)) for role in ("latents", "audio_latents", "conditions")} == {2}
    code, out, _ = call(capsys, *ask)
    assert code == 0 and "reused" in out and "made" not in out

    options = sets(place, run, data__preprocessed_data_root=data)
    code, out, _ = call(capsys, "train", "tiny_t2v_lora", *options, "--progress", "plain")
    lora = run / "checkpoints" / "lora_weights_step_00002.safetensors"
    assert code == 0 and f"2 steps done; weights: {lora}" in out and lora.exists()
    assert load_config(run / "training_config.yaml").optimization.steps == 2

    more = sets(place, run, data__preprocessed_data_root=data, optimization__steps=3)
    code, out, _ = call(capsys, "train", "tiny_t2v_lora", *more, "--resume", run, "--progress", "none")
    assert code == 0 and "3 steps done" in out

    files = []
    for name, extra in (("before", []), ("after", ["--lora", lora])):
        files.append(tmp_path / f"{name}.mp4")
        code, _, err = call(
            capsys, "generate", "a rabbit yawns", *models(place), "-o", files[-1], *SMALL, *extra, "--progress", "plain"
        )
        assert code == 0 and probe(files[-1]).frames == 9 and probe(files[-1]).has_sound
    assert files[0].read_bytes() != files[1].read_bytes()


def test_one_bad_clip_is_named_and_the_others_are_prepared(capsys, place, clips, tmp_path):
    folder = Path(shutil.copytree(clips, tmp_path / "clips"))
    (folder / "torn.mp4").write_bytes((folder / "bunny_smiles.mp4").read_bytes()[:900])
    (folder / "torn.txt").write_text("a rabbit", encoding="utf-8")
    ask = [
        "prepare",
        folder,
        "-o",
        tmp_path / "data",
        *models(place),
        "--resolution-buckets",
        "32x32x9",
        "--no-with-audio",
    ]
    code, out, err = call(capsys, *ask, "--progress", "none")
    assert code == 3 and "2 of 3 samples" in out and "torn" in out and "Traceback" not in out + err
    assert [name.partition(".")[0] for name in names(tmp_path / "data" / "latents")] == [
        "acorn_hits_bird",
        "bunny_smiles",
    ]


def test_sound_alone_and_picture_alone(capsys, place, tmp_path):
    ask = ["generate", "birds", *models(place), *SMALL, "--progress", "none", "-o"]
    assert call(capsys, *ask, tmp_path / "birds.wav", "--no-video")[0] == 0
    assert call(capsys, *ask, tmp_path / "still.png", "--no-audio", "--frames", "1")[0] == 0
    assert names(tmp_path) == ["birds.wav", "still.png"]


def test_several_prompts_and_seeds_are_the_clips_of_each_alone(capsys, place, tmp_path):
    ask = [*models(place), *SMALL, "--progress", "none", "-o", tmp_path / "clip.mp4"]
    code, out, err = call(capsys, "generate", "a rabbit", "a bird", *ask, "--seed", 0, "--seed", 1)
    files = [tmp_path / f"clip_{number}.mp4" for number in range(1, 5)]
    assert code == 0 and out.split() == [str(path) for path in files], err
    assert call(capsys, "generate", "a bird", *ask, "--seed", 0)[0] == 0
    assert (tmp_path / "clip.mp4").read_bytes() == files[2].read_bytes()
    assert len({path.read_bytes() for path in files}) == len(files)


def test_a_prompt_without_quotation_marks_is_not_taken_for_several(capsys, place, tmp_path):
    code, _, err = call(capsys, "generate", "a", "rabbit", "yawns", *models(place), *SMALL, "-o", tmp_path / "clip.mp4")
    assert (
        code == 1 and "put quotation marks around a prompt" in err and '"a rabbit yawns"' in err and not names(tmp_path)
    )


GIVEN = [
    "first_frame image_or_video='{clip}'",
    "prefix video='{clip}' num_frames=1",
    "suffix audio='{clip}' duration=0.1",
    "reference video='{clip}' downscale_factor=1 include_in_output=true",
    "video_to_audio video='{clip}'",
]


@pytest.mark.parametrize("given", GIVEN)
def test_what_is_given_on_the_command_line(capsys, place, tmp_path, given):
    "The same fields as in a configuration, and the same clip as from Python."
    text = given.format(clip=example_clips() / "bunny_smiles.mp4")
    ask = ["generate", "a rabbit", *models(place), *SMALL, "--progress", "none", "-o", tmp_path / "out.mp4"]
    code, _, err = call(capsys, *ask, "--given", text)
    assert code == 0, err
    width = 64 if "include_in_output" in given else 32
    assert (probe(tmp_path / "out.mp4").width, probe(tmp_path / "out.mp4").frames) == (width, 9)
    first = (tmp_path / "out.mp4").read_bytes()
    assert call(capsys, *ask, "--overwrite")[0] == 0 and (tmp_path / "out.mp4").read_bytes() != first


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("first_frame", ["image_or_video", "missing"]),
        ("first frame image_or_video=x.png", ["prefix video=clip.mp4 num_frames=17"]),
        ("image_or_video=x.png", ["the type of a condition and its fields"]),
        ("first_frame image_or_video='x.png", ["the type of a condition and its fields", "quotation"]),
        ("prefix video=x.mp4 frames=9", ["frames", "did you mean num_frames"]),
        ("first_frame image_or_video=nothing.png", ["nothing.png"]),
    ],
)
def test_what_cannot_be_given_is_one_sentence(capsys, place, tmp_path, given, words):
    ask = [
        "generate",
        "a rabbit",
        *models(place),
        *SMALL,
        "--progress",
        "none",
        "-o",
        tmp_path / "out.mp4",
        "--given",
        given,
    ]
    one_sentence(*call(capsys, *ask), words)
    assert not names(tmp_path)


def test_references_and_masks_are_prepared_beside_their_clips(capsys, place, clips, tmp_path):
    folder = Path(shutil.copytree(clips, tmp_path / "clips"))
    for path in list(folder.glob("*.mp4")):
        shutil.copy(path, path.with_suffix(".reference.mp4"))
        path.with_suffix(".audio_mask.txt").write_text("0.0-0.2", encoding="utf-8")
    ask = [
        "prepare",
        folder,
        "-o",
        tmp_path / "data",
        *models(place),
        "--resolution-buckets",
        "64x64x17",
        "--progress",
        "none",
    ]
    code, out, _ = call(capsys, *ask, "--reference-downscale-factor", "2", "--reference-temporal-scale-factor", "2")
    assert code == 0 and "2 of 2 samples" in out
    assert [len(names(tmp_path / "data" / role)) for role in ("reference_latents", "audio_masks")] == [2, 2]
    one_sentence(*call(capsys, *ask, "--reference-downscale-factor", "4"), ["64x64x17", "4"])


# names


def test_names_of_the_ltx_trainer_mean_the_same(capsys, place, clips, tmp_path):
    there = ["--model-path", place.model, "--text-encoder-path", place.text_encoder, "--progress", "none"]
    ask = ["prepare", clips, *there, "--resolution-buckets", "32x32x9", "--output-dir", tmp_path / "data"]
    assert call(capsys, *ask)[0] == 0 and len(names(tmp_path / "data" / "latents")) == 2
    sizes = ["--width", "32", "--height", "32", "--num-frames", "9", "--frame-rate", "24", "--inference-steps", "2"]
    for output, ask in (("theirs", sizes), ("ours", SMALL)):
        file = tmp_path / f"{output}.mp4"
        assert call(capsys, "generate", "a", *there, *ask, "--no-guidance", "-o", file)[0] == 0
    assert (tmp_path / "theirs.mp4").read_bytes() == (tmp_path / "ours.mp4").read_bytes()


def test_files_that_an_example_cannot_know_are_options_of_training(capsys, place, tmp_path):
    paths = {"--model-path": place.model, "--data": place.data, "--output-dir": tmp_path / "run"}
    ask = ["tiny_t2v_lora", "--text-encoder-path", place.text_encoder, *(o for pair in paths.items() for o in pair)]
    code, out, err = call(capsys, "config", "check", *ask)
    said = "".join(out.split())  # long paths are wrapped
    assert code == 0 and all(str(path) in said for path in paths.values()), err
    one_sentence(*call(capsys, "config", "check", *ask, "--data", "/nowhere"), ["/nowhere", "ltx-nb prepare"])


def test_the_packaged_model_has_a_name(capsys, place, clips, tmp_path):
    ask = ["prepare", clips, "-o", tmp_path / "data", "--model", "tiny", "--resolution-buckets", "64x64x17"]
    assert call(capsys, *ask, "--progress", "none")[0] == 0
    ask = ["train", "tiny_lesson", "--model", "tiny", "--data", tmp_path / "data", "-o", tmp_path / "run"]
    code, out, err = call(
        capsys, *ask, "--set", "optimization.steps=1", "--set", "optimization.batch_size=2", "--progress", "none"
    )
    assert code == 0 and "1 steps done" in out, err
    assert unfolded(str(tiny_checkpoint().model)) in unfolded(out)
    ask = ["--width", "64", "--height", "64", "--frames", "17", "--fps", "12", "--steps", "2", "--no-guidance"]
    ask = ["generate", "the red ball", "--model", "tiny", *ask, "-o", tmp_path / "ball.mp4", "--progress", "none"]
    assert call(capsys, *ask)[0] == 0 and probe(tmp_path / "ball.mp4").frames == 17


@pytest.mark.parametrize("command", ["generate", "prepare"])
def test_a_checkpoint_needs_its_text_encoder(capsys, place, tmp_path, command):
    one_sentence(*call(capsys, command, "a", "-o", tmp_path / "x", "--model", place.model), ["--text-encoder", "Gemma"])


# configurations


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("lora.rank", ["int", "64"]),
        ("validation.samples.conditions.prefix.num_frames", ["num_frames", "int"]),
        ("", ["model", "lora"]),
    ],
)
def test_a_field_is_explained(capsys, path, words):
    code, out, _ = call(capsys, "config", "explain", *([path] if path else []))
    assert code == 0 and all(word in out for word in words)


def test_a_field_that_does_not_exist_is_one_sentence(capsys):
    one_sentence(*call(capsys, "config", "explain", "lora.rnak"), ["rnak", "rank"])
    one_sentence(*call(capsys, "config", "accelerate", "dpp"), ["dpp", "ddp"])


def test_the_files_for_accelerate_are_printed(capsys):
    assert call(capsys, "config", "accelerate")[1].split() == ["ddp", "ddp_compile", "fsdp", "fsdp_compile"]
    assert "distributed_type: FSDP" in call(capsys, "config", "accelerate", "fsdp")[1]


def test_configurations_can_be_listed_shown_and_checked(capsys, place, tmp_path):
    code, out, _ = call(capsys, "config", "list")
    assert code == 0 and out.split() == example_configs()
    code, out, _ = call(capsys, "config", "show", "tiny_t2v_lora")
    (tmp_path / "mine.yaml").write_text(out, encoding="utf-8")
    assert code == 0
    code, out, _ = call(capsys, "config", "check", tmp_path / "mine.yaml", *sets(place, tmp_path / "run"))
    assert code == 0 and "text to video with sound" in out and "run" in out
    code, again, _ = call(capsys, "train", tmp_path / "mine.yaml", *sets(place, tmp_path / "run"), "--check")
    assert (code, again) == (0, out) and not (tmp_path / "run").exists()


# bad input


def broken(place, folder, kind):
    "A checkpoint with something wrong about it."
    path = folder / f"{kind}.safetensors"
    if kind == "truncated":
        path.write_bytes(place.model.read_bytes()[:-1000])
    elif kind == "pickle":
        torch.save({"a": torch.zeros(2)}, path)
    elif kind == "bare":
        save_file({"a": torch.zeros(2)}, path)
    elif kind == "half":
        tensors = load_file(place.model)
        del tensors["model.diffusion_model.proj_out.weight"]
        rewrite(place.model, path, tensors)
    elif kind == "unknown":
        with safe_open(place.model, "pt") as file:
            header = json.loads(file.metadata()["config"])
        header["transformer"]["rope_type"] = "spiral"
        save_file(load_file(place.model), path, {"config": json.dumps(header)})
    return path


def rewrite(source, target, tensors):
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, target, metadata)


CHECKPOINTS = {
    "missing": ["missing.safetensors", "no such file | does not exist"],
    "truncated": ["truncated.safetensors", "cut short", "download it again"],
    "pickle": ["pickle.safetensors", "not a safetensors file", "converted"],
    "bare": ["bare.safetensors", "no configuration in its header", "official"],
    "half": ["half.safetensors", "proj_out.weight", "not in the file"],
    "unknown": ["rope_type", "spiral"],
}


def one_sentence(code, out, err, words):
    "What every refusal has in common."
    assert code == 1 and "Traceback" not in out + err
    assert err.startswith("error: ") and err.count("error: ") == 1 and err.endswith("\n")
    for word in words:
        assert any(one in err for one in word.split(" | ")), f"{word!r} is not in {err!r}"


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_generate_with_a_bad_checkpoint(capsys, place, tmp_path, kind):
    ask = ["generate", "a", *models(place, model=broken(place, tmp_path, kind)), *SMALL, "-o", tmp_path / "x.mp4"]
    one_sentence(*call(capsys, *ask, "--progress", "none"), CHECKPOINTS[kind])
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize("kind", ["missing", "truncated", "pickle", "bare"])
def test_prepare_with_a_bad_checkpoint(capsys, place, clips, tmp_path, kind):
    ask = [
        "prepare",
        clips,
        "-o",
        tmp_path / "data",
        *models(place, model=broken(place, tmp_path, kind)),
        "--progress",
        "none",
    ]
    one_sentence(*call(capsys, *ask), CHECKPOINTS[kind])


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_train_with_a_bad_checkpoint(capsys, place, tmp_path, kind):
    options = sets(place, tmp_path / "run", model__model_path=broken(place, tmp_path, kind))
    one_sentence(*call(capsys, "train", "tiny_t2v_lora", *options, "--progress", "none"), CHECKPOINTS[kind])
    assert not (tmp_path / "run").exists()


URL = "https://huggingface.co/Lightricks/LTX-2/resolve/main/ltx-2-19b-dev.safetensors"


def test_an_address_where_a_path_is_needed(capsys, place, clips, tmp_path):
    there = models(place, model=URL)
    for ask in (["generate", "a", *there, *SMALL], ["prepare", clips, "-o", tmp_path / "d", *there]):
        one_sentence(*call(capsys, *ask, "--progress", "none"), ["download", "ltx-2-19b-dev"])
    options = sets(place, tmp_path / "run", model__model_path=URL)
    one_sentence(*call(capsys, "train", "tiny_t2v_lora", *options), ["model.model_path", "local path", "download"])


def bad_gemma(place, folder, kind):
    if kind == "missing":
        return folder / "gemma"
    if kind == "narrow":
        make_tiny_gemma(folder / "gemma", hidden_size=32)
        return folder / "gemma"
    path = Path(shutil.copytree(place.text_encoder, folder / "gemma"))
    for file in path.iterdir():
        if kind == "no tokenizer" and "token" in file.name or kind == "no weights" and file.suffix == ".safetensors":
            file.unlink()
    return path


GEMMAS = {
    "missing": ["gemma"],
    "no tokenizer": ["gemma", "tokenizer"],
    "narrow": ["32"],
    "no weights": ["gemma", "safetensors"],
}


@pytest.mark.parametrize("kind", GEMMAS)
@pytest.mark.parametrize("command", ["generate", "prepare", "train"])
def test_a_bad_gemma_folder(capsys, place, clips, tmp_path, command, kind):
    gemma = bad_gemma(place, tmp_path, kind)
    there = [*models(place, **{"text-encoder": gemma}), "--progress", "none"]
    ask = {
        "generate": ["generate", "a", *SMALL, *there, "-o", tmp_path / "x.mp4"],
        "prepare": ["prepare", clips, "-o", tmp_path / "data", *there],
        "train": [
            "train",
            "tiny_t2v_lora",
            *sets(place, tmp_path / "run", model__text_encoder_path=gemma, validation__interval=1),
        ],
    }
    one_sentence(*call(capsys, *ask[command]), GEMMAS[kind])


@pytest.mark.parametrize(
    ("buckets", "words"),
    [
        ("100x64x17", ["100", "96", "128"]),
        ("64x64x20", ["20", "17", "25"]),
        ("64x64", ["64x64", "WIDTHxHEIGHTxFRAMES"]),
        ("wide", ["wide"]),
    ],
)
def test_bad_buckets_name_the_nearest(capsys, place, clips, tmp_path, buckets, words):
    ask = [
        "prepare",
        clips,
        "-o",
        tmp_path / "data",
        *models(place),
        "--resolution-buckets",
        buckets,
        "--progress",
        "none",
    ]
    one_sentence(*call(capsys, *ask), words)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--width", "100"], ["100", "96", "128"]),
        (["--frames", "24"], ["24", "17", "25"]),
        (["--steps", "0"], ["steps"]),
        (["--fps", "0"], ["frame rate"]),
        (["--no-video", "--no-audio"], ["switched off"]),
        (["--lora", "none.safetensors"], ["none.safetensors"]),
        (["--device", "cdua"], ["cdua", "this machine has cpu"]),
        (["--device", "cuda:99"], ["cuda:99", "this machine has cpu"]),
    ],
)
def test_requests_that_cannot_be_met(capsys, place, tmp_path, option, words):
    ask = ["generate", "a", *models(place), *SMALL, "-o", tmp_path / "x.mp4", "--progress", "none", *option]
    one_sentence(*call(capsys, *ask), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimization__learning_rte": 1}, ["optimization.learning_rte", "learning_rate"]),
        ({"optimizer__steps": 1}, ["optimizer", "optimization"]),
        ({"optimization__steps": "many"}, ["optimization.steps", "many"]),
        (
            {"validation__video_dims": "[100, 64, 17]", "validation__interval": 1},
            ["validation.video_dims", "96", "128"],
        ),
        ({"lora__target_modules": "[to_quux]"}, ["to_quux", "to_q"]),
        ({"data__preprocessed_data_root": "/nowhere"}, ["/nowhere", "ltx-nb prepare"]),
        ({"model__load_checkpoint": "/nowhere.safetensors"}, ["/nowhere.safetensors"]),
    ],
)
def test_a_bad_configuration(capsys, place, tmp_path, change, words):
    ask = ["train", "tiny_t2v_lora", *sets(place, tmp_path / "run", **change), "--progress", "none"]
    one_sentence(*call(capsys, *ask), words)


def test_all_problems_of_a_configuration_come_at_once(capsys, place, tmp_path):
    options = sets(place, tmp_path, optimization__stps=1, lora__rnk=2, data__preprocessed_data_root="/nowhere")
    one_sentence(
        *call(capsys, "config", "check", "tiny_t2v_lora", *options), ["optimization.stps", "lora.rnk", "/nowhere"]
    )


def test_an_unknown_example(capsys):
    one_sentence(*call(capsys, "train", "tiny_t2v_lroa"), ["tiny_t2v_lroa", "tiny_t2v_lora"])


@pytest.mark.parametrize("content", ["optimization: [", "- a\n- b", "\x00"])
def test_a_file_that_is_no_configuration(capsys, tmp_path, content):
    (tmp_path / "my.yaml").write_text(content, encoding="utf-8")
    one_sentence(*call(capsys, "train", tmp_path / "my.yaml"), ["my.yaml"])


def test_a_dataset_that_lacks_a_folder(capsys, place, tmp_path):
    for role in ("latents", "conditions"):
        shutil.copytree(place.data / role, tmp_path / "data" / role)
    options = sets(place, tmp_path / "run", data__preprocessed_data_root=tmp_path / "data")
    one_sentence(*call(capsys, "train", "tiny_t2v_lora", *options), ["audio_latents", "missing", "conditions, latents"])


def test_a_lora_that_matches_nothing(capsys, place, tmp_path):
    pair = {"A": torch.zeros(4, 128), "B": torch.zeros(128, 4)}
    keys = "diffusion_model.double_blocks.{}.img_attn.qkv.lora_{}.weight"
    save_file(
        {keys.format(i, part): pair[part].clone() for i in range(3) for part in "AB"}, tmp_path / "flux.safetensors"
    )
    assert len(read_lora(tmp_path / "flux.safetensors")[0]) == 3
    ask = ["generate", "a", *models(place), *SMALL, "--lora", tmp_path / "flux.safetensors", "-o", tmp_path / "x.mp4"]
    one_sentence(*call(capsys, *ask, "--progress", "none"), ["flux.safetensors", "0 of its 3", "double_blocks"])


@pytest.mark.parametrize("kind", ["missing", "empty", "no captions", "output is a file"])
def test_clips_that_cannot_be_prepared(capsys, place, clips, tmp_path, kind):
    folder, output = tmp_path / "clips", tmp_path / "data"
    words = {
        "missing": [str(folder)],
        "empty": [str(folder)],
        "no captions": ["caption"],
        "output is a file": [str(output)],
    }
    if kind == "empty":
        folder.mkdir()
    elif kind == "no captions":
        folder.mkdir()
        shutil.copy(clips / "bunny_smiles.mp4", folder)
    elif kind == "output is a file":
        shutil.copytree(clips, folder)
        output.write_text("mine", encoding="utf-8")
    ask = ["prepare", folder, "-o", output, *models(place), "--resolution-buckets", "32x32x9", "--progress", "none"]
    one_sentence(*call(capsys, *ask), words[kind])


def test_an_output_that_cannot_be_written(capsys, place, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    ask = ["generate", "a", *models(place), *SMALL, "-o", tmp_path / "file" / "x.mp4", "--progress", "none"]
    one_sentence(*call(capsys, *ask), [str(tmp_path / "file")])


def test_defects_of_the_program_are_not_dressed_up_as_bad_input(monkeypatch, place):
    monkeypatch.setattr("ltx_nb.config.files.example_configs", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["config", "list"])


def test_an_interrupt_ends_with_the_usual_code(capsys, monkeypatch):
    def press():
        raise KeyboardInterrupt

    monkeypatch.setattr("ltx_nb.config.files.example_configs", press)
    code, out, err = call(capsys, "config", "list")
    assert code == 130 and "Traceback" not in err


# the trained tiny model


@pytest.mark.parametrize(
    ("prompt", "size", "said"),
    [
        ("the red ball rising at night", ["64", "64", "17", "12"], []),
        ("the orange ball rising at night", ["64", "64", "17", "12"], []),  # a word that a LoRA teaches
        ("the red rabbit rising at night", ["64", "64", "17", "12"], ["does not know 'rabbit'", "words_of()"]),
        (
            "the red ball rising at night",
            ["32", "32", "9", "24"],
            ["64x64, 17 frames at 12 fps", "32x32, 9 frames at 24 fps"],
        ),
    ],
)
def test_the_tiny_model_says_what_is_not_in_its_world(capsys, tmp_path, prompt, size, said):
    tiny = tiny_checkpoint()
    options = zip(("--width", "--height", "--frames", "--fps"), size, strict=True)
    ask = [
        "--model",
        tiny.model,
        "--text-encoder",
        tiny.text_encoder,
        "--steps",
        "2",
        "--no-guidance",
        "--progress",
        "none",
    ]
    code, _, err = call(
        capsys, "generate", prompt, *ask, *(o for pair in options for o in pair), "-o", tmp_path / "clip.mp4"
    )
    assert code == 0 and probe(tmp_path / "clip.mp4").frames == int(size[2])
    assert all(part in err for part in said) and ("note:" in err) == bool(said)


def test_an_unknown_stage_of_the_recipe_is_one_sentence(capsys, tmp_path):
    one_sentence(
        *call(capsys, "tiny", "train", "-o", tmp_path / "r", "--stage", "decoder", "--progress", "none"),
        ["decoder", "vocoder"],
    )
    assert not (tmp_path / "r").exists()


def test_a_folder_without_a_checkpoint_cannot_be_measured(capsys, tmp_path):
    one_sentence(*call(capsys, "tiny", "measure", tmp_path), ["ltx-2.3-tiny.safetensors", "ltx-nb tiny train"])
