"""The notebook habits, from a terminal.

    python tools/nb.py edit  nbs/1_model/00_latents.ipynb   # write the py:percent view to .pct/1_model/00_latents.py
    python tools/nb.py sync  nbs/1_model/00_latents.ipynb   # view -> notebook (ids kept), formatted -> run -> clean -> export
    python tools/nb.py run   nbs/1_model/00_latents.ipynb   # run in place and keep the outputs
    python tools/nb.py export                               # clean every notebook and export the library

A notebook that does not exist yet is made by `sync` from its view. Cell ids appear in the exported files, so a
notebook is updated, never made anew."""

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")


@contextmanager
def lock():
    "One writer at a time: export rewrites `_modidx.py` for the whole library."
    with open(ROOT / ".nb.lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def relative(nb) -> Path:
    return Path(nb).resolve().relative_to(ROOT)


def view_of(nb: Path) -> Path:
    "`.pct/` mirrors `nbs/` and `tutorials/`."
    parts = nb.parts[1:] if nb.parts[0] == "nbs" else nb.parts
    return ROOT / ".pct" / Path(*parts).with_suffix(".py")


def jupytext(*args):
    subprocess.run([BIN / "jupytext", "-q", *map(str, args)], check=True, cwd=ROOT)


def edit(nb: Path):
    view = view_of(nb)
    view.parent.mkdir(parents=True, exist_ok=True)
    filters = "--opt", "cell_metadata_filter=-all", "--opt", "notebook_metadata_filter=-all"
    jupytext("--to", "py:percent", *filters, ROOT / nb, "-o", view)
    print(view.relative_to(ROOT))


def update(nb: Path):
    view, target = view_of(nb), ROOT / nb
    if not view.exists():
        sys.exit(f"{view.relative_to(ROOT)} does not exist; write it with `tools/nb.py edit {nb}`")
    target.parent.mkdir(parents=True, exist_ok=True)
    jupytext("--to", "ipynb", *(["--update"] if target.exists() else []), view, "-o", target)
    subprocess.run([BIN / "ruff", "format", "-q", target], check=True, cwd=ROOT)


def run(nb: Path, flags=()):
    "Run in place as `nbdev_test` would: `eval: false`, test flags and `skip_exec` are honoured, outputs kept."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from fastcore.basics import str2bool
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor

    path, skip = ROOT / nb, set(get_config(path=ROOT).tst_flags.split()) - set(flags)
    sys.path.insert(0, str(ROOT))
    seen = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    if str2bool(getattr(seen, "frontmatter_", {}).get("skip_exec", False)):
        return
    directives = {c.id: (getattr(c, "directives_", None) or {}) for c in seen.cells if c.get("id")}

    def skipped(cell):
        if cell.cell_type != "code" or "nbdev_export(" in cell.source:
            return True
        found = directives.get(cell.get("id"), {})
        return found.get("eval:", [""])[0].lower() == "false" or bool(skip & found.keys())

    notebook, start = read_nb(path), time.time()
    for cell in notebook.cells:
        if cell.cell_type == "code" and not skipped(cell):
            cell.outputs = []  # a cell that prints nothing any more must not keep what it printed once
    if nb.parts[0] == "tutorials":
        as_a_person(notebook, skipped)
    else:
        here = os.getcwd()
        os.chdir(ROOT)
        try:
            CaptureShell(path).run_all(notebook, exc_stop=True, preproc=skipped)
        finally:
            os.chdir(here)
    print(f"{nb}: {time.time() - start:.1f} s")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = without_root(cell.outputs)
    clean_nb(notebook)
    write_nb(notebook, path)


def as_a_person(notebook, skipped):
    "Run the cells in a kernel, as Jupyter does: what is shown live is saved as it stood at the end, not as lines of a log."
    import nbformat
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    manager = KernelManager()
    manager.kernel_spec.argv[0] = sys.executable
    book = nbformat.from_dict({**notebook, "cells": [dict(cell) for cell in notebook.cells]})
    client = NotebookClient(
        book, km=manager, timeout=None, store_widget_state=False, resources={"metadata": {"path": str(ROOT)}}
    )
    with client.setup_kernel():
        for number, (cell, ours) in enumerate(zip(book.cells, notebook.cells)):
            if cell.cell_type == "code" and not skipped(ours):
                client.execute_cell(cell, number)
                ours.outputs = [json.loads(json.dumps(output)) for output in cell.outputs]


def without_root(value):
    "Saved outputs with paths as a reader has them: relative to the checkout or to a temporary folder, not the author's."
    if isinstance(value, str):
        return re.sub(rf"{re.escape(tempfile.gettempdir())}/tmp\w+", "TEMPORARY", value.replace(f"{ROOT}/", ""))
    if isinstance(value, dict):
        return type(value)({key: without_root(item) for key, item in value.items()})
    return [without_root(item) for item in value] if isinstance(value, list) else value


def hide_paths(nb: Path):
    "The saved outputs of one notebook name no folder of the machine that it ran on."
    from execnb.nbio import read_nb, write_nb

    text = nb.read_text(encoding="utf-8")
    if without_root(text) != text:
        notebook = read_nb(nb)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = without_root(cell.outputs)
        write_nb(notebook, nb)


def export(notebooks=None):
    "Clean and export some notebooks, or all of them."
    for nb in notebooks or [*(ROOT / "nbs").glob("*/*.ipynb"), *(ROOT / "tutorials").glob("*.ipynb")]:
        hide_paths(ROOT / nb)
    if not notebooks:  # the drawing at the head of each chapter, as docs/figures.txt has it
        subprocess.run([sys.executable, ROOT / "docs" / "figures.py"], check=True)
    # in a process of its own: the checkout comes first on the path, and no bytecode is left behind
    commands = [["nbdev_clean"], ["nbdev_clean", "--fname", "tutorials"], ["nbdev_export"]]
    if notebooks:
        commands = [["nbdev_clean", "--fname", str(nb)] for nb in notebooks]
        commands += [["nbdev_export", "--path", str(nb)] for nb in notebooks if nb.parts[0] == "nbs"]
    for name, *options in commands:
        subprocess.run([BIN / name, *options], check=True, cwd=ROOT)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["edit", "update", "run", "sync", "export"])
    parser.add_argument("notebooks", nargs="*", type=relative)
    args = parser.parse_args()
    if args.what == "export":
        with lock():
            return export()
    for nb in args.notebooks:
        if args.what == "edit":
            edit(nb)
        if args.what in ("update", "sync"):
            update(nb)
        if args.what == "sync":
            with lock():
                export([nb])  # so that the notebook can import what it exports
        if args.what in ("run", "sync"):
            # a fresh process a notebook: nothing leaks from one into the next
            code = "import sys; sys.path.insert(0, 'tools'); import nb; nb.run(nb.Path(sys.argv[1]))"
            subprocess.run([sys.executable, "-c", code, str(nb)], check=True, cwd=ROOT)
    if args.what in ("run", "sync"):
        with lock():
            export(args.notebooks)


if __name__ == "__main__":
    main()
