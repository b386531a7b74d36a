"""How much memory a load takes, measured on a synthetic checkpoint in the official layout.

    python tools/measure_loading.py                 # writes a file of about 2.3 GB to the temporary folder, removes it
    python tools/measure_loading.py --keep DIR      # leaves it in DIR for the next time

Every row is a process of its own that imports the library, loads the transformer and then reads every weight once:
a weight that needs no cast is a page of the file, and costs memory only when it is read."""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

GIGABYTE = 1e9
LAYERS, HEADS, HEAD_DIM, AUDIO_HEAD_DIM = 12, 32, 64, 32
CASES = ("bfloat16", "float32")


def write_checkpoint(path: Path) -> None:
    "The tiny header, widened, and a tensor for every key of its transformer."
    import torch
    from safetensors.torch import save_file

    from ltx_nb.model.transformer import LTXModel
    from ltx_nb.tiny.checkpoint import tiny_header

    header = tiny_header("2.3")
    header["transformer"] |= {
        "num_layers": LAYERS, "num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM,
        "cross_attention_dim": HEADS * HEAD_DIM, "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": AUDIO_HEAD_DIM, "audio_cross_attention_dim": HEADS * AUDIO_HEAD_DIM,
    }  # fmt: skip
    with torch.device("meta"):
        model = LTXModel.from_config(header)
    tensors = {
        f"model.diffusion_model.{k}": torch.full(t.shape, 0.01, dtype=torch.bfloat16)
        for k, t in model.state_dict().items()
    }
    save_file(tensors, path, {"config": json.dumps(header), "model_version": "2.3.0"})


def memory(field: str) -> int:
    "Bytes, from this process's status: VmHWM (peak of all), VmRSS (now), RssAnon (now, without pages of files)."
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def load_and_report(path: str, dtype: str, device: str) -> None:
    "What one process sees, as JSON on the last line."
    import torch

    from ltx_nb.loading.checkpoint import load_transformer

    torch.set_num_threads(1)
    torch.zeros(1, device=device)  # a GPU's own start-up is not the loader's
    before, anonymous, done = memory("VmRSS"), [memory("RssAnon")], threading.Event()

    def watch():
        while not done.wait(0.005):
            anonymous.append(memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = load_transformer(path, device, getattr(torch, dtype))
    seconds, loaded = time.perf_counter() - start, memory("VmHWM")
    read = sum(float(p.sum(dtype=torch.float32)) for p in model.parameters())
    done.set()
    watcher.join()
    report = {
        "seconds": seconds, "before": before, "peak while loading": loaded, "peak when read": memory("VmHWM"),
        "anonymous": max(anonymous), "module": sum(p.nbytes for p in model.parameters()), "sum": read,
    }  # fmt: skip
    print(json.dumps(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder for the file; it is made once and left there")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        return load_and_report(*options.load, options.device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "synthetic.safetensors"
        if not path.exists():
            write_checkpoint(path)
        size = path.stat().st_size
        print(f"{path.name}: {size / GIGABYTE:.3f} GB, loaded to {options.device}; all figures in GB")
        print(
            "dtype     module  process before  peak loading  peak when read  anonymous  (peak - before) / larger of file and module  seconds"
        )
        for dtype in CASES:
            command = [sys.executable, __file__, "--load", str(path), dtype, "--device", options.device]
            said = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            module, before, loading, read, anonymous = (
                said[k] / GIGABYTE for k in ("module", "before", "peak while loading", "peak when read", "anonymous")
            )
            share = (said["peak when read"] - said["before"]) / max(size, said["module"])
            print(
                f"{dtype:9} {module:6.3f}  {before:14.3f}  {loading:12.3f}  {read:14.3f}  {anonymous:9.3f}  {share:42.3f}  "
                f"{said['seconds']:7.1f}"
            )


if __name__ == "__main__":
    main()
