"LoHa, LoKr and DoRA of others: what PEFT's own layers do to a weight is what we do to it."

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_cli import call

from ltx_nb.loading.checkpoint import CheckpointError, load_transformer
from ltx_nb.loading.lora import fuse_lora, load_lora, read_lora
from ltx_nb.loading.lora_tools import convert_lora, lora_info, merge_into_model, merge_loras, resize_lora
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint

LAYERS = ["attn1.to_q", "ff.net.0.proj"]  # of 128 x 128 and of 512 x 128
KINDS = {
    "loha": lambda: LoHaConfig(r=4, alpha=6, target_modules=LAYERS, init_weights=False),
    "loha of full rank": lambda: LoHaConfig(r=12, alpha=12, target_modules=LAYERS, init_weights=False),
    "loha with patterns": lambda: LoHaConfig(
        r=4, alpha=6, target_modules=LAYERS, init_weights=False, alpha_pattern={"attn1.to_q": 3}
    ),
    "lokr": lambda: LoKrConfig(r=4, alpha=6, target_modules=LAYERS, init_weights=False),
    "lokr, both in two": lambda: LoKrConfig(
        r=2, alpha=6, target_modules=LAYERS, init_weights=False, decompose_both=True
    ),
    "lokr, whole": lambda: LoKrConfig(r=64, alpha=32, target_modules=LAYERS, init_weights=False, decompose_factor=8),
    "dora": lambda: LoraConfig(r=4, lora_alpha=6, target_modules=LAYERS, use_dora=True, init_lora_weights=False),
}
turned = lambda **how: OFTConfig(r=0, oft_block_size=32, target_modules=LAYERS, init_weights=False, **how)
WHOLE = {  # kinds that need the weight itself
    "oft": turned,
    "oft, exact": lambda: turned(use_cayley_neumann=False),
    "oft, shared, few terms": lambda: turned(block_share=True, num_cayley_neumann_terms=3),
    "oft, bounded": lambda: turned(coft=True, eps=0.3),
    "ia3": lambda: IA3Config(target_modules=LAYERS, feedforward_modules=LAYERS[1:], init_ia3_weights=False),
    "vera": lambda: VeraConfig(r=4, target_modules=LAYERS, save_projection=True, init_weights=False),
}
KINDS |= WHOLE
CLOSE = {"rtol": 2e-4, "atol": 2e-5}  # float32 products in another order; a wrong factor is off by a third


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("kinds") / "tiny")


def fresh(tiny):
    return load_transformer(tiny.model, dtype=torch.float32)


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    "For each kind a folder as PEFT writes it, and the weights that PEFT merges it into."
    found = {}
    for kind, config in KINDS.items():
        torch.manual_seed(0)
        folder, adapted = tmp_path_factory.mktemp("adapter"), get_peft_model(fresh(tiny), config())
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad and "magnitude" in name:
                    parameter.mul_(1.5)  # as after training
                elif parameter.requires_grad:
                    parameter.mul_(0.5)
        adapted.save_pretrained(folder)
        found[kind] = folder, adapted.merge_and_unload().state_dict()
    return found


def compare(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(
            ours[key].float(), theirs[key].float(), **CLOSE, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_file_does_what_peft_does(made, tiny, kind):
    folder, theirs = made[kind]
    model, before = fresh(tiny), fresh(tiny).state_dict()
    fuse_lora(model, folder)
    compare(model.state_dict(), theirs)
    state = model.state_dict().items()
    changed = {key.rpartition(".")[0] for key, weight in state if not torch.equal(weight, before[key])}
    assert len(changed) == len(LAYERS) * 4
    nothing = fresh(tiny)
    fuse_lora(nothing, folder, strength=0.0)
    compare(nothing.state_dict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_into_a_checkpoint_it_is_the_same(made, tiny, tmp_path, kind):
    folder, _ = made[kind]
    half, begin = tmp_path / "half.safetensors", "model.diffusion_model."
    tensors = {key: t.float() if key.startswith(begin) else t for key, t in load_file(tiny.model).items()}
    save_file(tensors, tmp_path / "base.safetensors")
    merge_into_model(tmp_path / "base.safetensors", [(folder, 0.5)], half)
    model = fresh(tiny)
    fuse_lora(model, folder, strength=0.5)
    written = load_file(half)
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(written[begin + key], weight, **CLOSE)


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr, whole"])
def test_the_tools_take_it_as_a_lora(made, tiny, tmp_path, kind, capsys):
    folder, theirs = made[kind]
    plain, model = convert_lora(folder, tmp_path / "plain.safetensors"), fresh(tiny)
    fuse_lora(model, plain)
    compare(model.state_dict(), theirs)
    assert sum(lora_info(folder).ranks.values()) == len(read_lora(plain)[0]) == 8
    merged, model = merge_loras([(folder, 0.25), (plain, 0.75)], tmp_path / "merged.safetensors"), fresh(tiny)
    fuse_lora(model, merged)
    compare(model.state_dict(), theirs)
    small, _ = resize_lora(folder, tmp_path / "small.safetensors", rank=4)
    assert lora_info(small).ranks == {4: 8}
    code, out, _ = call(capsys, "lora", "info", folder)
    assert code == 0 and "attn1" in out


def test_a_loha_of_one_rank_stands_beside_frozen_weights(made, tiny):
    model, theirs = fresh(tiny), made["loha"][1]
    load_lora(model, made["loha"][0])
    layer = model.transformer_blocks[0].attn1.to_q
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    meant = torch.nn.functional.linear(x, theirs["transformer_blocks.0.attn1.to_q.weight"], layer.base_layer.bias)
    torch.testing.assert_close(layer(x), meant, rtol=1e-3, atol=1e-4)


def test_a_dora_beside_frozen_weights_is_refused_with_what_to_do(made, tiny, tmp_path):
    model = fresh(tiny)
    for use in (
        lambda path: load_lora(model, path),
        read_lora,
        lambda path: convert_lora(path, tmp_path / "x.safetensors"),
    ):
        with pytest.raises(CheckpointError, match="is DoRA .*lora merge --into"):
            use(made["dora"][0])
    compare(model.state_dict(), fresh(tiny).state_dict())


def test_the_lengths_of_other_programs_are_of_rows_or_columns(made, tiny, tmp_path):
    tensors = load_file(made["dora"][0] / "adapter_model.safetensors")
    rename = lambda key: key.replace("base_model.model.", "diffusion_model.").replace(
        "lora_magnitude_vector", "dora_scale"
    )
    as_comfy = {rename(key): t[:, None] if "magnitude" in key else t for key, t in tensors.items()}
    save_file(
        {**as_comfy, **{f"{key.rpartition('.')[0]}.alpha": torch.tensor(6.0) for key in as_comfy if "dora" in key}},
        tmp_path / "d.safetensors",
    )
    model = fresh(tiny)
    fuse_lora(model, tmp_path / "d.safetensors")
    compare(model.state_dict(), made["dora"][1])


@pytest.mark.parametrize("kind", WHOLE)
def test_what_needs_the_weights_is_refused_beside_them(made, tiny, kind):
    model = fresh(tiny)
    for use in (lambda path: load_lora(model, path), read_lora):
        with pytest.raises(CheckpointError, match="needs the weights themselves .*lora merge --into"):
            use(made[kind][0])
    compare(model.state_dict(), fresh(tiny).state_dict())


def test_a_file_that_says_too_little_is_refused(made, tiny, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((made["oft"][0] / "adapter_model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="is OFT, and adapter_config.json, .* is not beside it"):
        fuse_lora(fresh(tiny), alone)
    tensors = load_file(made["vera"][0] / "adapter_model.safetensors")
    save_file({key: t for key, t in tensors.items() if not key.startswith("base_model.vera_")}, alone)
    with pytest.raises(CheckpointError, match="its two random matrices are not in the file .*save_projection=True"):
        fuse_lora(fresh(tiny), alone)


BLOCK = "diffusion_model.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"hada_w1_a": (128, 4), "hada_w1_b": (4, 128), "hada_w2_a": (128, 4)}, "one of the matrices is missing|missing for"),
        ({"hada_w1_a": (128, 4), "hada_w1_b": (3, 128), "hada_w2_a": (128, 4), "hada_w2_b": (4, 128)}, "cannot be multiplied"),
        ({"lokr_w1": (8, 8)}, "missing for"),
        ({"lokr_w1": (8, 8), "lokr_w2": (8, 8)}, "another size"),
        ({"lokr_w1": (8, 8), "lokr_w2_a": (16, 2), "lokr_w2_b": (3, 16)}, "cannot be multiplied"),
        ({"lokr_w1": (8, 8), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 16), "lokr_w2_b": (2, 16)}, "for convolutions .*lokr_t2. All layers .* are linear"),
        ({"ia3_l": (127, 1)}, "attn1.to_q is 127x128 in the file and 128x128 here"),
        ({"ia3_l": (3, 3)}, r"its ia3_l is \[3, 3\], expected"),
        ({"vera_lambda_b": (128,)}, "missing for"),
        ({"oft_blocks": (4, 8, 8)}, "is OFT .*not read"),
        ({"lora_A.weight": (4, 128), "lora_B.weight": (128, 4), "dora_scale": (7,)}, r"dora_scale of .* is \[7\]; expected \[128\]"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_a_sentence_and_changes_nothing(tiny, tmp_path, tensors, said):
    save_file({f"{BLOCK}.{name}": torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "x.safetensors")
    model = fresh(tiny)
    with pytest.raises(CheckpointError, match=said):
        fuse_lora(model, tmp_path / "x.safetensors")
    compare(model.state_dict(), fresh(tiny).state_dict())
