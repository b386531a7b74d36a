"Media in and out: odd files, exact rates, picture and sound in step."

import random
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from ltx_nb.data import media
from ltx_nb.data.media import (
    MediaError,
    probe,
    read_sound,
    read_video,
    to_frames,
    write_image,
    write_sound,
    write_video,
)

SAMPLE_RATE = 48000
NTSC = Fraction(30000, 1001)
AAC_BLOCK = 1024
BT709 = 1
MATRICES = {BT709: "ITU709", 6: "ITU601"}  # FFmpeg's numbers, and PyAV's words for the same
RANGES = {1: "MPEG", 2: "JPEG"}


def grey(count, size=(64, 48)):
    "Frames whose grey level is 5 * index."
    levels = (5 * torch.arange(count)).to(torch.uint8).reshape(-1, 1, 1, 1)
    return levels.expand(count, 3, size[1], size[0])


def order(clip):
    "Which of `grey` came back."
    return (clip.frames.float().mean((1, 2, 3)) / 5).round().int().tolist()


def tone(seconds, rate=SAMPLE_RATE, hertz=440.0):
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * rate)) / rate).expand(2, -1)


def pitch(sound, rate):
    spectrum = torch.fft.rfft(sound.mean(0) * torch.hann_window(sound.shape[1])).abs()
    return float(spectrum.argmax()) * rate / sound.shape[1]


def encode(
    path, pictures, times=None, clock=Fraction(1, 25), *, codec="libx264", pixels="yuv420p", aspect=None, colours=None
):
    "A film written packet by packet, for what `write_video` would never write."
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pixels
        stream.codec_context.time_base = clock
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if colours:
            stream.codec_context.colorspace, stream.codec_context.color_range = colours
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            if colours:
                how = dict(dst_colorspace=MATRICES[colours[0]], dst_color_range=RANGES[colours[1]])
                frame = frame.reformat(format=pixels, **how)
            frame.pts, frame.time_base = (times[i] if times else i), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turned(path, degrees):
    "The matrix that phones write into the header of an mp4: turn the picture counter-clockwise."
    cos, sin = {0: (1, 0), 90: (0, -1), 180: (-1, 0), -90: (0, 1)}[degrees]
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    numbers = cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30
    data[place : place + 36] = struct.pack(">9i", *numbers)
    path.write_bytes(data)
    return path


def flat(count, size=(64, 48)):
    return [picture.movedim(0, -1).numpy() for picture in grey(count, size)]


def quadrants(height=48, width=64):
    "Upper left red, upper right green, lower left blue, lower right white."
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[: height // 2, : width // 2] = 255, 0, 0
    picture[: height // 2, width // 2 :] = 0, 255, 0
    picture[height // 2 :, : width // 2] = 0, 0, 255
    return picture


def corner_names(frame):
    "The colours of a [3, H, W] picture, clockwise from the upper left."
    corners = [frame[:, 4, 4], frame[:, 4, -4], frame[:, -4, -4], frame[:, -4, 4]]
    return "".join("w" if c.min() > 150 else "rgb"[int(c.argmax())] for c in corners)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    "49 numbered frames at 24 fps with a tone; tests only read it."
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", grey(49), 24, tone(49 / 24), SAMPLE_RATE)


# what is in a file


@pytest.mark.parametrize("fps", [24, 25, Fraction(24000, 1001), NTSC, Fraction(60000, 1001), Fraction(25, 2)])
@pytest.mark.parametrize("frames", [2, 33])
def test_a_written_rate_comes_back_as_the_same_fraction(tmp_path, fps, frames):
    info = probe(write_video(tmp_path / "film.mp4", grey(frames), fps))
    assert (info.fps, info.frames, info.variable, info.has_sound) == (fps, frames, False, False)
    assert info.duration == pytest.approx(frames / fps)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
def test_frames_are_counted_in_every_container(tmp_path, suffix):
    codec = "mpeg4" if suffix == "avi" else "libx264"
    info = probe(encode(tmp_path / f"film.{suffix}", flat(25), codec=codec))
    assert (info.frames, info.fps, info.variable) == (25, 25, False)


def test_a_clock_of_milliseconds_still_gives_the_film_rate(tmp_path):
    times = [round(i * 1001 / 24) for i in range(40)]
    info = probe(encode(tmp_path / "film.mkv", flat(40), times, Fraction(1, 1000)))
    assert not info.variable and float(info.fps) == pytest.approx(23.976, abs=0.03)


def test_variable_rate_is_noticed_and_resampled_by_the_clock(tmp_path):
    times = [33 * i for i in range(20)] + [660 + 100 * i for i in range(10)]
    path = encode(tmp_path / "screen.mp4", flat(30), times, Fraction(1, 1000))
    info = probe(path)
    assert info.variable and info.frames == 30
    clip = read_video(path, fps=10)
    assert clip.fps == 10 and order(clip)[:6] == [0, 3, 6, 9, 12, 15] and order(clip)[7:12] == [20, 21, 22, 23, 24]
    assert any("variable" in note for note in clip.notes)


def test_one_dropped_frame_makes_a_rate_variable(tmp_path):
    times = [i for i in range(30) if i != 12]
    assert probe(encode(tmp_path / "gap.mp4", flat(29), times)).variable


@pytest.mark.parametrize("rotation, expected", [(0, "rgwb"), (-90, "brgw"), (90, "gwbr"), (180, "wbrg")])
def test_rotated_films_are_read_upright(tmp_path, rotation, expected):
    path = turned(encode(tmp_path / "phone.mp4", [quadrants()] * 3), rotation)
    info, clip = probe(path), read_video(path)
    assert (info.width, info.height) == ((48, 64) if rotation % 180 else (64, 48))
    assert clip.frames.shape[2:] == (info.height, info.width) and corner_names(clip.frames[0]) == expected


def test_wide_pixels_are_made_square(tmp_path):
    path = encode(tmp_path / "dv.mp4", [quadrants()] * 2, aspect=Fraction(3, 2))
    assert (probe(path).width, probe(path).height) == (96, 48)
    assert read_video(path).frames.shape == (2, 3, 48, 96)


@pytest.mark.parametrize("pixels", ["yuv444p", "yuv422p", "yuv420p10le", "yuvj420p"])
def test_any_pixel_format_is_read(tmp_path, pixels):
    clip = read_video(encode(tmp_path / "film.mp4", flat(9), pixels=pixels))
    assert clip.frames.dtype == torch.uint8 and order(clip) == list(range(9))


def test_odd_sizes_are_read_as_they_are_and_written_one_larger(tmp_path):
    path = encode(tmp_path / "odd.mp4", [quadrants(47, 65)] * 2, pixels="yuv444p")
    clip = read_video(path)
    assert clip.frames.shape == (2, 3, 47, 65) and corner_names(clip.frames[0]) == "rgwb"
    again = read_video(write_video(tmp_path / "even.mp4", clip.frames, 25))
    assert again.frames.shape == (2, 3, 48, 66) and corner_names(again.frames[0]) == "rgwb"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_pictures_are_stills_without_a_rate(tmp_path, suffix):
    from PIL import Image

    path = tmp_path / f"still.{suffix}"
    Image.fromarray(quadrants()).save(path)
    info, clip = probe(path), read_video(path)
    assert info.still and info.fps is None and clip.fps is None and clip.duration == 0
    assert clip.frames.shape == (1, 3, 48, 64) and corner_names(clip.frames[0]) == "rgwb"


def test_transparent_pictures_stand_on_black(tmp_path):
    from PIL import Image

    Image.new("RGBA", (8, 8), (200, 100, 50, 128)).save(tmp_path / "glass.png")
    assert read_video(tmp_path / "glass.png").frames[0, :, 0, 0].tolist() == [100, 50, 25]


def test_a_still_cannot_fill_a_clip(tmp_path):
    with pytest.raises(MediaError, match="still image; 9 frames") as caught:
        read_video(write_image(tmp_path / "a.png", grey(1)[0]), frames=9)
    assert caught.value.reason == "still"


def test_the_cover_picture_of_a_song_is_no_film(tmp_path):
    with av.open(str(tmp_path / "song.mp3"), "w") as container:
        audio, cover = container.add_stream("mp3", rate=44100), container.add_stream("png", rate=25)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic.value
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
        picture.pts = 0
        container.mux(cover.encode(picture))
        container.mux(cover.encode(None))
        block = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), "fltp", "stereo")
        block.sample_rate = 44100
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    info = probe(tmp_path / "song.mp3")
    assert not info.has_video and info.sample_rate == 44100 and info.duration == pytest.approx(1, abs=0.1)
    with pytest.raises(MediaError, match="sound only"):
        read_video(tmp_path / "song.mp3")


# what cannot be used


def test_bad_files_say_what_is_wrong(tmp_path, film):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a film\n" * 99, "utf-8")
    (tmp_path / "headless.mp4").write_bytes(film.read_bytes()[-5000:])
    cases = {
        tmp_path / "gone.mp4": ("missing", "does not exist"),
        tmp_path: ("missing", "is a folder"),
        "https://example.org/a.mp4": ("missing", "is an address"),
        tmp_path / "empty.mp4": ("corrupt", "0 bytes"),
        tmp_path / "text.mp4": ("corrupt", "cannot be decoded"),
        tmp_path / "headless.mp4": ("corrupt", "cannot be decoded"),
    }
    for path, (reason, words) in cases.items():
        with pytest.raises(MediaError, match=words) as caught:
            probe(path)
        assert caught.value.reason == reason and str(path) in str(caught.value)


def test_a_film_without_frames(tmp_path):
    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(MediaError) as caught:
        read_video(tmp_path / "none.mp4")
    assert caught.value.reason == "corrupt"


def test_a_truncated_film_says_how_much_is_left(tmp_path):
    noise = torch.randint(0, 256, (48, 3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = write_video(tmp_path / "whole.mp4", noise, 24).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the index is in front, so it still opens
    info = probe(tmp_path / "cut.mp4")
    assert info.declared_frames == 48 and info.frames < 40
    with pytest.raises(MediaError) as caught:
        read_video(tmp_path / "cut.mp4", frames=48)
    assert caught.value.reason in ("too short", "corrupt")


def test_damage_inside_the_window_stops_the_read_and_damage_behind_it_does_not(tmp_path):
    noise = torch.randint(0, 256, (48, 3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = bytearray(write_video(tmp_path / "film.mp4", noise, 24).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20000] = random.Random(0).randbytes(20000)
    (tmp_path / "hurt.mp4").write_bytes(data)
    with pytest.raises(MediaError) as caught:
        read_video(tmp_path / "hurt.mp4")
    assert caught.value.reason == "corrupt"
    assert len(read_video(tmp_path / "hurt.mp4", frames=9).frames) == 9


@pytest.mark.parametrize("frames, start", [(50, 0), (49, 0.1), (9, 2.0), (1, 5.0)])
def test_a_window_beyond_the_end_is_refused(film, frames, start):
    with pytest.raises(MediaError, match="frames at 24 fps") as caught:
        read_video(film, start=start, frames=frames)
    assert caught.value.reason == "too short"


@pytest.mark.parametrize("frames, start", [(0, 0), (-1, 0), (1, -0.5)])
def test_a_window_that_is_none_is_refused(film, frames, start):
    with pytest.raises(ValueError, match="at least 1 frame"):
        read_video(film, start=start, frames=frames)


def test_a_silent_film_has_no_sound_and_says_so_when_asked(tmp_path):
    path = write_video(tmp_path / "mute.mp4", grey(9), 24)
    assert read_video(path).sound is None
    with pytest.raises(MediaError) as caught:
        read_sound(path)
    assert caught.value.reason == "no sound"


# every PyAV that pyproject.toml allows


class LaterRational:
    "What PyAV gives for a rate from 19 on: no `Fraction`, and nothing that prints like one."

    def __init__(self, rate):
        self.numerator, self.denominator = rate.numerator, rate.denominator

    def __bool__(self):
        return bool(self.numerator)


class LaterStream:
    "A stream whose rates are such numbers; where there is none, 0/1 instead of None."

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        value = getattr(self.stream, name)
        return LaterRational(value or Fraction(0)) if name in ("average_rate", "guessed_rate") else value


@pytest.mark.parametrize("version", ["before 19", "from 19 on"])
def test_films_are_opened_by_each_kind_of_pyav(film, monkeypatch, version):
    "`av.open` lost the word `metadata_errors`, and without it PyAV before 19 refuses titles that are not UTF-8."
    real, asked = av.open, []

    def before(file, mode="r", *, container_options=None, metadata_errors="strict"):
        asked.append(metadata_errors)
        return real(file, mode)

    def later(file, mode="r", *, container_options=None):
        return real(file, mode)

    monkeypatch.setattr(media.av, "open", before if version == "before 19" else later)
    info = probe(film)
    assert (info.frames, str(info.fps)) == (49, "24") and asked == ["replace"] * (version == "before 19")
    assert len(read_video(film, frames=9).frames) == 9


def test_rates_are_fractions_whatever_pyav_calls_them(film):
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        stamps = media._scan(container, stream).stamps
        facts = media._timing(stamps, LaterStream(stream))
        unclocked = media._timing([(None, 0)] * 49, LaterStream(stream))
    assert type(facts["fps"]) is type(unclocked["fps"]) is Fraction and str(facts["fps"]) == "24"
    assert facts["origin"] == 0 and unclocked["duration"] == 49 / 24


def test_a_title_that_is_no_utf_8_does_no_harm(tmp_path):
    path = write_sound(tmp_path / "song.wav", tone(0.5), SAMPLE_RATE)
    title = b"INFOINAM" + struct.pack("<I", 4) + "caf\xe9".encode("latin-1")
    data = path.read_bytes() + b"LIST" + struct.pack("<I", len(title)) + title
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    assert probe(path).duration == pytest.approx(0.5) and read_sound(path)[0].shape == (2, SAMPLE_RATE // 2)


# windows


@pytest.mark.parametrize("start, first", [(0, 0), (0.5, 12), (0.51, 12), (1.0, 24), (11 / 24, 11)])
def test_windows_begin_on_the_frame_that_is_on_the_screen(film, start, first):
    clip = read_video(film, start=start, frames=9)
    assert order(clip) == list(range(first, first + 9)) and clip.start == pytest.approx(first / 24)


def test_a_late_window_of_a_long_film_is_found_by_seeking(tmp_path):
    frames = torch.cat([grey(50)] * 6)
    path = write_video(tmp_path / "long.mp4", frames, 25, tone(12), SAMPLE_RATE)
    assert order(read_video(path, start=10.4, frames=9)) == list(range(10, 19))


@pytest.mark.parametrize(
    "fps, expected",
    [
        (12, [0, 2, 4, 6, 8]),
        (24, [0, 1, 2, 3, 4]),
        (30, [0, 0, 1, 2, 3]),
        (48, [0, 0, 1, 1, 2]),
    ],
)
def test_another_rate_picks_frames_by_the_clock(film, fps, expected):
    clip = read_video(film, frames=5, fps=fps)
    assert order(clip) == expected and clip.fps == fps
    assert clip.sound.shape[1] == int(Fraction(5, fps) * SAMPLE_RATE)


def test_a_size_is_covered_and_cropped_in_the_middle(tmp_path):
    pictures = torch.from_numpy(np.stack([quadrants(90, 160)] * 2)).movedim(-1, 1)
    path = write_video(tmp_path / "wide.mp4", pictures, 24)
    clip = read_video(path, size=(32, 64))
    assert clip.frames.shape == (2, 3, 64, 32) and corner_names(clip.frames[0]) == "rgwb"


def test_covering_follows_the_reference_arithmetic():
    how = media.cover(1280, 720, (960, 544))  # wider than the target: as high as it, floor(1280 * 544 / 720) wide
    assert (how.width, how.height, how.left, how.top) == (967, 544, 3, 0)
    how = media.cover(720, 1280, (960, 544))
    assert (how.width, how.height, how.left, how.top) == (960, 1706, 0, 581)
    assert how.lost == pytest.approx(1 - 544 / 1706)


SUM_OF_TAPS = 1e-5  # some 100 products below 1 in float32, in any order: 100 ** 0.5 * 6e-8, and room; a level is 4e-3


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (96, 96)])
def test_bytes_and_floats_are_scaled_alike(size):
    picture = torch.randint(0, 256, (2, 3, 60, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    how = media.cover(80, 60, size)
    exact = media.apply_cover(picture.float() / 255, how)
    assert (media.apply_cover(picture, how).float() / 255 - exact).abs().max() <= 0.5 / 255 + SUM_OF_TAPS


# sound


A_FEW_MILLISECONDS = 0.003  # a codec's blocks smear a click; a frame, which a fault would cost, is 0.042


def test_a_flash_and_a_click_stay_together(tmp_path):
    frames, sound = torch.zeros(72, 3, 48, 64, dtype=torch.uint8), torch.zeros(2, 3 * SAMPLE_RATE)
    frames[60], sound[:, int(2.5 * SAMPLE_RATE) : int(2.5 * SAMPLE_RATE) + 480] = 255, 0.9
    path = write_video(tmp_path / "clap.mp4", frames, 24, sound, SAMPLE_RATE)
    for start in 0.0, 1.3, 2.2:
        clip = read_video(path, start=start)
        flash = int(clip.frames.float().mean((1, 2, 3)).argmax()) / 24
        click = int((clip.sound[0].abs() > 0.3).nonzero()[0]) / SAMPLE_RATE
        assert abs(flash - click) < A_FEW_MILLISECONDS and flash == pytest.approx(2.5 - clip.start)


@pytest.mark.parametrize("offset", [-0.25, 0.25])
def test_sound_that_starts_early_or_late_is_placed_by_its_timestamps(tmp_path, offset):
    "The sound track begins a quarter second before or after the first frame; the click is at 0.5 s of the film."
    path, begin = tmp_path / "late.mkv", max(0.0, -offset)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        audio = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for i in range(25):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = round((begin + i / 25) * 1000), Fraction(1, 1000)
            video.codec_context.time_base = Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = np.zeros((1, 16000), np.int16)
        click = round((0.5 - offset) * 16000)
        samples[0, click : click + 160] = 30000
        for i in range(0, 16000, 1600):
            block = av.AudioFrame.from_ndarray(samples[:, i : i + 1600].copy(), "s16", "mono")
            block.sample_rate, block.time_base = 16000, Fraction(1, 16000)
            block.pts = round((begin + offset) * 16000) + i
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    clip = read_video(path)
    heard = int((clip.sound[0] > 0.5).nonzero()[0]) / 16000
    assert heard == pytest.approx(0.5, abs=A_FEW_MILLISECONDS) and clip.sound.shape == (2, 16000)
    assert any("without sound" in note for note in clip.notes)


@pytest.mark.parametrize("rate", [16000, 22050, 24000, 44100, 48000])
@pytest.mark.parametrize("fps", [24, NTSC])
def test_picture_and_sound_are_equally_long_and_the_pitch_stays(tmp_path, rate, fps):
    seconds = 25 / Fraction(fps)
    path = write_video(tmp_path / "film.mp4", grey(25), fps, tone(seconds, rate), rate)
    info, clip = probe(path), read_video(path)
    assert -1 / rate < info.sound_end - info.duration <= AAC_BLOCK / rate  # all of it, and a block of padding at most
    assert clip.sound.shape == (2, int(seconds * rate)) and clip.sample_rate == rate and clip.notes == ()
    assert pitch(clip.sound, rate) == pytest.approx(440, abs=1.5)  # one line of the spectrum; a wrong rate: 40


def test_the_last_samples_survive_writing(tmp_path):
    sound = torch.zeros(2, SAMPLE_RATE)
    sound[:, -1000:-500] = 0.8
    clip = read_video(write_video(tmp_path / "film.mp4", grey(24), 24, sound, SAMPLE_RATE))
    assert clip.sound[:, -1000:-500].mean() > 0.5


def test_mono_is_heard_on_both_sides_at_full_level(tmp_path):
    rate = 22050
    with av.open(str(tmp_path / "mono.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=rate, layout="mono")
        block = av.AudioFrame.from_ndarray(tone(1, rate)[:1].numpy().copy(), "fltp", "mono")
        block.sample_rate = rate
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    sound, found = read_sound(tmp_path / "mono.mp4", seconds=1)
    assert found == rate and sound.shape == (2, rate) and torch.equal(sound[0], sound[1])
    assert float(sound[0, 2000:-2000].abs().max()) == pytest.approx(0.5, abs=0.05)  # AAC's loss; 3 dB are 0.15


@pytest.mark.parametrize("form, scale", [("u8", 128), ("s16", 2**15), ("s32", 2**31), ("flt", 1), ("dbl", 1)])
def test_every_sample_format_reads_as_the_same_numbers(tmp_path, form, scale):
    codec = {"u8": "pcm_u8", "s16": "pcm_s16le", "s32": "pcm_s32le", "flt": "pcm_f32le", "dbl": "pcm_f64le"}[form]
    wanted = np.array([0.0, 0.5, -0.5, 0.25] * 400)
    stored = (wanted * scale + (128 if form == "u8" else 0)).astype(
        {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}[form]
    )
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream(codec, rate=16000, layout="mono", format=form)
        block = av.AudioFrame.from_ndarray(stored[None], form, "mono")
        block.sample_rate = 16000
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    sound, _ = read_sound(tmp_path / "a.wav")
    assert torch.equal(sound[0, :1600].double(), torch.from_numpy(wanted))  # each format holds these exactly


@pytest.mark.parametrize(
    "names, left",
    [
        (("FL", "FR", "FC", "LFE", "SL", "SR"), [1, 0, 0.5**0.5, 0, 0.5**0.5, 0]),
        (("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"), [1, 0, 0.5**0.5, 0, 0.5**0.5, 0, 0.5**0.5, 0]),
        (("A", "B", "C"), [1, 1, 1]),
    ],
)
def test_surround_is_folded_by_the_names_of_its_channels(names, left):
    weights = np.array(left) / np.sum(left)
    assert np.allclose(media.to_stereo(np.eye(len(names)), names)[0], weights, atol=1e-12)  # in float64


def test_silence_that_was_filled_in_is_reported(tmp_path):
    path = write_video(tmp_path / "short.mp4", grey(48), 24, tone(1), SAMPLE_RATE)
    clip = read_video(path)
    assert clip.sound.shape == (2, 2 * SAMPLE_RATE) and clip.sound[:, -SAMPLE_RATE // 2 :].abs().max() == 0
    assert any("filled with silence" in note for note in clip.notes)


def test_wav_keeps_its_samples(tmp_path):
    sound = 2 * torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) - 1
    back, rate = read_sound(write_sound(tmp_path / "a.wav", sound, 24000))
    assert rate == 24000 and torch.allclose(back, sound, atol=2 / 2**15, rtol=0)  # two steps of 16 bits


# writing


def test_colours_survive(tmp_path):
    colours = torch.tensor([[200, 30, 60], [30, 200, 90], [20, 40, 220], [255, 255, 255], [0, 0, 0]], dtype=torch.uint8)
    frames = colours.reshape(5, 3, 1, 1).expand(5, 3, 48, 64)
    back = read_video(write_video(tmp_path / "film.mp4", frames, 5)).frames
    assert (back.int() - frames.int()).abs().max() <= FLAT_COLOUR_LOSS
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == BT709


FLAT_COLOUR_LOSS = 4  # of 255: 8 bits there and back, and x264 on flat colour, whole numbers everywhere; measured 3
WRONG_MATRIX, WRONG_RANGE = 16, 10  # at least, of the colour below: BT.601 read as BT.709, 16-235 read as 0-255


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("colours", [(1, 1), (1, 2), (6, 1), (6, 2)], ids=str)
def test_colours_are_read_by_the_matrix_and_the_range_that_the_file_names(tmp_path, pixels, colours):
    wanted = np.array([200, 30, 60], np.uint8)
    picture = np.broadcast_to(wanted, (48, 64, 3))
    clip = read_video(encode(tmp_path / "film.mp4", [picture] * 2, pixels=pixels, colours=colours))
    lost = int((clip.frames[0].movedim(0, -1).int() - torch.from_numpy(wanted).int()).abs().max())
    assert lost <= FLAT_COLOUR_LOSS < min(WRONG_MATRIX, WRONG_RANGE)


def test_the_index_comes_before_the_data(film):
    data = film.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_floats_above_one_are_clamped_not_read_as_bytes(tmp_path):
    frames = torch.full((2, 3, 48, 64), 1.02)
    assert read_video(write_video(tmp_path / "film.mp4", frames, 24)).frames.min() > 250
    assert to_frames(torch.full((3, 1, 1, 1), -1.5)).max() == 0


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(0, 3, 8, 8),
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, 8, 3),
        torch.zeros(2, 3, 8, 8, dtype=torch.int32),
    ],
)
def test_frames_of_the_wrong_kind_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="Frames must be"):
        write_video(tmp_path / "film.mp4", frames, 24)
    assert not list(tmp_path.iterdir())


def test_sound_at_a_rate_that_aac_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Resample it first"):
        write_video(tmp_path / "film.mp4", grey(9), 24, torch.zeros(2, 1000), 12345)


@pytest.mark.parametrize("fps", [0, -1, "fast", None, float("nan"), float("inf"), "1/0"])
def test_rates_that_are_none_are_refused(fps):
    with pytest.raises(ValueError, match="positive number"):
        media.exact_rate(fps)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_video(path, grey(9), 24),
        lambda path: write_sound(path, tone(0.1), SAMPLE_RATE),
        lambda path: write_image(path, grey(1)[0]),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, write):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "film.mp4"
    path.write_bytes(b"the old film")
    monkeypatch.setattr(media.os, "replace", full)
    with pytest.raises(OSError, match="film.mp4 failed .*No space left.*disk not full"):
        write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"] and path.read_bytes() == b"the old film"


def test_one_two_and_three_frames_make_a_film(tmp_path):
    for count in 1, 2, 3:
        back = read_video(write_video(tmp_path / f"{count}.mp4", grey(count), 24))
        assert order(back) == list(range(count))


def test_a_png_is_lossless(tmp_path):
    picture = torch.randint(0, 256, (3, 17, 33), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert torch.equal(read_video(write_image(tmp_path / "a.png", picture)).frames[0], picture)


FILES = 12  # without `asm=avx2`, on a processor with AVX-512, no two of 40 were equal


def test_the_same_frames_make_the_same_file(tmp_path):
    blocks = torch.rand(17, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    frames = torch.nn.functional.interpolate(blocks, scale_factor=8, mode="bilinear")
    numbers, litter = np.random.default_rng(0), []
    written = set()
    for _ in range(FILES):  # what lies in freed memory is another each time
        litter = [numbers.integers(0, 255, numbers.integers(1_000, 400_000), np.uint8) for _ in range(50)]
        del litter[::2]
        written.add(write_video(tmp_path / "film.mp4", frames, 25).read_bytes())
    assert len(written) == 1
