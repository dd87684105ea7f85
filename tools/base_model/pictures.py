"""Public pictures that the built-in base model is trained on: two openly licensed sets and our own drawings."""

import csv
import io
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128  # pictures are kept at twice the model's 64 px, so that the autoencoder can be shown crops

COLOURS = {
    "red": (215, 45, 45),
    "green": (50, 160, 70),
    "blue": (45, 95, 210),
    "yellow": (245, 210, 50),
    "orange": (240, 140, 40),
    "purple": (140, 70, 180),
    "pink": (240, 140, 180),
    "brown": (130, 85, 50),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
    "grey": (140, 140, 140),
    "turquoise": (60, 195, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "ring", "cross", "hexagon", "heart", "bar")
COUNTS = ("one", "two", "three", "four")
PATTERNS = ("stripes", "dots", "checks", "waves")


def load_packed(folder: Path) -> list[Image.Image]:
    """Decode an `images.npz` of concatenated picture files (`blob`, `offsets`) into RGB pictures."""
    packed = np.load(folder / "images.npz")
    blob, offsets = packed["blob"], packed["offsets"]
    return [
        Image.open(io.BytesIO(blob[start:stop].tobytes()))
        .convert("RGB")
        .resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        for start, stop in pairwise(offsets)
    ]


def load_captions(folder: Path) -> list[str]:
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return [row["caption"] for row in csv.DictReader(file)]


def _polygon(sides: int, turn: float, radius: float, inner: float | None = None) -> list[tuple[float, float]]:
    radii = [radius, inner] if inner is not None else [radius]
    count = sides * len(radii)
    return [
        (
            radii[k % len(radii)] * math.sin(turn + 2 * math.pi * k / count),
            -radii[k % len(radii)] * math.cos(turn + 2 * math.pi * k / count),
        )
        for k in range(count)
    ]


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, turn: float, fill: tuple) -> None:
    def at(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x + px, y + py) for px, py in points]

    def rotated(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        c, s = math.cos(turn), math.sin(turn)
        return at([(r * (px * c - py * s), r * (px * s + py * c)) for px, py in points])

    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(3, int(r * 0.4)))
    elif shape == "heart":
        curve = [k * 2 * math.pi / 48 for k in range(48)]
        points = [
            (
                16 * math.sin(t) ** 3 / 17,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
            )
            for t in curve
        ]
        draw.polygon(at([(r * px, r * py) for px, py in points]), fill=fill)
    elif shape == "cross":
        arm = 0.32
        draw.polygon(
            rotated(
                [
                    (-arm, -1),
                    (arm, -1),
                    (arm, -arm),
                    (1, -arm),
                    (1, arm),
                    (arm, arm),
                    (arm, 1),
                    (-arm, 1),
                    (-arm, arm),
                    (-1, arm),
                    (-1, -arm),
                    (-arm, -arm),
                ]
            ),
            fill=fill,
        )
    elif shape == "bar":
        draw.polygon(rotated([(-1.2, -0.35), (1.2, -0.35), (1.2, 0.35), (-1.2, 0.35)]), fill=fill)
    else:
        sides, inner, offset = {
            "square": (4, None, math.pi / 4),
            "triangle": (3, None, 0.0),
            "star": (5, 0.45 * r, 0.0),
            "diamond": (4, None, 0.0),
            "hexagon": (6, None, 0.0),
        }[shape]
        draw.polygon(at(_polygon(sides, turn * 0.3 + offset, r, inner)), fill=fill)


def _jitter(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    return tuple(int(v) for v in np.clip(np.array(COLOURS[colour]) + rng.normal(0, 10, 3), 0, 255))  # type: ignore[return-value]


def draw_shapes(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """One to four flat shapes on a plain ground; the caption names count, colour, shape and ground.

    What the caption does not name varies little, so that a small model can spend itself on what it does.
    """
    ground, colour = rng.choice(list(COLOURS), 2, replace=False)
    shape = str(rng.choice(SHAPES))
    count = int(rng.choice([1, 1, 1, 2, 3, 4]))
    scale = 2
    image = Image.new("RGB", (SIZE * scale,) * 2, _jitter(rng, ground))
    draw = ImageDraw.Draw(image)
    fill = _jitter(rng, colour)
    side = SIZE * scale
    if count == 1:
        big = bool(rng.random() < 0.5)
        r = side * (rng.uniform(0.34, 0.4) if big else rng.uniform(0.17, 0.2))
        centres = [
            (
                side / 2 + rng.uniform(-1, 1) * (side / 2 - r) * 0.2,
                side / 2 + rng.uniform(-1, 1) * (side / 2 - r) * 0.2,
            )
        ]
        size = "big " if big else "small "
    else:
        r = side * rng.uniform(0.15, 0.18)
        cells = {
            2: [(0.28, 0.5), (0.72, 0.5)],
            3: [(0.5, 0.28), (0.28, 0.7), (0.72, 0.7)],
            4: [(0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)],
        }[count]
        centres = [
            (side * (cx + rng.uniform(-0.02, 0.02)), side * (cy + rng.uniform(-0.02, 0.02))) for cx, cy in cells
        ]
        size = ""
    for x, y in centres:
        _draw_shape(draw, shape, x, y, r, rng.uniform(-0.15, 0.15), fill)
    noun = shape if count == 1 else shape + ("es" if shape == "cross" else "s")
    return (
        image.resize((SIZE, SIZE), Image.Resampling.BOX),
        f"a drawing of {COUNTS[count - 1]} {size}{colour} {noun} on a {ground} background",
    )


def draw_pattern(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A regular two-colour pattern."""
    first, second = rng.choice(list(COLOURS), 2, replace=False)
    pattern = str(rng.choice(PATTERNS))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    turn = int(rng.integers(4)) * math.pi / 4 + rng.uniform(-0.05, 0.05)
    period, phase = rng.uniform(0.18, 0.26), rng.uniform(0, 1, 2)
    u = (x * math.cos(turn) + y * math.sin(turn)) / period + phase[0]
    v = (y * math.cos(turn) - x * math.sin(turn)) / period + phase[1]
    level = {
        "stripes": np.sin(2 * math.pi * u),
        "dots": 0.3 - np.hypot(u % 1 - 0.5, v % 1 - 0.5),
        "checks": np.sin(2 * math.pi * u) * np.sin(2 * math.pi * v),
        "waves": np.sin(2 * math.pi * (u + 0.25 * np.sin(math.pi * v))),
    }[pattern]
    edge = (1 / (1 + np.exp(-level * 12)))[..., None]
    pixels = edge * np.array(_jitter(rng, first)) + (1 - edge) * np.array(_jitter(rng, second))
    return Image.fromarray(pixels.astype(np.uint8)), f"a drawing of {first} {pattern} on a {second} background"


def draw_texture(rng: np.random.Generator) -> Image.Image:
    """Overlapping shaded blobs and strokes without a caption: teaches the autoencoder more than flat emoji do."""
    image = Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in rng.integers(0, 256, 3)))
    for _ in range(int(rng.integers(5, 40))):
        layer, mask = (
            Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in rng.integers(0, 256, 3))),
            Image.new("L", (SIZE, SIZE)),
        )
        draw = ImageDraw.Draw(mask)
        x, y = rng.uniform(0, SIZE, 2)
        w, h = rng.uniform(3, 40, 2)
        kind = rng.integers(3)
        strength = int(rng.integers(90, 256))
        if kind == 0:
            draw.ellipse((x - w, y - h, x + w, y + h), fill=strength)
        elif kind == 1:
            draw.polygon([(x + rng.normal(0, w), y + rng.normal(0, h)) for _ in range(4)], fill=strength)
        else:
            draw.line(
                [(x, y), (x + rng.normal(0, 40), y + rng.normal(0, 40))], fill=strength, width=int(rng.integers(1, 8))
            )
        if rng.random() < 0.4:
            mask = mask.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 8))))
        image.paste(layer, mask=mask)
    return image


def drawn(count: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    rng = np.random.default_rng(seed)
    makers: list[Callable] = [draw_shapes, draw_shapes, draw_shapes, draw_pattern]
    pairs = [makers[k % 4](rng) for k in range(count)]
    return [p for p, _ in pairs], [c for _, c in pairs]


def textures(count: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [draw_texture(rng) for _ in range(count)]


def as_array(images: list[Image.Image]) -> np.ndarray:
    """(N, 3, 128, 128) uint8."""
    return np.stack([np.asarray(image, dtype=np.uint8) for image in images]).transpose(0, 3, 1, 2)
