"The precomputed store: records, manifest, reading old and new folders, batches in a resumable order."

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from ltx_nb.data import store
from ltx_nb.data.batches import BucketedSampler, DummyDataset, PrecomputedDataset, collate, epoch_batches, resolve_root
from ltx_nb.model.files import remove_leftovers
from ltx_nb.data.store import (
    Manifest,
    Recipe,
    RecordError,
    WrongCheckpointError,
    cached_record,
    check_checkpoint,
    checkpoint_identity,
    fingerprint,
    list_records,
    read_record,
    source_of,
    write_record,
)
from ltx_nb.model.latents import patchify_video

GRID = (2, 3, 4)
MAKER = {"video_vae": {"name": "one.safetensors", "fingerprint": "1" * 16}}
OTHER = {"video_vae": {"name": "two.safetensors", "fingerprint": "2" * 16}}


def random_tensor(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def video_record(seed=0, grid=GRID):
    values = {"num_frames": grid[0], "height": grid[1], "width": grid[2], "fps": 24.0}
    return {"latents": random_tensor(128, *grid, seed=seed, dtype=torch.bfloat16)}, values


def make_store(root, samples=("a", "b", "c"), roles=("latents", "conditions")):
    for number, sample in enumerate(samples):
        for role in roles:
            if "latents" in role:
                write_record(root, role, sample, *video_record(number))
            else:
                write_record(root, role, sample, {"video_context": random_tensor(8, 4, seed=number)})
    return root


def save_pt(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(record, path)


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# records


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64])
def test_record_round_trip(tmp_path, dtype):
    tensor = (random_tensor(4, 5) * 10).abs().to(dtype)
    values = {"fps": 30000 / 1001, "num_frames": 3, "text": "a “cat”", "nothing": None, "flag": True}
    name = "x/ü b.mp4" if sys.getfilesystemencoding() != "ascii" else "x/u b.mp4"  # a system without UTF-8 has no ü
    record = read_record(write_record(tmp_path, "latents", name, {"t": tensor.T}, values))
    assert torch.equal(record.pop("t"), tensor.T) and record == values
    assert [type(record[k]) for k in ("fps", "num_frames", "flag")] == [float, int, bool]


@pytest.mark.parametrize("name", ["a:b", "what?.mp4", "con", "x/aux.mp4", "dir./a", "dir /a", "line\nbreak"])
def test_record_has_a_name_that_every_disk_takes(tmp_path, name):
    with pytest.raises(ValueError, match="Rename it"):
        write_record(tmp_path, "latents", name, {"t": torch.zeros(1)})
    assert not files_below(tmp_path)


def test_a_record_is_read_without_a_map_of_its_file(tmp_path):
    "A mapped file cannot be replaced on Windows, and a private map counts against memory on Linux."
    path = write_record(tmp_path, "latents", "a", {"t": random_tensor(1000)})
    record = read_record(path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) not in maps.read_text("utf-8")
    path.write_bytes(b"something else")
    assert torch.equal(record["t"], random_tensor(1000))


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "", ".", "a//b", "a\\b"])
def test_record_never_leaves_the_store(tmp_path, name):
    with pytest.raises(ValueError, match="relative path"):
        write_record(tmp_path / "store", "latents", name, {"t": torch.zeros(1)})
    assert not files_below(tmp_path)


VICTIM = """
import os, resource, signal, sys, torch
from pathlib import Path
from ltx_nb.data.store import Manifest, Recipe, write_record

root = Path(sys.argv[1])
torch.set_num_threads(1)
reader, writer = os.pipe()
pid = os.fork()
if pid == 0:  # a preparation that is killed
    manifest = Manifest(root / "killed")
    for number in range(100_000):
        write_record(root / "killed", "latents", f"s{number:05}", {"latents": torch.full((1000,), float(number))})
        manifest.add("latents", f"s{number:05}", Recipe(caption=str(number)))
        if number == 20:
            os.write(writer, b"x")
os.read(reader, 1)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)

write_record(root / "full", "latents", "a", {"latents": torch.ones(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_record(root / "full", "latents", "a", {"latents": torch.ones(1_000_000)})
except OSError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    "A killed preparation and a full disk, and what was said."
    if sys.platform == "win32":
        pytest.skip("needs fork and a limit on the size of files")
    folder = tmp_path_factory.mktemp("scenes")
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, folder], capture_output=True, encoding="utf-8", check=True, timeout=120
    )
    return folder, done.stdout


def test_full_disk_leaves_the_former_record(scenes):
    folder, said = scenes
    assert "could not write" in said and "a.safetensors" in said and "MiB are free" in said
    assert files_below(folder / "full") == ["latents/a.safetensors"]
    assert torch.equal(read_record(folder / "full/latents/a.safetensors")["latents"], torch.ones(10))


def test_killed_preparation_leaves_only_whole_records(scenes):
    store = scenes[0] / "killed"
    manifest, records = Manifest(store), list_records(store / "latents")
    assert len(records) >= 20
    for number, (sample, path) in enumerate(records.items()):
        assert torch.equal(read_record(path)["latents"], torch.full((1000,), float(number)))
        if number < len(records) - 1:  # the last one may be written and not yet noted
            assert manifest.valid("latents", sample, Recipe(caption=str(number)))


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(Exception) as caught:
        write_record(tmp_path, "latents", "a", {"t": torch.zeros(2).to_sparse()})
    assert not isinstance(caught.value, OSError) and not files_below(tmp_path)


def test_orphans_are_swept_and_never_read(tmp_path):
    make_store(tmp_path)
    orphan = tmp_path / "latents" / f".{'0' * 32}.tmp"
    orphan.write_bytes(b"half")
    (tmp_path / "latents/._a.safetensors").write_bytes(b"what a Mac leaves on foreign disks")
    assert len(PrecomputedDataset(tmp_path, ["latents"])) == 3
    assert remove_leftovers(tmp_path) == 0 and orphan.exists()
    assert remove_leftovers(tmp_path, older_than=-1) == 1 and not orphan.exists()
    assert len(list_records(tmp_path / "latents")) == 3


# identity and manifest


def checkpoint(path, vae=1.0, transformer=1.0, text=1.0):
    tensors = {
        "vae.encoder.conv_in.weight": torch.full((64, 64), vae),
        "audio_vae.encoder.conv_in.weight": torch.ones(4),
        "text_embedding_projection.aggregate_embed.weight": torch.full((8,), text),
        "model.diffusion_model.blocks.0.weight": torch.full((4,), transformer),
    }
    save_file(tensors, path, {"config": "{}"})
    return path


@pytest.mark.parametrize(
    ("change", "component"), [({"vae": 2.0}, "video_vae"), ({"text": 2.0}, "connectors"), ({"transformer": 2.0}, None)]
)
def test_identity_is_that_of_the_component(tmp_path, change, component):
    one = checkpoint_identity(checkpoint(tmp_path / "one.safetensors"))
    two = checkpoint_identity(checkpoint(tmp_path / "two.safetensors", **change))
    assert set(one) == {"video_vae", "audio_vae", "connectors"}
    assert [k for k in one if one[k]["fingerprint"] != two[k]["fingerprint"]] == ([component] if component else [])


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0not json" + b"\0" * 16])
def test_fingerprint_of_something_else(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="x.safetensors is not a safetensors file"):
        fingerprint(tmp_path / "x.safetensors")


def clip(folder, content=b"a clip"):
    path = folder / "clip.mp4"
    path.write_bytes(content)
    return path


def noted(root, recipe, role="latents", sample="a"):
    write_record(root, role, sample, *video_record())
    manifest = Manifest(root)
    manifest.add(role, sample, recipe)
    return manifest


@pytest.mark.parametrize("folded", [False, True])
def test_manifest_reuses_what_is_unchanged(tmp_path, folded):
    path = clip(tmp_path)
    recipe = Recipe(source_of(path), options={"bucket": (64, 64, 9), "fps": None}, made_by=MAKER)
    manifest = noted(tmp_path / "store", recipe)
    if folded:
        manifest.save()
    os.utime(path, (1, 1))  # a copy has another time, and the same content
    moved = path.rename(tmp_path / "moved.mp4")
    now = Recipe(source_of(moved), options={"fps": None, "bucket": [64, 64, 9]}, made_by=MAKER)
    assert Manifest(tmp_path / "store").why_redo("latents", "a", now) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": {"fps": 25}}, "option fps changed from 24 to 25"),
        ({"options": {"fps": 24, "window": "middle"}}, "option window changed from None to 'middle'"),
        ({"options": {}}, "option fps"),
        ({"caption": "two"}, "the caption changed from 'one' to 'two'"),
        ({"made_by": OTHER}, "video_vae changed from one.safetensors to two.safetensors"),
    ],
)
def test_manifest_says_what_changed(tmp_path, change, reason):
    parts = {"source": source_of(clip(tmp_path)), "options": {"fps": 24}, "caption": "one", "made_by": MAKER}
    manifest = noted(tmp_path / "store", Recipe(**parts))
    assert manifest.valid("latents", "a", Recipe(**parts))
    assert reason in manifest.why_redo("latents", "a", Recipe(**{**parts, **change}))


def test_manifest_notices_files(tmp_path):
    path = clip(tmp_path)
    manifest, store = noted(tmp_path / "store", Recipe(source_of(path))), tmp_path / "store"
    clip(tmp_path, b"b clip")  # same size
    os.utime(path, (5, 5))
    assert "content of clip.mp4 changed" in manifest.why_redo("latents", "a", Recipe(source_of(path)))
    clip(tmp_path, b"longer clip")
    assert "from 6 to 11 bytes" in manifest.why_redo("latents", "a", Recipe(source_of(path)))
    assert manifest.why_redo("latents", "b", Recipe()) == "not made yet"
    write_record(store, "latents", "a", {"latents": torch.zeros(1)})
    assert "changed after it was made" in manifest.why_redo("latents", "a", Recipe(source_of(path)))
    (store / "latents/a.safetensors").unlink()
    assert manifest.why_redo("latents", "a", Recipe(source_of(path))) == "its file is gone"


def test_absent_is_a_result(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add("audio_latents", "a", Recipe(options={"rate": 1}), absent="the clip has no sound track")
    assert Manifest(tmp_path).valid("audio_latents", "a", Recipe(options={"rate": 1}))
    assert not Manifest(tmp_path).valid("audio_latents", "a", Recipe(options={"rate": 2}))
    make_store(tmp_path, ["a", "b"], ["latents", "audio_latents"])
    (tmp_path / "audio_latents/a.safetensors").unlink()
    assert "a (the clip has no sound track)" in PrecomputedDataset(tmp_path, ["latents", "audio_latents"]).report()


def test_removed_records_stay_removed(tmp_path):
    noted(tmp_path, Recipe(), sample="a").save()
    manifest = Manifest(tmp_path)
    manifest.remove("latents", "a")
    assert not (tmp_path / "latents/a.safetensors").exists()
    assert Manifest(tmp_path).why_redo("latents", "a", Recipe()) == "not made yet"
    manifest.save()
    assert Manifest(tmp_path).records["latents"] == {}


def test_several_writers_make_one_manifest(tmp_path):
    writers = [Manifest(tmp_path) for _ in range(3)]
    for number in range(9):
        write_record(tmp_path, "latents", f"s{number}", *video_record(number))
        writers[number % 3].add("latents", f"s{number}", Recipe(caption=str(number)))
    path = writers[0].save()
    assert len(json.loads(path.read_text("utf-8"))["records"]["latents"]) == 9
    assert files_below(tmp_path)[-1] == "manifest.json" and not list(tmp_path.glob("*.jsonl"))


def test_a_torn_journal_line_costs_one_record(tmp_path):
    make_store(tmp_path, ["a", "b"], ["latents"])
    manifest = Manifest(tmp_path)
    for sample in "ab":
        manifest.add("latents", sample, Recipe(caption=sample))
    journal = next(tmp_path.glob("*.jsonl"))
    journal.write_text(journal.read_text("utf-8")[:-20], "utf-8")
    again = Manifest(tmp_path)
    assert again.valid("latents", "a", Recipe(caption="a")) and not again.valid("latents", "b", Recipe(caption="b"))


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"records": [', "utf-8")
    with pytest.raises(RecordError, match="manifest.json is damaged"):
        Manifest(tmp_path)


def test_dataset_of_another_checkpoint_is_refused(tmp_path):
    make_store(tmp_path, ["a", "b"])
    manifest = Manifest(tmp_path)
    manifest.add("latents", "a", Recipe(made_by=MAKER))
    manifest.add("latents", "b", Recipe(made_by=OTHER))
    manifest.add("conditions", "a", Recipe(made_by={"connectors": {"name": "x", "fingerprint": "3" * 16}}))
    with pytest.raises(
        WrongCheckpointError, match=r"latents: 1 of 2 records, video_vae of two.safetensors .*one.safetensors"
    ):
        check_checkpoint(tmp_path, MAKER, ["latents", "conditions"])
    notes = check_checkpoint(tmp_path, MAKER, ["conditions"])
    assert len(notes) == 1 and "1 records that no manifest knows" in notes[0]


# the dataset


def test_dataset_root_and_precomputed_root_are_the_same(tmp_path):
    make_store(tmp_path / ".precomputed")
    one, two = PrecomputedDataset(tmp_path, ["latents"]), PrecomputedDataset(tmp_path / ".precomputed", ["latents"])
    assert one.root == two.root == resolve_root(str(tmp_path)) and len(one) == 3


@pytest.mark.parametrize(
    ("sources", "keys"),
    [
        (None, {"latent_conditions", "text_conditions"}),
        (["conditions", "latents"], {"conditions", "latents"}),
        ({"latents": "target", "conditions": "text"}, {"target", "text"}),
        ({"latents": ("target", "reference")}, {"target", "reference"}),
    ],
)
def test_sources_become_keys(tmp_path, sources, keys):
    item = PrecomputedDataset(make_store(tmp_path), sources)[1]
    assert set(item) == keys | {"idx"} and item["idx"] == 1


@pytest.mark.parametrize(("sources", "error"), [(3, TypeError), ({}, ValueError), ([], ValueError)])
def test_impossible_sources(tmp_path, sources, error):
    with pytest.raises(error, match="data_sources"):
        PrecomputedDataset(make_store(tmp_path), sources)


def test_samples_match_across_folders_and_subfolders(tmp_path):
    make_store(tmp_path, ["x/a.mp4", "x/a.mov", "y/z/b", "only_here"], ["latents"])
    make_store(tmp_path, ["x/a.mp4", "x/a.mov", "y/z/b", "no_video"], ["conditions"])
    dataset = PrecomputedDataset(tmp_path, ["conditions", "latents"])
    assert dataset.samples == ["x/a.mov", "x/a.mp4", "y/z/b"]
    assert dataset.dropped == {"only_here": ["conditions"], "no_video": ["latents"]}
    assert (
        "3 complete samples, 2 dropped: 1 without latents: no_video; 1 without conditions: only_here"
        == dataset.report()
    )


def test_dropped_samples_are_told_once(tmp_path, caplog):
    make_store(tmp_path)
    (tmp_path / "conditions/b.safetensors").unlink()
    PrecomputedDataset(tmp_path, ["latents"])
    assert not caplog.records
    PrecomputedDataset(tmp_path, ["latents", "conditions"])
    assert len(caplog.records) == 1 and "1 without conditions: b" in caplog.text


def test_nothing_complete_counts_each_folder(tmp_path):
    make_store(tmp_path, ["a", "b"], ["latents"])
    make_store(tmp_path, ["c"], ["conditions"])
    with pytest.raises(ValueError, match=r"(?s)latents: 2 records \(a, b\).*conditions: 1 records \(c\)"):
        PrecomputedDataset(tmp_path, ["latents", "conditions"])


def test_missing_folders_are_named(tmp_path):
    make_store(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no folder video_masks, audio_latents; its folders: conditions, latents"
    ):
        PrecomputedDataset(tmp_path, ["latents", "video_masks", "audio_latents"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        PrecomputedDataset(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        PrecomputedDataset(tmp_path / "latents/a.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_corrupt_file_names_key_and_path(tmp_path, suffix):
    make_store(tmp_path)
    whole = (tmp_path / "latents/b.safetensors").read_bytes()
    (tmp_path / "latents/b.safetensors").unlink()
    (tmp_path / f"latents/b.{suffix}").write_bytes(whole[: len(whole) // 2])
    dataset = PrecomputedDataset(tmp_path, {"latents": "target"})
    assert dataset[0]["target"]["latents"].shape == (128, *GRID)
    with pytest.raises(RecordError, match=rf"'target' of sample 'b' .*latents/b\.{suffix}"):
        dataset[1]


# folders of the reference trainer


def test_reads_the_reference_layout(tmp_path):
    root = tmp_path / ".precomputed"
    for number, name in enumerate(["clips/a", "clips/b"]):
        tensors, values = video_record(number)
        save_pt(root / f"latents/{name}.pt", {**tensors, **values})
        embeds = {"video_prompt_embeds": random_tensor(8, 4), "audio_prompt_embeds": random_tensor(8, 2)}
        save_pt(root / f"conditions/{name}.pt", {**embeds, "prompt_attention_mask": torch.ones(8, dtype=torch.int64)})
        save_pt(
            root / f"audio_latents/{name}.pt",
            {"latents": random_tensor(8, 5, 16), "num_time_steps": 5, "duration": 0.2},
        )
    dataset = PrecomputedDataset(tmp_path, ["conditions", "latents", "audio_latents"])
    batch = collate([dataset[0], dataset[1]])
    assert dataset.samples == ["clips/a", "clips/b"]
    assert torch.equal(batch["latents"]["latents"][1], video_record(1)[0]["latents"])
    assert batch["latents"]["fps"].tolist() == [24, 24] and batch["latents"]["num_frames"].tolist() == [2, 2]
    assert ("audio_latents", "latents", (8, 5, 16)) in dataset.shapes(0)


SEVEN = (
    "conditions",
    "latents",
    "audio_latents",
    "reference_latents",
    "reference_audio_latents",
    "video_masks",
    "audio_masks",
)


def save_seven(root, name, number, legacy=False):
    "One sample as the reference trainer leaves it: every role, pickled; `legacy` as its older versions did."
    tensors, values = video_record(number)
    small, small_values = video_record(number + 50, (2, 3, 2))
    if legacy:
        tensors, small = ({"latents": patchify_video(t["latents"][None])[0]} for t in (tensors, small))
        embeds = {"prompt_embeds": random_tensor(8, 4, seed=number)}
    else:
        embeds = {"video_prompt_embeds": random_tensor(8, 4, seed=number), "audio_prompt_embeds": random_tensor(8, 2)}
    sound = {
        "latents": random_tensor(8, 5, 16, seed=number),
        "num_time_steps": 5,
        "frequency_bins": 16,
        "duration": 0.2,
    }
    save_pt(root / f"latents/{name}.pt", {**tensors, **values})
    save_pt(root / f"reference_latents/{name}.pt", {**small, **small_values, "fps": 12.0})
    save_pt(root / f"conditions/{name}.pt", {**embeds, "prompt_attention_mask": torch.ones(8, dtype=torch.int64)})
    save_pt(root / f"audio_latents/{name}.pt", sound)
    save_pt(root / f"reference_audio_latents/{name}.pt", {**sound, "latents": -sound["latents"]})
    save_pt(root / f"video_masks/{name}.pt", {"mask": (random_tensor(*GRID, seed=number) > 0).float()})
    save_pt(root / f"audio_masks/{name}.pt", {"mask": (random_tensor(5, seed=number) > 0).float()})


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("given", ["the store", "its parent"])
def test_reads_all_seven_roles_of_the_reference_layout(tmp_path, given, legacy):
    root = tmp_path / ".precomputed"
    for number, name in enumerate(["clips/a", "b"]):
        save_seven(root, name, number, legacy)
    dataset = PrecomputedDataset(root if given == "the store" else tmp_path, list(SEVEN))
    assert dataset.samples == ["b", "clips/a"] and not dataset.dropped
    batch = collate([dataset[1], dataset[0]])
    assert set(batch) == {*SEVEN, "idx"}
    for role, grid in ("latents", GRID), ("reference_latents", (2, 3, 2)):
        assert batch[role]["latents"].shape == (2, 128, *grid)
        assert batch[role]["width"].tolist() == [grid[2]] * 2
    assert torch.equal(batch["latents"]["latents"][1], video_record(1)[0]["latents"])
    assert torch.equal(batch["reference_latents"]["latents"][0], video_record(50, (2, 3, 2))[0]["latents"])
    assert batch["latents"]["fps"].tolist() == [24, 24] and batch["reference_latents"]["fps"].tolist() == [12, 12]
    assert torch.equal(batch["audio_latents"]["latents"], -batch["reference_audio_latents"]["latents"])
    assert torch.equal(batch["video_masks"]["mask"][1], (random_tensor(*GRID, seed=1) > 0).float())
    assert torch.equal(batch["audio_masks"]["mask"][1], (random_tensor(5, seed=1) > 0).float())
    text = batch["conditions"]
    assert "prompt_embeds" not in text and torch.equal(text["video_prompt_embeds"][1], random_tensor(8, 4, seed=1))
    assert text["audio_prompt_embeds"].shape == (2, 8, 4 if legacy else 2) and text["prompt_attention_mask"].shape == (
        2,
        8,
    )
    assert dataset.shapes(0) == dataset.shapes(1) and ("video_masks", "mask", GRID) in dataset.shapes(0)


def test_a_sample_of_the_reference_layout_may_lack_a_mask(tmp_path):
    for number, name in enumerate(["a", "b"]):
        save_seven(tmp_path, name, number)
    (tmp_path / "video_masks/b.pt").unlink()
    assert PrecomputedDataset(tmp_path, list(SEVEN)).dropped == {"b": ["video_masks"]}
    some = PrecomputedDataset(tmp_path, list(SEVEN), optional_sources=["video_masks"])
    assert "video_masks" in some[0] and "video_masks" not in some[1]


def test_legacy_patchified_latents_unpatchified(tmp_path):
    (tensors, values), audio = video_record(), random_tensor(50, 128)
    tokens = patchify_video(tensors["latents"][None])[0]
    save_pt(tmp_path / "latents/a.pt", {"latents": tokens, **values})
    save_pt(tmp_path / "reference_latents/a.pt", {"latents": tokens, **values})
    save_pt(tmp_path / "features/a.pt", {"latents": audio})  # not a latents folder: left alone
    dataset = PrecomputedDataset(tmp_path, ["latents", "reference_latents", "features"])
    for key in "latents", "reference_latents":
        assert torch.equal(dataset[0][key]["latents"], tensors["latents"])
    assert torch.equal(dataset[0]["features"]["latents"], audio)
    assert ("latents", "latents", (128, *GRID)) in dataset.shapes(0)


def test_patchified_latents_without_grid_are_refused(tmp_path):
    save_pt(tmp_path / "latents/a.pt", {"latents": torch.zeros(24, 128), "height": 3})
    with pytest.raises(RecordError, match="row of tokens, without num_frames, width"):
        PrecomputedDataset(tmp_path, ["latents"])[0]


def test_legacy_prompt_embeds_used_for_both_streams(tmp_path):
    embeds = random_tensor(8, 4)
    save_pt(tmp_path / "conditions/a.pt", {"prompt_embeds": embeds, "prompt_attention_mask": torch.ones(8)})
    record = PrecomputedDataset(tmp_path, ["conditions"])[0]["conditions"]
    assert "prompt_embeds" not in record
    assert torch.equal(record["video_prompt_embeds"], embeds) and torch.equal(record["audio_prompt_embeds"], embeds)


def test_legacy_condition_names(tmp_path):
    for number in 1, 2:
        tensors, values = video_record(number)
        save_pt(tmp_path / f"latents/x/latent_{number}.pt", {**tensors, **values})
        save_pt(tmp_path / f"conditions/x/condition_{number}.pt", {"prompt_embeds": torch.full((4, 2), float(number))})
    dataset = PrecomputedDataset(tmp_path)
    assert dataset.samples == ["x/latent_1", "x/latent_2"]
    item = dataset[1]
    assert item["text_conditions"]["video_prompt_embeds"][0, 0] == 2
    assert torch.equal(item["latent_conditions"]["latents"], video_record(2)[0]["latents"])


def test_modern_names_that_look_old_stay(tmp_path):
    make_store(tmp_path, ["condition_1", "latent_1", "latent_2"])
    assert PrecomputedDataset(tmp_path).samples == ["condition_1", "latent_1", "latent_2"]


class Malicious:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_a_malicious_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latents").mkdir()
    torch.save({"latents": torch.zeros(1), "x": Malicious()}, tmp_path / "latents/a.pt")
    (tmp_path / "latents/b.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    dataset = PrecomputedDataset(tmp_path, ["latents"])
    for index in range(2):
        with pytest.raises(RecordError):
            dataset[index]
    assert not (tmp_path / "hacked").exists()


def test_safetensors_win_over_pickles(tmp_path):
    make_store(tmp_path, ["a"], ["latents"])
    save_pt(tmp_path / "latents/a.pt", {"latents": torch.zeros(1)})
    dataset = PrecomputedDataset(tmp_path, ["latents"])
    assert len(dataset) == 1 and dataset[0]["latents"]["latents"].shape == (128, *GRID)


def test_in_memory_survives_the_files(tmp_path):
    dataset = PrecomputedDataset(make_store(tmp_path), ["latents"], in_memory=True)
    first = dataset[0]["latents"]
    first["latents"] = None  # an item is the caller's own dict
    (tmp_path / "latents/a.safetensors").unlink()
    assert torch.equal(dataset[0]["latents"]["latents"], video_record(0)[0]["latents"])


# batches


def test_collate_refuses_mixed_shapes_and_keys():
    wide, tall = (
        {"latents": {"latents": torch.zeros(2, 3)}, "idx": 4},
        {"latents": {"latents": torch.zeros(3, 2)}, "idx": 9},
    )
    with pytest.raises(ValueError, match=r"latents/latents: sample 4 is \[2, 3\], sample 9 is \[3, 2\].*batch_size 1"):
        collate([wide, tall])
    with pytest.raises(ValueError, match="only one of samples 4 and 9 has audio"):
        collate([wide, {**wide, "audio": {}, "idx": 9}])


def test_collate_types():
    item = lambda fps: {"r": {"n": 2, "fps": fps, "name": "x", "t": torch.ones(3, dtype=torch.bfloat16)}}
    batch = collate([item(24), item(None)])["r"]
    assert (
        batch["n"].dtype == torch.int64 and batch["fps"].dtype == torch.float32 and batch["t"].dtype == torch.bfloat16
    )
    assert batch["fps"][0] == 24 and batch["fps"][1].isnan() and batch["name"] == ["x", "x"]


bucket_lists = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def as_shapes(sizes):
    return [f"shape {number}" for number, size in enumerate(sizes) for _ in range(size)]


@settings(max_examples=60, deadline=None)
@given(bucket_lists, st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_sampler_laws(sizes, batch_size, world_size, seed):
    "W49: the reference drops the last clips of an epoch, and has no batches by size."
    shapes, G = as_shapes(sizes), batch_size * world_size
    if len(shapes) < G:
        with pytest.raises(ValueError, match="Lower optimization.batch_size"):
            BucketedSampler(shapes, batch_size, seed, world_size=world_size)
        return
    samplers = [BucketedSampler(shapes, batch_size, seed, rank, world_size) for rank in range(world_size)]
    steps = list(zip(*(list(islice(s, 40)) for s in samplers)))
    for ranks in steps:
        assert all(len(batch) == batch_size for batch in ranks)  # always full
        assert len({shapes[i] for batch in ranks for i in batch}) == 1  # one shape a step, on all processes
    epochs = G * 2  # after a multiple of G epochs every bucket has come out even
    buckets = samplers[0].buckets
    seen = Counter(i for e in range(epochs) for batch in epoch_batches(buckets, G, e, seed) for i in batch)
    assert set(seen.values()) == {epochs} and len(seen) == len(shapes)  # nothing dropped, nothing favoured


@pytest.mark.parametrize("used", [0, 1, 7, 8, 9, 30])
def test_sampler_resumes_exactly(used):
    shapes = as_shapes([7, 5, 1])
    whole = list(islice(BucketedSampler(shapes, 3, seed=7), used + 20))
    stopped = BucketedSampler(shapes, 3, seed=7)
    for _ in range(used):
        stopped.advance()
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = BucketedSampler(shapes, 3, seed=7)
    resumed.load_state_dict(state)
    assert list(islice(resumed, 20)) == whole[used:]


def test_sampler_order_follows_from_seed_alone():
    shapes, state = as_shapes([20, 10]), torch.get_rng_state()
    one = list(islice(BucketedSampler(shapes, 2, seed=1), 30))
    torch.manual_seed(99)
    assert list(islice(BucketedSampler(shapes, 2, seed=1), 30)) == one
    assert list(islice(BucketedSampler(shapes, 2, seed=2), 30)) != one
    assert one[:15] != one[15:]  # epochs differ
    torch.set_rng_state(state)
    list(islice(BucketedSampler(shapes, 2, seed=1), 30))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("change", [{"seed": 2}, {"batch_size": 3}, {"world_size": 2}])
def test_sampler_refuses_a_foreign_place(change):
    shapes, plan = as_shapes([6, 6]), {"batch_size": 2, "seed": 1}
    other = BucketedSampler(shapes, **{**plan, **change})
    with pytest.raises(ValueError, match="does not fit this run"):
        other.load_state_dict(BucketedSampler(shapes, **plan).state_dict())
    assert (other.epoch, other.offset) == (0, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_reads_ahead_without_moving_the_place(tmp_path, workers):
    dummy = DummyDataset(["latents", "conditions"], 64, 64, 9, dataset_length=6, context_width=4, audio_context_width=4)
    dataset = PrecomputedDataset(dummy.save(tmp_path), ["latents", "conditions"])
    sampler = BucketedSampler(dataset.all_shapes(), 2)
    expected = list(islice(BucketedSampler(dataset.all_shapes(), 2), 5))
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
    got = [batch["idx"].tolist() for batch in islice(loader, 5)]
    assert got == expected and (sampler.epoch, sampler.offset) == (0, 0)


# synthetic data and the cache


@pytest.mark.parametrize(
    ("folder", "shapes"),
    [
        ("latents", {"latents": (128, 3, 2, 4)}),
        ("reference_latents", {"latents": (128, 3, 2, 4)}),
        ("audio_latents", {"latents": (8, 17, 16)}),
        ("reference_audio_latents", {"latents": (8, 17, 16)}),
        ("conditions", {"video_context": (6, 10), "audio_context": (6, 5)}),
        ("video_masks", {"mask": (3, 2, 4)}),
        ("audio_masks", {"mask": (17,)}),
    ],
)
def test_dummy_dataset_feeds_each_role(folder, shapes):
    widths = {"context_width": 10, "audio_context_width": 5, "context_length": 6}
    dataset = DummyDataset({folder: "key"}, 128, 64, 17, 25.0, 4, **widths)
    record = dataset[3]["key"]
    assert {k: tuple(v.shape) for k, v in record.items() if torch.is_tensor(v)} == shapes
    assert len(list(dataset)) == 4
    name = next(iter(shapes))
    assert torch.equal(record[name], DummyDataset({folder: "key"}, 128, 64, 17, 25.0, 4, **widths)[3]["key"][name])
    if "mask" in folder:
        assert set(record["mask"].unique().tolist()) <= {0.0, 1.0}


def test_dummy_dataset_checks_sizes():
    with pytest.raises(ValueError, match="nearest"):
        DummyDataset(["latents"], width=100)


def test_cached_record_that_another_process_reads_just_now(tmp_path, monkeypatch):
    "Windows refuses to replace it; what was made is used all the same, and the other's file stays."
    make = lambda: {"x": torch.ones(3)}
    cached_record(tmp_path, {"a": 1}, make)
    (found,) = tmp_path.rglob("*.safetensors")
    found.write_bytes(b"damaged")

    def refuse(*_):
        raise PermissionError(13, "The process cannot access the file")

    monkeypatch.setattr(store.os, "replace", refuse)
    assert torch.equal(cached_record(tmp_path, {"a": 1}, make)["x"], torch.ones(3))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [found.name]
    with pytest.raises(PermissionError):
        cached_record(tmp_path, {"a": 2}, make)


def test_cached_record_is_made_once_and_repaired(tmp_path):
    made = []
    make = lambda: made.append(1) or {"x": torch.full((3,), float(len(made)))}
    for _ in range(2):
        assert torch.equal(cached_record(tmp_path, {"a": 1, "b": 2}, make)["x"], torch.ones(3))
    assert torch.equal(cached_record(tmp_path, {"b": 2, "a": 1}, make)["x"], torch.ones(3)) and len(made) == 1
    cached_record(tmp_path, {"a": 1, "b": 3}, make)
    assert len(made) == 2
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
    cached_record(tmp_path, {"a": 1, "b": 2}, make)
    assert len(made) == 3
