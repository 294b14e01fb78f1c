"""Prompts with their tokens: what the host's encode nodes do not keep."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from ...attention import AttentionPlan
from ...attention.pieces import Style, piece_text, style_of
from ...attention.token_map import TokenMap
from ...attention.tokens import Prompt, Role, Segment, Token, roles
from .fingerprint import fingerprint_conditioning

# Where a prompt ends in the chat templates around it: <|im_end|> of Qwen and <|eot_id|> of Llama 3.
_TEMPLATE_ENDS = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>"}
# Where a turn of Qwen's template begins, with a role and a line break behind it; Z-Image encodes them with the prompt.
_TURN, _TURN_TOKENS = "<|im_start|>", 3
# The two halves of one CLIP context: by channel, so that both have the same keys.
_CLIPS = ("l", "g")

_logger = logging.getLogger(__name__)


def encode(clip: Any, text: str) -> tuple[Prompt, Any]:
    """Encode a prompt and keep its tokens.

    Weights in parentheses scale embeddings; they are no tokens and do not show in the prompt.

    Args:
        clip: The CLIP.
        text: The prompt.

    Returns:
        The tokens in the order of the attention's keys, and the CONDITIONING.

    Raises:
        ValueError: If there is no CLIP, or its tokens cannot be found in what it encodes.
    """
    if clip is None:
        raise ValueError("clip must be connected, got nothing; use the CLIP of the model's loader.")
    tokens = clip.tokenize(text)
    conditioning = clip.encode_from_tokens_scheduled(tokens)
    if not conditioning:
        raise ValueError("clip must encode the prompt, got nothing back; use a CLIP of an image or video model.")
    return prompt_of(clip, text, tokens, int(conditioning[0][0].shape[1])), conditioning


def encodings(**branches: Any) -> dict[str, str]:
    """Return the fingerprint of the text of each branch's CONDITIONING, whatever else is in it."""
    return {name: text_fingerprint(conditioning) for name, conditioning in branches.items()}


def text_fingerprint(conditioning: Any) -> str:
    """Return a fingerprint of a CONDITIONING's encoded text alone: guidance, areas and pooled text do not count."""
    return fingerprint_conditioning([entry[0] for entry in conditioning])


def warn_of_other_prompts(plan: AttentionPlan, branches: Mapping[str, Any]) -> None:
    """Say so where the words of a plan are not those of the conditionings that it meets.

    Args:
        plan: The plan.
        branches: CONDITIONING of each branch.
    """
    encoded = {} if plan.text is None else plan.text.encoded
    for name, known in encoded.items():
        conditioning = branches.get(name)
        if conditioning and text_fingerprint(conditioning) != known:
            _logger.warning(
                "Retrace: the %s conditioning must be that of the node which found the words, got another, so that "
                "words may be looked for in wrong places; connect its output %s%s.",
                name,
                name,
                " to Invert" if name == "source" else "",
            )


def prompt_of(clip: Any, text: str, tokens: dict[str, Any], length: int) -> Prompt:
    """Return a prompt as attention sees it.

    Args:
        clip: The CLIP.
        text: The prompt.
        tokens: What clip.tokenize gave for it.
        length: Number of keys of its encoding.

    Returns:
        The prompt, of that length.

    Raises:
        ValueError: If the tokens do not account for the keys.
    """
    encoder = clip.cond_stage_model
    lines = {name: rows for name, rows in tokens.items() if isinstance(rows, list) and not _is_absent(encoder, name)}
    clips = [name for name in _CLIPS if name in lines]
    others = [name for name in lines if name not in _CLIPS]
    short = min(clips, key=lambda name: _count(lines[name])) if clips else None
    # SD3 has both one after the other, Flux and others only what stands beside CLIP; a template's head is cut off.
    layouts = [[short, *others], others] if short else [others]
    for names in layouts:
        if names and sum(_count(lines[name]) for name in names) == length:
            return Prompt(text, tuple(_segment(clip, name, lines[name]) for name in names))
    if len(others) == 1 and _count(lines[others[0]]) > length:
        whole = _segment(clip, others[0], lines[others[0]])
        return Prompt(text, (Segment(whole.name, whole.tokens[-length:]),))
    raise ValueError(
        f"clip must encode each token to one key, got {length} keys for "
        f"{', '.join(f'{_count(rows)} tokens of {name}' for name, rows in lines.items())} from "
        f"{type(encoder).__name__}; its words cannot be found."
    )


def _count(rows: Sequence[Sequence[Any]]) -> int:
    return sum(len(row) for row in rows)


def _is_absent(encoder: Any, name: str) -> bool:
    """Whether a model of several text encoders was loaded without this one."""
    return any(hasattr(encoder, key) and getattr(encoder, key) is None for key in (name, f"clip_{name}"))


def _segment(clip: Any, name: str, rows: Sequence[Sequence[Any]]) -> Segment:
    tokenizer = _tokenizer(clip, name)
    pieces: dict[int, str] = tokenizer.inv_vocab
    style = style_of(pieces.values())
    start = getattr(tokenizer, "start_token", None)
    end, pad = getattr(tokenizer, "end_token", None), getattr(tokenizer, "pad_token", None)
    tokens: list[Token] = []
    for row in rows:
        ids = [_id(entry[0]) for entry in row]
        line = [
            Token(i, _text(i, pieces, style), role) for i, role in zip(ids, roles(ids, start, end, pad), strict=True)
        ]
        tokens += _without_template(line, pieces)
    return Segment("clip" if name in _CLIPS else name, tuple(tokens))


def _without_template(line: list[Token], pieces: dict[int, str]) -> list[Token]:
    """Mark what a chat template puts around the prompt as its start and its end."""
    marks = [i for i, token in enumerate(line) if token.role == "word" and _piece(token.id, pieces) in _TEMPLATE_ENDS]
    if not marks:
        return line
    turns = [i for i, token in enumerate(line[: marks[-1]]) if _piece(token.id, pieces) == _TURN]
    first = turns[-1] + _TURN_TOKENS if turns else 0

    def role(place: int, token: Token) -> Role:
        if token.role != "word" or first <= place < marks[-1]:
            return token.role
        return "start" if place < first else "end"

    return [token._replace(role=role(place, token)) for place, token in enumerate(line)]


def _tokenizer(clip: Any, name: str) -> Any:
    holder = clip.tokenizer
    for key in (f"clip_{name}", name):
        if hasattr(getattr(holder, key, None), "inv_vocab"):
            return getattr(holder, key)
    if hasattr(holder, "inv_vocab"):
        return holder
    raise ValueError(
        f"clip must have a tokenizer with a vocabulary for {name!r}, got {type(holder).__name__}; "
        "its words cannot be found."
    )


def _id(entry: Any) -> Hashable:
    """The number of a token; of a learnt embedding, a digest of its values."""
    if torch.is_tensor(entry) and entry.ndim:
        values = entry.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        return hashlib.sha256(values).hexdigest()
    if isinstance(entry, dict):
        raise ValueError("prompt must hold words only, got a picture among its tokens; use a CLIP Text Encode prompt.")
    return int(entry)


def _piece(token: Hashable, pieces: dict[int, str]) -> str:
    return pieces.get(token, "") if isinstance(token, int) else ""


def _text(token: Hashable, pieces: dict[int, str], style: Style) -> bytes:
    return piece_text(_piece(token, pieces), style)


def cosines(source: Any, target: Any) -> torch.Tensor:
    """Return the cosine between every encoded token of two CONDITIONINGs, shape (source keys, target keys)."""
    one, other = (torch.nn.functional.normalize(cond[0][0][0].float().cpu(), dim=-1) for cond in (source, target))
    return one @ other.T


def alignment_text(text: TokenMap) -> str:
    """Return in words what a map does: what is kept, what takes whose place, what is new or gone, and the weights."""
    lines = []
    offsets = [0, 0]
    for source, target in zip(text.source.segments, text.target.segments, strict=True):
        words = [
            [(offset + i, token) for i, token in enumerate(segment.tokens) if token.role == "word"]
            for segment, offset in zip((source, target), offsets, strict=True)
        ]
        kept, swapped, new = [], [], []
        for j, token in words[1]:
            takes = [other for i, other in words[0] if float(text.matrix[i, j]) > 0.0]
            if not takes:
                new.append(_read([token]))
            elif token.id in [other.id for other in takes]:
                kept.append(_read([token]))
            else:
                swapped.append(f"{_read(takes)} > {_read([token])}")
        used = text.matrix[:, [j for j, _ in words[1]]].sum(1) > 0.0
        gone = [_read([token]) for i, token in words[0] if not bool(used[i])]
        named = (("kept", kept), ("replaced", swapped), ("new", new), ("not used", gone))
        described = "; ".join(
            f"{name}: {' '.join(some) if name == 'kept' else ', '.join(some)}" for name, some in named if some
        )
        lines.append(f"{source.name}: {described or 'no words'}")
        heavy = [f"{_read([token])} x {float(text.weights[j]):g}" for j, token in words[1] if text.weights[j] != 1.0]
        if heavy:
            lines.append(f"weights: {', '.join(heavy)}")
        offsets = [offsets[0] + len(source.tokens), offsets[1] + len(target.tokens)]
    return "\n".join(lines)


def _read(tokens: Sequence[Token]) -> str:
    return b"".join(token.text for token in tokens).decode("utf-8", "replace").strip() or "(embedding)"
