"""The one fitting loop: rows for themselves, the best of each, early stops, and torch's own Adam in it."""

import pytest
import torch

from retrace.core.adam import Adam
from retrace.core.fitting import Attempt, fit

# Minima of the rows, and how steep they are.
GOALS, STEEP = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 0.0]]).double(), torch.tensor([1.0, 0.2, 3.0]).double()


def attempt(value, number, wanted):
    """Quadratic bowls; what belongs to a value is its number."""
    leaf = value.detach().requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        rows = STEEP[: len(leaf)] * (leaf - GOALS[: len(leaf)]).square().sum(1)
        gradient = torch.autograd.grad(rows.sum(), leaf)[0] if wanted else None
    return Attempt(rows.detach(), (torch.full((len(leaf), 1), float(number)),), gradient)


def start(rows=3):
    return torch.full((rows, 2), 5.0).double()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_updates_are_those_of_torch(decay):
    values = []
    fitted = fit(start(), attempt, Adam(0.3, decay).step, 6, tell=lambda number, tried, _: values.append(tried.score))
    leaf = start().requires_grad_(True)
    adam = torch.optim.AdamW([leaf], lr=0.3, weight_decay=decay)
    for score in values:
        rows = STEEP * (leaf - GOALS).square().sum(1)
        torch.testing.assert_close(score, rows.detach(), rtol=1e-9, atol=1e-12)
        adam.zero_grad()
        rows.sum().backward()
        adam.step()
    assert fitted.updates == 6 == len(values) - 1 and torch.equal(fitted.first, values[0])
    assert torch.equal(fitted.score, torch.stack(values).min(0).values)


@pytest.mark.parametrize("rate", [0.3, 9.0])
def test_every_row_keeps_its_best(rate):
    """Under a rate at which Adam overshoots too: with it the parts that belong to it, and the listener is shown it."""
    seen = []
    fitted = fit(start(), attempt, Adam(rate).step, 8, tell=lambda *told: seen.append(told))
    scores = torch.stack([tried.score for _, tried, _ in seen])
    assert torch.equal(fitted.score, scores.min(0).values) and [number for number, *_ in seen] == list(range(9))
    assert fitted.parts[0][:, 0].tolist() == scores.argmin(0).tolist()
    torch.testing.assert_close(attempt(fitted.value, 0, False).score, fitted.score)
    for number, _, best in seen:
        assert torch.equal(best.score, scores[: number + 1].min(0).values)


def test_a_row_that_has_met_its_threshold_makes_one_last_update():
    asked = []

    def counted(value, number, wanted):
        asked.append((value.clone(), wanted))
        return attempt(value, number, wanted)

    first = attempt(start(), 0, False).score
    stop = float(first.sort().values[0]) + 1e-9
    fitted = fit(start(), counted, Adam(0.3).step, 5, stop)
    done = int(first.argmin())
    moves = [(b - a).abs().sum(1) > 0.0 for (a, _), (b, _) in zip(asked, asked[1:])]
    assert [bool(move[done]) for move in moves] == [True, False, False, False, False]
    assert all(bool(move[row]) for move in moves for row in range(3) if row != done)
    # Where all have met it the loop ends; the last attempt wants no gradient.
    asked.clear()
    assert fit(start(), counted, Adam(0.3).step, 5, 1e9).updates == 1 and [w for _, w in asked] == [True, False]
    assert fit(start(), counted, Adam(0.3).step, 0, 1e9).updates == 0 and fitted.updates == 5


def test_rows_do_not_meet_and_modes_do_not_matter():
    stop = 20.0
    together = fit(start(), attempt, Adam(0.3).step, 9, stop)
    for rows in (1, 2):
        torch.testing.assert_close(fit(start(rows), attempt, Adam(0.3).step, 9, stop).value, together.value[:rows])
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            found = fit(start(), attempt, Adam(0.3).step, 9, stop)
        assert torch.equal(found.value, together.value)
        assert not found.value.requires_grad and not found.value.is_inference()


def test_what_has_no_score_keeps_the_last():
    """As a fit whose loss is another one in every step; what a listener or an attempt raises ends it."""

    def scoreless(value, number, wanted):
        return Attempt(torch.full((len(value),), float(-number)), (), 2.0 * value if wanted else None)

    assert torch.equal(fit(start(), scoreless, lambda value, gradient: value - gradient, 3).value, -start())

    def interrupted(*told):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(start(), attempt, Adam(0.3).step, 3, tell=interrupted)
