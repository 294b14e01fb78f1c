"""Load the checkout as `retrace`, keep torch on one thread, and say when the host or browser tests did not run."""

import runpy
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]

runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()

# Test files share helpers by `from retrace_tests.… import …`. A package made by hand keeps tests/ off
# sys.path, where its folders would be importable as `inversion`, `demo` and `host`.
_tests = ModuleType("retrace_tests")
_tests.__path__ = [str(ROOT / "tests")]
sys.modules.setdefault("retrace_tests", _tests)

import pytest  # noqa: E402
import torch  # noqa: E402

from retrace_tests.browser.page import missing  # noqa: E402
from retrace_tests.hosts import find_hosts, host_version  # noqa: E402
from retrace_tests.workflows.server import Server  # noqa: E402

# The networks here are so small that threads cost more than they give.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root():
    """The checkout's folder."""
    return ROOT


@pytest.fixture(scope="session", params=find_hosts(), ids=lambda host: host.name)
def server(request):
    """A running ComfyUI with the pack, one process per host for the whole session."""
    with Server(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def info(server):
    """What the running ComfyUI tells about every node that it knows."""
    return server.object_info()


# Before pytest-xdist, which reads the groups in this hook too.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Skip what needs a host when there is none; what shares a process of a host goes to one worker of pytest-xdist."""
    hosts = find_hosts()
    for item in items:
        if not hosts and (item.get_closest_marker("host") or item.get_closest_marker("browser")):
            item.add_marker(pytest.mark.skip(reason="no ComfyUI checkout found"))
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        for process in ("checks", "server"):
            if process in parameters:
                item.add_marker(pytest.mark.xdist_group(f"{process} {parameters[process].name}"))


def pytest_terminal_summary(terminalreporter):
    """Name the hosts that were tested, and say loudly where none was or no browser was there."""
    hosts = find_hosts()
    if hosts:
        terminalreporter.section("ComfyUI hosts")
        for host in hosts:
            version = ".".join(map(str, host_version(host)))
            terminalreporter.line(f"{host.name}: version {version}")
        if missing() is not None:
            terminalreporter.section("BROWSER TESTS SKIPPED", sep="!", yellow=True, bold=True)
            terminalreporter.line(f"No template was opened in a browser: {missing()}.")
    else:
        terminalreporter.section("HOST TESTS SKIPPED", sep="!", yellow=True, bold=True)
        terminalreporter.line(
            "No ComfyUI checkout was found, so nothing was tested inside ComfyUI. "
            "Set COMFYUI_PATH to one or more checkouts and run pytest again."
        )
