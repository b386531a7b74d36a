"Datasets: rows, names, buckets, and the doctor."

import json
import math
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx_nb.data.clips import (
    Bucket,
    Dataset,
    DatasetError,
    Sample,
    check_dataset,
    check_sample,
    choose_bucket,
    example_clips,
    follow_plan,
    parse_buckets,
    plan_clip,
    read_dataset,
    read_sample,
    sample_id,
)
from ltx_nb.data.store import list_records, write_record
from ltx_nb.data.media import MediaError, MediaInfo, portable_name, probe, write_image, write_sound, write_video
from ltx_nb.model.latents import ScaleFactors

ROWS = [
    {"caption": 'A bird, singing "loudly"', "media_path": "a.mp4"},
    {"caption": "Größe: 東京", "media_path": "sub dir/b.mp4"},
    {"caption": "1984", "media_path": "c.mov"},
    {"caption": "NA", "media_path": "d.mp4"},
    {"caption": "", "media_path": "e.mp4"},
]
SMALL = "64x64x9;96x64x17"


def write_csv(path, rows):
    import csv

    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_rows(folder, kind, rows):
    path = folder / f"list.{kind}"
    if kind.lower() == "csv":
        return write_csv(path, rows)
    lines = "\n\n".join(json.dumps(row) for row in rows)
    path.write_text(lines if kind.lower() == "jsonl" else json.dumps(rows), "utf-8-sig")
    return path


def colours(frames=25, size=(96, 64), seed=0):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randint(0, 256, (frames, 3, 1, 1), generator=generator, dtype=torch.uint8)
    return flat.expand(-1, -1, size[1], size[0])


def hum(seconds=1.0, rate=16000):
    return 0.3 * torch.sin(torch.arange(int(seconds * rate)) / 20).expand(2, -1)


def film(path, frames=25, size=(96, 64), fps=25, sound=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, colours(frames, size), fps, hum(frames / fps) if sound else None, 16000 if sound else None)


def captioned(path, text="A film."):
    path.with_suffix(".txt").write_text(text, "utf-8")
    return path


def only(report):
    (finding,) = report.findings
    return finding


# rows and columns


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "CSV", "JSONL"])
def test_every_format_gives_the_same_samples(tmp_path, kind):
    dataset = read_dataset(write_rows(tmp_path, kind, ROWS))
    assert [sample.caption for sample in dataset] == [row["caption"] for row in ROWS]
    assert [sample.id for sample in dataset] == [row["media_path"] for row in ROWS]
    assert dataset.samples[1].main == tmp_path / "sub dir" / "b.mp4"


def test_a_folder_gives_the_same_samples(tmp_path):
    for row in ROWS:
        path = tmp_path / row["media_path"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not looked at")
        if row["caption"]:
            path.with_suffix(".txt").write_text(row["caption"] + "\n", "utf-8-sig")
    found = {sample.id: sample.caption for sample in read_dataset(tmp_path)}
    assert found == {row["media_path"]: row["caption"] for row in ROWS}


def test_captions_may_hold_line_breaks(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"caption": "one\ntwo", "video": "a.mp4"}])
    assert [sample.caption for sample in read_dataset(path)] == ["one\ntwo"]
    (tmp_path / "a.jsonl").write_text('{"caption": "one\u2028two", "video": "a.mp4"}', "utf-8")
    assert len(read_dataset(tmp_path / "a.jsonl")) == 1


@pytest.mark.parametrize(
    "content, words",
    [
        ('["a"]', "row 1 is a list"),
        ('{"caption": ["a"], "video": "a.mp4"}', "column 'caption' holds a list"),
        ('{"caption": "a"}', "no column 'video'"),
        ('{"text": "a", "video": "a.mp4"}', "no column 'caption'.*text"),
        (
            '{"caption": "a", "video": "a.mp4", "media_path": "b.mp4"}',
            "row 1 has video = 'a.mp4' and media_path = 'b.mp4'",
        ),
        ('{"caption": "a", "video": "a.mp4", "start": "soon"}', "start = 'soon'"),
        ("", "holds no samples"),
    ],
)
def test_mistakes_in_a_metadata_file_are_named(tmp_path, content, words):
    (tmp_path / "list.jsonl").write_text(content, "utf-8")
    with pytest.raises(DatasetError, match=words):
        read_dataset(tmp_path / "list.jsonl")


def test_a_comma_outside_quotes_and_a_wrong_encoding_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("caption,video\nA bird, singing,a.mp4\n", "utf-8")
    with pytest.raises(DatasetError, match="more cells than the header"):
        read_dataset(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes("caption,video\n鸟在唱歌鸟在唱歌鸟在唱歌鸟在唱歌,a.mp4\n".encode("gbk"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_dataset(tmp_path / "b.csv")


@pytest.mark.parametrize(
    "second, words",
    [
        ('{"caption": ', "row 2.*not valid JSON"),
        ('["a"]', "row 2 is a list"),
        ('{"caption": ["a"], "video": "b.mp4"}', "row 2: column 'caption' holds a list"),
        ('{"caption": "b", "video": "b.mp4", "id": "x"}', "row 2: the id 'x' is that of row 1"),
        ('{"caption": "b", "video": "b.mp4", "start": "soon"}', "row 2: start = 'soon'"),
        ('{"caption": "b", "video": "b.mp4", "media_path": "c.mp4"}', "row 2 has video = 'b.mp4' and media_path"),
        ('{"caption": "b", "video": "b\\u0000.mp4"}', "null|not exist|null character|does not"),
        ('{"caption": "b", "video": "' + "b" * 5000 + '.mp4"}', ""),
    ],
)
def test_a_bad_row_is_one_row(tmp_path, second, words):
    film(tmp_path / "a.mp4")
    first = '{"caption": "a", "video": "a.mp4", "id": "x"}'
    (tmp_path / "list.jsonl").write_text(f"{first}\n{second}\n", "utf-8")
    report = check_dataset(tmp_path / "list.jsonl", "64x64x17")
    good, bad = report.findings
    assert bad.id != good.id and good.id == "x" and good.state != "no" and bad.state == "no" and report.exit_code == 3
    assert re.search(words, bad.remarks[0])


@pytest.mark.parametrize("separator, name", [(";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "")])
def test_columns_may_be_divided_by_other_marks(tmp_path, separator, name):
    rows = [("caption", "media_path"), ('"A bird; it, sings"', "a.mp4"), ("1984", "b.mp4")]
    (tmp_path / "list.csv").write_text("\n".join(separator.join(row) for row in rows), "utf-8")
    dataset = read_dataset(tmp_path / "list.csv")
    assert [(s.caption, s.main.name) for s in dataset] == [("A bird; it, sings", "a.mp4"), ("1984", "b.mp4")]
    assert (name in " ".join(dataset.notes)) and bool(dataset.notes) == bool(name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("kind", ["txt", "csv", "json"])
def test_captions_in_the_encodings_of_editors_are_read_and_said(tmp_path, encoding, kind):
    words = "The bird\u2019s song \u2013 na\u00efve and loud, in caf\u00e9s."
    film(tmp_path / "a.mp4")
    text = {
        "txt": words,
        "csv": f'caption,video\n"{words}",a.mp4\n',
        "json": json.dumps([{"caption": words, "video": "a.mp4"}], ensure_ascii=False),
    }[kind]
    path = tmp_path / ("a.txt" if kind == "txt" else f"list.{kind}")
    path.write_bytes(text.encode(encoding))
    dataset = read_dataset(tmp_path if kind == "txt" else path)
    report = check_dataset(dataset, "64x64x17")
    assert dataset.samples[0].caption == words and len(report.usable) == 1
    said = " ".join([*report.findings[0].remarks, *report.summary()])
    assert ("was read as" in said) == (not encoding.startswith("utf-8"))


@pytest.mark.parametrize("data", ["鸟在唱歌".encode("gbk"), b"\x00\x01\x02\xff", "süß".encode() + b"\xe9\xe8"])
def test_a_caption_that_cannot_be_read_costs_its_own_clip(tmp_path, data):
    for name in "a", "b":
        film(tmp_path / f"{name}.mp4")
        (tmp_path / f"{name}.txt").write_bytes(b"A film." if name == "a" else data)
    report = check_dataset(tmp_path, "64x64x17")
    assert report.usable == ("a.mp4",)
    assert report.findings[1].reason == "unreadable caption" and "b.txt" in report.findings[1].remarks[0]


def test_names_are_found_whatever_their_case(tmp_path):
    film(tmp_path / "UP.MP4")
    (tmp_path / "up.TXT").write_text("A film.", "utf-8")
    assert read_dataset(tmp_path).samples[0].caption == "A film."
    assert read_dataset(tmp_path / "UP.MP4").samples[0].caption == "A film." and not read_dataset(tmp_path).left


def test_every_file_that_is_not_used_is_counted_with_its_reason(tmp_path):
    clips, elsewhere = tmp_path / "clips", tmp_path / "elsewhere"
    for folder in clips / "masks", elsewhere:
        folder.mkdir(parents=True)
    for name in "a.mp4", "b.jfif", "c.MTS", "d.heif", "e.3gp", "f.wma", "masks/a.png", "a.wav", "a.mp3":
        (clips / name).write_text("?", "utf-8")
    (elsewhere / "linked.mp4").write_text("?", "utf-8")
    (clips / "notes.docx").touch()
    (clips / "README").touch()
    (clips / "lost.txt").touch()
    (clips / "folder").symlink_to(elsewhere)
    (clips / "circle").symlink_to(clips)
    (clips / "dangling.mp4").symlink_to(tmp_path / "gone.mp4")
    dataset = read_dataset(clips)
    ids = [sample.id for sample in dataset]
    assert ids == ["a.mp4", "b.jfif", "c.MTS", "d.heif", "e.3gp", "f.wma", "folder/linked.mp4"]
    left = dict(dataset.left)
    assert set(left) == {"masks/a.png", "a.wav", "notes.docx", "README", "lost.txt", "dangling.mp4"}
    assert (
        "clip.mask.mp4" in left["masks/a.png"] and ".docx" in left["notes.docx"] and "nothing" in left["dangling.mp4"]
    )
    told = check_dataset(dataset).summary()
    assert all(any(name in line for line in told) for name in left)


def test_media_that_a_list_does_not_name_are_counted(tmp_path):
    for name in "a.mp4", "b.mp4":
        (tmp_path / name).touch()
    (tmp_path / "dataset.csv").write_text("caption,video\na,a.mp4\n", "utf-8")
    assert read_dataset(tmp_path).left == (("b.mp4", "not named in dataset.csv"),)


@pytest.mark.parametrize("name", ["x" * 245 + ".mp4", "鸟" * 81 + ".mp4", "b.safetensors/x.mp4", "b.SafeTensors/x.mp4"])
def test_every_id_can_name_a_record(tmp_path, name):
    key = sample_id(tmp_path / name, tmp_path)
    write_record(tmp_path, "latents", key, {"latents": torch.zeros(1)})
    write_record(tmp_path, "latents", "b", {"latents": torch.zeros(1)})
    assert sorted(list_records(tmp_path / "latents")) == sorted([key, "b"])
    assert key != sample_id(tmp_path / name.replace("x", "y").replace("鸟鸟", "鸟山", 1), tmp_path)


def test_an_id_of_any_length_is_taken(tmp_path):
    rows = [
        {"caption": "a", "video": "a.mp4", "id": "x" * 300},
        {"caption": "b", "video": "a.mp4", "id": "/".join(["d" * 100] * 30)},
    ]
    for sample in read_dataset(write_rows(tmp_path, "json", rows)):
        assert write_record(tmp_path, "latents", sample.id, {"latents": torch.zeros(1)}).exists()


def test_roles_may_be_missing_in_some_rows_and_unread_columns_are_listed(tmp_path):
    rows = [
        {"caption": "a", "video": "a.mp4"},
        {"caption": "b", "media_path": "b.mp4", "mood": "sad"},
        {"caption": "c", "video": "c.mp4", "ref_media_path": "r.mp4", "audio": "c.wav"},
    ]
    dataset = read_dataset(write_rows(tmp_path, "json", rows))
    assert [sample.id for sample in dataset] == ["a.mp4", "b.mp4", "c.mp4"]
    assert dataset.roles() == {"caption": 3, "video": 3, "audio": 1, "reference_video": 1}
    assert dataset.samples[2].media["reference_video"] == tmp_path / "r.mp4" and dataset.unused == ("mood",)


def test_columns_can_be_named_and_a_typo_is_an_error(tmp_path):
    rows = [{"text": "words", "clip": "a.mp4", "caption": "other words", "video": "b.mp4"}]
    path = write_rows(tmp_path, "json", rows)
    sample = read_dataset(path, caption_column="text", video_column="clip").samples[0]
    assert (sample.caption, sample.id) == ("words", "a.mp4")
    with pytest.raises(DatasetError, match="'clips' for the video. Did you mean clip"):
        read_dataset(path, video_column="clips")


def test_a_folder_with_one_metadata_file_is_read_through_it(tmp_path):
    film(tmp_path / "unlisted.mp4", frames=2, sound=False)
    (tmp_path / "dataset.json").write_text(json.dumps([{"caption": "a", "video": "a.mp4"}]), "utf-8")
    assert [sample.id for sample in read_dataset(tmp_path)] == ["a.mp4"]
    (tmp_path / "metadata.csv").write_text("caption,video\n", "utf-8")
    with pytest.raises(DatasetError, match="Name the one that counts"):
        read_dataset(tmp_path)


def test_a_single_clip_is_a_dataset_of_one(tmp_path):
    dataset = read_dataset(captioned(film(tmp_path / "a.mp4", frames=2), "Alone."))
    assert [(sample.id, sample.caption) for sample in dataset] == [("a.mp4", "Alone.")]


def test_folders_skip_hidden_files_and_join_a_sound_to_its_film(tmp_path):
    for name in ".precomputed/x.mp4", ".hidden.mp4", "a.mp4", "a.wav", "song.wav", "b.png", "notes.md":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    dataset = read_dataset(tmp_path)
    assert {sample.id: sorted(sample.media) for sample in dataset} == {
        "a.mp4": ["audio", "video"],
        "b.png": ["video"],
        "song.wav": ["audio"],
    }


def test_companions_lie_beside_their_clip(tmp_path):
    names = (
        "a.mp4 a.reference.mp4 a.reference.wav a.mask.png a.audio_mask.txt a.txt x/a.v2.mp4 x/a.v2.mask.mp4 song.wav "
        "song.audio_mask.json song.reference.flac alone.mask.png b.reference.txt"
    ).split()
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("?", "utf-8")
    found = {sample.id: {role: path.name for role, path in sample.media.items()} for sample in read_dataset(tmp_path)}
    assert found == {
        "a.mp4": {
            "video": "a.mp4",
            "reference_video": "a.reference.mp4",
            "reference_audio": "a.reference.wav",
            "video_mask": "a.mask.png",
            "audio_mask": "a.audio_mask.txt",
        },
        "x/a.v2.mp4": {"video": "a.v2.mp4", "video_mask": "a.v2.mask.mp4"},
        "alone.mask.png": {"video": "alone.mask.png"},
        "song.wav": {
            "audio": "song.wav",
            "audio_mask": "song.audio_mask.json",
            "reference_audio": "song.reference.flac",
        },
    }
    one = read_dataset(tmp_path / "a.mp4").samples[0]
    assert {role: path.name for role, path in one.media.items()} == found["a.mp4"] and one.caption == "?"
    (tmp_path / "a.mask.mp4").write_text("?", "utf-8")
    findings = {finding.id: finding for finding in check_dataset(tmp_path).findings}
    assert "a.mask.mp4 and a.mask.png are both its video_mask" in findings["a.mp4"].remarks[0]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("0.5-1.2; 2-3", ((0.5, 1.2), (2.0, 3.0))),
        ([[2, 3], [0.5, 1.2]], ((0.5, 1.2), (2.0, 3.0))),
        ("2-", ((2.0, math.inf),)),
        ([[1, 2], [2, 3]], ((1.0, 3.0),)),
        ("masks/1-2.wav", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_an_audio_mask_may_be_seconds_or_a_file(tmp_path, written, seconds):
    sample = read_dataset(
        write_rows(tmp_path, "json", [{"caption": "a", "video": "a.mp4", "audio_mask": written}])
    ).samples[0]
    assert sample.kept_sound == seconds and ("audio_mask" in sample.media) == (written == "masks/1-2.wav")
    assert ("audio_mask" in sample.roles) == bool(written)


@pytest.mark.parametrize(
    "written", ["3-2", "1-1", "1", "1-2-3", "; ;", [[3, 2]], [[1]], [["a", "b"]], [[-1, 2]], [1, 2], []]
)
def test_seconds_that_make_no_sense_are_named_with_their_row(tmp_path, written):
    rows = [{"caption": "a", "video": "a.mp4"}, {"caption": "b", "video": "b.mp4", "audio_mask": written}]
    good, bad = read_dataset(write_rows(tmp_path, "json", rows)).samples
    assert not good.fault and re.search("row 2.*audio_mask: .* is no list of intervals", bad.fault)


@pytest.mark.parametrize("name", ["nowhere", "notes.md"])
def test_what_is_no_dataset_is_refused(tmp_path, name):
    (tmp_path / "notes.md").write_text("hello", "utf-8")
    with pytest.raises(DatasetError, match="Give a csv, json or jsonl file, a folder"):
        read_dataset(tmp_path / name)


# names


def test_films_of_one_stem_and_repeated_films_get_names_of_their_own(tmp_path):
    names = "a.mp4", "a.mov", "a.mp4", "A.MP4", "../a.mp4"
    rows = [{"caption": str(i), "video": name} for i, name in enumerate(names)]
    ids = [sample.id for sample in read_dataset(write_rows(tmp_path, "json", rows))]
    assert ids[:4] == ["a.mp4", "a.mov", "a.mp4#2", "A.MP4#3"] and ids[4].startswith("outside/")
    appended = read_dataset(write_rows(tmp_path, "json", [*rows, {"caption": "new", "video": "a.mov"}]))
    assert [sample.id for sample in appended][:5] == ids  # a later row never renames an earlier one


PARTS = st.sampled_from(["a", "b.mp4", "..", "c d.mp4", "ü.mov", "x:y?.mp4", "~", "#1"])
PATHS = st.lists(PARTS, min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(PATHS, min_size=1, max_size=8), st.booleans())
def test_names_never_leave_the_folder_and_never_collide(parts, absolute):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rows = [{"caption": "x", "video": ("/" if absolute else "") + "/".join(part)} for part in parts]
        ids = [sample.id for sample in read_dataset(write_rows(Path(folder), "json", rows))]
    assert len({key.casefold() for key in ids}) == len(ids)
    assert all(not Path(key).is_absolute() and ".." not in Path(key).parts for key in ids)
    assert all(portable_name(key) == key for key in ids)


def refused_by_windows(part):
    "Its own rules, as its documentation has them, for one part of a path."
    devices = {"CON", "PRN", "AUX", "NUL", *(f"{name}{digit}" for name in ("COM", "LPT") for digit in range(10))}
    return (
        bool(re.search(r'[<>:"|?*\\\x00-\x1f]', part))
        or part[-1:] in (".", " ")
        or part.split(".")[0].upper() in devices
    )


@given(
    st.text(st.sampled_from("aZ.:?* -_ücoOnN1mM\\\t|<"), min_size=1, max_size=8),
    st.sampled_from(["", "con", "Lpt9.", "x/nul."]),
)
def test_a_portable_name_is_taken_everywhere_and_stays(name, before):
    found = portable_name(f"{before}{name}.mp4")
    assert not any(refused_by_windows(part) for part in found.split("/")) and portable_name(found) == found
    assert found.endswith(".mp4") and found.count("/") == before.count("/")


def test_a_clip_on_another_drive_has_a_name(tmp_path, monkeypatch):
    "Where Windows knows no relative path."

    def other_drive(*_):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr("ltx_nb.data.clips.os.path.relpath", other_drive)
    ids = [sample_id(folder / "a.mp4", tmp_path) for folder in (tmp_path, tmp_path / "other")]
    assert ids[0] != ids[1] and all(re.fullmatch(r"outside/[0-9a-f]{8}-a\.mp4", key) for key in ids)


def test_absolute_paths_inside_the_folder_are_named_like_relative_ones(tmp_path):
    assert sample_id(tmp_path / "clips" / "a.mp4", tmp_path) == sample_id("clips/a.mp4", ".") == "clips/a.mp4"


def test_links_are_not_followed(tmp_path):
    real = tmp_path / "elsewhere" / "a.mp4"
    real.parent.mkdir()
    real.write_bytes(b"?")
    (tmp_path / "set").mkdir()
    try:
        (tmp_path / "set" / "link.mp4").symlink_to(real)
    except OSError:
        pytest.skip("this system lets nobody make a symbolic link")
    assert [sample.id for sample in read_dataset(tmp_path / "set")] == ["link.mp4"]


# buckets


@pytest.mark.parametrize(
    "text, words",
    [
        ("33x32x9", "width 33 .*32 or 64"),
        ("32x0x9", "height 0"),
        ("32x32x8", "8 frames .*1 or 9"),
        ("0x32x9", "width 0"),
        ("32x32", "WIDTHxHEIGHTxFRAMES"),
        ("-32x32x9", "WIDTHxHEIGHTxFRAMES"),
        ("wide", "such as"),
        ("64x64x9;64x64x9", "listed twice"),
        (" ; ", "no bucket"),
    ],
)
def test_buckets_that_do_not_fit_are_refused_with_what_would(text, words):
    with pytest.raises(ValueError, match=words):
        parse_buckets(text)


def test_buckets_follow_the_factors_of_the_checkpoint():
    assert parse_buckets("48x16x5", ScaleFactors(4, 16, 16)) == (Bucket(48, 16, 5),)
    with pytest.raises(ValueError):
        parse_buckets("48x16x5")
    assert parse_buckets(str(Bucket(96, 64, 17))) == parse_buckets(Bucket(96, 64, 17)) == (Bucket(96, 64, 17),)


BUCKETS = st.lists(
    st.builds(Bucket, *[st.integers(1, 40).map(lambda n: 32 * n)] * 2, st.integers(1, 16).map(lambda n: 8 * n + 1)),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(max_examples=200, deadline=None)
@given(BUCKETS, st.integers(16, 4000), st.integers(16, 4000), st.integers(1, 200))
def test_no_other_bucket_is_better_by_the_reference_rule(buckets, width, height, frames):
    fitting = [bucket for bucket in buckets if bucket.frames <= frames]
    if not fitting:
        with pytest.raises(MediaError) as caught:
            choose_bucket(buckets, width, height, frames)
        assert caught.value.reason == "too short"
        return
    chosen = choose_bucket(buckets, width, height, frames)

    def distance(bucket):
        return abs(math.log(width / height) - math.log(bucket.width / bucket.height))

    assert chosen in fitting and all(distance(chosen) <= distance(other) for other in fitting)
    alike = [other for other in fitting if distance(other) == distance(chosen)]
    assert chosen.frames == max(other.frames for other in alike)
    as_long = [other for other in alike if other.frames == chosen.frames]
    assert chosen.width * chosen.height == max(other.width * other.height for other in as_long)


def test_films_and_stills_keep_apart():
    buckets = parse_buckets("512x512x1;768x512x49")
    assert choose_bucket(buckets, 500, 500, 300).frames == 49
    assert choose_bucket(buckets, 768, 512, 1, still=True).frames == 1
    with pytest.raises(MediaError, match="shortest bucket needs 49"):
        choose_bucket(buckets, 500, 500, 20)  # too short, and not quietly a photograph
    with pytest.raises(MediaError, match="no bucket has 1 frame"):
        choose_bucket(buckets[1:], 500, 500, 1, still=True)
    assert choose_bucket(buckets[:1], 500, 500, 300).frames == 1  # only 1-frame buckets: that was asked for


@pytest.mark.parametrize(
    "frames, bucket",
    [
        (8, None),
        (9, "64x64x9"),
        (16, "64x64x9"),
        (17, "96x64x17"),
        (18, "96x64x17"),
    ],
)
def test_length_decides_at_the_edge(tmp_path, frames, bucket):
    info = probe(film(tmp_path / "a.mp4", frames, sound=False))
    if bucket is None:
        with pytest.raises(MediaError):
            plan_clip(info, parse_buckets(SMALL))
    else:
        assert str(plan_clip(info, parse_buckets(SMALL)).bucket) == bucket


def test_a_plan_counts_frames_after_resampling_and_inside_start_and_end(tmp_path):
    info, buckets = probe(film(tmp_path / "a.mp4", 50, sound=False)), parse_buckets("96x64x9;96x64x17;96x64x41")
    assert plan_clip(info, buckets).available == 50 and plan_clip(info, buckets, fps=12.5).available == 25
    plan = plan_clip(info, buckets, start=1.0, end=1.5)
    assert (plan.available, plan.start, plan.bucket.frames, plan.fps) == (13, 1.0, 9, Fraction(25))


def test_a_sample_is_read_at_the_size_of_its_bucket(tmp_path):
    frames = torch.arange(50, dtype=torch.uint8).reshape(-1, 1, 1, 1).mul(5).expand(-1, 3, 64, 200)
    path = write_video(tmp_path / "a.mp4", frames, 25, hum(2), 16000)
    clip, plan = read_sample(Sample("a", "x", {"video": path}, start=0.4), parse_buckets(SMALL))
    assert clip.frames.shape == (plan.bucket.frames, 3, 64, 96) and plan.bucket.frames == 17
    assert round(float(clip.frames[0].float().mean()) / 5) == 10  # 0.4 s at 25 fps
    assert clip.sound.shape == (2, int(Fraction(17, 25) * 16000))
    with_sound = Sample("a", "x", {"video": path, "audio": tmp_path / "a.wav"})
    assert read_sample(with_sound, parse_buckets(SMALL))[0].sound is None  # it has a sound file of its own
    with pytest.raises(MediaError, match="has no film"):
        read_sample(Sample("a", "x", {"audio": path}), parse_buckets(SMALL))


# the doctor


def test_the_shipped_clips_are_healthy():
    report = check_dataset(example_clips(), "128x64x33;64x96x17", decode=True)
    assert [finding.state for finding in report.findings] == ["ok"] * 6 and report.exit_code == 0
    assert {str(finding.plan.bucket) for finding in report.findings} == {"128x64x33", "64x96x17"}
    assert all(len(sample.caption) > 80 for sample in read_dataset(example_clips()))
    assert "Blender Foundation" in (example_clips() / "ATTRIBUTION.md").read_text("utf-8")
    assert sum(path.stat().st_size for path in example_clips().iterdir()) < 1_000_000


def make_silent(path):
    return captioned(film(path.with_suffix(".mp4"), sound=False))


def make_short(path):
    return captioned(film(path.with_suffix(".mp4"), frames=5))


def make_wordless(path):
    return film(path.with_suffix(".mp4"))


def make_corrupt(path):
    whole = film(path.with_suffix(".mp4")).read_bytes()
    path.with_suffix(".mp4").write_bytes(whole[-3000:])
    return captioned(path.with_suffix(".mp4"))


def make_still(path):
    return captioned(write_image(path.with_suffix(".png"), colours(1)[0]))


def make_tiny(path):
    return captioned(film(path.with_suffix(".mp4"), size=(32, 22)))


def make_banner(path):
    return captioned(film(path.with_suffix(".mp4"), size=(320, 64)))


def make_muffled(path):
    return captioned(write_video(path.with_suffix(".mp4"), colours(25), 25, hum(0.2), 16000))


def make_variable(path):
    path = path.with_suffix(".mp4")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 4 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = (40 * i if i < 20 else 800 + 120 * (i - 20)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return captioned(path)


@pytest.mark.parametrize(
    "make, state, reason",
    [
        (make_silent, "note", "silent"),
        (make_short, "no", "too short"),
        (make_wordless, "no", "no caption"),
        (make_corrupt, "no", "corrupt"),
        (make_still, "no", "still"),
        (make_tiny, "note", "enlarged"),
        (make_banner, "note", "cropped"),
        (make_muffled, "note", "sound ends early"),
        (make_variable, "note", "silent, variable rate"),
    ],
)
def test_the_doctor_names_what_is_wrong_and_looks_at_the_rest(tmp_path, make, state, reason):
    bad, good = make(tmp_path / "bad"), captioned(film(tmp_path / "good.mp4"))
    report = check_dataset(tmp_path, SMALL)
    found = {finding.id: (finding.state, finding.reason) for finding in report.findings}
    assert found == {bad.name: (state, reason), good.name: ("ok", "")}
    assert report.exit_code == (3 if state == "no" else 0) and good.name in report.usable
    remark = next(finding for finding in report.findings if finding.id == bad.name).cells()[-1]
    assert remark and str(tmp_path) not in remark
    assert bad.name in str(report) and reason.split(",")[0] in " ".join(report.summary()) + remark + reason


def test_missing_files_and_rows_without_media_are_findings_not_errors(tmp_path):
    film(tmp_path / "good.mp4")
    rows = [
        {"caption": "a", "video": "gone.mp4"},
        {"caption": "b"},
        {"caption": "c", "video": "good.mp4"},
        {"caption": "d", "video": "good.mp4", "reference_video": "gone.mp4"},
    ]
    report = check_dataset(write_rows(tmp_path, "json", rows), SMALL)
    assert [finding.state for finding in report.findings] == ["no", "no", "ok", "no"]
    assert "row 2" in report.findings[1].cells()[-1].lower() and "2 of" not in report.summary()[0]


def test_damage_inside_a_file_is_found_by_decoding(tmp_path):
    noise = torch.randint(0, 256, (25, 3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = bytearray(write_video(tmp_path / "a.mp4", noise, 25).read_bytes())
    data[len(data) // 3 : len(data) // 3 + 9000] = bytes(range(250)) * 36
    captioned(tmp_path / "a.mp4").write_bytes(data)
    assert only(check_dataset(tmp_path, SMALL, sound=False)).state == "ok"
    finding = only(check_dataset(tmp_path, SMALL, sound=False, decode=True))
    assert (finding.state, finding.reason) == ("no", "corrupt")


def test_options_change_what_counts(tmp_path):
    film(tmp_path / "a.mp4", sound=False)
    assert only(check_dataset(tmp_path, SMALL)).reason == "no caption"
    assert only(check_dataset(tmp_path, SMALL, empty_captions=True)).reason == "silent"
    assert only(check_dataset(tmp_path, SMALL, empty_captions=True, sound=False)).state == "ok"
    resampled = only(check_dataset(tmp_path, "96x64x9", fps=12.5, empty_captions=True, sound=False))
    assert resampled.reason == "resampled" and resampled.plan.available == 13
    assert only(check_dataset(tmp_path, empty_captions=True)).plan is None  # no buckets: only the files are looked at


def test_sound_alone_is_a_sample(tmp_path):
    captioned(write_sound(tmp_path / "song.wav", hum(2), 16000))
    finding = only(check_dataset(tmp_path, SMALL))
    assert finding.state == "ok" and "2.00 s" in finding.cells()[2]


def test_different_rates_are_told(tmp_path):
    for fps in 24, 25:
        captioned(film(tmp_path / f"{fps}.mp4", fps=fps))
    assert any("Frame rates differ: 24, 25" in line for line in check_dataset(tmp_path, SMALL).summary())


def test_every_sample_is_reported_once_as_it_is_seen(tmp_path):
    for name in "a", "b":
        captioned(film(tmp_path / f"{name}.mp4", sound=False))
    seen = []
    report = check_dataset(tmp_path, SMALL, seen=seen.append)
    assert tuple(seen) == report.findings and len(report.findings) == 2


def test_a_report_in_html_escapes_what_people_wrote():
    finding = check_sample(Sample("<b>.mp4", "x", {"video": Path("<i>.mp4")}))
    page = type(check_dataset(example_clips()))((finding,), "<set>")._repr_html_()
    assert "<b>.mp4" not in page and "&lt;b&gt;.mp4" in page and "&lt;set&gt;" in page and "&lt;i&gt;" in page


def test_unforeseen_trouble_with_one_sample_is_a_finding(tmp_path, monkeypatch):
    import ltx_nb.data.clips as clips

    def stumble(path):
        raise RuntimeError("a bug in the decoder")

    monkeypatch.setattr(clips, "probe", stumble)
    sample = Sample("a", "x", {"video": tmp_path / "a.mp4"})
    finding = only(check_dataset(Dataset(tmp_path, tmp_path, (sample,)), SMALL))
    assert (finding.state, finding.reason) == ("no", "error") and "a bug in the decoder" in finding.remarks[0]


# what comes with a clip


SHAPES = {
    (192, 108): True,
    (96, 54): True,
    (1920, 1080): True,
    (853, 480): True,
    (191, 108): True,
    (108, 192): False,
    (192, 120): False,
    (128, 64): True,
    (64, 32): True,
    (100, 100): False,
    (160, 96): False,
}


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_a_companion_has_the_shape_of_its_clip_or_of_the_bucket(size):
    info = MediaInfo(Path("clip.mp4"), 192, 108, 49, Fraction(24), duration=49 / 24)
    plan = plan_clip(info, [Bucket(128, 64, 17)])
    other = replace(info, width=size[0], height=size[1])
    if not SHAPES[size]:
        with pytest.raises(MediaError, match=f"is {size[0]}x{size[1]}, its clip 192x108") as caught:
            follow_plan(other, plan)
        assert caught.value.reason == "other shape"
    elif size in ((128, 64), (64, 32)):
        assert follow_plan(other, plan).lost == 0
    else:
        assert follow_plan(other, plan) == plan.cover


@pytest.mark.parametrize(
    ("role", "path", "reason"),
    [
        ("video_mask", "tall.mp4", "other shape"),
        ("reference_video", "tall.mp4", "other shape"),
        ("video_mask", "short.mp4", "too short"),
        ("reference_video", "short.mp4", "too short"),
        ("reference_video", "still.png", ""),
        ("video_mask", "still.png", ""),
        ("reference_audio", "short.mp4", "no sound"),
        ("audio_mask", "gone.txt", "missing"),
        ("video_mask", "gone.png", "missing"),
    ],
)
def test_the_doctor_looks_at_companions(tmp_path, role, path, reason):
    film(tmp_path / "clip.mp4")
    film(tmp_path / "tall.mp4", size=(64, 96), sound=False)
    film(tmp_path / "short.mp4", frames=8, sound=False)
    write_image(tmp_path / "still.png", torch.zeros(3, 64, 96, dtype=torch.uint8))
    sample = Sample("clip.mp4", "A clip.", {"video": tmp_path / "clip.mp4", role: tmp_path / path})
    finding = check_sample(sample, parse_buckets("64x64x17"))
    assert (finding.reason, finding.role) == (reason, role if reason else "")
    assert str(tmp_path) not in str(finding.remarks)
