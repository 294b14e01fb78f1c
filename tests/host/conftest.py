"""One process for each host: it loads the pack, runs the checks that were asked for, and reports each."""

import pytest

from retrace_tests.host.process import run_inside
from retrace_tests.hosts import find_hosts


@pytest.fixture(params=find_hosts(), ids=lambda host: host.name)
def host(request):
    """A host's checkout."""
    return request.param


@pytest.fixture
def outcome(request, host):
    """What a check said in a host: None, or its failure."""
    wanted = tuple(
        sorted({item.callspec.params["check"] for item in request.session.items if "check" in _parameters(item)})
    )
    results, output = run_inside(host, wanted)

    def of(check):
        if check not in results:
            return f"the check did not run; the process ended with:\n{output}"
        return results[check]

    return of


def _parameters(item):
    return getattr(getattr(item, "callspec", None), "params", {})
