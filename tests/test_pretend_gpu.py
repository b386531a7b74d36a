"On a device that refuses, waits and counts as CUDA does: the CPU's numbers, and no wait in a step between two log lines."

import json
import os
import subprocess
import sys
from pathlib import Path

import test_modes
from pretend_runs import CLOSE, EXACT

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run(what: str, folder: Path) -> dict[str, dict]:
    "The cases of `pretend_runs.py`, in a process of its own: a device cannot be registered twice, nor late."
    command = [sys.executable, str(HERE / "pretend_runs.py"), what, str(folder)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # for `benchmarks`
    environment = os.environ | THREADS | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return {(facts := json.loads(line)).pop("case"): facts for line in done.stdout.splitlines() if line[:1] == "{"}


def check_memory(name: str, facts: dict, stages: set[str]) -> None:
    "What the run said that it took is what was counted, to a few scalars, and about what was foretold."
    off, beside = facts.pop("memory"), facts.pop("beside")
    bars = {"loading": 0.1}  # beside a model so small, what one layer takes while it is quantized is much
    assert stages <= off.keys() and all(abs(share) < bars.get(stage, 0.05) for stage, share in off.items()), (name, off)
    assert 0 <= beside < 200, (name, beside)


def test_every_mode_trains_and_samples_as_on_the_cpu(tmp_path):
    found = run("modes", tmp_path)
    assert list(found) == test_modes.CONFIGS
    for name, facts in found.items():
        check_memory(name, facts, {"loading", "step", "denoising", "decoding"})
        exact = {"same": True, "samples": 1, "same samples": True, "off": 0.0, "first off": 0.0, "waited": {}}
        assert facts == exact, name


def test_every_form_of_training_gives_the_numbers_of_the_cpu(tmp_path):
    found = run("forms", tmp_path)
    assert found.keys() == EXACT.keys() | CLOSE.keys()
    for name, facts in found.items():
        facts["memory"].pop("loading")  # of so small a model, what quantizes a layer is a share
        check_memory(name, facts, {"step"})
    assert all(facts["waited"] == {} for facts in found.values()), found
    assert all(found[name]["same"] for name in EXACT), found
    assert found["full"]["off"] < 1e-5 and max(found[name]["off"] for name in CLOSE) < 2e-2  # bfloat16 has two digits


def test_a_preparation_and_generations_give_the_numbers_of_the_cpu(tmp_path):
    found = run("prepared", tmp_path)
    roles = (
        "audio_latents",
        "audio_masks",
        "conditions",
        "latents",
        "reference_audio_latents",
        "reference_latents",
        "video_masks",
    )
    assert found.keys() == {*roles, "previews", "generation", "generation from a picture"}
    assert all(facts["same"] for facts in found.values()), found


def test_what_an_optimizer_remembers_can_leave_the_device_between_two_steps(tmp_path):
    found = run("offloads", tmp_path)
    assert found.keys() >= {"adamw", "adafactor", "muon", "adamw_bf16", "prodigy", "schedulefree"}
    assert all(facts == {"same": True, "away": True} for facts in found.values()), found
