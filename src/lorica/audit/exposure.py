"""Which members an attacker would name first: by place in the split, never by name or picture."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lorica.artefacts import THUMBNAIL, THUMBNAILS, write_with
from lorica.audit.score import MembershipScores
from lorica.data import Picture, fit, load_rgb

LISTED = 10
_SIDE = 96


def most_exposed(scores: MembershipScores, listed: int = LISTED) -> list[dict[str, Any]]:
    """Members in the order in which an attack would name them, with the share of false alarms it takes.

    Where the ranking is inverted (AUC below 0.5) the attacker turns the score round, and so does this.

    Args:
        scores: test scores of the attack.
        listed: how many members at most.

    Returns:
        [{"index": place among the test members, "fpr": share of non-members that score at least as high}], by falling
        exposure; members whom fewer than half of the non-members would hide.
    """
    sign = 1 if scores.auc >= 0.5 else -1
    members, nonmembers = sign * scores.members, np.sort(sign * scores.nonmembers)
    above = len(nonmembers) - np.searchsorted(nonmembers, members, side="left")
    order = np.lexsort((-members, above))[:listed]
    found = [{"index": int(i), "fpr": float(above[i] / len(nonmembers))} for i in order]
    return [one for one in found if one["fpr"] < 0.5]


def write_thumbnails(
    output: Path, exposed: Mapping[str, Sequence[Mapping[str, Any]]], members: Sequence[Picture], wanted: bool
) -> None:
    """Small copies of the members that any attack exposes, by place, into OUTPUT; those of an earlier audit go.

    Whatever else lies in the folder stays.
    """
    folder = output / THUMBNAILS
    for earlier in folder.glob(f"{THUMBNAIL}*.png"):
        earlier.unlink()
    with suppress(OSError):  # it is absent, or somebody keeps pictures there
        folder.rmdir()
    for index in sorted({one["index"] for found in exposed.values() for one in found}) if wanted else []:
        small = fit(load_rgb(members[index].file), _SIDE)
        write_with(folder / f"{THUMBNAIL}{index:05d}.png", lambda file, small=small: small.save(file, format="PNG"))  # type: ignore[misc]
