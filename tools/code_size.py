"""How many lines of a module are code: `python tools/code_size.py ltx_nb/flow/conditions.py ltx_nb/flow/strategies.py`.

Exported modules carry a line of documentation for every parameter. Code is what is left without comments, docstrings,
blank lines, imports and the marks of cells; a signature counts as one line, however many its parameters take.
"""

import argparse
import ast
import tokenize
from pathlib import Path

SILENT = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER,
)  # fmt: skip


def lines_of(node: ast.AST) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


def docstring(node: ast.AST) -> set[int]:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return lines_of(first)
    return set()


def code_lines(path: Path) -> int:
    "Lines of code of a file, by the count above."
    with open(path, "rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in SILENT]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_text())):
        code -= docstring(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            code -= lines_of(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            code -= set(range(node.lineno + 1, node.body[0].lineno))  # the rest of the signature
    return len(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    files = parser.parse_args().files
    rows = [(str(path), len(path.read_text().splitlines()), code_lines(path)) for path in files]
    rows.append(("all", *(sum(column) for column in list(zip(*rows))[1:])))
    for name, lines, code in rows:
        print(f"{lines:6} lines {code:6} code   {name}")


if __name__ == "__main__":
    main()
