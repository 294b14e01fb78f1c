"""The worked examples of CONTRIBUTING.md, put into a copy of the checkout, pass the contract tests there."""

import re

from retrace_tests.checkout import ROOT, copy_to, pytest_in


def examples():
    """Code of the worked examples by the file that stands above it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    return dict(
        re.findall(r"^`([\w/]+\.py)`[^\n]*(?:\n[^\n`]+)*\n\n```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    )


def test_the_method_is_two_files(tmp_path):
    copy = copy_to(tmp_path / "retrace")
    name = "inversion/methods/heun.py"
    (copy / name).write_text(examples()[name], encoding="utf-8")
    pytest_in(copy, "-k", "heun", "tests/inversion/test_contract.py")
