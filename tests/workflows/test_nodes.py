"""What the host tells about the nodes: they load without a word, and each input and output is explained."""

from __future__ import annotations

import re

import pytest

from retrace_tests.workflows.graph import declared, options_of
from retrace_tests.workflows.server import PACK

pytestmark = pytest.mark.host


def test_the_host_loads_the_pack_without_a_word(server):
    lines = [line for line in server.log.splitlines() if re.search("retrace", line, re.I)]
    # The list of import times is all that may name the pack: "   0.1 seconds: …/custom_nodes/retrace".
    assert [line for line in lines if not re.search(r"^(\[.*\])?\s*\d+\.\d+ seconds: ", line)] == []


def test_every_node_is_explained_and_every_number_has_a_range(info):
    ours = {name: about for name, about in info.items() if about["python_module"] == f"custom_nodes.{PACK}"}
    assert len(ours) > 40
    for name, about in ours.items():
        assert about["description"] and about["category"].startswith("Retrace/"), name
        assert about["display_name"].endswith(" (Retrace)"), name
        assert len(about["output_tooltips"] or []) == len(about["output"]) and all(about["output_tooltips"]), name
        for input_name, spec in declared(about):
            options = options_of(spec)
            assert options.get("tooltip"), f"{name}.{input_name} must have a tooltip"
            if spec[0] in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], f"{name}.{input_name}"
