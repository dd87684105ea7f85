"""A split on disk: JSON that may come from anyone, checked field by field before its pictures are looked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from lorica.artefacts import read_json
from lorica.config import Config
from lorica.data.pictures import Picture, listed, read_pictures, relative_name
from lorica.errors import LoricaError

GROUPS = ("aux_members", "test_members", "aux_nonmembers", "test_nonmembers")
VERSION = 1
SMALLEST = 2
"""Pictures that each group needs: with one, neither a spread nor a threshold between two scores exists."""


class Entry(Config):
    """One picture: its path inside the root folder, and the hash of the file."""

    name: Annotated[str, AfterValidator(relative_name)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    root: Literal["members", "nonmembers"] | None = None
    """Which of the two folders it lies in; by default that of its own side. The splits of shadows mix them."""


class Roots(Config):
    """The folders that the names are relative to."""

    members: str
    nonmembers: str


class StoredSplit(Config):
    """The file, field by field."""

    version: int
    seed: int
    roots: Roots
    groups: dict[str, Annotated[list[Entry], Field(min_length=SMALLEST)]]
    notes: list[str]
    duplicates: dict[str, Any]

    def root(self, group: str, entry: Entry) -> Literal["members", "nonmembers"]:
        """Which of the two folders a picture of a group lies in."""
        return entry.root or ("members" if group.endswith("_members") else "nonmembers")

    def hashes(self, *groups: str) -> list[str]:
        """SHA-256 of the pictures of some groups."""
        return [entry.sha256 for group in groups for entry in self.groups[group]]


def parse(path: Path) -> StoredSplit:
    """Read and check the file alone.

    Raises:
        LoricaError: it is not a split, of another version, or its groups overlap.
    """
    content = read_json(path, "split")
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise LoricaError(
            f"{path} is not a split of version {VERSION} (its version is {version!r})",
            "Give the split.json of a run, or make the split anew with this version.",
        )
    try:
        stored = StoredSplit.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LoricaError(f"{path} is not a valid split: {where}: {first['msg']}", "Was it edited by hand?") from error
    if set(stored.groups) != set(GROUPS):
        raise LoricaError(f"{path} is not a valid split: its groups are not {', '.join(GROUPS)}", "Make it anew.")
    _refuse_overlapping_groups(path, stored)
    return stored


def _refuse_overlapping_groups(path: Path, stored: StoredSplit) -> None:
    seen: dict[tuple[str, str], str] = {}
    sides: dict[str, tuple[str, str]] = {}
    for group in GROUPS:
        side = group.split("_")[1]
        for entry in stored.groups[group]:
            place = (getattr(stored.roots, stored.root(group, entry)), entry.name)
            other_side, other_name = sides.setdefault(entry.sha256, (side, entry.name))
            if place in seen or other_side != side:
                where = seen.get(place, f"the {other_side}, as {other_name}")
                raise LoricaError(
                    f"{path}: the groups overlap: {entry.name} is in {group} and in {where}",
                    "Members and non-members of this split mean nothing. Make it anew.",
                )
            seen[place] = group


def find(
    stored: StoredSplit, roots: Mapping[str, Path], *, captions_required: bool = True
) -> dict[str, list[Picture]]:
    """Find the pictures of a split again, with their present captions.

    Args:
        stored: the split.
        roots: where "members" and "nonmembers" are now.
        captions_required: refuse pictures without a caption; otherwise their caption is "".

    Raises:
        LoricaError: pictures are missing, unreadable, not those that were split, or without a required caption.
    """
    wanted: dict[str, list[Entry]] = {}
    for group, entries in stored.groups.items():
        for entry in entries:
            wanted.setdefault(stored.root(group, entry), []).append(entry)
    found = {
        (side, name): picture
        for side in wanted
        for name, picture in _read(wanted[side], roots[side], captions_required).items()
    }
    return {
        group: [found[stored.root(group, entry), entry.name] for entry in stored.groups[group]] for group in GROUPS
    }


def _read(entries: list[Entry], root: Path, captions_required: bool) -> dict[str, Picture]:
    """The pictures of one folder by name."""
    try:
        names = [entry.name for entry in entries]
        pictures = read_pictures(root, names, captions_required=captions_required)
        found = {picture.name: picture for picture in pictures}
    except LoricaError as error:
        raise LoricaError(
            f"the pictures of the split are not what they were: {error.problem}",
            "Restore the files; if the folder moved, say where it is now; or make a new split and adapt again.",
        ) from error
    changed = [entry.name for entry in entries if found[entry.name].sha256 != entry.sha256]
    if changed:
        raise LoricaError(
            f"pictures in {root} changed since the split was made:\n{listed(sorted(changed))}",
            "Restore them: an audit of other pictures than those trained on means nothing. Or make a new split.",
        )
    return found
