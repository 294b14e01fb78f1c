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
from retrace_tests.workflows.server import PACK, ROOT

FOLDER = ROOT / "workflows"
NAMES = [graph.name for graph in workflows()]
REMEDY = "run `python tests/workflows/make.py json`"
# Nodes whose first output is a LATENT of ours to compare bit by bit.
LATENTS = (
    "Resample",
    "SamplerCustomAdvanced",
    "InfEdit",
    "FlowEdit",
    "VisCtrl",
    "RFEdit",
    "NegativePromptInversion",
)
# Nodes whose first output is an INVERSION of ours.
INVERSIONS = (
    "Invert",
    "EDICTCouple",
    "BDIAInvert",
    "BELMInvert",
    "FixedPointInvert",
    "SPDInvert",
    "NoiseOptimize",
    "DirectInversion",
    "NoiseMapInvert",
    "RFInversion",
)


def api(name):
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def with_saves(prompt, prefix):
    """The prompt with every latent and every inversion saved too: a picture could hide a bit."""
    extended = json.loads(json.dumps(prompt))
    for number, node in prompt.items():
        if node["class_type"] in LATENTS:
            inputs = {"samples": [number, 0], "filename_prefix": f"{prefix}/latent{number}"}
            extended[f"save{number}"] = {"class_type": "SaveLatent", "inputs": inputs}
        if node["class_type"] in INVERSIONS:
            inputs = {"inversion": [number, 0], "filename_prefix": f"{prefix}/record{number}", "half": False}
            extended[f"save{number}"] = {"class_type": "SaveInversion", "inputs": inputs}
    return extended


def digests(server, name, prefix):
    """Run a template and return a digest of each picture, latent and record that comes out."""
    prompt = with_saves(api(name), prefix)
    outcome = server.run_afresh(prompt)
    assert outcome.succeeded, (name, outcome.error)
    found = {}
    for number in prompt:
        for i, file in enumerate(outcome.files(number)):
            pixels = np.asarray(Image.open(io.BytesIO(server.view(file))))
            found[f"picture {number} {i}"] = hashlib.sha256(pixels.tobytes()).hexdigest()
    for path in sorted((server.base / "output" / prefix).iterdir()):
        for key, tensor in sorted(load_file(path).items()):
            assert bool(tensor.isfinite().all()), (path.name, key)
            label = f"{path.name.split('_')[0]} {key}"
            found[label] = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def first(server):
    """Digests of the first run of each template, made when it is first asked for."""
    cache = {}

    def run(name):
        if name not in cache:
            cache[name] = digests(server, name, f"first/{name}")
        return cache[name]

    return run


def test_every_file_is_a_template():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == sorted(NAMES)
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == sorted(NAMES)


@pytest.mark.host
def test_up_to_date_on_this_host(server):
    info = server.object_info()
    for graph in workflows():
        assert (FOLDER / f"{graph.name}.json").read_text(encoding="utf-8") == dump(graph.to_ui(info)), REMEDY
        assert (FOLDER / "api" / f"{graph.name}.json").read_text(encoding="utf-8") == dump(graph.to_api(info)), REMEDY


@pytest.mark.host
@pytest.mark.parametrize("name", NAMES)
def test_both_formats_are_one_graph(server, name):
    ui = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert api_from_ui(ui, server.object_info()) == api(name)


@pytest.mark.host
@pytest.mark.parametrize("name", NAMES)
def test_needs_only_the_host_and_this_pack(server, name):
    info = server.object_info()
    for node in api(name).values():
        module = info[node["class_type"]]["python_module"]
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
def test_runs(first, name):
    found = first(name)
    assert any(label.startswith("picture") for label in found)
    assert any(label.startswith("latent") for label in found)


@pytest.mark.host
@pytest.mark.parametrize("name", NAMES)
def test_runs_again_to_the_same_bits(server, first, name):
    before = first(name)
    assert digests(server, name, f"again/{name}") == before


@pytest.mark.host
def test_runs_in_a_fresh_process_to_the_same_bits(server, first):
    # One of each model and of each way of sampling; a start of the host and all templates would take a minute more.
    names = ("edit_inside_a_mask", "flow_rf_solver_edit", "sampler_custom_advanced")
    before = {name: first(name) for name in names}
    server.restart()
    assert {name: digests(server, name, f"fresh/{name}") for name in names} == before


@pytest.mark.host
def test_another_seed_gives_other_bits(server, first):
    """The comparison above can fail."""
    prompt = api("invert_and_reconstruct")
    next(node for node in prompt.values() if node["class_type"] == "ShapesPicture")["inputs"]["seed"] += 1
    outcome = server.run(prompt)
    (file,) = outcome.files(next(n for n, node in prompt.items() if node["class_type"] == "SaveImage"))
    pixels = np.asarray(Image.open(io.BytesIO(server.view(file))))
    assert hashlib.sha256(pixels.tobytes()).hexdigest() not in first("invert_and_reconstruct").values()
