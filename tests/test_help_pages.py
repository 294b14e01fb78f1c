"""Help pages against the schemas as locales/en holds them: each input and output is explained once, and no other."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NODES = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
PAGES = ROOT / "web" / "docs"

# Nodes that invert, fit or edit: what their pages say besides.
METHODS = (
    "FixedPointInvert",
    "SPDInvert",
    "EDICTCouple",
    "BDIAInvert",
    "BELMInvert",
    "NullTextOptimize",
    "NegativePromptInversion",
    "DirectInversion",
    "NoiseMapInvert",
    "RFInversion",
    "InfEdit",
    "FlowEdit",
    "NoiseOptimize",
)
# Parts of such a page; of several names one is enough.
PARTS = (
    ("When to use it",),
    ("Inputs",),
    ("What the knobs do to a picture",),
    ("Output", "Outputs"),
    ("Cost",),
    ("Good to know", "Limits"),
)


def page_of(node):
    return (PAGES / f"{node}.md").read_text(encoding="utf-8")


def parts_of(page):
    """Text below each heading of a page."""
    pieces = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def explained(text):
    """Names at the head of the items of a list, `- **a**, **b** (optional): ...`."""
    heads = re.findall(r"^- ((?:\*\*\w+\*\*(?:, )?)+)", text, re.MULTILINE)
    return [name for head in heads for name in re.findall(r"\*\*(\w+)\*\*", head)]


def test_each_node_has_a_page_and_each_page_a_node():
    assert {path.stem for path in PAGES.glob("*.md")} == set(NODES)


@pytest.mark.parametrize("node", NODES)
def test_the_page_is_headed_by_the_name_of_its_node(node):
    shown = NODES[node]["display_name"].removesuffix(" (Retrace)")
    assert page_of(node).splitlines()[0] in (f"# {node}", f"# {shown}")


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_is_explained_once(node):
    parts, schema = parts_of(page_of(node)), NODES[node]
    assert sorted(explained(parts.get("Inputs", ""))) == sorted(schema["inputs"])
    told = explained(parts.get("Outputs", parts.get("Output", "")))
    assert told == [output["name"] for output in schema["outputs"].values()]


@pytest.mark.parametrize("node", METHODS)
def test_pages_of_methods_are_whole(node):
    page = page_of(node)
    parts = parts_of(page)
    for names in PARTS:
        text = "".join(parts.get(name, "") for name in names)
        assert len(text.split()) >= 5, f"{node}.md must have a part {' or '.join(names)!r} with something in it"
    assert re.search(r"arXiv:\d{4}\.\d{5}", page), f"{node}.md must name its source"
    shown = parts["What the knobs do to a picture"]
    assert f"]({node}.jpg)" in shown and (PAGES / f"{node}.jpg").is_file()
    # What is seen there, beside the text for those who do not see it.
    assert len(re.sub(r"!\[[^\]]*\]\([^)]*\)", "", shown).split()) >= 15
