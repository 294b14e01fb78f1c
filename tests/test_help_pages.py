"""Help pages: each node has one, which explains each of its inputs and outputs once, and no other."""

import re

import pytest

from retrace_tests.workflows.graph import declared, is_setting
from retrace_tests.workflows.server import PACK, ROOT

FOLDER = ROOT / "web" / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
PICTURES = [path.stem for path in sorted(FOLDER.glob("*.jpg"))]
# Parts of a page of a method, which says when to use it; of several names one is enough.
PARTS = (("When to use it",), ("Inputs",), ("Output", "Outputs"), ("Cost",), ("Good to know", "Limits"))
METHODS = [node for node, page in PAGES.items() if f"## {PARTS[0][0]}" in page]
# Bytes of one picture strip: the help pages are part of what everybody downloads.
LARGEST_PICTURE = 40_000


def parts_of(page):
    """Text below each heading of a page."""
    pieces = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def explained(text):
    """Names at the head of the items of a list, `- **a**, **b** (optional): ...`."""
    heads = re.findall(r"^- ((?:\*\*\w+\*\*(?:, )?)+)", text, re.MULTILINE)
    return [name for head in heads for name in re.findall(r"\*\*(\w+)\*\*", head)]


@pytest.mark.host
def test_each_node_has_a_page_and_each_page_a_node(info):
    assert {name for name, about in info.items() if about["python_module"] == f"custom_nodes.{PACK}"} == set(PAGES)


@pytest.mark.host
@pytest.mark.parametrize("node", PAGES)
def test_every_input_and_output_is_explained_once(info, node):
    page, about = PAGES[node], info[node]
    assert page.splitlines()[0] in (f"# {node}", f"# {about['display_name'].removesuffix(' (Retrace)')}")
    parts = parts_of(page)
    # Settings of methods in a node of all methods are explained by their method.
    inputs = [name for name, _ in declared(about) if not is_setting(name, about)]
    assert sorted(explained(parts.get("Inputs", ""))) == sorted(inputs)
    assert explained(parts.get("Outputs", parts.get("Output", ""))) == about["output_name"]


@pytest.mark.host
@pytest.mark.parametrize("node", PAGES)
def test_pages_and_their_pictures_are_served(server, node):
    assert server.get(f"/extensions/{PACK}/docs/{node}.md").decode() == PAGES[node]
    # The front end puts /extensions/<pack>/docs/ before an address that is relative.
    for path in re.findall(r"!\[[^\]]+\]\(([^)]*)\)", PAGES[node]):
        assert server.get(f"/extensions/{PACK}/docs/{path}") == (FOLDER / path).read_bytes()


@pytest.mark.parametrize("node", METHODS)
def test_pages_of_methods_are_whole(node):
    parts = parts_of(PAGES[node])
    for names in PARTS:
        text = "".join(parts.get(name, "") for name in names)
        assert len(text.split()) >= 5, f"{node}.md must have a part {' or '.join(names)!r} with something in it"
    assert re.search(r"arXiv:\d{4}\.\d{5}", PAGES[node]), f"{node}.md must name its source"


@pytest.mark.parametrize("node", PICTURES)
def test_every_picture_is_shown_and_told_and_small(node):
    shown = parts_of(PAGES[node])["What the knobs do to a picture"]
    assert f"]({node}.jpg)" in shown
    # What is seen there, beside the text for those who do not see it.
    assert len(re.sub(r"!\[[^\]]*\]\([^)]*\)", "", shown).split()) >= 15
    picture = (FOLDER / f"{node}.jpg").read_bytes()
    assert picture.startswith(b"\xff\xd8\xff") and len(picture) <= LARGEST_PICTURE
