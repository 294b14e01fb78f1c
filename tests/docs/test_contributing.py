"""The worked examples of CONTRIBUTING.md, put into a copy of the checkout, pass the contract tests there."""

import re

import pytest

from retrace_tests.checkout import ROOT, copy_to, pytest_in

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/]+\.py)`[^\n]*\n\n```python\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE))
# File of an example, tests that find it, words that pick its own.
EXAMPLES = {
    "method": ("inversion/methods/heun.py", "tests/inversion/test_contract.py", "heun"),
    "preset": ("attention/methods/photoswap.py", "tests/attention/test_presets.py", "photoswap"),
    "operator": (
        "restoration/operators/mosaic.py",
        "tests/restoration/test_operators.py",
        "mosaic or every or Mosaic or closed",
    ),
}


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 235


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_file_and_its_test(example, tmp_path):
    name, tests, words = EXAMPLES[example]
    copy = copy_to(tmp_path / "retrace")
    (copy / name).write_text(FILES[name], encoding="utf-8")
    if example == "preset":
        (row,) = re.findall(r"```\n(\(.*\),)\n```", TEXT)
        table = copy / "tests" / "attention" / "official.py"
        before = table.read_text(encoding="utf-8")
        table.write_text(before.replace("ROWS = [\n", f"ROWS = [\n    {row}\n", 1), encoding="utf-8")
    pytest_in(copy, "-k", words, tests)
