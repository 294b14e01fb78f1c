"""Edits without an inversion: InfEdit and FlowEdit on the exact mixture."""

import pytest
import torch

from retrace.inversion import Denoiser, FlowEdit, InfEdit, Noises, mix, relative_error
from retrace_tests.inversion.problems import CLIP_SHAPE, Mixture, full_grid

EDITS = {
    "infedit": InfEdit(),
    "infedit eta 0.4": InfEdit(eta=0.4),
    "infedit eta 0": InfEdit(eta=0.0),
    "flowedit": FlowEdit(),
    "flowedit averaged": FlowEdit(n_avg=3),
    "flowedit pulled": FlowEdit(pull=0.05),
}
SPACES = ("ve", "flow")


def edited(edit, space, source="source", target="target", cfgs=(1.0, 1.0), level=14, steps=20, batch=2, **changes):
    """Run an edit; returns (x0, result, source denoiser, target denoiser)."""
    mixture = Mixture(space, changes.pop("shape", Mixture(space).shape))
    clean = mixture.sample(batch)
    denoisers = mixture.denoiser(source, cfgs[0]), mixture.denoiser(target, cfgs[1])
    return clean, edit.edit(*denoisers, clean, full_grid(space, steps), level, **changes), *denoisers


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", EDITS)
def test_equal_prompts_and_guidance_give_the_source_back(name, space):
    for cfg in (1.0, 3.0):
        clean, result, *_ = edited(EDITS[name], space, target="source", cfgs=(cfg, cfg))
        # Better than the 1e-6 asked for: both models see the same bits at every level.
        assert relative_error(result, clean) < 1e-14
        assert result is not clean


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", EDITS)
def test_another_prompt_or_guidance_does_not(name, space):
    clean, result, *_ = edited(EDITS[name], space)
    assert relative_error(result, clean) > 0.05
    clean, result, *_ = edited(EDITS[name], space, target="source", cfgs=(1.0, 2.3))
    assert relative_error(result, clean) > 1e-3


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("edit", [InfEdit(), FlowEdit()], ids=lambda edit: edit.name)
def test_an_edit_comes_to_lie_under_the_target(edit, space):
    """Which prompt a latent belongs to is known exactly: by the likelihood ratio of the two mixtures."""
    mixture = Mixture(space)

    def likelihood(x, prompt):
        embedding = mixture.embeddings[prompt]
        distance = x.reshape(len(x), 1, -1) - (mixture.means + mixture.shift_of @ embedding)
        logits = (mixture.weight_of @ embedding).log_softmax(0)
        return (logits - 0.5 * (distance.square() / mixture.variance).sum(-1)).logsumexp(1)

    def leaning(x):
        return float((likelihood(x, "target") - likelihood(x, "source")).mean())

    clean, result, *_ = edited(edit, space, level=30, steps=30, batch=32)
    before, after = leaning(clean), leaning(result)
    natural = leaning(mixture.sample(256, seed=3, prompt="target"))
    assert before < -0.5 and natural > 0.5
    # Over the border, and most of the way to samples of the target itself.
    assert after > 0.0 and after - before > 0.6 * (natural - before), (before, after, natural)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("eta", [1.0, 0.3, 0.0])
def test_infedit_is_the_published_update(space, eta):
    """Algorithm of the paper in its own alpha-bar form, written for z = sqrt(abar) x and level-wise e."""
    grid, level = full_grid(space, 8), 7
    clean, result, source, target = edited(InfEdit(eta), space, level=level, steps=8, seed=5)
    noises = Noises(5, clean)

    def variance(i):  # 1 - abar; a flow state over sqrt((1-s)^2 + s^2) is a VP state
        s = grid[i] if space == "ve" else grid[i] / (1.0 - grid[i])
        return s**2 / (1.0 + s**2)

    def epsilon(denoiser, z, i):
        a, b = (1.0 - variance(i)) ** 0.5, variance(i) ** 0.5
        scale = a if space == "ve" else a / (1.0 - grid[i])  # z = scale * x
        return (z - a * denoiser(z / scale, grid[i])) / b

    noise = noises.draw()
    a, b = (1.0 - variance(level)) ** 0.5, variance(level) ** 0.5
    z_source = z_target = a * clean + b * noise
    for i in range(level, 0, -1):
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
    grid, level = full_grid("flow", 10), 8
    clean, result, source, target = edited(FlowEdit(n_avg=2, n_min=3), "flow", level=level, steps=10, seed=9)
    noises = Noises(9, clean)

    def velocity(denoiser, x, s):
        return (x - denoiser(x, s)) / s

    z = clean
    for i in range(level, 3, -1):
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


@pytest.mark.parametrize("space", SPACES)
def test_a_step_of_flowedit_is_part_of_a_jump_of_infedit(space):
    """z' = lerp(z, x0 + D_tgt - D_src, 1 - s'/s): from the source the last levels agree (s' = 0)."""
    clean, flow_edit, *_ = edited(FlowEdit(), space, level=1)
    _, infedit, *_ = edited(InfEdit(), space, level=1)
    assert relative_error(flow_edit, infedit) < 1e-12 and relative_error(infedit, clean) > 1e-6


def test_the_pull_holds_an_edit_back():
    moved = []
    for pull in (0.0, 0.02, 0.1):
        clean, result, *_ = edited(FlowEdit(pull=pull), "flow")
        moved.append(relative_error(result, clean))
    assert moved[0] > moved[1] > moved[2]


@pytest.mark.parametrize(
    ("edit", "level", "calls"),
    [
        (InfEdit(), 12, (12, 12)),
        (InfEdit(eta=0.0), 5, (5, 5)),
        (FlowEdit(), 12, (12, 12)),
        (FlowEdit(n_avg=4), 6, (24, 24)),
        (FlowEdit(n_avg=2, n_min=4), 10, (12, 16)),
    ],
)
def test_evaluations(edit, level, calls):
    reports = []
    clean, result, source, target = edited(edit, "flow", level=level, on_step=reports.append)
    assert (source.evaluations, target.evaluations) == calls == edit.evaluations(level)
    assert [report.index for report in reports] == list(range(level))
    assert {report.total for report in reports} == {level}
    grid = full_grid("flow", 20)
    assert [report.sigma for report in reports] == grid[level:0:-1] and reports[-1].sigma_next == 0.0
    assert all(report.denoised.shape == clean.shape for report in reports)
    assert torch.equal(reports[-1].x, result)


@pytest.mark.parametrize("edit", [InfEdit(0.5), FlowEdit(n_avg=2, n_min=2)], ids=lambda edit: edit.name)
def test_the_same_seed_gives_the_same_bits_and_another_others(edit):
    state = torch.get_rng_state()
    first, again, other = (edited(edit, "flow", seed=seed)[1] for seed in (4, 4, 5))
    assert torch.equal(first, again) and relative_error(other, first) > 1e-3
    # The global generator is not touched, and does not matter.
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(edited(edit, "flow", seed=4)[1], first)
    torch.set_rng_state(state)


@pytest.mark.parametrize("edit", [InfEdit(0.5), FlowEdit(n_avg=2, n_min=2)], ids=lambda edit: edit.name)
def test_a_row_does_not_depend_on_its_batch(edit):
    mixture = Mixture("ve")
    clean, grid = mixture.sample(3), full_grid("ve", 10)

    def run(chosen, **changes):
        return edit.edit(mixture.denoiser(), mixture.denoiser("target"), clean[chosen], grid, 8, **changes)

    together = run([0, 1, 2], seed=7)
    for row in range(3):
        alone = run([row], seed=7, rows=[row])
        assert relative_error(alone, together[row : row + 1]) < 1e-12
        assert torch.equal(alone, run([row], seed=7 + row))
    # Equal pictures in one batch get noise of their own.
    same = edit.edit(mixture.denoiser(), mixture.denoiser("target"), clean[[0, 0]], grid, 8)
    assert relative_error(same[:1], same[1:]) > 1e-3


def test_noise_is_one_for_all_precisions_and_seeds_wrap():
    like = torch.zeros(2, 3, 4, 5)
    single, double = Noises(3, like).draw(), Noises(3, like.double()).draw()
    assert single.dtype == torch.float32 and torch.equal(single, double.float())
    assert not torch.equal(double, single.double())
    top = Noises(2**64 - 1, like).draw()
    assert torch.equal(top[1], Noises(0, like[:1]).draw()[0])
    assert abs(float(Noises(0, torch.zeros(1, 4, 64, 64)).draw().std()) - 1.0) < 0.02


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("edit", [InfEdit(), InfEdit(0.0), FlowEdit(), FlowEdit(n_min=4)], ids=str)
def test_outside_a_mask_nothing_changes(edit, space):
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 3:] = 1.0
    mask[..., 2] = 0.5
    seen = []
    clean, result, *_ = edited(edit, space, mask=mask, on_step=lambda report: seen.append(report.x))
    assert torch.equal(result[..., :2], clean[..., :2])
    assert bool((result[..., 2:] != clean[..., 2:]).all())
    paired = seen[: 14 - getattr(edit, "n_min", 0)]
    assert all(torch.equal(x[..., :2], clean[..., :2]) for x in paired)
    whole = edited(edit, space)[1]
    assert torch.equal(edited(edit, space, mask=torch.ones(1, 1, 1, 1).expand(1, 1, 3, 5))[1], whole)
    assert torch.equal(edited(edit, space, mask=torch.zeros(1, 1, 3, 5))[1], clean)


def test_the_sampled_end_keeps_the_source_at_every_level():
    """Outside the mask the states of the last n_min levels are one source, re-noised with one noise."""
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., 3:] = 1.0
    seen = []
    clean, *_ = edited(FlowEdit(n_min=4), "flow", level=6, mask=mask, on_step=seen.append)
    noises = Noises(0, clean)
    for _ in range(2):
        noises.draw()
    noise = noises.draw()
    for report in seen[2:]:
        wanted = mix(clean, noise, report.sigma_next, "flow")
        assert torch.equal(report.x[..., :3], wanted[..., :3])


@pytest.mark.parametrize("edit", [InfEdit(), FlowEdit(n_min=2)], ids=lambda edit: edit.name)
def test_clips_pure_noise_and_float32(edit):
    for space in SPACES:
        clean, result, *_ = edited(edit, space, shape=CLIP_SHAPE, level=20)
        assert result.shape == clean.shape and bool(result.isfinite().all())
        mixture = Mixture(space)
        single = mixture.sample(1).float()
        denoisers = mixture.denoiser(), mixture.denoiser("target")
        out = edit.edit(*denoisers, single, full_grid(space, 10), 10)
        assert out.dtype == torch.float32
        wide = edit.edit(*denoisers, single.double(), full_grid(space, 10), 10)
        assert relative_error(out, wide) < 1e-3


def test_the_latent_is_left_alone():
    mixture = Mixture("flow")
    clean = mixture.sample(1)
    kept = clean.clone()
    for edit in EDITS.values():
        edit.edit(mixture.denoiser(), mixture.denoiser("target"), clean, full_grid("flow", 6), 5)
        assert torch.equal(clean, kept)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: InfEdit(eta=1.5), "eta must lie between 0 and 1, got 1.5"),
        (lambda: InfEdit(eta=-0.5), "eta must lie between 0 and 1, got -0.5"),
        (lambda: InfEdit(eta=float("nan")), "eta must lie between 0 and 1, got nan"),
        (lambda: FlowEdit(n_avg=0), "n_avg must be at least 1, got 0"),
        (lambda: FlowEdit(n_min=-1), "n_min must not be negative, got -1"),
        (lambda: FlowEdit(pull=2.0), "pull must lie between 0 and 1, got 2"),
        (lambda: edited(FlowEdit(n_min=5), "flow", level=5), "n_min must be below n_max 5, got 5"),
        (lambda: edited(InfEdit(), "flow", level=21), "index must lie between 1 and the number of steps 20, got 21"),
        (lambda: edited(InfEdit(), "flow", rows=[0]), "rows must number the 2 pictures of the latent, got 1 numbers"),
        (lambda: edited(InfEdit(), "ve", mask=torch.ones(1, 1, 2, 2)), "mask must fit the latent (2, 4, 3, 5)"),
        (lambda: edited(InfEdit(), "ve", mask=2 * torch.ones(1, 1, 3, 5)), "mask must lie between 0 and 1"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError) as caught:
        call()
    assert sentence in str(caught.value) and str(caught.value).endswith(".")


def test_misfit_of_models_and_grids():
    ve, flow = Mixture("ve"), Mixture("flow")
    clean = ve.sample(1)
    with pytest.raises(ValueError, match="source and target must be of one space, got 've' and 'flow'"):
        InfEdit().edit(ve.denoiser(), flow.denoiser(), clean, full_grid("ve", 4), 4)
    with pytest.raises(ValueError, match="sigmas must start at 0"):
        FlowEdit().edit(ve.denoiser(), ve.denoiser(), clean, full_grid("ve", 4)[1:], 2)
    # A listener may stop an edit.
    with pytest.raises(KeyboardInterrupt):

        def stop(report):
            raise KeyboardInterrupt

        InfEdit().edit(ve.denoiser(), ve.denoiser(), clean, full_grid("ve", 4), 4, on_step=stop)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("edit", [InfEdit(), InfEdit(eta=0.4), FlowEdit(n_avg=2), FlowEdit(n_min=3)], ids=repr)
def test_both_models_in_one_call_are_both_models(edit, space):
    """A coupled call sees the states of both, source first; where it does not couple them nothing changes."""
    clean, wanted, source, target = edited(edit, space)
    seen = []

    def denoise(x, sigma):
        seen.append(x.shape[0])
        first, second = x.chunk(2)
        return torch.cat([source(first, sigma), target(second, sigma)])

    both = Denoiser(denoise, space, source.sigma_floor)
    _, found, *_ = edited(edit, space, both=both)
    assert relative_error(found, wanted) < 1e-14
    assert set(seen) == {2 * clean.shape[0]}

    def coupled(x, sigma):
        first, second = denoise(x, sigma).chunk(2)
        return torch.cat([first, first + 0.5 * (second - first)])

    _, other, *_ = edited(edit, space, both=Denoiser(coupled, space, source.sigma_floor))
    assert relative_error(other, wanted) > 1e-3
