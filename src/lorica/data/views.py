"""A picture seen otherwise: mirrored, or a part of it enlarged."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class View:
    """What is done to a square picture; by default nothing.

    Args:
        flip: mirror left and right, after the crop.
        crop: (left, top, side) in pixels of the part that is enlarged to the size of the whole.
    """

    flip: bool = False
    crop: tuple[int, int, int] | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) in [-1, 1] -> the same shape and range."""
        if self.crop is not None:
            left, top, side = self.crop
            part = pixels[..., top : top + side, left : left + side]
            pixels = F.interpolate(part, size=pixels.shape[-2:], mode="bicubic", antialias=True).clamp(-1, 1)
        return pixels.flip(-1) if self.flip else pixels

    @property
    def key(self) -> str:
        """Names what is done, "" for nothing."""
        return f"flip={self.flip} crop={self.crop}" if self.flip or self.crop else ""
