"""The search of the site: what a page is called weighs more than a word in passing.

The weights are worked out here, once, when the site is built; the script in the page (search.js) adds up what it finds
in them. So a test can ask in Python what a reader will find. Only prose is indexed: code repeats the names that are
headings anyway, and buries the rest."""

import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

TITLE, SUBTITLE, HEADING = 9.0, 4.0, 6.0  # how often a word would have to stand in the text to count as much
KINDS = {"tutorials": 1.5, "index.html": 1.3, "costs.html": 1.5, "configuration.html": 0.8, "coming_from": 0.4,
         "7_tiny": 0.45, "8_tools": 0.9}  # fmt: skip
A_PAGE = 2  # results of one page at most
STOP = set("a an and are as at be by can do does for from has have how i in is it its my not of on or so that the this to what "
           "when where which why will with you your".split())  # fmt: skip
ALSO = {  # words of users, and those of the book
    "oom": "memory", "vram": "memory", "cuda": "gpu", "overfit": "held-out", "overfitting": "held-out",
    "i2v": "image", "t2v": "text", "v2v": "reference", "a2v": "sound", "v2a": "sound", "ic": "reference",
    "multi": "several", "multigpu": "several", "ddp": "several", "fsdp": "split", "lr": "rate", "foley": "sound",
    "audio": "sound", "outpaint": "outpainting", "inpaint": "inpainting", "restart": "resume", "continue": "resume",
    "crash": "resume", "comfyui": "lora", "price": "cost", "hours": "cost", "expensive": "cost", "yaml": "configuration",
    "config": "configuration", "captioning": "caption", "subtitle": "caption", "gemma": "text", "fps": "rate",
}  # fmt: skip
SKIP = {"pre", "script", "style", "nav", "footer", "header", "math", "button", "summary"}
EMPTY = {"br", "img", "hr", "meta", "link", "input", "source", "wbr", "col"}
BREAKS = {"p", "li", "td", "th", "tr", "dt", "dd", "div", "figcaption"}


def stem(word: str) -> str:
    "One form for `clip` and `clips`, `train`, `trained` and `training`."
    for ending in ("ings", "ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


def words(text: str) -> list[str]:
    "The stems of a text; a name with underscores is one word, and each of its parts is one."
    found = []
    for word in re.findall(r"[^\W_][\w-]*", text.lower()):
        parts = [part for part in re.split(r"[_-]", word) if part]
        found += [stem(w) for w in dict.fromkeys([word, *parts]) if w not in STOP]
    return found


class Sections(HTMLParser):
    "A page as sections: anchor, heading and prose; the first is the page itself."

    def __init__(self, page: str):
        super().__init__()
        self.title, self.subtitle, self.skipped, self.inside, self.collect = "", "", 0, False, None
        self.sections, self.open = [["", "", []]], [0]
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        classes = (found.get("class") or "").split()
        self.inside |= tag == "main"
        if tag in SKIP and not (tag == "header" and found.get("id") == "title-block-header"):
            self.skipped += 1
        elif tag == "section" and self.inside:
            self.open.append(len(self.sections))
            self.sections.append([found.get("id") or "", "", []])
        elif tag == "h1":
            self.collect = "title"
        elif "subtitle" in classes or found.get("class") == "description" or "lead" in classes:
            self.collect = "subtitle"
        elif re.fullmatch("h[2-6]", tag) and self.inside:
            self.collect = "heading"
        if tag in BREAKS and self.inside:
            self.sections[self.open[-1]][2].append(" ")

    def handle_endtag(self, tag):
        if tag in SKIP:
            self.skipped = max(0, self.skipped - 1)
        elif tag == "section" and len(self.open) > 1:
            self.open.pop()
        elif tag == "main":
            self.inside = False
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6", "p", "div"):
            self.collect = None

    def handle_data(self, data):
        if self.skipped or not self.inside:
            return
        if self.collect == "title":
            self.title += data
        elif self.collect == "subtitle":
            self.subtitle += data
        elif self.collect == "heading":
            self.sections[self.open[-1]][1] += data
        else:
            self.sections[self.open[-1]][2].append(data)


def weight_of(href: str) -> float:
    "Tutorials before chapters, chapters before the tiny world."
    return next((weight for start, weight in KINDS.items() if href.startswith(start)), 1.0)


def index_of(pages: dict[str, str]) -> list[dict]:
    "An entry for each section of each page, with the weight of every word in it."
    entries = []
    for href, page in sorted(pages.items()):
        read = Sections(page)
        for anchor, heading, text in read.sections:
            prose = " ".join("".join(text).split())
            counts = Counter()
            for word, n in Counter(words(prose)).items():
                counts[word] += (1 + math.log(n)) * min(1.0, 12 / (6 + len(prose) ** 0.5))
            symbol = re.fullmatch(r"\S*[_.A-Z]\S*", heading.strip())  # a whole name is asked for, not a part of it
            for word in set(words(heading)):
                counts[word] += HEADING / 3 if symbol and word != stem(heading.strip().lower()) else HEADING
            for word in set(words(read.title)):
                counts[word] += TITLE if not anchor else TITLE / 4
            for word in set(words(read.subtitle)):
                counts[word] += SUBTITLE if not anchor else 0
            if prose or heading or not anchor:
                entries.append({"href": f"{href}#{anchor}" if anchor else href, "title": read.title.strip(),
                                "section": heading.strip(), "text": prose, "words": counts})  # fmt: skip
    seen_in = Counter(word for entry in entries for word in entry["words"])
    for entry in entries:
        kind = weight_of(entry["href"])
        entry["words"] = {
            word: round(kind * weight * math.log(1 + len(entries) / seen_in[word]), 1)
            for word, weight in entry["words"].items()
        }
    return entries


def search(
    entries: list[dict],
    query: str,
    limit: int = 20,
) -> list[dict]:
    "The entries that answer a query, best first. search.js does the same: keep them in step."
    asked = list(dict.fromkeys(words(query)))
    asked = [[term, *([stem(ALSO[term])] if term in ALSO else [])] for term in asked]
    scored = []
    for place, entry in enumerate(entries):
        total, met = 0.0, 0
        for terms in asked:
            best = 0.0
            for n, term in enumerate(terms):
                found = entry["words"].get(term, 0.0)
                if not found and len(term) >= 3:
                    found = 0.6 * max((w for word, w in entry["words"].items() if word.startswith(term)), default=0.0)
                best = max(best, found if n == 0 else 0.8 * found)
            total, met = total + best, met + (best > 0)
        if met:
            scored.append((-total * (met / len(asked)) ** 2, place))
    of_page, answer = Counter(), []
    for _, place in sorted(scored):
        page = entries[place]["href"].split("#")[0]
        of_page[page] += 1
        if of_page[page] <= A_PAGE:
            answer.append(entries[place])
    return answer[:limit]


def write(site: Path) -> None:
    "search.json and the script that reads it, in the place of smalldocs' own fuzzy search."
    names = (path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    entries = index_of({name: (site / name).read_text(encoding="utf-8") for name in names})
    (site / "search.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    script = (Path(__file__).parent / "search.js").read_text(encoding="utf-8")
    told = {"ALSO": {word: stem(other) for word, other in ALSO.items()}, "STOP": sorted(STOP), "A_PAGE": A_PAGE}
    for name, value in told.items():
        script = script.replace(f"/*{name}*/", json.dumps(value))
    (site / "site_libs" / "fuse" / "fuse.min.js").write_text(script, encoding="utf-8")
