"""What a process takes of the host that loads and streams a transformer of 4 GB: `python tests/host_memory.py FOLDER SOURCE`.

Blocks of the real LTX-2.3, in a file that is a hole. Prints the bytes of their weights, and the most that the process held
beside the slabs of the device, which on this CPU are memory of the host too."""

import json
import resource
import sys
from pathlib import Path

import torch

from ltx_nb.loading.streaming import load_streamed
from ltx_nb.tools.hollow import hollow_checkpoint, real_header

BLOCKS = 4


def main(folder: Path, source: str) -> None:
    header = real_header("2.3")
    header["transformer"]["num_layers"] = BLOCKS
    path = hollow_checkpoint(folder / "large.safetensors", "2.3", header)
    model = load_streamed(path, source=source)
    layer = model.transformer_blocks[0].attn1.to_q
    with torch.no_grad():
        for block in (*model.transformer_blocks, *reversed(model.transformer_blocks)):  # forward and back
            assert not block.attn1.to_q(torch.ones(1, 1, layer.in_features, dtype=torch.bfloat16)).any()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    slabs = model.streamer.size * len(model.streamer.blocks)
    on_device = model.streamer.size * len(model.streamer.slabs)
    print(json.dumps({"weights": weights + slabs, "most": most * 1024 - on_device, "copies": model.streamer.copies}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
