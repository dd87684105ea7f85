"""Blurs, of a lens, a glass, a movement."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lorica.robustness.corruptions.base import CORRUPTIONS, Corruption
from lorica.robustness.corruptions.draws import Draws
from lorica.robustness.corruptions.filters import convolved, gaussian, motion_blurred, truncated, zoomed


@CORRUPTIONS.register("defocus_blur")
class DefocusBlur(Corruption):
    """x convolved with a disk of `radius` pixels, whose edge is softened by a Gaussian of `soften` pixels."""

    summary = "a lens out of focus"
    category = "blur"
    cifar = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    imagenet = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, radius: float, soften: float) -> Tensor:
        return convolved(pixels, _disk(radius, soften))


def _disk(radius: float, soften: float) -> Tensor:
    """The published kernel: a disk on a grid of its own (17 x 17, or just as large as the disk) that the softening
    does not leave: it is mirrored at the border. Rows and columns of zeros are cut off."""
    extent, reach = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    grid = torch.arange(-extent, extent + 1, dtype=torch.float64) ** 2
    disk = (grid[:, None] + grid <= radius**2).double()
    line = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * soften**2))
    soft = torch.outer(line, line) / line.sum() ** 2
    padded = F.pad((disk / disk.sum())[None, None], (reach,) * 4, mode="reflect")
    kernel = F.conv2d(padded, soft[None, None])[0, 0]
    unused = extent - min(extent, math.floor(radius) + reach)
    return kernel[unused : len(kernel) - unused, unused : len(kernel) - unused]


@CORRUPTIONS.register("glass_blur")
class GlassBlur(Corruption):
    """Gaussian blur (`sigma`), `rounds` of local shuffling, and the same blur again.

    In a round, from the last pixel to the first, every pixel at least `delta` from the border takes the present value
    of one that is a random whole number of pixels from -delta to delta - 1 away, down and across. The authors' code
    is written as a swap but makes this copy (both sides of the swap are views of one array), and so are their files.
    Although each pixel depends on those before it, no loop over pixels is needed: see `_sources`.
    """

    summary = "frosted glass, as in a bathroom window"
    category = "blur"
    cifar = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
    imagenet = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, sigma: float, delta: float, rounds: float) -> Tensor:
        shuffled = truncated(gaussian(pixels, sigma)).flatten(2)
        for _ in range(round(rounds)):
            offsets = draws.integers(-round(delta), round(delta), 2, *pixels.shape[-2:])
            shuffled = shuffled.gather(2, _sources(offsets, round(delta))[:, None].expand_as(shuffled))
        return gaussian(shuffled.view_as(pixels), sigma)


def _sources(offsets: Tensor, delta: int) -> Tensor:
    """(N, 2, H, W) offsets, down and across -> (N, H * W): the pixel whose value each pixel has after the round.

    Pixel p copies q = p + offset. If q > p, then q has been served before and holds what it copied itself, from a
    pixel that may be later still; the chain rises until some t copies an earlier pixel. Halving the chains at each
    step finds all t in log2(longest chain) steps.
    """
    _, _, height, width = offsets.shape
    rows, columns = (torch.arange(n, device=offsets.device) for n in (height, width))
    moves = ((rows > delta) & (rows <= height - delta))[:, None] & (columns > delta) & (columns <= width - delta)
    here = (rows[:, None] * width + columns).flatten()
    copied = here + ((offsets[:, 0] * width + offsets[:, 1]) * moves).flatten(1)
    ahead = torch.maximum(copied, here)
    while not torch.equal(further := ahead.gather(1, ahead), ahead):
        ahead = further
    return copied.gather(1, ahead)


@CORRUPTIONS.register("motion_blur")
class MotionBlur(Corruption):
    """A half Gaussian (`radius`, `sigma`) along a line whose angle is uniform in -45 to 45 degrees."""

    summary = "a camera in motion"
    category = "blur"
    cifar = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
    imagenet = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
        return motion_blurred(pixels, radius, sigma, 90 * draws.uniform() - 45)


@CORRUPTIONS.register("zoom_blur")
class ZoomBlur(Corruption):
    """The mean of x and of its enlargements by 1, 1 + step, ... below `stop`."""

    summary = "a camera that moves towards its subject"
    category = "blur"
    cifar = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
    imagenet = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, stop: float, step: float) -> Tensor:
        factors = np.arange(1, stop, step).tolist()  # as published: its rounding decides whether `stop` is among them
        total = pixels.clone()
        for factor in factors:
            total += zoomed(pixels, factor)
        return total / (len(factors) + 1)
