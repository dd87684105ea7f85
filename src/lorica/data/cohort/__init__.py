"""The built-in private set: unlimited portraits of imaginary people, drawn by our own code from a seed.

Person i of seed s depends on (s, i) only. Members and non-members taken from different indices are therefore exactly
independent and identically distributed, which no found data set can promise and every fair audit needs (Das et al.,
"Blind baselines beat membership inference attacks for foundation models", arXiv 2406.16201).
"""

from pathlib import Path

import numpy as np
from PIL import Image

from lorica.artefacts import write_text, write_with
from lorica.data.cohort.portrait import paint
from lorica.data.cohort.traits import describe, draw_traits
from lorica.errors import LoricaError
from lorica.progress import track


def draw_person(seed: int, index: int, size: int = 64) -> tuple[Image.Image, str]:
    """Paint person `index`: an RGB picture of `size` x `size` pixels, and a caption that names two or three traits.

    The person is the same at every size; the bytes are the same for the same versions of numpy and Pillow.
    """
    if min(seed, index) < 0 or size < 8:
        raise LoricaError(
            f"no person with seed {seed}, index {index}, size {size}", "Seed and index start at 0, sizes at 8 pixels."
        )
    rng = np.random.default_rng([seed, index])
    traits = draw_traits(rng)
    caption = describe(traits, rng)
    return paint(traits, rng, size), caption


def draw_cohort(count: int, seed: int, start: int = 0, size: int = 64) -> list[tuple[Image.Image, str]]:
    """Paint the people start .. start + count - 1 of a seed."""
    return [draw_person(seed, index, size) for index in range(start, start + count)]


def write_cohort(folder: Path, count: int, seed: int, start: int = 0, size: int = 64) -> Path:
    """Write the people as `person_00000.png` and `person_00000.txt`, numbered by index; return the folder.

    A folder that holds (part of) the same cohort is completed: an interrupted call can be repeated.

    Raises:
        LoricaError: the folder holds anything else, or cannot be written.
    """
    stems = [f"person_{index:05d}" for index in range(start, start + count)]
    _refuse_other_content(folder, {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".txt")})
    for stem, index in track(zip(stems, range(start, start + count), strict=True), "drawing people", count):
        picture, caption = draw_person(seed, index, size)
        write_with(folder / f"{stem}.png", lambda file, picture=picture: picture.save(file, format="PNG"))  # type: ignore[misc]
        write_text(folder / f"{stem}.txt", caption + "\n")
    return folder


def _refuse_other_content(folder: Path, ours: set[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise LoricaError(f"{folder} is a file", "Give a folder for the pictures.")
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")) if folder.exists() else []
    others = [name for name in names if name not in ours]
    if others:
        raise LoricaError(
            f"{folder} already holds other files, for example {others[0]}",
            "Give an empty folder: mixed with other pictures, the set would no longer be what its seed says.",
        )
