"""The tokenizer of the Shapes world: byte-pair encoding learnt from its own words, in CLIP's file format."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from .world import COLOURS, POSITIONS, SHAPES, SIZES

# Words of the captions, and of prompts that people type about such pictures.
WORDS = (
    *COLOURS, *SHAPES, *SIZES, *POSITIONS,
    "a", "an", "the", "on", "at", "in", "of", "and", "with", "background", "picture", "photo", "shape",
)  # fmt: skip


def _alphabet() -> list[str]:
    """The 256 printable stand-ins of bytes that CLIP and GPT-2 use, in CLIP's order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [256 + i for i in range(256 - len(plain))]
    return [chr(code) for code in (*plain, *shifted)]


def merges(words: tuple[str, ...] = WORDS) -> list[tuple[str, str]]:
    """Merge rules, most frequent pair first, until each word is one token."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    rules: list[tuple[str, str]] = []
    while any(len(piece) > 1 for piece in pieces):
        pairs = Counter(pair for piece in pieces for pair in pairwise(piece))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        rules.append(best)
        for piece in pieces:
            i = 0
            while i < len(piece) - 1:
                if (piece[i], piece[i + 1]) == best:
                    piece[i : i + 2] = ["".join(best)]
                i += 1
    return rules


def write(folder: Path, max_tokens: int) -> int:
    """Write vocab.json, merges.txt and the configuration that CLIPTokenizer reads; returns the vocabulary's size."""
    rules = merges()
    alphabet = _alphabet()
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(rule) for rule in rules)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in rules), encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_tokens, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    return len(tokens)
