"""What the restoration benchmarks compare: damages, the pack's solvers at their nodes' settings, and baselines."""

from __future__ import annotations

import functools
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "_standalone.py"))["load_package"]()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from retrace.backends.shapes import shapes_model  # noqa: E402
from retrace.core.noise import Noises  # noqa: E402
from retrace.core.space import weights  # noqa: E402
from retrace.restoration.measurement import GREY_LEVELS, NOISE_FLOOR, Measurement  # noqa: E402
from retrace.restoration.operators import (  # noqa: E402
    JPEG,
    BlackWhite,
    GaussianBlur,
    LowResolution,
    Mask,
    Noise,
    Operator,
    quality_tables,
)
from retrace.restoration.snap import snap  # noqa: E402
from retrace.restoration.solvers.dds import Consistency, dds  # noqa: E402
from retrace.restoration.solvers.guided import Energy, GuidedSettings, guided  # noqa: E402
from retrace.restoration.solvers.latent import (  # noqa: E402
    DecodeCorrectEncode,
    EncoderAdjoint,
    autoencoder_noise,
    data_gradient,
)
from retrace.restoration.solvers.red_diff import red_diff  # noqa: E402

SHAPE = (3, 64, 64)
LATENT = (4, 16, 16)
NOISE = 10.0  # grey levels of 255, where nothing else is said
FLOOR = 2.0  # the default of the nodes, for a photo to which no noise was added
SEED = 11
MODELS = ("eps", "flow")


def hole() -> Tensor:
    """A square of 24 pixels is missing."""
    keep = torch.ones(1, 64, 64)
    keep[:, 20:44, 24:48] = 0.0
    return keep


@dataclass(frozen=True)
class Damage:
    """A damage: its operator, the noise that is added in grey levels of 255, and what it is in words."""

    make: Callable[[], Operator]
    noise: float
    words: str

    def measured(self, truth: Tensor, first: int) -> Measurement:
        """Damage pictures; picture i of all has its noise from i alone.

        Args:
            truth: Pictures in [-1, 1].
            first: Number of the first of them.
        """
        operator = self.make()
        noise = torch.stack(
            [
                torch.randn(operator.out_shape, generator=torch.Generator().manual_seed(1000 + first + row))
                for row in range(len(truth))
            ]
        )
        damaged = operator.seen(operator.forward(truth) + self.noise / GREY_LEVELS * noise)
        return Measurement(operator, damaged, max(self.noise or FLOOR, GREY_LEVELS * NOISE_FLOOR) / GREY_LEVELS)


DAMAGES = {
    "mask": Damage(lambda: Mask(SHAPE, hole()), NOISE, "24 x 24 of 64 x 64 pixels missing"),
    "small": Damage(lambda: LowResolution(SHAPE, 4, "bicubic"), NOISE, "4 times smaller, bicubic"),
    "blur": Damage(lambda: GaussianBlur(SHAPE, 2.0), NOISE, "Gaussian blur of 2 pixels"),
    "grey": Damage(lambda: BlackWhite(SHAPE), NOISE, "black and white"),
    "jpeg": Damage(lambda: JPEG(SHAPE, quality_tables(10)), 0.0, "JPEG of quality 10, 4:2:0"),
    "noise": Damage(lambda: Noise(SHAPE), 40.0, "noise of 40 grey levels"),
}


@functools.cache
def _model(kind: str, half: bool) -> Any:
    model = shapes_model(kind)
    for part in (model.network, model.vae):
        part.requires_grad_(False)
    if half:
        model.vae.to(torch.bfloat16)
    return model


class Bench:
    """A demo model on a batch of captions, and how often its parts were asked.

    Attributes:
        denoiser: The model under the captions at cfg 1.
        sigmas: Falling.
        state: Zero latents of the batch.
        calls: Decodes and encodes of the batch so far.
    """

    def __init__(self, kind: str, captions: Sequence[str], steps: int, seed: int = SEED, half: bool = False) -> None:
        """Set up.

        Args:
            kind: "eps" or "flow".
            captions: A caption for each row.
            steps: Steps of the sigmas.
            seed: Row i draws its noise from seed + i.
            half: Whether the autoencoder runs in bfloat16.
        """
        self.model = _model(kind, half)
        self._vae, self._scale = self.model.vae, self.model.vae.config.scaling_factor
        self._dtype = torch.bfloat16 if half else torch.float32
        self.state = torch.zeros(len(captions), *LATENT)
        self.denoiser = self.model.denoiser(self.state, self.model.prompt(list(captions)))
        self.space = self.denoiser.space
        self.steps, self.seed = steps, seed
        self.sigmas = self.falling(steps)
        self.calls = {"decode": 0, "encode": 0}

    def falling(self, steps: int) -> tuple[float, ...]:
        """The model's sigmas for so many steps, falling."""
        return tuple(float(sigma) for sigma in reversed(self.model.schedule(*LATENT[1:]).grid(steps)))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents, not clipped."""
        self.calls["decode"] += 1
        return self._vae.decode((z / self._scale).to(self._dtype)).sample.float()

    def encode(self, x: Tensor) -> Tensor:
        """Latents of pictures."""
        self.calls["encode"] += 1
        return self._vae.encode(x.to(self._dtype)).latent_dist.mean.float() * self._scale

    def fresh(self, shared: bool = False) -> Callable[[], Tensor]:
        """Source of unit noise of the batch."""
        return Noises(self.seed, self.state, shared=0 if shared else None, precision=torch.float32).draw

    def sample(self, consistency: Consistency, fresh: Callable[[], Tensor] | None = None) -> Tensor:
        """Latents by DDS from pure noise."""
        fresh = fresh or self.fresh()
        start = weights(self.sigmas[0], self.space)[1] * fresh()
        return dds(self.denoiser, start, self.sigmas, consistency, fresh)

    def with_loss(self, measured: Measurement) -> Measurement:
        """The measurement with what the autoencoder loses in its noise, as the nodes have it."""
        return measured.with_noise(autoencoder_noise(measured, measured.initial(), self))


def _alone(bench: Bench, measured: Measurement) -> Tensor:
    return bench.decode(bench.sample(lambda denoised, *_: denoised))


def _through(bench: Bench, measured: Measurement) -> Tensor:
    return bench.decode(bench.encode(measured.initial()))


def _bicubic(bench: Bench, measured: Measurement) -> Tensor:
    small = measured.y * measured.operator.norm
    return torch.nn.functional.interpolate(small, size=SHAPE[1:], mode="bicubic", align_corners=False)


def _free_cells() -> Tensor:
    return torch.nn.functional.max_pool2d(1.0 - hole()[None], SHAPE[-1] // LATENT[-1])


def _mask_euler(bench: Bench, measured: Measurement) -> Tensor:
    """What the host does with a noise mask under its euler sampler, at full denoise.

    The state outside is that of the photo at that sigma, and so is the prediction.
    """
    free, kept, noise = _free_cells(), bench.encode(measured.initial()), bench.fresh()()
    a, b = weights(bench.sigmas[0], bench.space)
    x = a * kept + b * noise
    for sigma, after in zip(bench.sigmas, bench.sigmas[1:], strict=False):
        a, b = weights(sigma, bench.space)
        seen = free * x + (1.0 - free) * (a * kept + b * noise)
        denoised = free * bench.denoiser(seen, sigma) + (1.0 - free) * kept
        x = x + (after - sigma) / sigma * (x - denoised)
    return bench.decode(x)


def _mask_fresh(bench: Bench, measured: Measurement) -> Tensor:
    """The same mask on the prediction, with the steps and the fresh noise of DDS."""
    free, kept = _free_cells(), bench.encode(measured.initial())
    return bench.decode(bench.sample(lambda denoised, *_: free * denoised + (1.0 - free) * kept))


def _encoder_adjoint(bench: Bench, measured: Measurement) -> Tensor:
    return bench.decode(bench.sample(EncoderAdjoint(bench.with_loss(measured), bench)))


def _decode_correct_encode(bench: Bench, measured: Measurement) -> Tensor:
    return bench.decode(bench.sample(DecodeCorrectEncode(bench.with_loss(measured), bench)))


def _red_diff(bench: Bench, measured: Measurement) -> Tensor:
    """RED-diff with the data gradient and the defaults of its node."""

    def gradient(mu: Tensor) -> Tensor:
        return data_gradient(measured, bench, mu)

    start = bench.encode(measured.initial())
    return bench.decode(red_diff(bench.denoiser, start, bench.sigmas, gradient, bench.fresh()))


def _guided(inner: int = 1, gluing: float = 0.1) -> Callable[[Bench, Measurement], Tensor]:
    def restore(bench: Bench, measured: Measurement) -> Tensor:
        fresh, settings = bench.fresh(), GuidedSettings(gluing=gluing, inner_steps=inner)
        energy = Energy(bench.with_loss(measured), bench, settings)
        start = weights(bench.sigmas[0], bench.space)[1] * fresh()
        return bench.decode(guided(bench.denoiser, start, bench.sigmas, energy, fresh, settings))

    return restore


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        run: From a bench and a measurement to pictures in [-1, 1], not clipped.
        plain: Whether it is one of the plain baselines that DDS is compared with.
        costly: 1 to run on fewer pictures, more to run on so many times fewer again; 0 for all.
        steps: Times the steps of DDS.
        damages: Where it makes sense.
        models: For which models it is meant.
        full: Whether the autoencoder runs in float32 in any case: on a processor its backward pass takes twice as long
            in bfloat16.
    """

    run: Callable[[Bench, Measurement], Tensor]
    plain: bool = False
    costly: int = 0
    steps: float = 1.0
    damages: tuple[str, ...] = tuple(DAMAGES)
    models: tuple[str, ...] = MODELS
    full: bool = False


DDS = "DDS, encoder adjoint"
METHODS = {
    "first guess": Method(lambda bench, measured: measured.initial(), plain=True),
    "bicubic": Method(_bicubic, plain=True, damages=("small",)),
    "noise mask, euler": Method(_mask_euler, plain=True, damages=("mask",)),
    "noise mask, fresh noise": Method(_mask_fresh, plain=True, damages=("mask",)),
    "first guess through the VAE": Method(_through),
    "model alone": Method(_alone, costly=1),
    DDS: Method(_encoder_adjoint),
    "DDS, decode-correct-encode": Method(_decode_correct_encode, costly=1),
    "RED-diff": Method(_red_diff, costly=1, steps=2.0),
    "PSLD": Method(_guided(), costly=1, full=True),
    # It has no gluing term.
    "STSL": Method(_guided(5, 0.0), costly=4, full=True),
}


def snapped(measured: Measurement, shown: Tensor) -> Tensor:
    """Pictures behind SnapToMeasurement, in [-1, 1]."""
    return snap(measured, shown).clamp(-1.0, 1.0)
