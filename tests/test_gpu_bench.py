"The program for the first minutes on a card runs at tiny sizes without one, and goes on when a part fails or hangs."

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.real_size import Stage
from ltx_nb.tools.hollow import real_header
from ltx_nb.training.memory import memory_plan

ROOT = Path(__file__).resolve().parents[1]


def test_the_whole_of_it_runs_dry(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("gpu-*-dry.json"))
    assert (
        list(found["parts"]) == ["card", "steps", "profile", "numbers", "modes", "tests", "presets"]
        and found["about"]["torch"] == torch.__version__
    )
    assert not any("error" in part for part in found["parts"].values()), found
    assert "skipped" in found["parts"]["tests"]["summary"] or torch.cuda.is_available()
    rows = found["parts"]["steps"]["rows"]
    assert [row["form"] for row in rows] == [*gpu.FORMS, gpu.REFERENCE]
    assert all(row["seconds"] > 0 for row in rows if row["form"] != gpu.REFERENCE), rows  # ltx-core may not be there
    (mode,) = (facts for name, facts in found["parts"]["modes"].items() if name.startswith("modes: "))
    assert mode == {"off": 0.0, "first off": 0.0}  # the same device twice
    assert (
        found["parts"]["profile"]["by_kind"]["products"]
        and found["parts"]["presets"]["t2v_lora_24gb: step"]["loss"] > 0
    )
    (table,) = tmp_path.glob("gpu-*-dry.md")
    assert "| bf16, checkpointing | 64x64x9 |" in table.read_text(encoding="utf-8")


PROGRAMS = {  # what a part may do to us
    "breaks": "import os; print('{\"half\": 1}', flush=True); os.abort()",
    "hangs": "import time; print('{\"half\": 2}', flush=True); time.sleep(600)",
    "is fine": "print('not for us'); print('{\"answer\": 42}')",
}


class Fake(gpu.Job):
    def command(self, dry: bool) -> list[str]:
        return [sys.executable, "-c", PROGRAMS[self.part]]


def test_a_part_that_breaks_or_hangs_leaves_what_it_said_and_the_next_one_begins():
    written, began = [], time.monotonic()
    todo = [Fake(name, 1.0 if name == "hangs" else 30.0) for name in PROGRAMS]
    found = gpu.run_jobs(todo, True, began + 60, lambda results: written.append(json.dumps(results)))
    breaks, hangs, fine = (found["parts"][name] for name in PROGRAMS)
    assert breaks["half"] == 1 and "ended with -6" in breaks["error"]
    assert hangs["half"] == 2 and "not done after 1 s" in hangs["error"] and hangs["took_s"] < 20
    assert fine["answer"] == 42 and "error" not in fine
    assert any('"half": 2' in text and "not done" not in text for text in written)  # before it was given up
    assert "failed: not done" in gpu.table(found) and "- answer: 42" in gpu.table(found)


def test_nothing_new_begins_when_time_is_up():
    found = gpu.run_jobs([Fake("is fine", 30.0)], True, time.monotonic(), lambda results: None)
    assert found["parts"]["is fine"]["error"] == "no time was left"


def test_what_was_prepared_for_the_steps_is_what_the_plan_says(tmp_path):
    prepared = json.loads(gpu.ROWS.read_text(encoding="utf-8"))
    assert prepared["transformer"] == real_header("2.3")["transformer"]
    rows = {(row["form"], row["size"]): row for row in prepared["rows"]}
    assert rows.keys() == {(form, size) for form in gpu.FORMS for size in gpu.SIZES}
    stage = Stage(tmp_path, "2.3", tuple(map(int, gpu.SIZES[-1].split("x"))))
    stage.write()
    config = stage.config("t2v_lora", stage.write_records("t2v_lora", []), tmp_path / "run", [], False)
    assert prepared["lora"] == {name: getattr(config.lora, name) for name in prepared["lora"]}
    row = rows["bf16, checkpointing", gpu.SIZES[-1]]
    assert row["foretold_gb"] == pytest.approx(memory_plan(config, sampling=False).total / 1e9, rel=1e-3), (
        "python -m benchmarks.gpu --prepare"
    )
    assert row["counted_gb"] == pytest.approx(row["foretold_gb"], rel=0.02)


def test_the_steps_need_nothing_but_pytorch():
    "What the parts `card` and `steps` import, with everything refused that is not PyTorch's own."
    code = """
import importlib.abc, sys
import torch
refused = {"pydantic", "yaml", "safetensors", "av", "tokenizers", "transformers", "peft", "accelerate", "huggingface_hub"}
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in refused else real(name, *more)
from benchmarks import gpu
gpu.run_part("steps", ["nf4, checkpointing"], gpu.Bench(dry=True))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["seconds"] > 0 and "error" not in row, (row, done.stderr[-1000:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks about machines without CUDA")
def test_without_a_card_it_says_what_to_do(capsys):
    assert gpu.main([]) == 2
    assert "--dry" in capsys.readouterr().err
