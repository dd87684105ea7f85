"""CIFAR-10 and CIFAR-100 in their binary form, the one without pickles (Krizhevsky 2009; cs.toronto.edu/~kriz)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorica.data.label_sources import Parts, Sample
from lorica.errors import LoricaError

SIDE = 32


@dataclass(frozen=True)
class _Layout:
    """Records of `label_bytes` labels, of which the last counts, then red, green and blue planes row by row."""

    title: str
    folder: str
    train: tuple[str, ...]
    test: str
    classes: str
    label_bytes: int
    pickled: str
    """Folder of the version for Python, in which everything is a pickle."""
    pickles: tuple[str, ...]
    """Files that betray that version."""


_LAYOUTS = (
    _Layout(
        title="CIFAR-10",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        classes="batches.meta.txt",
        label_bytes=1,
        pickled="cifar-10-batches-py",
        pickles=("data_batch_1", "batches.meta"),
    ),
    _Layout(
        title="CIFAR-100",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        classes="fine_label_names.txt",
        label_bytes=2,  # coarse, fine
        pickled="cifar-100-python",
        pickles=("train", "meta"),
    ),
)


def read_cifar(root: Path) -> tuple[Parts, tuple[str, ...]] | None:
    """The records of a CIFAR folder and its classes in their published order; None where there is no CIFAR.

    Args:
        root: the folder with the `.bin` files, or the one above it.

    Returns:
        "train" and "test", each in the order of the files; a name is `file#record`, counted from 0.

    Raises:
        LoricaError: only the pickled version is there, both data sets are, files are missing, or their contents are
            not CIFAR.
    """
    found = [
        (layout, place)
        for layout in _LAYOUTS
        for place in (root, root / layout.folder)
        if any((place / name).is_file() for name in (*layout.train, layout.test))
    ]
    if not found:
        _refuse_pickles(root)
        return None
    if len(found) > 1:
        places = " and ".join(f"{layout.title} in {place}" for layout, place in found)
        raise LoricaError(f"more than one data set: {places}", "Give the folder of one of them.")
    ((layout, folder),) = found
    return _read(layout, folder)


def _refuse_pickles(root: Path) -> None:
    for layout in _LAYOUTS:
        for place in (root, root / layout.pickled):
            if all((place / name).is_file() for name in layout.pickles):
                raise LoricaError(
                    f"{place} is {layout.title} for Python, which consists of pickles; pickles are never loaded",
                    f'Fetch the "binary version (suitable for C programs)" instead: the folder {layout.folder}.',
                )


def _read(layout: _Layout, folder: Path) -> tuple[Parts, tuple[str, ...]]:
    needed = (*layout.train, layout.test, layout.classes)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise LoricaError(f"{layout.title} in {folder} is incomplete: no {', '.join(missing)}", "Unpack it again.")
    try:
        classes = tuple(filter(None, map(str.strip, (folder / layout.classes).read_text("utf-8").splitlines())))
        train = [sample for name in layout.train for sample in _records(layout, folder / name, classes)]
        return {"train": train, "test": list(_records(layout, folder / layout.test, classes))}, classes
    except (OSError, UnicodeDecodeError) as error:
        raise LoricaError(f"{layout.title} in {folder} cannot be read: {error}", "Unpack it again.") from error


def _records(layout: _Layout, file: Path, classes: tuple[str, ...]) -> list[Sample]:
    length = layout.label_bytes + 3 * SIDE * SIDE
    content = np.frombuffer(file.read_bytes(), np.uint8)
    if len(content) == 0 or len(content) % length:
        problem = f"{file} has {len(content)} bytes, which is no whole number of {layout.title} records of {length}"
        raise LoricaError(problem, "Unpack it again.")
    records = content.reshape(-1, length)
    labels = records[:, layout.label_bytes - 1]
    if labels.max() >= len(classes):
        row = int(np.argmax(labels >= len(classes)))
        raise LoricaError(
            f"{file}: record {row} has label {labels[row]}, but {layout.classes} names {len(classes)} classes",
            "Unpack it again.",
        )
    planes = records[:, layout.label_bytes :].reshape(-1, 3, SIDE, SIDE)
    return [Sample(f"{file.name}#{row}", classes[label], planes[row]) for row, label in enumerate(labels)]
