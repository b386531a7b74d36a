"""Import this before `ltx_core`: the oracle asks for torchaudio at import time but none of what we compare uses it."""

import importlib.machinery
import os
import sys
import types

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _stub(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    module.__version__ = "0.0.0"
    return module


if "torchaudio" not in sys.modules:
    stub = sys.modules["torchaudio"] = _stub("torchaudio")
    stub.functional, stub.transforms = _stub("torchaudio.functional"), _stub("torchaudio.transforms")
    sys.modules["torchaudio.functional"], sys.modules["torchaudio.transforms"] = stub.functional, stub.transforms
