"""An inversion is whole or not at all, and knows where its source was."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from retrace.inversion import Denoiser, Inversion, drawn, invert, load, mix, moved, replay, save, with_noise

SIGMAS = {"ve": (0.0, 0.5, 1.5, 4.0, 9.0), "flow": (0.0, 0.2, 0.5, 0.8, 1.0)}
BOTH_SPACES = pytest.mark.parametrize("space", ["ve", "flow"])


def latent(value=0.0, *shape):
    return torch.full(shape or (1, 2, 3, 5), value, dtype=torch.float64)


GOOD = Inversion("ve", (0.0, 1.0, 2.0), 2, latent(), latent(1.0), method="euler")


def pulling(space, seed=0):
    """A model that pulls every state to a picture of its own."""
    picture = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Denoiser(lambda x, sigma: picture.expand_as(x) + 0.1 * x / (1.0 + sigma), space)


def made(space="ve", method="euler", index=4, keep_path=True, batch=2):
    x0 = torch.randn(batch, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return invert(pulling(space), x0, SIGMAS[space], index, method, keep_path)


def test_reads_itself_and_shares_nothing():
    assert (GOOD.steps, GOOD.sigma, GOOD.climb, GOOD.falling) == (2, 2.0, (0.0, 1.0, 2.0), (2.0, 1.0, 0.0))
    params = {"p": 0.93}
    part = replace(GOOD, index=1, params=params, sigmas=[0.0, 1.0, 2.0])
    params["p"] = 0.5
    assert (part.steps, part.sigma, part.falling, part.shape) == (2, 1.0, (1.0, 0.0), (1, 2, 3, 5))
    assert part.params == {"p": 0.93} and part.sigmas == (0.0, 1.0, 2.0) and part.dtype == torch.float64
    with pytest.raises(FrozenInstanceError):
        GOOD.index = 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"space": "eps"}, "space must be 've' or 'flow', got 'eps'"),
        ({"sigmas": (2.0, 1.0, 0.0)}, r"sigmas must strictly rise .*got \[2, 1, 0\]; flip a falling grid"),
        ({"index": 3}, "index must lie between 1 and the number of steps 2, got 3"),
        ({"x0": latent(float("nan"))}, "x0 must be finite, got inf or nan"),
        ({"x0": latent(0.0, 2, 3)}, r"x0 must be a latent of shape .*got \(2, 3\)"),
        ({"x": latent(1.0, 1, 2, 5, 3)}, r"x must have the shape \(1, 2, 3, 5\)"),
        ({"x": latent().float()}, "x must have the shape .*got .*torch.float32"),
        ({"x": latent().half()}, "x must be float32 or float64 on the CPU, got torch.float16"),
        ({"x": latent(float("nan"))}, "x must be finite, got inf or nan; use more steps"),
        ({"x": [1.0]}, "x must be a tensor, got list"),
        ({"mate": latent(0.0, 1, 2, 3, 4)}, "mate must have the shape"),
        ({"path": (latent(),)}, "path must hold 3 latents for index 2, got 1"),
        ({"path": (latent(), latent(), latent(0.0, 1, 2, 3, 4))}, "path must have the shape"),
        ({"residuals": (latent(),)}, "residuals must hold 2 latents for index 2, got 1"),
        ({"embeddings": (torch.zeros(3, dtype=torch.int64),)}, "embeddings must be float32 or float64"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"method": 3}, "method must be a name, got 3"),
        ({"params": {"p": [1]}}, "params must map names to plain texts and finite numbers, got 'p'"),
        ({"params": {"p": float("nan")}}, "params must map names to plain texts and finite numbers"),
        ({"fingerprints": {"model": 3}}, "fingerprints must map names to plain texts"),
        ({"meta": [1]}, "meta must map names to values, got list"),
    ],
)
def test_refuses_parts_that_do_not_fit(change, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence) as caught:
        replace(GOOD, **change)
    assert "\n" not in str(caught.value)


@BOTH_SPACES
def test_its_states_are_its_path_and_euler_steps_between(space):
    inversion, denoiser = made(space), pulling(space)
    for index, sigma in enumerate(inversion.climb):
        assert torch.equal(inversion.state_at(sigma), inversion.path[index])
    assert torch.equal(inversion.state_at(0.0), inversion.x0) and torch.equal(inversion.state_at(99.0), inversion.x)
    for low, high in zip(inversion.climb, inversion.climb[1:]):
        below = inversion.state_at(low)
        for share in (0.1, 0.5, 0.9):
            sigma = low + share * (high - low)
            wanted = below + (sigma - low) * denoiser.derivative(below, low)
            assert torch.allclose(inversion.state_at(sigma), wanted, rtol=0.0, atol=1e-12)


@BOTH_SPACES
def test_without_a_path_they_are_the_straight_mixture(space):
    noise = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bare = made(space, index=3, keep_path=False)
    inversion = replace(bare, x=mix(bare.x0, noise, bare.sigma, space))
    for sigma in (0.1, 0.4, bare.sigma):
        wanted = mix(inversion.x0, noise, sigma, space)
        assert torch.allclose(inversion.state_at(sigma), wanted, rtol=0.0, atol=1e-12)
    # From a grid that starts above 0, x0 stands at its first sigma.
    above = replace(inversion, sigmas=(0.05, 0.05 + 1e-9, *inversion.sigmas[2:]))
    assert torch.equal(above.state_at(0.05), above.x0)
    torch.testing.assert_close(above.state_at(above.sigmas[1]), above.x0, rtol=0, atol=1e-6)


def test_a_moved_noise_is_no_state_of_the_source(tmp_path):
    """The path tells where the source was; without one nothing does. A file remembers that it was moved."""
    inversion = made()
    shifted = with_noise(inversion, inversion.x + 1.0)
    save(shifted, tmp_path / "moved.safetensors")
    for each in (shifted, load(tmp_path / "moved.safetensors")):
        assert torch.equal(each.x, inversion.x + 1.0)
        for sigma in (0.0, 0.2, 0.5, 3.0, 8.9, inversion.sigma, 99.0):
            assert torch.equal(each.state_at(sigma), inversion.state_at(sigma)), sigma
    bare = with_noise(made(keep_path=False), inversion.x + 1.0)
    assert torch.equal(bare.state_at(0.0), bare.x0)
    for call in (lambda: bare.state_at(0.2), lambda: bare.state_at(9.0), bare.doubled):
        with pytest.raises(ValueError, match="inversion must hold its path to tell where its source was before its"):
            call()


@pytest.mark.parametrize("method", ["euler", "midpoint", "edict", "bdia", "noise_map"])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_doubled_it_is_two_walks_side_by_side(method, shift):
    """The first half is the source, from where it was; the second starts at x, wherever that was moved to."""
    inversion, source, target = made("ve", method), pulling("ve"), pulling("ve", seed=5)
    start = with_noise(inversion, inversion.x + shift) if shift else inversion

    def both(x, sigma):
        first, second = x.chunk(2)
        return torch.cat([source(first, sigma), target(second, sigma)])

    back, edit = replay(start.doubled(), Denoiser(both, "ve"), Denoiser(both, "ve")).chunk(2)
    assert torch.equal(back, replay(inversion, source)) and torch.equal(edit, replay(start, source, target))
    assert not torch.equal(back, edit)


def test_map_reaches_every_latent_and_nothing_else():
    inversion = replace(made("ve", "noise_map"), mate=latent(1.0, 2, 2, 3, 4), embeddings=(torch.zeros(1, 3),))
    twice = inversion.map(lambda each: 2.0 * each)
    for name in ("x0", "x", "mate"):
        assert torch.equal(getattr(twice, name), 2.0 * getattr(inversion, name))
    for name in ("path", "residuals"):
        pairs = zip(getattr(twice, name), getattr(inversion, name), strict=True)
        assert all(torch.equal(ours, 2.0 * theirs) for ours, theirs in pairs)
    assert torch.equal(twice.embeddings[0], inversion.embeddings[0]) and twice.meta == inversion.meta
    bare = made(keep_path=False)
    assert bare.map(torch.neg).path is None and bare.map(torch.neg).mate is None


def test_precision_rows_and_marks():
    inversion = made(batch=3)
    assert inversion.to_precision(torch.float64) is inversion
    single = inversion.to_precision(torch.float32)
    assert single.dtype == torch.float32 == single.path[2].dtype
    assert single.to_precision(torch.float64) is single is single.to_precision(torch.float32)
    part = inversion.of_rows([2, 0, 2, 1])
    for ours, theirs in ((part.x0, inversion.x0), (part.x, inversion.x), (part.path[3], inversion.path[3])):
        assert torch.equal(ours, theirs[[2, 0, 2, 1]])
    marked = inversion.marked({"model": "m"}, {"pack": "1", "seconds": 0.0})
    assert marked.fingerprints == {**inversion.fingerprints, "model": "m"}
    assert marked.meta == {**inversion.meta, "pack": "1", "seconds": 0.0}


def test_draws_depend_on_the_picture_alone():
    numbers = drawn(4, 50, 7, [0, 1, 5])
    assert len(numbers) == 50 and {number for row in numbers for number in row} == {0, 1, 2, 3}
    assert numbers == drawn(4, 50, 7, [0, 1, 5]) != drawn(4, 50, 8, [0, 1, 5])
    # The picture of number r draws from seed + r.
    assert [row[2] for row in numbers] == [row[0] for row in drawn(4, 50, 12, [0])] != [row[1] for row in numbers]
    # More passes do not change those before.
    assert drawn(4, 60, 7, [0, 1, 5])[:50] == numbers and set(drawn(1, 5, 0, [0, 1])) == {(0, 0)}


def test_alpha_weights_the_start():
    inversion = made()
    before = torch.zeros_like(inversion.x)
    assert moved(inversion, None, 0.3) is inversion and moved(inversion, before, 1.0) is inversion
    assert torch.equal(moved(inversion, before, 0.0).x, before)
    part = moved(inversion, before, 0.25)
    assert torch.allclose(part.x, 0.25 * inversion.x) and part.path is None and torch.equal(part.x0, inversion.x0)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got 2"):
        moved(inversion, before, 2.0)
