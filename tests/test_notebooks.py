"""Every notebook is a test, one item each, by the rules of `nbdev_test`: cells flagged `eval: false`, `notest`, `slow`
or `gpu` are skipped, `skip_exec` notebooks too."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import LONGEST, longest_first
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook

ROOT = Path(__file__).resolve().parent.parent
ALONE = (
    "nbs/8_tools/10_pretend_gpu.ipynb",  # registers a device, which a process can do once, and first of all
    "nbs/1_model/10_kernels.ipynb",  # has Triton interpret, which is decided when Triton is imported, and for all that follows
)
IN_A_PROCESS = """
import sys
from pathlib import Path
from nbdev.test import test_nb
passed, _ = test_nb(Path(sys.argv[1]).absolute(), skip_flags=sys.argv[2:], basepath=Path())
sys.exit(not passed)
"""
FOLDERS = ("nbs", "nbs/*", "tutorials")  # nbs/tutorials is a link to tutorials/, for the site


def notebooks() -> list[str]:
    found = [p.relative_to(ROOT) for folder in FOLDERS for p in ROOT.glob(f"{folder}/*.ipynb")]
    return sorted(str(p) for p in found if p.parts[:2] != ("nbs", "tutorials"))


@pytest.fixture
def quiet_for_itself():
    "A chapter may silence a logger for its reader; the tests after it in this process must hear it again."
    loggers = {
        name: logger for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)
    }
    levels = {name: logger.level for name, logger in loggers.items()}
    yield
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.startswith("ltx_nb"):
            logger.setLevel(levels.get(name, logging.NOTSET))


@pytest.mark.usefixtures("quiet_for_itself")
@pytest.mark.parametrize("notebook", notebooks())
def test_notebook(notebook, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    flags = get_config(path=ROOT).tst_flags.split()
    if notebook in ALONE:
        done = subprocess.run([sys.executable, "-c", IN_A_PROCESS, notebook, *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return
    passed, _ = run_notebook((ROOT / notebook).absolute(), skip_flags=flags, basepath=ROOT)
    assert passed, capfd.readouterr().err[-4000:]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_longest_begin_first_and_nothing_is_lost(processes):
    names = [f"test_{number}" for number in range(11)] + [
        "test_notebook[tutorials/07_x]",
        "test_notebook[tutorials/01_x]",
    ]
    items = [SimpleNamespace(nodeid=name) for name in names]
    ordered = [item.nodeid for item in longest_first(items, processes)]
    assert sorted(ordered) == sorted(names)
    first = ordered[0], ordered[len(names) // processes if processes > 1 else 1]  # where each of two begins
    assert first == ("test_notebook[tutorials/01_x]", "test_notebook[tutorials/07_x]")


def test_every_long_notebook_exists():
    named = [part for part in LONGEST if "/" in part]
    assert named and all(any(part in notebook for notebook in notebooks()) for part in named), LONGEST


TUTORIALS = [name for name in notebooks() if name.startswith("tutorials")]
PIP = """
import json, os, sys
from pathlib import Path
Path("asked.json").write_text(json.dumps(sys.argv[1:]), encoding="utf-8")
if os.environ.get("PIP_FAILS"):
    sys.exit("ERROR: no such place")
"""


def install_cell(notebook: str) -> str:
    (cell,) = (
        "".join(cell["source"])
        for cell in json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code" and "eval: false" in "".join(cell["source"])
    )
    return cell


def test_every_tutorial_installs_in_the_same_way():
    assert len(TUTORIALS) > 7 and len({install_cell(name) for name in TUTORIALS}) == 1


def install(place: Path, source=None, gpu=False, fails=False, **packages):
    "Run the cell where only these packages are installed, with a pip that notes what it is asked; what it prints."
    site, path = place / "site", place / "bin"
    (site / "pip").mkdir(parents=True)
    (site / "pip" / "__init__.py").touch()  # a whole package, so that it goes before the real one
    (site / "pip" / "__main__.py").write_text(PIP, encoding="utf-8")
    for name, number in packages.items():
        about = site / f"{name}-{number}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n", encoding="utf-8")
    path.mkdir()
    if gpu:
        shutil.copy(sys.executable, path / ("nvidia-smi.exe" if os.name == "nt" else "nvidia-smi"))
    cell = install_cell(TUTORIALS[0])
    if source:
        cell = cell.replace('"git+https://github.com/ltx-nb/ltx_nb"', repr(str(source)), 1)
    environment = {"PYTHONPATH": str(site), "PATH": str(path), "PYTHONUTF8": "1", "PIP_NO_INDEX": "1"} | (
        {"PIP_FAILS": "1"} if fails else {}
    )
    environment |= {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # Windows needs it
    # -S: without the packages of this environment
    done = subprocess.run(
        [sys.executable, "-S", "-c", cell], cwd=place, env=environment, capture_output=True, text=True
    )
    assert fails or done.returncode == 0, done.stderr
    asked = place / "asked.json"
    return json.loads(asked.read_text(encoding="utf-8")) if asked.exists() else None, done.stdout, done.stderr


def test_a_machine_that_has_the_library_is_left_alone(tmp_path):
    asked, said, _ = install(tmp_path, gpu=True, ltx_nb="0.3", torch="2.9.0")
    assert asked is None and said == "ltx_nb 0.3 is here already; nothing was installed\n"


@pytest.mark.parametrize(
    "gpu, torch, extras",
    [(False, None, "notebook"), (True, "2.9.0+cu128", "notebook,gpu"), (False, "2.8.0", "notebook")],
)
def test_a_fresh_machine_gets_what_it_can_use_and_keeps_its_pytorch(tmp_path, gpu, torch, extras):
    asked, said, _ = install(tmp_path, gpu=gpu, **({"torch": torch} if torch else {}))
    source = "git+https://github.com/ltx-nb/ltx_nb"
    assert asked == ["install", "--quiet", f"ltx_nb[{extras}] @ {source}", *([f"torch=={torch}"] if torch else [])]
    beside = f"beside torch=={torch}" if torch else "and PyTorch with it"
    assert said == f"installed ltx_nb[{extras}] from {source}, {beside}\n"


@pytest.mark.parametrize("name", ["ltx_nb-0.3-py3-none-any.whl", "a folder/ltx_nb"])
def test_a_file_or_a_folder_is_a_source_too(tmp_path, name):
    asked, said, _ = install(tmp_path, source=name)
    assert asked == ["install", "--quiet", f"ltx_nb[notebook] @ {(tmp_path / name).resolve().as_uri()}"]
    assert said.startswith(f"installed ltx_nb[notebook] from {name},") and said.count("\n") == 1


def test_what_pip_said_is_shown_when_it_fails(tmp_path):
    _, said, error = install(tmp_path, fails=True)
    assert not said and "could not be installed from git+https" in error and "ERROR: no such place" in error
