"""Canaries: pictures like no others, some of which are slipped into training by the toss of a coin.

Whether a canary was trained on is decided by its own fair coin and by nothing else. That makes the audit of one single
training run exact (Steinke, Nasr and Jagielski, arXiv 2305.08846): how often an attack names the coins right bounds
the epsilon of differential privacy from below, whatever the other pictures are.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lorica.artefacts import read_json, write_json, write_text, write_with
from lorica.data.pictures import Picture, read_folder
from lorica.errors import LoricaError

FOLDER = "canaries"
_COINS_FILE = "coins.json"
_WORDS = (
    *("amber", "basalt", "cobalt", "dune", "ember", "fjord", "garnet", "hazel", "indigo", "jasper", "krill", "lichen"),
    *("maple", "nectar", "onyx", "pollen", "quartz", "russet", "saffron", "tundra", "umber", "velvet", "willow"),
)


@dataclass(frozen=True)
class Canaries:
    """Canaries of one run: pictures, and for each whether it is (to be) trained on."""

    pictures: tuple[Picture, ...]
    included: tuple[bool, ...]

    @property
    def trained(self) -> list[Picture]:
        return [picture for picture, included in zip(self.pictures, self.included, strict=True) if included]


def folder_of(run: Path, count: int, seed: int) -> Path:
    """Where a run keeps its canaries; another seed's are never in the way."""
    return run / f"{FOLDER}_{count}_seed_{seed}"


def make_canaries(run: Path, count: int, seed: int) -> Canaries:
    """Draw canaries into a folder of the run and toss their coins; what is there already stays, so that a run resumes.

    Args:
        run: the output folder of an adapt run.
        count: how many.
        seed: of pictures and coins.

    Raises:
        LoricaError: the folder cannot be written, or what is there was damaged.
    """
    folder = folder_of(run, count, seed)
    if not (folder / _COINS_FILE).exists():
        coins = toss(count, seed)
        for index in range(count):
            picture, caption = draw_canary(seed, index)
            write_with(folder / f"{index:05d}.png", lambda file, picture=picture: picture.save(file, format="PNG"))  # type: ignore[misc]
            write_text(folder / f"{index:05d}.txt", caption + "\n")
        write_json(folder / _COINS_FILE, {"included": coins})  # last: without it the set is not complete
    return load_canaries(run, count, seed)


def toss(count: int, seed: int) -> list[bool]:
    """One fair coin per canary, from a stream of its own: whoever draws from the same seed must not repeat them."""
    return (np.random.default_rng([seed, *b"canary coins"]).random(count) < 0.5).tolist()


def load_canaries(run: Path, count: int, seed: int) -> Canaries:
    """The canaries of a run.

    Raises:
        LoricaError: there are none, or a file is missing or damaged.
    """
    folder = folder_of(run, count, seed)
    included = read_json(folder / _COINS_FILE, "coins of the canaries").get("included")
    pictures = read_folder(folder)
    if not isinstance(included, list) or not len(included) == len(pictures) == count:
        raise LoricaError(f"{folder} is incomplete or damaged", "Remove it and train again.")
    return Canaries(tuple(pictures), tuple(map(bool, included)))


def draw_canary(seed: int, index: int, size: int = 256) -> tuple[Image.Image, str]:
    """Four fields of random colours, and a caption of random words: nothing to guess, little to learn."""
    rng = np.random.default_rng([seed, index, *b"canary"])
    grid = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    picture = Image.fromarray(grid).resize((size, size), Image.Resampling.NEAREST)
    return picture, " ".join(rng.choice(_WORDS, 4, replace=False))
