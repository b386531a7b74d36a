"Loading and streaming hold what is streamed once, and nothing of it where it comes from the file."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PROGRAM, SPARE = 0.6e9, 1.1  # Python with PyTorch, and what is on its way
ON_THE_DEVICE = 0.9e9  # what does not stream, which on this CPU is memory of the host


@pytest.mark.parametrize("source", ("memory", "file"))
def test_no_second_copy_of_four_gigabytes(tmp_path, source):
    command = [sys.executable, str(HERE / "host_memory.py"), str(tmp_path), source]
    here = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=here)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["copies"] == 8 and found["weights"] > 3.9e9
    most = SPARE * found["weights"] + PROGRAM if source == "memory" else ON_THE_DEVICE + PROGRAM
    assert found["most"] < most
