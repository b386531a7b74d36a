"References of sound: beside the clips or in a column, prepared, and trained on by the example for them."

import json
import shutil

import pytest
import torch
from test_cli import call

from ltx_nb.data.clips import example_clips, read_dataset
from ltx_nb.data.media import probe, read_sound, read_video, write_sound, write_video
from ltx_nb.data.sound_references import make_sound_references, named_sounds

RATE = 44100
SECONDS = torch.arange(RATE * 17 // 24) / RATE
CHORD = torch.stack([torch.sin(2 * torch.pi * 440 * SECONDS), torch.sin(2 * torch.pi * 6000 * SECONDS)]) * 0.4


@pytest.fixture
def clips(tmp_path):
    for name in ("bird_sings", "bow_snaps"):
        clip = read_video(example_clips() / f"{name}.mp4", size=(64, 64))
        write_video(tmp_path / "clips" / f"{name}.mp4", clip.frames[:17], 24, CHORD, RATE)
        shutil.copy(example_clips() / f"{name}.txt", tmp_path / "clips")
    return tmp_path / "clips"


@pytest.mark.parametrize("name", named_sounds)
def test_every_filter_gives_a_sound_as_long_as_the_clips(clips, name):
    report = make_sound_references(clips, name, sheet=False)
    assert report.exit_code == 0 and report.count("made") == 2
    for sample in read_dataset(clips):
        own, rate = read_sound(sample.media["video"])
        made, same = read_sound(sample.media["reference_audio"])
        assert made.shape == own.shape and rate == same and made.abs().max() > 0.01
        assert (made - own).square().mean() > 1e-3
    before = {path: path.read_bytes() for path in clips.glob("*.reference.wav")}
    assert make_sound_references(clips, name, sheet=False).count("reused") == 2
    make_sound_references(clips, name, overwrite=True, sheet=False)  # random numbers of their own names: the same again
    assert before == {path: path.read_bytes() for path in before}


def test_a_list_gets_the_column_and_sounds_alone_have_references_too(clips):
    write_sound(clips / "alone.wav", torch.sin(torch.arange(RATE) / 20).expand(2, -1) / 2, RATE)
    rows = [{"video": "bird_sings.mp4", "caption": "a bird"}, {"audio": "alone.wav", "caption": "a hum"}]
    (clips / "list.json").write_text(json.dumps(rows))
    report = make_sound_references(clips / "list.json", ["mono", "noise snr=20"])
    assert report.count("made") == 2
    assert [row["reference_audio"] for row in json.loads((clips / "list.json").read_text())] == [
        "references/bird_sings.mp4.wav", "references/alone.wav.wav",
    ]  # fmt: skip


def test_from_a_command_to_a_dataset_that_the_example_trains_on(clips, tmp_path, capsys):
    code, out, _ = call(capsys, "reference", clips, "band low=200", "--sound", "--progress", "none")
    assert code == 0 and "2 of 2 samples have a reference" in out
    asked = ["--model", "tiny", "--resolution-buckets", "64x64x17", "--progress", "none"]
    code, out, _ = call(capsys, "prepare", clips, "-o", tmp_path / "data", *asked)
    assert code == 0 and "reference_audio_latents: 2 made" in out
    asked = ["--model", "tiny", "--data", tmp_path / "data", "-o", tmp_path / "run", "--set", "validation.samples=[]"]
    code, out, err = call(capsys, "config", "check", "a2a_ic_lora", *asked)
    assert code == 0 and "reference" in out, err


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("telephone", "There is no 'telephone'; there are band, noise"),
        ("band width=3", "band has no setting width; it has low, high"),
        ("band low=", "low"),
    ],
)
def test_a_wrong_filter_is_a_sentence(clips, how, said, capsys):
    code, _, err = call(capsys, "reference", clips, how, "--sound", "--progress", "none")
    assert code == 1 and said in err and "Traceback" not in err and not list(clips.glob("*.wav"))


@pytest.mark.parametrize(
    "made", [lambda s: s[:, :5], lambda s: s * 99, lambda s: "no", lambda s: s * float("nan"), lambda s: 1 / 0]
)
def test_a_function_that_gives_something_else_fails_clip_by_clip(clips, made):
    report = make_sound_references(clips, made)
    assert report.exit_code == 3 and report.count("failed") == 2 and not list(clips.glob("*.wav"))


def test_another_filter_makes_ours_anew_and_leaves_those_of_others(clips):
    make_sound_references(clips, "band", sheet=False)
    write_sound(clips / "bow_snaps.reference.wav", CHORD / 2, RATE)  # somebody's own in its place
    report = make_sound_references(clips, "mono", sheet=False)
    assert [item.state for item in report.items] == ["redone", "kept"] and "they are not ours" in str(report)
    assert make_sound_references(clips, "mono", overwrite=True, sheet=False).count("redone") == 2


def test_a_new_list_gets_the_column_and_the_sheet_shows_both_sounds(clips, tmp_path, capsys):
    rows = [{"media": f"{name}.mp4", "caption": name} for name in ("bird_sings", "bow_snaps")]
    (clips / "list.json").write_text(json.dumps(rows))
    new = tmp_path / "new" / "pairs.json"
    asked = ["--sound", "-o", new, "--media-column", "media", "--progress", "none"]
    code, out, _ = call(capsys, "reference", clips / "list.json", "rhythm", *asked)
    assert code == 0 and "2 of 2 samples have a reference" in out and "pairs.sound_references.png" in out
    assert json.loads((clips / "list.json").read_text()) == rows
    for row, old in zip(json.loads(new.read_text()), rows):
        assert (new.parent / row["media"]).resolve() == (clips / old["media"]).resolve()
        assert (new.parent / row["reference_audio"]).is_file()
    page = new.with_name("pairs.sound_references.png")
    height = probe(page).height
    code, out, _ = call(capsys, "reference", clips, "rhythm", "--sound", "--no-sheet", "--progress", "none")
    assert code == 0 and "Look at" not in out and not list(tmp_path.glob("*.png"))
    code, out, err = call(
        capsys, "reference", clips, "rhythm", "--sound", "-o", tmp_path / "x.json", "--progress", "none"
    )
    assert code == 1 and "has no dataset file" in err and height > 2 * 3 * 48
