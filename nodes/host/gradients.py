"""Gradients through the host's networks, although the host runs every node and loads every weight in inference mode.

A tensor that was made in inference mode can never be saved for a backward pass, so weights, buffers and conditioning
are replaced for the duration by ordinary tensors: weights on the same storage, conditioning by copies. Within the
context nothing may load, unload or patch weights.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import comfy.ldm.modules.attention as attention
import torch

from ...inversion.mutation import mutation_of_saved
from .compat import training_switch

# Attention of the host that has a backward pass; every other kernel gives way to torch's.
_DIFFERENTIABLE_ATTENTION = (
    "attention_basic",
    "attention_sub_quad",
    "attention_split",
    "attention_xformers",
    "attention_pytorch",
)
_OVERRIDE = "optimized_attention_override"
_DIFFERENTIABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def differentiable_run(guider: Any, extra_args: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Let gradients flow through what a guider answers in the middle of its run.

    Args:
        guider: The guider; its conditionings are replaced for the duration where they have to be.
        extra_args: The host's extra arguments of the run.

    Yields:
        The extra arguments to ask the guider with.
    """
    conds = guider.conds
    with differentiable(*networks_of(guider)):
        try:
            guider.conds = {name: deinference(cond) for name, cond in conds.items()}
            yield {**extra_args, "model_options": with_backward(extra_args.get("model_options", {}))}
        finally:
            guider.conds = conds


@contextlib.contextmanager
def differentiable(*networks: torch.nn.Module) -> Iterator[None]:
    """Let gradients flow through loaded networks to their inputs, none to their weights; all is as before afterwards.

    Args:
        networks: The loaded model (the inner_model of a guider), or all that `networks_of` finds.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Some networks add residuals in place to what attention has saved for its backward.
        stack.enter_context(mutation_of_saved())
        for network in networks:
            stack.enter_context(normal_weights(network))
        stack.enter_context(training_switch())
        yield


def networks_of(guider: Any) -> list[torch.nn.Module]:
    """The network of a guider that is sampling, and those that its conditioning brings, such as ControlNets.

    A ControlNet sees the prompt as the network does, so that gradients with respect to the prompt pass through both.
    """
    networks = [guider.inner_model]
    for conds in guider.conds.values():
        for cond in conds:
            control = cond.get("control")
            for patcher in control.get_models() if control is not None else ():
                # Copies for several prompts share one network.
                if not any(patcher.model is network for network in networks):
                    networks.append(patcher.model)
    return networks


@contextlib.contextmanager
def normal_weights(network: torch.nn.Module) -> Iterator[None]:
    """Replace every inference tensor of a network by an ordinary one on the same storage, and freeze the others."""
    replaced: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = []
    frozen: list[torch.Tensor] = []
    try:
        for module in network.modules():
            groups: tuple[tuple[dict[str, Any], bool], ...] = ((module._parameters, True), (module._buffers, False))
            for group, trainable in groups:
                for name, tensor in list(group.items()):
                    if tensor is None:
                        continue
                    if tensor.is_inference():
                        twin = _same_storage(tensor)
                        group[name] = torch.nn.Parameter(twin, requires_grad=False) if trainable else twin
                        replaced.append((group, name, tensor, group[name]))
                    elif tensor.requires_grad and tensor.is_leaf:
                        tensor.requires_grad_(False)
                        frozen.append(tensor)
        yield
    finally:
        for group, name, before, twin in replaced:
            # What somebody else has put there meanwhile stays.
            if group.get(name) is twin:
                group[name] = before
        for tensor in frozen:
            tensor.requires_grad_(True)


def deinference(value: Any) -> Any:
    """Copy the inference tensors in a conditioning as the guider holds it; everything else is handed through."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: deinference(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(deinference(item) for item in value)
    if hasattr(value, "cond") and hasattr(value, "_copy_with"):
        return value._copy_with(deinference(value.cond))
    return value


def ordinary_format(latent_format: Any) -> Any:
    """A copy of a latent format whose means and deviations, where it has such, take part in gradients."""
    twin = copy.copy(latent_format)
    for name, value in vars(latent_format).items():
        setattr(twin, name, deinference(value))
    return twin


def with_backward(model_options: dict[str, Any]) -> dict[str, Any]:
    """Return model options under which attention has a backward pass; an override of the MODEL's is left out."""
    options = dict(model_options)
    patches = dict(options.get("transformer_options", {}))
    if patches.get(_OVERRIDE) is not None:
        _logger.info("Retrace: the attention that a node has set for this model is left out while gradients are taken.")

    def kernel(function: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(function, "__name__", "") not in _DIFFERENTIABLE_ATTENTION:
            kwargs.pop("_inside_attn_wrapper", None)
            function = attention.attention_pytorch
        return function(*args, **kwargs)

    patches[_OVERRIDE] = kernel
    options["transformer_options"] = patches
    return options


def refuse_quantised(model: Any) -> None:
    """Refuse a MODEL whose weights are quantised: their products have no gradient in general, or a wrong one.

    Raises:
        ValueError: If a weight is neither float16, bfloat16, float32 nor float64, or of a type of its own.
    """
    for weight in model.model.diffusion_model.parameters():
        # A quantised tensor may report the type that it computes in, so its class counts too.
        plain = type(weight.data) is torch.Tensor and type(weight) in (torch.Tensor, torch.nn.Parameter)
        if not plain or weight.dtype not in _DIFFERENTIABLE:
            kind = str(weight.dtype).removeprefix("torch.") if plain else type(weight.data).__name__
            raise ValueError(
                f"model must have weights of 16 bits or more to be differentiated, got {kind}; "
                "load it unquantised, in float16, bfloat16 or float32."
            )


def _same_storage(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
