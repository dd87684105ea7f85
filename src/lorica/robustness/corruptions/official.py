"""The official files of corrupted pictures, for those who have downloaded them. Nothing is unpickled."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorica.data.pictures import SUFFIXES, load_rgb
from lorica.errors import LoricaError
from lorica.robustness.corruptions.base import CORRUPTIONS, SEVERITIES, checked_severity

EXTRA_TYPES = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Four more than the benchmark proper: in the official files only, meant for validation."""

Rows = slice | Sequence[int] | NDArray[np.int64]


class Official(ABC):
    """A folder of official files. Each severity of each type holds the same pictures in the same order."""

    types: tuple[str, ...]
    """The types that the folder holds, the benchmark's own first."""
    classes: tuple[str, ...] | None = None
    """The names of the class folders, in the order of the labels, where there are any."""

    def __init__(self, folder: Path, types: tuple[str, ...]) -> None:
        self.folder = folder
        self.types = types

    def load(self, name: str, severity: int, rows: Rows = slice(None)) -> tuple[Tensor, Tensor]:
        """Read the pictures of one type and severity.

        Args:
            name: one of `types`.
            severity: 1 (weak) to 5.
            rows: which pictures; all of them where absent. ImageNet-C's 50,000 take 7.5 GB of memory.

        Returns:
            (N, 3, H, W) uint8 and (N,) int64 labels, from 0 on.

        Raises:
            LoricaError: no such type or severity here, or a file cannot be used.
        """
        pictures, labels = self._load(self._known(name), checked_severity(severity), rows)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)

    def count(self, name: str, severity: int) -> int:
        """How many pictures `load` would read. Raises as `load` does."""
        return self._count(self._known(name), checked_severity(severity))

    def _known(self, name: str) -> str:
        if name not in self.types:
            raise LoricaError(
                f"{self.folder} holds no {name!r}",
                f"It holds {', '.join(self.types)}. Add the files, or leave it out.",
            )
        return name

    @abstractmethod
    def _load(self, name: str, severity: int, rows: Rows) -> tuple[NDArray[np.uint8], NDArray[np.int64]]: ...

    @abstractmethod
    def _count(self, name: str, severity: int) -> int: ...


def official(folder: Path | str) -> Official:
    """Open a folder of official files.

    Two layouts are known: CIFAR-10-C and CIFAR-100-C, with `<type>.npy` of (5n, H, W, 3) uint8, the n pictures of
    severity 1 first, and `labels.npy` of (5n,); and ImageNet-C, with `<type>/<severity>/<class>/<picture>`.

    Raises:
        LoricaError: it is not a folder, or has neither layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LoricaError(f"no folder of corrupted pictures: {folder}", "Check the path.")
    known = (*CORRUPTIONS, *EXTRA_TYPES)
    if arrays := tuple(name for name in known if (folder / f"{name}.npy").is_file()):
        return _Arrays(folder, arrays)
    if folders := tuple(name for name in known if (folder / name).is_dir()):
        return _Folders(folder, folders)
    raise LoricaError(
        f"{folder} is laid out neither as CIFAR-10-C nor as ImageNet-C",
        "Give the folder that directly holds fog.npy, ... and labels.npy, or fog/1/<class>/<picture>, ...",
    )


class _Arrays(Official):
    """CIFAR-10-C and CIFAR-100-C. Arrays stay on disk until rows of them are asked for."""

    def _load(self, name: str, severity: int, rows: Rows) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        pictures, labels = self._open(name)
        count = len(pictures) // len(SEVERITIES)
        block = slice((severity - 1) * count, severity * count)
        return np.array(pictures[block][rows]), np.array(labels[block][rows], dtype=np.int64)

    def _count(self, name: str, severity: int) -> int:
        return len(self._open(name)[0]) // len(SEVERITIES)

    def _open(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        pictures, labels = self._mapped(f"{name}.npy"), self._mapped("labels.npy")
        if pictures.ndim != 4 or pictures.shape[3] != 3 or len(pictures) % 5 or pictures.dtype != np.uint8:
            raise LoricaError(
                f"{self.folder / name}.npy holds {pictures.dtype} of shape {pictures.shape}",
                "It should be uint8 of shape (5n, H, W, 3): officially (50000, 32, 32, 3). Download it again.",
            )
        if labels.shape != pictures.shape[:1] or labels.dtype.kind not in "iu":
            raise LoricaError(
                f"{self.folder / 'labels.npy'} holds {labels.dtype} of shape {labels.shape}",
                f"It should be one whole number for each of the {len(pictures)} pictures of {name}.npy.",
            )
        return pictures, labels

    def _mapped(self, name: str) -> NDArray:
        file = self.folder / name
        try:
            return np.lib.format.open_memmap(file, mode="r")  # unlike np.load it takes nothing but .npy
        except FileNotFoundError as error:
            raise LoricaError(f"{file} is missing", "It belongs to the official files. Download it again.") from error
        except Exception as error:  # on hostile bytes numpy may raise anything
            raise LoricaError(f"{file} cannot be read: {error}", "Is it the official file?") from error


class _Folders(Official):
    """ImageNet-C. The labels are the places of the class folders in alphabetical order, as torchvision counts them."""

    def __init__(self, folder: Path, types: tuple[str, ...]) -> None:
        super().__init__(folder, types)
        places = (folder / name / str(severity) for name in types for severity in SEVERITIES)
        first = next((place for place in places if place.is_dir()), None)
        self.classes = tuple(_visible(first)) if first else ()

    def _load(self, name: str, severity: int, rows: Rows) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        files, labels = self._files(name, severity)
        chosen = np.arange(len(files))[rows]
        pictures = [self._decoded(files[row]) for row in chosen]
        odd = next((i for i, picture in enumerate(pictures) if picture.shape != pictures[0].shape), None)
        if odd is not None:
            raise LoricaError(
                f"{_shown(files[chosen[odd]])} is not as large as {_shown(files[chosen[0]])}",
                "Give pictures of one size.",
            )
        return np.stack(pictures) if pictures else np.empty((0, 1, 1, 3), np.uint8), labels[chosen]

    def _count(self, name: str, severity: int) -> int:
        return len(self._files(name, severity)[0])

    def _decoded(self, file: Path) -> NDArray[np.uint8]:
        try:
            return np.asarray(load_rgb(file))
        except LoricaError as error:
            raise LoricaError(f"{_shown(file)} {error.problem}", error.remedy) from error

    def _files(self, name: str, severity: int) -> tuple[list[Path], NDArray[np.int64]]:
        place = self.folder / name / str(severity)
        if not place.is_dir():
            raise LoricaError(f"{place} is missing", "Each type has a folder for each of the severities 1 to 5.")
        if (classes := tuple(_visible(place))) != self.classes:
            raise LoricaError(f"{place} has other class folders than the rest", "Every severity has all classes.")
        files, labels = [], []
        for label, folder in enumerate(classes):
            inside = [place / folder / file for file in _visible(place / folder, folders=False)]
            files += inside
            labels += [label] * len(inside)
        if not files:
            raise LoricaError(f"no pictures in {place}", f"Put them into {place}/<class>/.")
        return files, np.array(labels, dtype=np.int64)


def _shown(file: Path) -> str:
    return str(file) if str(file).isprintable() else ascii(str(file))


def _visible(folder: Path, *, folders: bool = True) -> list[str]:
    """Names of the sub-folders, or of the picture files, in alphabetical order."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if not entry.name.startswith(".")
        and (entry.is_dir() if folders else entry.suffix.lower() in SUFFIXES and entry.is_file())
    )
