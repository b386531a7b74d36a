import copy
import json
import os
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx_nb.flow.conditions import audio_tokens, to_modality, video_tokens
from ltx_nb.loading.checkpoint import CheckpointError
from ltx_nb.loading.lora import (
    TARGETS,
    add_lora,
    export_lora,
    fuse_lora,
    load_lora,
    lora_layers,
    lora_metadata,
    lora_state_dict,
    matching_modules,
    read_lora,
    save_lora,
)
from ltx_nb.model.transformer import LTXModel
from ltx_nb.tiny.checkpoint import tiny_header

BLOCKS = 4
PROJECTIONS = {"to_q", "to_k", "to_v", "to_out.0"}
FEED_FORWARD = {"net.0.proj", "net.2"}
FAMILIES = {  # of one block
    "all": {
        f"{a}.{p}"
        for a in ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
        for p in PROJECTIONS
    },
    "video": {f"{a}.{p}" for a in ("attn1", "attn2") for p in PROJECTIONS},
    "video_ff": {f"{a}.{p}" for a in ("attn1", "attn2") for p in PROJECTIONS} | {f"ff.{p}" for p in FEED_FORWARD},
    "audio": {f"{a}.{p}" for a in ("audio_attn1", "audio_attn2") for p in PROJECTIONS}
    | {f"audio_ff.{p}" for p in FEED_FORWARD},
    "audio_cross": {f"{a}.{p}" for a in ("audio_attn1", "audio_attn2", "video_to_audio_attn") for p in PROJECTIONS}
    | {f"audio_ff.{p}" for p in FEED_FORWARD},
}
WIDTHS = {"2": (64, 64), "2.3": (128, 64)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def first_model(version: str) -> LTXModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LTXModel.from_config(tiny_header(version)).requires_grad_(False)


def new_model(version: str = "2.3") -> LTXModel:
    return copy.deepcopy(first_model(version))


def shake(model, std: float = 0.05, seed: int = 1):
    "As if it had been trained."
    generator = seeded(seed)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B["default"].weight.normal_(std=std, generator=generator)
    return model


def trained_model(version: str = "2.3", rank: int = 4, alpha: float = 4, targets: str = "all") -> LTXModel:
    model = new_model(version)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        add_lora(model, rank, alpha, TARGETS[targets])
    return shake(model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    "A LoRA of rank 4 on all attentions, in float32."
    return save_lora(trained_model(), tmp_path_factory.mktemp("lora") / "l.safetensors", torch.float32)


def answer(model: LTXModel, version: str = "2.3") -> torch.Tensor:
    generator = seeded(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    video, audio = video_tokens(draw(1, 128, 2, 2, 2), 24.0), audio_tokens(draw(1, 8, 5, 16))
    widths, sigma = WIDTHS[version], torch.tensor([0.7])
    with torch.no_grad():
        return torch.cat(
            [
                x.flatten()
                for x in model(*(to_modality(t, t.clean, sigma, draw(1, 6, w)) for t, w in zip((video, audio), widths)))
            ]
        )


def write(path: Path, tensors: dict, metadata: dict | None = None) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    return path


# ---- where it goes


@pytest.mark.parametrize("version", WIDTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_hits_its_modules_in_every_block_and_no_other(version, family):
    model = new_model(version)
    expected = {f"transformer_blocks.{i}.{name}" for i in range(BLOCKS) for name in FAMILIES[family]}
    assert (
        set(add_lora(model, 2, target_modules=TARGETS[family])) == expected == {name for name, _ in lora_layers(model)}
    )


@pytest.mark.parametrize(
    "target, count",
    [
        ("attn1.to_k", 4),
        ("audio_attn1.to_k", 4),
        ("to_k", 24),
        ("ff.net.2", 4),
        ("transformer_blocks.2.attn2.to_v", 1),
        ("proj_out", 1),
    ],
)
def test_a_target_matches_whole_parts_of_a_name(target, count):
    assert len(matching_modules(new_model(), [target])[target]) == count


@pytest.mark.parametrize(
    "target, hint", [("attn1.to_qq", "attn1.to_q"), ("video_attn1.to_q", "attn1.to_q"), ("k", None), ("*", None)]
)
def test_a_target_that_hits_nothing_is_refused_with_a_hint(target, hint):
    model = new_model()
    before = {name for name, _ in model.named_modules()}
    with pytest.raises(
        ValueError, match="without a match in LTXModel: .*" + (f"did you mean .*{hint}" if hint else "")
    ):
        add_lora(model, target_modules=["to_q", target])
    assert {name for name, _ in model.named_modules()} == before  # nothing happened


def test_only_the_adapters_train_in_float32():
    model = new_model().to(torch.bfloat16).requires_grad_(True)
    names = add_lora(model, rank=3)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {f"{name}.{part}.default.weight" for name in names for part in ("lora_A", "lora_B")}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if n not in trained} == {torch.bfloat16}


@pytest.mark.parametrize("version", WIDTHS)
def test_a_fresh_adapter_changes_nothing_and_learns(version):
    model = new_model(version)
    before = answer(model, version)
    add_lora(model, rank=2)
    assert torch.equal(answer(model, version), before)
    shake(model)
    assert not torch.allclose(answer(model, version), before, atol=1e-3)


def test_gradient_reaches_every_adapter():
    model = trained_model(rank=2)
    video, audio = video_tokens(torch.randn(1, 128, 2, 2, 2), 24.0), audio_tokens(torch.randn(1, 8, 5, 16))
    seen = [
        to_modality(t, t.clean, torch.tensor([0.7]), torch.randn(1, 6, w))
        for t, w in zip((video, audio), WIDTHS["2.3"])
    ]
    sum(x.square().mean() for x in model(*seen)).backward()
    for name, layer in lora_layers(model):
        for part in (layer.lora_A, layer.lora_B):
            assert part["default"].weight.grad.abs().sum() > 0, name
        assert layer.base_layer.weight.grad is None


# ---- the file


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_keys_shapes_and_dtype_of_the_file(tmp_path, dtype):
    model = trained_model(rank=3, alpha=3, targets="audio_cross")
    tensors = load_file(save_lora(model, tmp_path / "new" / "lora.safetensors", dtype))
    expected = {}
    for i in range(BLOCKS):
        for name in FAMILIES["audio_cross"]:
            layer = first_model("2.3").get_submodule(f"transformer_blocks.{i}.{name}")
            expected[f"diffusion_model.transformer_blocks.{i}.{name}.lora_A.weight"] = (3, layer.in_features)
            expected[f"diffusion_model.transformer_blocks.{i}.{name}.lora_B.weight"] = (layer.out_features, 3)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {dtype} and not any(
        p.name.startswith(".") for p in tmp_path.rglob("*")
    )


def test_metadata_says_how_it_was_made(tmp_path):
    model = trained_model(rank=4, alpha=2, targets="video")
    more = {
        "base_model": "ltx-2.3",
        "target_modules": TARGETS["video"],
        "reference_downscale_factor": 2,
        "step": 0,
        "note": "",
    }
    with safe_open(save_lora(model, tmp_path / "l.safetensors", **more), "pt") as file:
        found = file.metadata()
    assert found == {
        "format": "pt", "lora_rank": "4", "lora_alpha": "2", "lora_scale": "folded into lora_B", "base_model": "ltx-2.3",
        "target_modules": ",".join(TARGETS["video"]), "reference_downscale_factor": "2", "step": "0",
    }  # fmt: skip
    assert lora_metadata(model)["lora_alpha"] == "2" and read_lora(tmp_path / "l.safetensors")[1] == found


@pytest.mark.parametrize("rank, alpha", [(4, 4), (4, 8), (4, 1), (2, 5), (3, 0.5)])
def test_whoever_adds_the_bare_product_gets_the_trained_function(tmp_path, rank, alpha):
    "What the official pipelines do: W + B A, looking for no alpha."
    model = trained_model(rank=rank, alpha=alpha)
    path, plain = save_lora(model, tmp_path / "l.safetensors", torch.float32), new_model()
    tensors = load_file(path)
    with torch.no_grad():
        for key in tensors:
            if key.endswith(".lora_A.weight"):
                module = plain.get_submodule(key.removeprefix("diffusion_model.").removesuffix(".lora_A.weight"))
                module.weight += tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    torch.testing.assert_close(answer(plain), answer(model), atol=1e-5, rtol=1e-5)


def test_what_a_run_resumes_from_is_as_trained():
    model = trained_model(rank=4, alpha=8)
    state, exported = lora_state_dict(model), export_lora(model, torch.float32)
    assert {f"diffusion_model.{name}" for name in state} == exported.keys()
    for name, tensor in state.items():
        factor = 2 if "lora_B" in name else 1
        assert torch.equal(tensor * factor, exported[f"diffusion_model.{name}"]) and tensor.dtype == torch.float32


def test_a_model_without_adapters_has_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="carries no LoRA; call add_lora first"):
        save_lora(new_model(), tmp_path / "l.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_former_file_and_nothing_else(tmp_path):
    path = save_lora(trained_model(rank=2), tmp_path / "lora.safetensors")
    former, model = path.read_bytes(), shake(trained_model(rank=8))
    pid = os.fork()
    if pid == 0:  # a limit of its own; never returns
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            save_lora(model, path)
        except Exception:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"] and path.read_bytes() == former


# ---- reading


@pytest.mark.parametrize("version", WIDTHS)
@pytest.mark.parametrize("alpha", [4, 12])
def test_fused_and_loaded_equal_the_trained_model(tmp_path, version, alpha):
    trained = trained_model(version, rank=4, alpha=alpha)
    path, base = save_lora(trained, tmp_path / "l.safetensors", torch.float32), answer(new_model(version), version)
    fused, loaded, filled, half = (new_model(version) for _ in range(4))
    fuse_lora(fused, path)
    load_lora(loaded, path)
    add_lora(filled, rank=4, alpha=1)
    load_lora(filled, path)
    fuse_lora(half, path, strength=0.0)
    expected = answer(trained, version)
    assert not torch.allclose(expected, base, atol=1e-2) and torch.equal(answer(half, version), base)
    for model in (fused, loaded, filled):
        torch.testing.assert_close(answer(model, version), expected, atol=1e-5, rtol=1e-5)
    assert not list(lora_layers(fused)) and all(
        p.requires_grad for _, m in lora_layers(loaded) for p in m.lora_B.parameters()
    )


def test_strengths_add_up(saved):
    once, twice, back = new_model(), new_model(), new_model()
    fuse_lora(once, saved, 0.75)
    for strength in (0.5, 0.25):
        fuse_lora(twice, saved, strength)
    for strength in (1.0, -1.0):
        fuse_lora(back, saved, strength)
    torch.testing.assert_close(answer(once), answer(twice), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer(back), answer(new_model()), atol=1e-5, rtol=1e-5)


def test_a_file_saved_again_is_the_same_file(tmp_path):
    first = save_lora(trained_model(alpha=9), tmp_path / "a.safetensors", torch.float32)
    model = new_model()
    load_lora(model, first)
    second = load_file(save_lora(model, tmp_path / "b.safetensors", torch.float32))
    for key, tensor in load_file(first).items():
        torch.testing.assert_close(second[key], tensor, atol=1e-7, rtol=1e-6)


def foreign(pairs: dict, prefix: str, down: str, up: str, alpha: float | None) -> dict:
    "The same LoRA in another dialect; with an alpha, its B is larger by as much as alpha makes it smaller."
    tensors = {}
    for module, (A, B) in pairs.items():
        tensors[f"{prefix}{module}.{down}.weight"] = A
        tensors[f"{prefix}{module}.{up}.weight"] = B if alpha is None else B * len(A) / alpha
        if alpha is not None:
            tensors[f"{prefix}{module}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("alpha", [None, 1.0, 16.0])
@pytest.mark.parametrize("down, up", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", ""])
def test_dialects_are_read_alike(saved, tmp_path, prefix, down, up, alpha):
    expected, _ = read_lora(saved)
    found, _ = read_lora(write(tmp_path / "f.safetensors", foreign(expected, prefix, down, up, alpha)))
    assert found.keys() == expected.keys()
    for module, (A, B) in expected.items():
        assert torch.equal(found[module][0], A)
        torch.testing.assert_close(found[module][1], B)


def test_alpha_that_diffusers_keeps_in_the_metadata_counts(saved, tmp_path):
    expected, _ = read_lora(saved)
    first = next(iter(expected))
    said = {
        "transformer.r": 4,
        "transformer.lora_alpha": 2,
        "transformer.alpha_pattern": {first: 8},
        "transformer.rank_pattern": {},
    }
    tensors = foreign(expected, "transformer.", "lora_A", "lora_B", None)
    found, _ = read_lora(write(tmp_path / "d.safetensors", tensors, {"lora_adapter_metadata": json.dumps(said)}))
    for module, (_, B) in expected.items():
        torch.testing.assert_close(found[module][1], B * (2.0 if module == first else 0.5))


def pair(module: str, out_size: int = 128, in_size: int = 128, rank: int = 2) -> dict:
    return {
        f"diffusion_model.{module}.lora_A.weight": torch.ones(rank, in_size),
        f"diffusion_model.{module}.lora_B.weight": torch.ones(out_size, rank),
    }


Q = "transformer_blocks.0.attn1.to_q"
BAD_FILES = {
    "another architecture": (
        pair("double_blocks.0.img_attn.qkv"),
        "0 of its 1 modules exist here; unknown: double_blocks.0.img_attn.qkv",
    ),
    "partly another": (
        pair(Q) | pair("transformer_blocks.48.attn1.to_q"),
        "1 of its 2 modules.*transformer_blocks.48.attn1.to_q",
    ),
    "another size": (
        pair(Q, 4096, 4096),
        "trained on a model of another size: .*attn1.to_q is 4096x4096 in the file and 128x128 here",
    ),
    "not a linear layer": (pair("transformer_blocks.0.attn1"), "0 of its 1 modules"),
    "one matrix missing": (
        {k: v for k, v in pair(Q).items() if "lora_B" not in k},
        "one of the two matrices is missing for .*attn1.to_q",
    ),
    "not a LoRA": ({"vae.decoder.conv_in.weight": torch.ones(2)}, "keys such as vae.decoder.conv_in.weight"),
    "DoRA": (pair(Q) | {f"diffusion_model.{Q}.dora_scale": torch.ones(1)}, "is DoRA.*dora_scale"),
    "empty": ({}, "is empty"),
}


@pytest.mark.parametrize("use", [fuse_lora, load_lora])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_do_not_belong_here_are_refused_and_change_nothing(tmp_path, use, kind):
    tensors, said = BAD_FILES[kind]
    path, model = write(tmp_path / "bad.safetensors", tensors), new_model()
    with pytest.raises(CheckpointError, match=said):
        use(model, path)
    fresh = first_model("2.3").state_dict()
    assert model.state_dict().keys() == fresh.keys() and all(
        torch.equal(v, fresh[k]) for k, v in model.state_dict().items()
    )


def test_adapters_of_another_rank_or_elsewhere_are_not_filled(tmp_path):
    path = save_lora(trained_model(rank=4, targets="video"), tmp_path / "l.safetensors")
    other_rank, elsewhere = new_model(), new_model()
    add_lora(other_rank, rank=8, target_modules=TARGETS["video"])
    add_lora(elsewhere, rank=4, target_modules=TARGETS["audio"])
    with pytest.raises(CheckpointError, match="has rank 4, this run has rank 8: set lora.rank to 4"):
        load_lora(other_rank, path)
    with pytest.raises(CheckpointError, match="only in the file: .*attn1.to_k.*only in this run: .*audio_attn1"):
        load_lora(elsewhere, path)


def test_mixed_ranks_can_be_fused_but_not_trained_on(tmp_path):
    tensors = pair(Q, rank=2) | pair(Q.replace("to_q", "to_k"), rank=3)
    path, model = write(tmp_path / "mixed.safetensors", tensors), new_model()
    with pytest.raises(CheckpointError, match=r"mixes ranks \[2, 3\]; it can be fused"):
        load_lora(model, path)
    fuse_lora(model, path)
    added = model.get_submodule(Q).weight - new_model().get_submodule(Q).weight
    torch.testing.assert_close(added, torch.full((128, 128), 2.0))


@pytest.mark.parametrize(
    "path, said",
    [
        ("nowhere.safetensors", "LoRA nowhere.safetensors does not exist"),
        ("https://e.org/l.safetensors", "the LoRA has to be a local file"),
    ],
)
def test_paths_that_lead_nowhere_are_called_a_lora(path, said):
    with pytest.raises(CheckpointError, match=said):
        read_lora(path)


def test_bfloat16_weights_are_fused_in_float32(saved):
    model = new_model().to(torch.bfloat16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    fuse_lora(model, saved)
    for module, (A, B) in read_lora(saved)[0].items():
        expected = (before[f"{module}.weight"].float() + B @ A).to(torch.bfloat16)
        assert torch.equal(model.get_submodule(module).weight, expected)


def test_a_second_lora_on_the_same_model_is_refused():
    model = trained_model()
    with pytest.raises(ValueError, match="already carries a LoRA"):
        add_lora(model, rank=2)


@pytest.mark.parametrize("rank, alpha, said", [(0, None, "rank is 0"), (-2, 4, "rank is -2"), (4, 0, "alpha is 0")])
def test_ranks_and_alphas_that_mean_nothing_are_refused(rank, alpha, said):
    with pytest.raises(ValueError, match=said):
        add_lora(new_model(), rank, alpha)


# the layer


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_layer_is_that_of_peft(dropout):
    "The same numbers are drawn and the same is computed, forward and backward; PEFT is the oracle."
    from peft import LoraConfig, inject_adapter_in_model

    names, found = [f"transformer_blocks.{i}.attn1.{p}" for i in range(2) for p in ("to_q", "to_out.0")], []
    for ours in (True, False):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict()
        for name in names:
            owner = model
            *path, leaf = name.split(".")
            for part in path:
                owner = owner._modules.setdefault(part, torch.nn.ModuleDict())
            owner[leaf] = torch.nn.Linear(8, 8)
        targets = ["attn1.to_q", "attn1.to_out.0"]
        if ours:
            add_lora(model, 4, 6, targets, dropout)
        else:
            config = LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=names, bias="none")
            inject_adapter_in_model(config, model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        drawn = {name: p.detach().clone() for name, p in trained.items()}
        for p in trained.values():
            torch.nn.init.normal_(p)
        x = torch.randn(5, 8)
        for name in names:
            x = model.get_submodule(name)(x)
        found.append((drawn, x, torch.autograd.grad(x.sum(), list(trained.values()))))
    (drawn, out, grads), (their_drawn, their_out, their_grads) = found
    assert drawn.keys() == their_drawn.keys() and all(torch.equal(drawn[name], their_drawn[name]) for name in drawn)
    assert torch.equal(out, their_out) and all(map(torch.equal, grads, their_grads))


def test_a_lora_needs_neither_peft_nor_what_peft_brings(tmp_path):
    "PEFT imports bitsandbytes, which prints to every user of a CPU and asks a network for code."
    code = (
        "import sys, torch; from ltx_nb import add_lora; from ltx_nb.loading.lora import save_lora\n"
        "model = torch.nn.ModuleDict({'to_k': torch.nn.Linear(4, 4)})\n"
        "add_lora(model, 2, target_modules=['to_k']); save_lora(model, sys.argv[1])\n"
        "print(sorted({'peft', 'bitsandbytes', 'kernels'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.safetensors"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
