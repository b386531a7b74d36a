"""How fast a file of tensors is read: `python -m benchmarks.reading [--gb 4]`, from the root of the project.

`ltx_nb.loading.checkpoint.read_tensors` beside safetensors, by its `pread` and by its map, alternating in one process, into
memory of the host. The file has random numbers and is in the cache of the system, so that the disk is not what is measured:
what takes the time is memory that is new. Whether the bytes are the same is said first.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ltx_nb.loading.checkpoint import read_tensors, tensor_places

SHAPE = (4096, 16384)  # the largest weights of LTX-2, 134 MB in bfloat16


def by_pread(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt", backend="pread") as file:
        yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118


def by_map(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        yield from ((name, file.get_tensor(name).clone()) for name in file.keys())  # noqa: SIM118


WAYS: dict[str, Callable[[Path], Iterator[tuple[str, Tensor]]]] = {
    "ltx_nb": lambda path: read_tensors(tensor_places(path)),
    "safetensors, pread": by_pread,
    "safetensors, map and copy": by_map,
}


def seconds(way: Callable, path: Path) -> float:
    "Of reading all of it, one tensor in memory at a time."
    began = time.perf_counter()
    for _ in way(path):
        pass
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0, help="size of the file")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, count = Path(folder) / "tensors.safetensors", max(1, round(options.gb * 1e9 / 2 / SHAPE[0] / SHAPE[1]))
        save_file({f"w{i}": torch.randint(-(2**15), 2**15, SHAPE, dtype=torch.int16) for i in range(count)}, path)
        size, first = path.stat().st_size, {name: dict(way(path)) for name, way in list(WAYS.items())[:2]}
        ours, theirs = first.values()
        print(f"{size / 1e9:.1f} GB; the same bytes: {all(torch.equal(ours[name], theirs[name]) for name in theirs)}")
        del first, ours, theirs
        took = {name: [] for name in WAYS}
        for _ in range(options.rounds):
            for name, way in WAYS.items():
                took[name].append(seconds(way, path))
        middle = {name: statistics.median(times) for name, times in took.items()}
        for name, median in middle.items():
            print(f"{name:28} {size / 1e9 / median:6.2f} GB/s  {median / middle['ltx_nb']:5.2f} times our time")


if __name__ == "__main__":
    main()
