"""Attention control inside a SAMPLER: the target is the guider's, the source stands where an inversion says.

A SAMPLER is called with a guider in the middle of its run. Its conditionings are the target's; the source's own are
prepared beside them, and each call of the solver asks both.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.samplers
import torch

from ...attention import AttentionPlan, AttentionRun
from ...inversion import AfterStep, Inversion, work_dtype
from ..host.checks import check_state_fits
from ..host.denoiser import Callback
from ..host.guider import SteadyGuider
from ..host.misfits import explained
from ..inverting.link import Bundle
from ..inverting.runs import check_model_fits
from ..inverting.sampling import Blends
from .branches import ALONE, NEGATIVE, Branch, BranchGuider
from .plan_masks import on_grid_of
from .replay import SOURCE, TARGET, PinnedSource
from .resolvers import resolver_for

# SIGMAS are float32: a level this little above the record's is the record's.
_SIGMA_TOLERANCE = 1e-5
# Guiders whose answer is classifier-free guidance of a positive and a negative.
_PLAIN = (comfy.samplers.CFGGuider.predict_noise, SteadyGuider.predict_noise)


class BesideGuider(BranchGuider):
    """The target of a guider that is running, and the source of an inversion.

    Args:
        guider: The guider, in the middle of its run; it is not changed.
        bundle: The inversion with its conditioning.
        plan: What the target reads from the source.

    Raises:
        ValueError: If the guider guides in another way, or a conditioning cannot be evaluated beside another.
    """

    def __init__(self, guider: Any, bundle: Bundle, plan: AttentionPlan) -> None:
        if type(guider).predict_noise not in _PLAIN:
            raise ValueError(
                "guider must be CFGGuider or BasicGuider for a sampler with attention, got "
                f"{type(guider).__name__}; use one of these."
            )
        if any(entry.get("area") is not None for entry in guider.conds["positive"]):
            raise ValueError(
                "positive of the guider must be one prompt for the whole picture for a sampler with attention, got "
                "areas; edit with Resample."
            )
        for entry in (*bundle.source, *(bundle.negative or ())):
            alone = [part for part in ALONE if entry[1].get(part) is not None]
            if alone:
                raise ValueError(
                    f"source of the inversion must be a plain prompt for a sampler with attention, got one with "
                    f"{alone[0]}; edit with Resample."
                )
        negative = guider.conds.get(NEGATIVE)
        target = Branch([], None if negative is None else [], guider.cfg)
        source = Branch(bundle.source, bundle.negative if bundle.cfg != 1.0 else None, bundle.cfg)
        super().__init__(guider.model_patcher, {TARGET: target, SOURCE: source}, plan)
        self._guider = guider

    @contextlib.contextmanager
    def running(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None,
        denoise_mask: torch.Tensor | None,
        seed: int | None,
    ) -> Iterator[None]:
        """Take part in the guider's run; arguments as the host gives them to a sampler."""
        guider = self._guider
        self.inner_model, self.model_options = guider.inner_model, guider.model_options
        known = inspect.signature(comfy.samplers.process_conds).parameters
        # Hosts that pack several streams into one latent tell their shapes.
        shapes = {"latent_shapes": getattr(guider.inner_model, "latent_shapes", None)}
        extra = {key: value for key, value in shapes.items() if key in known}
        own = {
            name: [dict(entry) for entry in conds]
            for name, conds in self.original_conds.items()
            if name not in (TARGET, NEGATIVE)
        }
        self.conds = comfy.samplers.process_conds(
            self.inner_model, noise, own, noise.device, latent_image, denoise_mask, seed, **extra
        )
        self.conds.update({TARGET: guider.conds["positive"], NEGATIVE: guider.conds.get(NEGATIVE)})
        self.run = AttentionRun(on_grid_of(self._plan, noise.shape), None)
        self._resolver = resolver_for(self.model_patcher.model.diffusion_model)
        self._met = False
        try:
            yield
        finally:
            self.run = self._resolver = None
            del self.inner_model, self.conds


class AttendedSampler(comfy.samplers.Sampler):
    """Another sampler, whose target reads from the source of an inversion.

    Args:
        make: Makes the sampler, from the blends that follow its steps, or None.
        plan: What the target reads.
        bundle: The inversion, with the conditioning of its source.

    Raises:
        ValueError: If the plan or the inversion is not fit for a sampler.
    """

    def __init__(
        self, make: Callable[[Blends | None], comfy.samplers.Sampler], plan: AttentionPlan, bundle: Bundle
    ) -> None:
        if bundle.source is None:
            raise ValueError(
                "source must be connected to control attention with an inversion that was loaded from a file, got "
                "nothing; connect the conditioning that it was inverted with."
            )
        if plan.source == "free":
            raise ValueError(
                "attention must have its source pinned inside a sampler, got free; set source to pinned, or edit with "
                "Resample."
            )
        self._make = make
        self._plan = plan
        self._bundle = bundle

    def sample(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Sample; called by the host.

        Raises:
            ValueError: If the guider, the latent or the levels do not fit.
        """
        record = self._bundle.record
        first, last = float(sigmas[0]), float(sigmas[-1])
        if last > first:
            raise ValueError(
                f"sigmas must fall for a sampler with attention, got {first:.6g} to {last:.6g}; "
                "leave attention out of the sampler that inverts."
            )
        check_model_fits(guider.model_patcher, record)
        check_state_fits(record, noise.shape)
        if first > record.sigma * (1.0 + _SIGMA_TOLERANCE):
            raise ValueError(
                f"sigmas must start at or below the record's level {record.sigma:.6g}, got {first:.6g}; "
                "connect the SIGMAS output of Invert."
            )
        record = record.to_precision(work_dtype(noise.device))
        beside = BesideGuider(guider, self._bundle, self._plan)
        running = beside.running(noise, latent_image, denoise_mask, extra_args.get("seed"))
        # The source's conditioning is that of the inversion, the target's that of the guider.
        with explained(guider), explained(beside), running:
            sampler = self._make(_blends(beside, record) if self._plan.latent_rules else None)
            asked = PinnedSource(beside, record)
            return sampler.sample(asked, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)


def _blends(guider: BranchGuider, record: Inversion) -> Blends:
    """Return what makes the hook of a walk that carries out the latent rules of a plan."""

    def over(levels: Sequence[float]) -> AfterStep:
        assert guider.run is not None
        hook = guider.run.after_step(levels, record.state_at)
        assert hook is not None
        return hook

    return over
