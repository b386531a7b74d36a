"""Build the documentation site into `_docs/`, without Quarto and without the network.

    python docs/build.py            # nbs/ -> _proc/ (processed notebooks) -> _docs/ (the site)

1. A sidebar by floors is written from the notebooks that exist.
2. Every notebook goes through nbdev's processors and ours (pages.py): a heading, a link to the line and a signature
   for every public symbol. Outputs are those that the notebook was saved with; nothing is run.
   Some pages have no notebook: the configuration reference, written from the classes of ltx_nb.config, and docs/guides.
3. smalldocs renders the result. The sources stay Quarto-compatible.
4. Formulas become MathML, links to our own host become relative, and everything that would be fetched is removed.
5. The site is checked: a dead link, a formula left as TeX or anything fetched from elsewhere fails the build.

docs/README.md says why it is done this way."""

import html
import json
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

sys.path.insert(0, str(Path(__file__).resolve().parent))
import coming_from
import costs
import search
import seen
from lines import fold_prints, label_cells, wrap_code
from pages import NBS, PROC, ROOT, WORK, document, page_name

SITE = WORK / "_docs"
REFERENCE = "configuration.md"  # the page about every field of a configuration
COMING_FROM = "coming_from_the_ltx_trainer.md"  # the page about names of the LTX Trainer
COSTS = "costs.md"  # the page about memory and hours
GUIDES = {  # in docs/guides: name in the sidebar
    "quick_start.md": "Quick start",
    "train_a_lora.md": "From footage to a LoRA",
    "dataset_preparation.md": "Dataset preparation",
    "training_modes.md": "Training modes",
    "utility_scripts.md": "The other commands",
    "troubleshooting.md": "Troubleshooting",
}

FLOORS = {  # folder of nbs/: its name in the sidebar, in reading order
    "tutorials": "Tutorials",
    "1_model": "1. The model",
    "2_loading": "2. Loading and LoRA",
    "3_flow": "3. The flow",
    "4_data": "4. Data",
    "5_config": "5. Configuration",
    "6_training": "6. Training",
    "7_tiny": "7. The tiny LTX-2",
    "8_tools": "8. Tools",
}
PARTS = {  # the story that the table of contents tells: before which floor a part begins
    "1_model": "What the model is",
    "3_flow": "How it learns",
    "4_data": "How to teach it yours",
    "7_tiny": "How it is tried out",
}


GROUPS = {  # chapters come in the order of their numbers; a word stands above those that begin something
    "2_loading": {"checkpoint": "from a file", "quantization": "made to fit", "lora": "LoRA"},
    "4_data": {
        "containers": "what is in a file",
        "windows": "a dataset",
        "store": "what training reads",
        "roles": "preparing",
        "cuts": "from films to clips",
        "captioners": "captions",
        "filters": "references and masks",
        "endings": "out again",
    },
    "6_training": {
        "step": "a step",
        "checkpoints": "what is kept and shown",
        "processes": "several GPUs",
        "request": "clips along the way",
        "peaks": "does it fit?",
        "runtime": "a run",
    },
    "8_tools": {"options": "the command ltx-nb", "rented": "machines"},
}


# ---- 1. what there is ----


def notebooks() -> list[Path]:
    "Every page's notebook, relative to nbs/, in reading order: the landing page first, then floor by floor."
    found = {Path("index.ipynb")} if (NBS / "index.ipynb").exists() else set()
    for floor in FLOORS:
        found |= {p.relative_to(NBS) for p in (NBS / floor).glob("*.ipynb")}
    order = list(FLOORS)
    return sorted(found, key=lambda p: (order.index(p.parts[0]) if len(p.parts) > 1 else -1, p.name))


def title_of(notebook: Path) -> str:
    "The first heading."
    cells = json.loads((NBS / notebook).read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] in ("markdown", "raw"))
    found = re.search(r"^#\s+(.+)$|^title:\s*(.+)$", text, flags=re.M)
    return (found[1] or found[2]).strip().strip("\"'") if found else notebook.stem


def entries_of(floor: str, chapters: list[Path]) -> list[dict]:
    "A floor's chapters in their order, with a word above each group."
    words, entries = GROUPS.get(floor, {}), []
    for path in chapters:
        word = words.get(page_name(path).stem)
        entries += [{"text": word}] if word else []
        entries.append({"text": title_of(path), "href": path.as_posix()})
    return entries


def sidebar(pages: list[Path]) -> dict:
    "The floors in order, in parts; a floor appears only when it has a chapter."
    contents = [{"text": "Start here", "href": "index.ipynb"}] if Path("index.ipynb") in pages else []
    for floor, name in FLOORS.items():
        chapters = [p for p in pages if p.parts[0] == floor]
        if chapters:
            if floor in PARTS:
                contents.append({"text": PARTS[floor]})
            contents.append({"section": name, "contents": entries_of(floor, chapters)})
    return {"website": {"sidebar": {"contents": contents}}}


def write_config(pages: list[Path]):
    "nbs/nbdev.yml from settings.ini and nbs/sidebar.yml from the floors: Quarto reads the same two files."
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml

    get_config(path=ROOT)
    os.chdir(ROOT)
    refresh_quarto_yml()
    (NBS / "sidebar.yml").write_text(yaml.safe_dump(sidebar(pages), sort_keys=False))


def copy_resources(pages: list[Path]):
    "Style, configuration and pictures that lie beside the notebooks."
    for path in [*NBS.glob("*"), *(p for part in ("landing", *FLOORS) for p in (NBS / part).rglob("*"))]:
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


def guide(
    name: str,  # of a file in docs/guides
) -> str:
    "A guide as the site has it: its links lead from the sources into the pages that are made of them."
    text = (ROOT / "docs" / "guides" / name).read_text(encoding="utf-8")
    page = lambda found: f"]({page_name(Path(found[1])).with_suffix('.html').as_posix()}{found[2]})"
    text = re.sub(r"\]\(\.\./\.\./(?:nbs/)?([\w/]+\.ipynb)((?:#[\w.-]+)?)\)", page, text)
    return text.replace("](../../nbs/", "](")


def write_reference():
    "The pages that are made, not written, and their entries in the sidebar. Brings pydantic, but no torch."
    from ltx_nb.config.explain import reference_markdown

    (PROC / REFERENCE).write_text(
        f"---\ntitle: Configuration reference\n---\n\n{reference_markdown()}", encoding="utf-8"
    )
    (PROC / COMING_FROM).write_text(coming_from.markdown(), encoding="utf-8")
    (PROC / COSTS).write_text(costs.markdown(), encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "guides" / "pictures", PROC / "pictures", dirs_exist_ok=True)
    for name in GUIDES:
        (PROC / name).write_text(guide(name), encoding="utf-8")
    bar = yaml.safe_load((PROC / "sidebar.yml").read_text(encoding="utf-8"))
    first = [{"text": title, "href": name} for name, title in GUIDES.items()] + [{"text": costs.TITLE, "href": COSTS}]
    bar["website"]["sidebar"]["contents"][1:1] = first
    bar["website"]["sidebar"]["contents"].append({"text": "To look things up"})
    entries = [{"text": "Configuration", "href": REFERENCE}, {"text": coming_from.TITLE, "href": COMING_FROM}]
    bar["website"]["sidebar"]["contents"].append({"section": "Reference", "contents": entries})
    (PROC / "sidebar.yml").write_text(yaml.safe_dump(bar, sort_keys=False))


# ---- 3. render ----


def render() -> Path:
    "smalldocs writes the site beside the processed notebooks; its warnings about Quarto-only keys are not ours."
    done = subprocess.run(
        [sys.executable, "-m", "smalldocs.cli", "render", "--quiet", str(PROC)], capture_output=True, text=True
    )
    noise = re.compile(r"keep-md|commonmark|output-file|^\s*$")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not noise.search(line)]
    if done.returncode:
        sys.exit("smalldocs could not render the site:\n" + "\n".join(lines))
    for line in lines:
        print("smalldocs:", line)
    site = PROC / SITE.name
    for film in PROC.rglob("*.mp4"):  # smalldocs copies what Markdown names; a film stands in HTML
        target = site / film.relative_to(PROC)
        if site not in film.parents and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(film, target)
    return site


# ---- 4. self-contained ----


RELATIONS = r"\\(?:approx|leftarrow|le|ge|in)\b|[=+-]"
MARKS = re.compile(
    rf"(?P<open>\\(?:begin|left)\b|[{{(\[])|(?P<close>\\(?:end|right)\b|[}})\]])|(?P<apart>\\q?quad\b)|(?P<relation>{RELATIONS})"
    r"|\\[a-zA-Z]+|\\."
)
BY_NAME = re.compile(r"\\(arg)\b")  # latex2mathml does not know these as names of functions


def formulas_of(tex: str) -> list[list[str]]:
    r"""Where a formula may go on in the next line of a narrow page: behind \\quad, and before what relates or adds.

    Only at the top level: not inside braces, an environment or \\left ... \\right. A list for each stretch between two
    \\quad, which stay together while there is room."""
    stretches, depth, start = [[]], 0, 0
    for match in MARKS.finditer(tex):
        depth += bool(match["open"]) - bool(match["close"])
        if depth == 0 and (match["apart"] or match["relation"]) and tex[start : match.start()].strip():
            stretches[-1].append(tex[start : match.start()])
            start = match.end() if match["apart"] else match.start()
            stretches += [[]] if match["apart"] else []
    stretches[-1].append(tex[start:])
    return [stretch for stretch in stretches if any(part.strip() for part in stretch)]


def drawn(tex: str, display: bool) -> str:
    "MathML of one formula; one that stands by itself is made of parts that a narrow page sets below each other."
    from latex2mathml.converter import convert

    tex = BY_NAME.sub(r"\\operatorname{\1}", tex)
    outside = re.sub(r"\\begin.*?\\end\{\w+\*?\}", "", tex, flags=re.S)
    if not display or re.search(r"&|\\\\", outside):
        return convert(tex, display="block" if display else "inline")
    relating = re.compile(rf"\s*({RELATIONS})")
    stretches = (
        "".join(convert("{}" * bool(relating.match(part)) + part, display="block") for part in stretch if part.strip())
        for stretch in formulas_of(tex)
    )
    return "".join(f'<span class="stretch">{stretch}</span>' for stretch in stretches)


def to_mathml(page: str, where: str) -> tuple[str, int]:
    "TeX to MathML, which browsers draw themselves."
    count = 0

    def formula(match):
        nonlocal count
        count += 1
        tex = html.unescape(match[2]).strip()
        try:
            drawing = drawn(tex, match[1] == "display")
        except Exception as error:
            raise ValueError(
                f"{where}: the formula {tex!r} cannot be converted ({type(error).__name__}: {error})"
            ) from error
        return f'<span class="math {match[1]}">{drawing}</span>'

    page = re.sub(r'<span class="math (inline|display)">\\[\(\[](.*?)\\[\)\]]</span>', formula, page, flags=re.S)
    return page, count


FETCHED = re.compile(r'<(?:link|script)\b[^>]*(?:href|src)="https?://cdn\.[^"]*katex[^"]*"[^>]*>(?:\s*</script>)?')
FONT_IMPORT = re.compile(r"@import\s*(?:url\([^)]*\)|\"[^\"]*\"|'[^']*')[^;{]*;")


def make_local(site: Path, own_host: str) -> int:
    "Formulas, own links and fonts of every page; returns the number of formulas."
    formulas = 0
    for path in site.rglob("*.html"):
        page, count = to_mathml(path.read_text(), path.relative_to(site).as_posix())
        up = os.path.relpath(site, path.parent).replace(os.sep, "/")
        page = fold_prints(label_cells(wrap_code(FETCHED.sub("", page))))
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
                path = (
                    os.path.normpath(Path(name).parent / unquote(parts.path)).replace(os.sep, "/")
                    if parts.path
                    else name
                )
                path = path if not (site / path).is_dir() else f"{path}/index.html".removeprefix("./")
                if not (site / path).exists():
                    wrong.append(f"{name}: dead link {link}")
                elif parts.fragment and path in pages and unquote(parts.fragment) not in pages[path].ids:
                    wrong.append(f"{name}: dead anchor {link}")
        text = (site / name).read_text()
        wrong += [f"{name}: {fault}" for fault in seen.faults(text)]
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
    for page in pages:
        document(page)
    copy_resources(pages)
    write_reference()
    site = render()
    formulas = make_local(site, cfg.doc_host + cfg.doc_baseurl)
    search.write(site)
    wrong = check(site)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(site, SITE)
    for line in wrong:
        print(line)
    count = len(list(SITE.rglob("*.html")))
    dead = sum("dead" in line for line in wrong)
    print(f"{count} pages, {formulas} formulas, {dead} dead links, {len(wrong) - dead} other faults, "
          f"{time.time() - start:.1f} s -> {SITE.relative_to(WORK)}/index.html")  # fmt: skip
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
