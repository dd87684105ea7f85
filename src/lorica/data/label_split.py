"""The division of labelled pictures into training, validation and test set, kept as an artefact with hashes.

Validation pictures are always taken from the training side: a learning rate or a checkpoint that was chosen on the
test set makes the test accuracy an optimistic number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError

from lorica.artefacts import read_json, write_json
from lorica.config import Config
from lorica.data.labelled import LabelledSet
from lorica.data.pictures import listed, shown_name
from lorica.errors import LoricaError
from lorica.seeds import stable_seed

VERSION = 1
_PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class LabelledSplit:
    """Three sets of pictures of the same classes; no file is in two of them, not even as a copy."""

    train: LabelledSet
    val: LabelledSet
    test: LabelledSet
    notes: tuple[str, ...]
    """Sentences that belong beside every result on this split."""
    seed: int

    def save(self, path: Path) -> None:
        """Write the split as JSON: names, labels and hashes of the pictures.

        Raises:
            LoricaError: it cannot be written.
        """
        classes = self.train.classes
        parts = {
            part: [
                {"name": name, "label": classes[label], "sha256": sha256}
                for name, label, sha256 in zip(data.names, data.labels.tolist(), data.sha256, strict=True)
            ]
            for part, data in ((part, getattr(self, part)) for part in _PARTS)
        }
        write_json(
            path,
            {"version": VERSION, "seed": self.seed, "classes": classes, "parts": parts, "notes": self.notes},
        )


def split_labelled(
    parts: Mapping[str, LabelledSet], *, val_share: float = 0.05, test_share: float = 0.2, seed: int = 0
) -> LabelledSplit:
    """Keep the parts that a source declares and draw those that it lacks from its training pictures, class by class.

    Which pictures are drawn depends on their content, the shares and the seed; not on names or order. Exact copies
    stay together. Of a picture that the source itself has in two parts, the test set keeps its copy before the
    validation set, and that before the training set.

    Args:
        parts: as `read_labelled` returns them.
        val_share: share of each class that validates, in (0, 1), of what is not in the test set; at least one picture
            of each class that has two or more. The default is AutoLoRa's (arXiv 2310.01818: 5% of the training data).
        test_share: share of each class that is held out where the source has no test set; otherwise as `val_share`.
        seed: of the random division.

    Raises:
        LoricaError: a share outside (0, 1), or a class without training pictures, or no picture to validate with.
    """
    for name, share in (("val_share", val_share), ("test_share", test_share)):
        if not 0 < share < 1:
            raise LoricaError(f"{name} = {share} is not a share between 0 and 1", "For example: 0.05")
    train = parts["train"] if "train" in parts else parts["all"]
    val, test = parts.get("val"), parts.get("test")
    notes = []
    if val is not None and test is not None:
        val, dropped = _without(val, test.sha256)
        notes += _copies(dropped, "validation", "test")
    for name, data in (("test", test), ("validation", val)):
        if data is not None:
            train, dropped = _without(train, data.sha256)
            notes += _copies(dropped, "training", name)
    if test is None:
        train, test = _draw(train, test_share, np.random.default_rng(stable_seed(seed, "test")))
        notes.append(
            f"The source has no test set: {len(test)} of its pictures, about {test_share:.3g} of each class, are held "
            f"out by chance (seed {seed}) and NOT trained on."
        )
    if val is None or len(val) == 0:
        train, val = _draw(train, val_share, np.random.default_rng(stable_seed(seed, "val")))
        notes.append(
            f"{len(val)} of the training pictures, about {val_share:.3g} of each class, are held out by chance (seed "
            f"{seed}) for validation."
        )
    _check(train, val, test)
    notes += _unvalidated(val) + _two_labels((train, val, test))
    return LabelledSplit(train, val, test, tuple(notes), seed)


def _without(data: LabelledSet, sha256: Iterable[str]) -> tuple[LabelledSet, int]:
    """The pictures whose hash is not among these, and how many were dropped."""
    known = set(sha256)
    kept = data.take([row for row, value in enumerate(data.sha256) if value not in known])
    return kept, len(data) - len(kept)


def _draw(data: LabelledSet, share: float, rng: np.random.Generator) -> tuple[LabelledSet, LabelledSet]:
    """(rest, drawn): a share of each class, at least one picture and not all of them where there are two or more."""
    label_of: dict[str, int] = {}  # copies count once; where they disagree, the first class decides
    for value, label in zip(data.sha256, data.labels.tolist(), strict=True):
        label_of[value] = min(label, label_of.get(value, label))
    drawn: set[str] = set()
    for label in range(len(data.classes)):
        different = sorted(value for value, own in label_of.items() if own == label)
        count = min(max(1, round(share * len(different))), len(different) - 1)
        drawn.update(different[i] for i in rng.permutation(len(different))[: max(count, 0)])
    sides: tuple[list[int], list[int]] = ([], [])
    for row, value in enumerate(data.sha256):
        sides[value in drawn].append(row)
    return data.take(sides[0]), data.take(sides[1])


def _check(train: LabelledSet, val: LabelledSet, test: LabelledSet) -> None:
    present = set(train.labels.tolist())
    bare = [shown_name(name) for label, name in enumerate(train.classes) if label not in present]
    if bare:
        raise LoricaError(
            f"classes without a training picture of their own:\n{listed(bare)}",
            "Their pictures are all copies of others, or of validation or test pictures. Add different ones.",
        )
    for name, data in (("validation", val), ("test", test)):
        if len(data) == 0:
            raise LoricaError(
                f"no picture can be held out for the {name} set: no class has two different training pictures",
                "Give more pictures.",
            )


def _copies(count: int, where: str, other: str) -> list[str]:
    if not count:
        return []
    return [f"{count} {where} picture(s) are exact copies of pictures in the {other} set and were dropped."]


def _unvalidated(val: LabelledSet) -> list[str]:
    count = len(val.classes) - len(set(val.labels.tolist()))
    return [f"{count} of {len(val.classes)} classes have no validation picture."] if count else []


def _two_labels(sets: Sequence[LabelledSet]) -> list[str]:
    seen: dict[str, tuple[int, str]] = {}
    pairs = {}
    for data in sets:
        for value, label, name in zip(data.sha256, data.labels.tolist(), data.names, strict=True):
            first_label, first_name = seen.setdefault(value, (label, name))
            if first_label != label:
                pairs[value] = f"{shown_name(first_name)} and {shown_name(name)}"
    if not pairs:
        return []
    return [f"{len(pairs)} picture(s) have two labels, for example {next(iter(pairs.values()))}: one must be wrong."]


class _Entry(Config):
    name: str
    label: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _StoredParts(Config):
    train: Annotated[list[_Entry], Field(min_length=1)]
    val: Annotated[list[_Entry], Field(min_length=1)]
    test: Annotated[list[_Entry], Field(min_length=1)]


class _Stored(Config):
    version: int
    seed: int
    classes: tuple[str, ...]
    parts: _StoredParts
    notes: tuple[str, ...]


def load_split(path: Path, parts: Mapping[str, LabelledSet]) -> LabelledSplit:
    """Read a split and find its pictures again, by name and hash.

    Args:
        path: the JSON file.
        parts: the source, read afresh; more pictures than those of the split are ignored.

    Raises:
        LoricaError: not a split, another version, overlapping parts, other classes than the source has, or pictures
            that are missing, changed, labelled otherwise or now in another part of the source.
    """
    stored = _parse(path)
    training = "train" if "train" in parts else "all"
    classes = parts[training].classes
    if stored.classes != classes:
        raise LoricaError(
            f"{path} divides the classes {_few(stored.classes)}, the source has {_few(classes)}",
            "Give the source that the split was made of, or make a new split.",
        )
    # What trains or validates is never sought among the pictures that the source declares to be its test set.
    homes = {"train": [training], "val": [training, "val"], "test": ["test"] if "test" in parts else [training]}
    rows = {home: {name: row for row, name in enumerate(data.names)} for home, data in parts.items()}
    problems: list[str] = []
    found = {}
    for part in _PARTS:
        entries: list[_Entry] = getattr(stored.parts, part)
        home = next((home for home in homes[part] if entries[0].name in rows.get(home, ())), training)
        faults = [_fault(entry, parts[home], rows[home].get(entry.name)) for entry in entries]
        problems += filter(None, faults)
        if not problems:
            found[part] = parts[home].take([rows[home][entry.name] for entry in entries])
    if problems:
        raise LoricaError(
            f"the pictures of {path} are not what they were:\n{listed(problems)}",
            "Restore them: a result on other pictures is another result. Or make a new split.",
        )
    return LabelledSplit(found["train"], found["val"], found["test"], stored.notes, stored.seed)


def _fault(entry: _Entry, data: LabelledSet, row: int | None) -> str:
    if row is None:
        return f"{shown_name(entry.name)}: missing, or in another part"
    if data.sha256[row] != entry.sha256:
        return f"{shown_name(entry.name)}: changed"
    label = data.classes[int(data.labels[row])]
    return "" if label == entry.label else f"{shown_name(entry.name)}: was {entry.label!r}, is {label!r}"


def _few(classes: Sequence[str]) -> str:
    return f"{', '.join(map(repr, classes[:5]))}{', ...' if len(classes) > 5 else ''} ({len(classes)})"


def _parse(path: Path) -> _Stored:
    content = read_json(path, "split")
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise LoricaError(
            f"{path} is not a split of labelled pictures of version {VERSION} (its version is {version!r})",
            "Give the split of a fine-tuning run, or make it anew with this version.",
        )
    try:
        stored = _Stored.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f"{path} is not a valid split of labelled pictures: {where}: {first['msg']}"
        raise LoricaError(problem, "Was it edited by hand?") from error
    owner: dict[str, str] = {}
    for part in _PARTS:
        for entry in getattr(stored.parts, part):
            for key in (f"name {entry.name}", f"sha256 {entry.sha256}"):
                if owner.setdefault(key, part) != part:
                    raise LoricaError(
                        f"{path}: {shown_name(entry.name)} is in {part} and in {owner[key]}",
                        "Numbers on such a split mean nothing. Make it anew.",
                    )
    return stored
