"""Heat maps of words, from a few forwards of the model at chosen sigmas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...attention import SOURCE, TARGET, AttentionPlan, Layers
from ...attention.heat_maps import Threshold, blur, grow, over_maximum, threshold
from ...attention.tokens import Prompt
from ...attention.word_list import Word
from ...attention.words import word_probe
from ...core import Noises, StepReport, mix, work_dtype
from ...inversion import Inversion
from ..host.checks import refuse_skipping
from ..host.compiled import refuse_compiled_model
from ..host.latents import into_model
from ..host.parametrisation import model_sampling_of, noise_scale, space_of
from ..host.session import Branch, Guider, Session, State
from .attended import Attended
from .resolvers import resolver_for

_MAPS = "words"


def sigmas_of(model: Any, low: float, high: float, count: int) -> tuple[float, ...]:
    """Return falling sigmas, evenly spread over the model's own time.

    Args:
        model: The MODEL.
        low: Lowest as a share of that time, 0 clean and 1 pure noise.
        high: Highest.
        count: How many.

    Raises:
        ValueError: If the range is empty or ends outside 0 .. 1.
    """
    if not 0.0 < low <= high < 1.0:
        raise ValueError(
            f"low must not exceed high, both above 0 and below 1, got {low:g} and {high:g}; 0.2 to 0.8 is usual."
        )
    if count < 1:
        raise ValueError(f"evaluations must be at least 1, got {count}; 5 are enough for most pictures.")
    sampling = model_sampling_of(model)
    shares = [high] if count == 1 else [high - (high - low) * i / (count - 1) for i in range(count)]
    sigmas = [float(sampling.percent_to_sigma(1.0 - share)) for share in shares]
    # A discrete schedule may give one sigma twice.
    return tuple(dict.fromkeys(sigmas))


def sigmas_of_inversion(inversion: Inversion, low: float, high: float, count: int) -> tuple[float, ...]:
    """Return falling sigmas of an inversion, the lowest above its clean end.

    Args:
        inversion: The inversion.
        low: Lowest as a share of its steps.
        high: Highest.
        count: How many at most.
    """
    if not 0.0 <= low <= high <= 1.0 or count < 1:
        raise ValueError(
            f"low must not exceed high, both within 0 .. 1, got {low:g} and {high:g}; 0.2 to 0.8 is usual."
        )
    shares = [high] if count == 1 else [high - (high - low) * i / (count - 1) for i in range(count)]
    places = dict.fromkeys(max(1, round(share * inversion.index)) for share in shares)
    return tuple(inversion.sigmas[place] for place in places)


def latent_states(model: Any, samples: torch.Tensor, seed: int) -> State:
    """Return the states of a latent at any sigma: mixed with one noise a picture."""
    clean = into_model(model, samples)
    sampling = model_sampling_of(model)
    noise, space = Noises(seed, clean, scale=noise_scale(sampling)).draw(), space_of(sampling)

    def state(sigma: float, device: torch.device) -> torch.Tensor:
        return mix(clean, noise, sigma, space).to(device, work_dtype(device))

    return state


def read_words(
    model: Any,
    prompt: Prompt,
    conditioning: Any,
    words: Sequence[Word],
    samples: torch.Tensor,
    sigmas: tuple[float, ...],
    states: State,
    layers: str = "",
) -> torch.Tensor:
    """Return how much each token of the picture attends to some words.

    Args:
        model: The MODEL; it is not changed.
        prompt: The prompt.
        conditioning: Its CONDITIONING.
        words: Words of it.
        samples: Samples in the model's channels, for shape and device.
        sigmas: Falling sigmas, one forward each.
        states: State of the picture at a sigma.
        layers: Layers that are read, empty for those that suit the model.

    Returns:
        Shape (items, words, frames, h, w), float32, on the grid of the model's tokens.

    Raises:
        ValueError: If a word is not in the prompt or no layer matches.
    """
    refuse_skipping(model)
    refuse_compiled_model(model)
    where = Layers.parse(layers.strip() or resolver_for(model.model.diffusion_model, words=True).word_layers)
    plan = AttentionPlan(probes=(word_probe(_MAPS, prompt, words, SOURCE, where),))
    attended = Attended(model, {SOURCE: Branch(conditioning), TARGET: Branch(conditioning)}, plan)

    def script(session: Session) -> torch.Tensor:
        denoiser, total = session.denoiser(), len(sigmas)
        for index, sigma in enumerate(sigmas):
            x = states(sigma, session.device)
            below = sigmas[index + 1] if index + 1 < total else 0.0
            session.tell(StepReport(index, total, sigma, below, x, denoiser(x, sigma)))
        maps: torch.Tensor = attended.running.maps[_MAPS].maps()
        return maps.cpu()

    return Guider(model, {SOURCE: Branch(conditioning)}, attended).run(samples, (*sigmas, 0.0), script)


def picture(heat: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return maps (items, frames, h, w) at the size of a picture, between cells linearly, at most 1 in each item."""
    return over_maximum(torch.nn.functional.interpolate(heat, size, mode="bilinear", align_corners=False))


def cut(heat: torch.Tensor, how: Threshold, share: float, wider: int, softer: float) -> torch.Tensor:
    """Return masks of maps (items, frames, h, w).

    Args:
        heat: The maps.
        how: As in attention.heat_maps.threshold.
        share: 0 .. 1; for "mean" and "otsu" a half is the threshold itself.
        wider: Cells by which the masks are widened.
        softer: Deviation of their soft edge in cells.
    """
    cutoff = share if how in ("absolute", "quantile") else 2.0 * share
    return blur(grow(threshold(heat, how, cutoff), wider), softer).clamp(0.0, 1.0)


def coloured(heat: torch.Tensor, image: torch.Tensor | None = None) -> torch.Tensor:
    """Return maps as pictures.

    Args:
        heat: Shape (N, h, w), values 0 .. 1.
        image: Pictures (M, h, w, 3 or 4) to lay the heat over, as many or others in number, or None.

    Returns:
        Shape (N, h, w, 3): black, violet, red, yellow, white with rising heat.
    """
    stops = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.0, 0.5], [0.85, 0.15, 0.2], [1.0, 0.8, 0.1], [1.0, 1.0, 0.95]])
    place = heat.float().clamp(0.0, 1.0) * (len(stops) - 1)
    low = place.floor().clamp(max=len(stops) - 2).long()
    share = (place - low)[..., None]
    colours = torch.lerp(stops[low], stops[low + 1], share)
    if image is None:
        return colours
    chosen = torch.linspace(0, image.shape[0] - 1, heat.shape[0]).round().long()
    # What attends nowhere shows the picture, darkened; what attends most shows the colour.
    return torch.lerp(0.5 * image[chosen][..., :3].float().cpu(), colours, 0.25 + 0.6 * heat[..., None].clamp(0.0, 1.0))
