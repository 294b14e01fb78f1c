"""What an interrupted optimisation has so far, as a file in the output folder."""

from __future__ import annotations

import logging

from ...inversion import Inversion, save
from .files import new_path

_logger = logging.getLogger(__name__)


def keep_unfinished(inversion: Inversion, prefix: str, done: str, go_on: str) -> None:
    """Save an inversion and say in the log where it is.

    Args:
        inversion: What is to be kept.
        prefix: Name in the output folder, as new_path takes it.
        done: How far it came, for the log.
        go_on: What can be done with it, a sentence for the log.
    """
    try:
        path, name = new_path(prefix)
        save(inversion, path)
    except (ValueError, OSError) as error:  # why the run stopped matters more than why its part could not be kept
        _logger.warning("Retrace: the finished part could not be kept: %s", error)
        return
    _logger.warning("Retrace: stopped after %s; what was found is kept in %s. %s", done, name, go_on)
