"""Does it install on a machine that is not ours?

    python tools/check_install.py            # both parts
    python tools/check_install.py resolve    # only whether versions can be found: Python 3.11 to 3.14, pinned and newest
    python tools/check_install.py wheel      # only the wheel, in a clean environment with the newest versions

Pip's own settings count and nothing else: files, constraints and folders of wheels that this machine knows of are left out
of account. Resolving asks uv, which reads what a release needs without downloading it."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = "3.11", "3.12", "3.13", "3.14"
EXTRAS = "", "notebook", "gpu", "dev"  # "" is the package alone
PLATFORM = "x86_64-manylinux_2_28"
CLIP = "bunny_smiles"  # of those that come with the library


def ordinary() -> dict[str, str]:
    "The environment of someone who has set nothing: certificates and proxies of the machine stay."
    kept = ("PIP_CERT", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT", "PIP_DISABLE_PIP_VERSION_CHECK")
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "PYTHON", "LTX_NB_")) or k in kept}
    if "PIP_CERT" in mine:
        mine |= {"SSL_CERT_FILE": mine["PIP_CERT"]}  # where uv looks for it
    return mine | {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1"}


def run(*command, **options) -> subprocess.CompletedProcess:
    "Run something; where it fails, what it said is shown."
    options = {"env": ordinary(), "cwd": ROOT} | options
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise SystemExit(f"failed: {' '.join(map(str, command))}\n\n{tail}")
    return done


def make_venv(folder: Path) -> Path:
    "A new environment; its Python."
    venv.create(folder, with_pip=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


# ---- versions ----


def resolve(uv: Path, python: str, extra: str, pinned: bool) -> str:
    "The versions that would be installed, of what matters most."
    command = [uv, "pip", "compile", "--quiet", "--only-binary", ":all:", "--python-version", python]
    command += ["--python-platform", PLATFORM, "pyproject.toml"]
    command += [*(["--extra", extra] if extra else []), *(["--constraint", "constraints.txt"] if pinned else [])]
    found = dict(
        line.split()[0].split("==") for line in run(*command).stdout.splitlines() if "==" in line.split("#")[0]
    )
    return ", ".join(f"{name} {found[name]}" for name in ("torch", "triton", "transformers", "av") if name in found)


def check_resolving(folder: Path) -> None:
    "Every Python, with and without the pins, with each extra."
    python = make_venv(folder / "uv")
    if subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "uv"], env=ordinary(), capture_output=True
    ).returncode:
        raise SystemExit("the package index cannot be reached with pip's own settings, so nothing can be checked")
    uv = python.with_name("uv.exe" if os.name == "nt" else "uv")
    cases = [(python, extra, pinned) for python in PYTHONS for pinned in (True, False) for extra in EXTRAS]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda case: resolve(uv, *case), cases))
    for (python, extra, pinned), versions in zip(cases, answers, strict=True):
        if extra == "gpu":  # the longest answer
            print(f"  Python {python}, {'pinned' if pinned else 'newest'}: {versions}")
    print(f"{len(cases)} sets of versions resolve: Python {', '.join(PYTHONS)}; alone, {', '.join(EXTRAS[1:])}")


# ---- the wheel ----


def build_wheel(folder: Path) -> Path:
    "The wheel, built from a copy so that nothing is left behind in the checkout."
    names = run("git", "ls-files", "-z").stdout.split("\0")
    source = folder / "source"
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith("nbs/tutorials"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    python = make_venv(folder / "build")
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder / "dist", source)
    return next((folder / "dist").glob("*.whl"))


def install_torch(python: Path) -> str:
    """PyTorch first, the one exception: by the machine's own settings, which may know of a small build without CUDA. All else
    then comes by pip's settings alone. Returns the version."""
    cpu = os.environ.get("TORCH_CPU_INDEX")  # the Makefile's
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    ways = [["torch", "--index-url", cpu, "--retries", "0", "--timeout", "5"]] if cpu else []
    for wanted in [*ways, [pinned], ["torch"]]:
        command = [python, "-m", "pip", "install", "--quiet", *wanted]
        if subprocess.run([*map(str, command)], capture_output=True, cwd=ROOT).returncode == 0:
            break
    return run(python, "-c", "import torch; print(torch.__version__)").stdout.strip()


def check_wheel(folder: Path) -> None:
    "Build, install into nothing, and prepare a clip, in a folder that is not the checkout."
    wheel = build_wheel(folder)
    python, place = make_venv(folder / "clean"), folder / "place"
    place.mkdir()
    torch = install_torch(python)
    run(python, "-m", "pip", "install", "--quiet", "--upgrade-strategy", "only-if-needed", wheel)
    command, options = python.with_name("ltx-nb"), {"cwd": place, "env": ordinary() | {"HOME": str(place)}}
    clips = place / "clips"
    clips.mkdir()
    found = "import ltx_nb.data.clips as c; print(c.example_clips())"
    packaged = Path(run(python, "-c", found, **options).stdout.strip())
    assert folder in packaged.parents, f"the wheel was to be used, not {packaged}"
    for suffix in ".mp4", ".txt":
        shutil.copy(packaged / f"{CLIP}{suffix}", clips)
    ask = ["--model", "tiny", "--resolution-buckets", "64x64x17", "--progress", "none"]
    run(command, "prepare", clips, "-o", "data", *ask, **options)
    made = sorted(p.relative_to(place).as_posix() for p in (place / "data").rglob(f"{CLIP}*.safetensors"))
    assert len(made) == 3, f"a clip gives latents, sound and caption; here {made}"
    versions = (
        "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in ('av', 'transformers', 'numpy')))"
    )
    said = run(python, "-c", versions, **options).stdout.strip()
    print(f"the wheel prepares a clip in a clean environment: torch {torch}, {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["all", "resolve", "wheel"], default="all")
    part, start = parser.parse_args().part, time.time()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        if part in ("all", "resolve"):
            check_resolving(folder)
        if part in ("all", "wheel"):
            check_wheel(folder)
    print(f"{time.time() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
