"""A real browser on the host's front end."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retrace_tests.workflows.server import Server

# Without these the browser looks for its maker's servers, which a closed network refuses.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
READY_MS = 120_000


def find_browser() -> str | None:
    """Return the path of an installed Chromium or Chrome, None without one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


def missing() -> str | None:
    """Say what the tests in a browser lack, and what to do; None where they can run."""
    if importlib.util.find_spec("playwright") is None:
        return 'playwright is not installed; run pip install -e ".[test]"'
    if find_browser() is None:
        return "there is no chromium or chrome on the PATH; install one and run pytest again"
    return None


@contextmanager
def front_end(server: Server) -> Iterator[tuple[Any, list[str]]]:
    """Open the host's front end.

    Args:
        server: A running host.

    Yields:
        The page, with the graph editor ready, and a list that collects the page's uncaught errors.
    """
    from playwright.sync_api import sync_playwright

    # A new user is greeted by a dialog over the graph.
    server.post("/settings/Comfy.TutorialCompleted", True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=find_browser(), args=list(FLAGS), viewport={"width": 1800, "height": 1100}
        )
        try:
            page = context.new_page()
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(server.url, wait_until="domcontentloaded", timeout=READY_MS)
            page.wait_for_function(
                "() => window.app?.graph && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 50",
                timeout=READY_MS,
            )
            yield page, errors
        finally:
            context.close()
