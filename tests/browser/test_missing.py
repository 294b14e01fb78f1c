"""Browser tests that cannot run say so, loudly and with what to do."""

from __future__ import annotations

import importlib.util

import pytest

from retrace_tests.browser.page import missing


class _Reporter:
    def __init__(self):
        self.said = []

    def section(self, title, **marks):
        self.said.append(title)

    def line(self, text):
        self.said.append(text)


@pytest.fixture
def conftest(request, root, monkeypatch):
    """The plugin of this folder, with one host that needs not be there."""
    plugin = request.config.pluginmanager.get_plugin(str(root / "tests" / "conftest.py"))
    monkeypatch.setattr(plugin, "find_hosts", lambda: [root])
    monkeypatch.setattr(plugin, "host_version", lambda host: (0, 33, 0))
    return plugin


def _summary(conftest):
    reporter = _Reporter()
    conftest.pytest_terminal_summary(reporter)
    return reporter.said


def _without_playwright(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "playwright" else find(name))


def _with_playwright(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_without_a_browser(conftest, monkeypatch, tmp_path):
    _with_playwright(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no chromium or chrome on the PATH; install one" in missing()
    said = _summary(conftest)
    assert "BROWSER TESTS SKIPPED" in said and missing() in said[-1]


def test_without_playwright(conftest, monkeypatch):
    _without_playwright(monkeypatch)
    assert "playwright is not installed; run pip install" in missing()
    said = _summary(conftest)
    assert "BROWSER TESTS SKIPPED" in said and missing() in said[-1]


def test_with_both(conftest, monkeypatch, tmp_path):
    _with_playwright(monkeypatch)
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing() is None
    assert "BROWSER TESTS SKIPPED" not in _summary(conftest)
