"""The host's progress bar and interrupt for work without a model."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils


def progress() -> Callable[[int, int], None]:
    """Return a listener of (done, all) that drives the progress bar of the running node, and ends on interrupt."""
    bars: list[comfy.utils.ProgressBar] = []

    def tick(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return tick
