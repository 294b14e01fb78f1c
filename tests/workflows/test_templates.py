"""The templates: up to date, the same graph in both formats, running, and giving the same bits again."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from retrace_tests.workflows.definitions import workflows
from retrace_tests.workflows.graph import api_from_ui, dump
from retrace_tests.workflows.prompts import node
from retrace_tests.workflows.server import PACK, ROOT

FOLDER = ROOT / "workflows"
GRAPHS = {graph.name: graph for graph in workflows()}
NAMES = list(GRAPHS)
# Digests by the folder of a server and the name of a template.
FIRST: dict[tuple[object, str], dict[str, str]] = {}
REMEDY = "run `python tests/workflows/make.py json`"
# What saves the first output of a node, by its type.
SAVERS = {
    "LATENT": lambda link, name: node("SaveLatent", samples=link, filename_prefix=f"{name}latent"),
    "INVERSION": lambda link, name: node("SaveInversion", inversion=link, filename_prefix=f"{name}inv", half=False),
}


def with_saves(prompt, info, prefix):
    """The prompt with every latent and every inversion saved too: a picture could hide a bit."""
    extended = dict(prompt)
    for number, each in prompt.items():
        save = SAVERS.get((info[each["class_type"]]["output"] or [None])[0])
        if save is not None:
            extended[f"save{number}"] = save([number, 0], f"{prefix}/{number}_")
    return extended


def digests(server, info, name, prefix):
    """Run a template and return a digest of each picture, latent and record that comes out."""
    prompt = with_saves(GRAPHS[name].to_api(info), info, prefix)
    outcome = server.run_afresh(prompt)
    assert outcome.succeeded, (name, outcome.error)
    digest = {}
    for number in prompt:
        for i, file in enumerate(outcome.files(number)):
            pixels = np.asarray(Image.open(io.BytesIO(server.view(file))))
            digest[f"picture {number} {i}"] = hashlib.sha256(pixels.tobytes()).hexdigest()
    for path in sorted((server.base / "output" / prefix).iterdir()):
        for key, tensor in sorted(load_file(path).items()):
            assert bool(tensor.isfinite().all()), (path.name, key)
            label = f"{path.name} {key}"
            digest[label] = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
    return digest


@pytest.fixture(scope="session")
def first(server, info):
    """Digests of the first run of each template in a server, made when it is first asked for."""

    def run(name):
        if (server.base, name) not in FIRST:
            FIRST[server.base, name] = digests(server, info, name, f"first/{name}")
        return FIRST[server.base, name]

    return run


def test_every_file_is_a_template():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == sorted(NAMES)


@pytest.mark.host
@pytest.mark.parametrize("name", NAMES)
def test_up_to_date_and_of_nodes_that_everybody_has(info, name):
    written = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert written == dump(GRAPHS[name].to_ui(info)), REMEDY
    # Both formats are one graph.
    assert api_from_ui(json.loads(written), info) == GRAPHS[name].to_api(info)
    for each in GRAPHS[name].nodes:
        module = info[each.kind]["python_module"]
        assert module in ("nodes", "custom_nodes.retrace") or module.startswith("comfy_extras."), module


@pytest.mark.host
def test_the_host_offers_them_with_their_pictures(server):
    assert sorted(server.get("/workflow_templates")[PACK]) == sorted(NAMES)
    for name in NAMES:
        assert server.get(f"/api/workflow_templates/{PACK}/{name}.json") == json.loads(
            (FOLDER / f"{name}.json").read_text(encoding="utf-8")
        )
        assert server.get(f"/api/workflow_templates/{PACK}/{name}.jpg") == (FOLDER / f"{name}.jpg").read_bytes()


@pytest.mark.host
@pytest.mark.parametrize("name", NAMES)
def test_runs_and_again_to_the_same_bits(server, info, first, name):
    before = first(name)
    assert any(label.startswith("picture") for label in before) and any("latent" in label for label in before)
    assert digests(server, info, name, f"again/{name}") == before


@pytest.mark.host
def test_runs_in_a_fresh_process_to_the_same_bits(server, info, first):
    # One of each model and of each way of sampling; a start of the host and all templates would take a minute more.
    names = ("edit_inside_a_mask", "flow_rf_solver_edit", "sampler_custom_advanced")
    before = {name: first(name) for name in names}
    server.restart()
    assert {name: digests(server, info, name, f"fresh/{name}") for name in names} == before


@pytest.mark.host
def test_another_seed_gives_other_bits(server, info, first):
    """The comparison above can fail."""
    prompt = GRAPHS["invert_and_reconstruct"].to_api(info)
    next(each for each in prompt.values() if each["class_type"] == "ShapesPicture")["inputs"]["seed"] += 1
    outcome = server.run(prompt)
    (file,) = outcome.files(next(n for n, each in prompt.items() if each["class_type"] == "SaveImage"))
    pixels = np.asarray(Image.open(io.BytesIO(server.view(file))))
    assert hashlib.sha256(pixels.tobytes()).hexdigest() not in first("invert_and_reconstruct").values()
