"""A model with a known answer: the exact denoiser of a Gaussian mixture, in both spaces.

The clean latent is drawn from sum_j w_j N(m_j, diag(v)); weights w and a common shift of the means depend on a
conditioning embedding. A state x = a*x0 + sigma*n then has, per component, the mean a*m_j and the variance
a^2 v + sigma^2, so

    D(x, sigma) = sum_j r_j(x) * (m_j + a v / (a^2 v + sigma^2) * (x - a m_j))

with r_j the posterior weights; a is 1 for "ve" and 1 - sigma for "flow". Nothing is approximated: an inversion's
error is that of its method alone.
"""

import math

import torch

from retrace.inversion import Denoiser

COMPONENTS = 8
WIDTH = 16  # length of a conditioning embedding
SHAPE = (4, 3, 5)  # channels, height, width: neither square nor even
CLIP_SHAPE = (3, 2, 3, 4)  # channels, frames, height, width

# Where the derivative is smooth enough for its order of convergence to show: off the clean end, up to pure noise.
SMOOTH = {"ve": (0.5, 14.6), "flow": (0.2, 1.0)}


class Mixture:
    """A mixture over latents of one shape, with the prompts "null", "source" and "target"."""

    def __init__(self, space, shape=SHAPE, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        self.space, self.shape = space, tuple(shape)
        size = math.prod(shape)
        place = torch.arange(1, size + 1, dtype=torch.float64)
        # Power laws within and between the components, as in latents of pictures: few strong directions, a long tail.
        self.variance = 0.04 + 0.5 / place
        self.means = draw(COMPONENTS, size) * (0.9 / place.sqrt() + 0.15)
        self.weight_of = draw(COMPONENTS, WIDTH) / math.sqrt(WIDTH)
        self.shift_of = 0.03 * draw(size, WIDTH) / math.sqrt(WIDTH)
        self.embeddings = {"null": 0.1 * draw(WIDTH)}
        for prompt, chosen in (("source", (0, 1, 2)), ("target", (3, 4, 5))):
            logits = torch.full((COMPONENTS, 1), -1.0, dtype=torch.float64)
            logits[list(chosen)] = 1.0
            self.embeddings[prompt] = torch.linalg.lstsq(self.weight_of, logits).solution[:, 0]

    @torch.no_grad()
    def sample(self, batch, seed=1, prompt="source"):
        """Clean latents (batch, *shape) of a prompt."""
        generator = torch.Generator().manual_seed(seed)
        embedding = self.embeddings[prompt]
        chosen = torch.multinomial((self.weight_of @ embedding).softmax(0), batch, True, generator=generator)
        noise = torch.randn(batch, self.variance.numel(), generator=generator, dtype=torch.float64)
        clean = self.means[chosen] + self.shift_of @ embedding + self.variance.sqrt() * noise
        return clean.reshape(batch, *self.shape)

    def noise(self, batch, seed=2):
        """Unit noise (batch, *shape)."""
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def denoise(self, x, sigma, embedding):
        """E[x0 | x] for one embedding or one a row, in the dtype of x."""
        scale = 1.0 if self.space == "ve" else 1.0 - sigma
        variance, rows = self.variance.to(x.dtype), embedding.reshape(-1, WIDTH).double()
        means = (self.means + (rows @ self.shift_of.T)[:, None]).to(x.dtype)
        logits = (rows @ self.weight_of.T).log_softmax(1).to(x.dtype)
        total = scale**2 * variance + sigma**2
        distance = x.reshape(len(x), 1, -1) - scale * means
        posterior = (logits - 0.5 * (distance.square() / total).sum(-1)).softmax(1)
        per_component = means + scale * variance / total * distance
        return (posterior[..., None] * per_component).sum(1).reshape(x.shape)

    def denoiser(self, prompt="source", cfg=1.0, sigma_floor=None):
        """The mixture as a solver sees it, guided by cfg."""

        def rebind(null):
            def denoise(x, sigma):
                denoised = self.denoise(x, sigma, self.embeddings[prompt])
                if cfg == 1.0:
                    return denoised
                unguided = self.denoise(x, sigma, null)
                return unguided + cfg * (denoised - unguided)

            return denoise

        return Denoiser(rebind(self.embeddings["null"]), self.space, sigma_floor, rebind)


def full_grid(space, steps):
    """An ascending grid from 0 to pure noise, spaced as in practice.

    "ve": the noise levels of Stable Diffusion (scaled-linear betas .00085 to .012) at evenly spaced timesteps.
    "flow": evenly spaced levels under shift 3, the value of Stable Diffusion 3.
    """
    if space == "flow":
        even = [index / steps for index in range(steps + 1)]
        return [3.0 * level / (1.0 + 2.0 * level) for level in even]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept = torch.cumprod(1.0 - betas, 0)
    table = ((1.0 - kept) / kept).sqrt()
    timesteps = torch.linspace(0, 999, steps + 1, dtype=torch.float64)[1:].round().long()
    return [0.0, *table[timesteps].tolist()]


def smooth_grid(space, steps):
    """An ascending grid over the smooth interval, even in the cube root for "ve" and in the level for "flow"."""
    low, high = SMOOTH[space]
    even = [index / steps for index in range(steps + 1)]
    power = 3 if space == "ve" else 1
    inner = [((1 - u) * low ** (1 / power) + u * high ** (1 / power)) ** power for u in even[1:-1]]
    return [low, *inner, high]


def exact(denoiser, x, sigmas):
    """The state at sigmas[-1] by the classical fourth-order Runge-Kutta rule, independent of the steppers."""
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        h, middle = sigma_next - sigma, 0.5 * (sigma + sigma_next)
        k1 = denoiser.derivative(x, sigma)
        k2 = denoiser.derivative(x + 0.5 * h * k1, middle)
        k3 = denoiser.derivative(x + 0.5 * h * k2, middle)
        k4 = denoiser.derivative(x + h * k3, sigma_next)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def slope(errors, steps):
    """The order that errors at some numbers of steps show: least squares of log error over log step size."""
    log_step = torch.tensor([-math.log(count) for count in steps], dtype=torch.float64)
    log_error = torch.tensor([math.log(error) for error in errors], dtype=torch.float64)
    log_step, log_error = log_step - log_step.mean(), log_error - log_error.mean()
    return float((log_step * log_error).sum() / log_step.square().sum())
