"What somebody else's damaged file does to its reader: a sentence, soon. The long way: `python tools/fuzz.py`."

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_nb.data.batches import DummyDataset
from ltx_nb.data.rows import parse_intervals, read_rows
from ltx_nb.data.store import Manifest, RecordError, read_record
from ltx_nb.loading.checkpoint import CheckpointError, load_transformer, read_header
from ltx_nb.loading.lora import add_lora, fuse_lora, save_lora
from ltx_nb.model.latents import ConfigError
from ltx_nb.model.text import find_gemma
from ltx_nb.tools import cli
from ltx_nb.training.fit import empty_layers
from ltx_nb.training.memory import memory_plan
from tiny_runs import configure, make_place, make_trainer

ROOT = Path(__file__).resolve().parent.parent
EACH, SEED = 14, 20  # about three hundred inputs in all

spec = importlib.util.spec_from_file_location("fuzz", ROOT / "tools/fuzz.py")
sys.modules["fuzz"] = fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)
READERS = (
    "checkpoint", "config check", "lora", "gemma", "training state", "weights of a run", "held-out losses", "journal",
    "manifest", "record", "old record", "json", "jsonl", "csv", "configuration", "yaml",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return fuzz.Bench(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("untrusted"))


def test_every_reader_is_on_the_bench(bench):
    assert set(bench.readers) == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_gets_a_sentence(bench, name):
    logging.disable(logging.WARNING)
    try:
        found = fuzz.faults(bench, name, EACH, SEED)
    finally:
        logging.disable(logging.NOTSET)
    assert not found, "\n".join(f"{label}\n{said}" for label, said in found[:3])


def test_a_reader_that_stumbles_is_caught(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    reader = fuzz.Reader(tmp_path / "a.json", fuzz.hurt_json, lambda: {}["nothing"])
    assert "KeyError" in fuzz.try_one(reader, b'{"a": 1}', "seed")
    assert (tmp_path / "a.json").read_text() == '{"a": 1}'  # the good file is back


def run(capsys, *arguments):
    "Exit code and output of a command."
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, arguments)))
    said = capsys.readouterr()
    return end.value.code, said.out + said.err


# a name that leaves its folder


@pytest.mark.parametrize("role", ["../victim", "/{}", "a/../../victim", "..", "", "a\\b"])
@pytest.mark.parametrize("journal", [False, True])
def test_a_manifest_cannot_name_what_is_outside(tmp_path, role, journal):
    (tmp_path / "victim").mkdir()
    (victim := tmp_path / "victim/my_model.safetensors").write_bytes(b"x")
    (store := tmp_path / "store").mkdir()
    role = role.format(victim.parent)
    entry = {"source": None, "caption": None, "options": {}, "made_by": {}, "bytes": 1, "absent": None, "time": 0}
    if journal:
        line = {"role": role, "sample": "my_model", **entry}
        (store / "manifest.0123.jsonl").write_text(json.dumps(line) + "\n")
    else:
        (store / "manifest.json").write_text(json.dumps({"format": 1, "records": {role: {"my_model": entry}}}))
    with pytest.raises(RecordError, match="outside of it"):
        Manifest(store).remove(role, "my_model")
    assert victim.exists()


def test_a_sample_cannot_leave_either(tmp_path):
    manifest = Manifest(tmp_path)
    for name in "../x", "/etc/x", "a/../../x":
        with pytest.raises(ValueError, match="relative path"):
            manifest.remove("latents", name)


def test_nothing_is_deleted_through_a_link(tmp_path, caplog):
    (tmp_path / "store").mkdir()
    (tmp_path / "victim").mkdir()
    (victim := tmp_path / "victim/a.safetensors").write_bytes(b"x")
    (tmp_path / "store/latents").symlink_to(tmp_path / "victim")
    Manifest(tmp_path / "store").remove("latents", "a")
    assert victim.exists() and "is not deleted" in caplog.text


def test_an_index_of_weights_cannot_leave_its_folder(tmp_path, place):
    shutil.copytree(place.text_encoder, folder := tmp_path / "gemma")
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="relative path"):
        find_gemma(folder)


# sizes that nobody has


def with_header(place, target, change):
    "The tiny checkpoint with another header."
    header = read_header(place.model)
    change(header)
    save_file(load_file(place.model), target, {"config": json.dumps(header)})
    return target


HUGE = {
    "num_layers": lambda h: h["transformer"].update(num_layers=10**9),
    "connector_num_layers": lambda h: h["transformer"].update(connector_num_layers=10**9),
    "res_x num_layers": lambda h: h["vae"].update(decoder_blocks=[["res_x", {"num_layers": 10**9}]]),
    "res_x": lambda h: h["vae"].update(encoder_blocks=[["res_x", 10**9]]),
    "num_res_blocks": lambda h: h["audio_vae"]["model"]["params"]["ddconfig"].update(num_res_blocks=10**9),
    "filter_length": lambda h: h["audio_vae"]["preprocessing"]["stft"].update(filter_length=10**9),
    "n_fft": lambda h: h["vocoder"]["bwe"].update(n_fft=10**9),
    "many layers": lambda h: h["vae"].update(decoder_blocks=[["res_x", 250]] * 50),
    "num_hidden_layers": lambda h: h["text_encoder"].update(num_hidden_layers=10**9),
}


@pytest.mark.parametrize("what", HUGE)
def test_a_header_is_held_against_its_tensors(tmp_path, place, what):
    path = with_header(place, tmp_path / "huge.safetensors", HUGE[what])
    with fuzz.soon(5), pytest.raises(CheckpointError, match="cannot be right"):
        load_transformer(path)


def test_the_check_of_a_configuration_ends(tmp_path, place, capsys):
    path = with_header(place, tmp_path / "huge.safetensors", HUGE["num_layers"])
    with fuzz.soon(20):
        code, said = run(capsys, "config", "check", "tiny_t2v_lora", "--model", path, "--text-encoder", place.text_encoder,
                         "--data", place.data)  # fmt: skip
    assert code == 1 and "num_layers is 1,000,000,000" in said and "Traceback" not in said


@pytest.mark.parametrize("name", [{}, ["a"], None, 3])
def test_a_name_in_a_journal_that_is_no_text_is_a_torn_line_or_a_sentence(tmp_path, name):
    line = {"removed": True, "time": 1.0, "role": "latents", "sample": "a"}
    (tmp_path / "manifest.x.jsonl").write_text("".join(json.dumps(line | {k: name}) + "\n" for k in ("role", "sample")))
    try:
        assert not any(Manifest(tmp_path).records.values())
    except RecordError as error:
        assert str(error)


@pytest.mark.parametrize("value", [[[0, 10**400]], [[-(10**400), 1]], f"[[0, {10**400}]]"])
def test_seconds_that_no_clock_has_are_a_sentence(value):
    with pytest.raises(ValueError, match="is no list of intervals"):
        parse_intervals(value)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_rows_end_as_any_system_ends_them(tmp_path, ends):
    (tmp_path / "clips.csv").write_bytes(ends.join(["video;caption", "a.mp4;a bird", "b.mp4;a fish"]).encode())
    assert [row["caption"] for _, row in read_rows(tmp_path / "clips.csv")] == ["a bird", "a fish"]


@pytest.mark.parametrize("section", [None, [], 3])
def test_a_header_without_a_transformer_is_a_sentence(tmp_path, place, section):
    path = with_header(place, tmp_path / "headless.safetensors", lambda header: header.update(transformer=section))
    config = configure(place, tmp_path / "run")
    config.model.model_path = str(path)
    for plan in lambda: memory_plan(config, step=False), lambda: empty_layers(config):
        with pytest.raises(ConfigError, match="no transformer section"):
            plan()


def test_layers_of_a_text_encoder_are_counted(tmp_path, place):
    shutil.copytree(place.text_encoder, folder := tmp_path / "gemma")
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config)["num_hidden_layers"] = 10**5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="100000 layers"):
        find_gemma(folder)


# what is no number, no text, no tensor


def test_a_long_cell_is_a_long_caption(tmp_path):
    from ltx_nb.data.clips import read_rows

    caption = "word " * 40_000
    (tmp_path / "a.csv").write_text(f'video,caption\na.mp4,"{caption}"\n')
    assert read_rows(tmp_path / "a.csv")[0][1]["caption"] == caption.strip()


@pytest.mark.parametrize("value", ["x", [], {}, 1e999, "nan"])
def test_alpha_of_a_lora_is_a_number(tmp_path, place, value):
    add_lora(model := load_transformer(place.model), 2, target_modules=["attn1.to_q"])
    path = save_lora(model, tmp_path / "a.safetensors")
    said = {"lora_adapter_metadata": json.dumps({"lora_alpha": value}), "format": "pt"}
    save_file(load_file(path), path, said)
    with pytest.raises(CheckpointError, match="expected a number"):
        fuse_lora(load_transformer(place.model), path)


def test_a_pickle_of_code_is_a_sentence_and_does_not_run(tmp_path, place, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = DummyDataset(width=32, height=32, num_frames=9, dataset_length=1, context_width=128, audio_context_width=64,
                        context_length=8).save(tmp_path / "data")  # fmt: skip
    record = next((data / "conditions").rglob("*.safetensors"))
    evil = record.with_suffix(".pt")
    evil.write_bytes(b"cos\nsystem\n(S'touch EXECUTED'\ntR.")
    record.unlink()
    code, said = run(capsys, "train", "tiny_t2v_lora", "--model", place.model, "--text-encoder", place.text_encoder,
                     "--data", data, "-o", tmp_path / "run", "--set", "validation.interval=null", "--progress", "none")  # fmt: skip
    assert code == 1 and "more than tensors" in said and "Traceback" not in said
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("step", ["x", float("nan"), 1e12, 10**12, -1, True, None])
def test_the_step_of_a_training_state_is_that_of_its_name(tmp_path, place, step):
    from ltx_nb.training import checkpoints

    trainer = make_trainer(place, tmp_path / "run", optimization__steps=1)
    saved = list(trainer.steps())[-1].checkpoint
    state = checkpoints.read_training_state(next(saved.parent.glob("training_state*")))
    state.step = step
    packed = checkpoints.pack({name: getattr(state, name) for name in vars(state)})
    checkpoints._write_state(path := checkpoints.checkpoint_path(saved.parent, 1, "state"), packed, saved, False)
    with pytest.raises(CheckpointError, match="its step is"):
        checkpoints.read_training_state(path)


def test_a_rank_of_four_hundred_digits(tmp_path, place, capsys):
    code, said = run(capsys, "config", "check", "tiny_t2v_lora", "--model", place.model, "--text-encoder",
                     place.text_encoder, "--data", place.data, "--set", f"lora.rank={10**400}")  # fmt: skip
    assert code == 1 and "lora.rank" in said and "Traceback" not in said


def test_numbers_that_are_none_are_named(tmp_path, place):
    tensors = load_file(place.model)
    name = next(key for key in tensors if key.endswith("transformer_blocks.1.attn1.to_q.weight"))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, tmp_path / "lost.safetensors", {"config": json.dumps(read_header(place.model))})
    with pytest.raises(CheckpointError, match=f"{name} holds NaN"):
        load_transformer(tmp_path / "lost.safetensors")
    save_file({"latents": torch.tensor([float("inf")])}, tmp_path / "a.safetensors")
    with pytest.raises(RecordError, match="a.safetensors: latents holds NaN or infinity"):
        read_record(tmp_path / "a.safetensors")


# nobody is asked over a network

OFFLINE = """
import socket, sys

def refuse(*_, **__):
    sys.exit("a connection was asked for")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

import builtins
usual = builtins.__import__

def watched(name, *rest, **more):
    if name.split(".")[0] == "bitsandbytes":  # whose CPU part asks a hub for code as it is imported
        sys.exit(name + " was imported")
    return usual(name, *rest, **more)

builtins.__import__ = watched
from ltx_nb.tools.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["train", "generate"])
def test_nothing_reaches_a_network_unasked(tmp_path, place, command):
    models = ["--model", place.model, "--text-encoder", place.text_encoder, "--progress", "none"]
    changes = {f"validation.{name}": value for name, value in dict(
        interval=1, video_dims="[32,32,9]", inference_steps=1, skip_initial_validation="true").items()}  # fmt: skip
    changes |= {"optimization.steps": 1, "lora.target_modules": "[attn1.to_q]"}
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    arguments = {
        "train": ["train", "tiny_t2v_lora", *models, "--data", place.data, "-o", tmp_path / "run", *sets],
        "generate": ["generate", "a cat", *models, "--width", 32, "--height", 32, "--frames", 9, "--steps", 1,
                     "--no-guidance", "-o", tmp_path / "a.mp4"],
    }[command]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kernels" not in done.stderr
