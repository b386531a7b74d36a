"Films as people have them: what is read is what people see, frame by frame and number by number."

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ltx_nb.data.containers import boxes
from ltx_nb.data.media import MediaError, probe, read_sound, read_video, write_video

BITS = 9
SIZE = 16 * BITS, 64
FRAMES = 288
FPS = 24
RATE = 48000
COLOURS = ((255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (0, 0, 0), (200, 120, 90))


def numbered(number):
    "A picture whose nine bars are the bits of a number."
    picture = np.full((SIZE[1], SIZE[0], 3), 16, np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[:, 16 * bit : 16 * bit + 16] = 235
    return picture


def numbers(clip):
    "The numbers that come back."
    bars = clip.frames[:, 0, SIZE[1] // 2, 8::16].int() > 128
    return (bars * 2 ** torch.arange(BITS)).sum(1).tolist()


def film(path, pictures, codec="libx264", pixels="yuv420p", fps=FPS, times=None, tell=(), **options):
    "A film of the given pictures, [H, W, 3] bytes each; `tell` are facts of its header."
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={k: str(v) for k, v in options.items()})
        first = pictures[0]
        size = (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        for name, value in dict(tell).items():
            setattr(stream.codec_context, name, value)
        for i, picture in enumerate(pictures):
            frame = picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = (times[i] if times else i), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_tones(path, *tones, default=None, seconds=2, codec="aac"):
    "A short film with one track of sound for each tone in Hz; 0 is silence."
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        tracks = [container.add_stream(codec, rate=RATE, layout="stereo") for _ in tones]
        for number, track in enumerate(tracks):
            track.disposition = av.stream.Disposition.default.value if number == default else 0
        for i in range(seconds * FPS):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered(i), "rgb24")))
        container.mux(video.encode(None))
        for hertz, track in zip(tones, tracks):
            wave = 0.4 * np.sin(2 * np.pi * hertz * np.arange(seconds * RATE) / RATE).astype(np.float32)
            for begin in range(0, len(wave), 1024):
                block = np.ascontiguousarray(np.stack([wave, wave])[:, begin : begin + 1024])
                block = av.AudioFrame.from_ndarray(block, "fltp", "stereo")
                block.sample_rate, block.pts, block.time_base = RATE, begin, Fraction(1, RATE)
                container.mux(track.encode(block))
            container.mux(track.encode(None))
    return path


def pitch(sound, rate):
    spectrum = torch.fft.rfft(sound.mean(0) * torch.hann_window(sound.shape[1])).abs()
    return float(spectrum.argmax()) * rate / sound.shape[1]


def bars(width=112, height=64):
    "One stripe for each of COLOURS."
    return np.repeat(np.array(COLOURS, np.uint8), width // len(COLOURS), 0)[None].repeat(height, 0)


def stripes(frame, count=len(COLOURS)):
    "The middle of each stripe of a [3, H, W] picture."
    return frame[:, frame.shape[1] // 2, frame.shape[2] // count // 2 :: frame.shape[2] // count].T.int().tolist()


# which frame


CONTAINERS = {
    "mp4": ("libx264", dict(g=100, bf=3)),
    "mkv": ("libx264", dict(g=100, bf=3)),
    "ts": ("libx264", dict(g=100, bf=3)),
    "flv": ("libx264", dict(g=100, bf=3)),
    "mov": ("mpeg4", dict(g=100, bf=2, qscale=2)),
    "mkv of hevc": ("libx265", dict(g=100, **{"x265-params": "log-level=none"})),
    "avi": ("mpeg4", dict(g=100, bf=2, qscale=2)),
    "mpg": ("mpeg2video", dict(g=15, bf=2, qscale=2)),
    "h264": ("libx264", dict(g=100, bf=3)),
    "wmv": ("wmv2", dict(g=100, qscale=2)),
    "webm": ("libvpx", dict(g=100, deadline="realtime", cpu_used=8)),
}


@pytest.fixture(scope="module")
def long_films(tmp_path_factory):
    "The same twelve seconds in every container."
    folder, pictures = tmp_path_factory.mktemp("long"), [numbered(i) for i in range(FRAMES)]
    return {
        suffix: film(folder / f"{len(suffix)}.{suffix.split()[0]}", pictures, codec, **o)
        for suffix, (codec, o) in CONTAINERS.items()
    }


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_frame_comes_once_and_in_order(long_films, suffix):
    assert numbers(read_video(long_films[suffix], sound=False)) == list(range(FRAMES))


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("first", [50, 127, 262])
def test_a_window_deep_in_a_film_holds_the_frames_of_its_time(long_films, suffix, first):
    info = probe(long_films[suffix])
    clip = read_video(info, float((first + 0.2) / info.fps), frames=9)
    assert numbers(clip) == list(range(first, first + 9))


@pytest.mark.parametrize("adaptive", [0, 1])
def test_h264_with_b_frames_in_avi_is_shown_in_order(tmp_path, adaptive):
    path = film(tmp_path / "b.avi", [numbered(i) for i in range(60)], g=25, bf=3, b_strategy=adaptive)
    assert numbers(read_video(path)) == list(range(60))
    assert numbers(read_video(path, 1.0, frames=9)) == list(range(24, 33))


def test_picture_and_sound_stay_together_in_a_window_of_a_stream(tmp_path):
    path, length = tmp_path / "clap.ts", 6
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"g": "75", "bf": "2"})
        sound = container.add_stream("aac", rate=RATE, layout="stereo")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        wave = np.zeros((2, length * RATE), np.float32)
        wave[:, 4 * RATE : 4 * RATE + RATE // 25] = np.sin(2 * np.pi * 1000 * np.arange(RATE // 25) / RATE) * 0.8
        for i in range(25 * length):
            flash = np.full((48, 64, 3), 255 if i == 100 else 16, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(flash, "rgb24")))
            block = np.ascontiguousarray(wave[:, i * RATE // 25 : (i + 1) * RATE // 25])
            block = av.AudioFrame.from_ndarray(block, "fltp", "stereo")
            block.sample_rate, block.pts, block.time_base = RATE, i * RATE // 25, Fraction(1, RATE)
            container.mux(sound.encode(block))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    clip = read_video(path, 3.2, frames=33)
    flash = int(clip.frames.float().mean((1, 2, 3)).argmax()) / 25
    loud = (clip.sound.abs().amax(0) > 0.3).nonzero()
    assert flash == 0.8 and abs(float(loud[0]) / RATE - flash) < 0.005


def test_a_film_that_begins_inside_a_group_of_pictures_loses_what_cannot_be_decoded(tmp_path):
    whole = film(tmp_path / "whole.ts", [numbered(i) for i in range(96)], g=24, bf=0, sc_threshold=0)
    with av.open(str(whole)) as container:
        packets = [(p.pts, p.pos) for p in container.demux(video=0) if p.size]
    cut = tmp_path / "cut.ts"
    data = whole.read_bytes()
    cut.write_bytes(data[: 188 * 3] + data[packets[10][1] :])  # the tables, then from the eleventh frame on
    info, clip = probe(cut), read_video(cut)
    assert numbers(clip) == list(range(24, 96)) and info.frames == 72
    assert any("begins inside a group of pictures" in note for note in info.notes)
    assert numbers(read_video(cut, 2.5, frames=5)) == list(range(84, 89))


def test_a_film_whose_picture_changes_its_size_is_fitted_and_said(tmp_path):
    first = film(tmp_path / "a.ts", [numbered(i) for i in range(10)], g=5)
    small = [np.full((32, 32, 3), 200, np.uint8)] * 10
    second = film(tmp_path / "b.ts", small, g=5, times=[10 + i for i in range(10)])
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    clip = read_video(both)
    assert clip.frames.shape[2:] == (SIZE[1], SIZE[0]) and any("32x32" in note for note in clip.notes)
    last = clip.frames[-1, 0].int()
    assert last[32, 72] > 190 and last[32, 4] == 0 and last[32, -4] == 0  # a square in the middle, black beside it


def test_interlaced_films_are_made_whole_and_said(tmp_path):
    def moved(place):
        picture = np.full((64, 96, 3), 40, np.uint8)
        picture[:, place : place + 10] = 220
        return picture

    fields = [moved(4 * i) for i in range(20)]
    woven = [np.where(np.arange(64)[:, None, None] % 2, fields[2 * i], fields[2 * i + 1]) for i in range(10)]
    path = film(tmp_path / "old.mpg", woven, "mpeg2video", fps=25, flags="+ilme+ildct", qscale=2)
    info, clip = probe(path), read_video(path)
    comb = lambda picture: (2 * picture[1:-1] - picture[:-2] - picture[2:]).abs().mean()
    assert info.interlaced and any("interlaced" in note for note in info.notes) and len(clip.frames) == 10
    assert comb(clip.frames[5, 0].float()) < 0.2 * comb(torch.from_numpy(woven[5][..., 0].astype(np.float32)))
    middle = (clip.frames[5, 0, 32].float() > 130).nonzero().float().mean()
    assert abs(middle - (40 + 4.5)) < 3  # the moment of the first field


# which colour


def tagged(picture, pixels, matrix, full):
    how = dict(dst_colorspace={1: "ITU709", 6: "ITU601"}[matrix], dst_color_range="JPEG" if full else "MPEG")
    return av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels, **how)


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("matrix, full, width", [(1, False, 112), (6, False, 112), (1, True, 112), (1, False, 1288)])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv422p10le"])
def test_known_colours_come_back(tmp_path, said, matrix, full, width, pixels):
    if not said and (full or (matrix == 1) != (width >= 1280)):
        pytest.skip("players would take it for something else, and so do we")
    picture = tagged(bars(width), pixels, matrix, full)
    tell = dict(colorspace=matrix, color_range=2 if full else 1) if said else {}
    path = film(tmp_path / "bars.mkv", [picture] * 3, pixels=pixels, tell=tell, crf=1)
    found = stripes(read_video(path).frames[0])
    assert np.abs(np.array(found) - np.array(COLOURS)).max() <= 4


@pytest.mark.parametrize(
    "codec, pixels, suffix", [("png", "rgb24", "png"), ("ffv1", "bgr0", "mkv"), ("rawvideo", "bgr24", "avi")]
)
def test_colours_that_are_stored_as_such_are_exact(tmp_path, codec, pixels, suffix):
    found = read_video(film(tmp_path / f"bars.{suffix}", [bars()] * (1 if codec == "png" else 3), codec, pixels))
    assert stripes(found.frames[0]) == [list(colour) for colour in COLOURS]


def test_what_is_written_comes_back_in_the_same_colours(tmp_path):
    frames = torch.from_numpy(bars()).movedim(-1, 0)[None].repeat(3, 1, 1, 1)
    path = write_video(tmp_path / "bars.mp4", frames, FPS, quality=1)
    assert np.abs(np.array(stripes(read_video(path).frames[1])) - np.array(COLOURS)).max() <= 4
    with av.open(str(path)) as container:  # and it says so, for every other player
        codec = container.streams.video[0].codec_context
        assert (int(codec.color_primaries), int(codec.color_trc), int(codec.colorspace), int(codec.color_range)) == (
            1,
            1,
            1,
            1,
        )


def hdr(path, level, transfer):
    "A grey film of 10 bits in BT.2020 whose header says PQ or HLG."
    y = np.full((64, 96), round(64 + 876 * level), np.uint16)
    frame = av.VideoFrame(96, 64, "yuv420p10le")
    for plane, value in zip(frame.planes, (y, np.full((32, 48), 512, np.uint16), np.full((32, 48), 512, np.uint16))):
        rows = np.zeros((value.shape[0], plane.line_size // 2), np.uint16)
        rows[:, : value.shape[1]] = value
        plane.update(rows.tobytes())
    tell = dict(colorspace=9, color_range=1, color_trc={"PQ": 16, "HLG": 18}[transfer], color_primaries=9)
    options = {"x265-params": "log-level=none:repeat-headers=0"}
    return film(path, [frame] * 3, "libx265", "yuv420p10le", tell=tell, **options)


@pytest.mark.parametrize("transfer, white, grey", [("PQ", 0.5807, 0.4227), ("HLG", 0.75, 0.447)])
def test_hdr_is_shown_as_on_an_ordinary_screen_and_said(tmp_path, transfer, white, grey):
    level = lambda share, name: int(read_video(hdr(tmp_path / name, share, transfer)).frames[0, 1, 32, 48])
    assert level(white, "white.mkv") >= 245  # paper, 203 cd/m2
    assert level(0.0, "black.mkv") == 0 and level(1.0, "lamp.mkv") == 255
    assert abs(level(grey, "grey.mkv") - 128) < 12
    assert any(transfer in note and "tone-mapped" in note for note in probe(tmp_path / "white.mkv").notes)


def test_transparency_is_said(tmp_path):
    Image.new("RGBA", (8, 8), (200, 100, 50, 128)).save(tmp_path / "glass.png")
    Image.new("RGBA", (8, 8), (200, 100, 50, 255)).save(tmp_path / "solid.png")
    assert any("transparent" in note for note in probe(tmp_path / "glass.png").notes)
    assert probe(tmp_path / "solid.png").notes == ()


# which way up, and how much of it


def corners(height=48, width=64):
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:24, :32], picture[:24, 32:], picture[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    picture[24:, 32:] = 255
    return picture


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("number", range(1, 9))
def test_pictures_are_turned_and_mirrored_as_pil_does(tmp_path, suffix, number):
    exif = Image.Exif()
    exif[0x0112] = number
    how = {"webp": dict(lossless=True), "jpg": dict(quality=100, subsampling=0)}.get(suffix, {})
    Image.fromarray(corners()).save(tmp_path / f"a.{suffix}", exif=exif, **how)
    right = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"a.{suffix}").convert("RGB")))
    ours = read_video(tmp_path / f"a.{suffix}").frames[0].permute(1, 2, 0).numpy()
    assert ours.shape == right.shape and np.abs(ours.astype(int) - right).mean() < 3
    assert (probe(tmp_path / f"a.{suffix}").width, probe(tmp_path / f"a.{suffix}").height) == right.shape[1::-1]


MATRICES = {  # of the header: a, b, c, d; what a player shows, clockwise from the upper left
    "as stored": ((1, 0, 0, 1), "rgwb"),
    "mirrored": ((-1, 0, 0, 1), "grbw"),
    "upside down": ((1, 0, 0, -1), "bwgr"),
    "turned by a half": ((-1, 0, 0, -1), "wbrg"),
    "turned right": ((0, 1, -1, 0), "brgw"),
    "turned left": ((0, -1, 1, 0), "gwbr"),
    "transposed": ((0, 1, 1, 0), "rbwg"),
    "transposed the other way": ((0, -1, -1, 0), "wgrb"),
}


@pytest.mark.parametrize("name", MATRICES)
def test_films_are_turned_and_mirrored_as_their_header_says(tmp_path, name):
    (a, b, c, d), shown = MATRICES[name]
    path = film(tmp_path / "a.mp4", [corners()] * 3)
    data = bytearray(path.read_bytes())
    place, one = data.index(b"tkhd") + 44, 1 << 16
    data[place : place + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frame = read_video(path).frames[0].int()
    found = [frame[:, 6, 6], frame[:, 6, -6], frame[:, -6, -6], frame[:, -6, 6]]
    assert "".join("w" if c.min() > 150 else "rgb"[int(c.argmax())] for c in found) == shown


def heic(path, picture, tile=64):
    "A HEIC whose primary picture is a grid of HEVC tiles, as telephones write it."
    rows, columns = -(-picture.shape[0] // tile), -(-picture.shape[1] // tile)
    padded = np.pad(
        picture, ((0, rows * tile - picture.shape[0]), (0, columns * tile - picture.shape[1]), (0, 0)), "edge"
    )
    tiles, config = [], b""
    for row in range(rows):
        for column in range(columns):
            part = np.ascontiguousarray(padded[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile])
            options = {"x265-params": "log-level=none:repeat-headers=0", "crf": 4}
            one = film(path.with_suffix(".mkv"), [part], "libx265", **options)
            with av.open(str(one)) as container:
                tiles.append(bytes(next(p for p in container.demux() if p.size)))
                config = bytes(container.streams.video[0].codec_context.extradata)
    box = lambda name, *parts: struct.pack(">I4s", 8 + sum(map(len, parts)), name) + b"".join(parts)
    full = lambda name, *parts: box(name, bytes(4), *parts)
    count, grid = len(tiles), struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *picture.shape[1::-1])
    infos = [box(b"infe", struct.pack(">IHH4sB", 2 << 24, i, 0, b"hvc1", 0)) for i in range(1, count + 1)]
    infos.append(box(b"infe", struct.pack(">IHH4sB", 2 << 24, count + 1, 0, b"grid", 0)))
    sizes = [full(b"ispe", struct.pack(">II", tile, tile)), full(b"ispe", struct.pack(">II", *picture.shape[1::-1]))]
    uses = [struct.pack(">HBBB", i, 2, 0x81, 2) for i in range(1, count + 1)]
    uses.append(struct.pack(">HBB", count + 1, 1, 3))

    def meta(offset):
        places, at = [], offset
        for i, data in enumerate([*tiles, grid], 1):
            places.append(struct.pack(">HHHII", i, 0, 1, at, len(data)))
            at += len(data)
        return full(
            b"meta",
            full(b"hdlr", bytes(4), b"pict", bytes(13)),
            full(b"pitm", struct.pack(">H", count + 1)),
            full(b"iloc", struct.pack(">BBH", 0x44, 0x00, count + 1), *places),
            full(b"iinf", struct.pack(">H", count + 1), *infos),
            full(b"iref", box(b"dimg", struct.pack(f">HH{count}H", count + 1, count, *range(1, count + 1)))),
            box(
                b"iprp",
                box(b"ipco", box(b"hvcC", config), *sizes),
                full(b"ipma", struct.pack(">I", count + 1), *uses),
            ),
        )

    head = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    offset = len(head) + len(meta(0)) + 8
    path.write_bytes(head + meta(offset) + box(b"mdat", *tiles, grid))
    return path


def test_a_picture_of_tiles_is_read_whole(tmp_path):
    picture = np.zeros((150, 180, 3), np.uint8)
    for i, colour in enumerate(COLOURS[:6]):
        picture[75 * (i // 3) : 75 * (i // 3) + 75, 60 * (i % 3) : 60 * (i % 3) + 60] = colour
    path = heic(tmp_path / "phone.heic", picture)
    info, clip = probe(path), read_video(path)
    assert (info.width, info.height, info.still) == (180, 150, True)
    found = clip.frames[0].permute(1, 2, 0).numpy().astype(int)
    assert found.shape == picture.shape
    for row in 20, 120:
        for column in 20, 90, 150:
            assert np.abs(found[row, column] - picture[row, column]).max() <= 12, (row, column)


# what is not all there


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff", "avif"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_half_a_picture_is_corrupt(tmp_path, suffix, share):
    whole = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)).save(whole)
    assert read_video(whole).frames.shape == (1, 3, 96, 128)
    data = whole.read_bytes()
    whole.write_bytes(data[: int(share * len(data))])
    with pytest.raises(MediaError) as caught:
        read_video(whole)
    assert caught.value.reason in ("corrupt", "incomplete")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_an_mp4_without_its_index_is_incomplete(tmp_path, share):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(48)])
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(MediaError, match="incomplete.*moov.*again") as caught:
        probe(path)
    assert caught.value.reason == "incomplete"


@pytest.mark.parametrize(
    "name", ["clip:1.mp4", "file:clip.mp4", "100%d.mp4", "100%03d.png", "a?b*[c].png", " b .mp4", "ü'\".mp4"]
)
def test_a_path_is_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source = film(tmp_path / "a.mp4", [corners()] * 3) if name.endswith("mp4") else tmp_path / "a.png"
    if name.endswith("png"):
        Image.fromarray(corners()).save(source)
    source.rename(tmp_path / name)
    for path in tmp_path / name, name:
        assert read_video(path).frames.shape[1:] == (3, 48, 64)


def test_a_playlist_is_no_film(tmp_path):
    film(tmp_path / "secret.mp4", [corners()] * 3)
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "b.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    for name in "a.mp4", "b.mp4":
        with pytest.raises(MediaError):
            probe(tmp_path / name)


# which sound


@pytest.mark.parametrize(
    "tones, default, hertz, words",
    [
        ((300, 880), 1, 880, "marked as default"),
        ((300, 880), 0, 300, "marked as default"),
        ((0, 880), 0, 880, "not silent"),
        ((0, 300, 880), 2, 880, "marked as default"),
    ],
)
def test_the_sound_is_the_default_track_or_the_first_that_is_heard(tmp_path, tones, default, hertz, words):
    path = with_tones(tmp_path / "a.mkv", *tones, default=default)
    info = probe(path)
    assert pitch(*read_sound(info)) == pytest.approx(hertz, abs=2) and words in info.notes[0]
    assert pitch(*read_sound(probe(path, sound_track=2))) == pytest.approx(tones[1], abs=2)
    with pytest.raises(MediaError, match="no readable sound track 9"):
        probe(path, sound_track=9)


@pytest.mark.parametrize("codec", ["aac", "flac", "ac3"])
def test_a_silent_track_is_no_sound_and_that_is_said(tmp_path, codec):
    info = probe(with_tones(tmp_path / "a.mkv", 0, codec=codec))
    assert not info.has_sound and any("silent from beginning to end" in note for note in info.notes)
    assert read_video(info).sound is None


def test_a_sound_that_cannot_be_decoded_leaves_the_picture(tmp_path):
    path = with_tones(tmp_path / "a.mp4", 440)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"mp4a", b"apac").replace(b"esds", b"free"))
    info = probe(path)
    assert (
        info.frames == 48 and not info.has_sound and any("cannot be decoded" in n and "apac" in n for n in info.notes)
    )
    assert numbers(read_video(info)) == list(range(48))


def test_of_two_tracks_the_one_that_can_be_decoded_is_used(tmp_path):
    path = with_tones(tmp_path / "a.mp4", 300, 880)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"mp4a", b"apac", 1).replace(b"esds", b"free", 1))
    assert pitch(*read_sound(probe(path))) == pytest.approx(880, abs=2)


def test_slow_motion_in_an_edit_list_is_said(tmp_path):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(48)])
    data = bytearray(path.read_bytes())
    place = data.index(b"elst")
    data[place + 20 : place + 24] = struct.pack(">i", 1 << 14)
    path.write_bytes(data)
    info = probe(path)
    assert any("0.25 times the speed" in note for note in info.notes)
    with open(path, "rb") as file:
        assert {name for name, _, _ in boxes(file, 0, len(data))} >= {b"ftyp", b"moov", b"mdat"}


def test_an_animated_webp_is_read_or_named(tmp_path):
    first, second = Image.fromarray(bars()), Image.fromarray(255 - bars())
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], duration=100)
    try:
        assert probe(tmp_path / "a.webp").frames == 2  # FFmpeg will learn it
    except MediaError as error:
        assert "animated WebP" in str(error) and "Convert it" in str(error)


def test_the_command_says_what_would_become_of_every_clip(tmp_path, capsys):
    from ltx_nb.tools.cli import main

    film(tmp_path / "short.mp4", [numbered(i) for i in range(33)])
    for name in "abcd":
        film(tmp_path / f"{name}.mp4", [numbered(i) for i in range(60)])
    (tmp_path / "half.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:3000])
    (tmp_path / "notes.docx").touch()
    with pytest.raises(SystemExit) as end:
        main(["check", str(tmp_path), "--empty-captions", "--progress", "none"])
    told = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 3 and "5 of 6 samples can be used" in told and "1 incomplete" in told
    assert "short.mp4 (33 frames) makes the bucket 33 frames long" in told and "4 clips lose 24 frames each" in told
    assert "notes.docx" in told and "Used: 165 of 273 frames" in told
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path), "--progress", "none"])
    assert "allow empty captions (--empty-captions)" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_a_photograph_in_display_p3_is_shown_in_the_colours_of_a_screen(tmp_path, suffix):
    picture = np.full((32, 32, 3), (200, 60, 60), np.uint8)
    how = {"webp": dict(lossless=True), "jpg": dict(quality=100, subsampling=0)}.get(suffix, {})
    profile = b"acsp" + "Display P3".encode("utf-16-be")
    Image.fromarray(picture).save(tmp_path / f"wide.{suffix}", icc_profile=profile, **how)
    Image.fromarray(picture).save(tmp_path / f"usual.{suffix}", **how)
    wide, usual = (read_video(tmp_path / f"{name}.{suffix}").frames[0, :, 9, 9].int() for name in ("wide", "usual"))
    assert wide[0] > usual[0] + 5 and wide[1] < usual[1] and (usual - torch.tensor([200, 60, 60])).abs().max() <= 3
    assert any("Display P3" in note for note in probe(tmp_path / f"wide.{suffix}").notes)
