"""Heat maps of words, from a few forwards of the model at chosen noise levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...attention import AttentionPlan, Layers
from ...attention.heat_maps import Threshold, blur, grow, over_maximum, threshold
from ...attention.tokens import Prompt
from ...attention.word_list import Word
from ...attention.words import word_probe
from ...core.noise import Noises
from ...inversion import Denoiser, Inversion, mix, work_dtype
from ..host.checks import refuse_skipping
from ..host.compiled import refuse_compiled_model
from ..host.denoiser import Callback, denoiser_of
from ..host.latents import into_model
from ..host.parametrisation import model_sampling_of, space_of
from ..inverting.runs import drive
from ..inverting.sampling import ScriptedSampler
from .branches import Branch, BranchGuider
from .resolvers import resolver_for

SOURCE, TARGET = "source", "target"
_MAPS = "words"

States = Callable[[float, torch.device], torch.Tensor]


def levels_of(model: Any, low: float, high: float, count: int) -> tuple[float, ...]:
    """Return falling noise levels, evenly spread over the model's own time.

    Args:
        model: The MODEL.
        low: Lowest level as a share of that time, 0 clean and 1 pure noise.
        high: Highest level.
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
    found = [float(sampling.percent_to_sigma(1.0 - share)) for share in shares]
    # A discrete schedule may give one level twice.
    return tuple(dict.fromkeys(found))


def levels_of_record(record: Inversion, low: float, high: float, count: int) -> tuple[float, ...]:
    """Return falling levels of a record, the lowest above its clean end.

    Args:
        record: The inversion.
        low: Lowest level as a share of its steps.
        high: Highest level.
        count: How many at most.
    """
    if not 0.0 <= low <= high <= 1.0 or count < 1:
        raise ValueError(
            f"low must not exceed high, both within 0 .. 1, got {low:g} and {high:g}; 0.2 to 0.8 is usual."
        )
    shares = [high] if count == 1 else [high - (high - low) * i / (count - 1) for i in range(count)]
    places = dict.fromkeys(max(1, round(share * record.index)) for share in shares)
    return tuple(record.sigmas[place] for place in places)


def latent_states(model: Any, samples: torch.Tensor, seed: int) -> States:
    """Return the states of a latent at any level: mixed with one noise a picture."""
    clean = into_model(model, samples)
    noise = Noises(seed, clean).draw()
    space = space_of(model_sampling_of(model))

    def state(sigma: float, device: torch.device) -> torch.Tensor:
        return mix(clean, noise, sigma, space).to(device, work_dtype(device))

    return state


def record_states(record: Inversion) -> States:
    """Return the states of a record."""

    def state(sigma: float, device: torch.device) -> torch.Tensor:
        return record.to_precision(work_dtype(device)).state_at(sigma, device)

    return state


def read_words(
    model: Any,
    prompt: Prompt,
    conditioning: Any,
    words: Sequence[Word],
    samples: torch.Tensor,
    levels: tuple[float, ...],
    states: States,
    layers: str = "",
) -> torch.Tensor:
    """Return how much each token of the picture attends to some words.

    Args:
        model: The MODEL; it is not changed.
        prompt: The prompt.
        conditioning: Its CONDITIONING.
        words: Words of it.
        samples: Samples in the model's channels, for shape and device.
        levels: Falling noise levels, one forward each.
        states: State of the picture at a level.
        layers: Layers that are read, empty for those that suit the model.

    Returns:
        Shape (items, words, frames, h, w), float32, on the grid of the model's tokens.

    Raises:
        ValueError: If a word is not in the prompt or no layer matches.
    """
    refuse_skipping(model)
    refuse_compiled_model(model)
    where = Layers.parse(layers.strip() or resolver_for(model.model.diffusion_model).word_layers)
    plan = AttentionPlan(probes=(word_probe(_MAPS, prompt, words, SOURCE, where),))
    branch = Branch(conditioning)
    guider = BranchGuider(model, {SOURCE: branch, TARGET: branch}, plan)
    sampler = _Reader(levels, states)
    drive(guider, sampler, samples, (*levels, 0.0))
    assert sampler.result is not None
    return sampler.result


class _Reader(ScriptedSampler[torch.Tensor]):
    """Asks the source branch at some levels; ``result`` is what the probe read."""

    def __init__(self, levels: tuple[float, ...], states: States) -> None:
        self._levels = levels
        self._states = states
        self.result = None

    def sample(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Ask; called by the host."""

        def source(
            x: torch.Tensor, sigma: torch.Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
        ) -> torch.Tensor:
            options = guider.asking(model_options, [SOURCE], [SOURCE])
            answer: torch.Tensor = guider(x, sigma, model_options=options, seed=seed)
            return answer

        device = noise.device
        denoiser = denoiser_of(source, guider.inner_model.model_sampling, extra_args, work_dtype(device))
        self._ask(denoiser, device, callback)
        self.result = guider.run.maps[_MAPS].maps().cpu()
        return torch.zeros_like(noise)

    def _ask(self, denoiser: Denoiser, device: torch.device, callback: Callback | None) -> None:
        total = len(self._levels)
        for index, sigma in enumerate(self._levels):
            x = self._states(sigma, device)
            denoised = denoiser(x, sigma)
            if callback is not None:
                callback(index, denoised.float(), x.float(), total)


def picture(heat: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return maps (items, frames, h, w) at the size of a picture, between cells linearly, at most 1 in each item."""
    return over_maximum(torch.nn.functional.interpolate(heat, size, mode="bilinear", align_corners=False))


def cut(heat: torch.Tensor, how: Threshold, share: float, wider: int, softer: float) -> torch.Tensor:
    """Return masks of maps (items, frames, h, w).

    Args:
        heat: The maps.
        how: As in attention.heat_maps.threshold.
        share: 0 .. 1; for "mean" and "otsu" a half is the level itself.
        wider: Cells by which the masks are widened.
        softer: Deviation of their soft edge in cells.
    """
    level = share if how in ("absolute", "quantile") else 2.0 * share
    return blur(grow(threshold(heat, how, level), wider), softer).clamp(0.0, 1.0)


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
