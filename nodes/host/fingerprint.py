"""Fingerprints of host objects: stable across processes, hosts and weight formats."""

from __future__ import annotations

from typing import Any

import torch

from ...inversion import fingerprint

# How many weight tensors, evenly spaced in sorted order, and how many entries of each are looked at: some 30,000
# signs tell any two trainings apart and take a few milliseconds.
_TENSORS = 16
_ENTRIES = 2048
_DIGITS = 16

# Where it is looked how the host turns a sigma into what the network is told of it, within every schedule.
_SIGMAS = (0.1, 0.5, 0.9)


def fingerprint_model(model: Any) -> str:
    """Return a short stable name for what a MODEL computes.

    It hashes the class names of model and network, how the host shows it a state and reads its answer at a sigma (its
    parametrisation and noise schedule, not the sigmas that are walked: a shift of those is another grid), the names
    and sizes of all weight matrices, and the signs of a sample of their entries. Signs survive every cast (float32,
    float16, bfloat16, float8), so that the same file loaded in another format on another machine keeps its fingerprint;
    LoRA patches are looked through, so that an inversion can be edited with a LoRA that was not there when it was made.

    Args:
        model: The MODEL, loaded or not.

    Returns:
        Class name of the model, a colon and 16 hex digits.
    """
    inner = model.model
    network = inner.diffusion_model
    # Vectors (biases and norms) are left out: hosts rename them, 0.33 calls the scale of Flux's norms a weight.
    matrices = sorted((pair for pair in network.named_parameters() if pair[1].ndim > 1), key=lambda pair: pair[0])
    shapes = [[name, list(weight.shape)] for name, weight in matrices]
    # A loaded LoRA has overwritten the weights in place; the host keeps the originals here.
    originals = getattr(model, "backup", None) or {}
    signs = [
        _signs(getattr(originals.get(f"diffusion_model.{name}"), "weight", weight))
        for name, weight in matrices[:: max(1, len(matrices) // _TENSORS)]
    ]
    digest = fingerprint(
        type(inner).__name__, type(network).__name__, _terms(model.get_model_object("model_sampling")), shapes, signs
    )
    return f"{type(inner).__name__}:{digest[:_DIGITS]}"


def fingerprint_conditioning(conditioning: Any) -> str:
    """Return a hash of a CONDITIONING's tensors, numbers and strings, in order.

    Args:
        conditioning: The CONDITIONING, or None.

    Returns:
        16 hex digits.
    """
    return fingerprint(_plain(conditioning))[:_DIGITS]


def _terms(model_sampling: Any) -> list[str]:
    """Timestep, scale of the input, and denoised for answers of 0 and 1, in four digits at each of a few sigmas."""
    one, terms = torch.ones(1, 1), []
    for sigma in (value * one[0] for value in _SIGMAS):
        values = (
            model_sampling.timestep(sigma),
            model_sampling.calculate_input(sigma, one),
            *(model_sampling.calculate_denoised(sigma, answer * one, one) for answer in (0.0, 1.0)),
        )
        terms += [f"{float(value):.4g}" for value in values]
    return terms


def _signs(weight: torch.Tensor) -> torch.Tensor | None:
    try:
        sample = weight.detach().flatten()[:_ENTRIES].to("cpu", torch.float32)
        return torch.signbit(sample)
    except (RuntimeError, NotImplementedError, TypeError):
        # Weights that are not in memory (lazily loaded) or in a packed format: the structure alone has to do.
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # One dtype, so that a tensor hashes alike on every device.
        return value.detach().to("cpu", torch.float32)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # Control nets, hooks and the like: their address is not stable, their class is.
    return type(value).__name__
