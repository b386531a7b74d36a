"What a configuration takes on a card, and the nearest that fits."

import pytest
from tiny_runs import Notes, configure, make_place, make_trainer, told, train

from ltx_nb.config.files import load_config
from ltx_nb.model.latents import ConfigError
from ltx_nb.tools.cli import main
from ltx_nb.training.progress import Progress
from ltx_nb.training.trainer import LtxvTrainer
from ltx_nb.training.fit import CARDS, Card, Sizes, disk_bytes, find_card, fit_note, fit_on, fit_to

AGAIN = {"optimization__enable_gradient_checkpointing": True}
GB = 1e9


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="module")
def sizes(place, tmp_path_factory):
    return Sizes.of(configure(place, tmp_path_factory.mktemp("run"), **AGAIN))


def card_with(room: float) -> Card:
    "One that has so many bytes for a run."
    return Card("a card", (room + GB) / 0.97, 71e12, 24e9)


def test_each_saving_makes_the_peak_smaller(place, sizes, tmp_path):
    peak = lambda **how: Sizes.of(configure(place, tmp_path, **AGAIN, **how)).plan.total
    saved = (
        {"acceleration__stream": 0, "acceleration__stream_slabs": 1}, {"acceleration__quantization": "int8"},
        {"acceleration__offload_activations": True},
    )  # fmt: skip
    assert all(peak(**how) < sizes.plan.total for how in saved[:2])
    assert peak(**saved[2]) <= sizes.plan.total  # it has no more blocks than wait anyway


def test_what_fits_stays_as_it_is_and_what_does_not_is_changed_until_it_does(sizes):
    assert fit_to(sizes.config, CARDS["h200"], 64 * GB)[0] == sizes.config
    peak = fit_on(sizes, CARDS["t4"]).peak
    config, fit = fit_to(sizes.config, card_with(0.93 * peak), 64 * GB)
    assert fit.fits and fit.peak <= 0.93 * peak and config != sizes.config
    assert "on the device" in fit_note(config, fit) and "s a step" in fit_note(config, fit)
    assert Sizes.of(config).plan.total == pytest.approx(fit.peak, rel=0.02)  # counted anew it is the same


def test_what_cannot_fit_says_what_would(sizes):
    with pytest.raises(ConfigError, match="lora.rank"):
        fit_to(sizes.config, card_with(1e5), 64 * GB)
    with pytest.raises(ConfigError, match="GB of host memory"):
        fit_to(sizes.config, card_with(0.93 * fit_on(sizes, CARDS["t4"]).peak), 1e6)


@pytest.mark.parametrize(
    "name, expected", (("L4", "l4"), ("RTX 4090", "4090"), ("nvidia h100", "h100"), ("24", "24 GB"))
)
def test_cards_have_the_names_that_people_use(name, expected):
    assert find_card(name).name == expected


ONE_CARD = {
    "model__training_mode": "full", "lora": None, "checkpoints__save_training_state": "full",
    "acceleration__mixed_precision_mode": "bf16", "acceleration__trained_weights": "bfloat16",
    "acceleration__offload_optimizer": True,
}  # fmt: skip
SAVED = {}, {"checkpoints__keep_last_n": 1}, {"checkpoints__save_training_state": "off"}, ONE_CARD


@pytest.mark.parametrize("how", SAVED)
def test_checkpoints_take_what_was_foretold_of_the_disk(place, tmp_path, how):
    more = {"optimization__steps": 3, "checkpoints__interval": 1, "checkpoints__keep_last_n": 2} | how
    trainer, _ = train(place, tmp_path, **more)
    kept = trainer.config.checkpoints.keep_last_n
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoints").rglob("*.safetensors"))
    foretold = disk_bytes(trainer.config) * kept / (kept + 1)  # one more is there while it is written
    assert foretold <= size < 1.2 * foretold + 1e5  # names, and the state of generators


def test_a_card_without_bfloat16_computes_in_float16(place, tmp_path):
    config = configure(place, tmp_path, acceleration__mixed_precision_mode="bf16")
    assert fit_to(config, CARDS["t4"], 64 * GB)[0].acceleration.mixed_precision_mode == "fp16"


def test_auto_changes_nothing_on_a_cpu_and_says_so(place, tmp_path):
    trainer = make_trainer(place, tmp_path, acceleration__memory="auto")
    assert trainer.config.acceleration.stream == "off" and "memory: auto" in told(trainer)


def test_auto_is_done_before_anything_is_loaded(place, tmp_path, monkeypatch, sizes):
    card = card_with(0.93 * fit_on(sizes, CARDS["t4"]).peak)
    monkeypatch.setattr("ltx_nb.training.fit.this_card", lambda device: card)
    trainer, _ = train(place, tmp_path, acceleration__memory="auto", **AGAIN)
    assert trainer.config != configure(place, tmp_path, acceleration__memory="auto", **AGAIN)
    assert "memory for a card" in told(trainer)


@pytest.mark.parametrize(
    "arguments, code, words",
    (([], 0, "GB for checkpoints"), (["--gpu", "h100"], 0, "s a step"), (["--gpu", "radeon"], 1, "there is no card")),
)
def test_the_command_says_it(place, tmp_path, capsys, arguments, code, words):
    values = {
        "model.model_path": place.model, "model.text_encoder_path": place.text_encoder, "output_dir": tmp_path,
        "data.preprocessed_data_root": place.data,
    }  # fmt: skip
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    with pytest.raises(SystemExit) as end:
        main(["plan", "tiny_t2v_lora", *sets, *arguments])
    found = capsys.readouterr()
    assert end.value.code == code and words in found.out + found.err


@pytest.mark.parametrize("name", ("t2v_lora_24gb", "t2v_lora_16gb", "t2v_lora_12gb", "t2v_lora_8gb", "t2v_lora_t4"))
def test_a_preset_trains_on_the_tiny_model(place, tmp_path, name):
    config = load_config(name, {
        "model.model_path": str(place.model), "model.text_encoder_path": None, "output_dir": str(tmp_path),
        "data.preprocessed_data_root": str(place.data), "optimization.steps": 2, "validation.interval": None,
        "data.num_dataloader_workers": 0,
    })  # fmt: skip
    assert config.acceleration.quantization == "int8" and config.optimization.enable_gradient_checkpointing
    assert LtxvTrainer(config, Progress(Notes()), "cpu").train().steps == 2
