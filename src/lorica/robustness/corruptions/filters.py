"""What several corruptions are made of: blurs, zoom, and the rounding to 8 bits. All on (N, C, H, W)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor


def rounded(pixels: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to the nearest of the 256 levels of an 8-bit picture."""
    return (pixels.clamp(0, 1) * 255).round() / 255


def truncated(pixels: Tensor) -> Tensor:
    """Clamp to [0, 1] and round down to 8 bits, as a conversion to whole numbers does.

    What exceeds a level by no more than an error of calculation counts as that level, so that even areas stay even.
    """
    return (pixels.clamp(0, 1) * 255 + 1e-6).floor() / 255


def gaussian(
    pixels: Tensor, sigma: float, *, truncate: float = 4.0, border: Literal["nearest", "reflect"] = "nearest"
) -> Tensor:
    """Gaussian blur as scipy and scikit-image define it, in float64.

    Two matrix products, whose matrices hold the border: any `sigma` goes with any size.

    Args:
        pixels: (N, C, H, W).
        sigma: standard deviation in pixels; 0 changes nothing.
        truncate: where the kernel is cut off, in standard deviations.
        border: "nearest" repeats the outermost pixel, "reflect" mirrors at the edge (dcba|abcd|dcba).
    """
    rows, columns = (_gaussian_matrix(n, sigma, truncate, border).to(pixels.device) for n in pixels.shape[-2:])
    return rows @ (pixels.double() @ columns.T)


def _gaussian_matrix(size: int, sigma: float, truncate: float, border: str) -> Tensor:
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / max(sigma, 1e-9)) ** 2)
    places = torch.arange(size)[:, None] + offsets
    if border == "nearest":
        places = places.clamp(0, size - 1)
    else:
        places = places % (2 * size)
        places = torch.minimum(places, 2 * size - 1 - places)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(
        1, places, (weights / weights.sum()).expand_as(places)
    )


def convolved(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Convolve with a symmetric odd square kernel, mirrored at the outermost pixels (dcb|abcd|cba), in float64.

    By Fourier transform: large kernels cost no more than small ones.
    """
    margin = kernel.shape[-1] // 2
    padded = F.pad(pixels.double(), (margin,) * 4, mode="reflect")
    size = [next_fast_len(n, real=True) for n in padded.shape[-2:]]
    spectrum = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernel.to(padded), s=size)
    height, width = pixels.shape[-2:]
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * margin : 2 * margin + height, 2 * margin : 2 * margin + width]


def zoomed(pixels: Tensor, factor: float) -> Tensor:
    """The centre, enlarged bilinearly to the size of the whole: the corner pixels of the cut-out keep their values."""
    size = pixels.shape[-2:]
    inside = [math.ceil(n / factor) for n in size]
    outside = [round(n * factor) for n in inside]
    part = _centre(pixels, inside)
    return _centre(F.interpolate(part, size=outside, mode="bilinear", align_corners=True), list(size))


def _centre(pixels: Tensor, size: list[int]) -> Tensor:
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape[-2:], size, strict=True))
    return pixels[..., top : top + size[0], left : left + size[1]]


def motion_blurred(pixels: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Motion blur as ImageMagick defines it: a half Gaussian along a line, at the nearest pixels.

    y(p) = sum_i w_i x(p + i (cos a, sin a)) for i = 0, ..., 2 ceil(radius), w_i ~ exp(-i^2 / 2 sigma^2), the outermost
    pixels repeated.

    Args:
        pixels: (N, C, H, W).
        radius, sigma: in pixels.
        degrees: (N,) direction a of each picture's line.
    """
    steps = torch.arange(2 * math.ceil(radius) + 1, dtype=torch.float64)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    angle = torch.deg2rad(degrees.double())[:, None]
    across, down = (
        (steps.to(angle) * part - 0.5).ceil().long() for part in (angle.cos(), angle.sin())
    )  # halves go down

    height, width = pixels.shape[-2:]
    margin = len(steps) - 1
    padded = F.pad(pixels, (margin,) * 4, mode="replicate")
    row = padded.shape[-1]
    rows, columns = (torch.arange(n, device=pixels.device) + margin for n in (height, width))
    places = (rows[:, None] * row + columns).flatten()
    total = torch.zeros_like(pixels).flatten(2)
    for i, weight in enumerate((weights / weights.sum()).tolist()):
        shifted = places + (down[:, i] * row + across[:, i])[:, None]
        total += weight * padded.flatten(2).gather(2, shifted[:, None].expand(-1, pixels.shape[1], -1))
    return total.view_as(pixels)
