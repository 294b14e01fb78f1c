"""What differs between the hosts that the pack supports: 0.8.0 and newer. Every fork by the host's version is here."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy_kitchen.backends.eager
from comfy_api.latest import io
from torch.overrides import TorchFunctionMode

# The extra_dict of an input that the front end may fold away; hosts before 0.10 have no keyword for it.
ADVANCED = {"advanced": True}

# Pixels of a cell of the latent by the host's latent format, for hosts that do not say it (0.8.0). All other formats
# have the 8 of the autoencoder of Stable Diffusion.
_CELL = 8
_CELLS = {
    "SC_Prior": 42, "SC_B": 4, "LTXV": 32, "Wan22": 16, "Flux2": 16, "HunyuanVideo15": 16, "HunyuanImage21": 32,
    "ChromaRadiance": 1,
}  # fmt: skip


def known(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return those keywords that a function or class of this host takes.

    Args:
        function: Of the host.
        values: Keywords of the newest host; an unknown one is a TypeError, at registration for the whole pack.
    """
    names = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in names}


def schema(**values: Any) -> io.Schema:
    """Build an ``io.Schema`` from the keywords that this host knows; ``search_aliases`` is younger than 0.8.0."""
    return io.Schema(**known(io.Schema, values))


def host_version() -> str:
    """Return the host's version string, "unknown" where it has none."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return "unknown"
    return str(__version__)


def show_progress_text(node_id: str | None, text: str) -> None:
    """Show a line of text below a running node, where there is a front end."""
    # A process without the host's server, such as a script, has no such module and no front end.
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if node_id is not None and instance is not None:
        instance.send_progress_text(text, node_id)


class Uncopied:
    """An object among model options that is handed on as it is: hosts before 0.14 copy them in depth."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
        return self


def pixels_of_a_cell(model: Any) -> int:
    """Return how many pixels of the picture a cell of a MODEL's latent stands for, along each side."""
    latent_format = model.get_model_object("latent_format")
    told = getattr(latent_format, "spacial_downscale_ratio", None)
    if told is not None:
        return int(told)
    return next((_CELLS[base.__name__] for base in type(latent_format).__mro__ if base.__name__ in _CELLS), _CELL)


def text_is_first(block: Any) -> bool:
    """Return whether a block of HunyuanVideo has the text in front of the clip; host 0.8.0 has it behind."""
    return not getattr(block, "flipped_img_txt", False)


def clip_of(target: Any, tensors: dict[str, Any], disable_dynamic: bool, **values: Any) -> comfy.sd.CLIP:
    """Build a CLIP; ``disable_dynamic`` leaves out the streaming of weights, on hosts that stream them."""
    return comfy.sd.CLIP(
        target, state_dict=tensors, **known(comfy.sd.CLIP, {"disable_dynamic": disable_dynamic}), **values
    )


def patcher_class(disable_dynamic: bool) -> Any:
    """Return the class around a network; ``disable_dynamic`` as in `clip_of`."""
    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)


def is_streamed(patcher: Any) -> bool:
    """Return whether the host streams the weights of a model, through buffers that the next layer overwrites."""
    dynamic = getattr(patcher, "is_dynamic", None)
    return callable(dynamic) and bool(dynamic())


def whole_model(model: Any) -> Any:
    """Return a MODEL whose weights stay in place for a backward pass: of a streamed one, a copy."""
    return model.get_non_dynamic_delegate() if is_streamed(model) else model


class _PlainKernels(TorchFunctionMode):
    """Computes the host's fused norms and rotations, which have no gradient, by products.

    Newer hosts do so themselves while they train, for some networks.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        module, name = getattr(function, "__module__", None) or "", getattr(function, "__name__", "")
        plain = getattr(comfy_kitchen.backends.eager, name.removesuffix("_"), None)
        if "comfy_kitchen" not in module or plain is None or not ("rope" in name or "adaln" in name):
            return function(*args, **(kwargs or {}))
        results = plain(*args, **(kwargs or {}))
        if not name.endswith("_"):
            return results
        for target, result in zip(args, results if isinstance(results, tuple) else [results], strict=False):
            target.copy_(result)
        return None


@contextlib.contextmanager
def training_switch() -> Iterator[None]:
    """Let the host's custom kernels give way to differentiable ones; hosts from 0.14 on have a switch for some."""
    management: Any = comfy.model_management
    before = getattr(management, "in_training", None)
    with _PlainKernels():
        if before is None:
            yield
            return
        management.in_training = True
        try:
            yield
        finally:
            management.in_training = before
