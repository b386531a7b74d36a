"""Notebooks into pages: what `build.py` does to each notebook.

nbdev's processors do most of it. Three are replaced, because on nbdev's pages the source of what is exported is hidden,
and here it is what the page is about. Ours give every public function, class and method a heading with a fixed anchor, a
link to its line, and its signature with the documented parameters, and leave the source where the reader meets it. They
read the source and run nothing, so that a page needs neither torch nor a working model."""

import ast
import html
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from figures import TEXT, read_figures

ROOT = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("LTX_NB_SITE", ROOT))  # where the site is built: a test builds one of its own
NBS, PROC = ROOT / "nbs", WORK / "_proc"
sys.path.insert(0, str(ROOT))  # the checkout, not an installed copy
FOLDED = "how this picture is made"  # what the reader sees of a cell with `#| hide_input`


def page_name(notebook: Path) -> Path:
    "`3_flow/00_samplers.ipynb` -> `3_flow/samplers.ipynb`, as nbdev names its pages."
    return notebook.with_name(re.sub(r"^\d+[a-z]?_", "", notebook.name))


Definition = ast.FunctionDef | ast.ClassDef


def definitions(source: str) -> list[tuple[str, Definition]]:
    "Public functions and classes of a source text, each class followed by its public, described methods."
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            found.append((node.name, node))
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and ast.get_docstring(inner):
                    decorators = {getattr(d, "id", getattr(d, "attr", "")) for d in inner.decorator_list}
                    if decorators <= {"classmethod", "staticmethod", "no_grad", "inference_mode"}:  # not a property
                        found.append((f"{node.name}.{inner.name}", inner))
    return found


def signature(node: Definition, source: str) -> str:
    "The lines of a definition up to its body: names, types, defaults, and what each parameter means."
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    last = max(first, node.body[0].lineno - 1)
    return textwrap.dedent("\n".join(source.splitlines()[first - 1 : last])).rstrip()


def described(name: str, node: Definition, source: str, link: str | None) -> str:
    "Heading, link and description of a symbol; for a method its signature too, for its source is inside the class."
    level = "####" if "." in name else "###"
    text = [f'[source]({link}){{target="_blank" .symbol-source}}\n'] if link else []
    text.append(f"{level} {name} {{#{name.lower()}}}\n")
    if "." in name:
        text.append(f"```python\n{signature(node, source)}\n```\n")
    elif docstring := ast.get_docstring(node):
        text.append(docstring.split("\n\n")[0] + "\n")
    return "\n".join(text)


def processors(host: str, home: str):
    "nbdev's processors, with ours in the place of those that document and hide exported cells."
    from execnb.nbio import mk_cell
    from nbdev import processors as P
    from nbdev.process import Processor

    known = described_names()

    class DocumentExports(Processor):
        "A heading above the source of every exported cell, the methods of its classes below."

        def begin(self):
            names = [c.directives_["default_exp"][0] for c in self.nb.cells if "default_exp" in (c.directives_ or {})]
            if not names:
                return
            path = f"ltx_nb/{names[0].replace('.', '/')}.py"
            lines = {name: node.lineno for name, node in definitions((ROOT / path).read_text())}
            cells = []
            for cell in self.nb.cells:
                flags = set(cell.directives_ or {}) if cell.cell_type == "code" else set()
                if not flags & {"export", "exports", "exporti"} or "hide" in flags:
                    if cell.cell_type == "code" and only_imports(cell.source) and not cell.outputs:
                        cell.source = f'#| code-fold: true\n#| code-summary: "imports of the examples"\n{cell.source}'
                    cells.append(cell)
                    continue
                imports = only_imports(cell.source)
                symbols = definitions(cell.source) if "exporti" not in flags else []
                prose = [
                    described(name, node, cell.source, f"{host}/{path}#L{lines[name]}" if name in lines else None)
                    for name, node in symbols
                ]
                above = [text for text, (name, _) in zip(prose, symbols) if "." not in name]
                below = [text for text, (name, _) in zip(prose, symbols) if "." in name]
                fold = "true" if imports else "show"
                summary = f"ltx_nb.{names[0]}{': imports' if imports else ''}"
                cell.source = f'#| code-fold: {fold}\n#| code-summary: "{summary}"\n{cell.source}'
                cells += [*self.prose(above), cell, *self.prose(below)]
            self.nb.cells = cells

        def prose(self, parts: list[str]):
            "One markdown cell, if there is anything to say."
            if parts:
                cell = mk_cell("\n".join(parts), cell_type="markdown")
                cell.directives_ = {}
                yield cell

    class HidePlumbing(Processor):
        "`#| hide` and `#| default_exp` cells leave no trace, `#| hide_input` folds; exported source stays."

        def cell(self, cell):
            flags = set(cell.directives_ or {}) if cell.cell_type == "code" else set()
            if flags & {"hide", "default_exp"}:
                del cell["source"]
            elif "hide_input" in flags:
                cell.source = f'#| code-fold: true\n#| code-summary: "{FOLDED}"\n{cell.source}'

    def name_players(cell):
        "`#| fig-alt` is for pictures; what plays, and what is drawn as HTML, is named by it too."
        found = cell.cell_type == "code" and re.search(r'^#\|\s*fig-alt:\s*"(.*)"', cell.source, flags=re.M)
        for output in cell.get("outputs", []) if found else ():
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = named("".join(data["text/html"]), found[1])

    def link_symbols(cell):
        "Names of the library in the prose lead to where they are explained."
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, lambda name: f"{home}/{known[name]}" if name in known else None)

    ours = {P.add_show_docs: DocumentExports, P.rm_export: HidePlumbing, P.add_links: link_symbols}
    without = {P.exec_show_docs, P.clean_show_doc, P.add_fold, P.mv_exports, P.insert_warning}

    class Page(P.FilterDefaults):
        def procs(self):
            return [*(ours.get(p, p) for p in self.base_procs() if p not in without), name_players]

    return Page


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a shell command, a magic
        return False
    return bool(body) and all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)


@cache
def described_names() -> dict[str, str]:
    """Every symbol that has a heading: its page and anchor. Of two with one name the one of the upper floor counts.

    A function that is a command (`mask`) is left out: in prose such a word means the thing."""
    found = {}
    for notebook in sorted(NBS.glob("[0-9]_*/*.ipynb")):
        page = page_name(notebook.relative_to(NBS)).with_suffix(".html").as_posix()
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and re.match(r"(#\|.*\n)*#\|\s*exports?\s*\n", source):
                for name, _ in definitions(source):
                    if not (page.startswith("8_tools/") and re.fullmatch(r"[a-z]+", name)):
                        found.setdefault(name, f"{page}#{name.lower()}")
    return found


def named(page: str, words: str) -> str:
    "HTML whose players and drawings say in words what they show."
    label = html.escape(words, quote=True)
    return re.sub(r"<(video|audio|svg)\b(?![^>]*aria-label)", rf'<\1 aria-label="{label}"', page)


LINK_OR_NAME = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\([^)\s]*\)|(?P<ticks>`+)(?P<name>[^`]+)(?P=ticks)")


def linked(text: str, page_of: Callable[[str], str | None]) -> str:
    "Markdown in which a name in backticks is a link, where `page_of` knows its page. What is a link already stays."

    def link(match):
        name = (match["name"] or "").removesuffix("()")
        page = page_of(name) if match["ticks"] == "`" and re.fullmatch(r"[\w.]+", name) else None
        return f"[{match[0]}]({page})" if page else match[0]

    lines, fenced = text.splitlines(), False
    for number, line in enumerate(lines):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        if not (fence or fenced or line.startswith("    ")):
            lines[number] = LINK_OR_NAME.sub(link, line)
    return "\n".join(lines)


def outside_links(text: str, notebook: Path, source_host: str) -> str:
    "Mend relative links: chapters lose their numbers, and files outside nbs/ are read on the source host."

    def mend(match):
        target, anchor = re.fullmatch(r"([^#]*)(#.*)?", match[2]).groups()
        if not target or "://" in target or target.startswith(("mailto:", "data:", "attachment:")):
            return match[0]
        if notebook.parts[0] == "tutorials":  # a tutorial lies beside nbs/; on the site it is a floor like the others
            target = re.sub(r"^\.\./nbs/", "../", target)
        path = Path(os.path.normpath(notebook.parent / target))
        if path.parts and path.parts[0] == "..":
            return f"{match[1]}{source_host}/{Path(*path.parts[1:]).as_posix()}{anchor or ''})"
        if path.suffix == ".ipynb":
            return f"{match[1]}{Path(target).with_name(page_name(path).name).as_posix()}{anchor or ''})"
        return match[0]

    badge = r"\[!\[([^\]]*)\]\(https?://[^)]*\)\]"  # a picture of another host would be fetched: its words do
    return re.sub(r"(\]\()([^)\s]+)\)", mend, re.sub(badge, r"[\1]", text))


def for_the_site(nb, notebook: Path) -> None:
    "A tutorial is opened alone, on Colab: only here it gets its drawing, and here nobody runs the cell that installs."
    from execnb.nbio import mk_cell

    for cell in nb.cells:
        if cell.cell_type == "code" and re.match(r"(#\|.*\n)*SOURCE = ", cell.source):
            cell.source = f'#| code-fold: true\n#| code-summary: "installation"\n{cell.source}'
    name = f"tutorials/{page_name(notebook).stem}"
    figure = next((f for f in read_figures(TEXT.read_text(encoding="utf-8")) if f.name == name), None)
    if figure:
        target = PROC / "tutorials" / "figures" / figure.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(figure.svg(), encoding="utf-8")
        nb.cells.insert(1, mk_cell(figure.markdown, cell_type="markdown"))


def document(notebook: Path):
    "Process one notebook of nbs/ into _proc/."
    from execnb.nbio import read_nb, write_nb
    from nbdev.config import get_config

    os.environ["IN_TEST"] = "1"  # nbdev's sign that a notebook is processed, not used
    cfg = get_config(path=ROOT)
    host = f"{cfg.git_url}/blob/{cfg.branch}"
    nb = read_nb(NBS / notebook)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = outside_links(cell.source, notebook, host)
    if notebook.parts[0] == "tutorials":
        for_the_site(nb, notebook)
    processors(host, (cfg.doc_host + cfg.doc_baseurl).rstrip("/"))()(nb)
    if notebook.name != "index.ipynb":
        source = f"{host}/{notebook.as_posix() if notebook.parts[0] == 'tutorials' else f'nbs/{notebook.as_posix()}'}"
        front = nb.cells[0]
        if front.cell_type == "raw" and front.source.startswith("---"):
            extra = yaml.safe_dump({"code-links": [{"text": "Notebook", "icon": "journal-code", "href": source}]})
            front.source = re.sub(
                r"\n---\s*$", f"\n{extra}---\n", re.sub(r"^output-file:.*\n", "", front.source, flags=re.M)
            )
    target = PROC / page_name(notebook)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, target)
