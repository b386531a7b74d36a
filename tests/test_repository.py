"The house is in order: what is exported, what imports what, and what the public files say."

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ltx_nb"
BIN = Path(sys.executable).parent
FLOORS = ["1_model", "2_loading", "3_flow", "4_data", "5_config", "6_training", "7_tiny", "8_tools"]  # reading order
sys.path.insert(0, str(ROOT / "tools"))
from house import CELL_LINES, MODULE_LINES, begins_with_a_figure, chapters, unopened, wordless

CHAPTERS = chapters()
NOTEBOOKS = sorted(
    [*(ROOT / "nbs").glob("[0-9]_*/*.ipynb"), *(ROOT / "tutorials").glob("*.ipynb"), ROOT / "nbs/index.ipynb"]
)
COMMAND = ["ltx_nb/__main__.py", "ltx_nb/__init__.py"]  # belong to no floor
AUTHORING_TOOLS = {"nbdev", "fastcore", "execnb", "jupytext", "pytest"}
ORACLES = {"ltx_core", "ltx_pipelines", "ltx_trainer", "diffusers", "torchaudio"}
IMPORT_SECONDS = 0.2


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py")


def name_of(module: Path) -> str:
    return module.relative_to(ROOT).as_posix()


def floor_of(module: Path) -> int | None:
    "The floor of the notebook that exports a module, from the line nbdev writes into it."
    found = re.search(r"File to edit: \S*?nbs/([^/\s]+)/", module.read_text())
    return FLOORS.index(found[1]) if found else None


def imported(module: Path) -> list[str]:
    "Full dotted names of everything a module imports, wherever in its code; `a.b` also for `from a import b`."
    package, names = module.relative_to(ROOT).with_suffix("").parts[:-1], []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return names


def module_file(dotted: str) -> Path | None:
    path = ROOT / Path(*dotted.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def run(*command, cwd=ROOT, **environment):
    clean = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    return subprocess.run([*map(str, command)], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True)


def tree(root: Path, pattern: str) -> dict[Path, bytes]:
    "Relative path -> content. What stands on its own beside the notebooks is left alone by the export, and so here."
    hidden = {"_proc", ".ipynb_checkpoints", "__pycache__"}
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob(pattern)) if not hidden & set(p.parts)}


def test_library_is_what_the_notebooks_export_and_notebooks_are_clean(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__", "_proc", ".ipynb_checkpoints")
    for name in ("nbs", "tutorials", "ltx_nb"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignore)
    shutil.copy(ROOT / "settings.ini", tmp_path)
    for command in (["nbdev_clean"], ["nbdev_clean", "--fname", "tutorials"], ["nbdev_export"]):
        done = run(BIN / command[0], *command[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for name, pattern in (("ltx_nb", "*.py"), ("nbs", "*.ipynb"), ("tutorials", "*.ipynb")):
        here, fresh = tree(ROOT / name, pattern), tree(tmp_path / name, pattern)
        stale = [f"{name}/{path}" for path in here.keys() | fresh.keys() if here.get(path) != fresh.get(path)]
        assert not stale, f"run `make export`: {sorted(stale)}"


@pytest.mark.parametrize("notebook", [p for p in NOTEBOOKS if p.parent.parent.name == "nbs"], ids=lambda p: p.stem)
def test_a_chapter_begins_with_a_figure_or_a_running_example(notebook):
    assert begins_with_a_figure(notebook), "write a few lines for it in docs/figures.txt, then: python docs/figures.py"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_reader_can_open_what_is_cited_and_every_picture_has_words(notebook):
    assert unopened(notebook) == [], "name the paper, the public file and its version, or the cell that measured it"
    assert wordless(notebook) == [], 'say in the first line of these cells what they show: #| fig-alt: "..."'


@pytest.mark.parametrize("module", modules(), ids=name_of)
def test_every_module_comes_from_a_notebook_that_exists(module):
    text = module.read_text()
    if "__init__" in module.name or name_of(module) in COMMAND:
        assert len(text.splitlines()) <= 20, "a package file holds names, not code"
        return
    notebook = re.search(r"File to edit: (\S+\.ipynb)", text)
    assert notebook, f"{name_of(module)} is exported by no notebook"
    assert (module.parent / notebook[1]).resolve().exists() or (ROOT / notebook[1].lstrip("./")).exists()


@pytest.mark.parametrize("module", [m for m in modules() if floor_of(m) is not None], ids=name_of)
def test_chapters_import_upwards_only(module):
    here = floor_of(module)
    for name in imported(module):
        target = module_file(name) if name.startswith("ltx_nb") else None
        there = floor_of(target) if target else None
        assert there is None or there <= here, f"{name_of(module)} ({FLOORS[here]}) imports {name} ({FLOORS[there]})"


def rooms_of(module: Path) -> set[Path]:
    "The chapters' modules that a module imports, wherever in its code."
    found = {module_file(name) for name in imported(module) if name.startswith("ltx_nb")} - {None, module}
    return {path for path in found if floor_of(path) is not None}


def test_no_circle_of_imports():
    left = {module: rooms_of(module) for module in modules() if floor_of(module) is not None}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    names = {name_of(m): sorted(name_of(n) for n in needs & left.keys()) for m, needs in left.items()}
    assert not left, f"in a circle, or behind one: {names}"


def test_a_floor_is_a_package():
    "`nbs/5_config/05_rules.ipynb` exports `ltx_nb/config/rules.py`; chapters are numbered from 00 without gaps."
    for floor in FLOORS:
        names = sorted(p.name for p in (ROOT / "nbs" / floor).glob("*.ipynb"))
        numbers = [re.match(r"(\d\d)_[a-z_]+\.ipynb$", name) for name in names]
        assert all(numbers) and [int(n[1]) for n in numbers] == list(range(len(names))), f"{floor}: {names}"
    for chapter in CHAPTERS:
        floor, room = chapter.notebook.parent.name, chapter.notebook.stem
        place = PACKAGE / floor.partition("_")[2] / f"{room.partition('_')[2]}.py"
        assert chapter.module == place, f"nbs/{floor}/{room}.ipynb exports {name_of(chapter.module)}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: name_of(c.module))
def test_a_chapter_keeps_the_rules_of_the_house(chapter):
    "What breaks one is listed by `python tools/house.py`."
    assert chapter.lines() <= MODULE_LINES
    assert not chapter.long_cells(), f"exported cells of over {CELL_LINES} lines"
    assert not chapter.undescribed(), "public, and without a docstring"
    assert not chapter.unshown(), "public, and in no cell that shows it working"


@pytest.mark.parametrize("module", modules(), ids=name_of)
def test_library_imports_no_authoring_tool_and_no_oracle(module):
    roots = {name.split(".")[0] for name in imported(module)}
    assert not roots & (AUTHORING_TOOLS | ORACLES)


def test_import_is_quick_and_brings_no_torch():
    code = (
        "import sys, time; before = set(sys.modules); start = time.perf_counter(); import ltx_nb\n"
        "print(time.perf_counter() - start); print(*sorted(set(sys.modules) - before))"
    )
    runs = [run(sys.executable, "-c", code) for _ in range(3)]
    assert all(done.returncode == 0 for done in runs), runs[0].stderr
    seconds, loaded = zip(*(done.stdout.splitlines() for done in runs))
    assert min(map(float, seconds)) < IMPORT_SECONDS
    assert not {"torch", "numpy", "transformers"} & {name.split(".")[0] for name in loaded[0].split()}


def test_the_front_door_resolves_every_name_when_it_is_asked_for():
    code = (
        "import sys, ltx_nb; names = ltx_nb.__all__; assert 'torch' not in sys.modules and set(names) <= set(dir(ltx_nb))\n"
        "for name in names: assert getattr(ltx_nb, name).__name__ == name\n"
        "print(*names)"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert {"prepare", "LtxvTrainer", "generate", "load_config", "FlexibleStrategy"} <= set(done.stdout.split())
    done = run(sys.executable, "-c", "from ltx_nb import prepar")
    assert "cannot import name 'prepar'" in done.stderr


def test_readme_is_what_the_landing_page_gives():
    done = run(sys.executable, "tools/readme.py", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "folder, pattern", [("ltx_nb", "*.py"), ("ltx_nb", "*.yaml"), ("nbs", "*.ipynb"), ("tutorials", "*.ipynb")]
)
def test_no_file_names_a_private_path(folder, pattern):
    private = re.compile(rb"/(?:work|root|home/(?!ubuntu\b)\w+|Users/\w+)/")
    found = {path: private.search(text) for path, text in tree(ROOT / folder, pattern).items()}
    assert not {str(path): match[0] for path, match in found.items() if match}
