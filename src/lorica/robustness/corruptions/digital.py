"""Contrast, distortion and loss of resolution, as cameras, screens and files cause them."""

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lorica.robustness.corruptions.base import CORRUPTIONS, Corruption
from lorica.robustness.corruptions.draws import Draws
from lorica.robustness.corruptions.filters import gaussian

_OVERSIZE = 244 / 224  # the lengths of ImageNet-C's elastic_transform were fractions of 244 pixels


@CORRUPTIONS.register("contrast")
class Contrast(Corruption):
    """m + factor * (x - m), where m is the mean of the picture's channel."""

    summary = "low contrast"
    category = "digital"
    cifar = ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))
    imagenet = ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, factor: float) -> Tensor:
        mean = pixels.double().mean((2, 3), keepdim=True)
        return mean + factor * (pixels - mean)


@CORRUPTIONS.register("elastic_transform")
class ElasticTransform(Corruption):
    """A random affine map, then a smooth random displacement of every pixel.

    The map takes three corners of a centred square, side / 3 from the centre, to places up to `jitter` away in each
    coordinate. The displacement is uniform noise in -1 to 1 for every pixel and coordinate, blurred by a Gaussian of
    standard deviation `smooth` that is cut off at three of them, times `strength`. All three are fractions of the
    picture's shorter side. Both steps sample bilinearly and mirror at the border.

    Approximate: OpenCV, which the authors used for the affine map, rounds coordinates to 1/32 of a pixel.
    """

    summary = "small regions stretched and shrunk"
    category = "digital"
    fidelity = "approximate"
    cifar = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    imagenet = tuple(
        tuple(_OVERSIZE * fraction for fraction in fractions)
        for fractions in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    )

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, strength: float, smooth: float, jitter: float) -> Tensor:
        height, width = pixels.shape[-2:]
        side = min(height, width)
        across, down = torch.arange(width, device=pixels.device), torch.arange(height, device=pixels.device)
        here = torch.stack([across.expand(height, width), down[:, None].expand(height, width)], dim=-1).double()

        affine = _affine_back(height, width, jitter * side * (2 * draws.uniform(3, 2) - 1).double())
        there = here @ affine[:, None, :2] + affine[:, None, None, 2]
        warped = _sampled(pixels, there, edge_is_pixel=True)

        noise = 2 * draws.uniform(2, height, width) - 1
        shift = strength * side * gaussian(noise, smooth * side, truncate=3, border="reflect")
        return _sampled(warped, here + shift.movedim(1, -1), edge_is_pixel=False)


def _affine_back(height: int, width: int, jitter: Tensor) -> Tensor:
    """(N, 3, 2) shifts of three corners, across and down -> (N, 3, 2) affine maps that take the shifted ones back."""
    centre = torch.tensor([width // 2, height // 2])
    corners = centre + min(height, width) // 3 * torch.tensor([[1, 1], [1, -1], [-1, -1]])
    corners = corners.to(jitter)
    shifted = F.pad(corners + jitter, (0, 1), value=1.0)
    return torch.linalg.solve(shifted, corners.expand_as(jitter))


def _sampled(pixels: Tensor, places: Tensor, *, edge_is_pixel: bool) -> Tensor:
    """Bilinear values at (N, H, W, 2) places, across and down, in pixels from the centre of the first pixel.

    Mirrored at the centres of the outermost pixels (dcb|abcd|cba) or at their outer edges (dcba|abcd|dcba).
    """
    size = torch.tensor(pixels.shape[:-3:-1], device=pixels.device)
    grid = 2 * places / (size - 1) - 1 if edge_is_pixel else (2 * places + 1) / size - 1
    return F.grid_sample(
        pixels.double(), grid.double(), mode="bilinear", padding_mode="reflection", align_corners=edge_is_pixel
    )


@CORRUPTIONS.register("pixelate")
class Pixelate(Corruption):
    """x reduced to floor(factor * size) and enlarged again, both by Pillow with a box filter, rounded to 8 bits."""

    summary = "a low resolution, enlarged"
    category = "digital"
    cifar = ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))
    imagenet = ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, factor: float) -> Tensor:
        def changed(image: Image.Image) -> Image.Image:
            small = image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BOX)
            return small.resize(image.size, Image.Resampling.BOX)

        return _through_pillow(pixels, changed)


@CORRUPTIONS.register("jpeg_compression")
class JpegCompression(Corruption):
    """x written as JPEG of the given quality and read again, by Pillow in memory."""

    summary = "lossy compression"
    category = "digital"
    cifar = ((80,), (65,), (58,), (50,), (40,))
    imagenet = ((25,), (18,), (15,), (10,), (7,))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, quality: float) -> Tensor:
        def changed(image: Image.Image) -> Image.Image:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=round(quality))
            return Image.open(file)

        return _through_pillow(pixels, changed)


def _through_pillow(pixels: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Change the pictures one by one on the CPU: Pillow's rounding, at ties also its choice of pixels, is the
    definition, and no batched version of ours would agree with it at every size."""
    levels = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(picture))) for picture in levels])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).to(pixels) / 255
