"""Refusals of models that torch.compile has frozen: no hook runs inside them."""

from __future__ import annotations

from typing import Any

_COMPILED = (
    "model must not be compiled to control its attention, got one of torch.compile; "
    "connect the MODEL from before that node."
)


def refuse_compiled(network: Any) -> None:
    """Refuse a network that torch.compile has frozen, in which no hook runs.

    Raises:
        ValueError: If it is compiled.
    """
    # What torch.compile returns holds the module under this name.
    if hasattr(network, "_orig_mod"):
        raise ValueError(_COMPILED)


def refuse_compiled_model(model: Any) -> None:
    """Refuse a MODEL that a node compiles when it runs.

    Raises:
        ValueError: If it does.
    """
    options = getattr(model, "model_options", {}) or {}
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    keys = {str(key) for keyed in (*wrappers.values(), *(model.wrappers or {}).values()) for key in keyed}
    patched = [value for name, value in model.object_patches.items() if name.startswith("diffusion_model")]
    if "torch.compile" in keys or "torch_compile_kwargs" in options:
        raise ValueError(_COMPILED)
    for value in patched:
        refuse_compiled(value)
