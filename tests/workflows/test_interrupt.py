"""Interrupting Invert over /interrupt: it stops within one model call, and the next run is right."""

from __future__ import annotations

import time
import uuid

import pytest
from safetensors.torch import load_file

from retrace_tests.workflows.events import Events
from retrace_tests.workflows.prompts import invert, node, round_trip, start

pytestmark = pytest.mark.host

STEPS = 400
# Pictures at once: enough for a call of at least a tenth of a second, much longer than a message takes.
BATCH = 64


def last_latent(server, name):
    (path,) = sorted((server.base / "output").glob(f"{name}_*.latent"))[-1:]
    return load_file(path)["latent_tensor"]


def steps_of(events, node):
    """Progress events of a node, whichever of the host's two messages it sends."""
    return [event for event in events.of("progress") if event.data.get("node") == node]


def test_stops_within_one_call_and_the_next_run_is_right(server):
    name = uuid.uuid4().hex
    assert server.run_afresh(round_trip(f"{name}before")).succeeded
    listener = uuid.uuid4().hex
    with Events(server, listener) as events:
        prompt = start(batch_size=BATCH)
        # euler: one step is one model call.
        prompt["inversion"] = invert(steps=STEPS)
        prompt["show"] = {"class_type": "SaveInversion", "inputs": {"inversion": ["inversion", 0]}}
        prompt["show"]["inputs"] |= {"filename_prefix": f"{name}lost", "half": False}
        prompt_id = server.submit(prompt, listener)
        events.wait("progress", 5)
        asked = time.time()
        server.post("/interrupt", {})
        answered = time.time()
        outcome = server.wait(prompt_id, 60)
        told = events.wait("execution_interrupted", 1, 30)
        done = [event for event in steps_of(events, "inversion") if event.data["value"] > 0]
    assert outcome.interrupted and not outcome.succeeded
    gaps = [after.time - before.time for before, after in zip(done, done[1:])]
    assert len(done) < STEPS / 2
    # The call that was running when the host answered may finish and be reported; no other begins.
    assert sum(event.time > answered for event in done) <= 1, gaps
    assert told.time - asked < 2 * max(gaps) + 0.5, (told.time - asked, gaps)
    assert list((server.base / "output").glob(f"{name}lost*")) == []
    assert server.run_afresh(round_trip(f"{name}after")).succeeded
    assert last_latent(server, f"{name}after").equal(last_latent(server, f"{name}before"))


def test_progress_and_previews_while_inverting(server):
    listener = uuid.uuid4().hex
    with Events(server, listener) as events:
        prompt = start()
        # No other test has this number of steps, so nothing is cached.
        prompt["inversion"] = invert(steps=12, method="midpoint")
        prompt["report"] = node("InversionReport", inversion=["inversion", 0], model=["model", 0])
        outcome = server.wait(server.submit(prompt, listener))
        assert outcome.succeeded, outcome.error
        events.wait("execution_success", 1, 30)
        steps = {event.data["value"] for event in steps_of(events, "inversion")}
        assert {event.data["max"] for event in steps_of(events, "inversion")} == {12}
        assert steps >= set(range(1, 13))
        # Each a picture of the predicted clean latent; some may be skipped by the host when it is busy.
        assert len(events.of("preview")) >= 6
