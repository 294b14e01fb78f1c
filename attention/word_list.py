"""Words with numbers, as people type them into a node: weights, and windows of steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ENTRY = re.compile(r"(?!#)(?P<phrase>.*?[^\s#:])\s*(?:#\s*(?P<occurrence>\d+)\s*)?:\s*(?P<value>[^:]+)")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WINDOW = re.compile(rf"(?:(?P<start>{_NUMBER})\s*-\s*)?(?P<end>{_NUMBER})")


class Word(NamedTuple):
    """A phrase of a prompt: all its occurrences, or one of them counted from 1."""

    phrase: str
    occurrence: int | None = None


class WordWeight(NamedTuple):
    """How much attention a word gets: 1 as it is, 0 none, negative the opposite."""

    word: Word
    weight: float


class WordWindow(NamedTuple):
    """The steps in which a word's attention is the source's, as fractions of the run."""

    word: Word
    start: float
    end: float


def parse_words(text: str) -> list[Word]:
    """Read words such as ``red, blue sky, cat#2``, parted by commas, semicolons or lines.

    Raises:
        ValueError: If a number behind # is not one.
    """
    words = []
    for entry in _entries(text):
        match = re.fullmatch(r"(?!#)(.*?[^\s#])\s*(?:#\s*(\d+))?", entry)
        if match is None:
            raise ValueError(f"words must read like 'red, blue sky, cat#2', got {entry!r}; write them that way.")
        words.append(Word(match[1], int(match[2]) if match[2] else None))
    return words


def parse_weights(text: str) -> list[WordWeight]:
    """Read weights such as ``red:2, blue sky:0.5, cat#2:-1``.

    Raises:
        ValueError: If an entry has no finite number.
    """
    weights = []
    for entry in _entries(text):
        word, value = _split(entry, "weights", "red:2, blue sky:0.5")
        if not re.fullmatch(_NUMBER, value) or not math.isfinite(float(value)):
            raise ValueError(f"weight of {word.phrase!r} must be a number, got {value!r}; write it like red:2.")
        weights.append(WordWeight(word, float(value)))
    return weights


def parse_windows(text: str) -> list[WordWindow]:
    """Read windows such as ``lion:0.4, red car:0.1-0.6``; one number is the end.

    Raises:
        ValueError: If an entry has no window, or one outside 0 .. 1.
    """
    windows = []
    for entry in _entries(text):
        word, value = _split(entry, "schedule", "lion:0.4, red car:0.1-0.6")
        match = _WINDOW.fullmatch(value)
        start = float(match["start"] or 0.0) if match else math.nan
        end = float(match["end"]) if match else math.nan
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(
                f"schedule of {word.phrase!r} must lie between 0 and 1, got {value!r}; write it like lion:0.1-0.6."
            )
        windows.append(WordWindow(word, start, end))
    return windows


def _entries(text: str) -> Iterator[str]:
    return (entry.strip() for entry in re.split(r"[,;\n]", text) if entry.strip())


def _split(entry: str, what: str, example: str) -> tuple[Word, str]:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(f"{what} must read like '{example}', got {entry!r}; write them that way.")
    occurrence = match["occurrence"]
    return Word(match["phrase"].strip(), int(occurrence) if occurrence else None), match["value"].strip()
