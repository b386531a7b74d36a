"LoRA files of other programs are read as what they are, and our tools agree with the arithmetic behind them."

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora_diffusers import assert_agree, give, make_pair, our_answer, train

from ltx_nb.loading.checkpoint import CheckpointError, read_metadata
from ltx_nb.loading.lora import fuse_lora, load_lora, read_lora, save_lora
from ltx_nb.loading.lora_tools import NAMINGS, convert_lora, extract_lora, lora_info, merge_into_model, merge_loras
from ltx_nb.loading.lora_tools import resize_lora, write_lora
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.loading.checkpoint import load_transformer
from ltx_nb.tools.cli import main

BLOCK = "transformer_blocks.0.attn1.to_k"
FLAT = "lora_unet_transformer_blocks_0_attn1_to_k"
WIDTH, RANK = 64, 2


def matrices(seed: int = 0, rank: int = RANK):
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(rank, WIDTH, generator=noise), torch.randn(WIDTH, rank, generator=noise)


A, B = matrices()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A tiny checkpoint in float32."
    path = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny")).model
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path, read_metadata(path))
    return path


@pytest.fixture
def loras(tiny, tmp_path):
    found = []
    for seed, targets in ((1, "video_ff"), (2, "all")):
        model = load_transformer(tiny, dtype=torch.float32)
        train(model, rank=2 + seed, alpha=5, targets=targets, seed=seed)
        found.append(save_lora(model, tmp_path / f"{seed}.safetensors", torch.float32, base_model="tiny"))
    return found


def same(one, other, tolerance=0.0):
    return one.keys() == other.keys() and all(
        torch.allclose(one[m][1] @ one[m][0], other[m][1] @ other[m][0], atol=tolerance, rtol=0) for m in one
    )


# names of others


@pytest.mark.parametrize(
    ("tensors", "factor"),
    [
        ({f"diffusion_model.{BLOCK}.lora_A.weight": A, f"diffusion_model.{BLOCK}.lora_B.weight": B}, 1),
        ({f"transformer.{BLOCK}.lora_A.weight": A, f"transformer.{BLOCK}.lora_B.weight": B}, 1),
        ({f"base_model.model.{BLOCK}.lora_A.weight": A, f"base_model.model.{BLOCK}.lora_B.weight": B}, 1),
        (
            {
                f"base_model.model.{BLOCK}.lora_A.default.weight": A,
                f"base_model.model.{BLOCK}.lora_B.default.weight": B,
            },
            1,
        ),
        ({f"model.diffusion_model.{BLOCK}.lora_A.weight": A, f"model.diffusion_model.{BLOCK}.lora_B.weight": B}, 1),
        ({f"{BLOCK}.lora_down.weight": A, f"{BLOCK}.lora_up.weight": B}, 1),
        ({f"{FLAT}.lora_down.weight": A, f"{FLAT}.lora_up.weight": B}, 1),
        ({f"{FLAT}.lora_down.weight": A, f"{FLAT}.lora_up.weight": B, f"{FLAT}.alpha": torch.tensor(6.0)}, 3),
        ({f"{FLAT}.lora_down.weight": A, f"{FLAT}.lora_up.weight": B, f"{FLAT}.alpha": torch.tensor([1.0])}, 0.5),
        ({f"transformer.{BLOCK}.lora.down.weight": A, f"transformer.{BLOCK}.lora.up.weight": B}, 1),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
def test_the_same_adapter_under_every_name(tmp_path, tensors, factor):
    save_file(tensors, tmp_path / "lora.safetensors")
    pairs, _ = read_lora(tmp_path / "lora.safetensors")
    assert pairs.keys() == {BLOCK} and torch.equal(pairs[BLOCK][0], A) and torch.allclose(pairs[BLOCK][1], B * factor)


def test_a_folder_of_peft_with_its_alpha_beside_it(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = torch.nn.ModuleDict({"transformer_blocks": torch.nn.ModuleList([torch.nn.ModuleDict(
        {"attn1": torch.nn.ModuleDict({"to_k": torch.nn.Linear(WIDTH, WIDTH, bias=False)})})])})  # fmt: skip
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=10, use_rslora=True, target_modules=["to_k"]))
    layer = adapted.base_model.model["transformer_blocks"][0]["attn1"]["to_k"]
    layer.lora_B["default"].weight.data.normal_()
    adapted.save_pretrained(tmp_path)
    [(A, B)] = read_lora(tmp_path)[0].values()
    torch.testing.assert_close(B @ A, layer.get_delta_weight("default"))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({f"{FLAT}.dora_scale": torch.ones(1, WIDTH)}, "is DoRA"),
        ({f"{BLOCK}.lora_magnitude_vector.weight": torch.ones(WIDTH)}, "is DoRA"),
        ({f"{FLAT}.hada_t1": torch.ones(8, 8)}, "for convolutions"),
        ({f"{FLAT}.oft_blocks": torch.ones(8, 8)}, "is OFT"),
        ({f"diffusion_model.{BLOCK}.diff": torch.ones(8, 8)}, "full differences"),
        ({"vae.decoder.weight": torch.ones(2)}, "it has keys such as vae.decoder.weight"),
        ({f"{BLOCK.replace('0', '1')}.lora_A.weight": A.clone()}, "one of the two matrices is missing"),
    ],
)
def test_what_is_no_lora_is_named_as_what_it_is(tmp_path, extra, said):
    save_file({f"{FLAT}.lora_down.weight": A, f"{FLAT}.lora_up.weight": B} | extra, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=said):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "text", ['{"lora_alpha": "x"}', "[1]", "{", '{"alpha_pattern": {"a": "b"}}', '{"alpha_pattern": [1]}', "[" * 5000]
)
def test_an_alpha_that_cannot_be_read_is_a_sentence(tmp_path, text):
    tensors = {f"{BLOCK}.lora_A.weight": A, f"{BLOCK}.lora_B.weight": B}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(CheckpointError, match="alpha"):
        read_lora(tmp_path / "x.safetensors")


CONNECTORS = [
    "text_embedding_projection.aggregate_embed", "lora_unet_video_embeddings_connector_transformer_1d_blocks_0_attn1_to_k",
    "connectors.video_connector.transformer_blocks.0.attn1.to_q", "diffusion_model.audio_embeddings_connector.x.to_v",
]  # fmt: skip


@pytest.mark.parametrize("connector", CONNECTORS)
def test_text_connectors_are_named_and_the_rest_is_used_on_request(tmp_path, connector, capsys):
    ours, (C, D) = {f"{BLOCK}.lora_A.weight": A, f"{BLOCK}.lora_B.weight": B}, matrices(1)
    save_file(ours | {f"{connector}.lora_A.weight": C, f"{connector}.lora_B.weight": D}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="text connectors too .1 of its 2 modules.*--skip-connectors"):
        read_lora(tmp_path / "x.safetensors")
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "lora",
                "convert",
                str(tmp_path / "x.safetensors"),
                "--skip-connectors",
                "-o",
                str(tmp_path / "y.safetensors"),
            ]
        )
    assert read_lora(tmp_path / "y.safetensors")[0].keys() == {BLOCK}


# converted


@pytest.mark.parametrize("version", ["2", "2.3"])
@pytest.mark.parametrize("naming", ["comfy", "diffusers", "kohya"])
def test_converted_files_load_in_diffusers(tmp_path, version, naming):
    pair = make_pair(version)
    train(pair.ours, rank=3, alpha=5)
    ours = save_lora(pair.ours, tmp_path / "ours.safetensors", torch.float32)
    made = convert_lora(ours, tmp_path / f"{naming}.safetensors", naming)
    assert same(read_lora(made)[0], read_lora(ours)[0])
    if naming == "kohya":  # diffusers reads that for other models; for LTX-2 it knows the official names and its own
        made = convert_lora(made, tmp_path / "back.safetensors")
    give(made, pair.theirs)
    assert_agree(pair)


def test_what_diffusers_wrote_becomes_the_official_file(tmp_path):
    pair = make_pair("2.3")
    train(pair.ours, rank=4, alpha=8)
    give(save_lora(pair.ours, tmp_path / "ours.safetensors", torch.float32), pair.theirs)
    pair.theirs.save_lora_adapter(tmp_path / "theirs", adapter_name="ours")
    made = convert_lora(tmp_path / "theirs", tmp_path / "official.safetensors")
    fresh = make_pair("2.3")
    fuse_lora(fresh.ours, made)
    for ours, theirs in zip(our_answer(fresh), our_answer(pair)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert "lora_adapter_metadata" not in read_metadata(made)


def test_a_folder_for_peft_is_read_by_peft(tmp_path, loras):
    from peft import PeftConfig

    made = write_lora(read_lora(loras[0])[0], tmp_path / "peft", naming="peft", dtype=torch.float32)
    said = PeftConfig.from_pretrained(made.parent)
    assert said.r == 3 and said.lora_alpha == 3 and len(said.target_modules) == len(load_file(made)) // 2
    assert same(read_lora(made.parent)[0], read_lora(loras[0])[0])


# merged, extracted, resized


def test_merged_equals_both_applied(tiny, loras, tmp_path):
    merged = merge_loras([(loras[0], 0.8), (loras[1], -1.5)], tmp_path / "merged.safetensors")
    whole = merge_into_model(tiny, [(loras[0], 0.8), (loras[1], -1.5)], tmp_path / "whole.safetensors")
    both, single = (load_transformer(tiny, dtype=torch.float32) for _ in range(2))
    fuse_lora(both, loras[0], 0.8)
    fuse_lora(both, loras[1], -1.5)
    fuse_lora(single, merged)
    stored = load_transformer(whole, dtype=torch.float32).state_dict()
    for name, tensor in both.state_dict().items():
        torch.testing.assert_close(single.state_dict()[name], tensor, atol=1e-5, rtol=0)
        torch.testing.assert_close(stored[name], tensor, atol=1e-5, rtol=0)
    before, after = load_file(tiny), load_file(whole)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert len(changed) == len(read_lora(merged)[0]) and read_metadata(whole) == read_metadata(tiny)


def test_extracted_equals_the_singular_value_decomposition(tiny, loras, tmp_path):
    whole = merge_into_model(tiny, [(path, 1.0) for path in loras], tmp_path / "whole.safetensors")
    told = []
    made, kept = extract_lora(
        tiny, whole, tmp_path / "x.safetensors", 2, dtype=torch.float32, on_layer=lambda *at: told.append(at))  # fmt: skip
    before, after, pairs = load_file(tiny), load_file(whole), read_lora(made)[0]
    assert told == list(kept.items()) and pairs.keys() == kept.keys()
    for module, (A, B) in pairs.items():
        key = f"model.diffusion_model.{module}.weight"
        U, S, Vh = torch.linalg.svd(after[key] - before[key], full_matrices=False)
        torch.testing.assert_close(B @ A, U[:, :2] * S[:2] @ Vh[:2], atol=1e-5, rtol=1e-4)
        assert kept[module] == pytest.approx((S[:2].square().sum() / S.square().sum()).item(), rel=1e-3)


def test_resized_is_the_nearest_and_a_whole_rank_changes_nothing(loras, tmp_path):
    pairs = read_lora(loras[1])[0]
    small = read_lora(resize_lora(loras[1], tmp_path / "small.safetensors", 2, dtype=torch.float32)[0])[0]
    for module, (A, B) in pairs.items():
        U, S, Vh = torch.linalg.svd(B @ A)
        torch.testing.assert_close(small[module][1] @ small[module][0], U[:, :2] * S[:2] @ Vh[:2], atol=1e-5, rtol=1e-4)
    for how in ({"rank": 4}, {"share": 1.0}, {"rank": 50}):
        again = read_lora(resize_lora(loras[1], tmp_path / "again.safetensors", **how, dtype=torch.float32)[0])[0]
        assert same(again, pairs, 1e-5) and {len(A) for A, _ in again.values()} == {4}


def test_a_resized_lora_can_be_trained_on(tiny, loras, tmp_path):
    path, _ = resize_lora(loras[0], tmp_path / "small.safetensors", 2)
    assert load_lora(load_transformer(tiny), path)["lora_rank"] == "2"


# the commands


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["lora", *map(str, arguments)])
    return end.value.code, *capsys.readouterr()


def test_info_says_what_a_file_holds(capsys, tmp_path, loras):
    code, out, _ = call(capsys, "info", loras[0])
    assert code == 0 and "rank   3" in out and "audio" not in out and "base_model: tiny" in out
    assert lora_info(loras[1]).families["audio_to_video_attn"][0] == 16
    save_file({f"{BLOCK}.lora_A.weight": A * float("nan"), f"{BLOCK}.lora_B.weight": B}, tmp_path / "nan.safetensors")
    code, _, err = call(capsys, "info", tmp_path / "nan.safetensors")
    assert code == 1 and f"{BLOCK}.lora_A.weight holds NaN" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "none.safetensors"], "LoRA none.safetensors does not exist"),
        (["convert", "{lora}", "-o", "{lora}"], "there already"),
        (["convert", "{lora}", "-o", "new.safetensors", "--to", "civitai"], "comfy"),
        (["convert", "{lora}", "-o", "new.safetensors", "--dtype", "int8"], "--dtype"),
        (["merge", "{lora}", "{tiny}", "-o", "new.safetensors"], "is not a LoRA"),
        (["merge", "{lora}", "--into", "{tiny}", "-o", "{tiny}", "--overwrite"], "is the checkpoint itself"),
        (["merge", "{small}", "--into", "{tiny}", "-o", "new.safetensors"], "in the LoRA"),
        (["merge", "{foreign}", "--into", "{tiny}", "-o", "new.safetensors"], "another model"),
        (["merge", "{lora}", "{small}", "-o", "new.safetensors"], "different models"),
        (["extract", "{tiny}", "{tiny}", "-o", "new.safetensors"], "nothing to extract"),
        (["extract", "{tiny}", "{lora}", "-o", "new.safetensors"], "in common"),
        (["resize", "{lora}", "-o", "new.safetensors"], "expected one of them"),
        (["resize", "{lora}", "-o", "new.safetensors", "--share", "2"], "share"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_written(capsys, tmp_path, monkeypatch, tiny, loras, arguments, said):
    monkeypatch.chdir(tmp_path)
    save_file(
        {f"{BLOCK}.lora_A.weight": A[:, :8].clone(), f"{BLOCK}.lora_B.weight": B[:8].clone()}, "small.safetensors"
    )
    save_file({"blocks.0.x.lora_A.weight": A, "blocks.0.x.lora_B.weight": B}, "foreign.safetensors")
    files = {"lora": loras[0], "tiny": tiny, "small": "small.safetensors", "foreign": "foreign.safetensors"}
    before = tiny.read_bytes(), sorted(tmp_path.rglob("*"))
    code, _, err = call(capsys, *(text.format(**files) for text in arguments))
    assert code == 1 and said in err and "Traceback" not in err
    assert (tiny.read_bytes(), sorted(tmp_path.rglob("*"))) == before


def test_every_naming_is_offered_by_the_command(capsys, tmp_path, loras):
    for naming in NAMINGS:
        code, out, _ = call(capsys, "convert", loras[0], "--to", naming, "-o", tmp_path / naming / "lora.safetensors")
        assert code == 0 and same(read_lora(out.strip())[0], read_lora(loras[0])[0])
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == 3
