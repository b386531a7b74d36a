"What a clip says of itself, in every kind of file; other programs read the file as before, and the words too."

import struct
import wave

import pytest
import torch
from PIL import Image

from ltx_nb.data.containers import MediaError
from ltx_nb.data.endings import ENDINGS, read_about, write_clip

ABOUT = {"prompt": 'ein Zug fährt ab, 列車, "hiss"\n' + "steam " * 100, "seed": 0, "step": 500}
RATE = 48000
SOUND = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(RATE // 4) / RATE).expand(2, -1)
PICTURES = (torch.arange(6)[:, None, None, None] * 40 + torch.zeros(6, 3, 32, 48)).to(torch.uint8)


def written(folder, ending, about=ABOUT):
    pictures = {"film": PICTURES, "picture": PICTURES[:1], "sound": None}[ENDINGS[ending]]
    return write_clip(folder / f"clip{ending}", pictures, 24, SOUND, RATE, about)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_says_what_it_is(tmp_path, ending):
    assert read_about(written(tmp_path, ending)) == ABOUT
    assert read_about(written(tmp_path, ending, {})) == {}
    assert [path.name for path in tmp_path.iterdir()] == [f"clip{ending}"]


def test_other_programs_read_the_file_and_the_words(tmp_path):
    with Image.open(written(tmp_path, ".png")) as png:
        assert ABOUT["seed"] == 0 and "fährt" in png.text["Comment"] and png.getpixel((0, 0)) == (0, 0, 0)
    with Image.open(written(tmp_path, ".gif")) as gif:
        assert gif.n_frames == 6 and "fährt" in gif.info["comment"].decode() and gif.info["loop"] == 0
    for about in ({"seed": 1}, {"seed": 12}):  # of an even and of an odd length
        sound = written(tmp_path, ".wav", about)
        with wave.open(str(sound)) as file:
            assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (RATE // 4, RATE, 2)
        assert (
            struct.unpack("<I", sound.read_bytes()[4:8])[0] == sound.stat().st_size - 8 and read_about(sound) == about
        )


@pytest.mark.parametrize("comment", ["shot on a phone", "[1, 2]", "7", "{broken", "[" * 5000])
def test_a_comment_of_somebody_else_is_nothing(tmp_path, comment):
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_itxt("Comment", comment)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=said)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif", comment=comment.encode())
    assert read_about(tmp_path / "a.png") == read_about(tmp_path / "a.gif") == {}


@pytest.mark.parametrize("name", ["missing.png", "folder", "text.mp4"])
def test_what_is_no_film_is_a_sentence(tmp_path, name):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MediaError, match=name):
        read_about(tmp_path / name)


@pytest.mark.parametrize("kept", [8, 20, 40, 60, 500])
def test_a_png_that_was_cut_off_says_what_is_left(tmp_path, kept):
    data = written(tmp_path, ".png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:kept])
    assert read_about(tmp_path / "cut.png") in ({}, ABOUT)
