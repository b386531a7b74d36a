import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing downloads in a test
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_collection_modifyitems(items):
    "Tests marked `gpu` need a CUDA device; without one they are skipped, not failed."
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
