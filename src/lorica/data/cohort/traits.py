"""What a caption of the built-in private set may name of a person, and the sentence that names some of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]

# Centres of the named colours (sRGB, 0..1); every person gets a shade of their own around one of them.
HAIR_COLOURS: dict[str, RGB] = {
    "black": (0.11, 0.10, 0.12),
    "brown": (0.36, 0.22, 0.13),
    "red": (0.70, 0.28, 0.12),
    "blonde": (0.87, 0.71, 0.38),
    "grey": (0.58, 0.58, 0.60),
    "white": (0.90, 0.89, 0.86),
    "blue": (0.20, 0.34, 0.68),
    "pink": (0.86, 0.47, 0.62),
}
COLOURS: dict[str, RGB] = {
    "red": (0.74, 0.17, 0.17),
    "orange": (0.88, 0.48, 0.14),
    "yellow": (0.90, 0.76, 0.25),
    "green": (0.22, 0.50, 0.28),
    "blue": (0.19, 0.35, 0.66),
    "purple": (0.45, 0.26, 0.58),
    "pink": (0.88, 0.53, 0.63),
    "brown": (0.42, 0.28, 0.19),
    "white": (0.90, 0.89, 0.85),
    "black": (0.14, 0.14, 0.17),
}
HAIR_SHAPES = ("cropped", "short", "curly", "bobbed", "long", "long wavy", "tied-up")
HATS = ("woolly hat", "beret", "wide-brimmed hat", "cap")
PATTERNS = ("plain", "striped", "spotted", "checked")


@dataclass(frozen=True)
class Traits:
    """The nameable part of a person. `hat` and `glasses` ("round", "square") are empty where there are none."""

    hair_colour: str
    hair_shape: str
    glasses: str
    hat: str
    hat_colour: str
    beard: bool
    garment_colour: str
    pattern: str
    backdrop: str


def draw_traits(rng: np.random.Generator) -> Traits:
    """Draw the traits of one person, independently of each other."""

    def pick(names: Sequence[str]) -> str:
        return names[int(rng.integers(len(names)))]

    return Traits(
        hair_colour=pick(list(HAIR_COLOURS)),
        hair_shape=pick(HAIR_SHAPES),
        glasses=pick(("round", "square")) if rng.random() < 0.35 else "",
        hat=pick(HATS) if rng.random() < 0.35 else "",
        hat_colour=pick(list(COLOURS)),
        beard=bool(rng.random() < 0.22),
        garment_colour=pick(list(COLOURS)),
        pattern=pick(PATTERNS),
        backdrop=pick(list(COLOURS)),
    )


def describe(traits: Traits, rng: np.random.Generator) -> str:
    """A lowercase caption of at most 18 words that names two or three of the traits, picked at random."""
    count = int(rng.integers(2, 4))
    shape = f"{traits.hair_shape} " if count == 2 else ""
    pattern = f"{traits.pattern} " if count == 2 and traits.pattern != "plain" else ""
    garment = _article(f"{pattern}{traits.garment_colour} jumper")
    phrases = [garment, f"{_article(traits.backdrop)} background"]
    if not traits.hat or traits.hair_shape != "cropped":  # a hat hides cropped hair
        phrases.append(f"{shape}{traits.hair_colour} hair")
    if traits.glasses:
        phrases.append(f"{traits.glasses} glasses")
    if traits.hat:
        phrases.append(f"{_article(traits.hat_colour)} {traits.hat}")
    if traits.beard:
        phrases.append("a beard")
    *first, last = (phrases[i] for i in rng.permutation(len(phrases))[:count])
    return f"a painted portrait of a person with {', '.join(first)} and {last}"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
