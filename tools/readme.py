"""README.md from nbs/index.ipynb, without Quarto.

python tools/readme.py            # write README.md
python tools/readme.py --check    # fail if README.md is not what the notebook gives"""

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook. -->"


def from_root(match: re.Match) -> str:
    "A link that is relative to nbs/ becomes relative to the repository."
    target = match[2]
    if re.match(r"[a-z]+:|#", target):
        return match[0]
    path = os.path.normpath(os.path.join("nbs", target)).replace(os.sep, "/")
    return f"{match[1]}{path.removeprefix('nbs/') if path.startswith('nbs/tutorials/') else path})"


FILMS = re.compile(r'<div class="before-after">.*?</div>', flags=re.S)


def as_picture(prose: str) -> str:
    "The films of the landing page as one moving picture: a README plays no film. It leads to the page that does."
    labels = re.findall(r'aria-label="([^"]*)"', prose)
    picture = f"[![{' '.join(labels)}](nbs/landing/before_after.gif)](https://ltx-nb.github.io/ltx_nb)"
    return FILMS.sub(lambda _: picture, prose).replace(
        "Each clip has its sound: unmute it.", "The site plays both with their sound."
    )


def readme() -> str:
    "Prose as it is; code cells with what they printed, unless they are hidden."
    parts = []
    for cell in json.loads(INDEX.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            prose = re.sub(r"(\]\()([^)\s]+)\)", from_root, source)
            parts.append(as_picture(prose) if FILMS.search(prose) else prose)
        elif cell["cell_type"] == "code" and not re.search(r"^#\|\s*hide\b", source, flags=re.M):
            code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
            parts.append(f"```python\n{code}\n```")
            printed = "".join("".join(o["text"]) for o in cell["outputs"] if o.get("name") == "stdout").rstrip()
            if printed:
                parts.append(f"```\n{printed}\n```")
    return f"{NOTE}\n\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> int:
    if "--check" in sys.argv[1:]:
        if README.read_text() != readme():
            print("README.md is not what nbs/index.ipynb gives: run `make readme`", file=sys.stderr)
            return 1
        return 0
    README.write_text(readme())
    return 0


if __name__ == "__main__":
    sys.exit(main())
