"""Entries of the editing benchmark whose way down reads from the source inside attention."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from editing_methods import Batch, Edit, Entry, Finish, Setting, both, calls_of, fitting
from torch import Tensor

from retrace.attention import AttentionPlan, Settings, Step, Window
from retrace.attention.local_blend import LocalBlend, with_local_blend
from retrace.attention.token_map import Mode, token_map
from retrace.attention.tokens import Prompt, Segment, Token, roles
from retrace.attention.word_list import Word
from retrace.backends.attended_infedit import attended_infedit
from retrace.backends.diffusers import Cond
from retrace.backends.diffusers_attention import Prompts, attended_replay, preset_plan
from retrace.demo import models, world
from retrace.inversion import Denoiser, EditOptions, Inversion, blend, get_method, invert


class Forwards:
    """Counts the pictures that go through a network.

    Attributes:
        evaluations: Forwards for each picture of a batch, rounded up.
    """

    def __init__(self, batch: Batch) -> None:
        self._network, self._items, self._rows = batch.model.network, len(batch.x0), 0
        batch.count(self, 1)

    @property
    def evaluations(self) -> int:
        """Forwards for each picture."""
        return -(-self._rows // self._items)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What runs inside counts."""

        def count(_: Any, given: tuple[Any, ...]) -> None:
            self._rows += given[0].shape[0]

        hook = self._network.register_forward_pre_hook(count)
        try:
            yield
        finally:
            hook.remove()


@dataclass(frozen=True)
class Words:
    """How presets with a token map read the prompts of a triple.

    Attributes:
        window: Steps in which words that stay take the source's attention.
        end: End of the steps in which self-attention is the source's; None for the preset's.
        look: Both of these for a new colour of the object or the background, which leaves the layout as it is.
        mode: How words are matched.
        blend: Local blend by the object of the prompts; None for none.
        until: Share of the steps in which the blend reads its maps, for which the source has to be asked.
    """

    window: tuple[float, float] = (0.0, 0.8)
    end: float | None = None
    look: tuple[tuple[float, float], float | None] | None = None
    mode: Mode = "replace"
    blend: LocalBlend | None = None
    until: float = 1.0


def _keeps_layout(source: str, target: str) -> bool:
    one, other = world.parse(source), world.parse(target)
    return one.colour != other.colour or one.background != other.background


def nouns(source: str, target: str) -> list[Word]:
    """The object of both captions: where either attends to it, a local blend lets the picture change.

    None for a new background: no word of a caption marks the background on the demo model, and the edge of the object
    has to change with it.
    """
    one, other = world.parse(source), world.parse(target)
    if one.background != other.background:
        return []
    return [Word(noun) for noun in dict.fromkeys((one.shape, other.shape))]


def attended(
    method: str,
    preset: str,
    words: Words | None = None,
    params: Mapping[str, bool | int | float | str] | None = None,
    **settings: Any,
) -> Edit:
    """Inversion at cfg 1 and a replay that reads from the source's own state at each level where a rule acts.

    Args:
        method: Method of the registry.
        preset: Preset of attention.
        words: For presets with a token map: each group of pictures whose prompts have one map goes by itself.
        params: Settings of the method.
        settings: Of the preset.
    """
    scheme = get_method(method, params or {})

    def edit(batch: Batch, setting: Setting) -> Finish:
        weight = calls_of(setting)
        if words is None:
            plan = preset_plan(preset, Settings(**settings), batch.model.network)
            groups = [(list(range(len(batch.x0))), plan)]
        else:
            groups = grouped(batch, preset, words, **settings)
        # Direct inversion records what the guided source misses.
        corrected = scheme.corrects_guidance and bool(scheme.params.get("carry"))
        uncond = None if setting.cfg == 1.0 else batch.cond("")
        forwards = Forwards(batch)

        def cost(plan: AttentionPlan, level: int) -> int:
            up = scheme.evaluations(level) + (level * (weight - 1) if corrected else 0)
            down = scheme.evaluations(level, rising=False)
            run = plan.start()
            beside = sum(run.active(Step(i, level, 0.5)) for i in range(level))
            return up + weight * down + beside * down // level

        def inverted(rows: Sequence[int], plan: AttentionPlan) -> Inversion:
            level, steps = fitting(batch.budget, setting, functools.partial(cost, plan))
            x0, cond = batch.x0[rows], cond_rows(batch.cond("source"), rows)
            source = batch.model.denoiser(x0, cond)
            if corrected:
                guided = batch.model.denoiser(x0, cond, uncond, setting.cfg)
                source = Denoiser(guided, source.space, source.sigma_floor, plain=source)
            return invert(source, x0, batch.sigmas(steps), level, scheme, keep_path=True)

        with forwards.counted():
            records = [inverted(rows, plan) for rows, plan in groups]

        def finish(mask: Tensor | None) -> Tensor:
            out = torch.empty_like(batch.x0)
            with forwards.counted():
                for (rows, plan), record in zip(groups, records, strict=True):
                    hook = None if mask is None else blend(record, mask[rows])
                    prompts = prompts_of(batch, rows, uncond, setting.cfg)
                    out[rows] = attended_replay(batch.model, record, plan, prompts, hook)
            return out

        return finish

    return edit


def prompts_of(batch: Batch, rows: Sequence[int], uncond: Cond | None, cfg: float) -> Prompts:
    """Conditionings of some rows of a batch."""
    return Prompts(*(cond_rows(batch.cond(name), rows) for name in ("source", "target")), uncond, cfg)


def unified(words: Words, **settings: Any) -> Edit:
    """InfEdit with its third branch; `words.mode` similarity as in its paper."""

    def edit(batch: Batch, setting: Setting) -> Finish:
        groups = grouped(batch, "unified", words, **settings)
        # Source, target and the third branch; a guided target has its own negative and reads the source's.
        each = 3 if setting.cfg == 1.0 else 5
        level, steps = fitting(batch.budget, setting, lambda k: each * k)
        uncond = None if setting.cfg == 1.0 else batch.cond("")
        forwards = Forwards(batch)

        def finish(mask: Tensor | None) -> Tensor:
            out = torch.empty_like(batch.x0)
            with forwards.counted():
                for rows, plan in groups:
                    numbers = [batch.rows[row] for row in rows]
                    options = EditOptions(rows=numbers, mask=None if mask is None else mask[rows])
                    prompts = prompts_of(batch, rows, uncond, setting.cfg)
                    x0, sigmas = batch.x0[rows], batch.sigmas(steps)
                    out[rows] = attended_infedit(batch.model, plan, x0, sigmas, level, prompts, options=options)
            return out

        return finish

    return edit


def grouped(batch: Batch, preset: str, words: Words, **settings: Any) -> list[tuple[list[int], AttentionPlan]]:
    """Rows whose prompts have one token map and one plan."""
    found: dict[Any, tuple[list[int], AttentionPlan]] = {}
    for row, (source, target) in enumerate(zip(*batch.captions, strict=True)):
        near = _cosines(batch, row) if words.mode == "similarity" else None
        window, end = words.window, words.end
        if words.look is not None and _keeps_layout(source, target):
            window, end = words.look
        text = token_map(_prompt(source), _prompt(target), words.mode, window=window, cosine=near)
        plan = preset_plan(preset, Settings(text=text, end=end, **settings), batch.model.network)
        named = nouns(source, target)
        if words.blend is not None and named:
            plan = with_local_blend(plan, words.blend, named)
            probes = tuple(replace(probe, window=Window(0.0, words.until)) for probe in plan.probes)
            plan = replace(plan, probes=probes)
        maps = (part.numpy().tobytes() for part in (text.matrix, text.alpha))
        key = (window, end, *maps, *((probe.name, probe.tokens) for probe in plan.probes))
        found.setdefault(key, ([], plan))[0].append(row)
    return list(found.values())


def _cosines(batch: Batch, row: int) -> Tensor:
    tokens = (batch.cond(name).tokens[row].float() for name in ("source", "target"))
    one, other = (torch.nn.functional.normalize(each, dim=-1) for each in tokens)
    return one @ other.T


def cond_rows(cond: Cond, rows: Sequence[int]) -> Cond:
    """The conditioning of some of its pictures."""
    return Cond(cond.tokens[rows], None if cond.pooled is None else cond.pooled[rows])


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
# The first fifth of the steps lays the picture out: a new shape or place needs its own attention to itself there.
_LOOK = ((0.0, 0.8), 0.4)
_BRIEF = Words((0.0, 0.2), 0.0, _LOOK)
_BLENDED = replace(_BRIEF, blend=LocalBlend(threshold=0.3), until=0.5)
_NOTE = "the source's forwards beside the target's are counted where they are made"
_BRIEF_NOTE = (
    "words replaced for 0.8 of the steps and self-attention for 0.4 of them where a colour changes, 0.2 and none where "
    "a shape or place does"
)
_BLEND_NOTE = "a local blend by the object's noun, but for new backgrounds"
_SAME = {"eps": Setting(2.0), "flow": Setting(1.0)}
# For the report: what the settings above rest on.
NOTE = """\
The settings of the rows that read from the source inside attention were tried on 16 pictures whose combinations were
trained on, 4 of each kind, 8 or 4 where only some kinds are given. PSNR outside is against the source through the VAE,
in dB; a *-* was not tried. Every row changed what was asked for in all of its pictures but where a share is given.

| eps model | cfg | colour | background | shape | position | all |
| --- | --- | --- | --- | --- | --- | --- |
| naive DDIM | 7.5 | 29.6 | 21.0 | 32.7 | 32.7 | 29.0 |
| noise_map | 1 | 34.2 | 23.3 | 43.0 | 38.4 | 34.7 |
| noise_map + p2p, words 0.2, no self, blend but for backgrounds | 1 | 32.7 | 23.6 | 43.3 | 38.3 | 34.5 |
| noise_map + p2p, words 0.5, no self | 1 | 34.0 | 23.8 | - | - | - |
| noise_map + p2p, words 0.8, self 0.4 | 1 | 33.9 | 24.2 | - | - | - |
| noise_map + p2p, words and self 1 | 1 | - | 24.6 | - | - | - |

| flow model | cfg | colour | background | shape | position | all |
| --- | --- | --- | --- | --- | --- | --- |
| midpoint | 1 | 34.18 | 22.7 | 41.9 | 38.4 | 34.32 |
| midpoint + rf_edit, later layers, 0.2 | 1 | 34.3 | 22.7 | 41.9 | 38.4 | 34.31 |
| midpoint + structure, later layers, 0.2 | 1 | 34.2 | 22.7 | 41.9 | 38.4 | 34.32 |
| midpoint + structure, all layers, 0.5 | 1 | 34.3 | 22.6 | 42.0 | 36.8 | 33.93 |
| infedit + unified, words 0.2, self 0.1 (success 94 %) | 2 | 32.7 | 22.2 | 40.1 | 34.6 | 32.4 |

RF-Edit and structure once more, on 32 such pictures, 8 of each kind:

| flow model | cfg | success % | colour | background | shape | position | all |
| --- | --- | --- | --- | --- | --- | --- | --- |
| midpoint | 1 | 97 | 37.0 | 23.9 | 42.9 | 39.6 | 35.88 |
| midpoint + rf_edit, later layers, 0.2 | 1 | 97 | 37.1 | 24.0 | 42.9 | 39.6 | 35.88 |
| midpoint + rf_edit, later layers, 0.5 | 1 | 97 | 37.1 | 24.2 | 42.9 | 39.5 | 35.94 |
| midpoint + rf_edit, all layers, 0.5 | 1 | 97 | 37.1 | 24.3 | 43.0 | 39.5 | 35.97 |
| midpoint + rf_edit, all layers, 0.8 | 1 | 81 | 37.3 | 24.8 | 43.6 | 38.1 | 35.94 |
| midpoint + rf_edit, all layers, 1 | 1 | 59 | 38.3 | 28.5 | 43.0 | 35.2 | 36.25 |
| midpoint + structure, all layers, 0.2 | 1 | 97 | 37.0 | 24.0 | 43.0 | 39.4 | 35.86 |
| midpoint + structure, all layers, 0.5 | 1 | 97 | 37.0 | 24.1 | 43.2 | 37.9 | 35.54 |
| midpoint | 3 | 97 | 33.7 | 22.7 | 36.0 | 33.7 | 31.49 |
| midpoint + rf_edit, later layers, 0.2 | 3 | 97 | 33.7 | 22.4 | 35.1 | 33.5 | 31.18 |
| midpoint + rf_edit, all layers, 0.5 | 3 | 97 | 32.8 | 22.2 | 33.5 | 32.3 | 30.20 |
| midpoint + structure, all layers, 0.2 | 3 | 97 | 33.6 | 22.1 | 36.6 | 33.6 | 31.49 |
| midpoint + structure, all layers, 0.5 | 3 | 69 | 33.3 | 22.5 | 36.2 | 27.0 | 29.74 |

On 12 of the 16 the target as the world draws it, through the VAE and with no edit at all, has 34.7,
26.9, 42.6 and 39.2, 35.8 dB in all: a new colour shows across the border in what the decoder makes of the source's own
cells. A local blend holds those cells, bit for bit, and pays for it at the border: the drawn target blended with the
source's latent outside the mask has 33.9 dB. For a new background no word of the caption marks the background: the
maps of *background* and of its colour overlap it by an IoU of 0.27 and 0.52 at best, that of the object's noun overlaps
the object by 0.83, so that backgrounds are not blended.
"""
ATTENDED = (
    Entry(
        "ddim + p2p",
        attended("ddim", "p2p", Words()),
        {"eps": Setting(7.5)},
        by_hand=True,
        note=f"prompt-to-prompt with words replaced, in the windows of its paper and at the baseline's cfg; {_NOTE}",
    ),
    Entry(
        "direct + p2p",
        attended("direct", "p2p", _BRIEF),
        {"eps": Setting(2.0)},
        by_hand=True,
        note=f"carry 1; {_BRIEF_NOTE}",
    ),
    Entry(
        "direct + p2p + blend",
        attended("direct", "p2p", _BLENDED),
        {"eps": Setting(2.0)},
        by_hand=True,
        note=f"the same, with {_BLEND_NOTE}",
    ),
    Entry(
        "noise_map + p2p",
        attended("noise_map", "p2p", _BRIEF),
        {"eps": Setting(1.0)},
        by_hand=True,
        note=_BRIEF_NOTE,
    ),
    Entry(
        "noise_map + p2p + blend",
        attended("noise_map", "p2p", _BLENDED),
        {"eps": Setting(1.0)},
        by_hand=True,
        note=f"the same, with {_BLEND_NOTE}",
    ),
    Entry(
        "ledits + p2p",
        attended("noise_map", "p2p", _BRIEF, {"stepper": "dpmpp_2m_sde"}),
        {"eps": Setting(1.0)},
        by_hand=True,
        note="noise_map + p2p with stepper dpmpp_2m_sde",
    ),
    Entry(
        "infedit + unified",
        unified(Words((0.0, 0.2), 0.1, mode="similarity")),
        {"eps": Setting(1.0), "flow": Setting(2.0)},
        by_hand=True,
        note="complete InfEdit: three branches, the source's words in a fifth of the steps, its layout in a tenth; "
        "three forwards a step, five where the target is guided",
    ),
    Entry(
        "ddim + structure",
        attended("ddim", "structure", layers=_LATE),
        _SAME,
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
        "midpoint + rf_edit",
        attended("midpoint", "rf_edit", layers="all", end=0.5),
        {"flow": Setting(1.0)},
        by_hand=True,
        note=f"RF-Edit: v in all layers and half of the steps, the best of the windows below; {_NOTE}",
    ),
    Entry(
        "midpoint + rf_edit, late",
        attended("midpoint", "rf_edit", layers=_LATE),
        {"eps": Setting(1.0)},
        by_hand=True,
        note=f"the same on a UNet: v in the later half of the layers and a fifth of the steps; {_NOTE}",
    ),
    Entry(
        "ddim + masactrl",
        attended("ddim", "masactrl", layers=_LATE),
        _SAME,
        by_hand=True,
        note=f"MasaCtrl: k and v in the later half of the layers; {_NOTE}",
    ),
)
