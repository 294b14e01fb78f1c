"""Refusals: what cannot be inverted or played back, each in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...inversion import Inversion

# Words in the keys and names of patches that skip network evaluations. A skipped evaluation repeats an older
# answer, and an inversion through repeated answers is wrong without looking wrong.
_SKIPPERS = ("easycache", "lazycache", "teacache", "firstblockcache", "first_block_cache", "fbcache", "magcache")

# Options of the host that put another formula in the place of classifier-free guidance.
_OTHER_GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")


def refuse_skipping(model: Any) -> None:
    """Refuse a MODEL whose patches skip evaluations of the network.

    Args:
        model: The MODEL, or the model_patcher of a GUIDER.

    Raises:
        ValueError: If a cache node is among its wrappers.
    """
    for name in _patch_names(model):
        if any(word in name.lower() for word in _SKIPPERS):
            raise ValueError(
                f"model must evaluate its network at every step, got the cache patch {name!r}; "
                "connect the MODEL from before that node."
            )


def refuse_inpainting(model: Any) -> None:
    """Refuse a loaded model that is shown a masked picture beside the noisy one, as inpainting UNets are.

    Raises:
        ValueError: If it is one.
    """
    if "masked_image" in getattr(model, "concat_keys", ()):
        raise ValueError(
            "model must see the noisy latent alone, got an inpainting model, which wants a masked picture beside it; "
            "load the model that it was made from, and connect the mask to DamageMask."
        )


def refuse_other_guidance(model: Any) -> None:
    """Refuse a MODEL with a patch that puts another formula in the place of classifier-free guidance.

    Raises:
        ValueError: If it has one.
    """
    for option in _OTHER_GUIDANCE:
        if getattr(model, "model_options", {}).get(option):
            raise ValueError(
                f"model must be guided by plain cfg, got a patch of {option}; connect the MODEL from before that node."
            )


def check_cfg(cfg: float, negative: Any, what: str = "cfg") -> None:
    """Refuse a guidance that has no negative to guide away from.

    Raises:
        ValueError: If cfg is not 1 and no negative is connected.
    """
    if cfg != 1.0 and negative is None:
        raise ValueError(f"{what} must be 1 without a negative, got {cfg:g}; connect negative or set {what} to 1.")


def _patch_names(model: Any) -> Iterator[str]:
    options = getattr(model, "model_options", {}) or {}
    for wrappers in (getattr(model, "wrappers", {}) or {}, options.get("transformer_options", {}).get("wrappers", {})):
        for keyed in wrappers.values():
            yield from (str(key) for key in keyed)
    for name in ("model_function_wrapper", "sampler_calc_cond_batch_function"):
        patch = options.get(name)
        if patch is not None:
            yield getattr(patch, "__qualname__", type(patch).__qualname__)


def check_state_fits(inversion: Inversion, shape: Sequence[int]) -> None:
    """Refuse a latent of another size than the inversion's.

    Raises:
        ValueError: If the shapes differ.
    """
    if tuple(shape) != inversion.shape:
        raise ValueError(
            f"latent must have the inversion's size {inversion.shape}, got {tuple(shape)}; "
            "connect the LATENT output of Invert, or invert again at this size."
        )
