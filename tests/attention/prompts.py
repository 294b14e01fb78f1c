"""Prompts in the key order of CLIP and T5, from tokenizers small enough to be read."""

import zlib

from retrace.attention.pieces import piece_text
from retrace.attention.tokens import Prompt, Segment, Token, roles

START, END = 1, 2


def clip(text, row=12):
    """A CLIP segment: rows of this length with start, end and pads; a piece "a_b" is a word of two tokens."""
    pieces = [f"{p}</w>" if last else p for word in text.split() for p, last in parts(word)]
    texts = {zlib.crc32(p.encode()) + 10: piece_text(p, "end") for p in pieces}
    ids = list(texts) if len(texts) == len(pieces) else [zlib.crc32(p.encode()) + 10 for p in pieces]
    tokens = []
    for first in range(0, max(len(ids), 1), row - 2):
        line = [START, *ids[first : first + row - 2], END]
        line += [END] * (row - len(line))
        tokens += [
            Token(i, texts.get(i, b""), role) for i, role in zip(line, roles(line, START, END, END), strict=True)
        ]
    return Segment("clip", tuple(tokens))


def t5(text, length=16):
    """A T5 segment: no start, one end, pads of another id."""
    pieces = [f"▁{p}" if first else p for word in text.split() for p, first in reversed_parts(word)]
    ids = [zlib.crc32(p.encode()) + 10 for p in pieces] + [END]
    ids += [0] * (length - len(ids))
    texts = [piece_text(p, "start") for p in pieces] + [b""] * len(ids)
    return Segment("t5xxl", tuple(map(Token, ids, texts, roles(ids, None, END, 0))))


def parts(word):
    pieces = word.split("_")
    return [(p, i == len(pieces) - 1) for i, p in enumerate(pieces)]


def reversed_parts(word):
    return [(p, i == 0) for i, p in enumerate(word.split("_"))]


def sd15(text, row=12):
    """One CLIP segment."""
    return Prompt(text, (clip(text, row),))


def sd3(text):
    """The text twice: CLIP, then T5."""
    return Prompt(text, (clip(text), t5(text)))
