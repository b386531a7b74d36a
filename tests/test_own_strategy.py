"A strategy class of one's own, by name: from YAML and the command line, said, kept, and refused with a sentence."

import sys
from pathlib import Path

import pytest
from tiny_runs import configure, make_place, make_trainer, told, trained
from typer.testing import CliRunner

from ltx_nb.config.files import load_config
from ltx_nb.config.words import show
from ltx_nb.flow.strategies import get_training_strategy
from ltx_nb.loading.checkpoint import read_metadata
from ltx_nb.model.latents import ConfigError
from ltx_nb.tools.cli import app

CODE = """
from pathlib import Path

from ltx_nb.flow.strategies import FlexibleStrategy

Path(__file__).with_name("imported").touch()


class Louder(FlexibleStrategy):
    def __init__(self, config, times=1.0):
        super().__init__(config)
        self.times = times

    def compute_loss(self, video_pred, audio_pred, inputs):
        return self.times * super().compute_loss(video_pred, audio_pred, inputs)


class Fussy(FlexibleStrategy):
    def __init__(self, config):
        raise RuntimeError("not today")


class Plain:
    pass
"""
NAME = "training_strategy.name=my_louder:Louder"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("own_strategy"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    "A folder with modules of one's own, in which the work begins."
    (tmp_path / "my_louder.py").write_text(CODE)
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    (tmp_path / "my_needy.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_louder", "my_broken", "my_needy"):
        sys.modules.pop(name, None)


def own(place, output, name="my_louder:Louder", **changes):
    return make_trainer(place, output, training_strategy__name=name, **changes)


def test_a_named_strategy_trains_and_is_said_and_kept(place, here):
    trainer = own(place, here / "run", training_strategy__params={"times": 3.0})
    path_before = list(sys.path)
    result = trainer.train()
    assert type(trainer.strategy).__name__ == "Louder" and trainer.strategy.times == 3.0
    assert "Running your own code: strategy my_louder:Louder" in told(trainer)
    assert "my_louder:Louder (times=3.0)" in str(show(trainer.config))
    assert read_metadata(result.checkpoint)["strategy"] == "my_louder:Louder"
    again = load_config(here / "run" / "training_config.yaml")
    assert again.training_strategy == trainer.config.training_strategy and sys.path == path_before
    plain = make_trainer(place, here / "plain").train()
    assert result.losses["loss"] == pytest.approx(3 * plain.losses["loss"], rel=0.05)  # Adam steps alike, almost
    assert "strategy" not in read_metadata(plain.checkpoint)


def test_a_resumed_run_makes_it_again_and_one_without_it_is_told(place, here):
    def going_on(output, **changes):
        trainer = make_trainer(place, output, model__load_checkpoint=here / "half", optimization__steps=4, **changes)
        trainer.train()
        return trainer

    own(place, here / "half").train()
    straight = own(place, here / "straight", optimization__steps=4)
    straight.train()
    name = {"training_strategy__name": "my_louder:Louder"}
    same, other = going_on(here / "same", **name), going_on(here / "other")
    weights = trained(straight)
    assert type(same.strategy).__name__ == "Louder"
    assert weights.keys() == trained(same).keys() and "training_strategy.name" not in told(same)
    assert "training_strategy.name: saved 'my_louder:Louder', now 'flexible'" in told(other)


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("my_lauder:Louder", {}, "there is no module my_lauder, neither installed nor in"),
        ("my_louder.deep:Louder", {}, "there is no module my_louder.deep"),
        ("my_louder:Lauder", {}, "has no Lauder; the strategies in my_louder: Louder, Fussy"),
        ("my_louder:Plain", {}, "Plain of my_louder is no strategy"),
        ("my_louder:Path", {}, "Path of my_louder is no strategy"),
        ("my_broken:Louder", {}, "my_broken ends with ZeroDivisionError on import"),
        ("my_needy:Louder", {}, "my_needy imports a_package_that_nobody_has, which is not installed"),
        ("my_louder:Fussy", {}, "cannot be made (RuntimeError: not today)"),
        ("my_louder:Louder", {"training_strategy__params": {"loud": 1}}, "(given: loud)"),
        ("my_louder.Louder", {}, "or a class of your own as my_package.my_module:MyStrategy"),
        ("/tmp/my_louder.py:Louder", {}, "training_strategy.name: given '/tmp/my_louder.py:Louder'"),
        ("my_louder:Louder:more", {}, "training_strategy.name: given 'my_louder:Louder:more'"),
        ("flexible", {"training_strategy__params": {"times": 1}}, "training_strategy.params: unknown key"),
    ],
)
def test_what_is_no_strategy_is_a_sentence(place, here, name, changes, said):
    with pytest.raises(ConfigError) as error:
        configure(place, here / "run", training_strategy__name=name, **changes)
    assert said in str(error.value) and str(error.value).startswith("1 problem ")


def test_the_command_line_checks_it_and_trains_with_it(place, here):
    shape = ["--model", str(place.model), "--data", str(place.data), "--set", NAME, "--set", "validation.interval=null"]
    shape += [
        "--text-encoder",
        str(place.text_encoder),
        "--set",
        "optimization.steps=1",
        "--set",
        "lora.target_modules=[attn1.to_q]",
    ]
    train = CliRunner().invoke(app, ["train", "tiny_t2v_lora", *shape, "-o", "run", "--progress", "none"])
    assert train.exit_code == 0, train.output
    checked = CliRunner().invoke(app, ["config", "check", "run/training_config.yaml"])
    assert checked.exit_code == 0 and "my_louder:Louder, whose code is run" in " ".join(checked.output.split())
    wrong = CliRunner().invoke(
        app, ["config", "check", "run/training_config.yaml", "--set", "training_strategy.name=my_louder:Lauder"]
    )
    assert wrong.exit_code != 0 and "has no Lauder" in f"{wrong.output} {wrong.exception}"


def test_nothing_is_imported_where_nothing_is_used(place, here):
    config = configure(place, here / "run").model_dump(mode="json")
    config["training_strategy"]["name"] = "my_louder:Louder"
    (here / "imported").unlink(missing_ok=True)
    from ltx_nb.config.files import make_config

    read = make_config(config)
    assert "my_louder:Louder" in str(show(read)) and not (here / "imported").exists() and "my_louder" not in sys.modules
    get_training_strategy(read.training_strategy)
    assert (here / "imported").exists()
