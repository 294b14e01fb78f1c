"""Plots with Pillow alone, as the host brings no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _MARGIN = 480, 400, 56
_PAPER, _INK, _GRID, _LINE, _FILL = "#ffffff", "#202428", "#d8dce0", "#1f6feb", "#9ec5fe"

# Half-width of the noise histogram in standard deviations.
_SPREAD = 4.0
_BINS = 61


def report_plot(sigmas: Sequence[float], errors: Sequence[float], noise: torch.Tensor) -> torch.Tensor:
    """Draw the error of every step and the histogram of the inverted noise.

    Args:
        sigmas: Level of each error, in walking order; empty without a recorded path.
        errors: Relative error of the state at each level.
        noise: The noise that the inverted state implies, any shape.

    Returns:
        IMAGE of the host, shape (1, H, W, 3), values in [0, 1].
    """
    canvas = Image.new("RGB", (2 * _WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(canvas)
    _error_panel(draw, 0, sigmas, errors)
    _noise_panel(draw, _WIDTH, noise)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255.0)[None]


def loss_plot(sigmas: Sequence[float], before: Sequence[float], after: Sequence[float]) -> torch.Tensor:
    """Draw the loss of every step of a fit, before and after it.

    Args:
        sigmas: Level that each step leaves, in walking order.
        before: Loss at the start of each step.
        after: Loss at its end.

    Returns:
        IMAGE of the host, shape (1, H, W, 3), values in [0, 1].
    """
    ends = (f"sigma {sigmas[0]:.4g}", f"sigma {sigmas[-1]:.4g}") if sigmas else ("", "")
    return _two_curves("loss of every step: before the fit (light), after it (dark)", before, after, ends)


def descent_plot(losses: Sequence[float], best: Sequence[float]) -> torch.Tensor:
    """Draw the loss of every iteration of an optimisation, and the best up to it.

    Args:
        losses: Loss of what each iteration tried.
        best: Loss of the best that there was by then.

    Returns:
        IMAGE of the host, shape (1, H, W, 3), values in [0, 1].
    """
    ends = ("start", f"{max(0, len(losses) - 1)} updates")
    return _two_curves("loss of every iteration (light), of what is kept (dark)", losses, best, ends)


def _two_curves(title: str, light: Sequence[float], dark: Sequence[float], ends: tuple[str, str]) -> torch.Tensor:
    """Draw two curves over a logarithmic axis, with a word below each end."""
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(canvas)
    x0, y0, x1, y1 = _frame(draw, 0, title)
    shown = [loss for loss in (*light, *dark) if loss > 0.0 and math.isfinite(loss)]
    low = math.floor(math.log10(min(shown))) if shown else 0
    high = max(math.ceil(math.log10(max(shown))), low + 1) if shown else 1
    for power in range(low, high + 1):
        y = y1 - (power - low) / (high - low) * (y1 - y0)
        draw.line((x0, y, x1, y), fill=_GRID)
        draw.text((x0 - 6, y), f"1e{power}", fill=_INK, anchor="rm")
    width = (x1 - x0) / max(1, len(light))
    for losses, colour in ((light, _FILL), (dark, _LINE)):
        points = [
            (x0 + (index + 0.5) * width, y1 - (math.log10(loss) - low) / (high - low) * (y1 - y0))
            for index, loss in enumerate(losses)
            if loss > 0.0 and math.isfinite(loss)
        ]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    draw.rectangle((x0, y0, x1, y1), outline=_INK)
    draw.text((x0, y1 + 8), ends[0], fill=_INK)
    draw.text((x1, y1 + 8), ends[1], fill=_INK, anchor="ra")
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255.0)[None]


def _frame(draw: ImageDraw.ImageDraw, left: int, title: str) -> tuple[int, int, int, int]:
    box = (left + _MARGIN, _MARGIN, left + _WIDTH - 16, _HEIGHT - _MARGIN)
    draw.rectangle(box, outline=_INK)
    draw.text((left + _MARGIN, 20), title, fill=_INK)
    return box


def _error_panel(draw: ImageDraw.ImageDraw, left: int, sigmas: Sequence[float], errors: Sequence[float]) -> None:
    x0, y0, x1, y1 = _frame(draw, left, "relative error of the state on the way down")
    pairs = zip(sigmas, errors, strict=True)
    shown = [(sigma, error) for sigma, error in pairs if error > 0.0 and math.isfinite(error)]
    if not shown:
        text = "exact at every step" if errors else "no path recorded: set keep_path of Invert"
        draw.text(((x0 + x1) // 2, (y0 + y1) // 2), text, fill=_INK, anchor="mm")
        return
    low = math.floor(min(math.log10(error) for _, error in shown))
    high = max(math.ceil(max(math.log10(error) for _, error in shown)), low + 1)
    top = max(sigmas) or 1.0

    def place(sigma: float, error: float) -> tuple[float, float]:
        across = 1.0 - sigma / top
        return x0 + across * (x1 - x0), y1 - (math.log10(error) - low) / (high - low) * (y1 - y0)

    for power in range(low, high + 1):
        y = y1 - (power - low) / (high - low) * (y1 - y0)
        draw.line((x0, y, x1, y), fill=_GRID)
        draw.text((x0 - 6, y), f"1e{power}", fill=_INK, anchor="rm")
    points = [place(sigma, error) for sigma, error in shown]
    draw.line(points, fill=_LINE, width=2)
    for x, y in points:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_LINE)
    draw.rectangle((x0, y0, x1, y1), outline=_INK)
    draw.text((x0, y1 + 8), f"sigma {top:.4g}", fill=_INK)
    draw.text((x1, y1 + 8), "sigma 0", fill=_INK, anchor="ra")


def _noise_panel(draw: ImageDraw.ImageDraw, left: int, noise: torch.Tensor) -> None:
    x0, y0, x1, y1 = _frame(draw, left, "noise of the inverted state, line: unit Gaussian")
    values = noise.detach().to("cpu", torch.float64).flatten().numpy()
    counts, edges = np.histogram(values, bins=_BINS, range=(-_SPREAD, _SPREAD))
    density = counts / (max(1, values.size) * (edges[1] - edges[0]))
    normal = np.exp(-0.5 * edges**2) / math.sqrt(2.0 * math.pi)
    top = 1.15 * max(float(density.max()), float(normal.max()))

    def place(value: float, height: float) -> tuple[float, float]:
        return x0 + (value + _SPREAD) / (2 * _SPREAD) * (x1 - x0), y1 - height / top * (y1 - y0)

    for height, (before, after) in zip(density, pairwise(edges), strict=True):
        a, b = place(before, float(height)), place(after, 0.0)
        draw.rectangle((a[0], a[1], b[0], b[1]), fill=_FILL)
    curve = [place(float(edge), float(height)) for edge, height in zip(edges, normal, strict=True)]
    draw.line(curve, fill=_LINE, width=2)
    draw.rectangle((x0, y0, x1, y1), outline=_INK)
    for value in (-4, -2, 0, 2, 4):
        draw.text((place(value, 0.0)[0], y1 + 8), str(value), fill=_INK, anchor="ma")
