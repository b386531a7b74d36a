"""The house in numbers: what each module holds, and what in it breaks a rule of the house.

    python tools/house.py                 # every module
    python tools/house.py data/prepare    # those whose path holds this

The rules, which tests/test_repository.py holds: a module has at most 800 lines, an exported cell at most 60; every public
symbol has a docstring and is named in a cell of its chapter that shows it working; a chapter begins with a figure; a saved
picture has words; what is cited can be opened by a reader."""

import ast
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE_LINES, CELL_LINES = 800, 60
EXPORTS = re.compile(r"#\|\s*exporti?\b")


@dataclass
class Chapter:
    "A notebook and the module that it exports."

    notebook: Path
    module: Path
    cells: list[tuple[str, str]]  # (id, source) of code cells, in order
    public: dict[str, ast.AST] = field(default_factory=dict)  # name in __all__ -> where it is defined

    @property
    def exported(self) -> list[tuple[str, str]]:
        return [(key, source) for key, source in self.cells if EXPORTS.match(source)]

    @property
    def shown(self) -> str:
        "All that is run for the reader and not exported."
        return "\n".join(source for _, source in self.cells if not EXPORTS.match(source))

    def lines(self) -> int:
        return len(self.module.read_text(encoding="utf-8").splitlines())

    def long_cells(self) -> dict[str, int]:
        "Exported cells above the limit, the directive not counted."
        sizes = {key: len(source.strip().splitlines()) - 1 for key, source in self.exported}
        return {key: size for key, size in sizes.items() if size > CELL_LINES}

    def undescribed(self) -> list[str]:
        kinds = ast.FunctionDef | ast.ClassDef
        return [name for name, node in self.public.items() if isinstance(node, kinds) and not ast.get_docstring(node)]

    def unshown(self) -> list[str]:
        words = set(re.findall(r"\w+", self.shown))
        return [name for name in self.public if name not in words]


def chapter(notebook: Path) -> Chapter | None:
    "None for a notebook that exports nothing."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [(c["id"], "".join(c["source"])) for c in cells if c["cell_type"] == "code"]
    name = next((found[1] for _, s in code if (found := re.match(r"#\|\s*default_exp\s+(\S+)", s))), None)
    if name is None:
        return None
    found = Chapter(notebook, ROOT / "ltx_nb" / f"{name.replace('.', '/')}.py", code)
    tree = ast.parse(found.module.read_text(encoding="utf-8"))
    bound = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        bound |= {getattr(t, "name", getattr(t, "id", "")): node for t in targets}
    listed = next(n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__")
    found.public = {name: bound.get(name, listed) for name in ast.literal_eval(listed.value)}
    return found


def chapters() -> list[Chapter]:
    found = (chapter(p) for p in sorted((ROOT / "nbs").glob("[0-9]_*/*.ipynb")))
    return [c for c in found if c]


UNOPENED = re.compile(r"\bspecs?\b:? ?(\*[a-z]|sections? \d|\d+\.\d)|\bFacts: spec|\(W\d\d?[,)]|, W\d\d?\)|\bshared/")
SHOWS = ("<img", "<video", "<audio", "<svg")


def unopened(notebook: Path) -> list[str]:
    "Citations of pages that no reader has: name the paper, the public file and its version, or the cell that measured."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = [match[0] for c in cells for match in UNOPENED.finditer("".join(c["source"]))]
    prose = [line for c in cells if c["cell_type"] == "markdown" for line in "".join(c["source"]).splitlines()]
    return found + [line for line in prose if re.search(r"\bet al\b|\b[Ii]ssue \d", line) and "](http" not in line]


def wordless(notebook: Path) -> list[str]:
    'Ids of cells with a saved picture, film or sound and no `#| fig-alt: "what it shows"` among their first lines.'
    found = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        kinds = [output.get("data", {}) for output in cell.get("outputs", [])]
        pages = "".join("".join(data.get("text/html", "")) for data in kinds)
        shown = any(kind.startswith("image/") for data in kinds for kind in data) or any(tag in pages for tag in SHOWS)
        if shown and not re.search(r"^#\|\s*fig-alt:[ \t]*\S", "".join(cell["source"]), flags=re.M):
            found.append(cell["id"])
    return found


def begins_with_a_figure(notebook: Path) -> bool:
    "Whether what follows the title is a figure, or an example that runs."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"][1:]
    prose = next(("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"), "")
    return "![" in prose[:600] or "```" in prose[:600]


def main(wanted: str = ""):
    rows = [c for c in chapters() if wanted in c.module.as_posix()]
    for c in rows:
        print(f"{c.module.relative_to(ROOT)}: {c.lines()} lines, {len(c.public)} public symbols")
        for what, found in (
            (f"exported cells over {CELL_LINES} lines", [f"{k} ({n})" for k, n in c.long_cells().items()]),
            ("without a docstring", c.undescribed()),
            ("shown in no cell", c.unshown()),
            ("pictures without #| fig-alt", wordless(c.notebook)),
            ("citations that nobody can open", unopened(c.notebook)),
            ("no figure at its beginning", [] if begins_with_a_figure(c.notebook) else [c.notebook.stem]),
        ):
            if found:
                print(f"    {len(found)} {what}: {', '.join(found)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
