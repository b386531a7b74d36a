"Gemma, whose layers pass through: the same contexts, in every layout of its folder, with a file or with memory."

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import one_thread

from ltx_nb.data.clips import example_clips
from ltx_nb.data.prepare import prepare
from ltx_nb.loading.checkpoint import CheckpointError, load_embeddings_processor, load_text_encoder
from ltx_nb.loading.gemma import load_streamed_connectors, load_streamed_text_encoder
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint, tiny_checkpoint
from ltx_nb.training.validation import encode_prompts

CAPTIONS = ["a red ball rolls over the grass", "", "the sea"]
TINY, BOTH = tiny_checkpoint(), ("video", "audio")


@pytest.fixture(autouse=True)
def sums_in_one_order():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def processor():
    return load_embeddings_processor(TINY.model)


def contexts(encoder):
    found = encoder(CAPTIONS, batch_size=2)
    return found.video, found.audio, found.mask


@pytest.mark.parametrize("source", ("memory", "file"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32))
def test_the_same_contexts(processor, source, dtype):
    if (source, dtype) == ("file", torch.float32):
        with pytest.raises(CheckpointError, match="other numbers"):
            load_streamed_text_encoder(TINY.text_encoder, dtype=dtype, source=source)
        return
    whole = load_text_encoder(TINY.text_encoder, dtype=dtype, embeddings_processor=processor)
    streamed = load_streamed_text_encoder(TINY.text_encoder, dtype=dtype, embeddings_processor=processor, source=source)
    assert all(map(torch.equal, contexts(streamed), contexts(whole)))
    assert streamed.model.streamer.late == 1


def in_parts(folder: Path) -> Path:
    "The same Gemma in two files, under other names."
    shutil.copytree(TINY.text_encoder, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    other = {name.replace("language_model.model.", "model.language_model."): t for name, t in tensors.items()}
    names, where = sorted(other), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: other[name] for name in part}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def test_several_files_and_other_names(processor, tmp_path):
    folder = in_parts(tmp_path / "gemma")
    whole = load_text_encoder(TINY.text_encoder, embeddings_processor=processor)
    for source in ("memory", "file"):
        streamed = load_streamed_text_encoder(folder, embeddings_processor=processor, source=source)
        assert all(map(torch.equal, contexts(streamed), contexts(whole)))


@pytest.mark.parametrize("version, streams", (("2", BOTH), ("2.3", BOTH), ("2.3", ("video",))))
@pytest.mark.parametrize("source", ("memory", "file"))
def test_the_same_contexts_of_connectors_that_pass_through(tmp_path, version, streams, source):
    model = make_tiny_checkpoint(tmp_path, version).model
    whole = load_embeddings_processor(model, streams=streams)
    streamed = load_streamed_connectors(model, streams=streams, source=source)
    encoder = load_streamed_text_encoder(TINY.text_encoder, embeddings_processor=streamed, source=source)
    expected = contexts(load_text_encoder(TINY.text_encoder, embeddings_processor=whole))
    for got, one in zip(contexts(encoder), expected, strict=True):
        assert (got is None and one is None) or torch.equal(got, one)
    stays = lambda part: sum(weight.nbytes for weight in part.parameters())
    assert stays(streamed) < stays(whole) / 4 and all(streamer.copies for streamer in streamed.streamers)


def test_connectors_in_another_dtype_come_from_memory():
    with pytest.raises(CheckpointError, match="other numbers"):
        load_streamed_connectors(TINY.model, dtype=torch.float32, source="file")
    streamed, whole = load_streamed_connectors(TINY.model, dtype=torch.float32), load_embeddings_processor(TINY.model, dtype=torch.float32)  # fmt: skip
    features = torch.randn(1, 128, whole.video_connector.width, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 128, dtype=torch.int64)
    one, other = (part.create_embeddings(features, None, mask).video for part in (streamed, whole))
    assert torch.equal(one, other)


def test_prompts_are_kept_once_however_they_were_encoded(tmp_path):
    how = TINY.model, TINY.text_encoder, "cpu", torch.bfloat16
    encode_prompts(CAPTIONS, *how, cache=tmp_path)
    kept = sorted(tmp_path.rglob("*.safetensors"))
    encode_prompts(CAPTIONS, *how, cache=tmp_path, streamed=True)
    assert sorted(tmp_path.rglob("*.safetensors")) == kept and len(kept) == len(CAPTIONS)
    encode_prompts(CAPTIONS, *how, cache=tmp_path, streamed=True, load_in_8bit=True)  # other numbers
    assert len(sorted(tmp_path.rglob("*.safetensors"))) == 2 * len(CAPTIONS)


def test_a_dataset_prepared_that_way_is_the_same(tmp_path):
    for name, more in ("usual", {}), ("streamed", {"stream_text_encoder": True}):
        prepare(
            example_clips() / "bird_sings.mp4", tmp_path / name, TINY.model, TINY.text_encoder, "32x32x9",
            dtype="bfloat16", **more,
        )  # fmt: skip
    files = [sorted((tmp_path / name / "conditions").rglob("*.safetensors")) for name in ("usual", "streamed")]
    assert files[0] and len(files[0]) == len(files[1])
    for one, other in zip(*files):
        one, other = load_file(one), load_file(other)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
