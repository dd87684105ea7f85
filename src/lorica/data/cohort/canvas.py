"""Paint for `lorica.data.cohort.portrait`: soft-edged fields, brush strokes, light."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorica.data.cohort.traits import RGB

Array = NDArray[np.floating]  # float32 throughout


def rgb(red: float, green: float, blue: float) -> Array:
    """A colour that broadcasts over a (3, side, side) canvas."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def cover(field: Array, soft: float = 0.012) -> Array:
    """Opacity of the inside of a signed field (positive inside), with an edge `soft` wide."""
    return np.clip(field / soft + 0.5, 0, 1)


def ellipse(u: Array, v: Array, cu: float, cv: float, a: float, b: float) -> Array:
    """Signed field of an ellipse: roughly the distance to its edge."""
    return min(a, b) * (1 - np.sqrt(((u - cu) / a) ** 2 + ((v - cv) / b) ** 2))


class Canvas:
    """A picture in the making: (3, side, side) float32 in about [0, 1], painted twice as wide as it will be.

    `x` and `y` span [-1, 1], y pointing down, bent by two displacement fields like lines of a wavering hand.
    What is drawn from the generator never depends on `size`: the same generator gives the same picture at every size.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size, self.side = rng, size, 2 * size
        axis = (np.arange(self.side, dtype=np.float32) + 0.5) / size - 1
        self.x = axis[None, :] + 0.045 * self.noise(4, 4) + 0.009 * self.noise(14, 14)
        self.y = axis[:, None] + 0.045 * self.noise(4, 4) + 0.009 * self.noise(14, 14)
        self.paint = np.zeros((3, self.side, self.side), np.float32)
        self.brush = self.strokes(9, 34)

    def picture(self) -> Image.Image:
        pixels = (self.paint.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return Image.fromarray(pixels.transpose(1, 2, 0)).resize((self.size, self.size), Image.Resampling.BOX)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def noise(self, columns: int, rows: int) -> Array:
        """Smooth noise of about unit variance, its features 1/columns of the canvas wide and 1/rows high."""
        grid = Image.fromarray(self.rng.standard_normal((rows + 1, columns + 1)).astype(np.float32))
        return np.asarray(grid.resize((self.side, self.side), Image.Resampling.BICUBIC))

    def strokes(self, columns: int, rows: int) -> Array:
        """Brush strokes: noise that is longer than wide, at an angle."""
        grid = Image.fromarray(self.rng.standard_normal((rows, columns)).astype(np.float32))
        wide = 3 * self.size
        turned = grid.resize((wide, wide), Image.Resampling.BICUBIC).rotate(self.uniform(-80, 80))
        edge = (wide - self.side) // 2
        return np.asarray(turned)[edge : edge + self.side, edge : edge + self.side]

    def shade(self, colour: RGB, spread: float) -> Array:
        """A person's own shade of a named colour."""
        own = np.array(colour) * self.uniform(0.82, 1.16) + self.rng.normal(0, spread, 3)
        return rgb(*own.clip(0.03, 0.97))

    def any_colour(self, low: float = 0.1, high: float = 0.9) -> Array:
        return rgb(*self.rng.uniform(low, high, 3))

    def blend(self, palette: Sequence[RGB]) -> Array:
        """A colour somewhere along a palette."""
        where, stops = self.uniform(0, 1), np.linspace(0, 1, len(palette))
        return rgb(*(np.interp(where, stops, channel) for channel in zip(*palette, strict=True)))

    def lay(self, mask: Array, colour: Array) -> None:
        """Lay a colour (3, 1, 1) or (3, side, side) over the canvas through a mask (side, side) in [0, 1]."""
        seen = mask > 1 / 512  # most features are small: paint only their bounding box
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        if rows.size == 0:
            return
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        paint = self.paint[:, *box]
        paint += mask[box] * ((colour if colour.size == 3 else colour[:, *box]) - paint)

    def lit(self, colour: Array, light: Array) -> Array:
        """A colour under light of about [-1, 1]: highlights warm, shadows cool, broken up by the brush."""
        light = light + 0.11 * self.brush
        return colour * (0.80 + 0.30 * light * rgb(1.08, 1.0, 0.92)) + 0.05 * light.clip(0) ** 2
