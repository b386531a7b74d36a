"""Build the documentation site into `_docs/`, without Quarto and without the network.

    python docs/build.py            # nbs/ -> _proc/ (processed notebooks) -> _docs/ (the site)

1. A sidebar by floors is written from the notebooks that exist.
2. Every notebook goes through nbdev's processors, with three of them replaced: the exported module itself is documented
   (so that dataclass fields show their comments), public methods get a signature too, and exported source stays visible.
3. smalldocs renders the result. The sources stay Quarto-compatible.
4. Formulas become MathML, links to our own host become relative, and everything that would be fetched is removed.
5. The site is checked: a dead link, a formula that was not converted or anything fetched from elsewhere fails the build.

docs/README.md says why it is done this way."""

import ast
import html
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS, PROC, SITE = ROOT / "nbs", ROOT / "_proc", ROOT / "_docs"
sys.path.insert(0, str(ROOT))  # the checkout, not an installed copy

FLOORS = {  # folder of nbs/: its name in the sidebar, in reading order
    "tutorials": "Tutorials",
    "1_model": "1. The model",
    "2_loading": "2. Loading and LoRA",
    "3_flow": "3. The flow",
    "4_data": "4. Data",
    "5_training": "5. Training",
    "6_tiny": "6. The tiny LTX-2",
    "7_tools": "7. Tools",
}


# ---- 1. what there is ----


def notebooks() -> list[Path]:
    "Every page's notebook, relative to nbs/, in reading order: the landing page first, then floor by floor."
    found = {Path("index.ipynb")} if (NBS / "index.ipynb").exists() else set()
    for floor in FLOORS:
        found |= {p.relative_to(NBS) for p in (NBS / floor).glob("*.ipynb")}
    order = list(FLOORS)
    return sorted(found, key=lambda p: (order.index(p.parts[0]) if len(p.parts) > 1 else -1, p.name))


def page_name(notebook: Path) -> Path:
    "`3_flow/00_samplers.ipynb` -> `3_flow/samplers.ipynb`, as nbdev names its pages."
    return notebook.with_name(re.sub(r"^\d+[a-z]?_", "", notebook.name))


def title_of(notebook: Path) -> str:
    "The first heading."
    cells = json.loads((NBS / notebook).read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] in ("markdown", "raw"))
    found = re.search(r"^#\s+(.+)$|^title:\s*(.+)$", text, flags=re.M)
    return (found[1] or found[2]).strip().strip("\"'") if found else notebook.stem


def sidebar(pages: list[Path]) -> dict:
    "The floors in order; a floor appears only when it has a chapter."
    contents = [{"text": "Start here", "href": "index.ipynb"}] if Path("index.ipynb") in pages else []
    for floor, name in FLOORS.items():
        chapters = [p for p in pages if p.parts[0] == floor]
        if chapters:
            entries = [{"text": title_of(p), "href": p.as_posix()} for p in chapters]
            contents.append({"section": name, "contents": entries})
    return {"website": {"sidebar": {"contents": contents}}}


def write_config(pages: list[Path]):
    "nbs/nbdev.yml from settings.ini and nbs/sidebar.yml from the floors: Quarto reads the same two files."
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml

    get_config(path=ROOT)
    os.chdir(ROOT)
    refresh_quarto_yml()
    (NBS / "sidebar.yml").write_text(yaml.safe_dump(sidebar(pages), sort_keys=False))


# ---- 2. notebooks -> documented notebooks ----


def exported_module(cells) -> str | None:
    "`#| default_exp model.video_vae` -> `ltx_nb.model.video_vae`"
    for cell in cells:
        names = cell.directives_.get("default_exp") if cell.cell_type == "code" else None
        if names:
            return f"ltx_nb.{names[0]}"
    return None


def public_symbols(source: str) -> tuple[list[str], list[str]]:
    "What an exported cell defines: public functions and classes, and the public, described methods of those classes."
    symbols, methods = [], []
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        symbols.append(node.name)
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and ast.get_docstring(inner):
                # a property or a nested-decorator method has no signature worth a heading of its own
                if not any(getattr(d, "id", getattr(d, "attr", "")) in ("property", "setter", "field_validator",
                           "model_validator", "overload") for d in inner.decorator_list):  # fmt: skip
                    methods.append(f"{node.name}.{inner.name}")
    return symbols, methods


def processors():
    "nbdev's processors, with ours in the place of those that document and hide exported cells."
    from execnb.nbio import mk_cell
    from execnb.shell import CaptureShell
    from nbdev import processors as P
    from nbdev.process import Processor

    def show(symbol: str, level: int):
        cell = mk_cell(f"#| output: asis\n#| echo: false\nshow_doc({symbol}, title_level={level})")
        cell.directives_, cell.documents = {"output:": ["asis"], "echo:": ["false"]}, True
        return cell

    class DocumentExports(Processor):
        "Signature and parameters above the source of every exported cell, methods below it."

        def begin(self):
            module = exported_module(self.nb.cells)
            cells = []
            for cell in self.nb.cells:
                flags = set(getattr(cell, "directives_", None) or {}) if cell.cell_type == "code" else set()
                if not flags & {"export", "exports", "exporti"} or "hide" in flags or not module:
                    cells.append(cell)
                    continue
                body = ast.parse(cell.source).body
                imports = all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)
                symbols, methods = public_symbols(cell.source) if "exporti" not in flags else ([], [])
                fold = ("true", f"Imports of {module}") if imports else ("show", module)
                cell.source = f'#| code-fold: {fold[0]}\n#| code-summary: "{fold[1]}"\n{cell.source}'
                cells += [show(s, 3) for s in symbols] + [cell] + [show(m, 4) for m in methods]
            self.nb.cells = cells
            self.nb.module_ = module

    class RunDocumentation(Processor):
        "Run the `show_doc` cells, and nothing else, against the exported module."

        def begin(self):
            self.shell = None
            if self.nb.module_:
                self.shell = CaptureShell()
                self.shell.run_cell(
                    f"from nbdev.showdoc import show_doc\nimport {self.nb.module_} as _m\n"
                    "globals().update({k: v for k, v in vars(_m).items() if not k.startswith('__')})"
                )
                if self.shell.exc:
                    raise RuntimeError(f"{self.nb.module_} does not import") from self.shell.exc

        def cell(self, cell):
            if self.shell and cell.cell_type == "code" and (hasattr(cell, "documents") or "exec_doc" in cell.directives_):
                self.shell.cell(cell)
                if self.shell.exc:
                    raise RuntimeError(f"in {self.nb.module_}: {cell.source}") from self.shell.exc

    class HidePlumbing(Processor):
        "`#| hide` and `#| default_exp` cells leave no trace; exported source stays."

        def cell(self, cell):
            if cell.cell_type == "code" and (cell.directives_ or {}).keys() & {"hide", "default_exp"}:
                del cell["source"]

    ours = {
        P.add_show_docs: DocumentExports, P.exec_show_docs: RunDocumentation, P.rm_export: HidePlumbing,
        P.add_fold: None, P.mv_exports: None, P.insert_warning: None,
    }  # fmt: skip

    class Chapter(P.FilterDefaults):
        def procs(self):
            return [new for new in (ours.get(p, p) for p in self.base_procs()) if new]

    return Chapter


def outside_links(text: str, notebook: Path, source_host: str) -> str:
    "Mend relative links: chapters lose their numbers, and files outside nbs/ are read on the source host."

    def mend(match):
        target, anchor = re.fullmatch(r"([^#]*)(#.*)?", match[2]).groups()
        if not target or "://" in target or target.startswith(("mailto:", "data:", "attachment:")):
            return match[0]
        path = Path(os.path.normpath(notebook.parent / target))
        if path.parts and path.parts[0] == "..":
            return f"{match[1]}{source_host}/{Path(*path.parts[1:]).as_posix()}{anchor or ''})"
        if path.suffix == ".ipynb":
            return f"{match[1]}{Path(target).with_name(page_name(path).name).as_posix()}{anchor or ''})"
        return match[0]

    return re.sub(r"(\]\()([^)\s]+)\)", mend, text)


def document(notebook: Path) -> str:
    "Process one notebook of nbs/ into _proc/; returns its name."
    from execnb.nbio import read_nb, write_nb
    from nbdev.config import get_config

    os.environ["IN_TEST"] = "1"  # nbdev's sign that a notebook is processed, not used
    cfg = get_config(path=ROOT)
    host = f"{cfg.git_url}/blob/{cfg.branch}"
    nb = read_nb(NBS / notebook)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = outside_links(cell.source, notebook, host)
    processors()()(nb)
    if notebook.name != "index.ipynb":
        source = f"{host}/{notebook.as_posix() if notebook.parts[0] == 'tutorials' else f'nbs/{notebook.as_posix()}'}"
        front = nb.cells[0]
        if front.cell_type == "raw" and front.source.startswith("---"):
            extra = yaml.safe_dump({"code-links": [{"text": "Notebook", "icon": "journal-code", "href": source}]})
            front.source = re.sub(r"\n---\s*$", f"\n{extra}---\n", re.sub(r"^output-file:.*\n", "", front.source, flags=re.M))
    target = PROC / page_name(notebook)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, target)
    return notebook.as_posix()


def copy_resources(pages: list[Path]):
    "Style, configuration and pictures that lie beside the notebooks."
    for path in NBS.rglob("*"):
        keep = path.suffix in (".css", ".svg", ".png", ".jpg", ".gif", ".mp4")
        if keep and path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(NBS).parts):
            target = PROC / path.relative_to(NBS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    names = {p.as_posix(): page_name(p).as_posix() for p in pages}
    for name in ("_quarto.yml", "nbdev.yml", "sidebar.yml"):
        text = (NBS / name).read_text()
        for old, new in names.items():
            text = text.replace(old, new)
        (PROC / name).write_text(text)


# ---- 3. render ----


def render() -> Path:
    "smalldocs writes the site beside the processed notebooks; its warnings about Quarto-only keys are not ours."
    done = subprocess.run([sys.executable, "-m", "smalldocs.cli", "render", "--quiet", str(PROC)], capture_output=True, text=True)
    noise = re.compile(r"keep-md|commonmark|output-file|^\s*$")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not noise.search(line)]
    if done.returncode:
        sys.exit("smalldocs could not render the site:\n" + "\n".join(lines))
    for line in lines:
        print("smalldocs:", line)
    return PROC / SITE.name


# ---- 4. self-contained ----


def to_mathml(page: str, where: str) -> tuple[str, int]:
    "TeX to MathML, which browsers draw themselves."
    from latex2mathml.converter import convert

    count = 0

    def formula(match):
        nonlocal count
        count += 1
        tex = html.unescape(match[2]).strip()
        try:
            drawn = convert(tex, display="block" if match[1] == "display" else "inline")
        except Exception as error:
            raise ValueError(f"{where}: the formula {tex!r} cannot be converted ({type(error).__name__}: {error})") from error
        return f'<span class="math {match[1]}">{drawn}</span>'

    page = re.sub(r'<span class="math (inline|display)">\\[\(\[](.*?)\\[\)\]]</span>', formula, page, flags=re.S)
    return page, count


FETCHED = re.compile(r'<(?:link|script)\b[^>]*(?:href|src)="https?://cdn\.[^"]*katex[^"]*"[^>]*>(?:\s*</script>)?')
FONT_IMPORT = re.compile(r'@import\s*(?:url\()?["\']?https?://fonts\.[^;]*;?')


def make_local(site: Path, own_host: str) -> int:
    "Formulas, own links and fonts of every page; returns the number of formulas."
    formulas = 0
    for path in site.rglob("*.html"):
        page, count = to_mathml(path.read_text(), path.relative_to(site).as_posix())
        up = os.path.relpath(site, path.parent).replace(os.sep, "/")
        page = FETCHED.sub("", page)
        page = re.sub(rf'(<a\b[^>]*\bhref="){re.escape(own_host)}/?', rf"\g<1>{up}/", page)
        path.write_text(page)
        formulas += count
    for path in site.rglob("*.css"):
        path.write_text(FONT_IMPORT.sub("", path.read_text()))
    return formulas


# ---- 5. check ----


class Page(HTMLParser):
    "Anchors, links, and what a browser would fetch when it opens the page."

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.fetched = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[k] for k in ("id", "name") if found.get(k)}
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        inert = {"canonical", "alternate", "license", "author", "sitemap", "prev", "next"}
        if tag == "link" and not set((found.get("rel") or "").split()) & inert:
            self.fetched.add(found.get("href"))
        if tag in ("script", "img", "iframe", "video", "audio", "source", "embed", "track", "object"):
            self.fetched |= {found.get(k) for k in ("src", "poster", "data")}
        self.fetched.discard(None)


def check(site: Path) -> list[str]:
    "What is wrong with the site, a line each."
    wrong = []
    pages = {path.relative_to(site).as_posix(): Page(path.read_text()) for path in site.rglob("*.html")}
    for name, page in sorted(pages.items()):
        for link in sorted(page.links | page.fetched):
            parts = urlsplit(link)
            if parts.scheme in ("http", "https") or link.startswith("//"):
                if link in page.fetched:
                    wrong.append(f"{name}: would fetch {link}")
            elif not parts.scheme:
                path = os.path.normpath(Path(name).parent / unquote(parts.path)).replace(os.sep, "/") if parts.path else name
                path = path if not (site / path).is_dir() else f"{path}/index.html".removeprefix("./")
                if not (site / path).exists():
                    wrong.append(f"{name}: dead link {link}")
                elif parts.fragment and path in pages and unquote(parts.fragment) not in pages[path].ids:
                    wrong.append(f"{name}: dead anchor {link}")
        text = (site / name).read_text()
        if re.search(r'<span class="math [a-z]+">\\', text):
            wrong.append(f"{name}: a formula was not converted")
    for path in site.rglob("*.css"):
        for url in re.findall(r"""(?:@import\s+|url\()\s*["']?(https?://[^"')]+)""", path.read_text()):
            wrong.append(f"{path.relative_to(site)}: would fetch {url}")
    return wrong


def main() -> int:
    start = time.time()
    from nbdev.config import get_config

    cfg = get_config(path=ROOT)
    pages = notebooks()
    clashes = {page_name(p) for p in pages if sum(page_name(p) == page_name(q) for q in pages) > 1}
    if clashes:
        sys.exit(f"two notebooks would become one page: {sorted(map(str, clashes))}")
    shutil.rmtree(PROC, ignore_errors=True)
    write_config(pages)
    workers = int(os.environ.get("DOCS_WORKERS", 2))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(document, pages, chunksize=max(1, len(pages) // (4 * workers))):
            pass
    copy_resources(pages)
    site = render()
    formulas = make_local(site, cfg.doc_host + cfg.doc_baseurl)
    wrong = check(site)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(site, SITE)
    for line in wrong:
        print(line)
    count = len(list(SITE.rglob("*.html")))
    dead = sum("dead" in line for line in wrong)
    print(f"{count} pages, {formulas} formulas, {dead} dead links, {len(wrong) - dead} other faults, "
          f"{time.time() - start:.1f} s -> {SITE.relative_to(ROOT)}/index.html")  # fmt: skip
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
