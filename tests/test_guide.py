"The guides: every command is run, on the tiny model, and what they name is there."

import base64
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_captions import serving
from test_cli import call
from test_hub import hub  # noqa: F401

from ltx_nb.config.explain import explain
from ltx_nb.config.files import example_configs
from ltx_nb.config.samples import ValidationSample
from ltx_nb.data.clips import example_clips
from ltx_nb.data.media import probe, read_video, write_video
from ltx_nb.tools.cli import app
from ltx_nb.tools.options import parse_given

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
from coming_from import rows

GUIDES = ROOT / "docs" / "guides"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(GUIDES.glob("*.md"))}
GUIDE, TROUBLE = PAGES["train_a_lora"], PAGES["troubleshooting"]
IN_ORDER = ("quick_start", "dataset_preparation", "training_modes", "utility_scripts")  # each uses what the former made
SKILL = (ROOT / ".claude" / "skills" / "train-model" / "SKILL.md").read_text(encoding="utf-8")
SERVER = "http://127.0.0.1:8001/v1"


def commands(text: str) -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines() if line]


def known_commands(inside: bool = True) -> set[str]:
    "The names of all commands; with those inside of a group such as lora, or without."
    names = lambda typer: {c.name or c.callback.__name__.replace("_", "-") for c in typer.registered_commands}
    groups = [group for group in app.registered_groups if inside or not group.name]
    found = names(app) | {group.name for group in app.registered_groups if group.name}
    return found.union(*(names(group.typer_instance) for group in groups))


def on_a_small_screen(capsys, line: str) -> str:
    "Run a line of a page; what it says."
    words = shlex.split(line)
    assert words[0] == "ltx-nb"
    if words[1] == "download":  # 70 GB: only that it is understood
        words.append("--help")
    code, out, err = call(capsys, *words[1:])
    assert code == 0 and "Traceback" not in err, f"{line}\n{out}\n{err}"
    return out


def test_every_command_of_the_guide_runs_and_answers_as_it_says(capsys, tmp_path, monkeypatch, hub):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("COLUMNS", "160")
    shots = [read_video(path, size=(96, 64)) for path in sorted(example_clips().glob("*.mp4"))]
    Path("footage").mkdir()
    frames, sound = torch.cat([shot.frames for shot in shots]), torch.cat([shot.sound for shot in shots], 1)
    write_video("footage/a film.mp4", frames, 24, sound, 44100)
    told = {}
    things = iter("dog boat tree horse lamp river stone cloud wheel door fish bell hat moon drum leaf".split())

    def answers(self, body):
        thing = next(things)
        self.say(f"The {thing} moves slowly across the frame while {thing}-like noise number {ord(thing[0])} is heard.")

    with serving(answers) as (url, _):
        for line in commands(GUIDE):
            told[line] = on_a_small_screen(capsys, line.replace(SERVER, url))
    find = lambda *words: next(out for line, out in told.items() if all(word in line for word in words))
    assert "t2v_lora" in find("config list") and "samples" in find("prepare")
    assert "6 steps done" in find("train", "--resume") and "finished" in find("runs")
    assert "rank" in find("lora info") and "nothing was sent" in find("push", "--dry-run")
    assert hub.files["me/my-lora"]["README.md"].decode().count("zvx") >= 2 and hub.private["me/my-lora"]
    before, after = probe("before.mp4"), probe("after.mp4")
    assert (before.width, before.frames) == (after.width, after.frames) == (64, 17)
    assert Path("before.mp4").read_bytes() != Path("after.mp4").read_bytes()


def test_every_command_of_the_other_guides_runs_one_page_after_the_other(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_clips").mkdir()
    for name in ("acorn_hits_bird", "bird_sings"):
        clip = read_video(example_clips() / f"{name}.mp4", size=(96, 64))
        write_video(f"my_clips/{name}.mp4", clip.frames[:17], 24, clip.sound[:, : 44100 * 17 // 24], 44100)
        shutil.copy(example_clips() / f"{name}.txt", "my_clips")
    told = {line: on_a_small_screen(capsys, line) for page in IN_ORDER for line in commands(PAGES[page])}
    find = lambda *words: next(out for line, out in told.items() if all(word in line for word in words))
    assert "2 of 2 samples can be used" in find("check") and "2 of 2 samples" in find("prepare my_clips -o my_data")
    assert "10 steps done" in find("train") and "finished" in find("runs .") and "a device" in find("plan", "l4")
    assert Path("before.mp4").read_bytes() != Path("after.mp4").read_bytes()
    assert Path("my_clips.references.png").is_file() and Path("looked_at/index.html").is_file()
    assert "given" in find("config check i2v_lora") and "reference" in find("config check v2v_ic_lora")
    assert load_lora_file("smaller.safetensors") < load_lora_file("both.safetensors")
    assert Path("published/README.md").is_file() and Path("curves.png").is_file()


def load_lora_file(path: str) -> int:
    "How many numbers a file holds."
    return sum(tensor.numel() for tensor in load_file(path).values())


def test_every_command_of_ours_is_on_the_page_of_commands():
    names = known_commands(inside=False)
    listed = PAGES["utility_scripts"].partition("|---|---|---|")[2].partition("\n\n")[0]
    assert names <= set(re.findall(r"`([a-z-]+)`", listed)), names
    theirs = {
        row["theirs"].split()[0].removeprefix("scripts/") for row in rows() if row["theirs"].startswith("scripts/")
    }
    assert theirs == set(re.findall(r"`(\w+\.py)`", listed))


def test_every_example_is_on_the_page_of_modes():
    named = set(re.findall(r"`(\w+_lora)`", PAGES["training_modes"]))
    assert {name for name in example_configs() if name.endswith("_lora") and "tiny" not in name} <= named


@pytest.mark.parametrize("given", re.findall(r'--given "([^"]+)"', PAGES["training_modes"]))
def test_what_is_given_is_understood(given):
    assert ValidationSample(prompt="a dog", conditions=[parse_given(given)]).conditions[0].type == given.split()[0]


def test_the_pictures_of_the_guides_are_those_of_the_chapters():
    chapter = json.loads((ROOT / "nbs" / "3_flow" / "01_conditions.ipynb").read_text(encoding="utf-8"))
    outputs = [output.get("data", {}) for cell in chapter["cells"] for output in cell.get("outputs", [])]
    drawn = [base64.b64decode(data["image/png"]) for data in outputs if "image/png" in data]
    assert (GUIDES / "pictures" / "modes.png").read_bytes() in drawn


def test_the_guide_stops_where_it_costs_something_or_leaves_the_machine():
    steps = dict(re.findall(r"## (\d+)\. .*?\n(.*?)(?=\n## |\Z)", GUIDE, re.S))
    assert [number for number, text in steps.items() if "**Stop" in text] == ["3", "6", "10"]
    assert all("```sh" in text for text in steps.values())


@pytest.mark.parametrize("text", [*PAGES.values(), SKILL], ids=[*PAGES, "skill"])
def test_what_a_guide_names_is_there(text):
    known = known_commands()
    asked = {name for name in re.findall(r"ltx-nb ([a-z][a-z-]+)", text)}
    assert asked <= known, asked - known
    for example in re.findall(r"`(\w+_lora(?:_low_vram)?)`", text):
        assert example in example_configs(), example
    sections = "model|lora|optimization|validation|checkpoints|acceleration|data|wandb|tracking|hub"
    for field in set(re.findall(rf"(?<![\w/.])((?:{sections})\.[a-z_]+)", text)):
        if not field.endswith((".mp4", ".safetensors", ".jsonl")):
            assert explain(field), field
    for path in re.findall(r"\]\(((?!https?:)[^)#]+)", text):
        assert (GUIDES / path).is_file(), path


def test_twenty_complaints_have_a_remedy():
    rows = [
        line for line in TROUBLE.splitlines() if line.startswith("| ") and not line.startswith(("| symptom", "|---"))
    ]
    assert len(rows) >= 20 and all(len(row.split(" | ")) == 3 for row in rows)


def test_the_skill_leads_to_the_guide():
    head = SKILL.split("---")[1]
    assert "name: train-model" in head and "description:" in head
    for path in re.findall(r"`(docs/guides/\w+\.md)`", SKILL):
        assert (ROOT / path).is_file()
