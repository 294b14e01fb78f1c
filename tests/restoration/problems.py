"""What the tests share: small pictures, noise, the matrix of an operator, and priors whose posterior is known."""

import math

import torch

from retrace.core.denoiser import Denoiser
from retrace.core.noise import Noises
from retrace.core.space import weights
from retrace.restoration.solvers.dds import DDSSettings, dds

PICTURE = (3, 9, 12)
CLIP = (6, 3, 8, 6)
SIGMA = 0.05
SHAPE = (3, 6, 6)


def unit(*shape, seed=0):
    """Seeded unit noise, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fresh(like, seed=7, shared=None):
    """Source of noise for a run."""
    return Noises(seed, like, shared=shared).draw


def vp_sigmas(steps):
    """Sigmas of the linear DDPM schedule, uniform in time, falling to 0."""
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    sigmas = ((1 - kept) / kept).sqrt()
    return (*sigmas[torch.arange(0, 1000, 1000 // steps).flip(0)].tolist(), 0.0)


def as_flow(sigmas):
    """The same sigmas in the flow space: sigma / (1 + sigma)."""
    return tuple(s / (1 + s) for s in sigmas)


def hole(count=1):
    """White where pictures of PICTURE are missing."""
    missing = torch.zeros(count, 9, 12)
    missing[:, 2:6, 3:8] = 1.0
    return missing


def matrix_of(operator):
    """The dense matrix of a linear operator, by its forward alone."""
    size = torch.Size(operator.shape).numel()
    units = torch.eye(size, dtype=torch.float64).reshape(size, *operator.shape)
    return operator.forward(units).reshape(size, -1).T


def picture(operator, batch=(2,), seed=0, out=False):
    """Seeded values of the operator's own size, float64."""
    return unit(*batch, *(operator.out_shape if out else operator.shape), seed=seed)


class Gaussian:
    """x0 ~ N(0, C) over samples of one shape; D(x, sigma) is exact in both spaces."""

    def __init__(self, covariance, shape):
        self.covariance, self.shape = covariance, tuple(shape)
        values, self.basis = torch.linalg.eigh(covariance)
        self.values = values.clamp_min(0)

    def denoise(self, x, sigma, space="ve"):
        a, b = weights(sigma, space)
        gain = a * self.values / (a**2 * self.values + b**2)
        return ((x.flatten(1) @ self.basis * gain) @ self.basis.T).reshape(x.shape)

    def denoiser(self, space="ve"):
        return Denoiser(lambda x, sigma: self.denoise(x, sigma, space), space, 1e-9)

    def sample(self, count, seed=0):
        noise = unit(count, len(self.values), seed=seed)
        return ((noise * self.values.sqrt()) @ self.basis.T).reshape(count, *self.shape)

    def posterior(self, matrix, y, sigma=SIGMA):
        """Mean and covariance of x0 given y = matrix x0 + sigma n."""
        system = matrix @ self.covariance @ matrix.T + sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
        gain = torch.linalg.solve(system, matrix @ self.covariance).T
        return gain @ y, self.covariance - gain @ matrix @ self.covariance


def pictures_prior(shape=SHAPE, amplitude=0.25):
    """Power falls with frequency as in pictures, channels are alike."""
    channels, height, width = shape
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None]
    power = (1.0 / (down**2 + across**2 + 0.02) ** 1.1).double().flatten()
    unit = torch.eye(height * width, dtype=torch.complex128).reshape(-1, height, width)
    waves = torch.fft.fft2(unit, norm="ortho").reshape(height * width, -1)
    plane = (waves.conj().T @ torch.diag(power.to(torch.complex128)) @ waves).real
    plane = amplitude * plane / plane.diagonal().mean()
    colours = 0.9 * torch.ones(channels, channels) + 0.1 * torch.eye(channels)
    return Gaussian(torch.kron(colours.double(), plane), shape)


def white_prior(shape=SHAPE, variance=0.25):
    return Gaussian(variance * torch.eye(math.prod(shape), dtype=torch.float64), shape)


def moments(prior, sigmas, consistency, freshness=0.85, variance=0.25):
    """Mean and covariance of what DDS draws, exactly: each of its steps is affine in the state and in its noise."""
    size = math.prod(prior.shape)
    probes = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().reshape(-1, *prior.shape)
    settings, nothing = DDSSettings(freshness=freshness), torch.zeros_like(probes)
    mean, covariance = torch.zeros(size, dtype=torch.float64), sigmas[0] ** 2 * torch.eye(size, dtype=torch.float64)
    for pair in zip(sigmas, sigmas[1:]):

        def affine(x, noise, pair=pair):
            """What a step adds to the zero state, and its matrix, of the state or of the noise."""
            moved = dds(prior.denoiser(), x, pair, consistency, lambda: noise, settings, variance).flatten(1)
            return moved[0], (moved[1:] - moved[0]).T

        offset, linear = affine(probes, nothing)
        _, drawn = affine(nothing, probes)
        mean = linear @ mean + offset
        covariance = linear @ covariance @ linear.T + drawn @ drawn.T
    return mean, covariance


def distance(mean, covariance, wanted, wanted_covariance):
    """Wasserstein-2 distance of two Gaussians in deviations of the second."""

    def root(matrix):
        values, basis = torch.linalg.eigh((matrix + matrix.T) / 2)
        return (basis * values.clamp_min(0).sqrt()) @ basis.T

    half = root(wanted_covariance)
    square = (mean - wanted).square().sum() + covariance.trace() + wanted_covariance.trace()
    square = square - 2 * root(half @ covariance @ half).trace()
    return float((square.clamp_min(0) / wanted_covariance.trace()).sqrt())
