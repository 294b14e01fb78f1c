"""Masks on sites: every grid of a network, odd sizes, clips, batches, and masks that become known later."""

import pytest
import torch

from retrace.attention import Call, Executor, Mask, Step, complement, protected, to_grid, token_weights
from retrace_tests.attention.forms import EVERY, SWAP, rule, run
from retrace_tests.attention.problems import attend, joint_site, pair, self_site, tensors

# Latent sizes, and the grids that networks make of them: strides of 2 that round up, patches of 2 that pad.
GRIDS = [((8, 8), (8, 8)), ((9, 7), (5, 4)), ((9, 7), (3, 2)), ((9, 7), (2, 1)), ((12, 20), (6, 10)), ((15, 9), (4, 3))]


@pytest.mark.parametrize("site", [self_site(), joint_site(), joint_site(text_first=False)], ids=["self", "txt", "img"])
@pytest.mark.parametrize("name", ["keys and values", "keys and values of all", "structure", "blended outputs"])
def test_mask_of_zeros_is_the_identity_and_of_ones_no_mask_for_each_picture(name, site):
    (form,) = EVERY[name]
    about = {"group": form.group, "blend": form.blend}
    call, rows = tensors(site, rows=4), pair(items=2)
    mask = Mask(torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]))
    out = run([rule(*form.terms, mask=mask, **about)], site, *call, rows)
    assert torch.equal(out[:3], attend(*call)[:3]) and not torch.equal(out[3], attend(*call)[3])
    assert torch.equal(out[3], run([rule(*form.terms, **about)], site, *call, rows)[3])


@pytest.mark.parametrize(("latent", "grid"), GRIDS)
def test_tokens_cover_the_cells_that_strides_give_them(latent, grid):
    side = next(side for side in (1, 2, 4, 8) if [-(-size // side) for size in latent] == list(grid))
    cells = torch.rand(2, *latent, generator=torch.Generator().manual_seed(0))
    mean, most = to_grid(cells, (1, *grid)), to_grid(cells, (1, *grid), protect=True)
    assert mean.shape == (2, 1, *grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            block = cells[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            torch.testing.assert_close(mean[:, 0, row, column], block.mean((1, 2)))
            assert torch.equal(most[:, 0, row, column], block.amax((1, 2)))
    # The complement of a protected mask never touches it.
    weights = protected(Mask(cells)).on((1, *grid))
    assert torch.equal(weights, most.flatten(1))
    assert torch.equal(complement(protected(Mask(cells))).on((1, *grid)), 1.0 - weights)


def test_clips():
    cells = torch.rand(1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    clip = to_grid(cells, (3, 4, 3))
    for frame in range(3):
        assert torch.equal(clip[:, frame : frame + 1], to_grid(cells[:, frame], (1, 4, 3)))
    assert torch.equal(to_grid(cells[:, 0], (3, 4, 3)), to_grid(cells[:, 0], (1, 4, 3)).expand(1, 3, 4, 3))
    # Tokens of two frames each, the last one alone.
    assert torch.equal(to_grid(cells, (2, 8, 6))[0], torch.stack([cells[0, :2].mean(0), cells[0, 2]]))
    assert torch.equal(to_grid(cells[:, :2], (1, 8, 6), protect=True)[0, 0], cells[0, :2].amax(0))


class Later:
    """A mask source that knows its mask from step 2 on."""

    def __init__(self, weights):
        self.weights = weights

    def at(self, step, maps):
        return Mask(self.weights * maps["heat"]) if step.index >= 2 else None


def test_a_rule_rests_until_its_mask_is_known():
    site = self_site()
    call = tensors(site)
    weights = torch.linspace(0, 1, 16).reshape(1, 4, 4)
    for change in (lambda mask: mask, complement, protected, lambda mask: complement(complement(mask))):
        executor = Executor([rule(SWAP, mask=change(Later(weights)))], maps={"heat": 0.5})
        early, late = (executor.run(site, pair(), Step(i, 10, 1.0), Call(*call, attend)) for i in (1, 2))
        assert torch.equal(early, attend(*call))
        assert torch.equal(late, run([rule(SWAP, mask=change(Mask(weights * 0.5)))], site, *call))


def test_refusals():
    for sentence, refused in (
        ("mask must lie between 0 and 1", lambda: Mask(torch.full((1, 4, 4), float("nan")))),
        ("mask must have the axes", lambda: Mask(torch.ones(4, 4))),
        ("on the latent grid, got 2 x 2 cells for 4 x 4 tokens", lambda: to_grid(torch.ones(1, 2, 2), (1, 4, 4))),
        ("mask must have 1 or 3 frames, got 2", lambda: to_grid(torch.ones(1, 2, 4, 4), (3, 4, 4))),
        ("got 2 for picture 2; give one mask each", lambda: token_weights(Mask(torch.ones(2, 4, 4)), (1, 4, 4), 2)),
    ):
        with pytest.raises(ValueError, match=sentence):
            refused()
