"""From the source's text keys to the target's: the value maps of prompt-to-prompt.

Prompt-to-prompt (Hertz et al. 2022, arXiv:2208.01626) writes columns of the source's probabilities into the target's.
Softmax attention is linear in its values, so no probability is needed: with a map S from source keys to target keys,
alpha (L_t) which of them are mapped, weights c and a schedule a of zeros and ones,

    out = SDPA(q_s, k_s, S diag(a alpha c) V_t) + SDPA(q_t, k_t, diag(a (1 - alpha) c + 1 - a) V_t).

Replace keeps the mass of every source token (each row of S sums to 1), refine does not, as in the official code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from .alignment import align
from .tokens import Prompt, Segment
from .word_list import WordWeight, WordWindow

Mode = Literal["replace", "refine", "similarity"]
MODES: tuple[str, ...] = get_args(Mode)
# Official window of the cross attention: the first 80 % of the steps.
CROSS_WINDOW = (0.0, 0.8)


class Moment(Protocol):
    """Which step of how many a call belongs to."""

    @property
    def index(self) -> int:
        """Step from 0 on."""

    @property
    def total(self) -> int:
        """Number of steps."""


def is_open(window: tuple[float, float], index: int, total: int) -> bool:
    """Whether a window of fractions holds a step: int(start (n + 1)) <= i < int(end (n + 1)).

    The official table has one row more than there are steps, so that an end of 1 holds the last step.
    """
    rows = total + 1
    return int(window[0] * rows) <= index < int(window[1] * rows)


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Value maps between two prompts.

    Attributes:
        source: Prompt of the source.
        target: Prompt of the target.
        matrix: S, shape (source keys, target keys), float32.
        alpha: 1 where a target key takes the source's attention, 0 where it keeps its own; shape (target keys).
        weights: c, 1 where nothing is reweighted; shape (target keys).
        window: Steps in which the map acts, as fractions.
        windows: Other windows for some keys: (key numbers, window).
        encoded: Fingerprints of what the prompts were encoded to, by branch; empty where they are not known.
    """

    source: Prompt
    target: Prompt
    matrix: Tensor
    alpha: Tensor
    weights: Tensor
    window: tuple[float, float] = CROSS_WINDOW
    windows: tuple[tuple[tuple[int, ...], tuple[float, float]], ...] = ()
    encoded: Mapping[str, str] = field(default_factory=dict)

    def schedule(self, step: Moment) -> Tensor:
        """Return a of a step: 1 for the target keys on which the map acts, shape (target keys)."""
        table = torch.full_like(self.alpha, float(is_open(self.window, step.index, step.total)))
        for keys, window in self.windows:
            table[list(keys)] = float(is_open(window, step.index, step.total))
        return table

    def is_active(self, step: Moment) -> bool:
        """Whether the map changes anything in a step."""
        return bool(self.schedule(step).any())

    def taken(self, site: object, step: Moment) -> Tensor:
        """Return S diag(a alpha c), for the source's queries and keys; shape (source keys, target keys).

        Args:
            site: Where; the map is the same everywhere.
            step: When.
        """
        return self.matrix * (self.schedule(step) * self.alpha * self.weights)

    def own(self, site: object, step: Moment) -> Tensor:
        """Return the diagonal of the target's own term, a (1 - alpha) c + 1 - a; shape (target keys).

        Args:
            site: Where; the map is the same everywhere.
            step: When.
        """
        a = self.schedule(step)
        return a * (1.0 - self.alpha) * self.weights + (1.0 - a)

    def reweighted(self, site: object, step: Moment) -> Tensor:
        """Return the diagonal of a reweighting without a source, a c + 1 - a; shape (target keys).

        Args:
            site: Where; the map is the same everywhere.
            step: When.
        """
        a = self.schedule(step)
        return a * self.weights + (1.0 - a)


def token_map(
    source: Prompt,
    target: Prompt,
    mode: Mode = "replace",
    weights: Sequence[WordWeight] = (),
    window: tuple[float, float] = CROSS_WINDOW,
    windows: Sequence[WordWindow] = (),
    cosine: Tensor | None = None,
) -> TokenMap:
    """Align two prompts.

    Args:
        source: Prompt of the source.
        target: Prompt of the target.
        mode: "replace" hands the mass of replaced words to the words in their place, "refine" maps equal words
            only, "similarity" also joins the most similar pair of words in each changed stretch (InfEdit, Xu et al.
            2023, arXiv:2312.04965).
        weights: Of words of the target; where two fall on one token the later counts.
        window: Steps in which the map acts, fractions from 0 to 1.
        windows: Other windows for words of the target.
        cosine: Similarity of the encoded tokens, shape (source keys, target keys), for mode "similarity".

    Returns:
        The map.

    Raises:
        ValueError: If a word is not in the target, the encoders differ, or something is out of its range.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}; choose one of these.")
    if not 0.0 <= window[0] <= window[1] <= 1.0:
        raise ValueError(f"window must lie between 0 and 1, got {window[0]:g} to {window[1]:g}; lower start or end.")
    names = [[segment.name for segment in prompt.segments] for prompt in (source, target)]
    if names[0] != names[1]:
        raise ValueError(f"both prompts must come from the same text encoders, got {names}; encode them with one CLIP.")
    if mode == "similarity" and (cosine is None or cosine.shape != (source.length, target.length)):
        have = None if cosine is None else tuple(cosine.shape)
        raise ValueError(
            f"cosine must have a row for each source token and a column for each target token for similarity, "
            f"got {have}; pass the cosines of the encoded tokens."
        )
    matrix = torch.zeros(source.length, target.length)
    alpha = torch.zeros(target.length)
    row = column = 0
    for one, other in zip(source.segments, target.segments, strict=True):
        rows, columns = slice(row, row + len(one.tokens)), slice(column, column + len(other.tokens))
        near = None if cosine is None or mode != "similarity" else cosine[rows, columns]
        _fill(matrix[rows, columns], alpha[columns], one, other, mode == "replace", near)
        row, column = rows.stop, columns.stop
    scale = torch.ones(target.length)
    for word, weight in weights:
        scale[list(target.find(*word))] = weight
    others = tuple((target.find(*w.word), (w.start, w.end)) for w in windows)
    return TokenMap(source, target, matrix, alpha, scale, window, others)


def _fill(
    matrix: Tensor, alpha: Tensor, source: Segment, target: Segment, replace: bool, cosine: Tensor | None
) -> None:
    """Write one segment's block of S and alpha in place."""
    words = _keys(source, "word"), _keys(target, "word")
    aligned = align([source.tokens[i].id for i in words[0]], [target.tokens[j].id for j in words[1]])
    for i, j in aligned.pairs:
        matrix[words[0][i], words[1][j]] = 1.0
        alpha[words[1][j]] = 1.0
    for (a, b), (c, d) in aligned.spans:
        rows, columns = words[0][a:b], words[1][c:d]
        if replace:
            # Where words were only taken out, their mass goes to what follows; new words keep their own attention.
            _hand_over(matrix, alpha, rows, columns or _after(target, words[1], c))
        elif cosine is not None and rows and columns:
            block = cosine[rows][:, columns]
            i, j = divmod(int(block.argmax()), len(columns))
            matrix[rows[i], columns[j]] = alpha[columns[j]] = 1.0
    ends = _keys(target, "end") or words[1][-1:]
    for role in ("start", "end", "pad"):
        rows, columns = _keys(source, role), _keys(target, role)
        both = min(len(rows), len(columns))
        for i, j in zip(rows, columns, strict=False):
            matrix[i, j] = alpha[j] = 1.0
        if replace:
            alpha[columns] = 1.0
            spare = columns if role == "pad" else columns[-1:]
            for i in rows[both:]:
                share = spare or ends
                matrix[i, share] += 1.0 / len(share)


def _hand_over(matrix: Tensor, alpha: Tensor, rows: list[int], columns: list[int]) -> None:
    if not rows:
        return
    alpha[columns] = 1.0
    if len(rows) == len(columns):
        matrix[rows, columns] += 1.0
    else:
        for i in rows:
            matrix[i, columns] += 1.0 / len(columns)


def _after(segment: Segment, words: list[int], place: int) -> list[int]:
    """The key of the next word, or what ends the text."""
    if place < len(words):
        return [words[place]]
    behind = [i for i in _keys(segment, "end") if not words or i > words[-1]]
    return behind[:1] or _keys(segment, "pad")[:1] or words[-1:]


def _keys(segment: Segment, role: str) -> list[int]:
    return [i for i, token in enumerate(segment.tokens) if token.role == role]
