"Preparation: from clips to a store, again and again, through every kind of trouble."

import errno
import json
import re
import shutil
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_nb.data import encode as encode_chapter
from ltx_nb.data import prepare as chapter
from ltx_nb.data import store as store_chapter
from ltx_nb.data.batches import PrecomputedDataset, collate
from ltx_nb.data.clips import example_clips, parse_buckets, plan_clip
from ltx_nb.data.media import probe, read_sound, read_video, write_image, write_sound, write_video
from ltx_nb.data.prepare import prepare
from ltx_nb.data.roles import read_reference
from ltx_nb.data.store import Manifest, check_checkpoint, checkpoint_identity, list_records, read_record, record_path
from ltx_nb.data.tasks import PrepareError, Quiet
from ltx_nb.loading import checkpoint as loading
from ltx_nb.loading.checkpoint import read_metadata
from ltx_nb.model.audio_vae import encode_audio
from ltx_nb.model.tiling import encode_video
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.training.dataset import contexts_of

ROLES = ("conditions", "latents", "audio_latents")
CLIPS = ("bird_sings", "bow_snaps", "bunny_smiles")
SMALL = "64x64x9"
# Latents of sound, up to 1.6, from convolutions over another length and hence in another order: measured 1.3e-6 with each
# of PyTorch's and oneDNN's instruction sets. Silence in place of sound differs by 0.9.
AUDIO_ROUNDING = dict(atol=1e-4, rtol=0)
# Contexts, up to 5, in bfloat16, whose steps are 0.03 there: one step. Another caption differs by 4.
CONTEXT_ROUNDING = dict(atol=0.02, rtol=0.02)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny):
    "Three clips and their store, made without a stop."
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "clips").mkdir()
    for name in CLIPS:
        for suffix in "mp4", "txt":
            shutil.copy2(example_clips() / f"{name}.{suffix}", folder / "clips")
    report = prepare(folder / "clips", folder / "data", tiny.model, tiny.text_encoder, SMALL)
    assert report.exit_code == 0
    return folder


@pytest.fixture
def place(prepared, tmp_path):
    "A copy of them to work on."
    shutil.copytree(prepared, tmp_path / "place")
    return tmp_path / "place"


def again(place, tiny, buckets=SMALL, clips="clips", **options):
    return prepare(
        place / clips, place / "data", options.pop("model", tiny.model), tiny.text_encoder, buckets, **options
    )


def record(place, role, name):
    return read_record(record_path(place / "data", role, name))


def contents(place):
    return {
        path.relative_to(place / "data").as_posix(): path.read_bytes()
        for role in ROLES
        for path in list_records(place / "data" / role).values()
    }


def counts(report, state):
    return tuple(report.count(state, role) for role in ROLES)


def nothing_loads(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a component was loaded")

    for name in ("open_text_encoder", "open_connectors", "load_video_vae_encoder", "load_audio_vae_encoder"):
        monkeypatch.setattr(chapter, name, refuse)


def full_after(monkeypatch, records):
    "A disk that takes so many records and no more."
    real, written = store_chapter.save_file, []

    def save(tensors, path, metadata):
        if len(written) == records:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        real(tensors, path, metadata)

    monkeypatch.setattr(store_chapter, "save_file", save)


# what is made


def test_shapes_types_and_values(prepared, tiny):
    data = PrecomputedDataset(prepared / "data", list(ROLES))
    assert len(data) == 3 and not data.dropped
    batch = collate([data[i] for i in range(3)])
    video, audio, text = batch["latents"], batch["audio_latents"], batch["conditions"]
    assert video["latents"].shape == (3, 128, 2, 2, 2) and video["latents"].dtype == torch.bfloat16
    assert audio["latents"].shape == (3, 8, 9, 16) and audio["latents"].dtype == torch.float32
    assert text["video_context"].dtype == text["audio_context"].dtype == torch.bfloat16
    assert (text["video_context"].shape[-1], text["audio_context"].shape[-1]) == (128, 64)
    assert video["fps"].tolist() == [24.0] * 3 and audio["duration"].tolist() == pytest.approx([9 / 24] * 3)
    assert [video[name].tolist() for name in ("num_frames", "height", "width")] == [[2] * 3] * 3
    identity = checkpoint_identity(tiny.model, tiny.text_encoder)
    assert check_checkpoint(prepared / "data", identity, ROLES) == []


def test_latents_are_those_of_the_pictures(prepared, tiny):
    encoder = loading.load_video_vae_encoder(tiny.model, dtype=torch.float32)
    clip = read_video(prepared / "clips" / "bow_snaps.mp4", frames=9, size=(64, 64))
    with torch.no_grad():
        expected = encode_video(encoder, clip.pixels()[None])[0]
    torch.testing.assert_close(record(prepared, "latents", "bow_snaps.mp4")["latents"], expected.bfloat16())


def test_contexts_are_those_of_the_caption(prepared, tiny):
    processor = loading.load_embeddings_processor(tiny.model, dtype=torch.float32)
    encoder = loading.load_text_encoder(tiny.text_encoder, dtype=torch.float32, embeddings_processor=processor)
    for name in CLIPS:
        context = encoder((prepared / "clips" / f"{name}.txt").read_text("utf-8").strip())
        found = record(prepared, "conditions", f"{name}.mp4")
        assert torch.equal(found["video_context"], context.video[0].bfloat16())
        assert torch.equal(found["audio_context"], context.audio[0].bfloat16())


@pytest.mark.parametrize("start", [0.0, 0.52])
def test_sound_is_that_of_the_window(place, tiny, start):
    path = place / "clips" / "bird_sings.mp4"
    rows = [{"video": path.name, "caption": "A bird.", "start": start}]
    (place / "clips" / "list.json").write_text(json.dumps(rows), "utf-8")
    again(place, tiny, clips="clips/list.json")
    seconds = Fraction(9, 24)
    sound, rate = read_sound(path, Fraction(int(start * 24), 24), seconds)
    encoder = loading.load_audio_vae_encoder(tiny.model, dtype=torch.float32)
    expected = encode_audio(encoder, sound[None], rate, float(seconds))[0]
    assert torch.equal(record(place, "audio_latents", path.name)["latents"], expected)


def test_rate_is_resampled_and_kept_in_time(place, tiny):
    again(place, tiny, fps="12")
    assert record(place, "latents", "bird_sings.mp4")["fps"] == 12.0
    sound = record(place, "audio_latents", "bird_sings.mp4")
    assert sound["duration"] == 9 / 12 and sound["latents"].shape[1] == round(25 * 9 / 12)


def test_sizes_are_found_where_none_are_given(prepared, tiny, tmp_path):
    report = prepare(prepared / "clips", tmp_path, tiny.model, tiny.text_encoder)
    shapes = {
        name: tuple(read_record(path)["latents"].shape) for name, path in list_records(tmp_path / "latents").items()
    }
    assert shapes == {
        "bird_sings.mp4": (128, 5, 3, 6),
        "bow_snaps.mp4": (128, 5, 3, 6),
        "bunny_smiles.mp4": (128, 4, 4, 3),
    }
    assert report.exit_code == 0


def test_same_caption_is_encoded_once(place, tiny, monkeypatch):
    for path in (place / "clips").glob("*.txt"):
        path.write_text("The same words.", "utf-8")
    seen = []
    real = chapter.encode_captions
    monkeypatch.setattr(
        chapter, "encode_captions", lambda gemma, texts, *more: seen.extend(texts) or real(gemma, texts, *more)
    )
    again(place, tiny)
    assert seen == ["The same words."]
    first, *others = (record(place, "conditions", f"{name}.mp4")["video_context"] for name in CLIPS)
    assert all(torch.equal(first, other) for other in others)


# for the LTX Trainer


def test_a_folder_for_the_ltx_trainer(place, tiny):
    "Names, shapes, types: spec data 3.2, 3.4, 4.2; the numbers are those of our own store and of our own text encoder."
    source = place / "clips" / "bird_sings.mp4"
    write_image(source.with_suffix(".mask.png"), torch.cat([torch.ones(3, 108, 110), torch.zeros(3, 108, 82)], 2))
    again(place, tiny)
    report = prepare(place / "clips", place / "theirs", tiny.model, tiny.text_encoder, SMALL, target="ltx-trainer")
    assert report.exit_code == 0 and not list((place / "theirs").rglob("*.safetensors"))
    folders = {folder: sorted(list_records(place / "theirs" / folder)) for folder in (*ROLES, "video_masks")}
    assert [len(names) for names in folders.values()] == [3, 3, 3, 1]
    name = "bird_sings.mp4"
    raw = {f: torch.load(place / "theirs" / f / f"{name}.pt", weights_only=True) for f in folders}
    for role in ("latents", "audio_latents"):
        ours = record(place, role, name)
        assert raw[role].keys() == ours.keys() and torch.equal(raw[role]["latents"], ours["latents"])
        assert all(type(raw[role][key]) is type(ours[key]) for key in ours)
    assert raw["video_masks"]["mask"].dtype == torch.float32
    assert sorted(raw["conditions"]) == ["audio_prompt_embeds", "prompt_attention_mask", "video_prompt_embeds"]
    context = contexts_of(raw["conditions"], loading.load_embeddings_processor(tiny.model, dtype=torch.float32))
    for key, value in record(place, "conditions", name).items():
        torch.testing.assert_close(context[key], value, **CONTEXT_ROUNDING)


def test_a_store_may_change_its_reader(place, tiny):
    theirs = again(place, tiny, target="ltx-trainer")
    assert counts(theirs, "redone") == (3, 3, 3) and "option for changed" in "".join(theirs.summary())
    assert not list((place / "data").rglob("*.safetensors"))
    assert counts(again(place, tiny, target="ltx-trainer"), "reused") == (3, 3, 3)
    (place / "data" / "latents" / "bird_sings.mp4.pt").unlink()
    assert counts(again(place, tiny, target="ltx-trainer"), "redone") == (0, 1, 0)
    assert counts(again(place, tiny), "redone") == (3, 3, 3) and not list((place / "data").rglob("*.pt"))


def test_an_unknown_reader_is_refused(place, tiny):
    with pytest.raises(ValueError, match="prepared for ltx_nb or ltx-trainer; got 'kohya'"):
        again(place, tiny, target="kohya")


def test_previews_and_pruning_of_a_folder_for_the_ltx_trainer(place, tiny):
    again(place, tiny, target="ltx-trainer", decode=True)
    assert len(list((place / "data" / "decoded_videos").iterdir())) == 3
    (place / "clips" / "bow_snaps.mp4").unlink()
    again(place, tiny, target="ltx-trainer", prune=True)
    assert len(list((place / "data").rglob("*.pt"))) == 6


def test_captions_in_batches_are_the_same(prepared, place, tiny):
    report = again(place, tiny, batch_size=3, overwrite=True)
    assert counts(report, "redone") == (3, 3, 3)
    for name in CLIPS:
        one, many = (record(p, "conditions", f"{name}.mp4")["video_context"] for p in (prepared, place))
        torch.testing.assert_close(one, many, **CONTEXT_ROUNDING)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_caption_that_is_cut_is_named_by_its_clip(place, tiny, caplog, batch_size):
    "Each once, with our sentence and no other: in a batch too, and where clips share the words."
    long = "and then it sings again " * 30
    (place / "clips" / "bow_snaps.txt").write_text(long, "utf-8")
    shutil.copy2(place / "clips" / "bow_snaps.mp4", place / "clips" / "twin.mp4")
    (place / "clips" / "twin.txt").write_text(long, "utf-8")
    (place / "clips" / "bunny_smiles.txt").write_text(long + "and again", "utf-8")
    report = again(place, tiny, batch_size=batch_size)
    told = [note for note in report.notes if "is cut" in note]
    assert sorted(note.split(" has ")[0] for note in told) == [
        "The caption of bow_snaps.mp4 (and 1 more with the same words)",
        "The caption of bunny_smiles.mp4",
    ]
    assert all("cut to 128: 'and then it sings" in note and note in "\n".join(report.summary()) for note in told)
    assert "Token indices" not in caplog.text


# a second time


def test_nothing_is_repeated(place, tiny, monkeypatch):
    nothing_loads(monkeypatch)
    before = contents(place)
    report = again(place, tiny)
    assert counts(report, "reused") == (3, 3, 3) and contents(place) == before


def test_moved_store_and_clips_are_still_valid(place, tiny, monkeypatch):
    nothing_loads(monkeypatch)
    (place / "data").rename(place / "elsewhere")
    (place / "clips").rename(place / "films")
    report = prepare(place / "films", place / "elsewhere", tiny.model, tiny.text_encoder, SMALL)
    assert counts(report, "reused") == (3, 3, 3)


def replace_tensors(tiny, target, part):
    tensors, metadata = load_file(tiny.model), read_metadata(tiny.model)
    for name in tensors:
        if name.startswith(part):
            tensors[name] = tensors[name] + 0.125
    save_file(tensors, target, metadata)
    return target


@pytest.mark.parametrize(
    ("change", "redone", "reason"),
    [
        ("caption", (1, 0, 0), "caption changed"),
        ("trigger", (3, 0, 0), "caption changed"),
        ("film", (0, 1, 1), "bow_snaps.mp4 changed"),
        ("picture size", (0, 3, 0), "option bucket changed from '64x64x9' to '64x32x9'"),
        ("length", (0, 3, 3), "option seconds changed"),
        ("video_vae", (0, 3, 0), "video_vae changed"),
        ("audio_vae", (0, 0, 3), "audio_vae changed"),
        ("connectors", (3, 0, 0), "connectors changed"),
        ("damage", (0, 1, 0), "its file was changed"),
    ],
)
def test_only_what_changed_is_redone(place, tiny, change, redone, reason):
    prefixes = {
        "video_vae": "vae.encoder.conv_in",
        "audio_vae": "audio_vae.encoder.conv_in",
        "connectors": "model.diffusion_model.video_embeddings_connector.learn",
    }
    options = {
        "trigger": {"lora_trigger": "OHM"},
        "picture size": {"buckets": "64x32x9"},
        "length": {"buckets": "64x64x17"},
    }
    if change in prefixes:
        options[change] = {"model": replace_tensors(tiny, place / "other.safetensors", prefixes[change])}
    elif change == "caption":
        (place / "clips" / "bow_snaps.txt").write_text("Another caption.", "utf-8")
    elif change == "film":
        shutil.copy2(place / "clips" / "bird_sings.mp4", place / "clips" / "bow_snaps.mp4")
    elif change == "damage":
        record_path(place / "data", "latents", "bow_snaps.mp4").write_bytes(b"broken")
    report = again(place, tiny, **options.get(change, {}))
    assert counts(report, "redone") == redone and counts(report, "made") == (0, 0, 0)
    assert reason in "\n".join(report.summary())
    assert counts(again(place, tiny, **options.get(change, {})), "reused") == (3, 3, 3)


def test_new_clip_is_added_and_a_removed_one_named(place, tiny):
    for suffix in "mp4", "txt":
        shutil.copy2(example_clips() / f"squirrel_leaps.{suffix}", place / "clips")
        (place / "clips" / f"bow_snaps.{suffix}").unlink()
    report = again(place, tiny)
    assert counts(report, "made") == (1, 1, 1) and counts(report, "reused") == (2, 2, 2)
    assert any("bow_snaps.mp4" in note for note in report.notes)


# trouble with one clip


def test_pruning_deletes_the_records_of_clips_that_are_gone(place, tiny, monkeypatch):
    for suffix in "mp4", "txt":
        (place / "clips" / f"bow_snaps.{suffix}").unlink()
    before = contents(place)
    nothing_loads(monkeypatch)
    assert contents(place) == before and "--prune" in " ".join(again(place, tiny).notes)
    report = again(place, tiny, prune=True)
    assert any("Deleted" in note and "bow_snaps" in note for note in report.notes)
    assert contents(place) == {name: data for name, data in before.items() if "bow_snaps" not in name}
    assert not again(place, tiny, prune=True).notes


def troubled(place, trouble):
    clip, words = place / "clips" / "trouble.mp4", place / "clips" / "trouble.txt"
    words.write_text("Trouble.", "utf-8")
    whole = (place / "clips" / "bow_snaps.mp4").read_bytes()
    if trouble == "no media":
        clip.write_text("this is no film", "utf-8")
    elif trouble == "empty file":
        clip.write_bytes(b"")
    elif trouble == "torn":
        clip.write_bytes(whole[: int(0.36 * len(whole))])  # 9 frames promised, 5 whole
    elif trouble == "short":
        write_video(clip, torch.zeros(5, 3, 64, 64, dtype=torch.uint8), 24)
    elif trouble == "still":
        clip = clip.with_suffix(".png")
        write_image(clip, torch.zeros(3, 64, 64, dtype=torch.uint8))
    elif trouble == "wordless":
        clip.write_bytes(whole)
        words.write_text("  ", "utf-8")
    return clip.name


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("no media", "cannot be decoded"),
        ("empty file", "empty (0 bytes)"),
        ("torn", "damaged"),
        ("short", "5 frames"),
        ("still", "no bucket has 1 frame"),
        ("wordless", "no caption"),
    ],
)
def test_one_bad_clip_is_left_out_and_named(place, tiny, monkeypatch, trouble, words):
    name = troubled(place, trouble)
    nothing_loads(monkeypatch) if trouble != "torn" else None
    report = again(place, tiny)
    assert report.exit_code == 3 and list(report.skipped) == [name] and words in report.skipped[name]
    assert name in str(report) and name in report._repr_html_() and str(place) not in report.skipped[name]
    assert len(PrecomputedDataset(place / "data", list(ROLES))) == 3


def test_encoder_trouble_is_the_clips_own(place, tiny, monkeypatch):
    real, calls = encode_chapter.encode_video, []

    def encode(encoder, video, tiling=None):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(encoder, video, tiling) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(encode_chapter, "encode_video", encode)
    report = again(place, tiny, overwrite=True)
    assert report.usable == ("bird_sings.mp4",)
    assert "vae_tiling" in report.skipped["bow_snaps.mp4"] and "not finite" in report.skipped["bunny_smiles.mp4"]
    assert sorted(list_records(place / "data" / "latents")) == ["bird_sings.mp4"]
    assert sorted(list_records(place / "data" / "audio_latents")) == ["bird_sings.mp4"]


def test_missing_file_keeps_its_records_a_broken_one_does_not(place, tiny):
    rows = [{"video": f"{name}.mp4", "caption": "Words."} for name in CLIPS]
    (place / "clips" / "list.json").write_text(json.dumps(rows), "utf-8")
    (place / "clips" / "bird_sings.mp4").unlink()
    (place / "clips" / "bow_snaps.mp4").write_bytes(b"broken")
    report = again(place, tiny, clips="clips/list.json")
    assert report.usable == ("bunny_smiles.mp4",)
    assert sorted(list_records(place / "data" / "latents")) == ["bird_sings.mp4", "bunny_smiles.mp4"]
    assert "earlier run" in report.skipped["bird_sings.mp4"]


@pytest.mark.parametrize("kind", ["silent", "still"])
def test_clip_without_sound_is_absent_on_purpose(place, tiny, monkeypatch, kind):
    name = "quiet.mp4" if kind == "silent" else "quiet.png"
    (place / "clips" / "quiet.txt").write_text("Quiet.", "utf-8")
    if kind == "silent":
        write_video(place / "clips" / name, torch.zeros(9, 3, 64, 64, dtype=torch.uint8), 24)
    else:
        write_image(place / "clips" / name, torch.zeros(3, 64, 64, dtype=torch.uint8))
    buckets = f"{SMALL};64x64x1"
    report = again(place, tiny, buckets)
    assert report.exit_code == 0 and report.silent == (name,) and "leaves them out" in str(report)
    assert Manifest(place / "data").records["audio_latents"][name].absent
    assert name in PrecomputedDataset(place / "data", list(ROLES)).dropped
    found = record(place, "latents", name)
    assert found["fps"] == 24.0 and found["latents"].shape[1] == (2 if kind == "silent" else 1)
    nothing_loads(monkeypatch)
    assert counts(again(place, tiny, buckets), "made") == (0, 0, 0)


def test_film_that_loses_and_regains_its_sound(place, tiny):
    path = place / "clips" / "bow_snaps.mp4"
    whole = path.read_bytes()
    write_video(path, read_video(path, frames=9).frames, 24)
    report = again(place, tiny)
    assert report.silent == ("bow_snaps.mp4",) and "bow_snaps.mp4" not in list_records(place / "data" / "audio_latents")
    path.write_bytes(whole)
    assert counts(again(place, tiny), "redone") == (0, 1, 1)


def test_sound_of_its_own_and_sound_alone(place, tiny):
    tone = 0.3 * torch.sin(torch.arange(16000) / 10).expand(2, -1)
    write_sound(place / "clips" / "tone.wav", tone, 16000)
    rows = [
        {"video": "bow_snaps.mp4", "audio": "tone.wav", "caption": "A bow."},
        {"audio": "tone.wav", "caption": "A tone."},
    ]
    (place / "clips" / "list.json").write_text(json.dumps(rows), "utf-8")
    report = again(place, tiny, clips="clips/list.json")
    assert report.usable == ("bow_snaps.mp4", "tone.wav")
    beside, alone = (record(place, "audio_latents", name) for name in ("bow_snaps.mp4", "tone.wav"))
    assert beside["latents"].shape[1] == 9 and alone["latents"].shape[1] == 25 and alone["duration"] == 1.0
    torch.testing.assert_close(beside["latents"][:, :6], alone["latents"][:, :6], **AUDIO_ROUNDING)  # then: the end
    report = again(place, tiny, clips="clips/list.json", with_audio=False)
    assert report.usable == ("bow_snaps.mp4",) and "without sound" in report.skipped["tone.wav"]


# trouble with the run


@pytest.mark.parametrize("records", [0, 4, 8])
def test_full_disk_stops_the_run_and_spoils_nothing(prepared, place, tiny, monkeypatch, records):
    shutil.rmtree(place / "data")
    with monkeypatch.context() as patch:
        full_after(patch, records)
        with pytest.raises(
            PrepareError, match=rf"No space left.*\s{records} records finished.*run the same command again"
        ):
            again(place, tiny)
    assert len(contents(place)) == records and not list((place / "data").rglob("*.tmp"))
    report = again(place, tiny)
    assert sum(counts(report, "reused")) == records and sum(counts(report, "made")) == 9 - records
    assert contents(place) == contents(prepared)


class Interrupted(Quiet):
    "A user who loses patience."

    def __init__(self, after):
        self.left, self.notes = after, []

    def advance(self, count=1, detail=None):
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("after", [2, 4, 7, 11])
def test_interrupted_and_resumed_equals_uninterrupted(prepared, place, tiny, after):
    shutil.rmtree(place / "data")
    user = Interrupted(after)
    with pytest.raises(KeyboardInterrupt):
        again(place, tiny, progress=user)
    made = len(contents(place))
    assert made == max(0, after - 3 + 1) and (not made or "go on" in user.notes[-1])
    assert sum(counts(again(place, tiny), "reused")) == made
    assert contents(place) == contents(prepared)
    ours, theirs = (Manifest(p / "data").records for p in (place, prepared))
    assert {r: sorted(e) for r, e in ours.items()} == {r: sorted(e) for r, e in theirs.items()}


def test_stale_records_are_gone_after_an_interrupted_redo(place, tiny):
    with pytest.raises(KeyboardInterrupt):
        again(place, tiny, "64x32x9", progress=Interrupted(3))
    shapes = {read_record(path)["latents"].shape[2] for path in list_records(place / "data" / "latents").values()}
    assert shapes == {1}


# nothing heavy before everything is checked


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"buckets": "65x64x9"}, ValueError, "multiple of 32"),
        ({"buckets": "64x64x10"}, ValueError, "8k"),
        ({"fps": "fast"}, ValueError, "frame rate"),
        ({"dtype": "int4"}, ValueError, "bfloat16"),
        ({"model": "https://example.org/m.safetensors"}, ValueError, "local file"),
        ({"model": "missing.safetensors"}, ValueError, "does not exist"),
        ({"clips": "nowhere"}, ValueError, "nowhere"),
        ({"caption_column": "words"}, ValueError, "no columns"),
        ({"clips": "clips/list.json", "caption_column": "words"}, ValueError, "no column 'words'"),
        ({"buckets": "64x64x97"}, PrepareError, "None of the 3 samples"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(place, tiny, monkeypatch, given, error, words):
    nothing_loads(monkeypatch)
    before = contents(place)
    (place / "clips" / "list.json").write_text(json.dumps([{"video": "bow_snaps.mp4", "caption": "A bow."}]), "utf-8")
    with pytest.raises(error, match=words):
        again(place, tiny, **given)
    assert contents(place) == before


def test_gemma_of_another_size_is_refused(place, tiny, monkeypatch):
    nothing_loads(monkeypatch)
    shutil.copytree(tiny.text_encoder, place / "gemma")
    config = json.loads((place / "gemma" / "config.json").read_text("utf-8"))
    config.get("text_config", config)["hidden_size"] = 128
    (place / "gemma" / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ValueError, match="width 128"):
        prepare(place / "clips", place / "data", tiny.model, place / "gemma", SMALL)


def test_checkpoint_without_an_encoder_is_refused(place, tiny, monkeypatch):
    nothing_loads(monkeypatch)
    tensors = {k: v for k, v in load_file(tiny.model).items() if not k.startswith("vae.")}
    save_file(tensors, place / "half.safetensors", read_metadata(tiny.model))
    with pytest.raises(PrepareError, match="no video_vae"):
        again(place, tiny, model=place / "half.safetensors")


def test_output_that_is_a_file_is_refused(place, tiny):
    with pytest.raises(PrepareError, match="Give another"):
        prepare(place / "clips", place / "clips" / "bow_snaps.txt", tiny.model, tiny.text_encoder, SMALL)


# previews


def test_previews_show_every_clip_and_are_no_clips(place, tiny):
    report = prepare(place / "clips", place / "clips" / "out", tiny.model, tiny.text_encoder, SMALL, decode=True)
    previews = sorted((place / "clips" / "out" / "decoded_videos").iterdir())
    assert [path.name for path in previews] == [f"{name}.mp4.mp4" for name in CLIPS]
    info = probe(previews[0])
    assert (info.width, info.height, info.frames, info.fps, info.has_sound) == (64, 64, 9, 24, True)
    times = [path.stat().st_mtime_ns for path in previews]
    report = prepare(place / "clips", place / "clips" / "out", tiny.model, tiny.text_encoder, SMALL, decode=True)
    assert len(report.samples) == 3 and [path.stat().st_mtime_ns for path in previews] == times
    assert not (place / "clips" / "out" / "decoded_reference_videos").exists()


# masks and references

EVERY = (*ROLES, "reference_latents", "reference_audio_latents", "video_masks", "audio_masks")
BIG = "128x64x17"


@pytest.fixture(scope="module")
def companions(tmp_path_factory, tiny):
    "The three clips, one with all companions, one with a mask alone, and their store."
    folder = tmp_path_factory.mktemp("companions")
    (folder / "clips").mkdir()
    for name in CLIPS:
        shutil.copy2(example_clips() / f"{name}.mp4", folder / "clips")
    whole = read_video(folder / "clips" / "bird_sings.mp4")
    write_video(folder / "clips" / "mirrored.mp4", whole.frames.flip(3), 24, whole.sound.flip(0), whole.sample_rate)
    paint(folder / "clips" / "left.png", slice(0, 96))
    rows = [
        {
            "video": "bird_sings.mp4",
            "caption": "A bird.",
            "ref_media_path": "mirrored.mp4",
            "reference_audio": "mirrored.mp4",
            "video_mask": "left.png",
            "audio_mask": "0-0.3; 0.5-",
        },
        {"video": "bow_snaps.mp4", "caption": "A bow.", "video_mask": "left.png"},
        {"video": "bunny_smiles.mp4", "caption": "A bunny."},
    ]
    (folder / "clips" / "list.json").write_text(json.dumps(rows), "utf-8")
    report = with_companions(folder, tiny)
    assert report.exit_code == 0 and tuple(report.count("made", role) for role in EVERY) == (3, 3, 3, 1, 1, 2, 1)
    return folder


@pytest.fixture
def rich(companions, tmp_path):
    "A copy of them to work on."
    shutil.copytree(companions, tmp_path / "rich")
    return tmp_path / "rich"


def paint(path, columns, size=(108, 192)):
    picture = torch.zeros(3, *size, dtype=torch.uint8)
    picture[:, :, columns] = 255
    return write_image(path, picture)


def with_companions(place, tiny, buckets=BIG, factors=(2, 2), **options):
    names = "reference_downscale_factor", "reference_temporal_scale_factor"
    return again(place, tiny, buckets, "clips/list.json", **dict(zip(names, factors)), **options)


def rewrite(place, change, row=0):
    path = place / "clips" / "list.json"
    rows = json.loads(path.read_text("utf-8"))
    rows[row] = {name: value for name, value in {**rows[row], **change}.items() if value is not None}
    path.write_text(json.dumps(rows), "utf-8")


def every(report, state):
    return tuple(report.count(state, role) for role in EVERY)


def test_records_of_masks_and_references(companions):
    item = PrecomputedDataset(companions / "data", list(EVERY))[0]
    assert item["video_masks"]["mask"].dtype == item["audio_masks"]["mask"].dtype == torch.uint8
    assert item["video_masks"]["mask"].tolist() == [[[1, 1, 0, 0]] * 2] * 3
    assert item["latents"]["latents"].shape[1:] == (3, 2, 4) and item["audio_latents"]["latents"].shape[1] == 18
    kept = item["audio_masks"]["mask"]
    assert kept.shape == (18,) and kept[:8].all() and not kept[8:14].any() and kept[14:].all()
    reference = item["reference_latents"]
    assert reference["latents"].shape == (128, 2, 1, 2) and reference["fps"] == 12 and reference["num_frames"] == 2


def test_references_are_those_of_the_window(companions, tiny):
    encoder = loading.load_video_vae_encoder(tiny.model, dtype=torch.float32)
    plan = plan_clip(probe(companions / "clips" / "bird_sings.mp4"), parse_buckets(BIG))
    clip = read_reference(companions / "clips" / "mirrored.mp4", plan, 2, 2)
    with torch.no_grad():
        expected = encode_video(encoder, clip.pixels()[None])[0].bfloat16()
    torch.testing.assert_close(record(companions, "reference_latents", "bird_sings.mp4")["latents"], expected)
    seconds = Fraction(17, 24)
    sound, rate = read_sound(companions / "clips" / "mirrored.mp4", 0, seconds)
    hears = loading.load_audio_vae_encoder(tiny.model, dtype=torch.float32)
    found = record(companions, "reference_audio_latents", "bird_sings.mp4")
    assert torch.equal(found["latents"], encode_audio(hears, sound[None], rate, float(seconds))[0])
    assert found["duration"] == pytest.approx(17 / 24)


def test_companions_are_made_once(rich, tiny, monkeypatch):
    nothing_loads(monkeypatch)
    monkeypatch.setattr(chapter, "read_video_mask", lambda *_: pytest.fail("a mask was read"))
    assert every(with_companions(rich, tiny), "reused") == (3, 3, 3, 1, 1, 2, 1)


@pytest.mark.parametrize(
    ("change", "redone", "reason"),
    [
        ("downscale", (0, 0, 0, 1, 0, 0, 0), "option downscale changed from 2 to 1"),
        ("slowdown", (0, 0, 0, 1, 0, 0, 0), "option slowdown changed from 2 to 1"),
        ("rule", (0, 0, 0, 0, 0, 2, 0), "option keep changed from 'all' to 'any'"),
        ("mask", (0, 0, 0, 0, 0, 2, 0), "left.png"),
        ("reference", (0, 0, 0, 1, 1, 0, 0), "mirrored.mp4"),
        ("seconds", (0, 0, 0, 0, 0, 0, 1), "option intervals changed"),
        ("start", (0, 1, 1, 1, 1, 1, 1), "option start changed"),
        ("length", (0, 3, 3, 1, 1, 2, 1), "option bucket changed"),
        ("crop", (0, 3, 0, 1, 0, 2, 0), "option crop changed"),
        ("overwrite", (3, 3, 3, 1, 1, 2, 1), "everything"),
    ],
)
def test_only_the_companions_that_changed_are_redone(rich, tiny, change, redone, reason):
    "W67: masks go by the same rules as latents, and overwrite reaches them."
    options = {
        "downscale": {"factors": (1, 2)},
        "slowdown": {"factors": (2, 1)},
        "rule": {"mask_keep": "any"},
        "length": {"buckets": "128x64x33", "factors": (2, 2)},
        "crop": {"buckets": "64x64x17"},
        "overwrite": {"overwrite": True},
    }
    if change == "mask":
        paint(rich / "clips" / "left.png", slice(0, 128))
    elif change == "reference":
        shutil.copy2(rich / "clips" / "bird_sings.mp4", rich / "clips" / "mirrored.mp4")
    elif change == "seconds":
        rewrite(rich, {"audio_mask": "0-0.4"})
    elif change == "start":
        rewrite(rich, {"start": 0.25, "audio_mask": "0-0.3; 0.5-"})
    elif change == "length":
        rewrite(rich, {"video": "bird_sings.mp4"})
        shutil.copy2(rich / "clips" / "bird_sings.mp4", rich / "clips" / "bunny_smiles.mp4")  # long enough
    report = with_companions(rich, tiny, **options.get(change, {}))
    assert every(report, "redone") == redone and report.exit_code == 0 and report.count("made") == 0
    assert reason in "\n".join(report.summary())
    again_ = {name: value for name, value in options.get(change, {}).items() if name != "overwrite"}
    assert report.count("redone") + report.count("reused") == with_companions(rich, tiny, **again_).count("reused")


def test_samples_without_a_role_are_counted(companions, tiny):
    "W65: by role, with names, before training leaves them out."
    report = with_companions(companions, tiny)
    assert report.lacking["video_masks"] == ("bunny_smiles.mp4",) and len(report.lacking["reference_latents"]) == 2
    assert "Without mask: 1 (bunny_smiles.mp4). Training on video_masks leaves them out." in report.summary()
    for text in str(report), report._repr_html_():
        assert "reference sound" in text and "sound mask" in text
    assert PrecomputedDataset(companions / "data", ["latents", "video_masks"]).samples == [
        "bird_sings.mp4",
        "bow_snaps.mp4",
    ]


@pytest.mark.parametrize(
    ("role", "trouble", "words", "gone"),
    [
        ("video_mask", "missing", "does not exist", ()),
        ("video_mask", "square", "60x60, its clip 192x108", ("video_masks",)),
        ("video_mask", "white", "keeps all", ("video_masks",)),
        ("video_mask", "text", "cannot be decoded", ("video_masks",)),
        ("reference_video", "short", "5 frames .* is trained on 17", ("reference_latents",)),
        ("reference_video", "torn", "damaged|frames", ("reference_latents",)),
        ("reference_audio", "silent", "no sound track", ("reference_audio_latents",)),
        ("audio_mask", "missing", "does not exist", ()),
        ("audio_mask", "text", "bad_text.png", ("audio_masks",)),
        ("audio_mask", "9-10", "keeps none of the 18 latent steps", ("audio_masks",)),
    ],
)
def test_a_bad_companion_costs_its_own_sample_only(rich, tiny, role, trouble, words, gone):
    path = rich / "clips" / f"bad_{trouble}.png"
    if trouble == "square":
        paint(path, slice(0, 30), (60, 60))
    elif trouble == "white":
        paint(path, slice(None))
    elif trouble == "text":
        path.write_text("this is no picture", "utf-8")
    elif trouble == "still":
        paint(path, slice(0, 30))
    elif trouble in ("short", "silent", "torn"):
        path = path.with_suffix(".mp4")
        whole = torch.randint(0, 256, (5 if trouble == "short" else 17, 3, 108, 192), dtype=torch.uint8)
        write_video(path, whole, 24)
        path.write_bytes(path.read_bytes()[: -1000 if trouble == "torn" else None])
    rewrite(rich, {"ref_media_path": None} if role == "reference_video" else {})
    rewrite(rich, {role: trouble if trouble[0].isdigit() else path.name})
    report = with_companions(rich, tiny)
    assert list(report.skipped) == ["bird_sings.mp4"] and report.exit_code == 3
    assert re.search(words, report.skipped["bird_sings.mp4"]), report.skipped
    for folder in EVERY:
        assert record_path(rich / "data", folder, "bird_sings.mp4").exists() == (folder not in gone), folder


def test_seconds_in_a_table_are_no_file(rich, tiny):
    "Also as pairs in a JSON list; counted from the beginning of the clip, not of the window."
    rewrite(rich, {"start": 0.25, "audio_mask": [[0.25, 0.55], [0.9, 9]]})
    with_companions(rich, tiny)
    kept = record(rich, "audio_masks", "bird_sings.mp4")["mask"]
    assert kept.tolist() == [1] * 8 + [0] * 9 + [1] * (len(kept) - 17)
    rewrite(rich, {"audio_mask": "0.9-0.5"})
    report = with_companions(rich, tiny)
    assert re.search(r"row 1: audio_mask: '0.9-0.5' is no list of intervals", report.skipped["bird_sings.mp4"])


def test_sound_alone_with_its_mask_and_reference(place, tiny):
    "Named after the sample, cut or filled up to its duration."
    tone = 0.3 * torch.sin(torch.arange(32000) / 10).expand(2, -1)
    write_sound(place / "clips" / "song.wav", tone, 16000)
    write_sound(place / "clips" / "voice.wav", tone[:, :8000], 16000)
    write_sound(place / "clips" / "gate.wav", torch.ones(2, 32000) * (torch.arange(32000) < 16000), 16000)
    rows = [
        {
            "audio": "song.wav",
            "caption": "A song.",
            "reference_audio": "voice.wav",
            "audio_mask": "gate.wav",
            "id": "one",
        },
        {
            "audio": "song.wav",
            "caption": "Part.",
            "reference_audio": "song.wav",
            "audio_mask": "1.5-",
            "start": 1,
            "id": "two",
        },
        {"audio": "song.wav", "caption": "None.", "end": 1.0, "id": "three"},
    ]
    (place / "clips" / "list.json").write_text(json.dumps(rows), "utf-8")
    report = again(place, tiny, clips="clips/list.json")
    assert report.usable == ("one", "two", "three") and set(report.lacking) == {
        "reference_audio_latents",
        "audio_masks",
    }
    for name, steps in ("one", 50), ("two", 25):
        for role in "audio_latents", "reference_audio_latents":
            assert (
                record(place, role, name)["latents"].shape[1] == steps
                and record(place, role, name)["duration"] == steps / 25
            )
    assert record(place, "audio_masks", "one")["mask"].tolist() == [1] * 25 + [0] * 25
    assert record(place, "audio_masks", "two")["mask"].tolist() == [0] * 14 + [1] * 11
    torch.testing.assert_close(
        record(place, "reference_audio_latents", "two")["latents"], record(place, "audio_latents", "two")["latents"]
    )
    short, whole = (record(place, role, "one")["latents"] for role in ("reference_audio_latents", "audio_latents"))
    torch.testing.assert_close(short[:, :10], whole[:, :10], **AUDIO_ROUNDING)
    assert (short[:, 20:] - whole[:, 20:]).abs().max() > 1000 * AUDIO_ROUNDING["atol"]  # silence


def test_without_sound_only_what_is_seen_is_prepared(companions, tiny, tmp_path):
    report = prepare(companions / "clips" / "list.json", tmp_path, tiny.model, tiny.text_encoder, BIG, with_audio=False)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "conditions",
        "latents",
        "reference_latents",
        "video_masks",
    ]
    assert any("without sound: reference_audio, audio_mask" in note for note in report.notes)


def test_a_silent_clip_has_no_mask_of_its_sound(rich, tiny):
    write_video(rich / "clips" / "bird_sings.mp4", read_video(rich / "clips" / "bird_sings.mp4").frames, 24)
    report = with_companions(rich, tiny)
    assert report.exit_code == 0 and report.silent == ("bird_sings.mp4",)
    assert "bird_sings.mp4" in report.lacking["audio_masks"] and not list_records(rich / "data" / "audio_masks")


def test_stills_beside_clips_keep_their_time_span(rich, tiny):
    "W9: a single picture and its reference last as long as one frame of a film at 24 frames a second."
    picture = read_video(rich / "clips" / "bird_sings.mp4", frames=1).frames[0]
    write_image(rich / "clips" / "bird.png", picture)
    write_image(rich / "clips" / "mirrored.png", picture.flip(2))
    rewrite(rich, {"video": "bird.png", "ref_media_path": "mirrored.png", "video_mask": "left.png"}, row=2)
    report = with_companions(rich, tiny, f"{BIG};128x64x1")
    assert report.exit_code == 0
    found = {role: record(rich, role, "bird.png") for role in ("latents", "reference_latents", "video_masks")}
    assert found["latents"]["fps"] == found["reference_latents"]["fps"] == 24.0
    assert found["latents"]["latents"].shape[1:] == (1, 2, 4) and found["reference_latents"]["latents"].shape[1:] == (
        1,
        1,
        2,
    )
    assert found["video_masks"]["mask"].tolist() == [[[1, 1, 0, 0]] * 2]
    assert record(rich, "latents", "bird_sings.mp4")["fps"] == 24.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"buckets": "96x64x17"}, "96x64x17 .*nearest: 64 or 128"),
        ({"buckets": f"{BIG};64x64x25"}, "64x64x25 .*nearest: 17 or 33"),
        ({"factors": (0, 1)}, "whole factors"),
        ({"factors": (1, 1.5)}, "whole factors"),
        ({"mask_keep": "most"}, "mask_keep is 'most'"),
    ],
)
def test_mistaken_factors_are_found_before_anything_is_loaded(rich, tiny, monkeypatch, given, words):
    nothing_loads(monkeypatch)
    with pytest.raises(ValueError, match=words):
        with_companions(rich, tiny, **given)


def test_several_buckets_go_with_both_factors(rich, tiny):
    rewrite(rich, {"ref_media_path": "bunny_smiles.mp4"}, row=2)
    report = with_companions(rich, tiny, f"{BIG};64x128x17")
    assert report.exit_code == 0 and report.count("made", "reference_latents") == 1
    shapes = {
        name: tuple(read_record(path)["latents"].shape[1:])
        for name, path in list_records(rich / "data" / "reference_latents").items()
    }
    assert shapes == {"bird_sings.mp4": (2, 1, 2), "bunny_smiles.mp4": (2, 2, 1)}


def test_sizes_that_are_found_fit_the_references(companions, tiny, tmp_path):
    report = prepare(
        companions / "clips" / "list.json", tmp_path, tiny.model, tiny.text_encoder,
        reference_downscale_factor=2, reference_temporal_scale_factor=2,
    )  # fmt: skip
    target, reference = (
        read_record(record_path(tmp_path, role, "bird_sings.mp4"))["latents"].shape
        for role in ("latents", "reference_latents")
    )
    assert (
        target[2:] == (2 * reference[2], 2 * reference[3])
        and target[1] - 1 == 2 * (reference[1] - 1)
        and report.exit_code == 0
    )


def test_factors_without_references_and_columns_that_are_gone_are_told(rich, tiny):
    rewrite(rich, {"ref_media_path": None, "video_mask": None})
    report = with_companions(rich, tiny)
    notes = "\n".join(report.notes)
    assert "no sample names a reference_video" in notes and "still holds reference_latents of 1 samples" in notes
    assert "still holds video_masks of 1 samples that name none now: bird_sings.mp4" in notes


def test_previews_of_references(rich, tiny):
    with_companions(rich, tiny, decode=True)
    info = probe(rich / "data" / "decoded_reference_videos" / "bird_sings.mp4.mp4")
    assert (info.width, info.height, info.frames, info.fps, info.has_sound) == (64, 32, 9, 12, True)
    assert len(list((rich / "data" / "decoded_videos").iterdir())) == 3


# what is said, and what one bad thing costs


def test_what_is_trained_on_is_said(place, tiny):
    (place / "clips" / "notes.odt").touch()
    report = again(place, tiny)
    told = "\n".join(report.summary())
    assert "Buckets: 64x64x9 (3)." in told and "Used: 27 of" in told and "notes.odt" in told


def test_captions_may_be_empty_if_asked_for(place, tiny):
    (place / "clips" / "bird_sings.txt").write_text("")
    assert "bird_sings.mp4" in again(place, tiny).skipped
    assert not again(place, tiny, empty_captions=True).skipped


def test_a_name_that_the_disk_does_not_take_is_its_own_trouble(place, tiny, monkeypatch):
    import errno

    whole = store_chapter.save_file

    def save(tensors, path, *more):
        if tensors.keys() == {"latents"} and not save.refused:
            save.refused = True
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        return whole(tensors, path, *more)

    save.refused = False
    monkeypatch.setattr(store_chapter, "save_file", save)
    report = again(place, tiny, overwrite=True)
    assert len(report.skipped) == 1 and len(report.usable) == 2


def test_a_caption_of_another_encoding_among_good_ones(place, tiny):
    (place / "clips" / "bird_sings.txt").write_bytes("A bird\u2019s song.".encode("cp1252"))
    report = again(place, tiny)
    assert not report.skipped and "Windows-1252" in str(report.samples[0].remarks) + str(report.samples[1].remarks)


def test_a_long_sound_is_one_minute_and_that_is_said(place, tiny):
    from ltx_nb.data.clips import check_dataset

    write_sound(place / "clips" / "lecture.wav", 0.1 * torch.sin(torch.arange(8000 * 80) / 5).expand(2, -1), 8000)
    (place / "clips" / "lecture.txt").write_text("A lecture.")
    (finding,) = [f for f in check_dataset(place / "clips").findings if f.id == "lecture.wav"]
    assert "uses 60 of 80 s" in finding.remarks[0]
    again(place, tiny)
    assert record(place, "audio_latents", "lecture.wav")["duration"] == 60
