"What the fields of a configuration are: in a terminal and on the site, from the classes."

import re
import subprocess
import sys

import pytest
import yaml

from ltx_nb.config import LtxTrainerConfig, config_text, example_configs, models_in
from ltx_nb.explain import every_path, explain, look_up, reference_markdown

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
        ("lora.rank", ["int, at least 2", "default: 64", "inner width of the adapter"]),
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
        assert f"{model.__name__.lower()}.{note.name}" in anchors
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= set(anchors)
    rows = [line for line in page.splitlines() if line.startswith("| <a")]
    assert len(rows) == sum(len(m.model_fields) for m in {m for m, _ in PATHS.values()})
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)  # four cells, whatever they hold
    assert all(f"`{name}`" in page for name in example_configs())


def test_a_path_leads_to_the_field_that_the_configuration_reads():
    for path, (model, note) in PATHS.items():
        assert (model, note) in look_up(path)[1]
    top = {model for field in LtxTrainerConfig.model_fields.values() for model in models_in(field.annotation)}
    assert top <= {model for model, _ in PATHS.values()}


def test_explaining_does_not_import_torch():
    code = "import sys; from ltx_nb.explain import explain; explain(''); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
