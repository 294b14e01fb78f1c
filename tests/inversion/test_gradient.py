"""Gradients through a whole walk against autograd on the walk in one piece, and the memory that they take."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retrace.core.steps import DDIMPredictor, Euler, FireFlow, Midpoint
from retrace.inversion import METHODS, Denoiser, SingleState, get_method, walk, walk_gradient
from retrace_tests.inversion.problems import WIDTH, Mixture, full_grid

STEPPERS = {"euler": Euler, "midpoint": Midpoint, "fireflow": FireFlow, "ddim_predictor": DDIMPredictor}
DOWN = sorted(name for name, method in METHODS.items() if issubclass(method, SingleState))


class Conditioned:
    """The mixture under two exchangeable prompts and a guidance, as a function of their embeddings."""

    def __init__(self, space, cfg=3.0):
        self.mixture, self.cfg = Mixture(space), cfg
        self.prompt, self.null = (self.mixture.embeddings[name].requires_grad_(True) for name in ("source", "null"))

    def denoiser(self):
        return self.mixture.denoiser(cfg=self.cfg)

    def start(self, grid):
        noise = self.mixture.noise(2)
        return self.mixture.sample(2) + 0.1 * noise if grid[0] == 0.0 else grid[0] * noise


class Tiny(torch.nn.Module):
    """A network of two convolutions and a condition, in double precision."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.enter = torch.nn.Conv2d(4, 8, 3, padding=1, dtype=torch.float64)
            self.tell = torch.nn.Linear(WIDTH, 8, dtype=torch.float64)
            self.leave = torch.nn.Conv2d(8, 4, 3, padding=1, dtype=torch.float64)

    def forward(self, x, sigma, prompt):
        hidden = self.enter(x / (1.0 + sigma**2) ** 0.5) + self.tell(prompt)[:, None, None]
        return self.leave(torch.nn.functional.silu(hidden))


def some_loss(x):
    """No sum over entries: each has a weight of its own, and rows and entries meet."""
    weights = torch.linspace(-1.0, 2.0, x.numel(), dtype=x.dtype).reshape(x.shape)
    return (weights * x).sum().square() + (weights * x.pow(3)).mean()


def plainly(denoiser, x, sigmas, stepper, loss, inputs):
    """The loss, and autograd through the walk in one piece."""
    leaf = x.clone().requires_grad_(True)
    end = walk(denoiser, leaf, sigmas, stepper)
    value = loss(end)
    return value.item(), end.detach(), torch.autograd.grad(value, [leaf, *inputs], allow_unused=True)


def agrees(ours, theirs, bound=1e-13):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert float((ours - theirs).norm() / theirs.norm()) < bound, float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("name", STEPPERS)
@pytest.mark.parametrize("rising", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("steps", [1, 2, 15])
def test_equals_autograd_on_the_mixture(space, name, rising, steps):
    problem = Conditioned(space)
    grid = full_grid(space, steps)
    sigmas = grid if rising else grid[::-1]
    x, inputs = problem.start(sigmas), (problem.prompt, problem.null)
    value, end, wanted = plainly(problem.denoiser(), x, sigmas, STEPPERS[name](), some_loss, inputs)
    found = walk_gradient(problem.denoiser(), x, sigmas, STEPPERS[name], some_loss, inputs)
    assert found.loss == pytest.approx(value, rel=1e-13) and torch.equal(found.end, end)
    for ours, theirs in zip((found.start, *found.inputs), wanted, strict=True):
        agrees(ours, theirs)


def test_a_loss_may_use_the_inputs_itself_and_an_input_may_act_on_nothing():
    problem, sigmas = Conditioned("ve"), full_grid("ve", 3)[::-1]
    x, prompt, idle = problem.start(sigmas), problem.prompt, torch.ones(3, requires_grad=True)

    def loss(end):
        return some_loss(end) + prompt.square().sum()

    _, _, wanted = plainly(problem.denoiser(), x, sigmas, Euler(), loss, (prompt,))
    found = walk_gradient(problem.denoiser(), x, sigmas, Euler, loss, (prompt, idle))
    agrees(found.inputs[0], wanted[1])
    assert torch.equal(found.inputs[1], torch.zeros(3)) and prompt.grad is None


@pytest.mark.parametrize("name", DOWN)
def test_equals_autograd_for_every_way_down(name):
    """Every method whose state is one latent: a stepper with a history of another kind would be caught here."""
    problem, method = Conditioned("ve"), get_method(name)
    sigmas = full_grid("ve", 9)[::-1]
    x = problem.start(sigmas)
    _, end, wanted = plainly(problem.denoiser(), x, sigmas, method.down(), some_loss, (problem.prompt,))
    found = walk_gradient(problem.denoiser(), x, sigmas, method.down, some_loss, (problem.prompt,))
    assert torch.equal(found.end, end)
    for ours, theirs in zip((found.start, *found.inputs), wanted, strict=True):
        agrees(ours, theirs)


def test_a_warm_fixed_point_carries_its_derivative():
    problem, method = Conditioned("flow", cfg=1.0), get_method("fixed_point", {"warm_start": True, "memory": 0})
    sigmas = full_grid("flow", 7)
    x = problem.start(sigmas)
    _, _, wanted = plainly(problem.denoiser(), x, sigmas, method.up(), some_loss, ())
    agrees(walk_gradient(problem.denoiser(), x, sigmas, method.up, some_loss).start, wanted[0], 1e-12)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_embeddings_of_the_steps(count):
    """The last embedding serves all further steps, so its gradient is the sum over them."""
    problem, sigmas = Conditioned("ve"), full_grid("ve", 6)[::-1]
    x = problem.start(sigmas)
    stages = [(problem.null.detach() + 0.1 * k).requires_grad_(True) for k in range(count)]

    leaf = x.clone().requires_grad_(True)
    state = leaf
    for index in range(6):
        stage = stages[min(index, count - 1)]
        state = Midpoint()(problem.denoiser().with_embedding(stage), state, sigmas[index], sigmas[index + 1]).x
    wanted = torch.autograd.grad(some_loss(state), [leaf, *stages])
    found = walk_gradient(problem.denoiser(), x, sigmas, Midpoint, some_loss, embeddings=stages)
    assert torch.equal(found.end, state.detach()) and len(found.embeddings) == count
    for ours, theirs in zip((found.start, *found.embeddings), wanted, strict=True):
        agrees(ours, theirs)


class Held(TorchDispatchMode):
    """Counts the storages of a latent's size that are alive, whenever the model is asked."""

    def __init__(self, latent):
        super().__init__()
        self.size, self.made, self.most = latent.numel(), [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, torch.Tensor) and each.numel() == self.size:
                self.made.append(weakref.ref(each))
        return out

    def look(self):
        self.made = [ref for ref in self.made if ref() is not None]
        self.most = max(self.most, len({ref().untyped_storage().data_ptr() for ref in self.made}))


@pytest.mark.parametrize("name", ["euler", "midpoint", "fireflow"])
def test_memory_grows_by_one_latent_a_step(name):
    """Tensors of a latent's size that Python holds, and those that autograd has saved."""
    network, prompt = Tiny(), torch.randn(WIDTH, dtype=torch.float64)
    x = torch.randn(1, 4, 7, 9, dtype=torch.float64)

    def cost(steps, way):
        saved = {"now": 0, "most": 0}

        class Saved:
            def __init__(self, tensor):
                self.tensor = tensor
                saved["now"] += 1
                saved["most"] = max(saved["most"], saved["now"])

            def __del__(self):
                saved["now"] -= 1

        held = Held(x)

        def denoise(state, sigma):
            held.look()
            return network(state, sigma, prompt)

        with held, torch.autograd.graph.saved_tensors_hooks(Saved, lambda kept: kept.tensor):
            way(Denoiser(denoise, "ve"), x, full_grid("ve", steps)[::-1])
        return held.most, saved["most"]

    def ours(denoiser, start, sigmas):
        walk_gradient(denoiser, start, sigmas, STEPPERS[name], some_loss)

    def in_one_piece(denoiser, start, sigmas):
        plainly(denoiser, start, sigmas, STEPPERS[name](), some_loss, ())

    (few, few_saved), (many, many_saved) = cost(10, ours), cost(100, ours)
    # One latent a step for 90 steps more, and the activations of one step at either number.
    assert many - few <= 90 and many_saved == few_saved
    _, plain_few = cost(10, in_one_piece)
    _, plain_many = cost(100, in_one_piece)
    assert plain_many > 8 * plain_few > 8 * few_saved


def test_works_in_any_mode_and_changes_nothing():
    problem, sigmas = Conditioned("flow"), full_grid("flow", 5)[::-1]
    x = problem.start(sigmas)
    before = x.clone()
    denoiser, told = problem.denoiser(), []
    wanted = walk_gradient(denoiser, x, sigmas, FireFlow, some_loss, (problem.prompt,), on_step=told.append)
    # Each call of the walk is made twice; a carried derivative is not asked for again.
    assert denoiser.evaluations == 2 * (5 + 1)
    assert [report.index for report in told] == list(range(5)) and not any(r.x.requires_grad for r in told)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = walk_gradient(problem.denoiser(), x.clone(), sigmas, FireFlow, some_loss, (problem.prompt,))
        assert torch.equal(found.start, wanted.start) and torch.equal(found.inputs[0], wanted.inputs[0])
    for tensor in (found.end, found.start, *found.inputs):
        assert not tensor.requires_grad and not tensor.is_inference()
    assert torch.equal(x, before) and not x.requires_grad and problem.prompt.grad is None


@pytest.mark.parametrize("small", [2.0**-30, 2.0**30], ids=["below", "above"])
def test_a_row_survives_half_precision_beside_one_of_another_size(small):
    """Sent through at one size, the smaller of the two rows would be 0 in float16."""
    problem, sigmas = Conditioned("flow", cfg=1.0), full_grid("flow", 4)[::-1]
    exact, x = problem.denoiser(), problem.start(sigmas)
    denoiser = Denoiser(lambda state, sigma: exact(state, sigma).half(), "flow")

    def gradient(first, second):
        weights = torch.tensor([first, second], dtype=x.dtype).reshape(-1, 1, 1, 1)
        return walk_gradient(denoiser, x, sigmas, Euler, lambda end: (weights * end.pow(3)).sum()).start

    alike, apart = gradient(1.0, 1.0), gradient(1.0, small)
    # A power of two leaves the digits as they are, but for those of entries below the normal numbers of float16.
    agrees(apart[:1], alike[:1], 1e-6)
    agrees(apart[1:] / small, alike[1:], 1e-6)


@pytest.mark.parametrize("name", STEPPERS)
@pytest.mark.parametrize("seen", [0.0, 0.3], ids=["apart", "meeting"])
def test_rows_of_different_size_share_a_prompt(name, seen):
    """And see each other in the network, or not: what they are sent through in belongs together."""
    problem, sigmas = Conditioned("ve"), full_grid("ve", 5)[::-1]
    sigmas = sigmas[::-1] if name == "ddim_predictor" else sigmas
    exact, x = problem.denoiser(), problem.start(sigmas)
    denoiser = Denoiser(lambda state, sigma: exact(state + seen * state.flip(0), sigma), "ve")

    def loss(end):
        return end[0].pow(3).sum() + 1e-5 * end[1].pow(3).sum()

    _, _, wanted = plainly(denoiser, x, sigmas, STEPPERS[name](), loss, (problem.prompt,))
    found = walk_gradient(denoiser, x, sigmas, STEPPERS[name], loss, (problem.prompt,))
    for ours, theirs in zip((*found.start, *found.inputs), (*wanted[0], *wanted[1:]), strict=True):
        agrees(ours, theirs, 1e-12)


def test_the_smallest_gradients_are_gradients():
    """Below the inverse of the largest float, where the power of two that would make them 1 is none."""
    problem, sigmas = Conditioned("ve"), full_grid("ve", 3)[::-1]
    x, losses = problem.start(sigmas), (lambda end: 1e-310 * end.sum(), torch.sum)
    found, wanted = (walk_gradient(problem.denoiser(), x, sigmas, Euler, loss) for loss in losses)
    # Numbers this small have few digits left.
    agrees(found.start * 1e300, wanted.start * 1e-10, 1e-6)


def test_refusals():
    problem, sigmas = Conditioned("ve"), full_grid("ve", 3)[::-1]
    x = problem.start(sigmas)

    def run(denoiser=None, loss=some_loss, inputs=()):
        walk_gradient(problem.denoiser() if denoiser is None else denoiser, x, sigmas, Euler, loss, inputs)

    with pytest.raises(ValueError, match="inputs must require a gradient, got one of shape"):
        run(inputs=(torch.zeros(3),))
    for loss in (lambda end: end, lambda end: end.sum() * torch.nan):
        with pytest.raises(ValueError, match="The loss must be one finite number"):
            run(loss=loss)
    with pytest.raises(ValueError, match="The loss must be computed from the latent"):
        run(loss=lambda end: torch.ones(()))

    @torch.no_grad()
    def deaf(state, sigma):
        return 0.5 * state

    with pytest.raises(ValueError, match="must let gradients reach its state, got an answer without any"):
        run(Denoiser(deaf, "ve"))
    with pytest.raises(ValueError, match="The stepper must let gradients reach its state"):
        walk_gradient(problem.denoiser(), x, sigmas, lambda: torch.no_grad()(Euler()), some_loss)
    with torch.inference_mode():
        weight = torch.full((1,), 0.5)
    with pytest.raises(ValueError, match="must be ordinary tensors to be differentiated, got some that were made in"):
        run(Denoiser(lambda state, sigma: weight * state, "ve"))
    blown = Denoiser(lambda state, sigma: 0.0 * state + (state * 0.0).sqrt(), "ve")
    with pytest.raises(ValueError, match="The gradient must stay finite"):
        run(blown)
