"""Plans and runs."""

from types import SimpleNamespace

import pytest
import torch

from retrace.attention import (
    OWN,
    AttentionPlan,
    AttentionRun,
    Call,
    EvaluationCache,
    FeatureRule,
    Join,
    Layers,
    Probe,
    Rows,
    RunCache,
    Step,
    Take,
    Term,
    Window,
)
from retrace_tests.attention.forms import SWAP
from retrace_tests.attention.forms import rule as form
from retrace_tests.attention.problems import STEP, attend, joint_site, pair, self_site, tensors

FEATURE = FeatureRule("f", "output", 4)


def rule(name="a", *terms, **about):
    return form(*(terms or (SWAP,)), name=name, **about)


def started(*rules, **about):
    return AttentionPlan(rules, **about).start()


def test_plans_add_up_and_the_later_choice_counts():
    one = AttentionPlan((rule(),), text="map", source="free", source_for="both")
    both = one.plus(AttentionPlan((rule("b"),), (FEATURE,), branches=("mutual",)))
    assert [rule.name for rule in both.rules] == ["a", "b"] and len(both.features) == 1
    assert (both.branches, both.text, both.source, both.source_for) == (("mutual",), "map", "free", "each")
    assert one.plus(AttentionPlan()).source_for == "both" and AttentionPlan().plus(one).source_for == "both"
    assert both.start().branches == ("source", "target", "mutual")
    with pytest.raises(ValueError, match="must share one token map"):
        one.plus(AttentionPlan(text="another"))
    probe = AttentionPlan(probes=(Probe("heat", (0,), list),))
    with pytest.raises(ValueError, match="must have names of their own, got 'heat' twice"):
        probe.plus(probe)


@pytest.mark.parametrize("turned", [False, True])
def test_who_reads_from_the_source_is_the_plans_choice_in_chained_plans_too(turned):
    plans = [
        AttentionPlan((rule("words"),), source_for="cond"),
        AttentionPlan((rule("look"),), (FEATURE,)),
        AttentionPlan((rule("official"),), source_for="both"),
    ]
    two = ("cond", "uncond")
    wanted = {"words": (("cond",), "both"), "look": (two, "shared"), "f": (two, "shared"), "official": (two, "both")}
    one, other, last = plans[::-1] if turned else plans
    for plan in (*plans, one.plus(other).plus(last)):
        run = plan.start()
        for each in (*run.rules, *run.features):
            assert (each.chunks, each.source_for) == wanted[each.name]
    assert run.plan.reads_uncond and not plans[0].plus(plans[1]).reads_uncond


def test_runs_share_nothing_unless_they_are_given_what_lasts():
    plan, call = AttentionPlan((rule(),), probes=(Probe("heat", (0,), list, branch="target"),)), tensors(self_site(), 1)
    first, second, last = plan.start(), plan.start(), AttentionRun(plan, RunCache(limit=2**20))
    assert first.maps["heat"] is not second.maps["heat"] and isinstance(second.cache, EvaluationCache)
    for run, held in ((first, 0), (last, 2)):
        run.run(self_site(), Rows(("source",), ("cond",), (0,)), STEP, Call(*call, attend))
        assert (len(run.cache), len(second.cache)) == (2, 0)
        run.clear()
        assert len(run.cache) == held


def test_no_match_is_an_error_that_says_what_there_is():
    site, call = joint_site(stack="double", index=3), Call(*tensors(joint_site()), attend)
    there, nowhere = (AttentionPlan((rule(layers=Layers.parse(text)),)) for text in ("double:3", "double:50"))
    run = there.plus(nowhere).start()
    run.run(site, pair(), STEP, call)
    with pytest.raises(ValueError, match="layers of a must match .* 'double:50' on a model with double:3-3"):
        run.check()
    with pytest.raises(ValueError, match="no attention that passes"):
        started(rule()).check()


def test_a_site_outside_the_window_is_a_match_all_the_same():
    run = started(rule("late", window=Window(0.5, 1.0)))
    run.run(self_site(), pair(), STEP, Call(*tensors(self_site()), attend))
    run.check()
    assert run.report() == "late: 1 sites, output:4 (self#10); steps from 50% to 100%"
    assert not run.active(STEP) and run.active(Step(5, 10, 1.0))


def test_order_of_branches_by_who_reads_whom():
    reads = rule("a", Term(q=Take("mutual")))
    early = rule("b", branch="mutual", window=Window(0.0, 0.3))
    late = rule("c", Term(q=Take("target"), k=Take()), branch="mutual", window=Window(0.3, 1.0))
    run = started(reads, early, late, branches=("mutual",))
    assert run.order() is None and run.order(Step(0, 10, 1.0)) == ("source", "mutual", "target")
    assert run.order(Step(5, 10, 1.0)) is None
    assert started(early, late, branches=("mutual",)).order() == ("source", "target", "mutual")
    union = Join((OWN, "source"))
    assert started(rule("d", Term(k=union, v=union))).order() == ("source", "target")
    feature = FeatureRule("f", "output", 4, take="mutual")
    assert started(features=(feature,), branches=("mutual",)).order() == ("source", "mutual", "target")


class Halfway:
    """A latent rule that writes down its steps and brings the target nearer to the source."""

    def __init__(self):
        self.steps = []

    def after(self, run, step, states):
        self.steps.append((step.index, step.total, step.sigma))
        return (states["source"] + states["target"]) / 2


def test_a_run_carries_out_the_latent_rules_in_their_order():
    first, second = Halfway(), Halfway()
    run = started(latent_rules=(first, second))
    states = {"source": torch.zeros(1), "target": torch.ones(1)}
    assert run.blend(STEP, states) == 0.25 and first.steps == second.steps == [(0, 10, 1.0)]
    assert states["target"] == 1.0
    sigmas, asked = (1.0, 0.5, 0.25, 0.0), []

    def source(sigma, device):
        asked.append(sigma)
        return torch.full((1,), 8.0, dtype=torch.float64)

    hook = run.after_step(sigmas, source, lambda x, index: x + index)
    outs = [hook(torch.zeros(1), index) for index in (2, 1, 0)]
    # What the source is beside is the state that the step reached.
    assert asked == list(sigmas[1:]) and [float(out) for out in outs] == [8.0, 7.0, 6.0]
    assert outs[0].dtype == torch.float32
    assert first.steps[1:] == [(0, 3, 1.0), (1, 3, 0.5), (2, 3, 0.25)]
    # The source's rows walk before the target's.
    assert run.after_step(sigmas, None)(torch.tensor([8.0, 0.0]), 2).tolist() == [8.0, 6.0]
    mask = SimpleNamespace()
    assert started().after_step(sigmas, source, mask) is mask and started().after_step(sigmas, source) is None
