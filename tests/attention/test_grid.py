"""Masks on sites: every grid of a network, odd sizes, clips, and what a mask does to an output."""

import pytest
import torch

from retrace.attention import Call, Executor, Mask, Rule, Take, Term, complement, protected, to_grid, token_weights
from retrace_tests.attention.problems import STEP, attend, joint_site, pair, self_site, tensors

RULES = {
    "mutual": {"terms": (Term(k=Take(), v=Take()),)},
    "values": {"terms": (Term(v=Take()),), "group": "all"},
    "structure": {"terms": (Term(q=Take(), k=Take()),)},
    "blended": {"terms": (Term(q=Take(), k=Take()),), "blend": "output"},
}


def run(site, q, k, v, rows=None, **about):
    return Executor([Rule("a", **about)]).run(site, rows or pair(), STEP, Call(q, k, v, attend))


@pytest.mark.parametrize("site", [self_site(), joint_site(), joint_site(text_first=False)], ids=["self", "txt", "img"])
@pytest.mark.parametrize("name", RULES)
def test_mask_of_zeros_is_the_identity_and_of_ones_no_mask(name, site):
    q, k, v = tensors(site)
    unmasked = run(site, q, k, v, **RULES[name])
    assert torch.equal(run(site, q, k, v, mask=Mask(torch.zeros(1, 4, 4)), **RULES[name]), attend(q, k, v))
    assert torch.equal(run(site, q, k, v, mask=Mask(torch.ones(1, 4, 4)), **RULES[name]), unmasked)
    assert not torch.equal(unmasked, attend(q, k, v))


def test_a_mask_changes_keys_inside_it_only():
    site, asked = joint_site(text=5), []
    q, k, v = tensors(site)
    weights = torch.zeros(1, 4, 4)
    weights[0, 1, 2] = 1.0
    weights[0, 3, 3] = 0.5

    def watched(*call):
        asked.append(call)
        return attend(*call)

    rule = Rule("a", (Term(k=Take(), v=Take()),), mask=Mask(weights))
    Executor([rule]).run(site, pair(), STEP, Call(q, k, v, watched))
    changed = (asked[0][1] != k).any(dim=(1, 3))
    assert not changed[0].any() and changed[1].nonzero().flatten().tolist() == [5 + 6, 5 + 15]
    assert torch.equal(asked[0][1][1, :, 11], k[0, :, 11])
    torch.testing.assert_close(asked[0][1][1, :, 20], (k[0, :, 20] + k[1, :, 20]) / 2)


def test_each_picture_of_a_batch_has_its_own_mask():
    site = self_site()
    q, k, v = tensors(site, rows=4)
    masks = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    about = RULES["mutual"]
    out = run(site, q, k, v, rows=pair(items=2), mask=Mask(masks), **about)
    whole = run(site, q, k, v, rows=pair(items=2), **about)
    assert torch.equal(out[2], attend(q, k, v)[2]) and torch.equal(out[3], whole[3])
    with pytest.raises(ValueError, match="mask must have 1 item or one a picture, got 2 for picture 2"):
        token_weights(Mask(masks), site.grid, 2)


# Latent sizes, and the grids that networks make of them: strides of 2 that round up, patches of 2 that pad.
GRIDS = [((8, 8), (8, 8)), ((9, 7), (5, 4)), ((9, 7), (3, 2)), ((9, 7), (2, 1)), ((12, 20), (6, 10)), ((15, 9), (4, 3))]


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


@pytest.mark.parametrize(("latent", "grid"), GRIDS)
def test_a_protected_mask_covers_every_cell(latent, grid):
    """A single cell is never lost, and the complement of a protected mask never touches it."""
    for place in range(latent[0] * latent[1]):
        cells = torch.zeros(1, *latent)
        cells.view(-1)[place] = 1.0
        weights = protected(Mask(cells)).on((1, *grid))
        assert weights.sum() == 1.0
        assert torch.equal(complement(protected(Mask(cells))).on((1, *grid)), 1.0 - weights)
    assert Mask(torch.ones(1, *latent)).on((1, *grid)).eq(1.0).all()


def test_clips():
    cells = torch.rand(1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    found = to_grid(cells, (3, 4, 3))
    for frame in range(3):
        assert torch.equal(found[:, frame : frame + 1], to_grid(cells[:, frame], (1, 4, 3)))
    assert torch.equal(to_grid(cells[:, 0], (3, 4, 3)), to_grid(cells[:, 0], (1, 4, 3)).expand(1, 3, 4, 3))
    # Tokens of two frames each.
    assert torch.equal(to_grid(cells[:, :2], (1, 8, 6))[0, 0], cells[0, :2].mean(0))
    assert torch.equal(to_grid(cells[:, :2], (1, 8, 6), protect=True)[0, 0], cells[0, :2].amax(0))


class Later:
    """A mask source that knows its mask from step 2 on."""

    def __init__(self, weights):
        self.weights = weights

    def at(self, step, maps):
        return Mask(self.weights * maps["heat"]) if step.index >= 2 else None


def test_a_rule_rests_until_its_mask_is_known():
    from retrace.attention import Step

    site = self_site()
    q, k, v = tensors(site)
    weights = torch.linspace(0, 1, 16).reshape(1, 4, 4)
    for change in (lambda mask: mask, complement, protected, lambda mask: complement(complement(mask))):
        rule = Rule("a", (Term(k=Take(), v=Take()),), mask=change(Later(weights)))
        executor = Executor([rule], maps={"heat": 0.5})
        early = executor.run(site, pair(), Step(1, 10, 1.0), Call(q, k, v, attend))
        late = executor.run(site, pair(), Step(2, 10, 1.0), Call(q, k, v, attend))
        assert torch.equal(early, attend(q, k, v))
        assert torch.equal(late, run(site, q, k, v, terms=rule.terms, mask=change(Mask(weights * 0.5))))


def test_refusals():
    with pytest.raises(ValueError, match="mask must lie between 0 and 1"):
        Mask(torch.full((1, 4, 4), float("nan")))
    with pytest.raises(ValueError, match="mask must have the axes"):
        Mask(torch.ones(4, 4))
    with pytest.raises(ValueError, match="mask must be on the latent grid, got 2 x 2 cells for 4 x 4 tokens"):
        to_grid(torch.ones(1, 2, 2), (1, 4, 4))
    with pytest.raises(ValueError, match="mask must have 1 or 3 frames, got 2"):
        to_grid(torch.ones(1, 2, 4, 4), (3, 4, 4))
