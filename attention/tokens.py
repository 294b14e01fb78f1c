"""Prompts as a model's attention sees them: tokens in key order, and which keys hold a word."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .pieces import find

Role = Literal["start", "word", "end", "pad"]


class Token(NamedTuple):
    """One key of the text.

    Attributes:
        id: What two tokens are compared by: the number in the vocabulary, or a digest of a learnt embedding.
        text: UTF-8 text of its piece with the spaces that it stands for, empty where it has none.
        role: "word" for what comes from the prompt, else what the tokenizer or the template added.
    """

    id: Hashable
    text: bytes
    role: Role


def roles(ids: Sequence[Hashable], start: Hashable, end: Hashable, pad: Hashable) -> list[Role]:
    """Tell the prompt's own tokens from those that a tokenizer put around them.

    Args:
        ids: One row of tokens as it goes into a text encoder.
        start: Id at the beginning of a row, None where a tokenizer has none.
        end: Id behind the text, None where it has none. It may be the pad too.
        pad: Id that fills the row.

    Returns:
        A role for each token.
    """
    first = 1 if ids and start is not None and ids[0] == start else 0
    last = len(ids)
    while last > first and ids[last - 1] == pad:
        last -= 1
    if end is not None:
        if end == pad and last < len(ids):
            last += 1
        ended = last > first and ids[last - 1] == end
    else:
        ended = False
    words = last - first - ended
    played: list[Role] = []
    parts: tuple[tuple[Role, int], ...] = (("start", first), ("word", words), ("end", int(ended)))
    for role, count in (*parts, ("pad", len(ids) - first - words - ended)):
        played += [role] * count
    return played


@dataclass(frozen=True)
class Segment:
    """The keys that come from one text encoder.

    Attributes:
        name: Of the encoder, such as "clip" or "t5xxl".
        tokens: In the order of the keys. A CLIP prompt of more than 75 tokens holds several rows of 77.
    """

    name: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt as attention sees it: the segments' keys one after the other.

    Attributes:
        text: As it was written.
        segments: Two where the text is there twice (SD3: CLIP, then T5), else one.
    """

    text: str
    segments: tuple[Segment, ...]

    @property
    def length(self) -> int:
        """Number of keys."""
        return sum(len(segment.tokens) for segment in self.segments)

    def find(self, phrase: str, occurrence: int | None = None) -> tuple[int, ...]:
        """Find the keys of a phrase.

        Args:
            phrase: One or more words; case does not matter.
            occurrence: 1 for the first time that it occurs, 2 for the second, and so on; None for all.

        Returns:
            Rising key numbers, in every segment that holds it.

        Raises:
            ValueError: If the prompt does not hold it, or not that often.
        """
        keys: list[int] = []
        most = offset = 0
        for segment in self.segments:
            places = find([t.text if t.role == "word" else b"" for t in segment.tokens], phrase)
            most = max(most, len(places))
            if occurrence is not None:
                places = places[occurrence - 1 : occurrence] if occurrence > 0 else []
            keys += [offset + i for i in sorted({i for indices in places for i in indices})]
            offset += len(segment.tokens)
        if not most:
            raise ValueError(f"word {phrase!r} must be in the prompt {self.text!r}, got a prompt without it; {_ADVICE}")
        if not keys:
            raise ValueError(
                f"word {phrase!r} must occur {occurrence} times in the prompt {self.text!r}, got {most}; "
                "lower the number behind #."
            )
        return tuple(keys)


_ADVICE = "write the word as in the prompt."
