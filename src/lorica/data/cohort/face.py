"""The head of an imaginary person: pose, skull, light on the skin, and the features of the face."""

import numpy as np

from lorica.data.cohort.canvas import Array, Canvas, cover, ellipse, rgb
from lorica.data.cohort.traits import HAIR_COLOURS, RGB, Traits

_BROWN_EYES, _GREY_EYES = (0.30, 0.18, 0.09), (0.48, 0.50, 0.52)
_EYES: tuple[RGB, ...] = (_BROWN_EYES, _GREY_EYES, (0.25, 0.42, 0.62), (0.30, 0.45, 0.27), (0.55, 0.38, 0.14))
_FAIR, _DEEP = (0.97, 0.83, 0.74), (0.36, 0.22, 0.15)
_SKINS: tuple[RGB, ...] = (_FAIR, (0.91, 0.71, 0.57), (0.79, 0.56, 0.40), (0.58, 0.37, 0.25), _DEEP)
_DARK_FRAME, _GILT_FRAME = (0.16, 0.12, 0.11), (0.62, 0.46, 0.20)


class Face(Canvas):
    """A head somewhere on the canvas. What later layers must fit to (eyes, nose, mouth, outline) stays on it.

    `u` and `v` are coordinates of the head, tilted and scaled with it; `fu` replaces `u` for the face, which slides
    over the head as it turns. `a` and `b` are half the width and height of the head; `outline` is 1 on its edge and
    less inside.
    """

    def __init__(self, traits: Traits, rng: np.random.Generator, size: int) -> None:
        super().__init__(rng, size)
        self.traits = traits
        self.light = self.uniform(-1, 1)  # from the left .. from the right
        self.turn = self.uniform(-1, 1)
        scale, tilt = self.uniform(0.84, 1.08), self.uniform(-0.17, 0.17)
        dx, dy = self.x - self.uniform(-0.14, 0.14), self.y - self.uniform(-0.16, 0.02)
        self.u = (np.cos(tilt) * dx + np.sin(tilt) * dy) / scale
        self.v = (np.cos(tilt) * dy - np.sin(tilt) * dx) / scale
        self.fu = self.u - 0.085 * self.turn
        self.a, self.b = self.uniform(0.37, 0.47), self.uniform(0.49, 0.59)
        jaw, power, chin = self.uniform(0.02, 0.34), self.uniform(1.9, 2.7), self.uniform(0.92, 1.06)
        width = self.a * (1 - jaw * np.clip(self.v / self.b, 0, 1.2) ** 1.6)
        superellipse = (np.abs(self.u) / width) ** power + (np.abs(self.v) / (self.b * chin)) ** power
        self.outline: Array = superellipse ** (1 / power)

        self.skin = self.blend(_SKINS) * rgb(1, self.uniform(0.96, 1.03), self.uniform(0.9, 1.06))
        self.hair = self.shade(HAIR_COLOURS[traits.hair_colour], 0.05)
        self.eye_v, self.eye_gap = self.uniform(-0.12, -0.02), self.uniform(0.155, 0.215)
        self.nose_v = self.eye_v + self.uniform(0.17, 0.25)
        self.mouth_v = self.nose_v + self.uniform(0.10, 0.16)

    def beyond(self, grow: float) -> Array:
        """Field of the head's outline, grown."""
        return (grow - self.outline) * self.a

    def head(self) -> None:
        self.ears()
        inside = cover(self.beyond(1))
        bulge = np.sqrt(np.clip(1 - self.outline**2, 0, 1))
        depth, elevation = self.uniform(0.55, 1.0), self.uniform(-0.15, 0.6)
        light = depth * (self.light * self.u / self.a - elevation * self.v / self.b) + 0.75 * bulge - 0.42
        self.lay(inside, self.lit(self.skin, light))
        blush, warm = self.uniform(0, 0.3), self.lit(self.skin * rgb(1.08, 0.78, 0.76), light)
        for sign in (-1, 1):
            cheek = np.exp(-((self.fu - sign * 0.21) ** 2 + (self.v - 0.16) ** 2) / 0.014)
            self.lay(blush * inside * cheek, warm)
        freckles = int(self.rng.integers(4, 26)) if self.chance(0.35) else 0
        for fu, v in self.rng.normal((0, 0.12), (0.17, 0.09), (freckles, 2)):
            self.spot(fu, v, self.uniform(0.010, 0.02), 0.4 * inside)
        for fu, v in self.rng.uniform((-0.3, -0.3), (0.3, 0.4), (int(self.rng.integers(0, 4)), 2)):
            self.spot(fu, v, self.uniform(0.015, 0.03), 0.8 * inside)
        self.eyes()
        self.nose()
        self.mouth()

    def ears(self) -> None:
        size, v, stick = self.uniform(0.07, 0.12), self.uniform(-0.08, 0.08), self.uniform(0.93, 1.06)
        for sign in (-1, 1):
            width = size * (1 - 0.5 * sign * self.turn) + 0.01
            ear = ellipse(self.u, self.v, sign * self.a * stick - 0.05 * self.turn, v, width, 1.55 * size)
            self.lay(cover(ear), self.lit(self.skin * 0.94, 0.7 * self.light * sign - 8 * ear.clip(0, 0.06)))

    def spot(self, fu: float, v: float, radius: float, strength: Array) -> None:
        self.lay(strength * cover(ellipse(self.fu, self.v, fu, v, radius, radius), 0.02), self.skin * 0.48)

    def beside_eye(self, sign: int) -> tuple[Array, Array]:
        """Coordinates around one eye; the one that is turned away is nearer to the middle, and narrower."""
        near = 1 - 0.16 * sign * self.turn
        return (self.fu - sign * self.eye_gap * near) / near, self.v - self.eye_v

    def eyes(self) -> None:
        """Both eyes with their brows: alike but for a little of their height."""
        size, lids, slant = self.uniform(0.062, 0.1), self.uniform(0.45, 0.85), self.uniform(-0.3, 0.3)
        look, iris = self.uniform(-0.35, 0.35), self.shade(_EYES[int(self.rng.integers(len(_EYES)))], 0.03)
        rise, tilt, arch = self.uniform(0.10, 0.17), self.uniform(-0.35, 0.35), self.uniform(0.3, 2.5)
        weight, dark = self.uniform(0.012, 0.042), 0.75 if self.hair.mean() < 0.6 else 0.52
        for sign in (-1, 1):
            u, v = self.beside_eye(sign)
            v = v + self.uniform(-0.012, 0.012)
            self.lay(0.35 * np.exp(-(u**2 / 0.012 + (v + 0.02) ** 2 / 0.007)), self.skin * 0.6)  # the socket
            slanted = v - slant * sign * u
            lid = lids * size * (1 - (u / size) ** 2)
            inside = cover(lid - np.abs(slanted), 0.014)
            self.lay(inside, rgb(0.95, 0.93, 0.9))
            gaze, glint_u, glint_v = u - look * size, 0.3 * size * self.light, -0.25 * size
            self.lay(inside * cover(ellipse(gaze, slanted, 0, 0, 0.62 * size, 0.62 * size)), iris)
            self.lay(inside * cover(ellipse(gaze, slanted, 0, 0, 0.31 * size, 0.31 * size)), iris * 0.2)
            self.lay(inside * cover(ellipse(gaze, slanted, glint_u, glint_v, 0.2 * size, 0.2 * size)), rgb(1, 1, 1))
            lashes = np.where(np.abs(u) < 1.15 * size, 0.014 - np.abs(slanted + lid), -1)
            self.lay(0.85 * cover(lashes), self.skin * 0.35)
            stroke = weight * (1.3 - 0.4 * sign * u / size) - np.abs(v + rise - tilt * sign * u - arch * u**2)
            self.lay(cover(np.where(np.abs(u) < 1.5 * size, stroke, -1), 0.02), self.hair * dark)

    def nose(self) -> None:
        width, bridge = self.uniform(0.05, 0.095), self.uniform(0.015, 0.035)
        dark_side = 1.0 if self.light < 0 else -1.0
        u = self.fu - 0.05 * self.turn
        along = np.clip((self.v - self.eye_v) / (self.nose_v - self.eye_v), 0, 1)
        inside = (self.v > self.eye_v - 0.02) & (self.v < self.nose_v + 0.01)
        ridge = bridge + (width - bridge) * along**2
        shadow = np.exp(-(((u - dark_side * ridge) / (0.55 * ridge + 0.012)) ** 2))
        shine = np.exp(-(((u + 0.3 * dark_side * ridge) / (0.5 * ridge)) ** 2))
        under = np.exp(-((u / width) ** 4 + ((self.v - self.nose_v - 0.012) / 0.018) ** 2))
        self.lay(0.5 * inside * shadow, self.skin * 0.62)
        self.lay(0.55 * inside * shine * along, (self.skin * 1.18 + 0.04).clip(0, 1))
        self.lay(0.7 * under, self.skin * 0.5)

    def mouth(self) -> None:
        width, height, smile = self.uniform(0.1, 0.19), self.uniform(0.02, 0.042), self.uniform(-0.9, 3.2)
        lips = self.skin * rgb(0.92, 0.58, 0.58) + rgb(self.uniform(0, 0.2), 0, self.uniform(0, 0.06))
        u = self.fu - 0.03 * self.turn
        across = 1 - (u / width) ** 2
        off = np.abs(self.v - self.mouth_v + smile * (u**2 - 0.4 * width**2))
        self.lay(cover(height * across - off), lips)
        gape = self.uniform(-0.5, 0.75) * height
        if gape > 0.15 * height:
            self.lay(cover(gape * across - off), rgb(0.93, 0.9, 0.86) if smile > 0.6 else lips * 0.3)
        else:
            self.lay(0.8 * cover(np.where(across > 0, 0.011 - off, -1)), lips * 0.4)
        below = np.exp(-(2 * (u / width) ** 2 + ((self.v - self.mouth_v - 0.075) / 0.022) ** 2))
        self.lay(0.4 * below, self.skin * 0.62)

    def glasses(self) -> None:
        size, frame, tint = self.uniform(0.115, 0.16), self.uniform(0.012, 0.026), self.uniform(0.05, 0.3)
        colour = self.shade(_DARK_FRAME if self.chance(0.6) else _GILT_FRAME, 0.08)
        power, squat = (2, 1.0) if self.traits.glasses == "round" else (6, 1.3)
        for sign in (-1, 1):
            u, v = self.beside_eye(sign)
            lens = size - (np.abs(u) ** power + np.abs(squat * v) ** power) ** (1 / power)
            self.lay(tint * cover(lens) * (0.6 + 0.4 * np.tanh(8 * (u - v))), rgb(0.85, 0.93, 1))
            self.lay(cover(frame - np.abs(lens)), colour)
            arm = np.where(sign * u > size, 0.8 * frame - np.abs(v), -1)
            self.lay(cover(np.minimum(arm, self.beyond(1.02))), colour)
        inner = np.abs(self.fu) < self.eye_gap - size + 0.03
        bridge = np.where(inner, 0.8 * frame - np.abs(self.v - self.eye_v + 0.02 - self.fu**2), -1)
        self.lay(cover(bridge), colour)
