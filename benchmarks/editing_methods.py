"""The methods that the editing benchmark compares; a further one is one more entry in ENTRIES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from retrace.backends.diffusers import Cond, DiffusersModel
from retrace.inversion import (
    METHODS,
    Denoiser,
    EditOptions,
    FlowEdit,
    InfEdit,
    InversionFreeEdit,
    NegativePrompt,
    NullText,
    blend,
    get_method,
    invert,
    null_text,
    replay,
)

# Network calls that every method may spend on a picture, up and down together; a guided step down costs two.
BUDGET = 40


class Batch:
    """Some triples at once, and the denoisers of their prompts with all calls counted.

    Attributes:
        model: The model.
        x0: Source latents (B, C, H, W).
        mask: Where an edit may act on the latent grid, (B, 1, H, W), for the edits inside a mask.
        rows: Number of each triple in the whole set, so that noise does not depend on the batches.
        budget: Network calls that may be spent on a picture.
        captions: Prompts of the sources and of the targets.
    """

    def __init__(
        self,
        model: DiffusersModel,
        x0: Tensor,
        sources: list[str],
        targets: list[str],
        rows: list[int],
        mask: Tensor,
        budget: int = BUDGET,
    ) -> None:
        self.model, self.x0, self.rows, self.mask, self.budget = model, x0, rows, mask, budget
        self.captions = (sources, targets)
        self._prompts = {"source": model.prompt(sources), "target": model.prompt(targets), "": model.prompt("")}
        self._denoisers: list[tuple[Denoiser, int]] = []

    def denoiser(self, prompt: str, cfg: float = 1.0, negative: str = "") -> Denoiser:
        """The model under "source", "target" or the empty prompt "", guided away from another of them."""
        guided = cfg != 1.0
        denoiser = self.model.denoiser(self.x0, self.cond(prompt), self.cond(negative) if guided else None, cfg)
        self._denoisers.append((denoiser, 2 if guided else 1))
        return denoiser

    def count(self, denoiser: Denoiser, calls: int) -> None:
        """Count a denoiser that was made elsewhere, at so many network calls an evaluation."""
        self._denoisers.append((denoiser, calls))

    def exchangeable(self) -> Denoiser:
        """The model under the empty prompt, whose embedding can be exchanged; unguided."""
        empty = self.cond("")

        def under(tokens: Tensor) -> Denoiser:
            return self.model.denoiser(self.x0, Cond(tokens, empty.pooled))

        denoiser = Denoiser(under(empty.tokens), self.model.space, self.denoiser("").sigma_floor, under)
        self._denoisers.append((denoiser, 1))
        return denoiser

    def cond(self, prompt: str) -> Cond:
        """The conditioning of "source", "target" or ""."""
        return self._prompts[prompt]

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """The model's grid of so many steps."""
        return self.model.schedule(*self.x0.shape[2:]).grid(steps)

    @property
    def calls(self) -> int:
        """Network calls for one picture so far."""
        return sum(denoiser.evaluations * weight for denoiser, weight in self._denoisers)


@dataclass(frozen=True)
class Setting:
    """Guidance of the way down under the target, and how much of the grid is walked."""

    cfg: float
    strength: float = 1.0


# From None to the edit of the whole picture, from the batch's mask to that inside it. What both have in common, an
# inversion, is done before.
Finish = Callable[[Tensor | None], Tensor]
Edit = Callable[[Batch, Setting], Finish]


@dataclass(frozen=True)
class Entry:
    """A method as the benchmark runs it.

    Attributes:
        name: Name in tables and files.
        edit: From a batch and a setting to the edit.
        settings: Setting for each kind of model, chosen by `editing.py --tune` unless it is by hand.
        paper: Guidance of its paper, which gets a row of its own; None where that is no other.
        note: What the table must say.
        by_hand: Whether its setting was chosen without a search.
    """

    name: str
    edit: Edit
    settings: Mapping[str, Setting]
    paper: float | None = None
    note: str = ""
    by_hand: bool = False


def fitting(budget: int, setting: Setting, cost: Callable[[int], int]) -> tuple[int, int]:
    """Return the level k and the steps N with cost(k) within the budget and k / N the strength; at least 2 levels."""
    level = 2
    while cost(level + 1) <= budget:
        level += 1
    return level, max(level, round(level / setting.strength))


def calls_of(setting: Setting) -> int:
    """Network calls of a guided prediction."""
    return 1 if setting.cfg == 1.0 else 2


def replayed(method: str, extra: int = 0, **params: bool | int | float | str) -> Edit:
    """Inversion at cfg 1 and replay under the target, by a method of the registry with these settings.

    Args:
        method: Its name.
        extra: Calls of the target's denoiser that its `evaluations` does not count.
        params: Its settings.
    """
    scheme = get_method(method, params)

    def edit(batch: Batch, setting: Setting) -> Finish:
        def cost(level: int) -> int:
            down = scheme.evaluations(level, rising=False) + extra
            return scheme.evaluations(level) + calls_of(setting) * down

        level, steps = fitting(batch.budget, setting, cost)
        source = batch.denoiser("source")
        record = invert(source, batch.x0, batch.sigmas(steps), level, scheme, keep_path=True)

        def finish(mask: Tensor | None) -> Tensor:
            hook = None if mask is None else blend(record, mask)
            return replay(record, source, batch.denoiser("target", setting.cfg), after_step=hook)

        return finish

    return edit


def paired(rule: InversionFreeEdit, negative: str = "", source_cfg: float = 1.0) -> Edit:
    """An edit that needs no inversion."""

    def edit(batch: Batch, setting: Setting) -> Finish:
        def cost(level: int) -> int:
            of_source, of_target = rule.evaluations(level)
            return (1 if source_cfg == 1.0 else 2) * of_source + calls_of(setting) * of_target

        level, steps = fitting(batch.budget, setting, cost)

        def finish(mask: Tensor | None) -> Tensor:
            source = batch.denoiser("source", source_cfg, negative)
            target = batch.denoiser("target", setting.cfg, negative)
            return rule.edit(
                source, target, batch.x0, batch.sigmas(steps), level, EditOptions(mask=mask, rows=batch.rows)
            )

        return finish

    return edit


def null_texted(inner_steps: int) -> Edit:
    """Official DDIM inversion, null-text optimisation, replay under the target; the fit goes beyond the budget."""
    scheme = get_method("ddim")

    def edit(batch: Batch, setting: Setting) -> Finish:
        level, steps = fitting(batch.budget, setting, lambda k: k + 2 * k)
        source = batch.denoiser("source")
        record = invert(source, batch.x0, batch.sigmas(steps), level, scheme, keep_path=True)
        settings = NullText(setting.cfg, inner_steps)
        fitted = null_text(record, source, batch.exchangeable(), batch.cond("").tokens, settings)

        def finish(mask: Tensor | None) -> Tensor:
            hook = None if mask is None else blend(fitted, mask)
            return replay(fitted, source, batch.denoiser("target", setting.cfg), after_step=hook)

        return finish

    return edit


def directed(carry: float) -> Edit:
    """Direct inversion: the residuals of the guided source are in the record, at the guidance of the way down."""
    scheme = get_method("direct", {"carry": carry})

    def edit(batch: Batch, setting: Setting) -> Finish:
        weight = calls_of(setting)

        def cost(level: int) -> int:
            residuals = level * weight if carry > 0.0 else 0
            return level + residuals + weight * level

        level, steps = fitting(batch.budget, setting, cost)
        plain = batch.denoiser("source")
        guided = batch.denoiser("source", setting.cfg)
        source = Denoiser(guided, plain.space, plain.sigma_floor, plain=plain)
        record = invert(source, batch.x0, batch.sigmas(steps), level, scheme)

        def finish(mask: Tensor | None) -> Tensor:
            hook = None if mask is None else blend(record, mask)
            return replay(record, source, batch.denoiser("target", setting.cfg), after_step=hook)

        return finish

    return edit


def negative_prompted(prox: str) -> Edit:
    """Official DDIM inversion, and a way down that is guided away from the source prompt."""
    scheme = get_method("ddim")

    def edit(batch: Batch, setting: Setting) -> Finish:
        level, steps = fitting(batch.budget, setting, lambda k: k + 2 * k)
        source = batch.denoiser("source")
        record = invert(source, batch.x0, batch.sigmas(steps), level, scheme)

        def finish(mask: Tensor | None) -> Tensor:
            guidance = NegativePrompt(setting.cfg, prox)
            guided = guidance.denoiser(record, source, batch.denoiser("target"))
            hook = None if mask is None else blend(record, mask)
            return replay(record, source, guided, after_step=hook)

        return finish

    return edit


def descended(iterations: int) -> Edit:
    """SPDInv with the baseline's steps; its descent goes beyond the budget."""
    scheme = get_method("spd", {"iterations": iterations})

    def edit(batch: Batch, setting: Setting) -> Finish:
        level, steps = fitting(batch.budget, setting, lambda k: k + calls_of(setting) * k)
        source = batch.denoiser("source")
        record = invert(source, batch.x0, batch.sigmas(steps), level, scheme, keep_path=True)

        def finish(mask: Tensor | None) -> Tensor:
            hook = None if mask is None else blend(record, mask)
            return replay(record, source, batch.denoiser("target", setting.cfg), after_step=hook)

        return finish

    return edit


def both(cfg: float, strength: float = 1.0) -> dict[str, Setting]:
    """One setting for both models."""
    return {"eps": Setting(cfg, strength), "flow": Setting(cfg, strength)}


# Settings of a registry method that has no entry of its own: nobody has tuned it.
UNTUNED = both(2.0)
BASELINE = "naive DDIM, cfg 7.5"

# Guidance of papers: prompt-to-prompt and null-text 7.5, EDICT and BDIA 3, O-BELM 2, edit-friendly DDPM 9, InfEdit 2.3,
# FlowEdit and FlowAlign 13.5 for SD3. Those of RF-Solver and FireFlow are inputs of a distilled model and no cfg.
ENTRIES = (
    Entry(BASELINE, replayed("ddim"), both(7.5), by_hand=True),
    # The longest by far: begun first, it leaves no worker waiting for it at the end.
    Entry(
        "null_text",
        null_texted(10),
        both(7.5),
        note="at its paper's cfg, with the 13 steps that the baseline has; the calls of the fit, up to 10 updates a "
        "step, go beyond the budget, and its backward passes are not counted",
        by_hand=True,
    ),
    Entry("ddim", replayed("ddim"), {"eps": Setting(2.0), "flow": Setting(1.0)}),
    Entry("euler", replayed("euler"), both(1.0), paper=7.5),
    Entry("midpoint", replayed("midpoint"), both(1.0)),
    Entry("fireflow", replayed("fireflow"), both(1.0)),
    Entry("fixed_point", replayed("fixed_point"), both(2.0), note="5 iterations, memory 2"),
    Entry("uni_inv", replayed("fixed_point", iterations=1, memory=0, warm_start=True), both(1.0)),
    Entry("edict", replayed("edict"), both(1.0), paper=3.0),
    Entry("bdia", replayed("bdia", gamma=0.96), both(1.0), paper=3.0, note="gamma 0.96"),
    Entry("belm", replayed("belm", extra=1), both(1.0), paper=2.0, note="with reseed"),
    Entry("noise_map", replayed("noise_map"), both(1.0), paper=9.0),
    Entry(
        "ledits",
        replayed("noise_map", stepper="dpmpp_2m_sde"),
        both(1.0),
        note="noise_map, stepper dpmpp_2m_sde",
        by_hand=True,
    ),
    Entry("direct", directed(1.0), both(2.0), paper=7.5, note="carry 1", by_hand=True),
    Entry("direct_half", directed(0.5), both(2.0), note="carry 0.5", by_hand=True),
    Entry("npi", negative_prompted("none"), both(1.5), paper=7.5, note="negative-prompt inversion", by_hand=True),
    Entry("proxnpi", negative_prompted("l0"), both(1.5), paper=7.5, note="with proximal guidance, l0", by_hand=True),
    Entry(
        "spd",
        descended(5),
        both(1.0),
        note="at most 5 updates a step, which go beyond the budget; backward passes are not counted",
        by_hand=True,
    ),
    Entry(
        "rf_inversion",
        replayed("rf_inversion"),
        both(2.0),
        note="gamma 0.5, eta 0.9 for a quarter of the steps",
        by_hand=True,
    ),
    Entry("infedit", paired(InfEdit()), {"eps": Setting(1.0), "flow": Setting(2.0)}, paper=2.3),
    Entry("flowedit", paired(FlowEdit()), both(1.0), paper=13.5),
    Entry(
        "flowalign",
        paired(FlowEdit(pull=0.01), negative="source"),
        both(1.0),
        paper=13.5,
        note="FlowEdit with pull 0.01 and the source prompt as negative, which acts above cfg 1",
    ),
)


def entries() -> dict[str, Entry]:
    """ENTRIES, and one more for every method of the registry that none of them is named after."""
    from editing_attention import ATTENDED

    found = {entry.name: entry for entry in (*ENTRIES, *ATTENDED)}
    found.update({name: Entry(name, replayed(name), UNTUNED, by_hand=True) for name in METHODS if name not in found})
    return found
