"The site as a reader has it: built once a run, read as a browser shows it."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tools")]
import figures
import house
import lines
import pages
import search
import seen
from build import formulas_of

ADDRESS = {"prepare": "4_data/prepare.html#prepare"}.get


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The whole site, built once however many processes test it, and what the builder said."
    kept = tmp_path_factory.getbasetemp()
    kept = (kept.parent if "PYTEST_XDIST_WORKER" in os.environ else kept) / "site"
    with FileLock(f"{kept}.lock"):
        said = kept / "said.txt"
        if not said.exists():
            kept.mkdir()
            done = subprocess.run(
                [sys.executable, ROOT / "docs" / "build.py"],
                env={**os.environ, "LTX_NB_SITE": str(kept), "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            said.write_text(done.stdout + done.stderr)
    return kept / "_docs"


def test_the_whole_site_is_sound(site):
    said = (site.parent / "said.txt").read_text()
    assert " 0 dead links, 0 other faults" in said, said[-3000:]


@pytest.mark.parametrize(
    "prose, becomes",
    [
        ("call `prepare`", "call [`prepare`](4_data/prepare.html#prepare)"),
        ("call `prepare()`.", "call [`prepare()`](4_data/prepare.html#prepare)."),
        ("call [`prepare`](there.ipynb)", "call [`prepare`](there.ipynb)"),
        ("read [how to `prepare` it](there.ipynb), then `prepare`", None),
        ("``a `prepare` b`` and `other`", "``a `prepare` b`` and `other`"),
        ("```python\n`prepare`\n```", "```python\n`prepare`\n```"),
        ("    `prepare`", "    `prepare`"),
    ],
)
def test_a_name_becomes_a_link_unless_it_is_inside_one(prose, becomes):
    made = pages.linked(prose, ADDRESS)
    if becomes is None:
        becomes = "read [how to `prepare` it](there.ipynb), then [`prepare`](4_data/prepare.html#prepare)"
    assert made == becomes


SHOWN_RAW = {
    "a link": "<p>Start with [<a href='#x'><code>prepare</code></a>](4_data/prepare.ipynb).</p>",
    "an emphasis": "<p>This is **bold** talk.</p>",
    "a backtick": "<p>the `sigma of a clip</p>",
    "a formula's source": r"<p>where \sigma is small</p>",
    "a heading": "<p>text</p><p>## Next</p>",
    "a table": "<p>| a | b |</p>",
    "a div": "<p>::: {.callout}</p>",
    "a cell's option": "<p>#| export</p>",
    "a path of a machine": "<pre><code>saved to /home/me/run/lora.safetensors</code></pre>",
}


@pytest.mark.parametrize("what", SHOWN_RAW)
def test_what_is_shown_raw_is_found(what):
    assert any(fault.startswith(what) for fault in seen.faults(SHOWN_RAW[what]))


@pytest.mark.parametrize(
    "page",
    [
        "<pre><code>def f(*args, **options): return a[i](x)  # `x` costs $5, \\alpha</code></pre>",
        "<p>2 * 3 * 4 and <code>**options</code>, a folder <code>clips/</code></p>",
        "<script>a[0](b); /* **x** */</script><math><mi>x</mi></math>",
    ],
)
def test_code_is_no_fault(page):
    assert seen.faults(page) == []


def test_a_formula_that_kept_a_command_is_a_fault():
    assert seen.faults(r"<math><mi>\arg</mi></math>")


@pytest.mark.parametrize(
    "page, wordless",
    [
        ('<img src="a.png">', True),
        ('<img src="a.png" alt=" ">', True),
        ('<img src="a.png" alt="A rising curve.">', False),
        ('<img src="rule.png" alt="" role="presentation">', False),
        ("<video src='a.mp4'></video>", True),
        ("<svg aria-label='A bar'></svg>", False),
    ],
)
def test_a_picture_has_words_or_is_a_fault(page, wordless):
    assert any("without words" in fault for fault in seen.faults(page)) == wordless


def test_what_plays_is_named_by_the_words_of_its_cell():
    page = pages.named('<video controls></video><svg aria-label="kept"></svg>', 'a "ball"')
    assert page == '<video aria-label="a &quot;ball&quot;" controls></video><svg aria-label="kept"></svg>'


CODE = 'def f(\n    sigma: Tensor,  <span class="co"># noise level</span>\n):\n    <span class="st">"""One\n    two"""</span>\n'


def test_every_line_of_code_is_a_block_and_no_character_is_lost():
    page = f'<pre class="sourceCode"><code class="sourceCode python">{CODE}</code></pre>'
    wrapped = lines.wrap_code(page)
    assert wrapped.count('class="ln"') == CODE.count("\n")
    assert lines.TAG.sub("", wrapped) == lines.TAG.sub("", page)
    assert wrapped.count("<span") == wrapped.count("</span>")


@pytest.mark.parametrize(
    "line, column",
    [
        ("    sigma: Tensor,  # noise level", 22),
        ("    return x", 8),
        ("# a remark of its own", 0),
        (f"{'x' * 60}  # too far to the right", 4),
    ],
)
def test_a_line_goes_on_under_its_comment_where_there_is_room(line, column):
    assert lines.hanging(line) == column


def test_what_a_cell_printed_keeps_its_lines():
    printed = "<pre><code>step 1\nstep 2</code></pre>"
    assert lines.wrap_code(printed) == printed


@pytest.mark.parametrize("count, folded", [(24, 0), (25, 9), (108, 92)])
def test_a_long_listing_shows_its_first_lines_and_counts_the_others(count, folded):
    printed = "\n".join(map(str, range(count)))
    page = f'<div class="cell-output cell-output-stdout">\n<pre><code>{printed}</code></pre></div>'
    shown = lines.fold_prints(page)
    assert (f"and {folded} more lines" in shown) if folded else shown == page
    assert all(f"{number}" in shown for number in range(count))


def rows(*columns: str) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f'<table class="t"><thead><tr>{head}</tr></thead><tbody><tr>{"<td>1 <b>x</b></td>" * len(columns)}</tr></tbody></table>'


def test_a_table_of_many_columns_says_in_each_cell_what_it_is():
    labelled = lines.label_cells(rows("mode", "<code>size</code>", "a", "b"))
    assert 'class="t cards"' in labelled and 'data-label="size"' in labelled and labelled.count("data-label") == 4
    assert lines.TAG.sub("", labelled) == lines.TAG.sub("", rows("mode", "<code>size</code>", "a", "b"))
    assert lines.label_cells(rows("one", "two")) == rows("one", "two")


def test_an_empty_cell_keeps_its_place():
    labelled = lines.label_cells(rows("a", "b", "c", "d").replace("<td>1 <b>x</b></td>", "<td></td>", 1))
    assert labelled.count("data-label") == 3 and 'data-label="a"' not in labelled


@pytest.mark.parametrize(
    "tex, parts",
    [
        (r"a = b + c, \quad d = e", [["a ", "= b ", "+ c, "], [" d ", "= e"]]),
        (r"\frac{a + b}{c} = \left( x + y \right)", [[r"\frac{a + b}{c} ", r"= \left( x + y \right)"]]),
        (r"f(x + y)", [["f(x + y)"]]),
        (r"= 1", [["= 1"]]),
    ],
)
def test_a_formula_may_break_at_its_top_level_only(tex, parts):
    assert formulas_of(tex) == parts


QUESTIONS = {  # what people ask, and a page that answers
    "overfit": "6_training/held_out",
    "out of memory": "6_training/memory",
    "captions": "4_data/",
    "resume a run": "6_training/",
    "image to video": "tutorials/image_and_extension",
    "several GPUs": "6_training/processes",
    "comfyui lora": "2_loading/lora",
    "learning rate": "6_training/optimizer",
    "inpainting": "tutorials/inpainting_and_outpainting",
    "aspect ratio buckets": ("4_data/windows", "4_data/clips"),
    "guidance scale": "3_flow/sampling",
    "LtxvTrainer": "6_training/trainer",
    "coming from the LTX Trainer": "coming_from_the_ltx_trainer",
    "a strategy of my own": "tutorials/a_strategy_of_your_own",
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_search_answers_among_the_first_three(question, site):
    entries = json.loads((site / "search.json").read_text())
    found = [entry["href"] for entry in search.search(entries, question)][:3]
    assert any(href.startswith(QUESTIONS[question]) for href in found), found


SECTIONS = {
    "a.html": "<main><h1>Memory</h1><section id='gpu'><h2>On a GPU</h2><p>what is kept</p></section></main>",
    "b.html": "<main><h1>Other</h1><p>memory, memory, memory, and the memory of a GPU</p></main>",
    "7_tiny/c.html": "<main><h1>Memory</h1><p>of the tiny one</p><pre>secretword</pre></main>",
}


def test_titles_weigh_more_than_the_text_and_the_tiny_world_less():
    entries = search.index_of(SECTIONS)
    assert [e["href"] for e in search.search(entries, "memory")][:2] == ["a.html", "7_tiny/c.html"]
    assert search.search(entries, "On a GPU")[0]["href"] == "a.html#gpu"
    assert search.search(entries, "secretword") == [] and search.search(entries, "") == []


def test_a_word_is_found_by_its_beginning_in_other_forms_and_by_what_users_call_it():
    entries = search.index_of({"m.html": "<main><h1>Memory of clips</h1></main>", "n.html": "<main><h1>X</h1></main>"})
    for query in ("memor", "clip", "OOM", "vram"):
        assert [e["href"] for e in search.search(entries, query)] == ["m.html"]


FIGURES = figures.read_figures(figures.TEXT.read_text(encoding="utf-8"))
DRAWN = [figure for figure in FIGURES if not figure.name.startswith("tutorials/")]


@pytest.mark.parametrize("figure", DRAWN, ids=lambda figure: figure.name)
def test_a_figure_is_drawn_as_its_text_says_and_stands_in_its_chapter(figure):
    "`python docs/figures.py` draws them anew."
    assert figure.path.read_text(encoding="utf-8") == figure.svg()
    assert figure.markdown in first_prose(figures.notebook_of(figure.name))
    assert len(figure.alt) > 20


@pytest.mark.parametrize("notebook", sorted((ROOT / "tutorials").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_tutorial_has_its_figure_on_the_site(notebook, site):
    name = notebook.stem.split("_", 1)[1]
    assert f"tutorials/{name}" in [figure.name for figure in FIGURES], "write a few lines for it in docs/figures.txt"
    page = (site / "tutorials" / f"{name}.html").read_text()
    assert f'src="figures/{name}.svg"' in page and (site / "tutorials" / "figures" / f"{name}.svg").exists()


def first_prose(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"][1:]
    return "".join(next(cell for cell in cells if cell["cell_type"] == "markdown")["source"])


def test_a_row_of_text_becomes_boxes_and_arrows():
    columns, words = figures.read_row("film @file:mp4;25 fps | words -[once]-> encode @here -> store @data")
    assert [[box.title for box in column] for column in columns] == [["film", "words"], ["encode"], ["store"]]
    assert columns[0][0].small == ("mp4", "25 fps") and columns[0][1].kind == "data" and words == ["once", ""]
    drawing = figures.draw(["a <b> -> c @here"])
    assert drawing.count("<rect") == 2 and drawing.count("marker-end") == 1 and "a &lt;b&gt;" in drawing


def test_a_chapter_that_is_drawn_twice_is_named():
    with pytest.raises(ValueError, match="1_model/x twice"):
        figures.read_figures("# 1_model/x\na word\na -> b\n\n# 1_model/x\na word\na -> b\n")


def test_an_unknown_kind_of_box_is_named():
    with pytest.raises(ValueError, match="'fiel' is no kind of box; there are data, file"):
        figures.read_box("film @fiel")


@pytest.mark.parametrize(
    "prose, found",
    [
        ("the middle moves (spec: *sampling*, section 5)", True),
        ("facts: spec *trainer* section 5, *data* sections 3", True),
        ("nobody holds the whole (W42).", True),
        ("Rotary embeddings (Su et al., 2021) turn pairs", True),
        ("issue 283 is about that", True),
        ("Rotary embeddings ([Su et al., 2021](https://arxiv.org/abs/2104.09864)) turn pairs", False),
        (
            "a specification of width W2, and ([`rope.py`](https://github.com/Lightricks/LTX-2/blob/v1.2.0/rope.py))",
            False,
        ),
        ("measured here, in the cell below", False),
    ],
)
def test_a_source_that_no_reader_can_open_is_found(prose, found, tmp_path):
    cells = [{"cell_type": "markdown", "source": [prose]}]
    (tmp_path / "chapter.ipynb").write_text(json.dumps({"cells": cells}))
    assert bool(house.unopened(tmp_path / "chapter.ipynb")) == found


@pytest.mark.parametrize(
    "first, found", [('#| fig-alt: "A rising curve."\n', []), ("", ["a"]), ("#| fig-alt: \n", ["a"])]
)
def test_a_saved_picture_without_words_is_found(first, found, tmp_path):
    cell = {"id": "a", "cell_type": "code", "source": [first, "draw()"], "outputs": [{"data": {"image/png": "x"}}]}
    (tmp_path / "chapter.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert house.wordless(tmp_path / "chapter.ipynb") == found
