"""Lines of code that break where the page is too narrow for them, and go on below what they belong to.

    sigma: Tensor,  # noise level of each token, 0 = clean and 1 = noise;
                    # it is one number a clip in ordinary training

A comment that explains a parameter stands behind it and is long. Instead of hiding its end behind a scroll bar, each
line becomes a block with a hanging indent: under the comment where that is not too far to the right, otherwise under
the code. The text is not changed, so that what is copied is what was written."""

import html
import re

COMMENT_AT = 44  # columns: a comment that begins further to the right goes on under the code
CODE_BLOCK = re.compile(r"(<pre\b[^>]*>\s*<code\b[^>]*>)(.*?)(</code>\s*</pre>)", flags=re.S)
TAG = re.compile(r"<[^>]+>")


def hanging(line: str) -> int:
    "The column under which a line that is too long goes on."
    indent = len(line) - len(line.lstrip(" "))
    comment = re.search(r"\S(  +)# ", line)
    if comment and comment.end() <= COMMENT_AT:
        return comment.end()
    return indent + (0 if line.lstrip().startswith("#") else 4)


def closed_lines(inner: str) -> list[str]:
    "Highlighted code, split at its line breaks, each line with the tags closed that go on in the next."
    lines, open_tags = [], []
    for line in inner.split("\n"):
        before = "".join(open_tags)
        for tag in TAG.findall(line):
            if tag.startswith("</"):
                open_tags.pop()
            else:
                open_tags.append(tag)
        after = "".join(f"</{tag[1:].split()[0].rstrip('>')}>" for tag in reversed(open_tags))
        lines.append(before + line + after)
    return lines


def wrapped(inner: str) -> str:
    "The inside of a code block, a span for each line."
    out = []
    for line in closed_lines(inner.removesuffix("\n")):
        text = html.unescape(TAG.sub("", line))
        indent = len(text) - len(text.lstrip(" "))
        out.append(f'<span class="ln" style="--under:{hanging(text)}ch;--indent:{indent + 2}ch">{line}\n</span>')
    return "".join(out)


def wrap_code(page: str) -> str:
    "Every block of source on a page; what a cell printed stays as it is, and breaks anywhere."
    return CODE_BLOCK.sub(lambda m: f"{m[1]}{wrapped(m[2])}{m[3]}" if "sourceCode" in m[1] else m[0], page)


MANY = 4  # columns: from here on a phone shows a table as cards
TABLE = re.compile(r"<table\b([^>]*)>((?:(?!<table\b).)*?)</table>", flags=re.S)
CLASS = re.compile(r'class="([^"]*)"')


def label_cells(page: str) -> str:
    "Tables of many columns, each cell with the head of its column, so that a narrow page can set them below each other."

    def label(match):
        attributes, inside = match.groups()
        head = re.search(r"<tr\b[^>]*>((?:(?!</tr>).)*<th\b.*?)</tr>", inside, flags=re.S)
        heads = (
            [" ".join(TAG.sub("", cell).split()) for cell in re.findall(r"<th\b[^>]*>(.*?)</th>", head[1], flags=re.S)]
            if head
            else []
        )
        if len(heads) < MANY or re.search(r"<tbody.*<th\b", inside, flags=re.S):
            return match[0]

        def row(found):
            names = iter(heads)

            def cell(td):
                name = html.escape(html.unescape(next(names, "")), quote=True)
                return f'<td data-label="{name}"{td[1]}><span>{td[2]}</span></td>' if td[2].strip() else td[0]

            return re.sub(r"<td\b([^>]*)>(.*?)</td>", cell, found[0], flags=re.S)

        inside = re.sub(r"<tr\b.*?</tr>", row, inside, flags=re.S)
        old = CLASS.search(attributes)
        attributes = CLASS.sub(r'class="\1 cards"', attributes, count=1) if old else f'{attributes} class="cards"'
        return f"<table{attributes}>{inside}</table>"

    return TABLE.sub(label, page)


SEEN, FOLDED_FROM = 16, 24  # lines of what a cell printed that are seen, where it is longer than so many
PRINTED = re.compile(r'(<div class="cell-output cell-output-stdout">\s*)<pre><code>(.*?)</code></pre>', flags=re.S)


def fold_prints(page: str) -> str:
    "A long listing: its first lines, and how many more there are, to unfold."

    def fold(match):
        printed = match[2].split("\n")
        if len(printed) <= FOLDED_FROM:
            return match[0]
        first, rest = ("\n".join(part) for part in (printed[:SEEN], printed[SEEN:]))
        more = (
            f"<details><summary>and {len(printed) - SEEN} more lines</summary><pre><code>{rest}</code></pre></details>"
        )
        return f"{match[1]}<pre><code>{first}</code></pre>{more}"

    return PRINTED.sub(fold, page)
