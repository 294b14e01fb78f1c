"""DDS on priors whose posterior is known."""

import pytest
import torch

from retrace.restoration.levels import clean_variance, weights
from retrace.restoration.measurement import Measurement
from retrace.restoration.operators import (
    JPEG,
    BlackWhite,
    GaussianBlur,
    LowResolution,
    Mask,
    Noise,
    quality_tables,
)
from retrace.restoration.solvers.dds import PixelConsistency, dds
from retrace.restoration.solvers.fresh import fresh_noise
from retrace_tests.restoration.cases import matrix_of
from retrace_tests.restoration.problems import (
    SHAPE,
    SIGMA,
    as_flow,
    distance,
    moments,
    pictures_prior,
    vp_sigmas,
    white_prior,
)


def box_hole():
    keep = torch.ones(1, *SHAPE[-2:])
    keep[:, 1:4, 2:5] = 0.0
    return keep


OPERATORS = {
    "inpaint": lambda: Mask(SHAPE, box_hole()),
    "small": lambda: LowResolution(SHAPE, 2, "box"),
    "blur": lambda: GaussianBlur(SHAPE, 1.0, "circular"),
    "grey": lambda: BlackWhite(SHAPE),
    "noise": lambda: Noise(SHAPE),
}


def problem(name, prior):
    operator = OPERATORS[name]()
    truth = prior.sample(1, seed=3)
    noise = torch.randn(1, *operator.out_shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    damaged = operator.forward(truth) + SIGMA * noise
    if name == "inpaint":
        damaged = operator.forward(damaged)
    return Measurement(operator, damaged, SIGMA), matrix_of(operator), damaged.flatten(), truth


def posterior(prior, matrix, y):
    rows = matrix.abs().sum(dim=1) > 0  # what a mask hides is not measured
    return prior.posterior(matrix[rows], y[rows])


@pytest.mark.parametrize("name", OPERATORS)
def test_one_step_is_bayes_rule_on_a_white_prior(name):
    """E[x0 | x, y] = consistency(E[x0 | x]), exactly, in both spaces."""
    prior = white_prior()
    measured, matrix, y, _ = problem(name, prior)
    size = matrix.shape[1]
    for space, sigma in (("ve", 1.3), ("ve", 0.02), ("flow", 0.4), ("flow", 1.0)):
        a, b = weights(sigma, space)
        x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        both = torch.cat([matrix, a * torch.eye(size, dtype=torch.float64)])
        noise = torch.cat([torch.full((len(matrix),), SIGMA), torch.full((size,), b)]).double() ** 2
        system = 0.25 * both @ both.T + torch.diag(noise)
        wanted = 0.25 * both.T @ torch.linalg.solve(system, torch.cat([y, x.flatten()]))
        corrected = PixelConsistency(measured)(prior.denoise(x, sigma, space), clean_variance(sigma, space, 0.25))
        assert torch.allclose(corrected.flatten(), wanted, atol=1e-7)


def test_flow_and_ve_are_one():
    prior = pictures_prior()
    measured, *_ = problem("blur", prior)
    sigmas = vp_sigmas(50)
    start = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = {}
    for space, levels in (("ve", sigmas), ("flow", as_flow(sigmas))):
        b = weights(levels[0], space)[1]
        drawn[space] = dds(
            lambda x, s, space=space: prior.denoise(x, s, space),
            b * start,
            levels,
            space,
            PixelConsistency(measured),
            fresh_noise(start, 7),
            variance=0.25,
        )
    assert float((drawn["ve"] - drawn["flow"]).abs().max()) < 1e-10


def test_a_white_prior_is_followed_exactly():
    """The deterministic form with the noise of the corrected picture is the posterior's own flow."""
    prior = white_prior()
    measured, matrix, y, _ = problem("small", prior)
    found = {
        steps: distance(
            *moments(prior, vp_sigmas(steps), PixelConsistency(measured), 0.0, conditional=True),
            *posterior(prior, matrix, y),
        )
        for steps in (20, 50, 200)
    }
    assert found[50] < 0.07 and found[200] < 0.02 and found[200] < found[50] < found[20]


@pytest.mark.parametrize(
    ("name", "limit"), [("inpaint", 0.3), ("small", 0.3), ("blur", 0.5), ("grey", 0.4), ("noise", 0.7)]
)
def test_defaults_come_near_the_posterior(name, limit):
    prior = pictures_prior()
    measured, matrix, y, _ = problem(name, prior)
    mean, covariance = moments(prior, vp_sigmas(50), PixelConsistency(measured), 0.85)
    assert distance(mean, covariance, *posterior(prior, matrix, y)) < limit
    rows = matrix.abs().sum(dim=1) > 0
    residual = (matrix @ mean - y)[rows].square().sum() + (matrix @ covariance @ matrix.T).diagonal()[rows].sum()
    assert 0.05 < float(residual) / (SIGMA**2 * int(rows.sum())) < 1.5


@pytest.mark.parametrize("name", ["inpaint", "small"])
def test_the_weight_of_bayes_beats_the_published_one(name):
    prior = pictures_prior()
    measured, matrix, y, _ = problem(name, prior)
    wanted = posterior(prior, matrix, y)
    ours, official = (
        distance(*moments(prior, vp_sigmas(50), PixelConsistency(measured, official=official), 0.85), *wanted)
        for official in (False, True)
    )
    assert ours < official


def test_trust_moves_the_result_to_the_photo():
    prior = pictures_prior()
    measured, *_ = problem("noise", prior)
    found = [float(measured.chi2(_drawn(prior, measured, trust)).mean()) for trust in (0.1, 1.0, 10.0)]
    assert found[0] > found[1] > found[2]


def _drawn(prior, measured, trust=1.0, batch=4, **settings):
    start = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sigmas = vp_sigmas(50)
    return dds(
        prior.denoise,
        sigmas[0] * start,
        sigmas,
        "ve",
        PixelConsistency(measured, trust),
        fresh_noise(start, 7),
        variance=0.25,
        **settings,
    )


def test_a_batch_is_its_rows_alone():
    prior = pictures_prior()
    measured, *_ = problem("blur", prior)
    sigmas = vp_sigmas(20)
    start = sigmas[0] * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def run(x, seed):
        return dds(prior.denoise, x, sigmas, "ve", PixelConsistency(measured), fresh_noise(x, seed), variance=0.25)

    assert torch.allclose(run(start, 4), torch.cat([run(start[:1], 4), run(start[1:], 5)]), atol=1e-9)


def test_shared_noise_is_the_same_in_every_frame():
    x = torch.zeros(3, 2, 4, 5, 6)
    drawn = fresh_noise(x, 1, shared=True)()
    assert torch.equal(drawn[0], drawn[2]) and drawn.shape == x.shape
    drawn = fresh_noise(x, 1, shared=True, axis=2)()
    assert torch.equal(drawn[:, :, 0], drawn[:, :, 3]) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], fresh_noise(x[1:], 2, shared=True, axis=2)()[0])
    source = fresh_noise(x, 1)
    assert not torch.equal(source(), source())


def test_reports_and_untouched_inputs():
    prior = pictures_prior()
    measured, *_ = problem("grey", prior)
    reports = []
    start = torch.ones(1, *SHAPE, dtype=torch.float64)
    dds(
        prior.denoise,
        start,
        (2.0, 1.0, 0.5),
        "ve",
        PixelConsistency(measured),
        fresh_noise(start, 0),
        on_step=reports.append,
    )
    assert [(r.number, r.total, r.sigma) for r in reports] == [(0, 2, 2.0), (1, 2, 1.0)]
    assert torch.equal(start, torch.ones_like(start))


def test_jpeg_cells_are_kept():
    """Every coefficient of what is drawn rounds to that of the photo."""
    shape = (3, 16, 16)
    prior = white_prior((3, 16, 16), 0.1)
    coder = JPEG(shape, quality_tables(20), half_colour=False)
    truth = 0.5 * prior.sample(1, seed=3)
    measured = Measurement(coder, coder.forward(truth), 0.02)
    start = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = dds(
        prior.denoise, 5 * start, (5.0, 2.0, 1.0, 0.3, 0.0), "ve", PixelConsistency(measured), fresh_noise(start, 7)
    )
    for wanted, found in zip(coder.coefficients(truth), coder.coefficients(drawn)):
        assert torch.equal(wanted.expand_as(found), found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigmas": (1.0, 2.0)}, "sigmas must fall"),
        ({"sigmas": (1.0,)}, "sigmas must fall"),
        ({"freshness": 1.2}, "freshness must lie between"),
        ({"space": "vp"}, "space must be"),
        ({"space": "flow", "sigmas": (1.5, 0.0)}, "at most 1 for flow"),
    ],
)
def test_refusals_are_one_sentence(settings, words):
    x = torch.zeros(1, *SHAPE)
    settings = {"sigmas": (1.0, 0.0), "space": "ve", **settings}
    sigmas, space = settings.pop("sigmas"), settings.pop("space")
    with pytest.raises(ValueError, match=words) as caught:
        dds(lambda x, s: x, x, sigmas, space, lambda d, *_: d, fresh_noise(x, 0), **settings)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
