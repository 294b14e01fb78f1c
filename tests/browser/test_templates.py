"""The templates in a real browser: they load whole, keep their values, and run."""

from __future__ import annotations

import json

import pytest

from retrace_tests.browser.page import front_end, missing
from retrace_tests.workflows.graph import api_from_ui, without_defaults
from retrace_tests.workflows.server import ROOT

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(missing() is not None, reason=f"BROWSER TESTS SKIPPED: {missing()}"),
]

TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))

LOAD = """async (ui) => {
    await window.app.loadGraphData(ui);
    const nodes = window.app.graph._nodes;
    return {
        prompt: (await window.app.graphToPrompt()).output,
        saved: window.app.graph.serialize(),
        missing: nodes.filter(n => !window.LiteGraph.registered_node_types[n.type]).map(n => n.type),
        boxes: nodes.map(n => ({
            type: n.type, pos: [...n.pos], size: [...n.size], need: [...n.computeSize()],
        })),
    };
}"""
RUN = """async () => {
    const ended = new Promise((resolve) => {
        for (const name of ["execution_success", "execution_error", "execution_interrupted"])
            window.app.api.addEventListener(name, (event) => resolve([name, event.detail]), {once: true});
    });
    await window.app.queuePrompt(0, 1);
    return await ended;
}"""


@pytest.fixture(scope="module")
def page(server):
    with front_end(server) as (opened, errors):
        yield opened
        assert errors == []


def load(page, path):
    ui = json.loads(path.read_text(encoding="utf-8"))
    return ui, page.evaluate(LOAD, ui)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_loads_as_it_lies_in_the_repository(info, page, path):
    ui, found = load(page, path)
    assert found["missing"] == []
    assert without_defaults(found["prompt"], info) == api_from_ui(ui, info)
    saved = {node["id"]: node.get("widgets_values") for node in found["saved"]["nodes"]}
    for node in ui["nodes"]:
        # Behind those of the template the front end adds the settings of methods.
        assert (saved[node["id"]] or [])[: len(node["widgets_values"])] == node["widgets_values"], node["type"]
    assert sorted(map(tuple, found["saved"]["links"])) == sorted(map(tuple, ui["links"]))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_nothing_overlaps(page, path):
    _, found = load(page, path)
    boxes = []
    for node in found["boxes"]:
        # Of a note only the frame counts: its text scrolls.
        if node["type"] != "MarkdownNote":
            assert node["size"][0] >= node["need"][0] and node["size"][1] >= node["need"][1], node
        # The title bar lies above the position.
        (x, y), (width, height) = node["pos"], node["size"]
        boxes.append((node["type"], x, y - 30, x + width, y + height))
    for i, (name, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[i + 1 :]:
            apart = right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
            assert apart, f"{name} overlaps {other}"


def test_runs_by_the_button(page):
    path = next(path for path in TEMPLATES if path.stem == "invert_and_edit")
    load(page, path)
    name, detail = page.evaluate(RUN)
    assert name == "execution_success", detail
