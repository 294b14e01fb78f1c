"""Every check of inside/ in every host. The checks run in the host's process, see process.py."""

import ast

import pytest

from retrace_tests.host.process import INSIDE, Skipped

pytestmark = pytest.mark.host


def _checks():
    names = ["pack_loads"]
    for path in sorted(INSIDE.glob("checks_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names += [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and "check_" in node.name[:6]]
    return names


@pytest.mark.parametrize("check", _checks())
def test_check(check, checks):
    failure = checks.outcome(check)
    if isinstance(failure, Skipped):
        pytest.skip(failure)
    assert failure is None, failure
