"The site builder: what it makes of names, links, formulas and sources, and what it refuses."

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
import build
import pages

HOST = "https://example.org/blob/main"
CHAPTER = Path("3_flow/00_samplers.ipynb")
SOURCE = """
def _private(): ...


@cache
def shift(
    tokens: int,  # how many
) -> float:  # where the centre is
    "One line."
    return 1.0


class Sampler:
    def draw(self, batch: int):  # how many
        "Draw."

    def undescribed(self): ...

    @property
    def width(self):
        "Not a method."
"""


@pytest.mark.parametrize(
    "link, becomes",
    [
        ("00_samplers.ipynb", "samplers.ipynb"),
        ("../1_model/00_latents.ipynb#sizes", "../1_model/latents.ipynb#sizes"),
        ("../../LICENSE", f"{HOST}/LICENSE"),
        ("https://example.org/00_x.ipynb", "https://example.org/00_x.ipynb"),
        ("#sizes", "#sizes"),
    ],
)
def test_links_lead_to_pages_or_to_the_source_host(link, becomes):
    assert pages.outside_links(f"see [it]({link}).", CHAPTER, HOST) == f"see [it]({becomes})."


def test_a_tutorial_lies_beside_the_chapters_and_on_the_site_among_them():
    text = pages.outside_links("[it](../nbs/3_flow/01_conditions.ipynb)", Path("tutorials/02_x.ipynb"), HOST)
    assert text == "[it](../3_flow/conditions.ipynb)"


def test_a_badge_of_another_host_becomes_its_words():
    badge = "[![Open in Colab](https://example.org/badge.svg)](https://example.org/open)"
    assert pages.outside_links(badge, CHAPTER, HOST) == "[Open in Colab](https://example.org/open)"


def test_symbols_are_public_and_described():
    assert [name for name, _ in pages.definitions(SOURCE)] == ["shift", "Sampler", "Sampler.draw"]


def test_signature_keeps_what_the_parameters_mean():
    node = dict(pages.definitions(SOURCE))["shift"]
    text = pages.signature(node, SOURCE)
    assert text.startswith("@cache\ndef shift(") and text.endswith("-> float:  # where the centre is")
    assert "# how many" in text and "One line" not in text


def test_a_floor_appears_only_with_a_chapter():
    entries = build.sidebar([Path("index.ipynb"), *build.notebooks()[1:2]])["website"]["sidebar"]["contents"]
    sections = [entry for entry in entries if "contents" in entry]
    assert len(sections) == 1 and len(sections[0]["contents"]) == 1


def test_every_chapter_stands_once_in_the_table_of_contents_in_the_order_of_the_numbers():
    pages = build.notebooks()
    entries = build.sidebar(pages)["website"]["sidebar"]["contents"]
    shown = [e["href"] for section in entries for e in section.get("contents", [section]) if "href" in e]
    assert shown == [page.as_posix() for page in pages]


def test_a_long_floor_is_told_in_groups_that_begin_at_chapters_that_exist(monkeypatch):
    for floor, words in build.GROUPS.items():
        assert set(words) <= {build.page_name(p).stem for p in build.notebooks() if p.parts[0] == floor}
    monkeypatch.setattr(build, "GROUPS", {"3_flow": {"samplers": "the path", "sampling": "the walk"}})
    entries = build.entries_of("3_flow", [p for p in build.notebooks() if p.parts[0] == "3_flow"])
    assert [e["text"] for e in entries if "href" not in e] == ["the path", "the walk"]
    assert [e["text"] for e in entries[-2:]] == ["the walk", "Sampling"] and len(entries) == 6


def test_the_table_of_contents_tells_the_story_in_parts():
    entries = build.sidebar(build.notebooks())["website"]["sidebar"]["contents"]
    names = [entry.get("text") or entry["section"] for entry in entries]
    assert [name for name in names if name in build.PARTS.values()] == list(build.PARTS.values())
    assert names.index("What the model is") + 1 == names.index("1. The model")


def test_chapters_are_in_reading_order_and_each_has_a_title():
    found = build.notebooks()
    floors = [list(build.FLOORS).index(p.parts[0]) for p in found if len(p.parts) > 1]
    assert floors and floors == sorted(floors)
    assert all(build.title_of(p) != p.stem for p in found)


def test_formulas_become_mathml():
    page, count = build.to_mathml(r'<p><span class="math inline">\(x_\sigma &lt; 1\)</span></p>', "page")
    assert count == 1 and "<math" in page and "\\(" not in page


FAULTS = {
    "dead link": '<a href="missing.html">x</a>',
    "dead anchor": '<a href="index.html#missing">x</a>',
    "would fetch": '<script src="https://cdn.example.org/a.js"></script>',
    "formula's source": r'<span class="math inline">\(x\)</span>',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds(fault, tmp_path):
    (tmp_path / "index.html").write_text(f"<p id='here'>{FAULTS[fault]}</p>")
    wrong = build.check(tmp_path)
    assert wrong and all(fault in line for line in wrong)


def test_check_accepts_a_sound_page(tmp_path):
    (tmp_path / "index.html").write_text('<p id="here"><a href="#here">x</a> <a href="https://example.org">y</a></p>')
    assert build.check(tmp_path) == []


@pytest.mark.parametrize(
    "rule", ["@import url(https://fonts.example.org/css2?family=A:wght@300;400&amp;display=swap);"]
)
def test_style_sheets_lose_imports_and_nothing_else(rule, tmp_path):
    (tmp_path / "a.css").write_text(f"{rule}body{{color:red}}")
    build.make_local(tmp_path, HOST)
    assert (tmp_path / "a.css").read_text() == "body{color:red}"
