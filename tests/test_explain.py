"What the fields of a configuration are: in a terminal and on the site, from the classes."

import re
import subprocess
import sys

import pytest
import yaml
from tiny_runs import configure, make_place

from ltx_nb.config.section import models_in
from ltx_nb.config.schema import LtxTrainerConfig
from ltx_nb.config.files import config_text, example_configs
from ltx_nb.config.explain import COSTS, every_path, explain, look_up, reference_markdown
from ltx_nb.training.fit import Sizes

PATHS = {path: (model, note) for path, model, note in every_path()}


def keys_of(value, path=""):
    "Every dotted key of a file, entries of lists without their index."
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"{path}.{key}".strip(".")
            yield from keys_of(child, f"{path}.{key}")
    elif isinstance(value, list):
        for child in value:
            yield from keys_of(child, path)


@pytest.mark.parametrize(
    "path, words",
    [
        ("lora.rank", ["int, 2 to 65,536", "default: 64", "inner width of the adapter"]),
        ("model.model_path", ["path; required"]),
        ("optimization.betas", ["2 times number (at least 0 and below 1)", "[0.9, 0.999]"]),
        ("optimization.scheduler_params.step.gamma", ["number, above 0"]),
        ("validation.samples.conditions.prefix.num_frames", ["int or null, at least 1", "default: null"]),
        ("validation.samples.0.conditions.1.num_frames", ["num_frames of prefix", "num_frames of suffix"]),
        ("validation.samples", ["prompt (required)", "rule: "]),
        ("training_strategy.video.conditions.mask", ["mask_dir (required)"]),
        ("training_strategy", ["caption_dropout = 0.0", "Deprecated"]),
        ("", ["model_path (required)", "temporal_boundary (required)", "end_factor = 0.1"]),
    ],
)
def test_a_path_is_explained(path, words):
    text = explain(path)
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", example_configs())
def test_every_key_of_the_examples_is_explained(name):
    for key in keys_of(yaml.safe_load(config_text(name))):
        assert explain(key), key


@pytest.mark.parametrize("path", PATHS)
def test_every_field_says_what_it_is(path):
    model, note = PATHS[path]
    assert note.name in ("type", "name") or note.meaning
    assert note.meaning in explain(path) and note.kind in explain(path)
    assert model.model_fields[note.name].is_required() == (note.default == "required")


@pytest.mark.parametrize(
    "path, advice",
    [
        ("lora.rnk", "did you mean rank?"),
        ("rank", "did you mean lora.rank?"),
        ("validation.sample", "did you mean samples"),
        ("validation.samples.conditions.prefx", "did you mean prefix"),
        ("lora.rank.more", "it has no fields"),
        ("3", "there is no 3"),
        ("ünknown", "there are model, lora,"),
    ],
)
def test_a_wrong_path_is_answered_with_what_is_near(path, advice):
    with pytest.raises(ValueError, match=re.escape(advice)):
        explain(path)


def test_the_reference_has_a_table_for_every_section_and_a_row_for_every_field():
    page = reference_markdown()
    anchors = re.findall(r"\{#(\S+)\}", page) + re.findall(r'<a id="([^"]+)">', page)
    assert len(anchors) == len(set(anchors))
    for model, note in PATHS.values():
        name, room = model.__name__.lower(), model.__module__.rpartition(".")[2]
        assert {f"{name}.{note.name}", f"{room}-{name}.{note.name}"} & set(anchors)
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= set(anchors)
    rows = [line for line in page.splitlines() if line.startswith("| <a")]
    assert len(rows) == sum(len(m.model_fields) for m in {m for m, _ in PATHS.values()})
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)  # five cells, whatever they hold
    assert all(f"`{name}`" in page for name in example_configs())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("costs"))


def test_every_price_is_that_of_a_field():
    assert {f"{m.__name__}.{n.name}" for m, n in PATHS.values() if n.costs} == COSTS.keys()
    assert all(f"costs: {note.costs}" in explain(path) for path, (_, note) in PATHS.items() if note.costs)


@pytest.mark.parametrize(
    "path, value, memory, work",
    [
        ("lora.rank", 64, 1, 0), ("lora.target_modules", ["to_k", "to_q", "to_v", "to_out.0", "net.0.proj"], 1, 0),
        ("optimization.batch_size", 4, 1, 1), ("optimization.gradient_accumulation_steps", 4, 1, 1),
        ("optimization.enable_gradient_checkpointing", True, -1, 1), ("optimization.ema_decay", 0.9, 1, 0),
        ("acceleration.quantization", "int8", -1, 0),
    ],
)  # fmt: skip
def test_what_a_price_says_is_what_the_plan_counts(place, path, value, memory, work):
    sign = lambda change: (change > 0) - (change < 0)
    before = Sizes.of(configure(place, place.folder))
    after = Sizes.of(configure(place, place.folder, **{path.replace(".", "__"): value}))
    assert sign(after.plan.total - before.plan.total) == memory, (after.plan.total, before.plan.total)
    assert sign(after.operations - before.operations) == work
    said = explain(path)
    assert {1: "more memory", -1: "less memory", 0: ""}[memory] in said
    assert {1: "more time", 0: ""}[work] in said


def test_a_path_leads_to_the_field_that_the_configuration_reads():
    for path, (model, note) in PATHS.items():
        assert (model, note) in look_up(path)[1]
    top = {model for field in LtxTrainerConfig.model_fields.values() for model in models_in(field.annotation)}
    assert top <= {model for model, _ in PATHS.values()}


def test_explaining_does_not_import_torch():
    code = "import sys; from ltx_nb.config.explain import explain; explain(''); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
