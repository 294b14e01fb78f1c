"""What an interrupted optimisation has found so far, as a record in the output folder."""

from __future__ import annotations

import logging

from ...inversion import Inversion, save
from .files import new_record_path

_logger = logging.getLogger(__name__)


def keep_unfinished(record: Inversion, prefix: str, done: str, go_on: str) -> None:
    """Save a record and say in the log where it is.

    Args:
        record: What is to be kept.
        prefix: Name in the output folder, as new_record_path takes it.
        done: How far it came, for the log.
        go_on: What can be done with it, a sentence for the log.
    """
    try:
        path, name = new_record_path(prefix)
        save(record, path)
    except (ValueError, OSError) as error:  # why the run stopped matters more than why its part could not be kept
        _logger.warning("Retrace: the finished part could not be kept: %s", error)
        return
    _logger.warning("Retrace: stopped after %s; what was found is kept in %s. %s", done, name, go_on)
