"A set of captions: what only all of them together show, and the page on which they are corrected."

import json
import shutil

import pytest
import torch
from test_cli import call

from ltx_nb.data.caption_doctor import (
    CaptionPage,
    check_trigger,
    examine_captions,
    loudest,
    near_duplicates,
    sound_mismatch,
)
from ltx_nb.data.captions import Clip, caption_clips
from ltx_nb.data.captioners import Told
from ltx_nb.data.clips import example_clips, read_dataset
from ltx_nb.data.media import read_video, write_video
from ltx_nb.tiny.checkpoint import tiny_checkpoint

FINE = {
    "bird_sings": "A purple bird on a branch sings two clear notes over quiet music.",
    "bow_snaps": "A grey rabbit draws a bow; the string snaps and rings out.",
    "bunny_smiles": "A white rabbit turns its head and smiles to low orchestral music.",
}


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, text in FINE.items():
        shutil.copy(example_clips() / f"{name}.mp4", folder)
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def write(folder, name, text):
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def kinds(checkup, name):
    return [remark.kind for remark in checkup.of(f"{name}.mp4")]


def test_good_captions_get_no_remark(clips):
    checkup = examine_captions(clips)
    assert not checkup.remarks and checkup.exit_code == 0 and "3 of 3 clips have a caption" in checkup.summary()[0]
    assert examine_captions(example_clips()).exit_code == 0


@pytest.mark.parametrize(
    ("text", "kind", "grave"),
    [
        ("", "empty", True),
        ("I'm sorry, I can't describe this video. There is music.", "refused", True),
        ("A bird sings and then " * 30, "runs in circles", True),
        (" ".join(f"Bird {n} sings note {n * 3}." for n in range(500)), "too long", True),
        ("The video shows a bird that sings two notes.", "unclean", False),
        ("**A bird** sings two notes on a branch.", "unclean", False),
        ("It sings.", "short", False),
        ("A purple bird sits on a branch. It sings two", "cut off", False),
    ],
)
def test_what_a_caption_can_have(clips, text, kind, grave):
    write(clips, "bird_sings", text)
    checkup = examine_captions(clips)
    assert kind in kinds(checkup, "bird_sings") and checkup.exit_code == (3 if grave else 0)
    assert not kinds(checkup, "bow_snaps") and "bird_sings.mp4" in str(checkup)


def test_tokens_are_counted_by_the_text_encoder_where_it_is_given(clips):
    text = " ".join(f"Bird {n} sings note {n * 3}." for n in range(150))
    write(clips, "bird_sings", text)
    assert "too long" not in kinds(examine_captions(clips, listen=False), "bird_sings")
    exact = examine_captions(clips, text_encoder=tiny_checkpoint().text_encoder, listen=False)
    assert "too long" in kinds(exact, "bird_sings") and exact.tokens[0] > 1024


def test_near_duplicates_are_grouped_however_many_there_are():
    many = [f"A bird number {n} with feather {n * 7} sits on branch {n * 11} and sings." for n in range(600)]
    many[400] = many[20].replace("sings.", "sings!")
    many[500] = many[20].upper()
    assert near_duplicates(many) == [[20, 400, 500]]
    assert near_duplicates(["", "", "  "]) == []


@pytest.mark.parametrize("trigger", ["zvx", "ZVX", "zvx style"])
def test_a_trigger_in_some_captions_only(trigger):
    texts = ["zvx style, a red fox runs.", "A red fox, ZVX style, sleeps.", "zvx style fox, red.", "A dog."]
    clips = [Clip(f"{n}", None, text) for n, text in enumerate(texts)]
    report = check_trigger(clips, trigger)
    assert report.having == ("0", "1", "2") and report.lacking == ("3",)
    assert {"fox", "red"} <= set(report.beside) and "a" not in report.beside and "zvx" not in report.beside
    assert "write it into all, or into none" in report.lines()[0]


def test_a_trigger_is_a_word_and_not_a_part_of_one():
    report = check_trigger([Clip("0", None, "A cat and a caterpillar."), Clip("1", None, "A caterpillar.")], "cat")
    assert report.having == ("0",) and report.lacking == ("1",) and report.twice == ()
    assert check_trigger([Clip("0", None, "A cat, a cat.")], "cat").twice == ("0",)


def test_words_of_sound_and_the_sound_of_clips(clips):
    silent = read_video(clips / "bow_snaps.mp4", sound=False)
    write_video(clips / "bow_snaps.mp4", silent.frames, silent.fps)
    write_video(clips / "bunny_smiles.mp4", silent.frames, silent.fps, 3e-4 * torch.randn(2, 44100), 44100)
    write(clips, "bird_sings", "A purple bird sits on a branch in front of the sky.")
    checkup = examine_captions(clips)
    text = {remark.id: remark.text for remark in checkup.remarks if remark.kind == "sound"}
    assert "has no sound" in text["bow_snaps.mp4"] and "snaps" in text["bow_snaps.mp4"]
    assert "is silent" in text["bunny_smiles.mp4"] and "says nothing of it" in text["bird_sings.mp4"]
    assert not examine_captions(clips, listen=False).remarks


@pytest.mark.parametrize(
    ("caption", "level", "wrong"),
    [
        ("A fox runs.", None, False),
        ("A fox runs. Silent.", None, False),
        ("No speech and no music, no sound.", None, False),
        ("A fox barks.", None, True),
        ("A fox runs.", -10.0, True),
        ("A fox runs. There is no sound.", -10.0, True),
        ("No music; the fox barks.", -10.0, False),
        ("A fox runs.", -50.0, False),
        ("A ringed planet, a singular stone.", None, False),
        ("A purple ring in muted, warm tones on the bark of a cracked tree.", None, False),
        ("A purple ring in muted, warm tones.", -10.0, True),
        ("A man plays a guitar in the rain.", None, False),
        ("A man plays a guitar in the rain.", -10.0, False),
        ("A dog barks at the bark of a tree.", None, True),
    ],
)
def test_what_counts_as_a_word_of_sound(caption, level, wrong):
    assert bool(sound_mismatch(caption, level)) == wrong


def test_a_clip_that_cannot_be_read_is_named_and_the_rest_examined(clips):
    (clips / "torn.mp4").write_bytes(b"no film")
    write(clips, "torn", "A torn film with a little noise.")
    checkup = examine_captions(clips)
    assert kinds(checkup, "torn") == ["unreadable"] and len(checkup.clips) == 4
    assert loudest(clips / "bird_sings.mp4") > -40


# the page


def test_the_page_edits_saves_and_goes_on(clips):
    write(clips, "bow_snaps", "The video shows a rabbit whose bow snaps.")
    page = CaptionPage(clips)
    show = page.widgets
    assert page.clip.id == "bird_sings.mp4" and show["text"].value == FINE["bird_sings"] and show["remarks"].value == ""
    show["next"].click()
    assert page.clip.id == "bow_snaps.mp4" and "unclean" in show["remarks"].value
    show["text"].value = FINE["bow_snaps"]
    assert "tokens" in show["count"].value
    show["save"].click()
    assert (clips / "bow_snaps.txt").read_text("utf-8").strip() == FINE[
        "bow_snaps"
    ] and page.clip.id == "bunny_smiles.mp4"
    show["back"].click()
    assert page.clip.id == "bow_snaps.mp4" and show["remarks"].value == ""
    show["next"].click()
    show["next"].click()
    assert page.clip.id == "bird_sings.mp4"  # round


def test_only_clips_with_remarks(clips):
    write(clips, "bunny_smiles", "")
    page = CaptionPage(clips, listen=False)
    page.widgets["only"].value = True
    assert page.clip.id == "bunny_smiles.mp4"
    page.widgets["next"].click()
    assert page.clip.id == "bunny_smiles.mp4"
    page.widgets["text"].value = FINE["bunny_smiles"]
    page.widgets["save"].click()  # none is left: it stays where it is
    assert page.clip.id == "bunny_smiles.mp4" and page.widgets["remarks"].value == ""


def test_the_page_saves_into_a_table_and_no_captioner_replaces_that(clips):
    table = clips / "all.json"
    caption_clips(clips, Told(lambda path: f"A clip that is called {path.stem}."), output=table)
    page = CaptionPage(table, listen=False)
    page.widgets["text"].value = "Mine, <b>by hand</b>."
    page.widgets["save"].click()
    rows = json.loads(table.read_text("utf-8"))
    assert rows[0]["caption"] == "Mine, <b>by hand</b>." and len(read_dataset(table)) == 3
    report = caption_clips(clips, Told(lambda path: "Another caption of a machine."), output=table, override=True)
    assert report.named("kept") == ("bird_sings.mp4",)


def test_the_page_plays_what_a_browser_cannot_and_says_what_nobody_can(clips):
    clip = read_video(clips / "bird_sings.mp4")
    path = write_video(clips / "old.mp4", clip.frames, clip.fps, clip.sound, clip.sample_rate)
    path.rename(clips / "old.mkv")
    (clips / "torn.avi").write_bytes(b"no film")
    page = CaptionPage(clips, listen=False)
    views = {}
    for _ in page.clips:
        views[page.clip.id] = page.widgets["view"].children[0]
        page.go(1)
    assert views["old.mkv"].format == "mp4" and views["old.mkv"].value[4:8] == b"ftyp"
    assert "cannot be decoded" in views["torn.avi"].value


# the command


def test_the_command(capsys, clips):
    code, out, err = call(capsys, "caption-doctor", clips, "--trigger", "zvx", "--progress", "none")
    assert code == 0 and "'zvx' stands in no caption" in out, err
    write(clips, "bird_sings", "I'm sorry, I cannot describe this. Music.")
    code, out, err = call(capsys, "caption-doctor", clips, "--no-listen", "--progress", "none")
    assert code == 3 and "refused" in out
    code, out, err = call(capsys, "caption-doctor", clips / "nothing", "--progress", "none")
    assert code == 1 and "does not exist" in err and "Traceback" not in err


def test_without_ipywidgets_the_page_says_what_to_install(clips, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"ltx_nb\[notebook\]"):
        CaptionPage(clips)
