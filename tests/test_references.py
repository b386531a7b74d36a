"References and masks made from clips: what they show, where they go, and what happens to a dataset on the way."

import base64
import csv
import json
import shutil

import pytest
import torch

from ltx_nb.data import references as chapter
from ltx_nb.data.clips import DatasetError, check_dataset, example_clips, parse_buckets, plan_clip, read_dataset
from ltx_nb.data.filters import brightness, canny, connected, crop, draw_pose, low_frame_rate, named_filters, palette
from ltx_nb.data.mask_shapes import border, brush, named_masks, random_boxes, random_brush
from ltx_nb.data.media import contact_sheet, probe, read_video, write_image, write_sound, write_video
from ltx_nb.data.prepare import prepare
from ltx_nb.data.references import companion_sheet, make_masks, make_references
from ltx_nb.data.roles import read_reference, read_video_mask
from ltx_nb.data.sheets import draw_sheet, write_sheets
from ltx_nb.data.store import list_records, read_record
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.tools.cli import main

CLIPS = ("bird_sings", "bow_snaps", "bunny_smiles")
# Canny's edges of `drawn()` by OpenCV 5.0.0 (`cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), low, high)`), as bits
OPENCV = {
    (
        100,
        200,
    ): "000001ONyC000001ONyC000002mlBG000002mlBG000002mlBG000002mlZP000005C9MX000025C9+o0000Tpa38O0002+cmO~I000AkL;yep00"
    "0I6f&hR7000aDfdGIA000OB0D%Aq000;Q0BHaa000mK08#)j000mS00sac001!<01N;?001Ij04M-J001Pw01yCx001d~05Ac7003qH0AK?E004{"
    "t0Kf(S001xm0e}Pm006)M17HX^00#g71^^$&05|{u01sdQ1Hb?P9`L{n`~Uz9aR2}a0015{fC+#S06*ct05bqG|G)qY044xp0003P09XLR000JH0"
    "k8pr001$70$>9N00E8w4S*~N01R*d698Bf0K<R)Yyq$*7(4(0m;z@^XTSgkU<HT(m;eA7gn|M;1^@tH00;fR2mk;F|M&p_5CCv|0DuA$2mg<N001"
    "Ba_y7O^5&+N{003kE?EeSg00V#k34lZh",
    (
        300,
        700,
    ): "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000u00000001Ay0000001sdQ000009`L{b0000CaR2}S0015{fB*mh06*ct00000|G)qM000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000006%0000000;fR00007|M&m^003}&0Du4h2mg<N000"
    "00_y7O^0000000000000000000000000",
}
OPENCV_LIGHT = 333392  # the sum of its grey levels


def drawn():
    "A picture out of whole numbers, `[1, 3, 48, 64]`."
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    red, green = (x * x * 3 + y * y * 5 + x * y) // 16 % 256, (x * 7 + y * y) // 4 % 256
    blue = ((x - 30) ** 2 + (y - 20) ** 2 < 150) * 200 + 20
    return torch.stack([red, green, blue])[None].to(torch.uint8)


def bits(text):
    data = torch.frombuffer(bytearray(base64.b85decode(text)), dtype=torch.uint8)
    return (data[:, None] >> torch.arange(7, -1, -1) & 1).bool().view(48, 64)


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in CLIPS:
        for suffix in ("mp4", "txt"):
            shutil.copy(example_clips() / f"{name}.{suffix}", folder)
    return folder


def listed(clips, kind, **more):
    "The clips as a dataset file beside their folder."
    rows = [{"video": f"clips/{name}.mp4", "caption": f"A film, {name}.", "note": "mine"} | more for name in CLIPS]
    path = clips.parent / f"dataset.{kind}"
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = json.dumps(rows) if kind == "json" else "\n".join(json.dumps(row) for row in rows)
        path.write_text(text, encoding="utf-8")
    return path


def states(report):
    return [item.state for item in report.items]


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


# filters


@pytest.mark.parametrize(("low", "high"), OPENCV)
def test_edges_are_those_of_opencv(low, high):
    assert brightness(drawn()).sum() == OPENCV_LIGHT
    assert torch.equal(canny(drawn(), low, high)[0, 0] > 0, bits(OPENCV[low, high]))


@pytest.mark.parametrize("name", named_filters)
@pytest.mark.parametrize("shape", [(1, 17, 9), (3, 8, 40), (2, 33, 32)])
def test_a_filter_keeps_the_shape_of_any_clip(name, shape):
    frames, height, width = shape
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)
    made = named_filters[name](clip)
    assert made.shape == clip.shape and made.dtype == torch.uint8


def test_what_hangs_together_does_not_reach_into_the_next_row_or_frame():
    possible = torch.zeros(2, 4, 5, dtype=torch.bool)
    possible[0, 1, 4] = possible[0, 2, 0] = possible[0, 3, 4] = possible[1, 0, 0] = True
    certain = torch.zeros_like(possible)
    certain[0, 1, 4] = True
    assert connected(certain, possible).nonzero().tolist() == [[0, 1, 4]]


def test_one_decision_for_all_frames():
    clip = torch.cat([drawn(), drawn() // 8])
    assert len(palette(clip, 5).movedim(1, -1).flatten(0, 2).unique(dim=0)) == 5
    together, alone = canny(clip, share=0.1), canny(clip[1:], share=0.1)
    assert (together[1] > 0).sum() < (alone[0] > 0).sum()  # the dark frame goes by the clip's thresholds, not its own


def test_held_frames_and_boxes():
    clip = torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1).expand(9, 3, 8, 8)
    assert low_frame_rate(clip, 4)[:, 0, 0, 0].tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 8]
    assert (crop(clip, "0,0,0.01,0.01")[:, :, 0, 0] == clip[:, :, 0, 0]).all()  # never empty


def test_a_point_that_was_not_found_is_not_drawn():
    points = torch.full((1, 2, 17, 3), float("nan"))
    assert not draw_pose(points, 32, 32).any()
    with pytest.raises(ValueError, match="17 or more"):
        draw_pose(torch.zeros(1, 1, 5, 2), 32, 32)


# masks


@pytest.mark.parametrize("name", named_masks)
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_a_mask_has_the_shape_of_its_clip_and_an_opposite(name, frames):
    clip = drawn().expand(frames, -1, -1, -1)
    more = [torch.Generator().manual_seed(0)] if "random" in name else []
    keep = named_masks[name](clip, *more)
    more = [torch.Generator().manual_seed(0)] if "random" in name else []
    assert keep.shape == (frames, 48, 64) and keep.dtype == torch.bool
    assert torch.equal(named_masks[name](clip, *more, invert=True), ~keep)


def test_a_brush_leaves_a_trail_as_long_as_it_is_told():
    clip = torch.zeros(41, 3, 32, 160, dtype=torch.uint8)
    paths = {
        trail: (~brush(clip, "0:0.1,0.5; 1:0.9,0.5", 0.3, trail))[20].any(0).sum().item() for trail in (0, 0.25, None)
    }
    assert paths[0] < paths[0.25] < paths[None] and abs(paths[0.25] - paths[0] - 32) < 6  # a quarter of 128 pixels


@pytest.mark.parametrize("kind", [random_boxes, random_brush])
def test_a_random_mask_follows_from_its_generator(kind):
    made = [kind(drawn(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_outpainting_keeps_the_middle():
    keep = border(drawn(), left=0.25, top=0.5, right=0.25, bottom=0)
    assert keep.float().mean() == 0.25 and keep[0, 47, 32] and not keep[0, 0, 32]


# over a dataset


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "folder"])
def test_a_dataset_of_any_kind_gets_its_references(clips, kind):
    source = clips if kind == "folder" else listed(clips, kind)
    report = make_references(source, "canny share=0.1")
    assert report.exit_code == 0 and states(report) == ["made"] * 3
    dataset = read_dataset(source)
    assert dataset.roles()["reference_video"] == 3
    for sample in dataset:
        beside, clip = (probe(sample.media[role]) for role in ("reference_video", "video"))
        assert (beside.frames, beside.fps, beside.width) == (clip.frames, clip.fps, clip.width)
    assert all(sheet.is_file() and clips not in sheet.parents for sheet in report.sheets)
    assert check_dataset(dataset, "64x64x17").exit_code == 0
    if kind != "folder":
        assert "note" in dataset.unused and source.with_name(f"{source.name}.bak").is_file()


def test_a_reference_is_in_step_with_its_clip(clips):
    "A film that counts its frames in grey; the reference of a window shows the same numbers."
    film = torch.arange(40, dtype=torch.uint8).mul(6).view(40, 1, 1, 1).expand(40, 3, 64, 64)
    write_video(clips / "counts.mp4", film, "30000/1001", quality=1)
    (clips / "counts.txt").write_text("It counts.", encoding="utf-8")
    make_references(clips, lambda frames: 255 - frames, sheet=False)
    plan = plan_clip(probe(clips / "counts.mp4"), parse_buckets("64x64x17"), start=0.4)
    clip = read_video(clips / "counts.mp4", plan.start, 17, size=plan.cover).frames.float().mean((1, 2, 3))
    beside = read_reference(clips / "counts.reference.mp4", plan).frames.float().mean((1, 2, 3))
    assert (clip + beside - 255).abs().max() < 3  # half of what one frame makes


def test_a_second_run_goes_on_and_notices_what_changed(clips):
    assert states(make_references(clips, "grey", sheet=False)) == ["made"] * 3
    made = {path: path.stat().st_mtime_ns for path in clips.glob("*.reference.mp4")}
    (clips / "bow_snaps.reference.mp4").unlink()
    shutil.copy(clips / "bunny_smiles.mp4", clips / "bird_sings.mp4")  # another film under the same name
    assert states(make_references(clips, "grey", sheet=False)) == ["redone", "made", "reused"]
    assert (clips / "bunny_smiles.reference.mp4").stat().st_mtime_ns == made[clips / "bunny_smiles.reference.mp4"]
    assert states(make_references(clips, "blur", sheet=False)) == ["redone"] * 3
    copied = shutil.copytree(clips, clips.parent / "moved", copy_function=shutil.copy)  # other times, the same bytes
    assert states(make_references(copied, "blur", sheet=False)) == ["reused"] * 3


def test_what_somebody_else_made_stays_unless_it_is_said(clips):
    write_image(clips / "bird_sings.mask.png", contact_sheet(drawn(), 1))
    before = (clips / "bird_sings.mask.png").read_bytes()
    report = make_masks(clips, "box", sheet=False)
    assert states(report) == ["kept", "made", "made"] and "not ours" in str(report)
    assert (clips / "bird_sings.mask.png").read_bytes() == before
    assert states(make_masks(clips, "box", overwrite=True, sheet=False)) == ["redone"] * 3
    assert (clips / "bird_sings.mask.png").read_bytes() != before


def test_a_row_that_names_a_reference_keeps_it(clips):
    write_video(clips.parent / "own.mp4", read_video(clips / "bow_snaps.mp4").frames, 24)
    source = listed(clips, "jsonl", reference_video="own.mp4")
    assert states(make_references(source, "grey", sheet=False)) == ["kept"] * 3
    assert {sample.media["reference_video"].name for sample in read_dataset(source)} == {"own.mp4"}


def test_a_mask_that_begins_to_move_leaves_no_still_one_behind(clips):
    make_masks(clips, "box", sheet=False)
    assert len(list(clips.glob("*.mask.png"))) == 3
    assert states(make_masks(clips, "moving_box", sheet=False)) == ["redone"] * 3
    assert not list(clips.glob("*.mask.png")) and read_dataset(clips).roles()["video_mask"] == 3


def test_one_bad_clip_stops_no_other(clips):
    (clips / "broken.mp4").write_bytes((clips / "bird_sings.mp4").read_bytes()[5000:])
    write_sound(clips / "song.wav", torch.zeros(2, 4000), 8000)
    write_image(clips / "still.png", drawn()[0])
    report = make_references(clips, "grey")
    assert states(report) == ["made", "made", "failed", "made", "none", "made"] and report.exit_code == 3
    assert probe(clips / "still.reference.png").still and not list(clips.glob("broken.reference*"))
    assert any(line.startswith("Failed: broken.mp4: broken.mp4 cannot be decoded") for line in report.summary())


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (lambda frames: frames[:3], "other length"),
        (lambda frames: frames[..., :50], "other shape"),
        (lambda frames: frames * 2.0, "other range"),
        (lambda frames: None, "other shape"),
        (lambda frames: 1 / 0, "error"),
    ],
    ids=["frames", "shape", "range", "nothing", "raises"],
)
def test_a_function_that_goes_wrong_is_told_for_every_clip(clips, own, reason):
    report = make_references(clips, own)
    assert [item.reason for item in report.items] == [reason] * 3 and report.exit_code == 3
    assert not list(clips.glob("*.reference*")) and report.sheets == ()


def test_a_function_gets_what_it_asks_for(clips):
    told = []

    def own(frames, fps, name, generator):
        told.append((float(fps), name, torch.rand(1, generator=generator).item()))
        return frames

    make_references(clips, own, sheet=False)
    first = list(told)
    make_references(clips, own, overwrite=True, sheet=False)
    assert told[3:] == first and [name for _, name, _ in first] == [f"{name}.mp4" for name in CLIPS]
    assert len({number for *_, number in first}) == 3


def test_a_stopped_run_leaves_what_is_whole_and_goes_on(clips, monkeypatch):
    real, calls = chapter.write_video, []

    def stop(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(chapter, "write_video", stop)
    with pytest.raises(KeyboardInterrupt):
        make_references(clips, "grey", sheet=False)
    assert sorted(path.name for path in clips.glob("*.reference*")) == [
        "bird_sings.reference.mp4",
        "bow_snaps.reference.mp4",
    ]
    monkeypatch.undo()
    assert states(make_references(clips, "grey", sheet=False)) == ["reused", "reused", "made"]


def test_names_never_leave_their_folder(clips):
    inner = clips.parent / "inner"
    inner.mkdir()
    rows = [
        {"video": "../clips/bird_sings.mp4", "caption": "x"},
        {"video": str(clips / "bow_snaps.mp4"), "caption": "y"},
    ]
    (inner / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    report = make_references(inner / "rows.json", "grey", sheet=False)
    assert states(report) == ["made", "made"]
    assert all(inner / "references" in item.path.resolve().parents for item in report.items)
    assert len(list(clips.iterdir())) == 6


def test_films_of_one_name_are_told_apart(clips):
    shutil.copy(clips / "bow_snaps.mp4", clips / "bird_sings.mov")
    report = make_references(clips, "grey", sheet=False)
    assert [item.reason for item in report.items] == ["same name", "same name", "", ""]
    rows = [{"video": f"clips/bird_sings.{kind}", "caption": "x"} for kind in ("mp4", "mov")]
    (clips.parent / "both.json").write_text(json.dumps(rows), encoding="utf-8")
    report = make_references(clips.parent / "both.json", "grey", sheet=False)
    assert states(report) == ["made", "made"] and len({item.path for item in report.items}) == 2


def test_two_windows_of_one_film_share_its_reference(clips):
    rows = [{"video": "clips/bird_sings.mp4", "caption": "x", "start": start} for start in (0, 0.5)]
    (clips.parent / "two.json").write_text(json.dumps(rows), encoding="utf-8")
    report = make_references(clips.parent / "two.json", "grey", sheet=False)
    assert states(report) == ["made", "made"] and report.items[0].path == report.items[1].path


def test_a_new_file_leaves_the_old_one_alone(clips):
    source, target = listed(clips, "csv"), clips.parent / "elsewhere" / "pairs.csv"
    before = source.read_bytes()
    assert make_references(source, "grey", target, sheet=False).exit_code == 0
    assert source.read_bytes() == before and not (clips.parent / "references").exists()
    dataset = read_dataset(target)
    assert dataset.roles() == {"caption": 3, "video": 3, "reference_video": 3} and "note" in dataset.unused
    assert check_dataset(dataset, "64x64x17").exit_code == 0
    assert states(make_references(source, "grey", target, sheet=False)) == ["reused"] * 3
    with pytest.raises(DatasetError, match="same kind"):
        make_references(source, "grey", target.with_suffix(".json"))
    with pytest.raises(DatasetError, match="beside the clips"):
        make_references(clips, "grey", target)


def test_a_csv_of_a_spreadsheet_stays_as_it_was(clips):
    shutil.copy(clips / "bow_snaps.mp4", clips.parent / "own.mp4")
    lines = [
        "media_path,caption,ref_media_path",
        'clips/bird_sings.mp4,"One, two",',
        "clips/bow_snaps.mp4,Three,own.mp4",
        "",
    ]
    path = clips.parent / "sheet.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert states(make_references(path, "grey", sheet=False)) == ["made", "kept"]
    lines[1] += "references/clips/bird_sings.mp4"
    assert path.read_bytes() == "\r\n".join(lines).encode()  # the older column, which the dataset uses


# what prepare makes of them


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_a_preparation_reads_what_was_made(clips, tiny):
    make_references(clips, "canny", sheet=False)
    make_masks(clips, "border left=0.5 right=0", sheet=False)
    report = prepare(clips, clips.parent / "data", tiny.model, tiny.text_encoder, "128x64x9", with_audio=False)
    assert (
        report.exit_code == 0 and report.count("made", "reference_latents") == report.count("made", "video_masks") == 3
    )
    for path in list_records(clips.parent / "data" / "video_masks").values():
        mask = read_record(path)["mask"]
        assert mask.shape == (2, 2, 4) and (mask == torch.tensor([0, 0, 1, 1])).all()


def test_a_mask_is_read_as_it_was_drawn(clips):
    make_masks(clips, "moving_box path='0:0,0,0.34,0.5; 1:0.66,0.5,1,1'", sheet=False)
    plan = plan_clip(probe(clips / "bow_snaps.mp4"), parse_buckets("192x96x33"))
    mask = read_video_mask(clips / "bow_snaps.mask.mp4", plan, keep="majority")
    assert not mask[0, 0, 0] and mask[0, 2, 5] and mask[-1, 0, 0] and not mask[-1, 2, 4]


# sheets


def test_a_sheet_takes_any_name_and_any_picture(tmp_path):
    blocks = [("a $x_1$ \u202e\n<b> \u732b", {"": torch.zeros(3, 1, 900, dtype=torch.uint8)}), ("", {})]
    assert draw_sheet(blocks, width=300).shape[2] == 300
    assert len(write_sheets(tmp_path / "s", blocks, page=1)) == 2
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_sheet([])


def test_a_sheet_of_a_dataset_with_gaps(clips):
    make_masks(clips, "box", sheet=False)
    (clips / "bow_snaps.mask.png").unlink()
    (clips / "bunny_smiles.mp4").write_bytes(b"no film")
    (sheet,) = companion_sheet(clips, clips.parent / "look.png")
    assert probe(sheet).height > 100


# from a shell


def test_the_commands(capsys, clips):
    code, out, _ = command(capsys, "reference", clips, "blur", "canny low=20 high=60", "--progress", "none")
    assert (
        code == 0
        and "3 of 3 samples have a reference" in out
        and "blur | canny" in out
        and "clips.references.png" in out
    )
    (clips / "bad.mp4").write_bytes(b"no film")
    code, out, _ = command(capsys, "mask", clips, "random_brush", "--seed", "3", "--no-sheet", "--progress", "none")
    assert code == 3 and "Failed: bad.mp4" in out and not list(clips.parent.glob("*.masks.png"))
    own = clips.parent / "own.py"
    own.write_text("def upside_down(frames):\n    return frames.flip(2)\n", encoding="utf-8")
    code, out, _ = command(capsys, "reference", clips, f"{own}:upside_down", "--override", "--progress", "none")
    assert code == 3 and "3 redone, 1 failed" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reference", "nowhere"], "nowhere does not exist"),
        (["reference", "CLIPS", "sharpen"], "There is no 'sharpen'; there are canny"),
        (["reference", "CLIPS", "canny high=20"], "0 <= low <= high"),
        (["reference", "CLIPS", "lost.py:f"], "there is no file lost.py"),
        (["reference", "CLIPS", "depth folder=lost"], "holds no config.json"),
        (["mask", "CLIPS", "box box=1,2,3,4"], "shares of the picture"),
        (["mask", "CLIPS", "box", "-o", "new.csv"], "beside the clips"),
    ],
)
def test_a_wrong_command_is_answered_in_a_sentence(capsys, clips, arguments, words):
    code, _, err = command(capsys, *[clips if word == "CLIPS" else word for word in arguments], "--progress", "none")
    assert code == 1 and err.startswith("error: ") and words in err and "Traceback" not in err
    assert len(list(clips.iterdir())) == 6
