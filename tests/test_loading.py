import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx_nb.model.latents import ConfigError, ScaleFactors
from ltx_nb.loading.checkpoint import (
    CheckpointError,
    LtxModelComponents,
    fill,
    load_audio_vae_decoder,
    load_audio_vae_encoder,
    load_embeddings_processor,
    load_model,
    load_text_encoder,
    load_transformer,
    load_video_vae_decoder,
    load_video_vae_encoder,
    load_vocoder,
    read_header,
    read_metadata,
)
from ltx_nb.loading.lora import fuse_lora
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.tiny.text import make_tiny_gemma

VERSIONS = ["2", "2.3"]
LOADERS = {
    "transformer": load_transformer,
    "embeddings_processor": load_embeddings_processor,
    "video_vae_encoder": load_video_vae_encoder,
    "video_vae_decoder": load_video_vae_decoder,
    "audio_vae_encoder": load_audio_vae_encoder,
    "audio_vae_decoder": load_audio_vae_decoder,
    "vocoder": load_vocoder,
}
ROOTS = {  # where each component's keys are in the file, written down from the file format
    "transformer": {"model.diffusion_model.": ""},
    "embeddings_processor": {
        "text_embedding_projection.": "feature_extractor.",
        "model.diffusion_model.video_embeddings_connector.": "video_connector.",
        "model.diffusion_model.audio_embeddings_connector.": "audio_connector.",
    },
    "video_vae_encoder": {"vae.encoder.": "", "vae.per_channel_statistics.": "per_channel_statistics."},
    "video_vae_decoder": {"vae.decoder.": "", "vae.per_channel_statistics.": "per_channel_statistics."},
    "audio_vae_encoder": {"audio_vae.encoder.": "", "audio_vae.per_channel_statistics.": "per_channel_statistics."},
    "audio_vae_decoder": {"audio_vae.decoder.": "", "audio_vae.per_channel_statistics.": "per_channel_statistics."},
    "vocoder": {"vocoder.": ""},
}
QUERY = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {version: make_tiny_checkpoint(folder, version) for version in VERSIONS}


@pytest.fixture(scope="session")
def contents(tiny) -> dict[str, dict[str, torch.Tensor]]:
    return {version: load_file(paths.model) for version, paths in tiny.items()}


@pytest.fixture
def altered(tiny, contents, tmp_path):
    "Write the tiny checkpoint with some tensors changed (None: left out) and some values of the header changed."

    def write(tensors: dict | None = None, header: dict | None = None, version: str = "2.3") -> Path:
        config = read_header(tiny[version].model)
        for section, values in (header or {}).items():
            config[section] = {k: v for k, v in (config[section] | values).items() if v is not ...}
        kept = {k: v for k, v in (contents[version] | (tensors or {})).items() if v is not None}
        save_file(kept, tmp_path / "altered.safetensors", {"config": json.dumps(config)})
        return tmp_path / "altered.safetensors"

    return write


def raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


# ---- files that cannot be used


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "path, said",
    [
        ("https://example.org/ltx-2.safetensors", "is an address.*local file: download it"),
        ("hf://Lightricks/LTX-2", "is an address"),
        ("nowhere/ltx-2.safetensors", "does not exist"),
    ],
)
def test_paths_that_lead_nowhere(loader, path, said):
    with pytest.raises(CheckpointError, match=said):
        LOADERS[loader](path)


def test_a_folder_is_refused_with_what_is_in_it(tiny):
    with pytest.raises(CheckpointError, match="is a folder.*ltx-2-tiny.safetensors, ltx-2.3-tiny.safetensors"):
        load_transformer(tiny["2"].model.parent)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_a_download_that_broke_off(tiny, tmp_path, share):
    whole = tiny["2.3"].model.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="cut short.*download it again|is not a safetensors file"):
        load_transformer(tmp_path / "cut.safetensors")


NOT_SAFETENSORS = {
    "text": lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\n"),
    "pickle": lambda p: torch.save({"a": torch.zeros(4)}, p),
    "zeros": lambda p: p.write_bytes(bytes(64)),
    "a JSON list": lambda p: raw(p, b"[1, 2]"),
    "a JSON text": lambda p: raw(p, b'"hello"'),
    "entries that are no tensors": lambda p: raw(p, b'{"a": 1}'),
    "an entry without a place": lambda p: raw(p, b'{"a": {"dtype": "F32", "shape": [1]}}', bytes(4)),
    "half a header": lambda p: raw(p, b'{"a": {"dtype"'),
}


@pytest.mark.parametrize("kind", NOT_SAFETENSORS)
def test_files_of_another_kind(tmp_path, kind):
    NOT_SAFETENSORS[kind](tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a safetensors file \([\d,]+ bytes\)"):
        load_transformer(tmp_path / "model.safetensors")


def test_a_file_with_more_behind_its_end(tiny, tmp_path):
    (tmp_path / "long.safetensors").write_bytes(tiny["2.3"].model.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="long.safetensors is damaged .*download it again"):
        load_transformer(tmp_path / "long.safetensors")


@pytest.mark.parametrize(
    "metadata, said",
    [
        (None, "no configuration in its header.*not a bare state dict or a LoRA.*nothing"),
        ({"lora_rank": "4"}, "no configuration in its header.*lora_rank"),
        ({"config": "{transformer:"}, "is not JSON"),
        ({"config": "[]"}, "is a list, expected an object"),
    ],
)
def test_headers_without_a_configuration(tmp_path, metadata, said):
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors", metadata)
    with pytest.raises(CheckpointError, match=said):
        load_transformer(tmp_path / "bare.safetensors")


SECTIONS = {
    "transformer": "transformer",
    "video_vae_encoder": "vae",
    "video_vae_decoder": "vae",
    "audio_vae_decoder": "audio_vae",
    "vocoder": "vocoder",
}


@pytest.mark.parametrize("loader", SECTIONS)
def test_a_section_that_is_missing_is_named(tiny, tmp_path, loader):
    header = {k: v for k, v in read_header(tiny["2.3"].model).items() if k != SECTIONS[loader]}
    save_file({"a": torch.zeros(1)}, tmp_path / "less.safetensors", {"config": json.dumps(header)})
    with pytest.raises(ConfigError, match=SECTIONS[loader]):
        LOADERS[loader](tmp_path / "less.safetensors")


@pytest.mark.parametrize(
    "section, values, load, said",
    [
        ("transformer", {"qk_norm": "layer_norm"}, load_transformer, "qk_norm is 'layer_norm', expected 'rms_norm'"),
        ("transformer", {"attention_bias": ...}, load_transformer, "attention_bias is missing"),
        ("transformer", {"rope_type": "spiral"}, load_transformer, "rope_type is 'spiral'"),
        ("vae", {"latent_channels": "many"}, load_video_vae_encoder, "latent_channels"),
        ("vae", {"encoder_blocks": [["dream", 1]]}, load_video_vae_encoder, "dream"),
    ],
)
def test_required_values_that_are_unknown_are_named(altered, section, values, load, said):
    with pytest.raises(ConfigError, match=said):
        load(altered(header={section: values}))


@pytest.mark.parametrize("loader", LOADERS)
def test_missing_tensors_are_counted_and_named(altered, contents, loader):
    root = next(iter(ROOTS[loader]))
    name = next(n for n in sorted(contents["2.3"]) if n.startswith(root) and "embeddings_connector" not in n)
    with pytest.raises(CheckpointError, match="asks for 1 tensors that are not in the file: " + re.escape(name)):
        LOADERS[loader](altered({name: None}))


@pytest.mark.parametrize("loader", LOADERS)
def test_tensors_left_over_are_named(altered, loader):
    name = next(iter(ROOTS[loader])) + "surprise.weight"
    with pytest.raises(CheckpointError, match=f"1 tensors are left over.*{name}"):
        LOADERS[loader](altered({name: torch.zeros(2)}))


def test_tensors_of_another_shape_are_named_with_both_shapes(altered):
    with pytest.raises(CheckpointError, match=r"attn1.to_q.weight \[128, 127\], expected \[128, 128\]"):
        load_transformer(altered({QUERY: torch.zeros(128, 127)}))


def test_a_header_of_the_other_version_is_noticed(altered):
    values = {"apply_gated_attention": False, "cross_attention_adaln": False}
    with pytest.raises(CheckpointError, match="left over.*and .* more"):
        load_transformer(altered(header={"transformer": values}))


def test_a_file_of_one_component_lacks_the_others(contents, tiny, tmp_path):
    only = {k: v for k, v in contents["2.3"].items() if k.startswith("vae.")}
    save_file(only, tmp_path / "vae.safetensors", {"config": json.dumps(read_header(tiny["2.3"].model))})
    assert load_video_vae_decoder(tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="holds no LTXModel: none of its keys begins with model.diffusion_model"):
        load_transformer(tmp_path / "vae.safetensors")


# ---- what is loaded


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("loader", LOADERS)
def test_weights_are_those_of_the_file_and_all_of_them(tiny, contents, version, loader):
    module = LOADERS[loader](tiny[version].model, dtype=torch.float32)
    expected = {
        inner + name.removeprefix(root): tensor
        for root, inner in ROOTS[loader].items()
        for name, tensor in contents[version].items()
        if name.startswith(root) and (loader != "transformer" or "embeddings_connector" not in name)
    }
    found = module.state_dict()
    assert found.keys() == expected.keys() and len(found) > 3
    assert all(torch.equal(found[name], expected[name].float()) for name in found)
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in found.values())
    assert not module.training and not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    "dtype, expected", [(None, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)]
)
def test_dtype_is_the_one_asked_for(tiny, dtype, expected):
    assert {p.dtype for p in load_transformer(tiny["2"].model, dtype=dtype).parameters()} == {expected}


def test_vocoder_is_float32_and_the_rest_bfloat16_unless_told_otherwise(tiny):
    found = {name: next(load(tiny["2.3"].model).parameters()).dtype for name, load in LOADERS.items()}
    assert found.pop("vocoder") == torch.float32 and set(found.values()) == {torch.bfloat16}


def test_whole_numbers_keep_their_kind(tiny, contents, tmp_path):
    class Counter(torch.nn.Module):
        CHECKPOINT_KEYS = {"counter.": ""}

        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
            self.weight = torch.nn.Parameter(torch.zeros(2))

    save_file({"counter.steps": torch.tensor([1, 2, 3]), "counter.weight": torch.ones(2)}, tmp_path / "c.safetensors")
    module = fill(Counter(), tmp_path / "c.safetensors", dtype=torch.bfloat16)
    assert (
        module.steps.tolist() == [1, 2, 3]
        and module.steps.dtype == torch.int64
        and module.weight.dtype == torch.bfloat16
    )


MEMORY = 4 << 30  # bytes that the process may call its own: what is private and writable, as Linux counts it
BEYOND = 40 << 30  # bytes of a tensor that nobody asks for


def test_a_checkpoint_larger_than_memory_can_be_read(tiny, contents, tmp_path):
    "Mapped, even the opening of such a file is refused; the file is a hole, it takes no room on the disk."
    pytest.importorskip("resource")
    path, metadata = tmp_path / "large.safetensors", read_metadata(tiny["2.3"].model)
    save_file(contents["2.3"], path, metadata)
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries, rest = json.loads(file.read(length)), file.read()
        end = max(entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__")
        entries["filler.weight"] = {"dtype": "U8", "shape": [BEYOND], "data_offsets": [end, end + BEYOND]}
        header = json.dumps(entries).encode()
        file.seek(0)
        file.write(struct.pack("<Q", len(header)) + header + rest)
        file.truncate(8 + len(header) + end + BEYOND)
    code = (
        "import resource, sys; import torch; from safetensors import safe_open\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({MEMORY}, {MEMORY}))\n"
        "from ltx_nb import load_transformer\n"
        "try: safe_open(sys.argv[1], 'pt')\n"
        "except Exception: print('no map')\n"
        "print(sum(p.double().sum().item() for p in load_transformer(sys.argv[1]).parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, total = done.stdout.split("\n")[:2]
    expected = sum(p.double().sum().item() for p in load_transformer(tiny["2.3"].model).parameters())
    assert refused == "no map" and float(total) == pytest.approx(expected, rel=1e-9)


def test_version_is_read_off_the_header_feature_by_feature(tiny):
    old, new = (load_transformer(tiny[v].model) for v in VERSIONS)
    keys = [set(model.state_dict()) for model in (old, new)]
    assert {"caption_projection.linear_1.weight"} <= keys[0] - keys[1]
    assert {"prompt_adaln_single.linear.weight", "transformer_blocks.0.attn1.to_gate_logits.weight"} <= keys[1] - keys[
        0
    ]
    extractors = [type(load_embeddings_processor(tiny[v].model).feature_extractor).__name__ for v in VERSIONS]
    assert extractors == ["FeatureExtractorV1", "FeatureExtractorV2"]
    assert [load_vocoder(tiny[v].model).sample_rate for v in VERSIONS] == [24000, 48000]


def test_a_mixture_of_versions_is_built_as_its_header_says(altered, contents):
    "Gates without the text modulation: no official version, and no reason to refuse it."
    plain = {
        name: None
        for name in contents["2.3"]
        if "prompt_adaln_single" in name or ("prompt_scale_shift_table" in name and name.startswith("model."))
    }
    halved = {
        name: tensor[: len(tensor) * 6 // 9].contiguous()
        for name, tensor in contents["2.3"].items()
        if name.startswith("model.diffusion_model.") and "_ca_" not in name and name not in plain
        and ((name.endswith("scale_shift_table") and "transformer_blocks" in name) or ".adaln_single.linear." in name or "audio_adaln_single.linear." in name)
    }  # fmt: skip
    model = load_transformer(altered(plain | halved, {"transformer": {"cross_attention_adaln": False}}))
    keys = set(model.state_dict())
    assert (
        "transformer_blocks.0.attn1.to_gate_logits.weight" in keys and "prompt_adaln_single.linear.weight" not in keys
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind, other", [("video", "audio"), ("audio", "video")])
def test_one_stream_of_a_file_of_two(tiny, contents, version, kind, other):
    model, whole = (load_transformer(tiny[version].model, kind=k) for k in (kind, "av"))
    kept, all_keys = model.state_dict(), whole.state_dict()
    mine = {
        k
        for k in all_keys
        if ("audio_" in k) == (kind == "audio") and "av_ca" not in k and "a2v_ca" not in k and "to_audio" not in k
    }
    mine -= {k for k in all_keys if "audio_to_video_attn" in k}
    assert set(kept) == mine and all(torch.equal(kept[k], all_keys[k]) for k in kept)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stream, other", [("video", "audio"), ("audio", "video")])
def test_connectors_of_one_stream(tiny, contents, version, stream, other):
    part = load_embeddings_processor(tiny[version].model, streams=(stream,))
    names = set(part.state_dict())
    assert any(n.startswith(f"{stream}_connector.") for n in names) and not any(
        n.startswith(f"{other}_connector.") for n in names
    )
    whole = load_embeddings_processor(tiny[version].model)
    features, mask = (
        torch.randn(1, 128, 64 if version == "2" or stream == "audio" else 128).bfloat16(),
        torch.ones(1, 128),
    )
    given = {"video": (features, None), "audio": (None, features)}[stream]
    alone, together = (getattr(p.create_embeddings(*given, mask), stream) for p in (part, whole))
    assert torch.equal(alone, together)


def test_changing_the_weights_does_not_change_the_file(tiny, tmp_path):
    "The weights may be pages of the file; writing into them must not write through."
    before = tiny["2.3"].model.read_bytes()
    model = load_transformer(tiny["2.3"].model)
    pair = {"lora_A": torch.ones(2, 128), "lora_B": torch.ones(128, 2)}
    save_file(
        {f"diffusion_model.transformer_blocks.0.attn1.to_q.{k}.weight": v for k, v in pair.items()},
        tmp_path / "l.safetensors",
    )
    old = model.transformer_blocks[0].attn1.to_q.weight.clone()
    fuse_lora(model, tmp_path / "l.safetensors")
    assert not torch.equal(model.transformer_blocks[0].attn1.to_q.weight, old)
    assert tiny["2.3"].model.read_bytes() == before


def test_a_file_replaced_while_it_is_loaded_does_not_change_the_model(altered):
    path = altered()
    model = load_transformer(path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = path.with_name("other.safetensors")
    save_file({"a": torch.zeros(1)}, other)
    other.replace(path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- several at once


@pytest.mark.parametrize("version", VERSIONS)
def test_load_model_loads_what_is_asked_for(tiny, version):
    parts = load_model(
        tiny[version].model, with_transformer=False, with_video_vae_encoder=True, with_audio_vae_decoder=False
    )
    present = {name for name in vars(LtxModelComponents()) if getattr(parts, name) is not None}
    assert present == {
        "video_vae_encoder",
        "video_vae_decoder",
        "vocoder",
        "factors",
    } and parts.factors == ScaleFactors(8, 32, 32)


@pytest.mark.parametrize("version", VERSIONS)
def test_load_model_connects_the_text_encoder(tiny, version):
    nothing = {f"with_{name}": False for name in ("transformer", "video_vae_decoder", "audio_vae_decoder", "vocoder")}
    parts = load_model(tiny[version].model, tiny[version].text_encoder, dtype=torch.float32, **nothing)
    context = parts.text_encoder("a rabbit wakes up", batch_size=1)
    transformer = load_transformer(tiny[version].model)
    widths = [64, 64] if version == "2" else [stream.dim for stream in transformer.config.streams.values()]
    assert [context.video.shape[-1], context.audio.shape[-1]] == widths


def test_a_text_encoder_of_another_width_is_refused(tiny, tmp_path):
    make_tiny_gemma(tmp_path / "gemma", hidden_size=32, layers=3)
    nothing = {f"with_{name}": False for name in ("transformer", "video_vae_decoder", "audio_vae_decoder", "vocoder")}
    with pytest.raises(ValueError, match="32.*64|64.*32"):
        load_model(tiny["2.3"].model, tmp_path / "gemma", **nothing)


def test_a_text_encoder_without_tokenizer_is_refused(tiny, tmp_path):
    for file in tiny["2"].text_encoder.iterdir():
        if "tokenizer" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        load_text_encoder(tmp_path)


def test_metadata_is_read_without_the_tensors(tiny, tmp_path):
    "A header alone, at its full declared size on disk, costs no memory: the file may have a hole."
    with safe_open(tiny["2.3"].model, "pt") as file:
        config = file.metadata()["config"]
    size = 1 << 36
    header = json.dumps(
        {"__metadata__": {"config": config}, "a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    )
    path = raw(tmp_path / "huge.safetensors", header.encode())
    with open(path, "r+b") as file:
        file.truncate(8 + len(header) + size)
    assert read_header(path) == json.loads(config)
