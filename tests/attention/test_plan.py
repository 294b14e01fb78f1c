"""Plans, runs, and the cache."""

import pytest
import torch

from retrace.attention import (
    OWN,
    AttentionPlan,
    AttentionRun,
    Call,
    EvaluationCache,
    Executor,
    FeatureRule,
    Join,
    Layers,
    Probe,
    Rows,
    Rule,
    RunCache,
    Step,
    Take,
    Term,
    Window,
    estimate,
)
from retrace_tests.attention.problems import STEP, attend, cross_site, joint_site, pair, self_site, tensors

MUTUAL = Term(k=Take(), v=Take())
SOURCE, TARGET = (Rows((branch,), ("cond",), (0,)) for branch in ("source", "target"))


def test_plans_add_up_and_the_later_choice_counts():
    one = AttentionPlan((Rule("a", (MUTUAL,)),), text="map", source="free", source_for="both")
    other = AttentionPlan((Rule("b", (MUTUAL,)),), (FeatureRule("f", "output", 4),), branches=("mutual",))
    both = one.plus(other)
    assert [rule.name for rule in both.rules] == ["a", "b"] and len(both.features) == 1
    assert (both.branches, both.text, both.source, both.source_for) == (("mutual",), "map", "free", "each")
    assert one.plus(AttentionPlan()).source_for == "both" and AttentionPlan().plus(one).source_for == "both"
    assert both.start().branches == ("source", "target", "mutual")
    with pytest.raises(ValueError, match="must share one token map"):
        one.plus(AttentionPlan(text="another"))
    probe = Probe("heat", (0,), list)
    with pytest.raises(ValueError, match="must have names of their own, got 'heat' twice"):
        AttentionPlan(probes=(probe,)).plus(AttentionPlan(probes=(probe,)))


@pytest.mark.parametrize(
    ("serves", "chunks", "source_for"),
    [("cond", ("cond",), "both"), ("both", ("cond", "uncond"), "both"), ("shared", ("cond", "uncond"), "shared")],
)
def test_who_reads_from_the_source_is_the_plans_choice(serves, chunks, source_for):
    run = AttentionPlan((Rule("a", (MUTUAL,)),), (FeatureRule("f", "output", 4),), source_for=serves).start()
    for rule in (*run.rules, *run.features):
        assert (rule.chunks, rule.source_for) == (chunks, source_for)


@pytest.mark.parametrize("turned", [False, True])
def test_in_chained_plans_each_rule_reads_as_its_own_plan_said(turned):
    plans = [
        AttentionPlan((Rule("words", (MUTUAL,)),), source_for="cond"),
        AttentionPlan((Rule("look", (MUTUAL,)),), (FeatureRule("f", "output", 4),)),
        AttentionPlan((Rule("official", (MUTUAL,)),), source_for="both"),
    ]
    one, other, last = plans[::-1] if turned else plans
    run = one.plus(other).plus(last).start()
    assert {rule.name: (rule.chunks, rule.source_for) for rule in (*run.rules, *run.features)} == {
        "words": (("cond",), "both"),
        "look": (("cond", "uncond"), "shared"),
        "f": (("cond", "uncond"), "shared"),
        "official": (("cond", "uncond"), "both"),
    }
    assert run.plan.reads_uncond and not plans[0].plus(plans[1]).reads_uncond


def test_of_two_rules_of_one_name_both_must_match():
    rules = [Rule("masactrl", (MUTUAL,), layers=Layers.parse(layers)) for layers in ("double:3", "double:50")]
    run = AttentionPlan((rules[0],)).plus(AttentionPlan((rules[1],))).start()
    site = joint_site(stack="double", index=3)
    run.run(site, pair(), STEP, Call(*tensors(site), attend))
    with pytest.raises(ValueError, match="got 'double:50'"):
        run.check()


def test_runs_share_nothing():
    plan = AttentionPlan((Rule("a", (MUTUAL,)),), probes=(Probe("heat", (0,), list, branch="target"),))
    first, second = plan.start(), plan.start()
    assert first.maps["heat"] is not second.maps["heat"] and first.cache is not second.cache
    first.run(self_site(), SOURCE, STEP, Call(*tensors(self_site(), rows=1), attend))
    assert len(first.cache) == 2 and len(second.cache) == 0
    first.clear()
    assert len(first.cache) == 0


def test_no_match_is_an_error_that_says_what_there_is():
    run = AttentionPlan((Rule("masactrl", (MUTUAL,), layers=Layers.parse("single:50-60")),)).start()
    site = joint_site(stack="double", index=3)
    out = run.run(site, pair(), STEP, Call(*tensors(site), attend))
    assert torch.equal(out, attend(*tensors(site)))
    with pytest.raises(ValueError, match="layers of masactrl must match .* 'single:50-60' on a model with double:3-3"):
        run.check()
    with pytest.raises(ValueError, match="no attention that passes"):
        AttentionPlan((Rule("masactrl", (MUTUAL,)),)).start().check()


def test_a_site_outside_the_window_is_a_match_all_the_same():
    run = AttentionPlan((Rule("late", (MUTUAL,), window=Window(0.5, 1.0)),)).start()
    run.run(self_site(), pair(), STEP, Call(*tensors(self_site()), attend))
    run.check()
    assert run.report() == "late: 1 sites, output:4 (self#10); steps from 50% to 100%"
    assert not run.active(STEP) and run.active(Step(5, 10, 1.0))


def test_order_of_branches_by_who_reads_whom():
    late = Window(0.3, 1.0)
    rules = [
        Rule("a", (Term(q=Take("mutual")),)),
        Rule("b", (MUTUAL,), branch="mutual", window=Window(0.0, 0.3)),
        Rule("c", (Term(q=Take("target"), k=Take()),), branch="mutual", window=late),
    ]
    run = AttentionPlan(tuple(rules), branches=("mutual",)).start()
    assert run.order() is None and run.order(Step(0, 10, 1.0)) == ("source", "mutual", "target")
    assert run.order(Step(5, 10, 1.0)) is None
    assert AttentionPlan(tuple(rules[1:]), branches=("mutual",)).start().order() == ("source", "target", "mutual")
    union = Join((OWN, "source"))
    assert AttentionPlan((Rule("d", (Term(k=union, v=union),)),)).start().order() == ("source", "target")
    feature = AttentionPlan(features=(FeatureRule("f", "output", 4, take="mutual"),), branches=("mutual",)).start()
    assert feature.order() == ("source", "mutual", "target")


def steps():
    return [Step(index, 4, 1.0 - index / 4, evaluation) for index in range(4) for evaluation in (0, 1)]


def test_a_bank_replays_what_sharing_in_one_batch_gives():
    """Every evaluation of a second-order run has its own operands."""
    site, rule = joint_site(text=5), Rule("a", (Term(v=Take()),), group="all", window=Window(0.0, 0.75))
    cache, executor = RunCache(limit=2**20), Executor([rule])
    calls = {step: tensors(site, seed=index) for index, step in enumerate(steps())}
    for step, (q, k, v) in calls.items():
        executor.run(site, SOURCE, step, Call(q[:1], k[:1], v[:1], attend), cache)
    cache.freeze()
    assert len(cache) == 6
    for step, (q, k, v) in reversed(calls.items()):
        out = executor.run(site, TARGET, step, Call(q[1:], k[1:], v[1:], attend), cache)
        whole = executor.run(site, pair(), step, Call(q, k, v, attend))
        assert float((out - whole[1:]).abs().max()) <= 1e-5
    # A second replay is the first: reading changes nothing.
    again = executor.run(site, TARGET, step, Call(q[1:], k[1:], v[1:], attend), cache)
    assert torch.equal(out, again) and len(cache) == 6


def test_the_estimate_is_what_the_bank_comes_to_hold():
    sites = [self_site(), joint_site(text=5), cross_site(text=7), self_site(stack="input", index=1, number=0)]
    rules = [
        Rule("a", (MUTUAL,), window=Window(0.0, 0.5)),
        Rule("b", (Term(q=Take()),), layers=Layers.parse("output"), kinds=("self", "cross"), group="all"),
    ]
    executor, cache = Executor(rules), RunCache(limit=2**24)
    for step in steps():
        for site in sites:
            executor.run(site, Rows(("source",) * 2, ("cond",) * 2, (0, 1)), step, Call(*tensors(site), attend), cache)
    assert cache.size == estimate(executor, sites, steps(), channels=3 * 8, itemsize=4, rows=2) > 0
    cache.clear()
    assert cache.size == 0 and len(cache) == 0


def test_a_bank_keeps_its_limit():
    site, executor = self_site(), Executor([Rule("a", (MUTUAL,))])
    one = 2 * 3 * 16 * 8 * 4
    cache = RunCache(limit=2 * one)
    for index in range(2):
        executor.run(site, SOURCE, Step(index, 4, 1.0), Call(*tensors(site, rows=1), attend), cache)
    with pytest.raises(ValueError, match="The attention cache must stay within .* got more at step 2"):
        executor.run(site, SOURCE, Step(2, 4, 1.0), Call(*tensors(site, rows=1), attend), cache)
    assert cache.size == 2 * one
    # The same key again takes the place of what it had.
    executor.run(site, SOURCE, Step(1, 4, 1.0), Call(*tensors(site, rows=1), attend), cache)
    assert cache.size == 2 * one


def test_a_bank_of_another_picture_or_schedule_holds_nothing_for_this_one():
    cache, executor = RunCache(limit=2**20), Executor([Rule("a", (MUTUAL,))])
    executor.run(self_site(), SOURCE, STEP, Call(*tensors(self_site(), rows=1), attend), cache)
    other = self_site(grid=(1, 2, 8))
    for site, step in ((other, STEP), (self_site(), Step(1, 10, 1.0)), (self_site(), Step(0, 10, 1.0, 1))):
        with pytest.raises(ValueError, match="k of branch 'source' must be known"):
            executor.run(site, TARGET, step, Call(*tensors(site, rows=1), attend), cache)


def test_a_run_may_use_a_bank_and_leaves_it_full():
    plan, cache = AttentionPlan((Rule("a", (MUTUAL,)),)), RunCache(limit=2**20)
    run = AttentionRun(plan, cache=cache)
    run.run(self_site(), SOURCE, STEP, Call(*tensors(self_site(), rows=1), attend))
    run.clear()
    assert len(cache) == 2 and isinstance(plan.start().cache, EvaluationCache)
