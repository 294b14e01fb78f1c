"""Which token of one prompt corresponds to which of another.

Needleman and Wunsch 1970 on token ids: a match counts 1, a gap 0, a mismatch is never better than two gaps. Among
alignments with equally many matches the one with the fewest breaks is taken, so that a repeated word is matched
together with its neighbours.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """A stretch without a match between two anchors: tokens [a, b) of the source and of the target."""

    source: tuple[int, int]
    target: tuple[int, int]


class Alignment(NamedTuple):
    """Matched pairs (source, target), rising in both, and the unmatched spans between them, in order."""

    pairs: tuple[tuple[int, int], ...]
    spans: tuple[Span, ...]


def align(source: Sequence[Hashable], target: Sequence[Hashable]) -> Alignment:
    """Align two sequences of token ids.

    Args:
        source: Ids of the source's tokens without start, end and padding.
        target: Ids of the target's.

    Returns:
        The matches and the spans between them.
    """
    pairs = _pairs(source, target)
    spans = []
    one = other = 0
    for i, j in (*pairs, (len(source), len(target))):
        if i > one or j > other:
            spans.append(Span((one, i), (other, j)))
        one, other = i + 1, j + 1
    return Alignment(tuple(pairs), tuple(spans))


def _pairs(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[tuple[int, int]]:
    m, n = len(source), len(target)
    # A match outweighs any number of unbroken neighbours.
    match = m + n + 2
    # Best score of the rest from (i, j) on, by whether (i - 1, j - 1) was a match.
    after = [[0] * (n + 1) for _ in range(m + 1)]
    apart = [[0] * (n + 1) for _ in range(m + 1)]
    for i in range(m, -1, -1):
        for j in range(n, -1, -1):
            gap = max(apart[i + 1][j] if i < m else 0, apart[i][j + 1] if j < n else 0)
            after[i][j] = apart[i][j] = gap
            if i < m and j < n and source[i] == target[j]:
                apart[i][j] = max(gap, match + after[i + 1][j + 1])
                after[i][j] = max(gap, match + 1 + after[i + 1][j + 1])
    pairs = []
    i = j = 0
    joined = False
    while i < m and j < n:
        best = (after if joined else apart)[i][j]
        if source[i] == target[j] and best == match + joined + after[i + 1][j + 1]:
            pairs.append((i, j))
            i, j, joined = i + 1, j + 1, True
        else:
            joined = False
            i, j = (i + 1, j) if apart[i + 1][j] == best else (i, j + 1)
    return pairs
