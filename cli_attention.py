"""Options of the standalone command for edits that read from their source inside attention."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .backends.diffusers import DiffusersModel
    from .inversion import Denoiser, Inversion


def attention_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command that edits."""
    parser.add_argument(
        "--attention",
        metavar="PRESET",
        help="let the edit read from its source inside attention: a preset such as structure, masactrl or rf_edit, "
        "with a variant as in masactrl:union; a name that is none lists them all",
    )
    parser.add_argument(
        "--attention-layers", default="", metavar="LAYERS", help="layers that read, like output:4-11 or 0.5-1.0"
    )
    parser.add_argument(
        "--attention-steps", metavar="START-END", help="shares of the steps that read, like 0-0.4; 0 is the noisy end"
    )
    parser.add_argument("--attention-strength", type=float, default=1.0, help="share of the source in what is read")


def check_attention(options: argparse.Namespace) -> None:
    """Refuse a preset that cannot be used before the model is loaded."""
    from .attention import PRESETS

    if options.attention is None:
        return
    if options.target is None:
        raise ValueError("target must be given with attention, got none; say what the picture is to show.")
    # A residual feature is outside attention, and words need a tokenizer's own count.
    usable = [name for name, preset in PRESETS.items() if not (preset.needs_text or preset.takes_feature)]
    name = options.attention.partition(":")[0]
    if name not in usable:
        raise ValueError(f"attention must be one of {', '.join(usable)}, got {name!r}; check the spelling.")
    if options.mask is None and "*" in PRESETS[name].needs_mask:
        raise ValueError(f"attention {name} must have a mask, got none; give --mask.")
    _steps_of(options)


def _steps_of(options: argparse.Namespace) -> tuple[float | None, float | None]:
    """Return the window of steps, None and None for the preset's own."""
    text = options.attention_steps
    if text is None:
        return None, None
    start, _, end = text.partition("-")
    try:
        return float(start), float(end)
    except ValueError:
        raise ValueError(f"attention-steps must be START-END, got {text!r}; write it like 0-0.4.") from None


def attended(options: argparse.Namespace, model: DiffusersModel, inversion: Inversion, mask: Tensor | None) -> Denoiser:
    """Return the target's denoiser under the preset of the options.

    Args:
        options: The command's.
        model: The model.
        inversion: The inversion.
        mask: Weights (1, 1, H, W) on the latent grid, or None.
    """
    from .attention import Mask, Settings
    from .backends.diffusers_attention import Prompts, attended_denoiser, preset_plan

    name, _, variant = options.attention.partition(":")
    start, end = _steps_of(options)
    settings = Settings(
        layers=options.attention_layers,
        start=start,
        end=end,
        strength=options.attention_strength,
        mask=None if mask is None else Mask(mask[:, 0].float().cpu()),
        variant=variant,
    )
    plan = preset_plan(name, settings, model.network)
    negative = None if options.cfg == 1.0 else model.prompt(options.negative)
    source, target = model.prompt(str(inversion.meta["source_prompt"])), model.prompt(options.target)
    return attended_denoiser(model, inversion, plan, Prompts(source, target, negative, options.cfg))
