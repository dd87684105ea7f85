"""Which shadows a run has: the recipe that they share, and who is a member of which."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lorica.adapt import AdaptConfig, SplitConfig
from lorica.adapt.folder import FREE_ON_RESUME, check_output
from lorica.artefacts import CONFIG_FILE, RUN_FILE, SHADOWS, SPLIT_FILE, read_json
from lorica.config import differences, load
from lorica.data import GROUPS, Picture, Split, make_split
from lorica.data.split_file import parse
from lorica.errors import LoricaError
from lorica.shadows.config import ShadowsConfig


def recipe(folder: Path) -> AdaptConfig:
    """The configuration that trains like the run in a folder, in one process.

    Raises:
        LoricaError: there is no adapt run.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise LoricaError(
            f"no adapt run in {folder}: {CONFIG_FILE} is missing", "Give the --output of `lorica adapt`."
        )
    config = load(AdaptConfig, file=file)
    record = read_json(folder / RUN_FILE, "adapt run") if (folder / RUN_FILE).is_file() else {}
    # Two processes with batches of n see the same samples as one with 2n.
    return config.model_copy(update={"batch_size": config.batch_size * record.get("processes", 1)})


def plan(config: ShadowsConfig) -> list[AdaptConfig]:
    """The configurations of all shadows, each with its split.json in its folder.

    Nothing is trained. All that is there already is checked before anything is written.

    Raises:
        LoricaError: no adapt run, its pictures are not what they were, or a shadow is there that is not one of this
            run: of another configuration, or of other pictures.
    """
    base = recipe(config.run)
    base = base.model_copy(
        update={
            "data": config.data or base.data,
            "split": SplitConfig(nonmembers=config.nonmember_data or base.split.nonmembers),
            "device": config.device or base.device,
            "cache": base.cache or config.run / "cache",  # encoded pictures are the same ones
            "sample_every": 0,
            "canaries": 0,
            "resume": True,
            "overwrite": False,
        }
    )
    split = Split.load(config.run / SPLIT_FILE, data=base.data, nonmember_data=base.split.nonmembers)
    shadows = [
        base.model_copy(
            update={"output": config.run / SHADOWS / f"{index:03d}", "seed": _seed(config.seed, index, "training")}
        )
        for index in range(config.count)
    ]
    for shadow in shadows:
        _check(shadow, split)
    for index, shadow in enumerate(shadows):
        if not (shadow.output / CONFIG_FILE).exists():
            divide(split, config.seed, index).save(shadow.output / SPLIT_FILE)
    return shadows


def divide(split: Split, seed: int, index: int) -> Split:
    """The split of one shadow: the same pictures and group sizes, other members.

    Where there are as many members as non-members, shadows come in pairs: who is a member in 2j is not in 2j + 1, so
    that every picture is in exactly half of them. Otherwise each is drawn by itself.

    Args:
        split: of the run.
        seed: of all shadows.
        index: of this one, from 0.
    """
    pictures = [*split.members, *split.nonmembers]
    am, tm, an, tn = (len(split.groups[group]) for group in GROUPS)
    paired = am + tm == an + tn
    drawn = make_split(pictures, seed=_seed(seed, index // 2 if paired else index, "split"), counts=(am, tm, an, tn))
    inside, outside = drawn.members, drawn.nonmembers
    if paired and index % 2:
        inside, outside = outside, inside
    groups = dict(zip(GROUPS, (inside[:am], inside[am:], outside[:an], outside[an:]), strict=True))
    return Split(
        groups, drawn.seed, ["The split of a shadow LoRA: a random half of the run's pictures."], {}, split.roots
    )


def _seed(seed: int, index: int, purpose: str) -> int:
    return int(np.random.SeedSequence([seed, index, *purpose.encode()]).generate_state(1)[0])


def _check(shadow: AdaptConfig, split: Split) -> None:
    """Prove that the folder of a shadow is empty, or holds this very shadow."""
    file = shadow.output / CONFIG_FILE
    if file.exists():
        found = differences(load(AdaptConfig, file=file), shadow, ignore=FREE_ON_RESUME)
        if not found and not same_pictures(shadow.output / SPLIT_FILE, [split.groups[group] for group in GROUPS]):
            found = ["the pictures, or how many are in each group"]
        if found:
            raise LoricaError(
                f"{shadow.output} is not a shadow of this run; different: {', '.join(found)}",
                "Remove it to have it trained anew, or give the --seed that it was made with.",
            )
    check_output(shadow)


def same_pictures(file: Path, groups: Sequence[Sequence[Picture]]) -> bool:
    """Whether a stored split divides these very pictures into groups of these sizes."""
    stored = parse(file)
    sizes = [len(stored.groups[group]) for group in GROUPS]
    expected = Counter(picture.sha256 for group in groups for picture in group)
    return Counter(stored.hashes(*GROUPS)) == expected and sizes == [len(group) for group in groups]
