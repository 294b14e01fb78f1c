"""What the host tells about the nodes: all are there, each input and output is explained, each has a help page."""

from __future__ import annotations

import re
import urllib.error

import pytest

from retrace_tests.workflows.graph import declared, options_of
from retrace_tests.workflows.server import PACK, ROOT

pytestmark = pytest.mark.host

NODES = [
    "Invert",
    "EDICTCouple",
    "BDIAInvert",
    "BELMInvert",
    "FixedPointInvert",
    "Resample",
    "RFSolverSample",
    "InversionSampler",
    "NullTextOptimize",
    "SaveInversion",
    "LoadInversion",
    "InversionReport",
    "InfEdit",
    "FlowEdit",
    "LoadShapesModel",
    "ShapesPicture",
    "DirectInversion",
    "NoiseMapInvert",
    "RFInversion",
    "NegativePromptInversion",
    "SPDInvert",
    "NoiseOptimize",
    "AttentionInject",
    "AttentionGuider",
    "AttentionSites",
    "PromptToPrompt",
    "LocalBlend",
    "WordMask",
    "DamageMask",
    "DamageLowResolution",
    "DamageBlur",
    "DamageBlackWhite",
    "DamageJPEG",
    "DamageNoise",
    "DamageFrames",
    "DamageCombine",
    "ApplyDamage",
    "MeasureNoise",
    "RestoreDDS",
    "RestoreREDDiff",
    "RestoreGuided",
    "SnapToMeasurement",
    "RestoreReport",
    "RFEdit",
    "UnifiedAttentionControl",
    "VisCtrl",
]

# Bytes of one picture strip: forty help pages are part of what everybody downloads.
LARGEST_PICTURE = 40_000


@pytest.fixture(scope="module")
def info(server):
    return server.object_info()


def test_the_host_lists_exactly_these_nodes(info):
    ours = {name for name, about in info.items() if about["python_module"] == f"custom_nodes.{PACK}"}
    assert ours == set(NODES)


def test_the_host_loads_the_pack_without_a_word(server):
    lines = [line for line in server.log.splitlines() if re.search("retrace", line, re.I)]
    # The list of import times is all that may name the pack: "   0.1 seconds: …/custom_nodes/retrace".
    assert [line for line in lines if not re.search(r"^(\[.*\])?\s*\d+\.\d+ seconds: ", line)] == []


@pytest.mark.parametrize("name", NODES)
def test_everything_is_explained(info, name):
    about = info[name]
    assert about["description"]
    assert about["category"].startswith("Retrace/")
    for input_name, spec in declared(about):
        assert options_of(spec).get("tooltip"), f"{name}.{input_name} must have a tooltip"
    assert len(about["output_tooltips"] or []) == len(about["output"])
    assert all(about["output_tooltips"] or [])


@pytest.mark.parametrize("name", NODES)
def test_every_number_has_a_range(info, name):
    for input_name, spec in declared(info[name]):
        if spec[0] in ("INT", "FLOAT"):
            options = options_of(spec)
            assert options["min"] <= options["default"] <= options["max"], f"{name}.{input_name}"


@pytest.mark.parametrize("name", NODES)
def test_the_help_page_is_served(server, info, name):
    page = server.get(f"/extensions/{PACK}/docs/{name}.md").decode()
    assert page == (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    for input_name, _ in declared(info[name]):
        # Inputs made from the methods' own parameters are explained by the method.
        assert input_name in page or "_" in input_name, f"{name}.md must explain {input_name}"


@pytest.mark.parametrize("name", NODES)
def test_the_pictures_of_the_help_page_are_served(server, name):
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    # The front end puts /extensions/<pack>/docs/ before an address that is relative.
    for path in re.findall(r"!\[[^\]]+\]\(([^)]*)\)", page):
        picture = server.get(f"/extensions/{PACK}/docs/{path}")
        assert picture == (ROOT / "web" / "docs" / path).read_bytes()
        assert picture.startswith(b"\xff\xd8\xff"), f"{path} must be a JPEG"
        assert len(picture) <= LARGEST_PICTURE, path


def test_every_picture_of_the_help_pages_is_shown():
    folder = ROOT / "web" / "docs"
    for path in folder.glob("*.jpg"):
        assert f"]({path.name})" in path.with_suffix(".md").read_text(encoding="utf-8"), path.name
    assert any(folder.glob("*.jpg"))


def test_a_page_that_is_not_there_is_noticed(server):
    with pytest.raises(urllib.error.HTTPError):
        server.get(f"/extensions/{PACK}/docs/Missing.md")
