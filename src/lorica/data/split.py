"""The split into members and non-members, kept as an artefact: who was trained on is the ground truth of every audit.

Names as in MP-LoRA (arXiv 2402.11989, appendix E): the training set D_tr is the auxiliary members (which the proxy
attacker sees) and the test members; the auxiliary and test non-members are never trained on by the adaptation loss.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorica.artefacts import write_json
from lorica.data.duplicates import METHOD, THRESHOLD, Duplicate, find_duplicates
from lorica.data.pictures import Picture, listed
from lorica.data.split_file import GROUPS, SMALLEST, VERSION, find, parse
from lorica.errors import LoricaError

_RECORDED = 1000  # duplicates written to the file; a folder of video frames has millions


@dataclass(frozen=True)
class Split:
    """Four disjoint groups of pictures, and what a reader must know about them."""

    groups: dict[str, list[Picture]]
    seed: int
    notes: list[str] = field(default_factory=list)
    """Sentences that belong beside every result on this split."""
    duplicates: dict[str, Any] = field(default_factory=dict)
    """Method, number and list of the (near-)duplicates that lie in two different groups."""
    roots: tuple[Path, Path] | None = field(default=None, compare=False)
    """Folders of members and of non-members. Needed only where one side has pictures of both folders."""

    @property
    def members(self) -> list[Picture]:
        """The training set D_tr."""
        return self.groups["aux_members"] + self.groups["test_members"]

    @property
    def nonmembers(self) -> list[Picture]:
        return self.groups["aux_nonmembers"] + self.groups["test_nonmembers"]

    def pictures(self, group: str) -> list[Picture]:
        """The pictures of one of `GROUPS`."""
        if group not in self.groups:
            raise LoricaError(f"no group {group!r} in a split", f"Known: {', '.join(GROUPS)}.")
        return self.groups[group]

    def with_caption(self, caption: str) -> "Split":
        """The same split with one caption for all pictures."""
        groups = {group: [replace(p, caption=caption) for p in pictures] for group, pictures in self.groups.items()}
        return replace(self, groups=groups)

    def save(self, path: Path) -> None:
        """Write the split as JSON: names and hashes of the pictures, never their captions."""
        members, nonmembers = self.roots or (_root(self.members), _root(self.nonmembers))
        roots = {"members": str(members), "nonmembers": str(nonmembers)}
        write_json(
            path,
            {
                "version": VERSION,
                "seed": self.seed,
                "roots": roots,
                "groups": {
                    group: [_entry(picture, group.split("_")[1], roots) for picture in self.groups[group]]
                    for group in GROUPS
                },
                "notes": self.notes,
                "duplicates": self.duplicates,
            },
        )

    @classmethod
    def load(
        cls,
        path: Path,
        data: Path | None = None,
        nonmember_data: Path | None = None,
        *,
        captions_required: bool = True,
    ) -> "Split":
        """Read a split and find its pictures again, with their present captions.

        Args:
            path: the JSON file.
            data: where the members are now, if their folder moved; the non-members too if they lay in the same one.
            nonmember_data: where the non-members are now.
            captions_required: refuse pictures without a caption; otherwise their caption is "".

        Raises:
            LoricaError: not a split, another version, overlapping groups, or pictures that are missing or changed.
        """
        stored = parse(path)
        if nonmember_data is None and stored.roots.members == stored.roots.nonmembers:
            nonmember_data = data
        members, nonmembers = data or Path(stored.roots.members), nonmember_data or Path(stored.roots.nonmembers)
        roots = {"members": members, "nonmembers": nonmembers}
        groups = find(stored, roots, captions_required=captions_required)
        return cls(groups, stored.seed, stored.notes, stored.duplicates, (members.resolve(), nonmembers.resolve()))


def make_split(
    members: Sequence[Picture],
    nonmembers: Sequence[Picture] | None = None,
    *,
    seed: int,
    holdout: float = 0.5,
    aux: float = 0.5,
    counts: tuple[int, int, int, int] | None = None,
) -> Split:
    """Divide pictures at random into the four groups; the result depends on their content and the seed only.

    Args:
        members: the private pictures.
        nonmembers: pictures of the same kind that are not trained on; if None, a share of `members` is held out.
        seed: of the random division.
        holdout: share of `members` that is held out if there are no `nonmembers`.
        aux: share of either side that the proxy attacker and the calibration of attacks may see.
        counts: exact sizes in the order of `GROUPS` instead of the shares; what is left over is not used.

    Raises:
        LoricaError: too few pictures, or a picture that is member and non-member at once.
    """
    for name, share in (("holdout", holdout), ("aux", aux)):
        if not 0 < share < 1:
            raise LoricaError(f"{name} = {share} is not a share between 0 and 1", "For example: 0.5")
    inside, outside = _ordered(members), _ordered(nonmembers or [])
    pairs = find_duplicates(inside + outside)
    notes = []
    if nonmembers is None:
        held = round(len(inside) * holdout)
        sizes = counts or (*_parts(len(inside) - held, aux), *_parts(held, aux))
        _check_sizes(sizes, (len(inside),))
        inside, outside = _hold_out(inside, pairs, sizes, np.random.default_rng([seed, 0]))
        notes.append(
            f"No non-members were given: {len(outside)} of the {len(members)} pictures are held out as non-members "
            "and are NOT trained on."
        )
    else:
        _refuse_overlap(inside, outside, pairs)
        sizes = counts or (*_parts(len(inside), aux), *_parts(len(outside), aux))
        _check_sizes(sizes, (len(inside), len(outside)))
        inside, outside = _shuffled(inside, [seed, 0]), _shuffled(outside, [seed, 1])
    cuts = {
        "aux_members": inside[: sizes[0]],
        "test_members": inside[sizes[0] : sizes[0] + sizes[1]],
        "aux_nonmembers": outside[: sizes[2]],
        "test_nonmembers": outside[sizes[2] : sizes[2] + sizes[3]],
    }
    unused = len(members) + len(nonmembers or []) - sum(sizes)
    if unused:
        notes.append(f"{unused} pictures are in no group: the four sizes asked for leave them over.")
    duplicates, warnings = _across_groups(pairs, cuts)
    return Split(cuts, seed, notes + warnings, duplicates)


def _ordered(pictures: Iterable[Picture]) -> list[Picture]:
    """In an order that file names have no part in."""
    return sorted(pictures, key=lambda picture: (picture.sha256, picture.name))


def _shuffled(pictures: Sequence[Picture], seed: list[int]) -> list[Picture]:
    return [pictures[i] for i in np.random.default_rng(seed).permutation(len(pictures))]


def _parts(count: int, share: float) -> tuple[int, int]:
    first = round(count * share)
    return first, count - first


def _check_sizes(sizes: Sequence[int], available: Sequence[int]) -> None:
    wanted = [sum(sizes)] if len(available) == 1 else [sum(sizes[:2]), sum(sizes[2:])]
    shown = ", ".join(f"{size} {group.replace('_', ' ')}" for group, size in zip(GROUPS, sizes, strict=True))
    if min(sizes) < SMALLEST:
        raise LoricaError(
            f"too few pictures for a split: {' + '.join(map(str, available))} given, which makes {shown}",
            f"Each group needs at least {SMALLEST}. Give more pictures (some hundreds make an audit worth reading), "
            "or other shares.",
        )
    if any(want > have for want, have in zip(wanted, available, strict=True)):
        raise LoricaError(
            f"the split asks for {shown}, but only {' + '.join(map(str, available))} pictures are given",
            "Ask for smaller groups or give more pictures.",
        )


def _hold_out(
    pictures: list[Picture], pairs: list[Duplicate], sizes: Sequence[int], rng: np.random.Generator
) -> tuple[list[Picture], list[Picture]]:
    """Divide one pool at random, keeping exact copies on one side."""
    original = {pair.second: pair.first for pair in pairs if pair.kind == "exact"}
    copies: dict[Picture, list[Picture]] = {}
    for picture in pictures:
        copies.setdefault(original.get(picture, picture), []).append(picture)
    clusters = list(copies.values())
    wanted = (sizes[0] + sizes[1], sizes[2] + sizes[3])
    sides: tuple[list[Picture], list[Picture]] = ([], [])
    for index in rng.permutation(len(clusters)):
        for side, want in zip(sides, wanted, strict=True):
            if len(side) + len(clusters[index]) <= want:
                side.extend(clusters[index])
                break
    if (len(sides[0]), len(sides[1])) != wanted:
        raise LoricaError(
            f"too many copies of the same pictures to fill {wanted[0]} members and {wanted[1]} non-members",
            "A picture and its copy must be on the same side. Remove the copies from the folder.",
        )
    return sides


def _refuse_overlap(inside: list[Picture], outside: list[Picture], pairs: list[Duplicate]) -> None:
    # Copies are paired with the first one, and members come first: what crosses is a member paired with a non-member.
    members, nonmembers = {picture.file for picture in inside}, {picture.file for picture in outside}
    both = [
        f"{pair.first.file} = {pair.second.file}"
        for pair in pairs
        if pair.kind == "exact" and pair.first.file in members and pair.second.file in nonmembers
    ]
    if both:
        raise LoricaError(
            f"the same picture is a member and a non-member:\n{listed(both)}",
            "Its label would mean nothing. Remove it from one of the two folders.",
        )


def _across_groups(pairs: list[Duplicate], groups: dict[str, list[Picture]]) -> tuple[dict[str, Any], list[str]]:
    """The record of duplicates in two different groups, and the sentences that warn of them."""
    group_of = {picture: group for group, pictures in groups.items() for picture in pictures}
    records: list[dict[str, Any]] = []
    kinds: Counter[str] = Counter()
    for pair in pairs:
        first, second = group_of.get(pair.first), group_of.get(pair.second)
        if first is None or second is None or first == second:
            continue
        crossing = first.endswith("_members") != second.endswith("_members")
        kinds["crossing" if crossing else "exact" if pair.kind == "exact" else "near"] += 1
        records.append(
            {
                "kind": pair.kind,
                "distance": round(pair.distance, 3),
                "first": {"group": first, "name": pair.first.name},
                "second": {"group": second, "name": pair.second.name},
            }
        )
    record = {
        "method": METHOD,
        "threshold": THRESHOLD,
        "count": len(records),
        "pairs": records[:_RECORDED],
    }
    sentences = {
        "crossing": "near-duplicate pair(s) lie across members and non-members: a non-member that nearly is a member "
        "is scored as one, which makes leakage look smaller than it is.",
        "exact": "exact duplicate pair(s) lie across the auxiliary and test half of one side: an attack that learns "
        "on the auxiliary half has seen them.",
        "near": "near-duplicate pair(s) lie across the auxiliary and test half of one side.",
    }
    return record, [f"{kinds[kind]} {sentence}" for kind, sentence in sentences.items() if kinds[kind]]


def _folder(picture: Picture) -> Path:
    """The root folder that its name is relative to."""
    return picture.file.parents[picture.name.count("/")]


def _entry(picture: Picture, side: str, roots: dict[str, str]) -> dict[str, str]:
    """A picture as the file has it; its folder is named only where it is the other side's."""
    entry = {"name": picture.name, "sha256": picture.sha256}
    folder = str(_folder(picture))
    if folder == roots[side]:
        return entry
    other = [name for name, root in roots.items() if root == folder]
    if not other:
        raise _several_folders({folder, *roots.values()})
    return entry | {"root": other[0]}


def _root(pictures: list[Picture]) -> Path:
    roots = {_folder(picture) for picture in pictures}
    if len(roots) != 1:
        raise _several_folders(set(map(str, roots)))
    return roots.pop()


def _several_folders(roots: set[str]) -> LoricaError:
    return LoricaError(
        f"the pictures of one side come from several folders: {', '.join(sorted(roots))}",
        "Put them into one folder (sub-folders are read too).",
    )
