"Float16, for cards that have no bfloat16: it learns alike, and what passes from block to block may be large."

import pytest
import torch
from tiny_runs import TARGETS, make_place, trained

from ltx_nb.config.files import load_config
from ltx_nb.model.devices import codec_dtype
from ltx_nb.training.memory import largest_batch, step_bytes
from ltx_nb.training.progress import make_progress
from ltx_nb.training.trainer import LtxvTrainer

STEPS = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("half"))


def preset(place, output, mode="fp16", **changes):
    given = {
        "model.model_path": str(place.model), "model.text_encoder_path": None, "output_dir": str(output),
        "data.preprocessed_data_root": str(place.data), "data.num_dataloader_workers": 0, "validation.interval": None,
        "optimization.steps": STEPS, "optimization.learning_rate": 1e-3, "lora.target_modules": TARGETS, "lora.rank": 4, "acceleration.mixed_precision_mode": mode,
    }  # fmt: skip
    return load_config("t2v_lora_t4", given | {name.replace("__", "."): value for name, value in changes.items()})


def run(config):
    trainer = LtxvTrainer(config, make_progress("none"), "cpu")
    return trainer, [report.numbers() for report in trainer.steps()]


def test_the_preset_learns_as_bfloat16_does(place, tmp_path):
    runs = {mode: run(preset(place, tmp_path / mode, mode)) for mode in ("fp16", "bf16")}
    losses = {mode: torch.tensor([numbers["loss"] for numbers in found]) for mode, (_, found) in runs.items()}
    assert torch.isfinite(losses["fp16"]).all()
    torch.testing.assert_close(losses["fp16"], losses["bf16"], rtol=5e-3, atol=0)  # bfloat16 rounds at 2**-9
    assert all(torch.isfinite(torch.tensor(numbers["grad_norm"])) for numbers in runs["fp16"][1])
    moved = {mode: torch.cat([p.flatten() for p in trained(trainer).values()]) for mode, (trainer, _) in runs.items()}
    assert torch.cosine_similarity(*moved.values(), dim=0) > 0.98
    assert runs["fp16"][0].run.weights.scaler.get_scale() == 2**16  # no step was lost, so it was never halved


def test_what_passes_from_block_to_block_may_be_larger_than_float16_can_say(place, tmp_path):
    trainer = LtxvTrainer(preset(place, tmp_path, acceleration__stream="off", acceleration__quantization=None), make_progress("none"), "cpu")  # fmt: skip
    model = trainer.load().run.weights.model
    with torch.no_grad():  # a bias is added to what the first block gets: nothing but the sums becomes large
        model.transformer_blocks[0].register_forward_pre_hook(lambda block, inputs: ({n: x * 3e4 for n, x in inputs[0].items()}, *inputs[1:]))  # fmt: skip
    seen = []
    model.transformer_blocks[-1].register_forward_pre_hook(
        lambda block, inputs: seen.extend((x.dtype, float(x.detach().abs().max())) for x in inputs[0].values())
    )
    losses = [report.numbers()["loss"] for report in trainer.steps()]
    assert max(size for _, size in seen) > torch.finfo(torch.float16).max and all(
        kind is torch.float32 for kind, _ in seen
    )
    assert torch.isfinite(torch.tensor(losses)).all()


def test_the_plan_knows_that_float16_keeps_more(place, tmp_path):
    counted = {}
    for mode in ("fp16", "bf16"):
        config = preset(place, tmp_path, mode)
        counted[mode] = step_bytes(config, largest_batch(config))
    assert 1.05 < counted["fp16"] / counted["bf16"] < 2.2


def test_autoencoders_are_float32_on_a_card_without_bfloat16(monkeypatch):
    monkeypatch.setattr("ltx_nb.model.devices.runs_cuda", lambda device: str(device).startswith("cuda"))
    for major, expected in ((7, torch.float32), (8, torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 5))
        assert codec_dtype(torch.bfloat16, "cuda") is expected
    assert codec_dtype(torch.bfloat16, "cpu") is torch.bfloat16
