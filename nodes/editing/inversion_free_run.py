"""Edits without an inversion: source and target side by side in one run of the host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import torch

from ...attention import AttentionPlan
from ...inversion import Denoiser, InfEdit, InversionFreeEdit, OnStep, work_dtype
from ..attending.branches import Branch, BranchGuider
from ..host.checks import check_cfg, refuse_skipping
from ..host.denoiser import Callback, denoiser_of, reporter
from ..host.guider import SteadyGuider, completed
from ..host.latents import into_model, keep_outside, out_of_model, source_samples
from ..host.masks import on_latent_grid
from ..host.parametrisation import model_sampling_of, space_of
from ..inverting.runs import drive, extras_of
from ..inverting.sampling import ScriptedSampler
from .branched import branched

Script = Callable[[Denoiser, Denoiser, torch.device, OnStep], torch.Tensor]

# Patches see it beside the host's own entries, so it carries the pack's name.
_BRANCH = "retrace_branch"


class PairedGuider(SteadyGuider):
    """Source and target conditioning in one run, each with its own guidance, every one in a forward of its own.

    Which of the two a call asks for stands in its model_options (see ``options_of``), never in the guider, so that
    calls may come in any order.
    """

    def __init__(
        self, model: Any, source: Any, target: Any, negative: Any, source_cfg: float, target_cfg: float
    ) -> None:
        """Set up both branches.

        Args:
            model: The MODEL; it is not changed.
            source: CONDITIONING of the source.
            target: CONDITIONING of the edit.
            negative: CONDITIONING, may be None when both scales are 1.
            source_cfg: Guidance scale of the source.
            target_cfg: Guidance scale of the edit.
        """
        # Past SteadyGuider's, which takes one branch: under names of their own the host copies nothing between them.
        super(SteadyGuider, self).__init__(model)
        conds = {"source": source, "target": target}
        if negative is not None and (source_cfg != 1.0 or target_cfg != 1.0):
            conds["negative"] = negative
        self.inner_set_conds(conds)
        self.set_cfg(target_cfg)
        self._scales = {"source": source_cfg, "target": target_cfg}

    @staticmethod
    def options_of(branch: str, model_options: dict[str, Any]) -> dict[str, Any]:
        """Return model_options for calls of one branch, "source" or "target"."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        options.setdefault("transformer_options", {})[_BRANCH] = branch
        return options

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Return the guided denoised of the branch that the options name."""
        branch = (model_options or {})["transformer_options"][_BRANCH]
        # A view of this run as a guider of that branch alone would see it.
        alone = copy.copy(self)
        positive = self.conds[branch]
        alone.conds = {"positive": positive, "negative": completed(positive, self.conds.get("negative"))}
        alone.cfg = self._scales[branch]
        return SteadyGuider.predict_noise(alone, x, timestep, model_options, seed)


class PairedSampler(ScriptedSampler[torch.Tensor]):
    """Runs a function on the two denoisers of a PairedGuider."""

    def __init__(self, script: Script) -> None:
        """Set the script.

        Args:
            script: Called once with (source, target, device, on_step).
        """
        self._script = script
        self.result = None

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
        """Run the script; called by the host."""
        dtype = work_dtype(noise.device)

        def denoiser(branch: str) -> Denoiser:
            options = PairedGuider.options_of(branch, extra_args.get("model_options") or {})
            arguments = {**extra_args, "model_options": options}
            return denoiser_of(guider, guider.inner_model.model_sampling, arguments, dtype)

        self.result = self._script(denoiser("source"), denoiser("target"), noise.device, reporter(callback))
        return torch.zeros_like(noise)


def run_paired(
    model: Any,
    source: Any,
    target: Any,
    negative: Any,
    latent: dict[str, Any],
    sigmas: tuple[float, ...],
    level: int,
    edit: InversionFreeEdit,
    seed: int,
    source_cfg: float = 1.0,
    target_cfg: float = 1.0,
    mask: torch.Tensor | None = None,
    feather: int = 0,
    attention: AttentionPlan | None = None,
) -> dict[str, Any]:
    """Edit a LATENT.

    A noise_mask is not applied, for the reason given at ``run_invert``. It stays in the LATENT.

    Args:
        model: The MODEL; it is not changed.
        source: CONDITIONING that describes the source.
        target: CONDITIONING of the edit.
        negative: CONDITIONING, needed when a scale is not 1.
        latent: The LATENT. Its batch_index, if it has one, numbers the rows for the noise.
        sigmas: Rising levels from 0.
        level: Level to start from.
        edit: The method.
        seed: Seed of the noise.
        source_cfg: Guidance scale of the source.
        target_cfg: Guidance scale of the edit.
        mask: MASK, white where the edit may act; outside it the result equals the source bit for bit.
        feather: Width in pixels of the mask of a ramp inside its edge.
        attention: What the target reads from the source, or None.

    Returns:
        A LATENT.

    Raises:
        ValueError: If an input does not fit.
        TypeError: If the latent holds several streams.
    """
    refuse_skipping(model)
    check_cfg(source_cfg, negative, "source_cfg")
    check_cfg(target_cfg, negative, "target_cfg")
    edit.check(level)
    samples = source_samples(model, latent)
    clean = into_model(model, samples)
    # A model that mixes noise in another way is refused before it is loaded.
    space_of(model_sampling_of(model))
    grid = None if mask is None else on_latent_grid(mask, samples.shape, feather)
    rows = latent.get("batch_index")

    def script(
        one: Denoiser, other: Denoiser, device: torch.device, on_step: OnStep, both: Denoiser | None = None
    ) -> torch.Tensor:
        start = clean.to(work_dtype(device)).to(device)
        return edit.edit(one, other, start, sigmas, level, seed, grid, rows, on_step, both).cpu()

    guider: SteadyGuider
    sampler: ScriptedSampler[torch.Tensor]
    if attention is None:
        guider = PairedGuider(model, source, target, negative, source_cfg, target_cfg)
        sampler = PairedSampler(script)
    else:
        sides = {"source": Branch(source, negative, source_cfg), "target": Branch(target, negative, target_cfg)}
        if isinstance(edit, InfEdit):
            # The third branch of unified control runs under the source's prompt.
            sides.update({name: Branch(source, negative, source_cfg) for name in attention.branches})
        branches = BranchGuider(model, sides, attention)
        edit = branched(edit, attention, lambda: branches.run)
        guider = branches
        sampler = ScriptedSampler(lambda both, device, on_step: script(both, both, device, on_step, both))
    drive(guider, sampler, samples, sigmas[level::-1])
    assert sampler.result is not None
    edited = out_of_model(model, sampler.result, samples.dtype)
    if grid is not None:
        edited = keep_outside(grid, edited, samples)
    return {**extras_of(latent), "samples": edited}
