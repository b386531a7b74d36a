"""What a browser shows of a page, and what should not be among it.

A link can be alive and yet stand there as `[text](target)`: the builder's other checks read the links of a page, this
one reads its words. Prose and code are told apart, since `**` is a fault in the one and Python in the other."""

import re
from html.parser import HTMLParser

UNSEEN = {"head", "script", "style", "template", "noscript"}
CODE = {"pre", "code", "samp", "kbd"}
EMPTY = {"br", "img", "hr", "meta", "link", "input", "source", "wbr", "col", "area", "base", "embed", "track"}
BLOCKS = {"p", "div", "li", "td", "th", "tr", "pre", "dt", "dd", "section", "figure", *(f"h{n}" for n in range(1, 7))}

RAW = {  # in prose: what it is when a reader sees it
    r"\]\([^)\s]*\)": "a link",
    r"\]\[\w": "a link",
    r"`": "a backtick",
    r"\*\*\w|\w\*\*": "an emphasis",
    r"(?<![\w/.])\*\w[^*\n]*\w\*(?!\w)": "an emphasis",
    r"^\s*#{1,6} \w": "a heading",
    r"^\s*\|.*\|\s*$": "a table",
    r"^\s*:::": "a div",
    r"\{[#.][\w-]+[^}]*\}": "attributes",
    r"^\s*#\|": "a cell's option",
    r"!\[": "a picture",
}
FORMULA = {r"\\[a-zA-Z]{2,}": "a formula's source", r"\\[()\[\]]": "a formula's source", r"\$\S": "a formula's source"}
MACHINE = {r"(?<![\w.])/(?:work|home|root|tmp|mnt|Users)/[^\s'\"<>),;]*": "a path of a machine"}


class Seen(HTMLParser):
    "The words of a page: `prose` and `code`, and the pictures that have no words."

    def __init__(self, text: str):
        super().__init__()
        self.open, self.prose, self.code, self.formulas, self.wordless = [], [], [], [], []
        self.feed(text)
        self.prose, self.code, self.formulas = "".join(self.prose), "".join(self.code), "".join(self.formulas)

    def handle_starttag(self, tag, attributes):
        if tag not in EMPTY:
            self.open.append(tag)
        if tag in BLOCKS or tag == "br":
            self.prose.append("\n")
        found = dict(attributes)
        silent = found.get("aria-hidden") == "true" or found.get("role") == "presentation"
        words = {
            "img": ("alt",),
            "svg": ("aria-label",),
            "video": ("aria-label", "title"),
            "audio": ("aria-label", "title"),
        }
        if tag in words and not silent and not any((found.get(key) or "").strip() for key in words[tag]):
            self.wordless.append(f"<{tag} {(found.get('src') or '')[:40]}>")

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass
        if tag in BLOCKS:
            self.prose.append("\n")
            if tag == "pre":
                self.code.append("\n")

    def handle_data(self, data):
        if "math" in self.open:
            self.formulas.append(data)
        elif not UNSEEN & set(self.open):
            if CODE & set(self.open):
                self.code.append(data)
                self.prose.append("\N{OBJECT REPLACEMENT CHARACTER}" if "pre" not in self.open else "")
            else:
                self.prose.append(data)


def faults(text: str) -> list[str]:
    "What a reader of this page would see and should not, a line each."
    seen, found = Seen(text), []
    for rules, where in ((RAW | FORMULA | MACHINE, seen.prose), (MACHINE, seen.code), (FORMULA, seen.formulas)):
        for pattern, what in rules.items():
            for match in re.finditer(pattern, where, flags=re.M):
                around = " ".join(where[max(0, match.start() - 25) : match.end() + 25].split())
                found.append(f"{what} is shown raw: ...{around}...")
    return found + [f"a picture without words: {picture}" for picture in seen.wordless]
