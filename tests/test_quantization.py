"Quantized weights: what a format does to them, which layers get one, and that all else goes on as before."

import copy

import pytest
import torch
from tiny_runs import make_place, make_trainer, same, train
from torch import nn

from ltx_nb.data.batches import collate
from ltx_nb.model.latents import ConfigError
from ltx_nb.loading.checkpoint import load_transformer
from ltx_nb.loading.lora import TARGETS, add_lora, fuse_lora, read_lora
from ltx_nb.model.attention import project
from ltx_nb.loading.quantization import (
    FORMATS, QuantizedLinear, dequantize, find_format, memory_note, precision_report, quantize, quantize_model,
)  # fmt: skip
from ltx_nb.tiny.checkpoint import make_tiny_checkpoint
from ltx_nb.training.held_out import sample_losses
from ltx_nb.training.validation import generate
from ltx_nb.training.weights import trained_parameters

BYTES = {"int8": 1, "fp8": 1, "fp8uz": 1, "nf4": 0.5, "int4": 0.5, "int2": 0.25}  # of a code
ERRORS = {
    "int8": 0.01,
    "fp8": 0.03,
    "fp8uz": 0.03,
    "nf4": 0.1,
    "int4": 0.12,
    "int2": 0.55,
}  # of normally distributed weights
SPARED = ("adaln_single", "patchify_proj", "proj_out", "caption_projection", "to_gate_logits", "norm", "table", "bias")
STEPS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("quantized"))


@pytest.fixture(scope="module", params=("2", "2.3"))
def model_path(request, tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("version"), version=request.param).model


@pytest.fixture(scope="module")
def trained(place):
    "A LoRA that was trained beside int8 weights."
    return train(place, place.folder / "int8", optimization__steps=STEPS, acceleration__quantization="int8")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def there_and_back(weight, name):
    kind = FORMATS[name]
    return dequantize(*quantize(weight, kind), kind, torch.float32)


def dense_twin(model):
    "An ordinary model with the numbers that a quantized one computes with."
    twin = copy.deepcopy(model)
    for path, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            plain.load_state_dict({"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias}))
            twin.set_submodule(path, plain.requires_grad_(False))
    return twin


# a weight


@pytest.mark.parametrize("name", FORMATS)
def test_error_and_size_of_a_format(name):
    weight = normal(64, 512)
    codes, scale = quantize(weight, FORMATS[name])
    assert codes.nbytes == BYTES[name] * weight.numel() and scale.nbytes <= 2 * max(64, weight.numel() // 64)
    back = there_and_back(weight, name)
    assert (back - weight).norm() < ERRORS[name] * weight.norm()
    assert torch.equal(there_and_back(back, name), back)


@pytest.mark.parametrize("name", FORMATS)
def test_every_weight_goes_to_the_nearest_level(name):
    weight, kind = normal(4, 64), FORMATS[name]
    back, scale = there_and_back(weight, name), quantize(weight, kind)[1].float()
    if kind.levels is None and kind.dtype is torch.int8:
        levels = torch.arange(-127.0, 128)
    elif kind.levels is None:
        levels = torch.arange(256, dtype=torch.uint8).view(kind.dtype).float()
        levels = levels[levels.isfinite()]
    else:
        levels = torch.tensor(kind.levels)
    distances = ((weight / scale)[..., None] - levels).abs().amin(-1) * scale
    torch.testing.assert_close((back - weight).abs(), distances, rtol=1e-4, atol=1e-8)


def test_nf4_is_the_format_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = (
        normal(32, 256).bfloat16().float()
    )  # so that its scales, the largest weights, are what is kept of them here
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    torch.testing.assert_close(torch.tensor(FORMATS["nf4"].levels), state.code.cpu(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        there_and_back(weight, "nf4"), functional.dequantize_4bit(codes, state), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "width"), [(3, 96), (1, 32), (5, 8)])
def test_rows_that_are_no_multiple_of_a_block(name, rows, width):
    weight = normal(rows, width)
    assert (there_and_back(weight, name) - weight).norm() < 1.2 * ERRORS[name] * weight.norm()


@pytest.mark.parametrize("name", ["int8", "fp8", "fp8uz", "nf4", "int4"])
def test_zeros_stay_zeros_and_extremes_stay_finite(name):
    weight = torch.zeros(3, 64)
    weight[1], weight[2, 0], weight[2, 1] = 0, 3e4, -3e4
    back = there_and_back(weight, name)
    assert not back[:2].any() and back.isfinite().all()
    assert back[2, :2].tolist() == pytest.approx([3e4, -3e4], rel=0.01)


def test_an_unknown_format_is_named_before_anything_is_loaded(place, monkeypatch):
    monkeypatch.setattr("ltx_nb.loading.checkpoint.stream_tensors", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match="no format 'int3'.*int8, fp8"):
        load_transformer(place.model, quantization="int3")


# a layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_computes_what_a_dense_one_with_its_numbers_computes(name, dtype):
    torch.manual_seed(0)
    source = nn.Linear(64, 48).to(dtype).requires_grad_(False)
    layer, reference, x = QuantizedLinear(source, name), copy.deepcopy(source), torch.randn(2, 5, 64, dtype=dtype)
    reference.weight.copy_(layer.dense(dtype))
    outs, grads = [], []
    for it in layer, reference:
        seen = x.clone().requires_grad_()
        outs.append(it(seen))
        outs[-1].float().square().mean().backward()
        grads.append(seen.grad)
    assert torch.equal(*outs) and torch.equal(*grads) and outs[0].dtype is dtype


@pytest.mark.parametrize("adapted", [False, True])
def test_no_dense_matrix_waits_for_the_backward_pass(adapted):
    model = nn.ModuleDict({"to_q": nn.Linear(256, 256)})
    model["to_q"] = QuantizedLinear(model["to_q"], "int8")
    if adapted:
        add_lora(model, 4, target_modules=["to_q"])
    saved, x = [], torch.randn(2, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        (out,) = project(x, model["to_q"])
    assert max(saved, default=0) <= 4 * 256  # the tokens, or a matrix of the adapter
    out.sum().backward()
    assert x.grad.abs().sum() > 0


def test_autocast_decides_what_is_computed_in():
    layer = QuantizedLinear(nn.Linear(32, 32), "int8")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 32)).dtype is torch.bfloat16
    assert layer(torch.randn(2, 32)).dtype is torch.float32


# a model


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_w47_layers_are_chosen_by_their_whole_name_in_both_streams(model_path, name):
    "The reference looks for patterns inside blocks and so quantizes the caption projection of one stream only."
    model = quantize_model(load_transformer(model_path), name)
    report = precision_report(model)
    few, rest = ({row.part for row in report if (row.form == name) is yes} for yes in (True, False))
    assert all(part.startswith("transformer_blocks.*.") for part in few) and few
    kept = {path for path, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    video = {path for path in kept if ".attn" in path or ".ff." in path}
    assert {path.replace(".attn", ".audio_attn").replace(".ff.", ".audio_ff.") for path in video} < kept
    tops = {path.split(".")[0] for path, _ in model.named_parameters()} - {"transformer_blocks"}
    assert tops <= {part.split(".")[0] for part in rest} | {"scale_shift_table", "audio_scale_shift_table"}
    dense = {path for path, weight in model.named_parameters() if weight.ndim == 2 and "transformer_blocks" in path}
    assert all(any(word in path for word in SPARED) for path in dense)


def test_a_report_counts_every_weight(place):
    model = load_transformer(place.model)
    weights, size = sum(p.numel() for p in model.parameters()), sum(p.nbytes for p in model.parameters())
    assert (sum(r.weights for r in precision_report(model)), sum(r.bytes for r in precision_report(model))) == (
        weights,
        size,
    )
    quantized = quantize_model(model, "nf4")
    add_lora(quantized, 2)
    report = precision_report(quantized)
    assert sum(r.weights for r in report) == weights and sum(r.bytes for r in report) < 0.7 * size
    assert "nf4 for" in memory_note(quantized) and "in bfloat16" in memory_note(quantized)


@pytest.mark.parametrize("name", ["int8", "fp8", "nf4"])
def test_a_quantized_model_is_the_dense_one_with_rounded_weights(place, name):
    trainer = make_trainer(
        place, place.folder / name, acceleration__quantization=name, lora__target_modules=TARGETS["all"]
    ).load()
    batch, found = collate([trainer.dataset[0]]), []
    for model in trainer.model, dense_twin(trainer.model):
        adapters = list(trained_parameters(model).values())
        loss = sample_losses(
            model, trainer.strategy, batch, trainer.run.data.timesteps, torch.Generator().manual_seed(0)
        )[0].mean()
        found.append((loss, *torch.autograd.grad(loss, adapters)))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-7)


def test_loading_quantizes_what_it_reads(place):
    streamed = load_transformer(place.model, dtype=torch.float32, quantization="nf4")
    afterwards = quantize_model(load_transformer(place.model, dtype=torch.float32), "nf4")
    assert same(streamed.state_dict(), afterwards.state_dict())
    assert not any(tensor.is_meta for tensor in streamed.state_dict().values())


def test_names_of_the_reference_trainer_mean_the_same_formats():
    for name in ("int8", "int4", "int2", "fp8", "fp8uz"):
        assert find_format(f"{name}-quanto") is find_format(name)


# a run


def test_training_beside_quantized_weights(place, trained, tmp_path):
    trainer, reports = trained
    assert any("int8 for" in text for text in trainer.runtime.progress.view.texts)
    _, dense_reports = train(place, tmp_path / "dense", optimization__steps=STEPS)
    losses = [[report.losses["loss"].item() for report in found] for found in (reports, dense_reports)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    frozen = load_transformer(place.model, dtype=torch.float32, quantization="int8").state_dict()
    state = {
        name.replace(".base_layer", ""): value
        for name, value in trainer.model.state_dict().items()
        if "lora_" not in name
    }
    assert same(state, frozen)
    assert all(B.abs().max() > 0 for _, B in read_lora(reports[-1].checkpoint)[0].values())


def test_gradient_checkpointing_changes_nothing(place, trained, tmp_path):
    again, _ = train(
        place, tmp_path, optimization__steps=STEPS, acceleration__quantization="int8",
        optimization__enable_gradient_checkpointing=True,
    )  # fmt: skip
    assert same(again.model.state_dict(), trained[0].model.state_dict())


def test_a_resumed_run_is_the_uninterrupted_one(place, trained, tmp_path):
    options = {"acceleration__quantization": "int8", "optimization__steps": STEPS, "checkpoints__interval": STEPS // 2}
    whole, reports = train(place, tmp_path / "whole", **options)
    halfway = next(report.checkpoint for report in reports if report.step == STEPS // 2)
    resumed, _ = train(place, tmp_path / "resumed", model__load_checkpoint=halfway, **options)
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_a_configuration_of_the_reference_trainer_is_told_what_it_gets(place, tmp_path):
    trainer = make_trainer(place, tmp_path, acceleration__quantization="int8-quanto").load()
    assert any(
        "int8 for" in text and "optimum-quanto is not used" in text for text in trainer.runtime.progress.view.texts
    )


def test_full_fine_tuning_is_refused(place, tmp_path):
    with pytest.raises(
        ConfigError, match="acceleration.quantization: given 'int8-quanto', but model.training_mode is full"
    ):
        make_trainer(place, tmp_path, model__training_mode="full", lora=None, acceleration__quantization="int8-quanto")


def test_a_lora_on_quantized_weights_generates(place, trained):
    lora = trained[1][-1].checkpoint
    small = {"width": 32, "height": 32, "frames": 9, "steps": 2, "guidance": None, "video": True, "audio": False}
    make = lambda **options: generate("a bird", place.model, place.text_encoder, **small | options).frames.float()
    dense, without = make(), make(quantization="int8")
    fused, beside = make(lora=lora, lora_strength=8.0), make(lora=lora, lora_strength=8.0, quantization="int8")
    assert (beside - fused).abs().mean() < (without - fused).abs().mean()
    assert (without - dense).abs().mean() < 8 and torch.equal(
        make(lora=lora, lora_strength=0.0, quantization="int8"), without
    )


def test_a_lora_is_not_lost_in_coarse_weights(place, trained):
    model = load_transformer(place.model, quantization="int8")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="load_lora"):
        fuse_lora(model, trained[1][-1].checkpoint)
    assert same(model.state_dict(), before)
