"Decoding a prepared dataset: what people see of it, whoever made it, and what is measured."

import json
import math
import shutil

import pytest
import torch

from ltx_nb.data.clips import read_dataset
from ltx_nb.data.decode import Decoders, beside, decode, find_stored, over_picture, picture_likeness, sound_distance
from ltx_nb.data.media import probe, read_video, write_image, write_sound
from ltx_nb.data.prepare import prepare
from ltx_nb.data.references import make_masks, make_references
from ltx_nb.data.store import list_records, read_record
from ltx_nb.data.tasks import Quiet
from ltx_nb.tiny.checkpoint import tiny_checkpoint
from ltx_nb.tiny.world import sample_scenes, write_dataset
from ltx_nb.tools.cli import main

SIZE = "64x64x17"
# The trained tiny autoencoder: 23 to 27 dB on its own world; another clip of the same world is below 16.
LIKE = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Three clips of the tiny world with references and masks, prepared by its trained checkpoint."
    folder = tmp_path_factory.mktemp("decode")
    write_dataset(folder / "clips", sample_scenes("base", 3, seed=2))
    make_references(folder / "clips", "blur sigma=0.05", sheet=False)
    make_masks(folder / "clips", "border left=0 right=0.5", sheet=False)
    tiny = tiny_checkpoint()
    assert prepare(folder / "clips", folder / "data", tiny.model, tiny.text_encoder, SIZE).exit_code == 0
    return folder


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return tiny_checkpoint().model


def as_theirs(store, target):
    "The same records as the LTX Trainer keeps them: `.pt`, no manifest, names without suffix."
    for role in ("latents", "audio_latents", "reference_latents", "video_masks"):
        for name, path in list_records(store / role).items():
            where = target / ".precomputed" / role / f"{name.removesuffix('.mp4')}.pt"
            where.parent.mkdir(parents=True, exist_ok=True)
            record = read_record(path)
            torch.save(record | ({"mask": record["mask"].float()} if "mask" in record else {}), where)
    return target


def test_every_role_comes_back_and_looks_like_what_went_in(place, model):
    report = decode(place / "data", place / "seen", model, device="cpu")
    assert report.exit_code == 0 and len(report.samples) == 3
    for sample in report.samples:
        assert min(sample.likeness, sample.reference_likeness) > LIKE and sample.distance < 8
        assert sample.size == SIZE and sample.kept == 0.5 and sample.caption and not sample.remarks
        film, reference, row = (probe(place / "seen" / name) for name in sample.files)
        assert film.frames == reference.frames == 17 and film.has_sound and row.width == 3 * 64
    assert (place / "seen" / "index.html").read_text("utf-8").count("<video controls") == 9


def test_the_films_hold_what_is_measured(place, made, model):
    report = decode(place / "data", place / "seen", model, device="cpu", limit=1)
    (sample,) = report.samples
    source = read_video(made / "clips" / sample.id, size=(64, 64))
    film = read_video(place / "seen" / sample.files[0])
    assert picture_likeness(film.frames, source.frames) > LIKE
    assert sound_distance((film.sound, film.sample_rate), (source.sound, source.sample_rate)) < 8
    other = read_video(made / "clips" / read_dataset(made / "clips").samples[1].id, size=(64, 64))
    assert picture_likeness(film.frames, other.frames) < 16


@pytest.mark.parametrize("named", [True, False], ids=["clips", "alone"])
def test_a_store_of_the_ltx_trainer(place, made, model, named):
    store = as_theirs(made / "data", place / "theirs")
    report = decode(store, place / "seen", model, clips=made / "clips" if named else None, device="cpu")
    assert report.exit_code == 0 and all(len(sample.files) == 3 and sample.kept == 0.5 for sample in report.samples)
    assert all((sample.likeness is not None) == named for sample in report.samples)
    assert any("name them (`--clips`)" in line for line in report.summary()) != named
    assert not named or min(sample.likeness for sample in report.samples) > LIKE


def test_one_folder_of_a_store_is_enough(place, made, model):
    store = as_theirs(made / "data", place / "theirs")
    report = decode(store / ".precomputed" / "latents", place / "seen", model, device="cpu")
    assert all(len(sample.files) == 1 and sample.seconds for sample in report.samples)


def test_old_rows_of_tokens_are_read(place, model):
    (path, *rest) = list_records(place / "data" / "latents").values()
    record = read_record(path)
    old = {k: v for k, v in record.items() if k != "latents"} | {"latents": record["latents"].flatten(1).T.contiguous()}
    (place / "old" / "latents").mkdir(parents=True)
    torch.save(old, place / "old" / "latents" / "a.pt")
    (sample,) = decode(place / "old", model=model, device="cpu").samples
    assert sample.size == SIZE and sample.state == "decoded"


def test_a_second_run_decodes_only_what_changed(place, made, model):
    first = decode(place / "data", place / "seen", model, device="cpu")
    times = {name: (place / "seen" / name).stat().st_mtime_ns for s in first.samples for name in s.files}
    (place / "seen" / first.samples[0].files[0]).unlink()
    path = list_records(place / "data" / "video_masks")[first.samples[1].id]
    record = path.read_bytes()
    path.write_bytes(record)  # another time
    second = decode(place / "data", place / "seen", model, device="cpu")
    assert [sample.state for sample in second.samples] == ["decoded", "decoded", "reused"]
    assert second.samples[2].likeness == first.samples[2].likeness
    kept = second.samples[2].files
    assert all((place / "seen" / name).stat().st_mtime_ns == times[name] for name in kept)
    assert all(
        s.state == "decoded"
        for s in decode(place / "data", place / "seen", model, device="cpu", overwrite=True).samples
    )


def test_a_few_samples_now_and_all_of_them_later(place, model):
    assert len(decode(place / "data", place / "seen", model, device="cpu", limit=2).samples) == 2
    states = [sample.state for sample in decode(place / "data", place / "seen", model, device="cpu", limit=1).samples]
    assert states == ["reused"]
    states = [sample.state for sample in decode(place / "data", place / "seen", model, device="cpu").samples]
    assert states == ["reused", "decoded", "reused"]


def test_a_stopped_run_goes_on(place, model):
    class Stop(Quiet):
        left = 2

        def advance(self, count=1, detail=None):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(place / "data", place / "seen", model, device="cpu", progress=Stop())
    states = [sample.state for sample in decode(place / "data", place / "seen", model, device="cpu").samples]
    assert states == ["reused", "reused", "decoded"]


def test_tiles_change_nothing_in_what_fits_into_one(place, model):
    record = read_record(list(list_records(place / "data" / "latents").values())[0])
    whole, tiled = (Decoders(model, "cpu", tiling=tiling).pictures(record) for tiling in (False, True))
    assert torch.equal(whole, tiled)
    large = {"latents": record["latents"].repeat(1, 1, 9, 9)}  # 576 pixels, two tiles each way
    whole, tiled = (Decoders(model, "cpu", tiling=tiling).pictures(large) for tiling in (False, True))
    assert whole.shape == tiled.shape == (17, 3, 576, 576) and picture_likeness(tiled, whole) > 30


def test_damaged_records_are_told_and_stop_no_other(place, model):
    latents = list(list_records(place / "data" / "latents").values())
    latents[0].write_bytes(latents[0].read_bytes()[:500])
    latents[1].unlink()  # sound and mask alone
    report = decode(place / "data", place / "seen", model, device="cpu")
    assert [sample.state for sample in report.samples] == ["failed", "decoded", "decoded"] and report.exit_code == 3
    assert "latents cannot be read" in report.samples[0].remarks[0] and len(report.samples[0].remarks[0]) < 300
    assert report.samples[1].files[0].endswith(".wav") and any(line.startswith("Failed") for line in report.summary())


def test_a_file_that_would_run_code_is_refused(place, model):
    class Evil:
        def __reduce__(self):
            return (open, (str(place / "was_here"), "w"))

    (place / "evil" / "latents").mkdir(parents=True)
    torch.save({"latents": Evil()}, place / "evil" / "latents" / "a.pt")
    report = decode(place / "evil", model=model, device="cpu")
    assert report.exit_code == 3 and not (place / "was_here").exists()


def test_oddities_are_remarked(place, model):
    names = list(list_records(place / "data" / "latents"))
    store = as_theirs(place / "data", place / "theirs") / ".precomputed"
    stems = [name.removesuffix(".mp4") for name in names]
    record = torch.load(store / "latents" / f"{stems[0]}.pt")
    torch.save(record | {"latents": record["latents"] * 9}, store / "latents" / f"{stems[0]}.pt")
    record.pop("fps")
    torch.save(record, store / "latents" / f"{stems[1]}.pt")
    remarks = [" ".join(s.remarks) for s in decode(store, place / "seen", model, device="cpu").samples]
    assert "spread" in remarks[0] and "no frame rate" in remarks[1] and remarks[2] == ""


def test_a_clip_that_changed_is_not_compared(place, made, model):
    shutil.copytree(made / "clips", place / "clips")
    tiny = tiny_checkpoint()
    prepare(place / "clips", place / "fresh", tiny.model, tiny.text_encoder, SIZE, with_audio=False)
    first, second, third = read_dataset(place / "clips").samples
    first.main.write_bytes(first.main.read_bytes() + b"more")
    second.main.unlink()
    report = decode(place / "fresh", place / "seen", model, device="cpu")
    assert [sample.likeness is None for sample in report.samples] == [True, True, False]
    assert "changed since" in report.samples[0].remarks[0] and report.exit_code == 0


def test_stills_and_sounds_alone(tmp_path, model):
    (tmp_path / "clips").mkdir()
    picture = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    write_image(tmp_path / "clips" / "still.png", picture)
    write_sound(tmp_path / "clips" / "tone.wav", torch.sin(torch.arange(16000) / 5)[None] / 2, 16000)
    for name in ("still", "tone"):
        (tmp_path / "clips" / f"{name}.txt").write_text("One thing.", encoding="utf-8")
    tiny = tiny_checkpoint()
    prepare(tmp_path / "clips", tmp_path / "data", tiny.model, tiny.text_encoder, "64x64x1")
    report = decode(tmp_path / "data", model=model, device="cpu")
    assert [sample.files for sample in report.samples] == [("films/still.png",), ("films/tone.wav",)]
    assert report.samples[0].fps == 0 and report.samples[1].size == "" and report.samples[1].seconds == 1


def test_a_mask_of_sound_is_told_and_shown(made, tmp_path, model):
    clip = read_dataset(made / "clips").samples[0].main
    rows = [
        {"video": str(clip), "caption": "x", "audio_mask": "0-0.71", "id": "a"},
        {"video": str(clip), "caption": "y", "id": "b"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    tiny = tiny_checkpoint()
    prepare(tmp_path / "rows.json", tmp_path / "data", tiny.model, tiny.text_encoder, SIZE)
    one, two = decode(tmp_path / "data", model=model, device="cpu").samples
    assert 0.4 < one.kept_sound < 0.55 and one.kept is None and two.kept_sound is None
    heights = [probe(tmp_path / "data" / "decoded" / "sheets" / f"{name}.png").height for name in "ab"]
    assert heights[0] > heights[1] + 40  # a line more


def test_names_are_shown_as_text(place, model):
    store = place / "odd" / "latents"
    store.mkdir(parents=True)
    (path, *_) = list_records(place / "data" / "latents").values()
    shutil.copy(path, store / "a & <b> 100%#2.safetensors")
    report = decode(place / "odd", model=model, device="cpu")
    page = (report.output / "index.html").read_text("utf-8")
    assert (
        "a &amp; &lt;b&gt; 100%#2" in page and "<b>" not in page and "films/a%20%26%20%3Cb%3E%20100%25%232.mp4" in page
    )


def test_nothing_to_decode_is_said(tmp_path, model):
    (tmp_path / "data" / "conditions").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no latents and no masks; its folders: conditions"):
        find_stored(tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        decode(tmp_path / "nowhere", model=model)


def test_a_mask_over_time():
    mask = torch.tensor([1.0, 0.0, 1.0])[:, None, None].expand(-1, 1, 1)
    shown = over_picture(torch.full((17, 3, 4, 4), 100, dtype=torch.uint8), mask)[:, 0, 0, 0]
    assert shown.tolist() == [100] + [20] * 8 + [100] * 8
    assert over_picture(torch.full((1, 3, 4, 4), 100, dtype=torch.uint8), mask[:1]).amin() == 100


def test_films_of_other_sizes_stand_beside_each_other():
    films = [torch.zeros(5, 3, 20, 30, dtype=torch.uint8), torch.zeros(9, 3, 40, 40, dtype=torch.uint8)]
    assert beside(films, like=1).shape == (9, 3, 40, 100) and beside(films).shape == (5, 3, 20, 50)
    assert picture_likeness(films[0], films[0]) == math.inf


def test_the_command(capsys, place, made):
    with pytest.raises(SystemExit) as end:
        main(
            [
                "decode",
                str(place / "data"),
                str(place / "seen"),
                "--model",
                "tiny",
                "--limit",
                "2",
                "--progress",
                "none",
            ]
        )
    out, _ = capsys.readouterr()
    assert end.value.code == 0 and "2 of 2 samples" in out and "dB PSNR" in out
    rows = json.loads((place / "seen" / "report.json").read_text("utf-8"))["samples"]
    assert len(rows) == 2 and rows[0]["likeness"] > LIKE
    with pytest.raises(SystemExit) as end:
        main(["decode", str(place / "lost"), "--model", "tiny"])
    assert end.value.code == 1 and "does not exist" in capsys.readouterr().err


def test_a_folder_for_the_ltx_trainer_from_a_shell(capsys, place, made):
    def call(*words):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        return end.value.code, capsys.readouterr()

    ask = ["prepare", made / "clips", "-o", place / "theirs", "--model", "tiny", "--resolution-buckets", SIZE]
    ask += ["--no-with-audio", "--progress", "none", "--for"]
    assert call(*ask, "ltx-trainer")[0] == 0 and len(list((place / "theirs").rglob("*.pt"))) == 12
    code, (out, _) = call("decode", place / "theirs", place / "seen", "--model", "tiny", "--progress", "none")
    rows = json.loads((place / "seen" / "report.json").read_text("utf-8"))["samples"]
    assert code == 0 and min(row["likeness"] for row in rows) > LIKE
    code, (_, err) = call(*ask, "comfy")
    assert code == 1 and err.startswith("error: A dataset is prepared for ltx_nb or ltx-trainer")
