"""Random views of unlabelled pictures, for contrastive learning: cropped, mirrored and recoloured, a batch at once.

What is done to a picture at strength s, in this order, as in the authors' code of ACL (Jiang et al. 2020, arXiv
2010.13337) and ACL-AIR (Xu et al. 2023, arXiv 2305.00374); DynACL (Luo et al. 2023, arXiv 2303.01289) lets s fall:

- a crop of a share of U(1 - 0.9 s, 1) of the area and a ratio of 3/4 to 4/3 is enlarged to the size of the whole;
- with probability 0.5, whatever s, it is mirrored;
- with probability 0.8 s, brightness, contrast and saturation change by factors of U(1 - 0.4 s, 1 + 0.4 s) and the hue
  turns by U(-0.1 s, 0.1 s) of a full circle, in a random order;
- with probability 0.2 s it loses its colours.

Laws and formulas are those of torchvision.transforms.v2 (RandomResizedCrop with bicubic interpolation,
RandomHorizontalFlip, ColorJitter, RandomGrayscale) on float tensors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorica.devices import sent
from lorica.errors import LoricaError
from lorica.seeds import stable_seed

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Columns of `Draws.factors`, and the values in `Draws.order`."""

_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Draws:
    """What is done to each of N pictures."""

    size: tuple[int, int]
    """(height, width) in pixels of the pictures that it was drawn for."""
    boxes: Tensor
    """(N, 4) int64: top, left, height and width of the crop, in pixels."""
    flipped: Tensor
    """(N,) bool: mirrored left and right, after the crop."""
    jittered: Tensor
    """(N,) bool: the colours are changed."""
    factors: Tensor
    """(N, 4) float64: factors of brightness, contrast and saturation; turn of the hue, as a share of the circle."""
    order: Tensor
    """(N, 4) int64: which of the four comes first, second, third, fourth."""
    grey: Tensor
    """(N,) bool: the colours are taken away, at last."""

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: slice | Tensor) -> "Draws":
        """Of some pictures: a slice, or indices or a mask on the same device."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Draws":
        """The same on another device."""
        return self._each(lambda tensor: sent(tensor, torch.device(device)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        tensors = (self.boxes, self.flipped, self.jittered, self.factors, self.order, self.grey)
        return Draws(self.size, *map(change, tensors))


@dataclass(frozen=True)
class Views:
    """The law of the views.

    Attributes:
        strength: s in [0, 1]. At 0 only the mirroring is left, and a crop of the whole area, which may still change
            the ratio of the sides by a pixel or so; a picture longer than 4:3 loses its ends even then.

    Raises:
        LoricaError: a strength outside [0, 1].
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise LoricaError(
                f"strength of the augmentation = {self.strength:g}: it lies in [0, 1]",
                "1 is what ACL uses, 0 leaves little but the mirroring.",
            )

    def draw(self, count: int, size: tuple[int, int], seed: int) -> Draws:
        """Draw for `count` pictures of `size` (height, width), on the CPU.

        The first rows are the same for any larger `count`.
        """
        numbers = np.random.default_rng(stable_seed("views", seed)).random((count, 4 * _ATTEMPTS + 11))
        attempts, flip, jitter, grey, factors, order = np.split(
            numbers, 4 * _ATTEMPTS + np.array([0, 1, 2, 3, 7]), axis=1
        )
        spread = self.strength * np.array([0.4, 0.4, 0.4, 0.1])
        return Draws(
            size=size,
            boxes=torch.from_numpy(self._boxes(attempts.reshape(count, _ATTEMPTS, 4), *size)),
            flipped=torch.from_numpy(flip[:, 0] < 0.5),
            jittered=torch.from_numpy(jitter[:, 0] < 0.8 * self.strength),
            factors=torch.from_numpy(np.array([1, 1, 1, 0]) + spread * (2 * factors - 1)),
            order=torch.from_numpy(order.argsort(axis=1)),
            grey=torch.from_numpy(grey[:, 0] < 0.2 * self.strength),
        )

    def _boxes(self, attempts: np.ndarray, height: int, width: int) -> np.ndarray:
        """(N, 4) boxes from (N, attempts, 4) uniform numbers: the first attempt of each row that fits the picture."""
        area, ratio, down, across = np.moveaxis(attempts, 2, 0)
        area = height * width * (1 - 0.9 * self.strength * area)
        ratio = np.exp(math.log(_RATIOS[0]) + ratio * math.log(_RATIOS[1] / _RATIOS[0]))
        high, wide = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
        fits = (high > 0) & (high <= height) & (wide > 0) & (wide <= width)
        boxes = np.stack([down * (height - high + 1) // 1, across * (width - wide + 1) // 1, high, wide], axis=2)
        first = boxes[np.arange(len(boxes)), fits.argmax(axis=1)]
        return np.where(fits.any(axis=1, keepdims=True), first, _centre(height, width)).astype(np.int64)

    def apply(self, pixels: Tensor, draws: Draws) -> Tensor:
        """Make the views.

        Args:
            pixels: (N, 3, H, W) float in [0, 1].
            draws: N rows for this size, on the same device.

        Returns:
            A new tensor of the same shape, type and range.

        Raises:
            LoricaError: the draws are of another number, size or device, or the pixels are integers.
        """
        if not pixels.is_floating_point():
            raise LoricaError(f"pictures of {pixels.dtype}", "Give floats in [0, 1]: levels / 255.")
        if pixels.shape != (len(draws), 3, *draws.size) or pixels.device != draws.boxes.device:
            raise LoricaError(
                f"pictures {tuple(pixels.shape)} on {pixels.device}, but draws for {(len(draws), 3, *draws.size)} on "
                f"{draws.boxes.device}",
                "Draw for the size of the pictures, `take` as many rows, and move them with `to`.",
            )
        return _recolour(_crop(pixels, draws), draws)


def _centre(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest box in the middle whose ratio is allowed: where no attempt fits."""
    if width / height < _RATIOS[0]:
        high, wide = round(width / _RATIOS[0]), width
    elif width / height > _RATIOS[1]:
        high, wide = height, round(height * _RATIOS[1])
    else:
        high, wide = height, width
    return (height - high) // 2, (width - wide) // 2, high, wide


def _crop(pixels: Tensor, draws: Draws) -> Tensor:
    """Each picture's box, enlarged to the size of the whole, mirrored where that was drawn."""
    top, left, high, wide = draws.boxes.unbind(1)
    height, width = draws.size
    down = _cubic(top, high, torch.arange(height, device=pixels.device).expand(len(draws), -1), pixels.dtype)
    columns = torch.arange(width, device=pixels.device)
    across = _cubic(left, wide, torch.where(draws.flipped[:, None], columns.flip(0), columns), pixels.dtype)
    with torch.autocast(pixels.device.type, enabled=False):  # would round the pixels to half precision
        return (down[:, None] @ pixels @ across.mT[:, None]).clamp_(0, 1)


def _cubic(start: Tensor, extent: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights that enlarge a part of a line to the length of the whole: Keys' cubic convolution with a = -1/2.

    As in Pillow and torch's antialiased interpolation, the weights of pixels outside the part go to those inside.

    Args:
        start: (N,), the part's first pixel.
        extent: (N,), its number of pixels.
        places: (N, L), the places in the enlarged line, 0..L-1, in the order in which they are wanted.
        dtype: of the weights.

    Returns:
        (N, L, L): for each place, a weight for each of the line's pixels; they add up to 1.

    Source: R. Keys, "Cubic convolution interpolation for digital image processing", 1981, equation 15.
    """
    line = torch.arange(places.shape[1], device=places.device)
    centres = (places.to(dtype) + 0.5) * (extent.to(dtype) / len(line))[:, None]
    distance = ((line - start[:, None]).to(dtype)[:, None] + 0.5 - centres[..., None]).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    inside = (line >= start[:, None]) & (line < (start + extent)[:, None])
    weights = weights * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def _recolour(pixels: Tensor, draws: Draws) -> Tensor:
    """The four changes of colour in each picture's own order, then the loss of colour.

    The hue is by far the dearest. It is turned once, for all pictures together: between those changes that come before
    it in a picture and those that come after it.
    """
    jittered = draws.jittered[:, None, None, None]
    turn = (draws.order == HUE).int().argmax(1)
    factors = draws.factors.gather(1, draws.order).to(pixels.dtype)
    for place in (0, 1, 2):
        pixels = _blend(pixels, draws.order[:, place], factors[:, place], draws.jittered & (place < turn))
    pixels = torch.where(jittered, _turn_hue(pixels, draws.factors[:, HUE].to(pixels.dtype)), pixels)
    for place in (1, 2, 3):
        pixels = _blend(pixels, draws.order[:, place], factors[:, place], draws.jittered & (place > turn))
    return torch.where(draws.grey[:, None, None, None], _luma(pixels), pixels)


def _blend(pixels: Tensor, change: Tensor, factor: Tensor, active: Tensor) -> Tensor:
    """factor * x + (1 - factor) * y, in [0, 1]: y is black for brightness, the mean luma of the picture for contrast,
    and the pixel's own luma for saturation.

    Where it is not active the factor is 1, and 1 * x + 0 * y is x to the last bit.
    """
    factor = torch.where(active, factor, 1)[:, None, None, None]
    luma = _luma(pixels)
    rest = 1 - factor
    other = luma * (rest * (change == SATURATION)[:, None, None, None])
    other += luma.mean((1, 2, 3), keepdim=True) * (rest * (change == CONTRAST)[:, None, None, None])
    return (pixels * factor).add_(other).clamp_(0, 1)


def _luma(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W): the grey of a pixel, by the weights of ITU-R BT.601."""
    red, green, blue = pixels.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue (N, 3, H, W) by shares of the circle (N,), keeping value and saturation of the HSV model.

    A channel is value - chroma * ramp(hue + offset), where the ramp is 0 over one third of the circle, 1 over another
    third, and straight between them. A grey pixel has no chroma, and any hue.
    """
    red, green, blue = pixels.split(1, dim=1)
    value = pixels.amax(1, keepdim=True)
    chroma = value - pixels.amin(1, keepdim=True)
    sixth = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    hue = sixth / torch.where(chroma == 0, 1, chroma) + 6 * turn[:, None, None, None]
    offsets = 5 - 2 * torch.arange(3, device=pixels.device)[:, None, None]  # red 5, green 3, blue 1
    place = (hue + offsets).remainder_(6)
    return value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1)
