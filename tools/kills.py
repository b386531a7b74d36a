"""Runs that are killed, and whether they resume to the same bits.

    python tools/kills.py              # sixty kills, a few minutes
    python tools/kills.py --count 10

A tiny run saves at every step. It is killed by SIGKILL, SIGTERM, SIGHUP or SIGINT at a random moment, or by SIGKILL at a
chosen rename inside a save, as often as not several times; then it is resumed to its end, and its trained weights are held
against those of a run that nobody disturbed."""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

from safetensors.torch import load_file  # noqa: E402
from tiny_runs import configure, make_place, names  # noqa: E402

from ltx_nb.config.files import save_config  # noqa: E402
from ltx_nb.training.output import earlier_run  # noqa: E402

STEPS = 6
RUN = """
import os, sys
calls, usual, last = [0], os.replace, int(sys.argv[2])
def deadly(a, b):
    calls[0] += 1
    if calls[0] == last:
        os.kill(os.getpid(), 9)
    usual(a, b)
os.replace = deadly
from ltx_nb.config.files import load_config
from ltx_nb.training.progress import Progress, View
from ltx_nb.training.trainer import LtxvTrainer
trainer = LtxvTrainer(load_config(sys.argv[1], sys.argv[3:]), Progress(View()), "cpu")
print("ready", flush=True)
trainer.train()
"""


def run(config: Path, output: Path, dice: random.Random | None) -> str:
    "One process, killed or not; how it ended."
    resume = [f"model.load_checkpoint={output}"] if earlier_run(output) else []
    kind = dice.choice(["rename", "SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"]) if dice else "end"
    last = dice.randrange(1, 14) if kind == "rename" else 0
    command = [sys.executable, "-c", RUN, str(config), str(last), *resume]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if kind.startswith("SIG"):
        process.stdout.readline()
        time.sleep(dice.random() * 0.8)
        process.send_signal(getattr(signal, kind))
    _, said = process.communicate()
    if process.returncode > 0 and kind == "end":
        sys.exit(said)
    return kind


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder, dice, kinds, exact = Path(tempfile.mkdtemp()), random.Random(args.seed), Counter(), 0
    place, result = make_place(folder), f"checkpoints/training_state_step_{STEPS:05d}.safetensors"
    more = {
        "optimization__steps": STEPS,
        "lora__dropout": 0.1,
        "checkpoints__interval": 1,
        "checkpoints__keep_last_n": 2,
    }
    write = lambda name: save_config(configure(place, folder / name, **more), folder / f"{name}.yaml")
    run(write("whole"), folder / "whole", None)
    learnt = lambda path: {name: value for name, value in load_file(path).items() if ".random" not in name}
    expected = learnt(folder / "whole" / result)  # Python's own generator is seeded anew in each process, and not used
    for number in range(args.count):
        output, config = folder / str(number), write(str(number))
        kinds[run(config, output, dice)] += 1
        if not (output / result).exists():
            run(config, output, None)
        found = learnt(output / result)
        same = found.keys() == expected.keys() and all(found[name].equal(value) for name, value in expected.items())
        hidden = [path for path in output.rglob(".*")] if (output / result).exists() else []
        exact += same and not hidden
        if not same or hidden:
            print(f"kill {number}: {'other bits' if not same else f'left {hidden}'}; {names(output / 'checkpoints')}")
    shutil.rmtree(folder)
    print(f"{args.count} kills ({dict(kinds)}), {exact} exact")
    sys.exit(exact < args.count)


if __name__ == "__main__":
    main()
