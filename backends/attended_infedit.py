"""InfEdit with unified attention control on the networks of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..attention import AttentionPlan, Step, place
from ..inversion import EditOptions, InfEdit
from .diffusers import DiffusersModel
from .diffusers_attention import Branches, Prompts


def attended_infedit(
    model: DiffusersModel,
    plan: AttentionPlan,
    x0: Tensor,
    sigmas: Sequence[float],
    index: int,
    prompts: Prompts,
    eta: float = 1.0,
    options: EditOptions | None = None,
) -> Tensor:
    """Edit a clean latent by InfEdit under a plan, whose further branches run under the source's prompt.

    Xu et al. 2023, arXiv:2312.04965; one forward a branch and step, two where it is guided.

    Args:
        model: The model.
        plan: What the branches read from each other, and its blends of the latent.
        x0: Clean latent (B, C, H, W); left untouched.
        sigmas: Ascending noise levels from 0.
        index: Index of the sigma to start from.
        prompts: Conditionings; the source's describes x0.
        eta: Share of fresh noise in each step.
        options: Seed, mask and listener; the branches and blends are the plan's.

    Returns:
        The edited latent.

    Raises:
        ValueError: As in Branches and in the edit itself.
    """
    branches = Branches(model, plan, x0, prompts)
    names, falling = branches.run.branches, tuple(sigmas[index::-1])

    def denoise(stacked: Tensor, sigma: float) -> Tensor:
        states = dict(zip(names, stacked.chunk(len(names)), strict=True))
        answers = branches(states, sigma, place(falling, sigma), names)
        return torch.cat([answers[name] for name in names])

    def blend(number: int, total: int, sigma: float, latents: Sequence[Tensor]) -> Tensor:
        return branches.run.blend(Step(number, total, sigma), dict(zip(names, latents, strict=True)))

    denoiser = model.denoiser(x0, prompts.source).answering(denoise)
    blended = blend if plan.latent_rules else None
    options = replace(options or EditOptions(), both=denoiser, others=len(plan.branches), blend=blended)
    return InfEdit(eta).edit(denoiser, denoiser, x0, sigmas, index, options)
