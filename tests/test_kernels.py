"Our own kernels against PyTorch's operations: in Triton's interpreter, and on a card where there is one."

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ltx_nb.loading.quantization import FORMATS, dequantize, quantize

pytest.importorskip("triton")
HERE = Path(__file__).resolve().parent
PLAIN, INTERPRETED = {"LTX_NB_KERNELS": "0"}, {"LTX_NB_KERNELS": "1", "TRITON_INTERPRET": "1"}


def run(path, *where, **environment):
    "The tensors of tests/kernel_runs.py, and whether the kernels were used."
    command = [sys.executable, str(HERE / "kernel_runs.py"), str(path), *where]
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    given = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=given)
    assert done.returncode == 0, done.stderr[-2000:]
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()["kernels"] == "True"


def distance(found, expected):
    return float((found - expected).double().norm() / expected.double().norm().clamp(min=1e-12))


def test_velocities_and_gradients_are_those_of_plain_operations(tmp_path):
    "LTX-2 and 2.3, one stream and two, by sample and by token, with quantized weights."
    (plain, without), (found, used) = run(tmp_path / "plain", **PLAIN), run(tmp_path / "ours", **INTERPRETED)
    assert used and not without and found.keys() == plain.keys() and len(plain) > 300
    off = {name: distance(found[name], expected) for name, expected in plain.items()}
    assert max(off.values()) < 1e-4, max(off.items(), key=lambda item: item[1])  # sums in another order


@pytest.mark.gpu
def test_a_card_computes_as_near_to_the_truth_with_them(tmp_path):
    truth, _ = run(tmp_path / "truth", **PLAIN)
    plain, without = run(tmp_path / "plain", "cuda", "bfloat16", **PLAIN)
    found, used = run(tmp_path / "ours", "cuda", "bfloat16")
    assert used and not without
    ours, theirs = ([distance(tensors[name], truth[name]) for name in truth] for tensors in (found, plain))
    assert sum(ours) / len(ours) < 1.02 * sum(theirs) / len(theirs)  # they round once where operations round each


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["int8", "nf4", "int4", "int2"])
def test_a_card_makes_the_same_weights_of_codes(name, dtype):
    codes, scale = quantize(torch.randn(96, 1024, generator=torch.Generator().manual_seed(0)), FORMATS[name])
    expected = dequantize(codes, scale, FORMATS[name], dtype)
    found = dequantize(codes.cuda(), scale.cuda(), FORMATS[name], dtype)
    assert torch.equal(found.cpu(), expected)
