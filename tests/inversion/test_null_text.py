"""Null-text optimisation against the exact denoiser: what the paper claims, and what a fit must never do."""

from dataclasses import replace

import pytest
import torch

from retrace.inversion import (
    Denoiser,
    MisfitError,
    NullText,
    adopt,
    invert,
    load,
    null_text,
    relative_error,
    replay,
    save,
    with_embeddings,
)
from retrace_tests.inversion.problems import Mixture, full_grid

CFG = 7.5
STEPS = 20


class Prompts:
    """A mixture whose unconditional embedding has rows, (B, 1, WIDTH), as a host's has."""

    def __init__(self, space, prompt="source"):
        self.mixture = Mixture(space)
        self.space, self.prompt = space, prompt

    @property
    def null(self):
        return self.mixture.embeddings["null"].float()[None, None]

    def source(self):
        return self.mixture.denoiser(self.prompt)

    def unconditional(self):
        def rebind(embedding):
            return lambda x, sigma: self.mixture.denoise(x, sigma, embedding)

        return Denoiser(rebind(self.null), self.space, rebind=rebind)

    def guided(self, cfg=CFG):
        return self.mixture.denoiser(self.prompt, cfg).with_embedding(self.null)

    def record(self, batch=1, method="ddim", index=STEPS, steps=STEPS):
        grid = full_grid(self.space, steps)
        return invert(self.source(), self.mixture.sample(batch), grid, index, method, keep_path=True)

    def fit(self, record=None, on_step=None, **settings):
        record, settings = self.record() if record is None else record, NullText(**settings)
        return null_text(record, self.source(), self.unconditional(), self.null.clone(), settings, on_step)


class StopError(Exception):
    """Raised by listeners that interrupt."""


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_guided_reconstruction_comes_much_nearer(space):
    prompts = Prompts(space)
    reports = []
    record = prompts.record(1, "euler", 50, 50)
    fitted = prompts.fit(record, on_step=reports.append)  # with the settings of the published code
    without = relative_error(replay(record, prompts.guided()), record.x0)
    error = relative_error(replay(fitted, prompts.guided()), record.x0)
    assert error < without / 2.5, (error, without)
    assert len(reports) == len(fitted.embeddings) == 50
    losses = [(report.loss[0], report.first_loss[0]) for report in reports]
    assert all(a <= b for a, b in losses) and sum(a < b for a, b in losses) > 45
    assert torch.equal(replay(fitted, prompts.guided()), replay(fitted, prompts.guided()))


@pytest.mark.parametrize("space", ["ve", "flow"])
def test_replay_takes_the_states_that_the_fit_reached(space):
    prompts, states = Prompts(space), []
    fitted = prompts.fit(on_step=lambda report: states.append(report.x.clone()))
    walked = []
    replay(fitted, prompts.guided(), on_step=lambda report: walked.append(report.x))
    for ours, theirs in zip(states, walked, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_updates_are_those_of_torch_adam():
    """One step against torch.optim.Adam and the formula of the loss written out."""
    prompts = Prompts("ve")
    record = prompts.record()
    reports = []
    fitted = prompts.fit(record, inner_steps=5, stop=0.0, stop_growth=0.0, on_step=reports.append)
    sigma, sigma_next = record.falling[0], record.falling[1]
    embedding = prompts.null.clone().requires_grad_(True)
    adam = torch.optim.Adam([embedding], lr=1e-2)
    conditional = prompts.source()(record.x, sigma)
    tried = []
    for _ in range(6):
        answer = prompts.unconditional().with_embedding(embedding)(record.x, sigma)
        denoised = answer + CFG * (conditional - answer)
        x = record.x + (sigma_next - sigma) * (record.x - denoised) / sigma
        loss = (x - record.path[-2]).square().mean() / (1.0 + sigma_next**2)
        tried.append((loss.item(), embedding.detach().clone()))
        adam.zero_grad()
        loss.backward()
        adam.step()
    loss, best = min(tried, key=lambda entry: entry[0])
    assert reports[0].first_loss[0] == pytest.approx(tried[0][0], rel=1e-6)
    assert reports[0].loss[0] == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(fitted.embeddings[0], best, rtol=1e-4, atol=1e-6)
    assert not torch.equal(best, prompts.null)


def test_the_threshold_grows_by_step():
    """A step whose loss is below it makes one last update."""
    reports = []
    Prompts("ve").fit(stop=0.0, stop_growth=1.0, on_step=reports.append)
    assert [report.inner_steps for report in reports] == [10] + [1] * (STEPS - 1)


def test_the_rate_falls_by_a_hundredth_and_no_further_than_half():
    """Adam's first update moves every number by the rate."""
    prompts = Prompts("ve")
    record = prompts.record(1, "euler", 60, 60)
    found = prompts.fit(record, inner_steps=1, learning_rate=1e-3, stop=0.0, stop_growth=0.0).embeddings
    moved = {
        index: float((now - before).abs().max())
        for index, (before, now) in enumerate(zip((prompts.null, *found), found, strict=False))
        if not torch.equal(before, now)
    }
    assert len(moved) > 40 and max(moved) > 52
    for index, distance in moved.items():
        assert distance == pytest.approx(1e-3 * max(1.0 - index / 100, 0.5), rel=1e-2), index


def test_an_interrupted_fit_goes_on_where_it_stopped(tmp_path):
    prompts = Prompts("flow")
    record, seen = prompts.record(2), []
    whole = prompts.fit(record)

    def stop(report):
        seen.append(report)
        if report.index == 7:
            raise StopError

    with pytest.raises(StopError):
        prompts.fit(record, on_step=stop)
    partial = with_embeddings(record, seen[-1].embeddings, CFG)
    assert len(partial.embeddings) == 8
    save(partial, tmp_path / "partial.safetensors")
    steps = []
    fitted = prompts.fit(load(tmp_path / "partial.safetensors"), on_step=steps.append)
    assert [report.inner_steps == 0 for report in steps] == [True] * 8 + [False] * (STEPS - 8)
    assert all(torch.equal(a, b) for a, b in zip(fitted.embeddings, whole.embeddings, strict=True))
    # The part alone is a record too: it comes nearer than none.
    errors = [relative_error(replay(each, prompts.guided()), record.x0) for each in (record, partial)]
    assert errors[1] < errors[0]
    with pytest.raises(ValueError, match="cfg must be that of the embeddings that are there already, 7.5, got 3"):
        prompts.fit(partial, cfg=3.0)


def test_nothing_that_goes_in_is_changed_in_any_mode():
    prompts = Prompts("ve")
    record, null = prompts.record(), prompts.null
    before = [tensor.clone() for tensor in (record.x, record.x0, *record.path, null)]
    fitted = null_text(record, prompts.source(), prompts.unconditional(), null)
    assert all(torch.equal(a, b) for a, b in zip(before, (record.x, record.x0, *record.path, null), strict=True))
    assert record.embeddings is None and not null.requires_grad
    assert not any(embedding.requires_grad or embedding.is_inference() for embedding in fitted.embeddings)
    with torch.inference_mode():  # the host runs everything in it
        again = prompts.fit(record)
    assert all(torch.equal(a, b) for a, b in zip(fitted.embeddings, again.embeddings, strict=True))
    assert fitted.method == "ddim" and fitted.meta["cfg"] == CFG
    assert fitted.meta["null_text_evaluations"] > 3 * STEPS


def test_the_conditional_answer_is_asked_for_once_a_step():
    prompts = Prompts("ve")
    source, unconditional = prompts.source(), prompts.unconditional()
    settings = NullText(inner_steps=4, stop=0.0, stop_growth=0.0)
    null_text(prompts.record(), source, unconditional, prompts.null, settings)
    assert (source.evaluations, unconditional.evaluations) == (STEPS, 5 * STEPS)


def test_other_solvers_come_down_by_euler():
    prompts = Prompts("flow")
    fitted = prompts.fit(prompts.record(method="midpoint"))
    assert fitted.method == "euler"
    with pytest.raises(MisfitError, match="with fitted embeddings must be replayed by its own method euler"):
        adopt(fitted, "midpoint")
    with pytest.raises(MisfitError, match="must come from a method that keeps one latent, got belm"):
        prompts.fit(prompts.record(method="belm"))


def test_bad_records_and_models():
    prompts = Prompts("ve")
    record = prompts.record()
    with pytest.raises(ValueError, match="must hold its path to fit embeddings, got none"):
        prompts.fit(replace(record, path=None))
    with pytest.raises(ValueError, match="cfg must not be 1, where the negative does not act, got 1"):
        prompts.fit(cfg=1.0)
    with pytest.raises(TypeError, match="learning_rate must be a finite float, got nan"):
        prompts.fit(learning_rate=float("nan"))
    with pytest.raises(MisfitError, match="must be of the inversion's space 've', got 'flow'"):
        null_text(record, Prompts("flow").source(), prompts.unconditional(), prompts.null)
    with pytest.raises(TypeError, match="must let its unconditional embedding be exchanged"):
        null_text(record, prompts.source(), prompts.source().__class__(lambda x, sigma: x, "ve"), prompts.null)
    deaf = Denoiser(lambda x, sigma: x, "ve", rebind=lambda embedding: lambda x, sigma: 0.9 * x)
    with pytest.raises(ValueError, match="must let gradients reach its unconditional embedding"):
        null_text(record, prompts.source(), deaf, prompts.null)
    blown = Denoiser(torch.clone, "ve", rebind=lambda embedding: lambda x, sigma: x * embedding.sum() * torch.nan)
    with pytest.raises(ValueError, match="The loss must stay finite"):
        null_text(record, prompts.source(), blown, prompts.null)
    for bad in (torch.zeros(16), torch.zeros(3, 1, 16), torch.zeros(1, 1, 16, dtype=torch.int64)):
        with pytest.raises(ValueError, match="embedding must be floating-point with 1 or 1 rows"):
            null_text(record, prompts.source(), prompts.unconditional(), bad)
    for count in (0, STEPS + 1):
        with pytest.raises(ValueError, match="at most one for each of the 20 steps"):
            with_embeddings(record, (prompts.null,) * count, CFG)
