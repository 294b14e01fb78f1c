"""Entries of the editing benchmark whose way down reads from the source inside attention."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from editing_methods import Batch, Edit, Entry, Finish, Setting, both, calls_of, fitting
from torch import Tensor

from retrace.attention import Settings, get_preset
from retrace.attention.token_map import token_map
from retrace.attention.tokens import Prompt, Segment, Token, roles
from retrace.backends.diffusers import Cond
from retrace.backends.diffusers_attention import attended_field, family_of
from retrace.demo import models
from retrace.inversion import Inversion, blend, get_method, invert, replay


def attended(method: str, preset: str, **settings: Any) -> Edit:
    """Inversion at cfg 1 and a replay that reads from the source's own state at each level.

    Args:
        method: Method of the registry.
        preset: Preset of attention.
        settings: Of the preset.
    """
    scheme = get_method(method)

    def edit(batch: Batch, setting: Setting) -> Finish:
        # One forward of the source beside those of the target; outside the preset's steps it is left out.
        weight = 1 + calls_of(setting)

        def cost(level: int) -> int:
            return scheme.evaluations(level) + weight * scheme.evaluations(level, rising=False)

        level, steps = fitting(batch.budget, setting, cost)
        record = invert(batch.field("source"), batch.x0, batch.sigmas(steps), level, scheme, keep_path=True)
        plan = get_preset(preset).build(Settings(**settings), family_of(batch.model.network))

        def finish(mask: Tensor | None) -> Tensor:
            uncond = None if setting.cfg == 1.0 else batch.cond("")
            field = attended_field(
                batch.model, record, plan, batch.cond("source"), batch.cond("target"), uncond, setting.cfg
            )
            batch.count(field, weight)
            hook = None if mask is None else blend(record, mask)
            return replay(record, field, field, after_step=hook)

        return finish

    return edit


def prompted(method: str, window: tuple[float, float] = (0.0, 0.8), end: float | None = None) -> Edit:
    """Prompt-to-prompt with words replaced: each picture by itself, as each pair of prompts has a map of its own."""
    scheme = get_method(method)

    def edit(batch: Batch, setting: Setting) -> Finish:
        weight = 1 + calls_of(setting)

        def cost(level: int) -> int:
            return scheme.evaluations(level) + weight * scheme.evaluations(level, rising=False)

        level, steps = fitting(batch.budget, setting, cost)
        record = invert(batch.field("source"), batch.x0, batch.sigmas(steps), level, scheme, keep_path=True)
        uncond = None if setting.cfg == 1.0 else batch.cond("")

        def one(row: int, mask: Tensor | None) -> Tensor:
            text = token_map(_prompt(batch.captions[0][row]), _prompt(batch.captions[1][row]), "replace", window=window)
            plan = get_preset("p2p").build(Settings(text=text, end=end), family_of(batch.model.network))
            alone = _row_of(record, row)
            conds = [_cond_row(batch.cond(name), row) for name in ("source", "target")]
            field = attended_field(batch.model, alone, plan, *conds, uncond, setting.cfg)
            if row == 0:
                batch.count(field, weight)
            hook = None if mask is None else blend(alone, mask[row : row + 1])
            return replay(alone, field, field, after_step=hook)

        def finish(mask: Tensor | None) -> Tensor:
            return torch.cat([one(row, mask) for row in range(len(batch.x0))])

        return finish

    return edit


def _row_of(record: Inversion, row: int) -> Inversion:
    part = slice(row, row + 1)
    path = None if record.path is None else tuple(state[part] for state in record.path)
    mate = None if record.mate is None else record.mate[part]
    residuals = None if record.residuals is None else tuple(state[part] for state in record.residuals)
    return replace(record, x0=record.x0[part], x=record.x[part], mate=mate, path=path, residuals=residuals)


def _cond_row(cond: Cond, row: int) -> Cond:
    part = slice(row, row + 1)
    return Cond(cond.tokens[part], None if cond.pooled is None else cond.pooled[part])


@functools.cache
def _prompt(text: str) -> Prompt:
    """A caption in the keys of the demo models."""
    tokenizer = _tokenizer()
    ids = tokenizer(text, padding="max_length", max_length=models.MAX_TOKENS, truncation=True)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    found = roles(ids, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    tokens = tuple(
        Token(i, piece.replace("</w>", " ").encode() if role == "word" else b"", role)
        for i, piece, role in zip(ids, pieces, found, strict=True)
    )
    return Prompt(text, (Segment("clip", tokens),))


@functools.cache
def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(models.WEIGHTS / "tokenizer")


# The presets' own layers are those of large networks.
_LATE = "0.5-1.0"
_NOTE = "reads from the source's inverted state, whose forward is counted at every step"
# The wanted comparison is with the baseline, at its guidance.
_PROMPTED = {"eps": Setting(7.5)}
ATTENDED = (
    Entry("ddim + p2p", prompted("ddim"), _PROMPTED, by_hand=True, note=f"prompt-to-prompt, words replaced; {_NOTE}"),
    Entry("direct + p2p", prompted("direct"), _PROMPTED, by_hand=True, note=f"carry 1, recorded at cfg 1; {_NOTE}"),
    Entry(
        "ddim + structure",
        attended("ddim", "structure", layers=_LATE),
        both(2.0),
        paper=7.5,
        by_hand=True,
        note=f"q and k of self-attention in the later half of the layers; {_NOTE}",
    ),
    Entry(
        "midpoint + structure",
        attended("midpoint", "structure", layers=_LATE),
        both(1.0),
        by_hand=True,
        note=f"the same; {_NOTE}",
    ),
    Entry(
        "midpoint + value",
        attended("midpoint", "value", layers=_LATE),
        both(1.0),
        by_hand=True,
        note=f"RF-Edit: v in the later half of the layers; {_NOTE}",
    ),
    Entry(
        "ddim + mutual",
        attended("ddim", "mutual", layers=_LATE),
        both(2.0),
        by_hand=True,
        note=f"MasaCtrl: k and v in the later half of the layers; {_NOTE}",
    ),
)
