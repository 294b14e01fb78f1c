"""The Python of README.md and docs/python.md runs as it stands, section by section."""

import re

import pytest
import torch
from PIL import Image

from retrace_tests.backends import tiny
from retrace_tests.checkout import ROOT


def sections(name):
    """Title and joined code blocks of each section of a document."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        if blocks:
            yield pytest.param("\n".join(blocks), id=f"{name}: {section.splitlines()[0]}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files that the documents read."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "picture.png").write_bytes((ROOT / "demo" / "picture.png").read_bytes())
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.png")
    tiny.save_pipeline(tmp_path / "path" / "to" / "pipeline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", [*sections("README.md"), *sections("docs/python.md")])
def test_the_code_runs(code, folder):
    with torch.set_grad_enabled(True):  # puts back what the code switches
        exec(compile(code, "document", "exec"), {})  # noqa: S102
