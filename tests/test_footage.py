"The whole way of somebody with a film and nothing else: one file of commands, run line by line."

import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_captions import serving
from test_cli import call
from test_hub import hub  # noqa: F401

from ltx_nb.data.clips import example_clips, read_dataset
from ltx_nb.data.media import probe, read_video, write_video

COMMANDS = (Path(__file__).parent / "film_to_lora.sh").read_text(encoding="utf-8")
LINES = [line for line in COMMANDS.splitlines() if line and not line.startswith("#")]
RATE, FPS = 44100, 24
QUIET = ("scenes", "caption", "prepare", "train", "generate")  # commands with a bar


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    "A minute of film: the shipped clips over and over, cut hard."
    shots = [read_video(path, size=(96, 64)) for path in sorted(example_clips().glob("*.mp4"))]
    frames, sound = torch.cat([shot.frames for shot in shots] * 6), torch.cat([shot.sound for shot in shots] * 6, 1)
    return write_video(tmp_path_factory.mktemp("film") / "a film.mp4", frames, FPS, sound, RATE), len(shots) * 6


def test_from_a_film_to_a_published_lora(capsys, film, tmp_path, monkeypatch, hub):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    path, shots = film
    assert probe(path).duration > 58
    told = {}

    def answers(self, body):
        number = len(self.server.seen)
        self.say(f"The video shows shot {number}, in which animal {number * 7} makes sound {number * 13} and moves.")

    with serving(answers) as (url, seen):
        for line in LINES:
            words = shlex.split(line.replace("$FILM", shlex.quote(str(path))).replace("$SERVER", url))
            code, out, err = call(capsys, *words[1:], *(["--progress", "none"] if words[1] in QUIET else []))
            assert code == 0 and "Traceback" not in err, f"{line}\n{out}\n{err}"
            told[words[1]] = told.get(words[1], "") + out
    clips = sorted(Path("clips").glob("*.mp4"))
    assert len(clips) == len(seen) - 1 >= shots and {probe(clip).frames for clip in clips} == {17, 25}
    dataset = read_dataset("clips")
    assert len(dataset) == len(clips) and all(sample.caption.startswith("Shot ") for sample in dataset)
    assert (
        f"{len(clips)} clips: {len(clips)} written" in told["caption"]
        and "near-duplicate" not in told["caption-doctor"]
    )
    assert f"{len(clips)} of {len(clips)} samples" in told["prepare"]
    samples = sorted(path.name for path in Path("run/samples").iterdir())
    assert samples and any(name.endswith(".mp4") for name in samples)
    made = probe("clip.mp4")
    assert made.frames == 17 and made.has_sound and (made.width, made.height) == (64, 64)
    published = {path.relative_to("published").as_posix() for path in Path("published").rglob("*") if path.is_file()}
    weights = "bird-song.safetensors"
    assert {"README.md", weights, "training_config.yaml"} < published == hub.files["me/bird-song"].keys()
    assert {name for name in published if name.startswith("samples/")} == {"samples/step_000003_1.mp4"}
    card = Path("published/README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["instance_prompt"] == "zvx" and f"| clips | {len(clips)} |" in card and "| steps | 3 |" in card
    for name in published - {weights}:
        assert str(tmp_path).encode() not in (Path("published") / name).read_bytes(), name
    own = load_file("run/checkpoints/lora_weights_step_00003.safetensors")
    assert load_file(f"published/{weights}").keys() == own.keys() and "3" in told["lora"]
