"The page 'What it costs' and the numbers behind it."

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "benchmarks")]
import costs as page  # docs/costs.py comes first on the path

NUMBERS = json.loads(page.NUMBERS.read_text(encoding="utf-8"))
ROUNDING = 0.06  # GB: the file has one decimal


def counting():
    "benchmarks/costs.py, which has the same name as the page's module."
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("counting", ROOT / "benchmarks" / "costs.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mode_card_and_size_has_its_row():
    text = page.markdown()
    for name in [*NUMBERS["modes"], *NUMBERS["cards"], *NUMBERS["sizes"]]:
        assert f"| {name} |" in text
    examples = {path.stem for path in (ROOT / "ltx_nb" / "configs").glob("*_lora.yaml")} - {"tiny_t2v_lora"}
    assert {mode["example"] for mode in NUMBERS["modes"].values()} == examples
    assert "was timed" in text and f"{NUMBERS['reached']:.0%}" in text


def test_a_format_is_named_only_where_a_tenth_of_the_card_stays_free():
    memory = {"bf16": 45.0, "int8": 27.0, "nf4": 18.0}
    assert [page.fits(memory, card) for card in (16, 24, 30, 32, 48, 80)] == ["", "nf4", "int8", "int8", "int8", "bf16"]


@pytest.mark.parametrize("value, said", [(0.01, "minutes"), (0.5, "30 min"), (2.34, "2.3 h"), (12.3, "12 h")])
def test_hours_are_said_as_one_would(value, said):
    assert page.about(value) == said


def test_hours_follow_from_work():
    assert page.hours(989 * NUMBERS["reached"], 989, NUMBERS) == pytest.approx(NUMBERS["steps"] / 3600)


def test_the_counted_memory_is_what_the_plan_says_today(tmp_path):
    count, mode = counting(), NUMBERS["modes"]["text to audio"]
    model = count.checkpoint(tmp_path)
    store = count.clips(mode["example"], model, tmp_path / "store", count.SIZES[NUMBERS["usual"]])
    plan = count.memory_plan(count.config_of(mode["example"], model, store, **{"acceleration.quantization": "nf4"}))
    assert plan.tokens == mode["tokens"]
    assert plan.total / 1e9 == pytest.approx(mode["memory"]["nf4"], abs=ROUNDING), "run benchmarks/costs.py --save"


def test_work_grows_with_the_square_of_long_clips_and_not_at_all_with_nothing():
    forward = counting().forward_work
    assert forward(0, 0) == 0
    assert 2 * forward(20_000, 0) < forward(40_000, 0) < 4 * forward(20_000, 0)
    assert forward(6120, 93) > forward(6120, 0) + forward(0, 93)  # what joins the streams


@pytest.mark.parametrize("name, most", (("t2v_lora_24gb", 23.0), ("t2v_lora_16gb", 15.2), ("t2v_lora_12gb", 11.4), ("t2v_lora_8gb", 7.6)))  # fmt: skip
def test_the_presets_were_counted_to_fit_their_cards(name, most):
    (row,) = [row for row in page.preset_rows() if row[0] == f"`{name}`"]
    assert all(float(cell.removesuffix(" GB")) < most for cell in row[3:6])  # a step, a sample, preparing
    assert f"| {' | '.join(row)} |" in page.markdown()


def test_the_preset_for_a_t4_overflowed_nowhere_and_learnt_alike():
    half = json.loads(page.HALF.read_text(encoding="utf-8"))
    assert half["steps"] >= 500 and half["fp16"]["overflows"] == 0
    assert half["fp16"]["losses"] == pytest.approx(half["bf16"]["losses"], rel=5e-3)  # bfloat16 rounds at 2**-9
    assert half["fp16"]["losses"][-1] < 0.8 * half["fp16"]["losses"][0]
