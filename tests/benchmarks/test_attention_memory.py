"""The count of what a cache holds, against sizes that are known, and against a cache that breaks its word."""

import pytest
import torch

from retrace.attention import RunCache
from retrace_tests.benchmarks.modules import load


@pytest.fixture(scope="module")
def memory(root):
    return load(root, "attention_memory")[0]


@pytest.fixture
def case(memory):
    """RF-Edit with 256 image and 512 text tokens, 16 channels, 18 layers, two evaluations of one step."""
    return memory.rf_edit(size=256, steps=4, inject=1, width=16, heads=2)


EACH = 768 * 16 * 2
WHOLE = 18 * 2 * EACH


@pytest.mark.parametrize("stays", [36, 5, 0])
def test_a_cache_holds_what_it_may(memory, case, stays):
    assert memory.wanted(case) == WHOLE
    found = memory.held(case, WHOLE, stays * EACH)
    assert (found.cache["cuda"], found.cache["cpu"]) == (stays * EACH, WHOLE - stays * EACH) and not found.refused
    # One operand is on its way at a time.
    assert stays * EACH <= found.peak <= (stays + 2) * EACH


@pytest.mark.parametrize("fault", ["spills nothing", "keeps a copy"])
def test_a_cache_that_breaks_its_word_is_found_out(memory, case, fault, monkeypatch):
    class Broken(RunCache):
        def put(self, site, step, who, name, kept):
            if fault == "spills nothing":
                self.on_device = 2**40
            else:
                self.copies = [*getattr(self, "copies", []), kept]
            super().put(site, step, who, name, kept)

    monkeypatch.setattr(memory, "RunCache", Broken)
    row = memory._cells(case, memory.held(case, WHOLE, 0), WHOLE, 0)
    assert row[-1] == "**beyond**"


def test_views_of_one_storage_count_once(memory):
    with memory.Alive() as alive:
        one = torch.zeros(8)
        two, three = one[:4], one.view(2, 4)
        assert alive.bytes["cpu"] == 32
        del one
        assert alive.bytes["cpu"] == 32
        del two, three
        assert alive.bytes["cpu"] == 0
