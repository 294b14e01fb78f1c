"""One process for each host: it loads the pack, runs the checks that were asked for, and reports each."""

import pytest

from retrace_tests.host.process import Checks
from retrace_tests.hosts import find_hosts


@pytest.fixture(scope="session", params=find_hosts(), ids=lambda host: host.name)
def checks(request, tmp_path_factory):
    """The checks of this session in a host; they run ahead of the tests that wait for them."""
    parameters = [getattr(getattr(item, "callspec", None), "params", {}) for item in request.session.items]
    names = [each["check"] for each in parameters if each.get("checks") == request.param and "check" in each]
    running = Checks(request.param, names, tmp_path_factory.mktemp(request.param.name))
    yield running
    running.stop()
