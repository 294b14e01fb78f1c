"""Kernels that have no gradient, or none of their own, give way to plain ones while gradients are wanted."""

import comfy_kitchen
import torch
from helpers import relative
from running import invert


def check_attention_of_a_node_is_left_out(pack):
    """An override of the MODEL's attention whose gradient would be wrong: NoiseOptimize finds what it finds without."""
    model, _, _, (inversion, *_) = invert(pack, "sd3", strength=0.5)
    calls, patched = [], model.clone()

    def override(function, q, k, v, *args, **kwargs):
        calls.append(torch.is_grad_enabled())
        return function(q.detach(), k, 0.5 * v + 0.5 * v.detach(), *args, **kwargs)

    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    inputs = {"positive": pack.tiny.conditioning("sd3", 9), "negative": pack.tiny.conditioning("sd3", 5), "cfg": 2.0}
    inputs |= {"reference": pack.tiny.latent("sd3", seed=4), "iterations": 2, "learning_rate": 0.02}
    wanted, moved = (
        pack.call("NoiseOptimize", model=each, inversion=inversion, **inputs)[0] for each in (model, patched)
    )
    assert torch.equal(wanted.x, moved.x) and not any(calls), relative(moved.x, wanted.x)
    assert not torch.equal(wanted.x, inversion.x)


def check_fused_norms_and_rotations_have_gradients(pack):
    """The host's fused kernels, in place or not, give their own values and the gradients of the plain formula."""
    differentiable = pack.module("nodes.host.gradients").differentiable
    generator = torch.Generator().manual_seed(0)
    turns = torch.randn(1, 1, 5, 4, generator=generator)
    turns = torch.stack([turns.cos(), -turns.sin(), turns.sin(), turns.cos()], -1).reshape(1, 1, 5, 4, 2, 2)
    scale = torch.rand(8, generator=generator) + 0.5
    weights = torch.randn(1, 2, 5, 8, generator=generator)
    for name, more in (
        ("apply_rope1", (turns,)),
        ("apply_rope_split_half1", (turns,)),
        ("rms_rope1", (turns, scale, 1e-6)),
        ("rms_rope_split_half1", (turns, scale, 1e-6)),
        ("rms_adaln", (scale, 0.1 * scale, 1e-6)),
    ):
        kernel, write = (getattr(comfy_kitchen, each, None) for each in (name, f"{name}_"))
        for run in (kernel, write):
            if run is None:
                continue

            def value(x, run=run, more=more):
                x = x * 1.0
                made = run(x, *more)
                return ((x if made is None else made) * weights).sum()

            x = torch.randn(1, 2, 5, 8, generator=generator).requires_grad_(True)
            with differentiable():
                (gradient,) = torch.autograd.grad(value(x), x)
            with torch.no_grad():
                unit = gradient / gradient.norm()
                slope = (value(x + 0.01 * unit) - value(x - 0.01 * unit)) / 0.02
            assert abs(float(slope / (gradient * unit).sum()) - 1.0) < 1e-3, (name, run is write)
