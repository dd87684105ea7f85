"""Labelled pictures for classifiers: read, checked in full before work starts, and decoded once to 8-bit pixels."""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lorica.artefacts import atomic_path
from lorica.data.cifar import read_cifar
from lorica.data.label_sources import Parts, Sample, from_folder, from_table
from lorica.data.pictures import listed, load_rgb, shown_name
from lorica.errors import LoricaError
from lorica.progress import track

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]

_TABLES = (".csv", ".parquet", ".pq")
_DECODING = 1  # part of the cache's key; to be raised when the same file comes to mean other pixels
_TASK, _TASKS_AHEAD = 32, 64  # pictures that a thread takes at a time; tasks whose pictures may wait in memory


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Pictures of one size with their classes, in memory."""

    pixels: Tensor
    """(N, 3, H, W) uint8 on the CPU; perhaps a view of a cache file, so not to be written to."""
    labels: Tensor
    """(N,) int64: places in `classes`."""
    classes: tuple[str, ...]
    """Names of all classes of the source, also of those that this part lacks."""
    names: tuple[str, ...]
    """Paths relative to the source, POSIX, unique; of CIFAR `file#record`."""
    sha256: tuple[str, ...]
    """Of the files' bytes; of CIFAR, of the 3072 bytes of pixels."""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> "LabelledSet":
        """Some of them, in the order of `rows`: a copy, unless they are all of them in order."""
        if list(rows) == list(range(len(self))):
            return self
        index = torch.as_tensor(rows, dtype=torch.long)
        names, sha256 = (tuple(texts[row] for row in rows) for texts in (self.names, self.sha256))
        return LabelledSet(self.pixels[index], self.labels[index], self.classes, names, sha256)


def read_labelled(source: Path, *, size: tuple[int, int], cache: Path | None = None) -> dict[str, LabelledSet]:
    """Read and decode every picture of a source.

    Args:
        source: a folder of class folders, or of `train`, `val` and `test` folders of class folders; a CSV or Parquet
            table with the columns path, label and, perhaps, split; or a folder with the binary files of CIFAR-10 or
            CIFAR-100. The classes are sorted by name; those of CIFAR keep their published order.
        size: (H, W) in pixels. A picture is resized (Lanczos) so that it just covers it, and its centre is kept.
        cache: folder that keeps the decoded pixels, as private as the pictures themselves; None keeps nothing. The
            pixels are then mapped from the file instead of held in memory.

    Returns:
        The parts that the source declares: "all", or "train" and perhaps "val" and "test". Pictures are sorted by
        name, those of CIFAR are in the order of its files.

    Raises:
        LoricaError: no such source, a layout that cannot be read, fewer than two classes, a class with fewer than two
            training pictures, classes of val or test that training lacks, or pictures that cannot be decoded: all of
            them in one error, the first ten by name.
    """
    parts, classes = _listing(Path(source))
    _check_classes(source, parts, classes)
    samples = [sample for part in parts.values() for sample in part]
    hashes, stack = decoded(source, samples, size, cache)
    pixels = torch.from_numpy(stack)
    place = {name: index for index, name in enumerate(classes)}
    labels = torch.tensor([place[sample.label] for sample in samples])
    sets, start = {}, 0
    for part, members in parts.items():
        rows = slice(start, start := start + len(members))
        names = tuple(sample.name for sample in members)
        sets[part] = LabelledSet(pixels[rows], labels[rows], classes, names, tuple(hashes[rows]))
    return sets


def _listing(source: Path) -> tuple[Parts, tuple[str, ...]]:
    if not source.exists():
        raise LoricaError(f"labelled pictures not found: {source}", "Check the path.")
    if source.is_file() and source.suffix.lower() not in _TABLES:
        raise LoricaError(
            f"{source} is not a source of labelled pictures",
            f"Give a folder of class folders, a table ({' '.join(_TABLES)}) or a CIFAR folder. Unpack archives first.",
        )
    cifar = read_cifar(source) if source.is_dir() else None
    if cifar is not None:
        return cifar
    found = from_folder(source) if source.is_dir() else from_table(source)
    parts: Parts = {part: found[part] for part in ("all", "train", "val", "test") if part in found}
    return parts, tuple(sorted({sample.label for sample in _training(parts)}))


def _training(parts: Parts) -> list[Sample]:
    return parts["train"] if "train" in parts else parts["all"]


def _check_classes(source: Path, parts: Parts, classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        problem = f"{source} has only one class for training: {shown_name(classes[0]) if classes else 'none'}"
        raise LoricaError(problem, "A classifier needs two or more. Is it the folder above the class folders?")
    counts = Counter(sample.label for sample in _training(parts))
    small = [f"{shown_name(name)}: {counts[name]}" for name in classes if counts[name] < 2]
    if small:
        raise LoricaError(
            f"classes of {source} with fewer than two training pictures:\n{listed(small)}",
            "One to train on and one to validate with is the least. Add pictures or leave the class out.",
        )
    for part in ("val", "test"):
        strange = sorted({sample.label for sample in parts.get(part, [])} - set(classes))
        if strange:
            names = listed([shown_name(name) for name in strange])
            raise LoricaError(
                f"classes in {part} of {source} that training does not have:\n{names}",
                "Are they spelled differently? Otherwise add them to the training set or remove them.",
            )


def decoded(
    source: Path, samples: list[Sample], size: tuple[int, int], cache: Path | None
) -> tuple[list[str], Pixels]:
    """Hashes and pixels (N, 3, H, W) of all samples, in order; from the cache where they are in it.

    Raises:
        LoricaError: pictures that cannot be decoded, all of them in one error.
    """
    hashes = list(_each(_hashed, samples, "hashing pictures"))
    problems = {s.name: h.problem for s, h in zip(samples, hashes, strict=True) if isinstance(h, LoricaError)}
    sound = [sample for sample in samples if sample.name not in problems]
    sums = [value for value in hashes if isinstance(value, str)]
    shape = (len(samples), 3, *size)

    def pictures() -> Iterator[Pixels]:
        for sample, picture in zip(sound, _each(lambda s: _fitted(s, size), sound, "decoding pictures"), strict=True):
            if isinstance(picture, LoricaError):
                problems[sample.name] = picture.problem
            else:
                yield picture
        if problems:
            lines = [
                f"{shown_name(sample.name)}: {problems[sample.name]}" for sample in samples if sample.name in problems
            ]
            raise LoricaError(
                f"{source} cannot be used as it is:\n{listed(lines)}",
                "Repair or remove these files. Nothing was started.",
            )

    if cache is None:
        stack = np.empty(shape, np.uint8)
        for row, picture in enumerate(pictures()):
            stack[row] = picture
        return sums, stack
    key = [_DECODING, PIL.__version__, *size, [[s.name, h] for s, h in zip(sound, sums, strict=True)]]
    file = cache / "pixels" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.npy"
    stored = None if problems else _mapped(file, shape)
    if stored is None:
        _write_array(file, shape, pictures())
        stored = _mapped(file, shape)
    if stored is None:
        raise LoricaError(f"{file} cannot be read back", "Give another folder for the cache.")
    return sums, stored


def _hashed(sample: Sample) -> str:
    try:
        sample.name.encode()
    except UnicodeEncodeError as error:
        raise LoricaError("the file name is not valid UTF-8") from error
    if isinstance(sample.content, Path):
        with sample.content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(sample.content.tobytes()).hexdigest()


def _fitted(sample: Sample, size: tuple[int, int]) -> Pixels:
    height, width = size
    if not isinstance(sample.content, Path):
        if sample.content.shape[1:] == size:
            return sample.content
        image = Image.fromarray(np.ascontiguousarray(sample.content.transpose(1, 2, 0)))
    else:
        image = load_rgb(sample.content)
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise LoricaError(f"too many pixels (the limit is {Image.MAX_IMAGE_PIXELS:,})")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)


def _each(work: Callable[[Sample], T], samples: list[Sample], what: str) -> Iterator[T | LoricaError]:
    """The results in order, computed by as many threads as there are processors; failures among them."""

    def attempt(task: list[Sample]) -> list[T | LoricaError]:
        results: list[T | LoricaError] = []
        for sample in task:
            try:
                results.append(work(sample))
            except LoricaError as error:
                results.append(error)
            except OSError as error:
                results.append(LoricaError(error.strerror or str(error)))
        return results

    tasks = [samples[start : start + _TASK] for start in range(0, len(samples), _TASK)]
    rounds = [tasks[start : start + _TASKS_AHEAD] for start in range(0, len(tasks), _TASKS_AHEAD)]
    # `load_rgb` sets and restores the process's warning filters. Threads may restore each other's: let all be alike.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        results = (result for some in rounds for done in pool.map(attempt, some) for result in done)
        yield from track(results, what, len(samples))


def _write_array(file: Path, shape: tuple[int, ...], rows: Iterable[Pixels]) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for row in rows:
            out.write(row.tobytes())


def _mapped(file: Path, shape: tuple[int, ...]) -> Pixels | None:
    """A stored array, mapped copy-on-write; None where it is absent or damaged, and so has to be decoded again."""
    try:
        array = np.lib.format.open_memmap(file, mode="c")
    except Exception:  # on damaged bytes the parser of the header may raise anything
        return None
    sound = array.dtype == np.uint8 and array.shape == shape and array.flags.c_contiguous
    return array if sound else None
