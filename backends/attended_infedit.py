"""InfEdit with unified attention control on the networks of diffusers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention import SOURCE, TARGET, AttentionPlan, Step, place
from ..inversion import Denoiser, EditOptions, InfEdit
from .diffusers import Cond, DiffusersModel
from .diffusers_attention import Branches


def attended_infedit(
    model: DiffusersModel,
    plan: AttentionPlan,
    x0: Tensor,
    sigmas: Sequence[float],
    level: int,
    source: Cond,
    target: Cond,
    uncond: Cond | None = None,
    cfg: float = 1.0,
    eta: float = 1.0,
    seed: int = 0,
    mask: Tensor | None = None,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Edit a clean latent by InfEdit under a plan, whose further branches run under the source's prompt.

    Xu et al. 2023, arXiv:2312.04965; one forward a branch and level, two where it is guided.

    Args:
        model: The model.
        plan: What the branches read from each other, and its blends of the latent.
        x0: Clean latent (B, C, H, W); left untouched.
        sigmas: Ascending noise levels from 0.
        level: Level to start from.
        source: Conditioning that describes x0.
        target: Conditioning of the edit.
        uncond: The negative prompt; may be left out at cfg 1.
        cfg: Guidance strength of the target.
        eta: Share of fresh noise at each level.
        seed: Seed of the noise.
        mask: Weights on the latent grid from 0 (keep) to 1 (edit).
        rows: Number of each row for the noise.

    Returns:
        The edited latent.

    Raises:
        ValueError: As in Branches and in the edit itself.
    """
    names = (SOURCE, TARGET, *plan.branches)
    conds = {name: target if name == TARGET else source for name in names}
    branches = Branches(model, plan, x0, conds, uncond, {TARGET: cfg})
    falling = tuple(sigmas[level::-1])

    def denoise(stacked: Tensor, sigma: float) -> Tensor:
        states = dict(zip(names, stacked.chunk(len(names)), strict=True))
        found = branches(states, sigma, place(falling, sigma), names)
        return torch.cat([found[name] for name in names])

    def blend(number: int, total: int, sigma: float, latents: Sequence[Tensor]) -> Tensor:
        return branches.run.blend(Step(number, total, sigma), dict(zip(names, latents, strict=True)))

    denoiser = Denoiser(denoise, model.space, model.denoiser(x0, source).sigma_floor)
    options = EditOptions(
        seed, rows, mask, both=denoiser, others=len(plan.branches), blend=blend if plan.latent_rules else None
    )
    return InfEdit(eta).edit(denoiser, denoiser, x0, sigmas, level, options)
