"A machine that is borrowed: models by name, results that stay, a run that goes on."

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltx_nb.tiny.lesson import write_lesson
from ltx_nb.tools import rented
from ltx_nb.tools.rented import get_models, lasting_folder, unfinished

SCRIPT = Path(__file__).resolve().parent.parent / "tutorials" / "rented_gpu.sh"
PATIENCE = 240  # seconds until a run of the tiny model in the background must have got somewhere; a few are usual


def test_a_named_model_brings_its_text_encoder(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(rented, "download", lambda name, folder: Path(folder) / name)
    assert get_models("ltx-2", folder=tmp_path) == (tmp_path / "ltx-2", tmp_path / "gemma-3")
    said = capsys.readouterr().out
    assert "LTX-2 Community License" in said and "Gemma Terms of Use" in said and "43 GB" in said
    assert get_models("ltx-2.3", "mine", tmp_path) == (tmp_path / "ltx-2.3", Path("mine"))
    assert "Gemma" not in capsys.readouterr().out


@pytest.mark.parametrize("model", ["mine.safetensors", "gemma-3"])
def test_a_path_needs_its_text_encoder(model):
    with pytest.raises(ValueError, match="text-encoder"):
        get_models(model)


def test_colab_asks_for_drive_once(monkeypatch, tmp_path):
    mounted = []

    class Drive:
        @staticmethod
        def mount(place):
            mounted.append(place)
            (Path(place) / "MyDrive").mkdir(parents=True)

    google = type(sys)("google.colab")
    google.drive = Drive
    monkeypatch.setitem(sys.modules, "google.colab", google)
    where = tmp_path / "drive"
    assert [lasting_folder("a", where), lasting_folder("a", where)] == [where / "MyDrive" / "ltx_nb" / "a"] * 2
    assert mounted == [str(where)]


def test_only_checkpoints_of_a_run_are_gone_on_from(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("notes.safetensors", "lora_weights_step_x.safetensors", "lora_weights_step_00010.txt"):
        (tmp_path / "checkpoints" / name).touch()
    assert unfinished(tmp_path) is None


# the script


def wait_for(what, log):
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until, log.read_text(encoding="utf-8") if log.exists() else "no log"
        time.sleep(0.2)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not shutil.which("bash"), reason="a script for bash")
def test_the_script_trains_in_the_background_stops_and_goes_on(tmp_path):
    clips = write_lesson(tmp_path / "clips", "orange", new=2, reminders=1)[0].parent
    options = {"PREPARE": "--resolution-buckets 64x64x17 --fps 12 --progress none", "WORK": str(tmp_path / "work")}
    steps = "--set validation.interval=null --set optimization.batch_size=1 --set checkpoints.interval=1 "
    steps += "--set optimization.steps="
    place = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}

    def start(count):
        environment = os.environ | options | place | {"TRAIN": steps + str(count)}
        ask = ["bash", str(SCRIPT), str(clips), "tiny", "tiny_lesson"]
        done = subprocess.run(ask, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    log, saved = tmp_path / "work" / "train.log", tmp_path / "work" / "run" / "checkpoints"
    said = start(100_000)
    assert "4/4 training in the background" in said and "1/4" not in said and "2/4" not in said  # all is here
    wait_for(lambda: list(saved.glob("*.safetensors")), log)
    assert "training already" in start(100_000)
    process = int((tmp_path / "work" / "train.pid").read_text())
    os.kill(process, signal.SIGTERM)
    wait_for(lambda: not alive(process), log)
    last = max(int(path.stem.rpartition("_")[2]) for path in saved.glob("*.safetensors"))
    start(last + 1)
    wait_for(lambda: f"{last + 1} steps done" in log.read_text(encoding="utf-8"), log)


def test_the_script_says_what_it_takes(tmp_path):
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, cwd=tmp_path)
    assert (
        done.returncode == 2 and "CLIPS" in done.stdout and "HF_TOKEN" in done.stdout and "set -euo" not in done.stdout
    )
    done = subprocess.run(["bash", str(SCRIPT), "nowhere"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == "no clips at nowhere\n"
