"""Painted portraits of imaginary people: the pictures of the built-in private set.

A person is a handful of `Traits`, some of which the caption names, and some two hundred continuous details (pose,
proportions, light, shades, locks of hair, blotches and brush strokes) that only the picture tells. Most of that detail
is several pixels wide, so that it survives the eightfold autoencoder of a latent diffusion model.
"""

import numpy as np
from PIL import Image

from lorica.data.cohort.canvas import Array, cover, ellipse
from lorica.data.cohort.face import Face
from lorica.data.cohort.traits import COLOURS, Traits


def paint(traits: Traits, rng: np.random.Generator, size: int) -> Image.Image:
    """Paint one person, `size` pixels square; how the generator is used does not depend on `size`."""
    return _Portrait(traits, rng, size).finished()


class _Portrait(Face):
    """Paints from back to front: backdrop, garment, hair behind, neck, head, hair in front, what is worn."""

    def finished(self) -> Image.Image:
        self.backdrop()
        self.torso()
        self.grow_hair()
        self.hair_behind()
        self.neck()
        self.head()
        if self.traits.beard:
            self.beard()
        self.hair_in_front()
        if self.traits.glasses:
            self.glasses()
        if self.traits.hat:
            self.hat()
        self.paint *= 1 + 0.035 * self.strokes(16, 60) + 0.03 * self.brush
        return self.picture()

    def backdrop(self) -> None:
        near = self.shade(COLOURS[self.traits.backdrop], 0.04) * 0.75 + 0.17
        far = near * self.uniform(0.45, 0.8) + self.any_colour(0, 0.16)
        angle = self.uniform(0, 2 * np.pi)
        slope = 0.5 + 0.4 * (np.cos(angle) * self.x + np.sin(angle) * self.y)
        self.paint[:] = near
        self.lay((slope + 0.22 * self.noise(3, 3) + 0.12 * self.noise(7, 7)).clip(0, 1), far)
        for _ in range(int(self.rng.integers(3, 8))):  # blotches of light
            (x, y), radius = self.rng.uniform(-1, 1, 2), self.uniform(0.12, 0.45)
            spot = np.exp(-((self.x - x) ** 2 + (self.y - y) ** 2) / radius**2)
            self.lay(self.uniform(0.2, 0.5) * spot, self.any_colour(0.1, 0.95))
        self.paint += 0.05 * self.strokes(7, 20)

    def torso(self) -> None:
        lean, width = self.uniform(-0.1, 0.1), self.uniform(0.62, 0.92)
        self.chest_x, self.chest_y = self.x - lean, self.y - self.uniform(0.50, 0.64)
        across = np.abs(self.chest_x / width)
        shoulders = self.chest_y - 0.32 * across ** self.uniform(1.6, 3.2)
        self.garment = self.shade(COLOURS[self.traits.garment_colour], 0.04)
        light = 0.8 * self.light * self.chest_x / width - 0.5 * across**2 + 0.2 * self.noise(6, 4)
        self.lay(cover(shoulders), self.lit(self.cloth(), light))

    def cloth(self) -> Array:
        """The garment's colour over the canvas, patterned; folds bend the pattern."""
        colour = self.garment
        opposite = (1 - colour) * self.uniform(0.5, 0.9)
        paler_or_darker = colour + (0.42 if colour.mean() < 0.5 else -0.42)
        other = opposite if self.chance(0.4) else paler_or_darker
        angle, period, bend = self.uniform(-0.8, 0.8), self.uniform(0.16, 0.34), 0.06 * self.noise(5, 5)
        s = (np.cos(angle) * self.x + np.sin(angle) * self.y + bend) * np.pi / period
        t = (np.cos(angle) * self.y - np.sin(angle) * self.x + bend) * np.pi / period
        width = self.uniform(-0.3, 0.3)
        amount = {
            "plain": np.zeros_like(s),
            "striped": cover(np.cos(2 * t) - width, 0.35),
            "spotted": cover(np.cos(2 * s) * np.cos(2 * t) - 0.35 - 0.5 * width, 0.3),
            "checked": cover(np.cos(s) * np.cos(t), 0.2),
        }[self.traits.pattern]
        return colour + amount * (other.clip(0.05, 0.95) - colour)

    def neck(self) -> None:
        width, low = self.uniform(0.15, 0.22), self.uniform(0.06, 0.26)
        collar = low - self.chest_y - self.uniform(0.4, 0.9) * np.abs(self.chest_x)
        side = width + 0.25 * np.clip(self.v - 0.62, 0, 1) ** 1.5 - np.abs(self.u - 0.02 * self.turn)
        shadow = 0.75 * np.exp(-(((self.v - self.b) / 0.16) ** 2))  # of the chin
        light = self.lit(self.skin, 0.6 * self.light * self.u / width - shadow)
        self.lay(cover(np.minimum(np.minimum(side, collar), self.v - 0.2)), light)
        hem = np.where(np.abs(self.u) < width + 0.05, self.uniform(0.015, 0.045) - np.abs(collar), -1)
        self.lay(cover(hem, 0.03), self.lit(self.garment * 0.65, self.light * self.u))

    def grow_hair(self) -> None:
        """Choose volume over the skull, reach down the sides, width below and waviness, by the shape of the hair."""
        volume, reach, width, wave = {
            "cropped": ((1.01, 1.05), (-0.25, -0.05), (1.0, 1.0), 0.01),
            "short": ((1.08, 1.20), (-0.15, 0.15), (1.0, 1.0), 0.035),
            "curly": ((1.25, 1.55), (0.05, 0.40), (1.0, 1.2), 0.07),
            "bobbed": ((1.10, 1.22), (0.38, 0.60), (1.1, 1.35), 0.03),
            "long": ((1.06, 1.18), (0.90, 1.50), (1.0, 1.25), 0.03),
            "long wavy": ((1.15, 1.32), (0.80, 1.40), (1.2, 1.6), 0.07),
            "tied-up": ((1.04, 1.10), (-0.10, 0.05), (1.0, 1.0), 0.015),
        }[self.traits.hair_shape]
        self.volume, self.reach, self.hair_width = self.uniform(*volume), self.uniform(*reach), self.uniform(*width)
        self.ragged = wave * (0.7 * self.noise(9, 9) + 0.5 * self.noise(16, 16))
        fine, coarse = self.noise(int(self.rng.integers(12, 22)), 4), self.noise(6, 3)
        shine = np.exp(-(((self.v + 0.36 + 0.12 * coarse) / 0.11) ** 2))
        self.locks = 0.7 * self.light * self.u + 0.5 * coarse + 0.45 * fine + self.uniform(0.1, 0.9) * shine

    def hairy(self, dark: float = 1.0) -> Array:
        """Hair colour over the canvas, in locks that catch the light."""
        return self.lit(self.hair * dark, self.locks - 0.15) + 0.03 * self.locks.clip(0, 2)

    def hair_behind(self) -> None:
        if self.traits.hair_shape == "tied-up":
            u, size = self.uniform(-0.25, 0.25), self.uniform(0.13, 0.24)
            bun = ellipse(self.u, self.v, u, -self.b - 0.4 * size, size * self.uniform(0.9, 1.3), size)
            self.lay(cover(bun + 2 * self.ragged), self.hairy())
        if self.reach > 0.3:
            down = np.clip(self.v / self.reach, 0, 1)
            curtain = self.a * self.volume * (1 + (self.hair_width - 1) * down) - np.abs(self.u) + self.ragged
            ends = self.reach - self.v + 2 * self.ragged
            self.lay(cover(np.minimum(np.minimum(curtain, ends), self.v + 0.1)), self.hairy(0.72))

    def hair_in_front(self) -> None:
        rise, temple, part = self.uniform(0.24, 0.40), self.uniform(0.74, 0.96), self.uniform(-0.3, 0.3)
        sweep = self.uniform(0.2, 1.6) * (1.0 if self.chance(0.6) else -0.35)
        forehead = self.v + rise * (self.b / 0.54) - sweep * (self.fu - part) ** 2 - 0.25 * part * self.fu
        forehead = forehead + 0.6 * self.ragged + 0.02 * self.noise(12, 3)
        bare = np.minimum(forehead, self.a * temple - np.abs(self.fu) + 0.5 * self.ragged)
        ends = min(self.reach, 0.95 * self.b) - self.v + self.ragged
        field = np.minimum(np.minimum(self.beyond(self.volume) + self.ragged, -bare), ends)
        self.shadow(field, 0.05)
        self.lay(cover(field, 0.02), self.hairy())

    def beard(self) -> None:
        depth, low, slant = self.uniform(0.0, 0.22), self.uniform(0.03, 0.12), self.uniform(0.1, 0.6)
        ragged = 0.03 * self.noise(16, 16)
        outer = np.where(self.v > 0, self.beyond(1 + depth) + ragged, -1)
        cheek = self.v - self.nose_v - low + slant * np.abs(self.fu) - ragged
        mouth = ellipse(self.fu, self.v, 0.03 * self.turn, self.mouth_v, 0.15, 0.055)
        field = np.minimum(np.minimum(outer, cheek), -mouth)
        self.lay(self.uniform(0.7, 1) * cover(field, 0.05), self.hairy(0.8))

    def shadow(self, field: Array, reach: float) -> None:
        """What hair or a hat throws on the head."""
        self.lay(0.38 * cover(np.minimum(field + reach, self.beyond(1)), 0.07), self.skin * 0.42)

    def hat(self) -> None:
        colour = self.shade(COLOURS[self.traits.hat_colour], 0.04)
        band = colour * 0.6 if self.chance(0.5) else self.any_colour()
        brim, tall = self.uniform(-0.36, -0.24) * self.b / 0.54, self.uniform(0.0, 0.22)
        width = self.a * self.uniform(1.1, 1.22)
        v = self.v - self.uniform(-0.18, 0.18) * self.u
        light = self.light * self.u / self.a + 0.35 * self.noise(5, 5) - 0.2
        height = self.b * (width / self.a)
        stretched = np.where(v < brim, brim + (v - brim) / (1 + tall), v)
        crown = np.minimum(ellipse(self.u, stretched, 0, 0, width, height), brim - v)
        if self.traits.hat == "beret":
            side = 0.2 if self.chance(0.5) else -0.2
            puff = ellipse(self.u, v + side * self.u, side, -0.78 * height, 1.22 * width, 0.2 + 0.5 * tall)
            crown = np.maximum(puff, np.minimum(ellipse(self.u, v, 0, -0.4, width, 0.2), brim - v))
        elif self.traits.hat == "woolly hat":
            light = light + 0.35 * np.cos(self.u * self.uniform(38, 60) + 2 * self.noise(3, 3))
        self.shadow(crown, 0.09)
        self.lay(cover(crown), self.lit(colour, light))
        if self.traits.hat == "woolly hat":
            cuff = np.minimum(self.uniform(0.08, 0.16) - np.abs(v - brim), 1.03 * width - np.abs(self.u))
            size = self.uniform(0.05, 0.15)
            pompom = ellipse(self.u, v, 0, -height * (1 + 0.7 * tall), size, size) + 0.02 * self.noise(20, 20)
            self.lay(cover(cuff), self.lit(band, light))
            self.lay(cover(pompom, 0.03), self.lit(band, light))
        elif self.traits.hat == "wide-brimmed hat":
            self.lay(cover(np.minimum(crown, 0.06 - np.abs(v - brim + 0.07))), self.lit(band, light))
            drooping = v - self.uniform(-0.2, 0.35) * self.u**2
            disc = ellipse(self.u, drooping, 0, brim, self.a * self.uniform(1.7, 2.2), self.uniform(0.06, 0.13))
            self.lay(cover(disc), self.lit(colour * 0.9, light - 3 * (v - brim)))
        elif self.traits.hat == "cap":
            way = 1 if self.turn > 0 else -1
            length, drop = self.a * self.uniform(1.0, 1.3), v - 0.25 * way * self.u
            visor = ellipse(self.u, drop, 0.3 * way * self.a, brim, length, self.uniform(0.07, 0.11))
            self.lay(cover(visor), self.lit(band, light))
