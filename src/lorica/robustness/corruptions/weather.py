"""Weather: snow, frost, fog, and bright light."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lorica.robustness.corruptions.base import CORRUPTIONS, Corruption
from lorica.robustness.corruptions.draws import Draws
from lorica.robustness.corruptions.filters import motion_blurred, rounded, truncated, zoomed


@CORRUPTIONS.register("snow")
class Snow(Corruption):
    """keep * x + (1 - keep) * max(x, 1.5 grey(x) + 0.5) + s + s turned by 180 degrees.

    The flakes s: normal noise (`mean`, `std`), one value for all channels, enlarged by `zoom`, set to 0 where below
    `threshold`, and motion-blurred (`radius`, `sigma`) at an angle uniform in -135 to -45 degrees.
    """

    summary = "whitened pictures with falling flakes"
    category = "weather"
    cifar = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )
    imagenet = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )

    @staticmethod
    def apply(
        pixels: Tensor,
        draws: Draws,
        mean: float,
        std: float,
        zoom: float,
        threshold: float,
        radius: float,
        sigma: float,
        keep: float,
    ) -> Tensor:
        flakes = zoomed(mean + std * draws.normal(1, *pixels.shape[-2:]), zoom)
        flakes = truncated(flakes.masked_fill(flakes < threshold, 0.0))
        flakes = rounded(motion_blurred(flakes, radius, sigma, -45 - 90 * draws.uniform()))
        red, green, blue = pixels.unbind(1)
        grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
        whitened = keep * pixels + (1 - keep) * torch.maximum(pixels, 1.5 * grey + 0.5)
        return whitened + flakes + flakes.flip(-1, -2)


@CORRUPTIONS.register("frost")
class Frost(Corruption):
    """keep * x + ice * t, where t is a texture of ice.

    Own: the authors lay cut-outs of five photographs over the pictures. Here t is made anew for every picture (see
    `_ice`), with the brightness, tint, contrast and graininess of such photographs. The constants are theirs.
    """

    summary = "ice crystals on a window"
    category = "weather"
    fidelity = "own"
    cifar = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    imagenet = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, keep: float, ice: float) -> Tensor:
        return keep * pixels + ice * _ice(draws, *pixels.shape[-2:])


_BLUISH = (-0.14, 0.02, 0.12)


def _ice(draws: Draws, height: int, width: int) -> Tensor:
    """(N, 3, H, W) in [0, 1]: clouds, crystals at three scales and grain, of random brightness, contrast and tint."""
    side = min(height, width)
    clouds = plasma(draws, max(height, width), decay=1.25)[..., :height, :width]
    texture = 0.8 * _standardised(clouds) + 0.35 * draws.normal(1, height, width)
    for shrink, weight in ((4, 0.8), (2, 1.0), (1, 1.1)):
        crystals = _needles(draws, math.ceil(height / shrink), math.ceil(width / shrink), radius=side / 32)
        texture += weight * _standardised(F.interpolate(crystals, size=(height, width), mode="bilinear"))
    level, contrast, tint = draws.uniform(3, 1, 1, 1).unbind(1)
    grey = 0.42 + 0.42 * level + (0.05 + 0.09 * contrast) * _standardised(texture)
    return (grey + tint * torch.tensor(_BLUISH, device=grey.device).view(3, 1, 1)).clamp(0, 1)


def _needles(draws: Draws, height: int, width: int, radius: float, share: float = 0.06) -> Tensor:
    """(N, 1, H, W): needles that fade towards one end, in three random directions, from a `share` of all pixels."""
    margin = 2 * math.ceil(radius)  # for needles that come in from outside
    needles = torch.zeros(1, device=draws.device)
    for _ in range(3):
        seeds = draws.uniform(1, height + 2 * margin, width + 2 * margin)
        seeds = (seeds - (1 - share)).clamp(min=0) / share
        grown = motion_blurred(seeds, radius, radius, 360 * draws.uniform())
        needles = torch.maximum(needles, grown[..., margin : margin + height, margin : margin + width])
    return needles.sqrt()


def _standardised(maps: Tensor) -> Tensor:
    """Mean 0 and variance 1 over each picture."""
    centred = maps - maps.mean((1, 2, 3), keepdim=True)
    return centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)


@CORRUPTIONS.register("fog")
class Fog(Corruption):
    """(x + thickness * f) * m / (m + thickness), where m is the picture's largest value and f a fog in [0, 1].

    The fog is a plasma fractal (see `plasma`) over the next power of two of pixels, cut off to the picture's size.
    """

    summary = "fog of uneven thickness"
    category = "weather"
    cifar = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
    imagenet = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, thickness: float, decay: float) -> Tensor:
        height, width = pixels.shape[-2:]
        cloud = plasma(draws, max(height, width), decay)[..., :height, :width]
        peak = pixels.amax((1, 2, 3), keepdim=True)
        return (pixels + thickness * cloud) * peak / (peak + thickness)


def plasma(draws: Draws, size: int, decay: float) -> Tensor:
    """Plasma fractals (N, 1, S, S) from 0 to 1 by the diamond-square method, S the next power of two from `size` on.

    A grid that wraps around is doubled until it is large enough. First the centre of each square is set to the mean
    of its corners, then the middle of each edge to the mean of its two ends and the two centres beside it, each plus
    uniform noise, whose amplitude falls by decay^2 with every doubling.
    """
    grid = torch.zeros_like(draws.uniform(1, 1, 1))
    noise = 1.0
    while (side := grid.shape[-1]) < size:
        shake = noise * (2 * draws.uniform(3, side, side) - 1)
        right, below = grid.roll(-1, -1), grid.roll(-1, -2)
        centre = (grid + right + below + right.roll(-1, -2)) / 4 + shake[:, :1]
        upper = (grid + right + centre + centre.roll(1, -2)) / 4 + shake[:, 1:2]
        left = (grid + below + centre + centre.roll(1, -1)) / 4 + shake[:, 2:]
        tops, bottoms = (torch.stack(pair, -1).flatten(-2) for pair in ((grid, upper), (left, centre)))
        grid = torch.stack([tops, bottoms], -2).flatten(-3, -2)
        noise /= decay**2
    grid = grid - grid.amin((1, 2, 3), keepdim=True)
    return grid / grid.amax((1, 2, 3), keepdim=True)


@CORRUPTIONS.register("brightness")
class Brightness(Corruption):
    """Value + amount in the HSV model; hue and saturation are kept.

    That scales all channels alike: x * v' / v with v = max over channels and v' = min(v + amount, 1).
    """

    summary = "more light"
    category = "weather"
    cifar = ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))
    imagenet = ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, amount: float) -> Tensor:
        value = pixels.amax(1, keepdim=True)
        brighter = (value + amount).clamp(max=1)
        return torch.where(value > 0, pixels * (brighter / value.clamp(min=1e-9)), brighter)
