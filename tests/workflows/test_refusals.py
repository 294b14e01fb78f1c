"""Bad inputs over /prompt: one sentence each, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import uuid

import pytest
from safetensors.torch import load_file

from retrace_tests.workflows.prompts import edit, invert, keep, node, round_trip, start
from retrace_tests.workflows.server import RefusedError

pytestmark = pytest.mark.host

# <what> must <condition>, got <value>; <remedy>.
SENTENCE = re.compile(r"^[^\n]+ must [^\n]+, got:? [^\n]+; [^\n]+\.$")


def answer(server, prompt):
    """The one sentence that the user gets, from validation or from the run."""
    try:
        outcome = server.run(prompt)
    except RefusedError as refused:
        # The host repeats what a node's own check says for each input that the check reads, after the input's name.
        (sentence,) = {text.split(" - ", 1)[-1] for text in refused.sentences}
        return sentence
    assert not outcome.succeeded
    assert outcome.error is not None, outcome.entry
    return outcome.error["exception_message"].strip()


def refused(server, prompt, *words):
    sentence = answer(server, prompt)
    assert SENTENCE.match(sentence), sentence
    for word in words:
        assert word in sentence, sentence
    return sentence


def files(server):
    """Every file that a run could touch, but for those that a test makes on purpose, with its content."""
    found = [path for name in ("output", "input") for path in (server.base / name).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in found if "_made_by_test" not in path.name}


@pytest.fixture(scope="module")
def saved(server):
    """Name and path of a record of the eps model."""
    prefix = f"refusals{uuid.uuid4().hex}"
    prompt = start()
    prompt["inversion"] = invert()
    prompt["save"] = node("SaveInversion", inversion=["inversion", 0], filename_prefix=prefix, half=False)
    outcome = server.run(prompt)
    assert outcome.succeeded, outcome.error
    (path,) = (server.base / "output").glob(f"{prefix}*.safetensors")
    return f"{path.name} [output]", path


@pytest.fixture(scope="module")
def good(server):
    """Latent of a good run, computed from the start each time."""

    def run():
        name = f"good{uuid.uuid4().hex}_made_by_test"
        outcome = server.run_afresh(round_trip(name))
        assert outcome.succeeded, outcome.error
        return load_file(next((server.base / "output").glob(f"{name}*")))["latent_tensor"]

    return run


@pytest.fixture(scope="module")
def expected(good):
    return good()


@pytest.fixture(autouse=True)
def nothing_is_lost(server, saved, good, expected):
    """After each refusal all files are as they were, and a good run gives the bits it gave before."""
    before = files(server)
    yield
    assert files(server) == before
    assert good().equal(expected)


@pytest.mark.parametrize(("widget", "value"), [("strength", 0.0), ("steps", 1)])
def test_what_a_range_tells_the_host_refuses_itself(server, widget, value):
    with pytest.raises(RefusedError) as refused:
        server.run(round_trip("lost", **{widget: value}))
    assert refused.value.sentences == [widget], "one complaint, at the widget that it is about"


def test_an_eps_record_on_the_flow_model(server):
    prompt = round_trip("lost")
    prompt["other"] = node("LoadShapesModel", kind="flow")
    prompt["edit"]["inputs"]["model"] = ["other", 0]
    refused(server, prompt, "model")


def test_an_eps_record_on_the_flow_model_in_a_sampler(server):
    prompt = start()
    prompt["inversion"] = invert()
    prompt["other"] = node("LoadShapesModel", kind="flow")
    prompt["guider"] = node("BasicGuider", model=["other", 0], conditioning=["target", 0])
    prompt["sampler"] = node("InversionSampler", inversion=["inversion", 0], sampler_name="same as inversion")
    prompt["noise"] = node("DisableNoise")
    prompt["sample"] = node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["sampler", 0],
        sigmas=["inversion", 3],
        latent_image=["latent", 0],
    )
    prompt["keep"] = keep(["sample", 0], "lost")
    refused(server, prompt, "model")


@pytest.mark.parametrize("carrier", ["sampler", "noise", "report"])
def test_a_latent_of_another_size(server, carrier):
    prompt = start()
    prompt["inversion"] = invert()
    prompt["crop"] = node("ImageCrop", image=["picture", 0], width=32, height=64, x=0, y=0)
    prompt["small"] = node("VAEEncode", pixels=["crop", 0], vae=["model", 2])
    if carrier == "report":
        prompt["report"] = node(
            "InversionReport", inversion=["inversion", 0], model=["model", 0], reconstructed=["small", 0]
        )
    else:
        resume = node("InversionSampler", inversion=["inversion", 0], sampler_name="same as inversion")
        prompt["guider"] = node("BasicGuider", model=["model", 0], conditioning=["target", 0])
        prompt["sampler"] = resume if carrier == "sampler" else node("KSamplerSelect", sampler_name="euler")
        prompt["quiet"] = node("DisableNoise")
        prompt["sample"] = node(
            "SamplerCustomAdvanced",
            noise=["quiet", 0] if carrier == "sampler" else ["inversion", 2],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["inversion", 3],
            latent_image=["small", 0],
        )
        prompt["keep"] = keep(["sample", 0], "lost")
    refused(server, prompt, "16, 8")


def test_a_mask_of_another_batch(server):
    prompt = round_trip("lost")
    prompt["others"] = start(batch_size=3)["picture"]
    prompt["edit"]["inputs"]["mask"] = ["others", 1]
    refused(server, prompt, "mask", "got 3")


def loading(saved_file, **changed):
    prompt = start()
    prompt["load"] = node("LoadInversion", file=saved_file, **changed)
    prompt["edit"] = edit(["load", 0])
    prompt["keep"] = keep(["edit", 0], "loaded_made_by_test")
    return prompt


def test_a_record_cut_in_half(server, saved):
    name, path = saved
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1, 100, 4, 0):
        (server.base / "input" / "half_made_by_test.safetensors").write_bytes(whole[:size])
        refused(server, loading("half_made_by_test.safetensors [input]"), "half_made_by_test")
    # The record itself is whole and still loads.
    outcome = server.run(loading(name))
    assert outcome.succeeded, outcome.error


def test_a_foreign_file(server, saved):
    latent = next((server.base / "output").glob("*_*.latent"))
    shutil.copy(latent, server.base / "input" / "foreign_made_by_test.safetensors")
    refused(server, loading("foreign_made_by_test.safetensors [input]"), "foreign_made_by_test")


def test_a_record_that_is_gone(server):
    refused(server, loading("gone.safetensors [output]"), "gone")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "a/../../outside.safetensors", "{base}/outside.safetensors"]
)
@pytest.mark.parametrize("way", ["file", "path"])
def test_loading_from_outside(server, saved, name, way):
    # A good record, so that nothing but the place can be wrong.
    shutil.copy(saved[1], server.base / "outside.safetensors")
    name = name.format(base=server.base)
    if way == "file":
        prompt = loading(f"{name} [output]")
    else:
        prompt = loading("(nothing saved yet)", path=["text", 0])
        prompt["text"] = node("PrimitiveString", value=name)
    refused(server, prompt, "file must lie in the output or input folder")


@pytest.mark.parametrize("prefix", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_saving_to_outside(server, prefix):
    prompt = start()
    prompt["inversion"] = invert()
    prompt["save"] = node("SaveInversion", inversion=["inversion", 0], filename_prefix=prefix, half=False)
    refused(server, prompt, "filename_prefix")
    assert list(server.base.rglob("escaped*")) == []


def test_a_picture_in_one_colour(server):
    prompt = round_trip("lost")
    prompt["picture"]["inputs"]["colour"] = "blue"
    refused(server, prompt, "colour")


def test_a_good_run_is_not_refused(server):
    """What the tests above catch can also pass."""
    with pytest.raises(AssertionError):
        refused(server, round_trip("good_made_by_test"))
