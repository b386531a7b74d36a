"Blocks that pass through the device: the same numbers as with all of them there, copies in time, nothing kept twice."

import contextlib
import json
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import make_place, make_trainer, names, one_thread, same, told, train, trained

import ltx_nb.loading.streaming as streaming
from ltx_nb.loading.checkpoint import CheckpointError, load_transformer
from ltx_nb.loading.lora import fuse_lora, load_lora, lora_state_dict
from ltx_nb.loading.offload import HostKeeper
from ltx_nb.loading.quantization import memory_note
from ltx_nb.loading.quantized_file import quantize_file
from ltx_nb.loading.streaming import CudaLane, FileSource, Lane, MemorySource, Streamer, load_streamed, stream_note
from ltx_nb.model.latents import ConfigError
from ltx_nb.tiny.checkpoint import tiny_checkpoint
from ltx_nb.training.validation import generate

BLOCKS = 4  # of the packaged checkpoint
STREAMED = {"acceleration__stream": 0, "acceleration__stream_slabs": 2}
SMALL = {"width": 32, "height": 32, "frames": 9, "fps": 12, "steps": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    tiny = tiny_checkpoint()
    return replace(make_place(tmp_path_factory.mktemp("streaming")), model=tiny.model, text_encoder=tiny.text_encoder)


@pytest.fixture(autouse=True)
def sums_in_one_order():
    with one_thread():
        yield


@pytest.mark.parametrize("form", (None, "int8", "fp8", "nf4", "int4", "int2"))
@pytest.mark.parametrize("checkpointing", (False, True))
def test_training_is_the_same_to_the_last_bit(place, tmp_path, form, checkpointing):
    how = {"acceleration__quantization": form, "optimization__enable_gradient_checkpointing": checkpointing}
    resident, seen = train(place, tmp_path / "resident", **how)
    streamed, passed = train(place, tmp_path / "streamed", **how, **STREAMED)
    assert [report.numbers() for report in passed] == [report.numbers() for report in seen]
    assert same(trained(streamed), trained(resident))
    streamer = streamed.model.streamer
    assert streamer.blocks == list(range(BLOCKS)) and streamer.late == 1  # the very first block


@pytest.mark.parametrize(
    "slabs, resident, source", ((1, 0, "memory"), (3, 1, "memory"), (2, 2, "file"), (8, 0, "file"))
)
def test_neither_slabs_nor_source_matter(place, tmp_path, slabs, resident, source):
    how = {"acceleration__mixed_precision_mode": "bf16"}  # what the file has
    usual, _ = train(place, tmp_path / "usual", **how)
    kept = {"stream": resident, "stream_slabs": slabs, "stream_from": source}
    streamed, _ = train(place, tmp_path / "streamed", **how, **{f"acceleration__{k}": v for k, v in kept.items()})
    assert same(trained(streamed), trained(usual))
    assert len(streamed.model.streamer.blocks) == BLOCKS - resident
    assert type(streamed.model.streamer.source) is {"file": FileSource, "memory": MemorySource}[source]


def test_accumulation_dropout_and_a_feed_forward_with_a_lora(place, tmp_path):
    how = {
        "optimization__gradient_accumulation_steps": 2, "lora__dropout": 0.2, "acceleration__quantization": "int8",
        "lora__target_modules": ["to_q", "to_out.0", "net.0.proj", "net.2", "to_gate_logits"],
    }  # fmt: skip
    resident, _ = train(place, tmp_path / "resident", **how)
    streamed, _ = train(place, tmp_path / "streamed", **how, **STREAMED)
    assert same(trained(streamed), trained(resident))


def test_held_out_losses_samples_and_files_are_the_same(place, tmp_path):
    how = {
        "data__held_out": 1, "validation__interval": 2, "acceleration__quantization": "nf4",
        "validation.samples": [{"prompt": "a red ball rolls"}],
    }  # fmt: skip
    for name, more in ("resident", {}), ("streamed", STREAMED):
        train(place, tmp_path / name, **how, **more)
    measured = [json.loads((tmp_path / name / "held_out.json").read_text()) for name in ("resident", "streamed")]
    assert measured[0]["measurements"] == measured[1]["measurements"] and measured[0]["measurements"]
    one, other = (tmp_path / name / "samples" for name in ("resident", "streamed"))
    assert names(one) == names(other) != []
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names(one))
    files = (next((tmp_path / name / "checkpoints").glob("lora*.safetensors")) for name in ("resident", "streamed"))
    assert same(*map(load_file, files))


def test_a_run_goes_on_streamed_or_not(place, tmp_path):
    how = {"checkpoints__save_training_state": "full", "optimization__scheduler_type": "constant"}
    whole, _ = train(place, tmp_path / "whole", optimization__steps=4, **how)
    train(place, tmp_path / "first", optimization__steps=2, **how)
    later = {"optimization__steps": 4, "model__load_checkpoint": tmp_path / "first" / "checkpoints"}
    streamed, reports = train(place, tmp_path / "later", **later, **how, **STREAMED)
    assert len(reports) == 2 and same(trained(streamed), trained(whole))
    assert "Other than in" not in told(streamed)


@pytest.mark.parametrize("form", (None, "int8"))
def test_generation_with_a_lora_is_the_same(place, tmp_path, form):
    trainer, _ = train(place, tmp_path / "run", optimization__learning_rate=0.01)
    lora = trainer.state.checkpoint
    make = lambda **how: generate(
        "a red ball rolls", place.model, place.text_encoder, lora=lora, quantization=form, **SMALL, **how
    )
    one, other = make(), make(stream=1)
    assert torch.equal(one.frames, other.frames) and torch.equal(one.sound, other.sound)


def test_a_lora_is_fused_in_memory_and_kept_beside_what_comes_from_a_file(place, tmp_path):
    trainer, _ = train(place, tmp_path / "run", optimization__learning_rate=0.01)
    lora, path = trainer.state.checkpoint, "transformer_blocks.2.attn1.to_q"
    fused, streamed = load_transformer(place.model), load_streamed(place.model, source="memory")
    streamed.streamer.need(2)  # a copy of the old weight is on the device
    for model in fused, streamed:
        fuse_lora(model, lora)
    assert torch.equal(streamed.get_submodule(path).weight, fused.get_submodule(path).weight.float())
    assert not torch.equal(fused.get_submodule(path).weight, load_transformer(place.model).get_submodule(path).weight)
    from_file = load_streamed(place.model, source="file")
    with pytest.raises(ValueError, match="streamed from memory"):
        fuse_lora(from_file, lora)
    load_lora(from_file, lora)
    assert lora_state_dict(from_file)


# Who may touch a slab when


class LastMoment(Lane):
    "Copies that are done when somebody waits for them, and not before; notes every overwriting."

    def __init__(self):
        self.due, self.log, self.computed = {}, [], 0

    def bring(self, source, number, slab, free):
        self.log.append((number, free))
        slab.fill_(255)
        ready = object()
        self.due[ready] = lambda: source.into(number, slab)
        return ready

    def mark(self):
        self.computed += 1
        return self.computed

    def wait(self, ready):
        if ready in self.due:
            self.due.pop(ready)()


def toy(blocks, slabs, lane):
    source = MemorySource({number: torch.full((256,), number, dtype=torch.uint8) for number in range(blocks)})
    return Streamer(source, range(blocks), 256, "cpu", slabs, lane)


def visit(streamer, turns):
    for number in streamer.blocks:
        streamer.enter(number, turns)
        assert streamer.need(number).unique().tolist() == [number]
    for number in reversed(streamer.blocks) if turns else ():
        assert streamer.need(number).unique().tolist() == [number]


@pytest.mark.parametrize("slabs", (1, 2, 3, 4))
@pytest.mark.parametrize("blocks", (1, 2, 3, 7))
def test_nothing_is_read_before_it_is_there_or_overwritten_before_it_was_read(blocks, slabs):
    streamer = toy(blocks, slabs, lane := LastMoment())
    for turns in (True, True, False, False, True):
        visit(streamer, turns)
    overwriting = [free for number, free in lane.log[len(streamer.slabs) :]]
    assert all(free is not None for free in overwriting)  # each waits for a computation


@pytest.mark.parametrize("slabs", (2, 3))
def test_a_step_copies_each_block_once_forward_and_once_back(slabs):
    streamer = toy(9, slabs, Lane())
    visit(streamer, True)
    before = streamer.copies
    visit(streamer, True)
    assert streamer.copies - before == 2 * (9 - slabs) and streamer.late == 1


def test_every_block_is_foreseen_in_sampling():
    streamer = toy(5, 2, Lane())
    for _ in range(4):
        visit(streamer, False)
    assert streamer.late == 1 and streamer.copies == 4 * 5 + 1  # the next pass has begun


def test_a_block_out_of_order_is_late_and_right():
    streamer = toy(6, 2, LastMoment())
    for number in (4, 0, 5, 5, 2, 3, 1):
        assert streamer.need(number).unique().tolist() == [number]


# CUDA's lane, with streams that only take notes


class FakeEvent:
    def synchronize(self):
        pass


class FakeStream:
    def __init__(self, device=None):
        self.waited = []

    def wait_event(self, event):
        self.waited.append(event)

    def record_event(self):
        return FakeEvent()


@pytest.fixture
def fake_cuda(monkeypatch):
    current = FakeStream()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
    monkeypatch.setattr(streaming, "host_memory", lambda size, device: torch.empty(size, dtype=torch.uint8))
    return current


@pytest.mark.parametrize("source", ("memory", "file"))
def test_cudas_lane_waits_on_both_sides(place, fake_cuda, source):
    model = load_streamed(place.model, source=source)
    usual, lane = load_streamed(place.model, source="memory"), CudaLane("cpu")
    streamer = Streamer(model.streamer.source, model.streamer.blocks, model.streamer.size, "cpu", 2, lane)
    threads = threading.active_count()
    for number in (0, 1, 2, 3, 3, 2, 1, 0):
        assert torch.equal(streamer.need(number), usual.streamer.need(number))
    assert len(fake_cuda.waited) == 7 and all(isinstance(event, FakeEvent) for event in fake_cuda.waited)
    assert len(lane.stream.waited) == streamer.copies - 2  # all but the first into each slab
    assert threading.active_count() - threads == (1 if source == "file" else 0)


# What is said, and what is refused


def test_a_run_says_what_passes_through(place, tmp_path):
    trainer = make_trainer(place, tmp_path, acceleration__quantization="int8", **STREAMED).load()
    assert stream_note(trainer.model.streamer) in told(trainer) and "come from memory" in told(trainer)
    resident = load_transformer(place.model, dtype=torch.float32, quantization="int8")
    assert memory_note(trainer.model) == memory_note(resident)


@pytest.mark.parametrize(
    "changes, words",
    (
        ({"acceleration__stream": -1}, "stream"),
        ({"acceleration__stream": "some"}, "stream"),
        ({"acceleration__stream": True}, "stream"),
        ({"acceleration__stream": 0, "acceleration__stream_slabs": 0}, "stream_slabs"),
        ({"acceleration__stream": 0, "model__training_mode": "full", "lora": None}, "only frozen ones"),
    ),
)
def test_what_cannot_be_streamed_is_refused(place, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        make_trainer(place, tmp_path, **changes)


def test_a_file_that_holds_something_else_is_no_source(place, tmp_path):
    how = {"acceleration__stream_from": "file", **STREAMED}
    with pytest.raises(ConfigError, match="ltx-nb quantize .* --to int8"):
        make_trainer(place, tmp_path, acceleration__quantization="int8", **how)
    with pytest.raises(CheckpointError, match="ltx-nb quantize"):  # float32 is asked for, the file has bfloat16
        make_trainer(place, tmp_path, **how).load()


def test_a_file_that_shrinks_is_noticed(place, tmp_path):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(place.model.read_bytes())
    model = load_streamed(path, source="file")
    with open(path, "r+b") as file:
        file.truncate(10**6)
    with pytest.raises(CheckpointError, match="ends in the middle"):
        model.streamer.need(3)


def test_more_resident_blocks_than_there_are(place):
    model = load_streamed(place.model, resident=99)
    assert model.streamer is None and same(
        dict(model.named_parameters()), dict(load_transformer(place.model).named_parameters())
    )


# A file that holds quantized weights


@pytest.fixture(scope="module")
def quantized(place, tmp_path_factory):
    return quantize_file(place.model, tmp_path_factory.mktemp("few bits") / "nf4.safetensors", "nf4")


@pytest.mark.parametrize("source", ("off", "memory", "file"))
def test_training_from_a_quantized_file_is_training_quantized(place, quantized, tmp_path, source):
    how = {"acceleration__mixed_precision_mode": "bf16"}
    usual, _ = train(place, tmp_path / "usual", acceleration__quantization="nf4", **how)
    kept = {} if source == "off" else STREAMED | {"acceleration__stream_from": source}
    other, _ = train(replace(place, model=quantized), tmp_path / "other", **how, **kept)
    assert same(trained(other), trained(usual))
    assert memory_note(other.model) in told(other)  # though the configuration asks for nothing


def test_a_clip_from_a_quantized_file(place, quantized):
    make = lambda model, **how: generate("a red ball", model, place.text_encoder, dtype=torch.bfloat16, **SMALL, **how)
    one, other = make(place.model, quantization="nf4"), make(quantized, stream=0)
    assert torch.equal(one.frames, other.frames) and torch.equal(one.sound, other.sound)


def test_writing_is_all_or_nothing(place, tmp_path, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_file(place.model, tmp_path / "out.safetensors", "int8", on_tensor=stop)
    assert names(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match="on another disk"):
        quantize_file(place.model, tmp_path / "out.safetensors", "int8")
    assert names(tmp_path) == []


def test_full_fine_tuning_of_a_quantized_file_is_refused(place, quantized, tmp_path):
    changes = {"model__training_mode": "full", "lora": None}
    with pytest.raises(ConfigError, match="nf4"):
        make_trainer(replace(place, model=quantized), tmp_path, **changes)


# What waits for the way back


@pytest.mark.parametrize("streamed", (False, True))
def test_training_with_inputs_at_the_host_is_the_same(place, tmp_path, monkeypatch, streamed):
    monkeypatch.setattr(HostKeeper.__init__, "__defaults__", (0, 2))  # everything is worth the way
    how = {"optimization__enable_gradient_checkpointing": True, "lora__dropout": 0.1}
    usual, _ = train(place, tmp_path / "usual", **how)
    kept, _ = train(
        place, tmp_path / "kept", acceleration__offload_activations=True, **how, **(STREAMED if streamed else {})
    )
    assert same(trained(kept), trained(usual))
    keeper = kept.model.keep_inputs
    assert keeper.sent == keeper.returned > 0 and not keeper.away
    assert (
        sum(memory.nbytes for memories in keeper.spare.values() for memory in memories) <= keeper.sent / 2
    )  # two steps


def test_offloading_needs_checkpointing(place, tmp_path):
    with pytest.raises(ConfigError, match="offload_activations"):
        make_trainer(place, tmp_path, acceleration__offload_activations=True)


def test_a_graph_that_is_dropped_gives_its_memory_back():
    keeper = HostKeeper("cpu", least=0)
    with keeper():
        y = (torch.ones(8, requires_grad=True) * 2).sin()
    del y
    assert not keeper.away and [len(memories) for memories in keeper.spare.values()] == [1]
