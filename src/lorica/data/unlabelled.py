"""Pictures without labels: any folder of them, at any depth."""

from pathlib import Path

import torch

from lorica.data.cifar import read_cifar
from lorica.data.label_sources import Sample, divided_folder
from lorica.data.labelled import LabelledSet, decoded
from lorica.data.pictures import SUFFIXES, visible_files
from lorica.errors import LoricaError


def read_unlabelled(source: Path, *, size: tuple[int, int], cache: Path | None = None) -> LabelledSet:
    """Read and decode every picture of a folder.

    Where the folder declares parts (train, val and test folders of class folders, or CIFAR's binary files), only the
    training part is read: the others are for finding out what was learned.

    Args:
        source: the folder.
        size: (H, W) in pixels. A picture is resized (Lanczos) so that it just covers it, and its centre is kept.
        cache: folder that keeps the decoded pixels, as private as the pictures themselves; None keeps nothing.

    Returns:
        The pictures sorted by name, those of CIFAR in the order of its files. The labels are all 0 and mean nothing;
        there are no classes.

    Raises:
        LoricaError: no such folder, no pictures in it, or pictures that cannot be decoded: all of them in one error,
            the first ten by name.
    """
    source = Path(source)
    if not source.is_dir():
        found = "is a file" if source.exists() else "not found"
        raise LoricaError(f"folder of pictures {found}: {source}", "Give a folder; labels are not needed.")
    cifar = read_cifar(source)
    samples = cifar[0]["train"] if cifar is not None else _samples(source)
    hashes, stack = decoded(source, samples, size, cache)
    names = tuple(sample.name for sample in samples)
    labels = torch.zeros(len(samples), dtype=torch.long)
    return LabelledSet(torch.from_numpy(stack), labels, (), names, tuple(hashes))


def _samples(source: Path) -> list[Sample]:
    files = sorted(f.relative_to(source).as_posix() for f in visible_files(source) if f.suffix.lower() in SUFFIXES)
    training = divided_folder(source, files)
    files = [name for name in files if training is None or name.startswith(f"{training}/")]
    if not files:
        raise LoricaError(f"no pictures in {source}", f"Put pictures ({' '.join(SUFFIXES)}) there, in any folders.")
    return [Sample(name, "", source / name) for name in files]
