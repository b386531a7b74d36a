"The page for people who come from the LTX Trainer: every place that it names is there."

import importlib
import inspect
import sys
from functools import cache
from pathlib import Path

import pytest
import typer.main

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
import coming_from

from ltx_nb.tools.cli import app

ROWS = coming_from.rows()
PLACES = sorted({row["ours"] for row in ROWS if row["ours"]})
ASKED_FOR = (  # names that the issue tracker heard of first
    "load_text_encoder", "VocoderWithBWE", "SpatioTemporalScaleFactors", "VideoLatentShape", "AudioLatentShape",
    "FirstFrameConditionConfig", "TrainingStrategyConfig", "LtxvTrainer", "FlexibleStrategy",
)  # fmt: skip


@cache
def options() -> dict[str, set[str]]:
    "The options of every command."
    commands = typer.main.get_command(app).commands
    return {
        name: {option for p in command.params for option in (*p.opts, *getattr(p, "secondary_opts", ()))}
        for name, command in commands.items()
    }


def has(owner, name: str) -> bool:
    "An attribute, a field of a record or of a configuration, or a parameter."
    fields = {*getattr(owner, "model_fields", ()), *getattr(owner, "__annotations__", ())}
    return hasattr(owner, name) or name in fields or (callable(owner) and name in inspect.signature(owner).parameters)


def is_there(place: str) -> bool:
    "`ltx-nb prepare --output-dir`, or a dotted name down to a field or a parameter."
    if place.startswith("ltx-nb "):
        command, *more = place.split()[1:]
        return command in options() and all(o in options()[command] for o in more if o.startswith("--"))
    names = place.split(".")
    for cut in range(len(names), 0, -1):
        try:
            here = importlib.import_module(".".join(names[:cut]))
            break
        except ImportError:
            continue
    for name in names[cut:]:
        if not has(here, name):
            return False
        here = getattr(here, name, None)
    return True


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_there(place):
    assert is_there(place)


@pytest.mark.parametrize("place", ["ltx_nb.loading.lora.nothing", "ltx-nb prepare --nothing", "ltx-nb nothing"])
def test_a_place_that_is_not_there_would_be_noticed(place):
    assert not is_there(place)


@pytest.mark.parametrize("name", ASKED_FOR)
def test_names_that_people_look_for_have_a_place(name):
    assert any(row["ours"] for row in ROWS if row["theirs"].split(".")[-1] == name)


def test_the_page_lists_every_name():
    page = coming_from.markdown()
    assert len(ROWS) > 800 and page.count("\n| `") >= len(ROWS)
    assert all(row["theirs"].split(".")[-1].split()[-1] in page for row in ROWS)
