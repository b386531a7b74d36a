"""The drawing at the head of each chapter, from a few lines of text.

    python docs/figures.py            # figures.txt -> nbs/<floor>/figures/<chapter>.svg, and a line in each notebook

Those of the tutorials are put in by the builder of the site.

A figure is written as it is read, from left to right:

    film @file:mp4 | caption @file:txt -> encode @here:once -> store @data:[128, F, H, W]

Columns stand between arrows, boxes of a column between bars. Behind @ stands what a box is, behind the colon a smaller
second line. An arrow may carry a word: -[noise]->. Several lines are several rows. The drawings of the transformer's block
and of a training step are made by hand, below."""

import html
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "docs" / "figures.txt"
COLOURS = {  # what a box is: its ground and its edge. On a dark page they are turned round, lightness only
    "data": ("#e4eefb", "#4d84c9"),  # tensors
    "file": ("#f3f3f3", "#8a8a8a"),  # files, people, settings
    "frozen": ("#e6f3e8", "#58a068"),  # networks that stay as they are
    "trained": ("#fbe3ea", "#cf5b7d"),  # what training moves
    "here": ("#fdeed6", "#dd9434"),  # what the chapter is about
}
TITLE, SMALL, HIGH, GAP = 15, 12, 26, 34  # sizes of text; a line's height; between columns
STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#222}"
    f".t{{font-size:{TITLE}px}}.s{{font-size:{SMALL}px;fill:#555}}.b{{font-weight:600}}"
    "path,line{stroke:#666;stroke-width:1.4;fill:none}"
)


def width_of(text: str, size: float) -> float:
    "About how wide a text is: letters differ, and a little room does no harm."
    narrow = sum(c in "iljtf.,:;|![]()' " for c in text)
    return size * (0.56 * (len(text) - narrow) + 0.34 * narrow)


@dataclass
class Box:
    "A rectangle with a title and, below it, smaller lines."

    title: str
    kind: str = "data"
    small: tuple[str, ...] = ()
    x: float = 0
    y: float = 0
    wide: float = 0

    def __post_init__(self):
        size = TITLE * (1.1 if self.kind == "here" else 1)  # bold letters are wider
        self.wide = self.wide or max(width_of(self.title, size), *(width_of(s, SMALL) for s in self.small), 30) + 22

    @property
    def high(self) -> float:
        return 14 + HIGH * 0.75 + 16 * len(self.small)

    def svg(self) -> str:
        ground, edge = COLOURS[self.kind]
        middle, top = self.x + self.wide / 2, self.y + 7 + TITLE
        lines = [
            f'<rect x="{self.x:.0f}" y="{self.y:.0f}" width="{self.wide:.0f}" height="{self.high:.0f}" rx="6" '
            f'fill="{ground}" stroke="{edge}" stroke-width="1.4"/>',
            text(middle, top, self.title, "t b" if self.kind == "here" else "t"),
        ]
        return "".join([*lines, *(text(middle, top + 17 + 16 * i, s, "s") for i, s in enumerate(self.small))])


def text(x: float, y: float, words: str, kind: str = "t", anchor: str = "middle") -> str:
    "Words at a place."
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" class="{kind}">{html.escape(words)}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    "From one place to another: straight, or in a soft bend."
    if abs(y1 - y2) < 1 or abs(x1 - x2) < 1:
        return f'<path d="M{x1:.0f} {y1:.0f}L{x2:.0f} {y2:.0f}" marker-end="url(#a)"/>'
    middle = (x1 + x2) / 2
    return f'<path d="M{x1:.0f} {y1:.0f}C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2:.0f} {y2:.0f}" marker-end="url(#a)"/>'


def page(parts: list[str], wide: float, high: float) -> str:
    "A whole drawing, without a ground, so that it lies on a page in light and in dark."
    head = '<marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#666;stroke:none"/></marker>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" height="{high:.0f}">'
        f"<defs><style>{STYLE}</style>{head}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


# ---- a row of text ----


def read_box(words: str) -> Box:
    "`latents @data:[128, F, H, W];in float32`: title, kind, smaller lines."
    found = re.fullmatch(r"\s*(.*?)\s*(?:@(\w+)(?::(.*))?)?\s*", words)
    kind = found[2] or "data"
    if kind not in COLOURS:
        raise ValueError(f"{words.strip()!r}: {kind!r} is no kind of box; there are {', '.join(COLOURS)}")
    return Box(found[1], kind, tuple(s.strip() for s in found[3].split(";")) if found[3] else ())


def read_row(line: str) -> tuple[list[list[Box]], list[str]]:
    "Columns of boxes, and the words on the arrows between them."
    pieces = re.split(r"\s-(?:\[([^\]]*)\])?->\s|\s->\s", f" {line.strip()} ")
    return [[read_box(box) for box in piece.split(" | ")] for piece in pieces[::2]], [w or "" for w in pieces[1::2]]


def draw_row(line: str, top: float) -> tuple[list[str], float, float]:
    "A row: its parts, its right edge, its lower edge."
    columns, words = read_row(line)
    tall = max(sum(b.high for b in column) + 10 * (len(column) - 1) for column in columns)
    parts, x = [], 4.0
    for number, column in enumerate(columns):
        wide = max(box.wide for box in column)
        y = top + (tall - sum(b.high for b in column) - 10 * (len(column) - 1)) / 2
        for box in column:
            box.x, box.y, box.wide = x, y, wide
            y += box.high + 10
            parts.append(box.svg())
        x += wide + (max(GAP, width_of(words[number], SMALL) + 22) if number < len(words) else 0)
    for left, right, word in zip(columns, columns[1:], words):
        pairs = list(zip(left, right)) if len(left) == len(right) else [(a, b) for a in left for b in right]
        spread = lambda box, n, of: box.y + box.high * (n + 1) / (of + 1)
        for number, (a, b) in enumerate(pairs):
            several_in, several_out = len(left) > len(right) == 1, len(right) > len(left) == 1
            y1 = spread(a, number, len(right)) if several_out else a.y + a.high / 2
            y2 = spread(b, number, len(left)) if several_in else b.y + b.high / 2
            parts.append(arrow(a.x + a.wide + 2, y1, b.x - 3, y2))
        if word:
            parts.append(
                text((left[0].x + left[0].wide + right[0].x) / 2, pairs[0][0].y + pairs[0][0].high / 2 - 7, word, "s")
            )
    return parts, x + 4, top + tall


def draw(lines: list[str]) -> str:
    "A drawing from its rows."
    parts, wide, top = [], 0.0, 6.0
    for line in lines:
        more, right, low = draw_row(line, top)
        parts, wide, top = parts + more, max(wide, right), low + 16
    return page(parts, wide, top - 8)


# ---- by hand ----


def block() -> str:
    "Two streams through 48 blocks, and one block with its six attentions."
    parts, left, right = [], 60.0, 480.0

    def column(x, kind, names, y0=92.0):
        boxes = []
        for name, small, y in names:
            boxes.append(Box(name, kind, small, x, y0 + y, 250))
        return boxes

    video = column(left, "data", [("self-attention", ("every patch looks at all patches",), 0), ("caption attention", ("what was written",), 74),
                                  ("hears the sound", ("audio to video",), 168), ("feed-forward", ("each token by itself",), 262)])  # fmt: skip
    audio = column(right, "trained", [("self-attention", ("every step looks at all steps",), 0), ("caption attention", ("what was written",), 74),
                                      ("sees the picture", ("video to audio",), 168), ("feed-forward", ("each token by itself",), 262)])  # fmt: skip
    parts.append(
        '<rect x="36" y="76" width="718" height="336" rx="10" fill="none" stroke="#dd9434" stroke-width="1.6" stroke-dasharray="6 4"/>'
    )
    parts.append(text(395, 404, "one block; 48 of them", "s"))
    for name, x, small in (
        ("video tokens", left, "a patch of 32 x 32 pixels, 8 frames: 4096 wide"),
        ("audio tokens", right, "a 25th of a second of sound: 2048 wide"),
    ):
        parts += [text(x + 125, 24, name, "t b"), text(x + 125, 42, small, "s"), arrow(x + 125, 50, x + 125, 89)]
    for boxes in (video, audio):
        parts += [box.svg() for box in boxes]
        for above, below in zip(boxes, boxes[1:]):
            parts.append(arrow(above.x + 125, above.y + above.high, below.x + 125, below.y - 3))
        last = boxes[-1]
        parts.append(arrow(last.x + 125, last.y + last.high, last.x + 125, 436))
        parts.append(text(last.x + 125, 454, "velocity: noise minus data", "t"))
    a, b = video[2], audio[2]
    caption = Box("caption", "frozen", ("Gemma's words",), 345, 160, 100)
    parts.append(caption.svg())
    middle = caption.y + caption.high / 2
    parts += [arrow(343, middle, left + 253, middle + 6), arrow(447, middle, right - 3, middle + 6)]
    parts += [arrow(right - 2, b.y + 17, left + 253, a.y + 17), arrow(left + 252, a.y + 36, right - 3, b.y + 36)]
    parts.append(text(395, a.y + 10, "at the same second", "s"))
    return page(parts, 790, 464)


def step() -> str:
    "A training step: from latents and noise to a loss and a move."
    at = lambda title, kind, small, x, y, wide=0: Box(title, kind, small, x, y, wide)
    clean, noise = (
        at("clean latents", "data", ("from the store",), 4, 8, 150),
        at("noise", "data", ("drawn anew",), 4, 72, 150),
    )
    level = at("noise level", "file", ("drawn, 0 to 1",), 4, 136, 150)
    mixed = at("noisy tokens", "here", ("(1 - sigma) x0", "+ sigma noise"), 196, 40, 140)
    model = at("LTX-2, frozen", "frozen", ("48 blocks",), 380, 34, 150)
    lora = at("LoRA", "trained", ("B A x beside each layer",), 366, 100, 178)
    answer = at("velocity", "data", ("what it says",), 586, 40, 150)
    truth = at("noise - x0", "data", ("what is right",), 586, 136, 150)
    loss = at("loss", "here", ("the mean of the squares",), 366, 190, 178)
    boxes = [clean, noise, level, mixed, model, lora, answer, truth, loss]
    parts = [box.svg() for box in boxes]
    y = mixed.y + mixed.high / 2
    parts += [arrow(156, b.y + b.high / 2, 193, y + d) for b, d in ((clean, -14), (noise, 0), (level, 14))]
    parts += [arrow(338, y, 377, model.y + 22), arrow(532, model.y + 22, 583, answer.y + 20)]
    parts += [arrow(661, answer.y + answer.high + 2, 661, truth.y - 4), arrow(584, truth.y + 26, 547, loss.y + 22)]
    parts += [
        arrow(455, loss.y - 2, 455, lora.y + lora.high + 4),
        text(462, loss.y - 10, "gradient", "s", "start"),
        text(668, 118, "compare", "s", "start"),
    ]
    return page(parts, 744, 246)


BY_HAND = {"1_model/transformer": block, "6_training/step": step}


# ---- into the book ----


@dataclass
class Figure:
    "What figures.txt says of one chapter."

    name: str  # floor/chapter, without its number
    alt: str
    lines: list[str]

    def svg(self) -> str:
        return BY_HAND[self.name]() if self.name in BY_HAND else draw(self.lines)

    @property
    def path(self) -> Path:
        floor, chapter = self.name.split("/")
        return ROOT / "nbs" / floor / "figures" / f"{chapter}.svg"

    @property
    def markdown(self) -> str:
        return f"![{self.alt}](figures/{self.path.name})"


def read_figures(words: str) -> list[Figure]:
    "A block for each chapter: `# floor/chapter`, what is to be seen, and the rows."
    found = []
    for entry in re.split(r"^# ", words, flags=re.M)[1:]:
        name, alt, *lines = [line for line in entry.splitlines() if line.strip()]
        if name.strip() in [figure.name for figure in found]:
            raise ValueError(f"figures.txt has {name.strip()} twice: leave one")
        found.append(Figure(name.strip(), alt.strip(), lines))
    return found


def notebook_of(name: str) -> Path | None:
    "The chapter, whatever its number."
    floor, chapter = name.split("/")
    return next(iter(sorted((ROOT / "nbs" / floor).glob(f"[0-9]*_{chapter}.ipynb"))), None)


def put_in(notebook: Path, line: str) -> None:
    "The figure is the first thing after the title; its line is written only where it is another."
    book = json.loads(notebook.read_text(encoding="utf-8"))
    cell = next(cell for cell in book["cells"][1:] if cell["cell_type"] == "markdown")
    words = "".join(cell["source"])
    rest = re.sub(r"\A!\[[^\]]*\]\(figures/[^)]*\)\s*", "", words)
    if words != f"{line}\n\n{rest}":
        cell["source"] = f"{line}\n\n{rest}".splitlines(keepends=True)
        notebook.write_text(json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def main() -> int:
    for figure in read_figures(TEXT.read_text(encoding="utf-8")):
        notebook = notebook_of(figure.name)
        if notebook is None:
            print(f"{figure.name}: no such chapter", file=sys.stderr)
            continue
        if figure.name.startswith("tutorials/"):  # people open them alone, on Colab: their drawings are the site's
            continue
        figure.path.parent.mkdir(exist_ok=True)
        figure.path.write_text(figure.svg(), encoding="utf-8")
        put_in(notebook, figure.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
