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

FLOW, OUTSIDE = node("LoadShapesModel", kind="flow"), node("PrimitiveString", value="../outside.safetensors")
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
    paths = [path for name in ("output", "input") for path in (server.base / name).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths if "_made_by_test" not in path.name}


@pytest.fixture(scope="module")
def saved(server):
    """Name and path of an inversion of the eps model."""
    prefix = f"refusals{uuid.uuid4().hex}"
    outcome = server.run(saved_to(prefix))
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


def saved_to(prefix):
    prompt = {**start(), "inversion": invert()}
    prompt["save"] = node("SaveInversion", inversion=["inversion", 0], filename_prefix=prefix, half=False)
    return prompt


def loading(saved_file="(nothing saved yet)", **inputs):
    prompt = start()
    prompt["load"] = node("LoadInversion", file=saved_file, **inputs)
    prompt["edit"] = edit(["load", 0])
    prompt["keep"] = keep(["edit", 0], "loaded_made_by_test")
    return prompt


def changed(prompt, where, added=(), **inputs):
    prompt[where]["inputs"] |= inputs
    return {**prompt, **dict(added)}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: changed(round_trip("lost"), "picture", colour="blue"), "colour"),
        (lambda: changed(round_trip("lost"), "edit", {"other": FLOW}, model=["other", 0]), "model"),
        (lambda: saved_to("../escaped"), "filename_prefix"),
        (lambda: loading("../outside.safetensors [output]"), "file must lie in the output or input folder"),
        (lambda: {**loading(path=["text", 0]), "text": OUTSIDE}, "file must lie in the output or input folder"),
        (lambda: loading("gone.safetensors [output]"), "gone"),
    ],
)
def test_one_sentence(server, saved, make, words):
    # A good inversion, so that nothing but the place can be wrong.
    shutil.copy(saved[1], server.base / "outside.safetensors")
    refused(server, make(), words)
    assert list(server.base.rglob("escaped*")) == []


def test_broken_files(server, saved):
    name, path = saved
    whole, latent = path.read_bytes(), next((server.base / "output").glob("*_*.latent"))
    for content in (whole[: len(whole) // 2], latent.read_bytes()):
        (server.base / "input" / "broken_made_by_test.safetensors").write_bytes(content)
        refused(server, loading("broken_made_by_test.safetensors [input]"), "broken_made_by_test")
    # The file itself is whole and still loads.
    outcome = server.run(loading(name))
    assert outcome.succeeded, outcome.error


def test_a_good_run_is_not_refused(server):
    """What the tests above catch can also pass."""
    with pytest.raises(AssertionError):
        refused(server, round_trip("good_made_by_test"))
