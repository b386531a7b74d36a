"GGUF: what the package of its authors makes of a block is what we make of it."

import json
import random
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import call
from test_components import write_pieces

from ltx_nb.config.files import load_config
from ltx_nb.loading.checkpoint import CheckpointError, holds_blocks, load_transformer, open_tensors, read_header
from ltx_nb.loading.components import described_transformer, find_parts, join_parts, joined
from ltx_nb.loading.gguf import BLOCK_TYPES, decode_blocks, gguf_entries
from ltx_nb.loading.lora import add_lora, save_lora
from ltx_nb.loading.lora_tools import merge_into_model
from ltx_nb.loading.quantization import find_format, quantize
from ltx_nb.loading.quantized_file import quantize_file
from ltx_nb.loading.streaming import load_streamed
from ltx_nb.model.transformer import LTXModel, read_config
from ltx_nb.tiny.checkpoint import file_tensors, make_tiny_checkpoint, tiny_header
from ltx_nb.tools.cli import changes_of

BLOCKS = 64


@pytest.mark.parametrize("number", BLOCK_TYPES, ids=[kind.name for kind in BLOCK_TYPES.values()])
def test_blocks_are_decoded_as_the_package_does(number):
    quants = pytest.importorskip("gguf").quants
    from gguf import GGMLQuantizationType

    kind = BLOCK_TYPES[number]
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (BLOCKS, kind.bytes), dtype=np.uint8)
    for start in range(0, kind.bytes - 1, 2):  # any two bytes may be a scale: none of them infinite
        halves = data[:, start : start + 2].copy().view(np.float16)
        data[:, start + 1][~np.isfinite(halves[:, 0])] &= 0x3F
    assert (kind.weights, kind.bytes) == _sizes(number)
    theirs = quants.dequantize(data, GGMLQuantizationType(number)).reshape(-1)
    ours = decode_blocks(torch.from_numpy(data), kind.name).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0)


def _sizes(number):
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType(number)]


GGUF_OF_A_PART = {"general.architecture": "ltxv", "general.file_type": 7}
BEGIN = "model.diffusion_model."
Q8_0 = 8


def blocks_of_eight(weight):  # `[m, n]` float -> bytes of Q8_0, and the weights that they stand for
    groups = weight.float().unflatten(-1, (-1, 32))
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half()
    codes = (groups / torch.where(scale > 0, scale, 1).float()).round().to(torch.int8)
    data = torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], -1)
    return data.numpy().tobytes(), (scale.float() * codes.float()).flatten(-2)


def write_gguf(path, tensors, said=GGUF_OF_A_PART):  # name -> (type, shape, bytes)
    text = lambda words: struct.pack("<Q", len(words)) + words.encode()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(said))
    for key, value in said.items():
        head += text(key) + (
            struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<I", 8) + text(value)
        )
    body = b""
    for name, (number, shape, data) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, len(body))
        body += data + b"\0" * (-len(data) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)
    return path


def in_blocks(tensors):  # of a transformer -> as `write_gguf` takes them, and the weights that they stand for
    written, meant = {}, {}
    for name, tensor in tensors.items():
        tensor = tensor.float()
        number, data, meant[name] = 0, tensor.numpy().tobytes(), tensor
        if tensor.ndim == 2 and "transformer_blocks" in name and "table" not in name:
            number, (data, meant[name]) = Q8_0, blocks_of_eight(tensor)
        written[name.removeprefix(BEGIN)] = number, tensor.shape, data
    return written, meant


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    "A transformer in GGUF that says nothing of itself, the rest as it lies on the hub; what the blocks stand for."
    folder = tmp_path_factory.mktemp("gguf")
    tiny = make_tiny_checkpoint(folder / "tiny")
    whole = load_file(tiny.model), read_header(tiny.model)
    own = {
        name: tensor
        for name, tensor in whole[0].items()
        if name.startswith(BEGIN) and "embeddings_connector" not in name
    }
    written, meant = in_blocks(own)
    write_pieces(folder / "models", (whole[0], whole[1] | {"transformer": {}}))
    return tiny, write_gguf(folder / "models" / "ltx-2.3-Q8_0.gguf", written), meant


@pytest.fixture(scope="module")
def whole(pieces):
    return join_parts(find_parts(pieces[1].parent), pieces[1].parent.parent / "whole.safetensors")


def close(ours, meant):
    for name, tensor in meant.items():
        torch.testing.assert_close(ours[name.removeprefix(BEGIN)], tensor, rtol=0, atol=0)


def test_the_package_reads_what_we_write_and_we_what_it_writes(pieces, tmp_path):
    gguf = pytest.importorskip("gguf")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(pieces[1]).tensors}
    entries, begin, said = gguf_entries(pieces[1])
    assert theirs.keys() == entries.keys() and said == GGUF_OF_A_PART
    for name, tensor in theirs.items():
        assert tensor.data_offset == begin + entries[name]["data_offsets"][0]
    writer, weight = gguf.GGUFWriter(tmp_path / "their.gguf", "ltxv"), torch.randn(4, 512).numpy()
    for kind in ("Q4_0", "Q5_1", "Q8_0", "BF16"):
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind, gguf.quants.quantize(weight, number), raw_dtype=number)
    writer.add_tensor("F16", weight.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    entries, _, _ = gguf_entries(tmp_path / "their.gguf")
    assert entries["Q4_0"]["blocks"] == ["Q4_0", [4, 512]] and entries["F16"]["dtype"] == "F16"
    assert entries["BF16"]["shape"] == [4, 512]


def test_the_blocks_are_loaded_as_the_weights_they_stand_for(pieces, whole):
    tiny, file, meant = pieces
    model = load_transformer(whole, dtype=torch.float32)
    close(model.state_dict(), meant)
    assert LTXModel.from_config(read_header(whole)).config == LTXModel.from_config(read_header(tiny.model)).config
    assert holds_blocks(whole) and not holds_blocks(tiny.model)
    pieces_size = sum(part.file.stat().st_size for part in find_parts(file.parent))
    assert whole.stat().st_size < 1.02 * pieces_size  # blocks stay blocks
    with open_tensors(whole) as opened:
        name = next(name for name in meant if name.endswith("ff.net.2.weight"))
        torch.testing.assert_close(opened.get_slice(name)[3:9], meant[name][3:9], rtol=0, atol=0)


def test_they_are_streamed_and_quantized_like_others(pieces, whole, tmp_path):
    _, _, meant = pieces
    name = "transformer_blocks.1.ff.net.0.proj"
    streamed = load_streamed(whole, dtype=torch.float32)
    assert streamed.streamer.source.writable
    torch.testing.assert_close(streamed.get_submodule(name).weight, meant[f"{BEGIN}{name}.weight"], rtol=0, atol=0)
    codes, scale = quantize(meant[f"{BEGIN}{name}.weight"], find_format("int8"))
    written = quantize_file(whole, tmp_path / "int8.safetensors", "int8")
    for model in (
        load_transformer(whole, dtype=torch.float32, quantization="int8"),
        load_transformer(written, dtype=torch.float32),
    ):
        layer = model.get_submodule(name)
        assert torch.equal(layer.codes, codes) and torch.equal(layer.scale, scale)
    gate = "transformer_blocks.0.attn1.to_gate_logits.weight"  # spared, and blocks still
    torch.testing.assert_close(model.get_parameter(gate), meant[BEGIN + gate], rtol=0, atol=0)


def test_a_lora_is_trained_beside_frozen_blocks_and_not_merged_into_them(pieces, whole, tmp_path):
    model = load_streamed(whole, dtype=torch.float32)
    layer = "transformer_blocks.0.attn1.to_q"
    torch.manual_seed(0)
    add_lora(model, 2, 2, [layer])
    adapted = model.get_submodule(layer)
    adapted(torch.ones(1, 128)).sum().backward()
    assert adapted.lora_B["default"].weight.grad.abs().sum() > 0
    lora = save_lora(model, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="in few bits .*to_q.weight: Q8_0"):
        merge_into_model(whole, [(lora, 1.0)], tmp_path / "merged.safetensors")
    asked = {
        "model.model_path": str(whole),
        "model.text_encoder_path": str(pieces[0].text_encoder),
        "model.training_mode": "full",
    }
    with pytest.raises(ValueError, match="holds blocks of GGUF, and all weights are to be trained"):
        load_config("t2v_lora", [f"{path}={json.dumps(value)}" for path, value in asked.items()] + ["lora=null"])


@pytest.mark.parametrize("version", ["2", "2.3"])
def test_shapes_say_what_the_header_would(version):
    header = tiny_header(version)
    shapes = {name: tuple(tensor.shape) for name, tensor in file_tensors(header).items()}
    if version == "2":  # heads cannot be counted there: those of the published model
        header["transformer"] |= {
            "num_attention_heads": 32,
            "attention_head_dim": 4,
            "audio_num_attention_heads": 32,
            "audio_attention_head_dim": 2,
        }
    assert read_config({"transformer": described_transformer(shapes)}) == read_config(header)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("transformer_blocks.0.attn1.to_q.weight"), "asks for 1 tensors that are not in the file: .*attn1.to_q.weight"),
        (lambda t: t.update(odd=(0, (1,), b"\0" * 4)), "1 tensors are left over.*odd"),
        (lambda t: t.pop("patchify_proj.weight"), "the transformer has no 'patchify_proj.weight'"),
    ],
)  # fmt: skip
def test_another_model_is_refused_before_anything_is_written(pieces, tmp_path, change, said):
    written, _ = in_blocks({BEGIN + n: t for n, t in load_transformer(pieces[0].model).state_dict().items()})
    change(written)
    with pytest.raises(CheckpointError, match=said):
        join_parts(find_parts(write_gguf(tmp_path / "bad.gguf", written)), tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()


def test_a_gguf_alone_says_what_is_missing_and_what_to_do(pieces, capsys):
    with pytest.raises(CheckpointError, match="train needs a text connector, which none .*gguf: transformer"):
        joined(pieces[1], "train")
    with pytest.raises(CheckpointError, match="is a GGUF file, .* `ltx-nb join"):
        load_transformer(pieces[1])
    code, out, _ = call(capsys, "join", pieces[1], "-o", pieces[1].with_name("alone.safetensors"))
    assert code == 0 and "without video encoder" in out


def test_train_takes_components_and_names_what_it_made(pieces, capsys):
    _, file, _ = pieces
    (said,) = [
        change
        for change in changes_of(None, str(file.parent), None, None, None, None)
        if change.startswith("model.model_path")
    ]
    made = json.loads(said.partition("=")[2])
    assert "joined_ltx-2.3-Q8_0_" in made and load_transformer(made).config.layers == 4
    assert "put together in" in capsys.readouterr().out
    assert changes_of(None, made, None, None, None, None) == [said]


def test_a_damaged_file_gets_a_sentence(tmp_path):
    small = {"a.weight": (Q8_0, (3, 64), bytes(204)), "a.bias": (0, (3,), bytes(12))}
    whole, dice = write_gguf(tmp_path / "whole.gguf", small).read_bytes(), random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(whole) - 220)
            if dice.random() < 0.5:
                data[at] = dice.randrange(256)
            else:
                data[at : at + 8] = struct.pack("<Q", dice.choice([0, 1, 2**31, 2**63, 2**64 - 1]))
        (tmp_path / "hurt.gguf").write_bytes(data)
        try:
            entries, _, _ = gguf_entries(tmp_path / "hurt.gguf")
        except ValueError as error:
            assert "is no GGUF file that can be read" in str(error)
        else:
            assert all(entry["data_offsets"][1] <= len(whole) for entry in entries.values())


@pytest.mark.parametrize(
    "blocks", ["[1]", "{", '{"a.weight": 3}', '{"a.weight": ["Q9", [3, 64]]}', '{"a.weight": ["Q8_0", [3, 65]]}', '{"a.weight": ["Q8_0", [-3, -64]]}']
)  # fmt: skip
def test_what_a_checkpoint_says_of_its_blocks_is_not_believed(tmp_path, blocks):
    save_file({"a.weight": torch.zeros(3, 68, dtype=torch.uint8)}, tmp_path / "x.safetensors", {"gguf": blocks})
    with pytest.raises(ValueError, match="GGUF blocks|blocks of GGUF|JSON|Expecting"):
        with open_tensors(tmp_path / "x.safetensors") as file:
            file.get_tensor("a.weight")
