"""What the pieces of a tokenizer's vocabulary stand for, and where a phrase lies among them.

Three ways of writing pieces are read: an end mark ``</w>`` (CLIP), a start mark ``▁`` (T5, umT5, Gemma: SentencePiece)
and a space inside the byte alphabet, ``Ġ`` (Qwen, Llama: GPT-2's). CLIP and GPT-2 write each byte of UTF-8 as one
printable character; a letter beyond ASCII may be spread over several pieces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Style = Literal["end", "start", "byte"]

_END, _START = "</w>", "▁"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Scripts that are written without spaces: from here on a letter is a word of its own.
_FIRST_IDEOGRAPH = 0x2E80
_THAI = range(0x0E00, 0x0E80)


def style_of(vocabulary: Iterable[str]) -> Style:
    """Return how a vocabulary marks the borders of words.

    Args:
        vocabulary: All pieces.
    """
    style: Style = "byte"
    for piece in vocabulary:
        if piece.endswith(_END):
            return "end"
        if piece.startswith(_START):
            style = "start"
    return style


def piece_text(piece: str, style: Style) -> bytes:
    """Return the UTF-8 text of a piece, with the space that its mark stands for.

    Args:
        piece: As it is written in the vocabulary.
        style: How that vocabulary marks words.
    """
    if style == "start":
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(_START, " ").encode()
    ended = style == "end" and piece.endswith(_END)
    letters = piece[: -len(_END)] if ended else piece
    # A special piece such as <|image_pad|> is spelt in plain characters, which stand for themselves.
    plain = b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in letters)
    return plain + b" " if ended else plain


def find(texts: Sequence[bytes], phrase: str) -> list[tuple[int, ...]]:
    """Find every occurrence of a phrase among pieces.

    Case, width variants and white space do not matter; a phrase is only found as whole words, so that "cat" is not
    in "concatenate", and next to punctuation it is. Several words are found in their order.

    Args:
        texts: Text of each piece, in order; empty for pieces that carry none.
        phrase: One or more words.

    Returns:
        For each occurrence the indices of the pieces that hold any of it, rising. Empty when it does not occur.
    """
    text, wanted = _units(texts), _units([phrase.encode()])
    if not wanted:
        return []
    places = []
    for start in range(len(text) - len(wanted) + 1):
        stop = start + len(wanted)
        if _is_break(text, start) and _is_break(text, stop) and _reads(text[start:stop], wanted):
            held = {i for unit in text[start:stop] for i in range(unit.first, unit.last + 1)}
            places.append(tuple(sorted(held)))
    return places


class _Unit(NamedTuple):
    """A folded character that is not white space."""

    character: str
    first: int  # piece in which it begins
    last: int  # piece in which it ends: a letter beyond ASCII may be spread over several
    spaced: bool  # whether white space stands before it


def _units(texts: Sequence[bytes]) -> list[_Unit]:
    owners = [i for i, text in enumerate(texts) for _ in text]
    units: list[_Unit] = []
    place, spaced = 0, True
    # surrogateescape: a broken byte stays one character, and the others keep their places.
    for letter in b"".join(texts).decode("utf-8", "surrogateescape"):
        width = len(letter.encode("utf-8", "surrogateescape"))
        if letter.isspace():
            spaced = True
        else:
            for folded in unicodedata.normalize("NFKC", letter).casefold():
                units.append(_Unit(folded, owners[place], owners[place + width - 1], spaced))
                spaced = False
        place += width
    return units


def _is_break(text: Sequence[_Unit], place: int) -> bool:
    """Whether a word may end before this unit and another begin."""
    if place in (0, len(text)) or text[place].spaced:
        return True
    return not _joined(text[place - 1].character, text[place].character)


def _joined(left: str, right: str) -> bool:
    return all(c.isalnum() and ord(c) < _FIRST_IDEOGRAPH and ord(c) not in _THAI for c in (left, right))


def _reads(text: Sequence[_Unit], wanted: Sequence[_Unit]) -> bool:
    if any(have.character != want.character for have, want in zip(text, wanted, strict=True)):
        return False
    # A vocabulary parts digits and punctuation from what they touch: between letters alone a space tells words apart.
    return all(
        have.spaced == want.spaced
        for before, have, want in zip(wanted, text[1:], wanted[1:], strict=False)
        if before.character.isalpha() and want.character.isalpha()
    )


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of the 256 bytes in the vocabularies of CLIP and GPT-2."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [code for code in range(256) if code not in plain]
    return {chr(c): c for c in plain} | {chr(256 + i): c for i, c in enumerate(others)}


_BYTES = _byte_alphabet()
