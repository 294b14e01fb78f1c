"""Edits without an inversion: InfEdit and FlowEdit on the exact mixture, alone, blended and with further branches."""

import pytest
import torch

from retrace.inversion import Denoiser, EditOptions, FlowEdit, InfEdit, Noises, mix, relative_error
from retrace_tests.inversion.problems import SHAPE, Mixture, full_grid

EDITS = [InfEdit(), InfEdit(0.4), InfEdit(0.0), FlowEdit(), FlowEdit(n_avg=3), FlowEdit(pull=0.05), FlowEdit(n_min=3)]
BOTH_SPACES = pytest.mark.parametrize("space", ["ve", "flow"])


def edited(edit, space, target="target", cfgs=(1.0, 1.0), index=14, steps=20, batch=2, shape=SHAPE, **options):
    """Run an edit; returns (x0, result, source denoiser, target denoiser)."""
    mixture = Mixture(space, shape)
    clean, grid = mixture.sample(batch), full_grid(space, steps)
    source, target = mixture.denoiser("source", cfgs[0]), mixture.denoiser(target, cfgs[1])
    return clean, edit.edit(source, target, clean, grid, index, EditOptions(**options)), source, target


def stacked(*denoisers):
    """One denoiser for states stacked along the batch."""

    def denoise(x, sigma):
        return torch.cat([each(part, sigma) for each, part in zip(denoisers, x.chunk(len(denoisers)), strict=True)])

    return Denoiser(denoise, denoisers[0].space, denoisers[0].sigma_floor)


@BOTH_SPACES
@pytest.mark.parametrize("edit", [edit for edit in EDITS if not getattr(edit, "n_min", 0)], ids=repr)
def test_only_a_difference_of_the_models_moves_the_latent(edit, space):
    for cfg in (1.0, 3.0):
        clean, result, *_ = edited(edit, space, target="source", cfgs=(cfg, cfg))
        # Both models see the same bits in every step.
        assert relative_error(result, clean) < 1e-14 and result is not clean
    assert relative_error(edited(edit, space)[1], clean) > 0.05
    assert relative_error(edited(edit, space, target="source", cfgs=(1.0, 2.3))[1], clean) > 1e-3


@BOTH_SPACES
@pytest.mark.parametrize("eta", [1.0, 0.3, 0.0])
def test_infedit_is_the_published_update(space, eta):
    """Algorithm of the paper in its own alpha-bar form, written for z = sqrt(abar) x and e of each step."""
    grid, index = full_grid(space, 8), 7
    clean, result, source, target = edited(InfEdit(eta), space, index=index, steps=8, seed=5)
    noises = Noises(5, clean)

    def variance(i):  # 1 - abar; a flow state over sqrt((1-s)^2 + s^2) is a VP state
        s = grid[i] if space == "ve" else grid[i] / (1.0 - grid[i])
        return s**2 / (1.0 + s**2)

    def epsilon(denoiser, z, i):
        a, b = (1.0 - variance(i)) ** 0.5, variance(i) ** 0.5
        scale = a if space == "ve" else a / (1.0 - grid[i])  # z = scale * x
        return (z - a * denoiser(z / scale, grid[i])) / b

    noise = noises.draw()
    a, b = (1.0 - variance(index)) ** 0.5, variance(index) ** 0.5
    z_source = z_target = a * clean + b * noise
    for i in range(index, 0, -1):
        a, b = (1.0 - variance(i)) ** 0.5, variance(i) ** 0.5
        e_source, e_target = epsilon(source, z_source, i), epsilon(target, z_target, i)
        predicted = clean + ((z_target - z_source) - b * (e_target - e_source)) / a
        if i > 1:
            consistent = (z_source - a * clean) / b
            below = variance(i - 1)
            fresh = torch.zeros_like(clean) if eta == 0.0 else noises.draw()
            std = (eta * below) ** 0.5
            shift = ((1.0 - eta) * below) ** 0.5 * (e_target - e_source + consistent) + std * fresh
            z_source = (1.0 - below) ** 0.5 * clean + shift
            z_target = (1.0 - below) ** 0.5 * predicted + shift
    assert relative_error(result, predicted) < 1e-10


def test_flowedit_is_the_published_update():
    """Velocities of a rectified flow, averaged, with FlowEdit's target path and its sampled end."""
    grid, index = full_grid("flow", 10), 8
    clean, result, source, target = edited(FlowEdit(n_avg=2, n_min=3), "flow", index=index, steps=10, seed=9)
    noises = Noises(9, clean)

    def velocity(denoiser, x, s):
        return (x - denoiser(x, s)) / s

    z = clean
    for i in range(index, 3, -1):
        total = torch.zeros_like(clean)
        for _ in range(2):
            z_source = (1.0 - grid[i]) * clean + grid[i] * noises.draw()
            z_target = z + z_source - clean
            total += velocity(target, z_target, grid[i]) - velocity(source, z_source, grid[i])
        z = z + (grid[i - 1] - grid[i]) * total / 2
    x = z + (1.0 - grid[3]) * clean + grid[3] * noises.draw() - clean
    for i in range(3, 0, -1):
        x = x + (grid[i - 1] - grid[i]) * velocity(target, x, grid[i])
    assert relative_error(result, x) < 1e-12


def test_the_pull_holds_an_edit_back():
    clean = edited(FlowEdit(), "flow")[0]
    moved = [relative_error(edited(FlowEdit(pull=pull), "flow")[1], clean) for pull in (0.0, 0.02, 0.1)]
    assert moved[0] > moved[1] > moved[2]


@pytest.mark.parametrize(
    ("edit", "index", "calls"),
    [
        (InfEdit(), 12, (12, 12)),
        (InfEdit(eta=0.0), 5, (5, 5)),
        (FlowEdit(n_avg=4), 6, (24, 24)),
        (FlowEdit(n_avg=2, n_min=4), 10, (12, 16)),
    ],
    ids=str,
)
def test_calls_and_reports(edit, index, calls):
    reports = []
    edit.check(index)
    clean, result, source, target = edited(edit, "flow", index=index, on_step=reports.append)
    assert (source.evaluations, target.evaluations) == calls == edit.evaluations(index)
    assert [(report.index, report.total) for report in reports] == [(i, index) for i in range(index)]
    grid = full_grid("flow", 20)
    assert [report.sigma for report in reports] == grid[index:0:-1] and reports[-1].sigma_next == 0.0
    assert all(report.denoised.shape == clean.shape for report in reports)
    assert torch.equal(reports[-1].x, result)
    if isinstance(edit, InfEdit):
        assert all(torch.equal(report.denoised, report.x) for report in reports)

    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edited(edit, "flow", index=index, on_step=stop)


@pytest.mark.parametrize("edit", [InfEdit(0.5), FlowEdit(n_avg=2, n_min=2)], ids=repr)
def test_noise_follows_the_seed_and_the_row_alone(edit):
    mixture = Mixture("ve")
    clean, grid, state = mixture.sample(3), full_grid("ve", 10), torch.get_rng_state()

    def run(chosen, **options):
        before, latent = clean[chosen].clone(), clean[chosen]
        out = edit.edit(mixture.denoiser(), mixture.denoiser("target"), latent, grid, 8, EditOptions(**options))
        assert torch.equal(latent, before)
        return out

    together = run([0, 1, 2], seed=7)
    assert torch.equal(run([0, 1, 2], seed=7), together) and relative_error(run([0, 1, 2], seed=8), together) > 1e-3
    for row in range(3):
        alone = run([row], seed=7, rows=[row])
        assert relative_error(alone, together[row : row + 1]) < 1e-12
        assert torch.equal(alone, run([row], seed=7 + row))
    # Equal pictures in one batch get noise of their own; the global generator is not touched.
    same = run([0, 0])
    assert relative_error(same[:1], same[1:]) > 1e-3 and torch.equal(torch.get_rng_state(), state)


@BOTH_SPACES
@pytest.mark.parametrize("edit", [InfEdit(), InfEdit(0.0), FlowEdit(), FlowEdit(n_min=4)], ids=str)
def test_outside_a_mask_nothing_changes(edit, space):
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 3:] = 1.0
    mask[..., 2] = 0.5
    seen, last = [], getattr(edit, "n_min", 0)
    clean, result, *_ = edited(edit, space, mask=mask, on_step=seen.append)
    assert torch.equal(result[..., :2], clean[..., :2]) and bool((result[..., 2:] != clean[..., 2:]).all())
    noises = Noises(0, clean)
    noise = [noises.draw() for _ in range(14 - last + 1)][-1]
    for report in seen:
        # The states of the last n_min steps are one source, re-noised with one noise.
        source = clean if report.index < 14 - last else mix(clean, noise, report.sigma_next, space)
        assert torch.equal(report.x[..., :2], source[..., :2])
    whole = edited(edit, space)[1]
    assert torch.equal(edited(edit, space, mask=torch.ones(1, 1, 3, 5))[1], whole)
    assert torch.equal(edited(edit, space, mask=torch.zeros(1, 1, 3, 5))[1], clean)


@BOTH_SPACES
@pytest.mark.parametrize("edit", EDITS, ids=repr)
def test_a_blend_has_the_last_word_but_the_masks(edit, space):
    """Told of each step once, with the source's state beside the edit's; what it gives is carried on."""
    seen, index, last = [], 6, getattr(edit, "n_min", 0)

    def watch(number, total, sigma, latents):
        seen.append((number, total, sigma, *latents))
        return latents[1]

    def run(**options):
        return edited(edit, space, index=index, steps=8, seed=4, **options)[1]

    clean, plain = edited(edit, space, index=index, steps=8, seed=4)[:2]
    assert torch.equal(run(blend=watch), plain) and torch.equal(seen[-1][4], plain)
    grid = full_grid(space, 8)
    assert [entry[:3] for entry in seen] == [(i, index, grid[index - i]) for i in range(index)]
    noises = Noises(4, clean)
    noise = [noises.draw() for _ in range((index - last) * getattr(edit, "n_avg", 1) + 1)][-1]
    for number, _, _, source, _ in seen:
        state = clean if number < index - last else mix(clean, noise, grid[index - 1 - number], space)
        assert relative_error(source, state) < 1e-12, number
    assert torch.equal(run(blend=lambda number, total, sigma, latents: latents[0]), clean)
    late = run(blend=lambda number, total, sigma, latents: latents[number >= 2])
    assert relative_error(late, plain) > 1e-6 and relative_error(late, clean) > 1e-6
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 0] = 1.0
    wild = run(blend=lambda number, total, sigma, latents: latents[1] + 1.0, mask=mask)
    assert torch.equal(wild[..., 1:], clean[..., 1:]) and not torch.equal(wild[..., 0], clean[..., 0])


@BOTH_SPACES
@pytest.mark.parametrize("edit", [InfEdit(), InfEdit(eta=0.4), FlowEdit(n_avg=2), FlowEdit(n_min=3)], ids=repr)
def test_both_models_in_one_call_are_both_models(edit, space):
    """A joint call sees the states of both, source first; where it does not couple them nothing changes."""
    _, wanted, source, target = edited(edit, space)
    both = stacked(source, target)
    assert relative_error(edited(edit, space, both=both)[1], wanted) < 1e-14

    def coupled(x, sigma):
        first, second = both(x, sigma).chunk(2)
        return torch.cat([first, first + 0.5 * (second - first)])

    other = edited(edit, space, both=Denoiser(coupled, space, source.sigma_floor))[1]
    assert relative_error(other, wanted) > 1e-3


@BOTH_SPACES
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_target_does_not_feel_a_further_branch(space, eta):
    """It is an edit of its own from the same noise, which the blend sees and the target does not."""
    mixture, edit, seen = Mixture(space), InfEdit(eta), []
    other = mixture.denoiser("target", 3.0)

    def watch(number, total, sigma, latents):
        seen.append(latents)
        return latents[1]

    _, alone, source, target = edited(edit, space, index=5, steps=6, seed=4)
    three = stacked(source, target, other)
    found = edited(edit, space, index=5, steps=6, seed=4, both=three, others=1, blend=watch)[1]
    assert relative_error(found, alone) < 1e-12 and {len(latents) for latents in seen} == {3}
    if eta == 1.0:
        wanted = edited(edit, space, cfgs=(1.0, 3.0), index=5, steps=6, seed=4)[1]
        assert relative_error(seen[-1][2], wanted) < 1e-12


def misfit(space="ve", grid=None, edit=None, **options):
    ve, edit, grid = Mixture("ve"), edit or InfEdit(), grid or full_grid("ve", 4)
    return edit.edit(ve.denoiser(), Mixture(space).denoiser(), ve.sample(2), grid, 3, EditOptions(**options))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: InfEdit(eta=1.5), "eta must be at most 1.0, got 1.5"),
        (lambda: FlowEdit(n_avg=0), "n_avg must be at least 1, got 0"),
        (lambda: misfit(edit=FlowEdit(n_min=3)), "n_min must be below n_max 3, got 3"),
        (lambda: edited(InfEdit(), "flow", index=21), "index must lie between 1 and the number of steps 20, got 21"),
        (lambda: misfit(rows=[0]), "rows must number the 2 pictures of the latent, got 1 numbers"),
        (lambda: misfit(mask=torch.ones(1, 1, 2, 2)), "mask must fit the latent (2, 4, 3, 5)"),
        (lambda: misfit(mask=2 * torch.ones(1, 1, 3, 5)), "mask must lie between 0 and 1"),
        (lambda: misfit("flow"), "source and target must be of one space, got 've' and 'flow'"),
        (lambda: misfit(grid=full_grid("ve", 4)[1:]), "sigmas must start at 0"),
        (lambda: misfit(others=1), "both must be given for an edit of several branches, got None"),
        (
            lambda: misfit(edit=FlowEdit(), both=Mixture("ve").denoiser(), others=1),
            "FlowEdit must have no branches but source and target, got 1 more",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError) as caught:
        call()
    assert sentence in str(caught.value) and str(caught.value).endswith(".")
