"""What a source of labelled pictures names, before any picture is decoded: class folders, a CSV or a Parquet table."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorica.data.pictures import SUFFIXES, listed, relative_name, shown_name, visible_files
from lorica.errors import LoricaError

_SPELLINGS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_PART_OF = {spelling: part for part, spellings in _SPELLINGS.items() for spelling in spellings}
_LAYOUT = (
    "Put each class into a folder of its own: SOURCE/cat/1.jpg, SOURCE/dog/2.jpg; or, divided already, "
    "SOURCE/train/cat/1.jpg and SOURCE/test/cat/2.jpg. Or give a CSV file with the columns path,label."
)
_TABLE = (
    "Each row needs a path inside the table's folder and a label; a split, if there is one, is train, val or test."
)


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled picture, not yet decoded."""

    name: str
    """Path relative to the source, POSIX; unique in the source."""
    label: str
    """Name of its class."""
    content: Path | npt.NDArray[np.uint8]
    """The file, or pixels (3, H, W) of a source that stores them raw."""


Parts = dict[str, list[Sample]]
"""The pictures of "all", or of "train" and perhaps "val" and "test", sorted by name."""


def from_folder(root: Path) -> Parts:
    """The pictures of a folder of class folders, or of its `train`, `val` and `test` folders of class folders.

    A class folder is read with its sub-folders. Hidden files, and files that are no pictures, are ignored. Parts may
    also be called `training`, `valid`, `validation` and `testing`, in capitals too.

    Raises:
        LoricaError: no pictures, pictures outside a class folder, empty class folders, or no telling whether the
            folders are classes or parts.
    """
    files = sorted(f.relative_to(root).as_posix() for f in visible_files(root) if f.suffix.lower() in SUFFIXES)
    if not files:
        raise LoricaError(f"no pictures in {root}", f"{_LAYOUT} Pictures end in {' '.join(SUFFIXES)}.")
    divided = _is_divided(root, files)
    depth = 2 if divided else 1
    loose = [shown_name(name) for name in files if name.count("/") < depth]
    if loose:
        raise LoricaError(f"pictures without a class folder in {root}:\n{listed(loose)}", _LAYOUT)
    parts: Parts = {}
    for name in files:
        above = name.split("/")
        part = _PART_OF[above[0].lower()] if divided else "all"
        parts.setdefault(part, []).append(Sample(name, above[depth - 1], root / name))
    _refuse_empty_folders(root, files, depth)
    return parts


def _is_divided(root: Path, files: list[str]) -> bool:
    folders = _folders(root)
    parts = [_PART_OF[name.lower()] for name in folders if name.lower() in _PART_OF]
    others = [name for name in folders if name.lower() not in _PART_OF]
    if "train" not in parts:
        if parts and not others:
            raise LoricaError(f"{root} holds {_and(folders)}, but no folder train", _LAYOUT)
        return False
    if others and any(_PART_OF.get(name.split("/")[0].lower()) == "train" and name.count("/") == 1 for name in files):
        return False  # pictures of trains, say
    if others:
        raise LoricaError(
            f"{root} holds a training part, but also {_and(others)}, which is no part",
            "Keep only train, val and test there, or only class folders.",
        )
    if len(parts) > len(set(parts)):
        raise LoricaError(f"{root} holds the same part twice: {_and(folders)}", "Keep one folder for each part.")
    return True


def divided_folder(root: Path, files: list[str]) -> str | None:
    """Name of the folder of training pictures, if a folder is divided into train, val and test.

    Args:
        root: the folder.
        files: pictures in it, relative to it, POSIX.

    Raises:
        LoricaError: there is no telling whether it is divided.
    """
    if not _is_divided(root, files):
        return None
    return next(name for name in _folders(root) if _PART_OF.get(name.lower()) == "train")


def _refuse_empty_folders(root: Path, files: list[str], depth: int) -> None:
    """An empty folder is a class that nobody can learn, a copy that failed, or a link to another part."""
    filled = {"/".join(name.split("/")[:count]) for name in files for count in range(1, depth + 1)}
    folders = _folders(root)
    if depth == 2:
        train = next(name for name in folders if _PART_OF[name.lower()] == "train")
        folders += [f"{train}/{name}" for name in _folders(root / train)]
    empty = [shown_name(name) for name in folders if name not in filled]
    if empty:
        raise LoricaError(
            f"folders without pictures of their own in {root}:\n{listed(empty)}",
            "Fill them or remove them. (A link to a folder that is read already counts as empty.)",
        )


def _folders(root: Path) -> list[str]:
    return sorted(place.name for place in root.iterdir() if place.is_dir() and not place.name.startswith("."))


def _and(names: list[str]) -> str:
    shown = [shown_name(name) for name in names[:5]] + [f"{len(names) - 5} more"] * (len(names) > 5)
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def from_table(table: Path) -> Parts:
    """The pictures of a CSV (UTF-8, commas) or Parquet table with the columns path, label and, perhaps, split.

    Args:
        table: the file; paths are relative to its folder.

    Raises:
        LoricaError: not such a table, columns are missing, or rows that cannot be used: an empty label, a path that
            is empty, absolute, climbs out of the folder or is named twice, an unknown split. All in one error.
    """
    is_parquet = table.suffix.lower() in (".parquet", ".pq")
    problems: list[str] = []
    first: dict[str, str] = {}
    parts: Parts = {}
    for where, row in _parquet_rows(table) if is_parquet else _csv_rows(table):
        try:
            name, label, part = _checked(row)
            if name in first:
                raise ValueError(f"{name!r} was named before, in {first[name]}")
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        first[name] = where
        parts.setdefault(part, []).append(Sample(name, label, table.parent / name))
    if problems:
        raise LoricaError(f"{table} cannot be used as it is:\n{listed(problems)}", f"{_TABLE} Nothing was started.")
    if not parts:
        raise LoricaError(f"{table} has no rows", _TABLE)
    if not parts.keys() & {"train", "all"}:
        raise LoricaError(
            f"{table} has no row whose split is train", "Mark the training pictures, or drop the column."
        )
    return {part: sorted(samples, key=lambda sample: sample.name) for part, samples in parts.items()}


def _checked(row: dict[str, Any]) -> tuple[str, str, str]:
    """(path, label, part) of a row.

    Raises:
        ValueError: it cannot be used.
    """
    if None in row:  # where csv.DictReader puts what is left over
        raise ValueError("more fields than columns; a path or label with a comma needs quotes")
    name, label = relative_name(_text(row, "path")), _text(row, "label")
    if not label:
        raise ValueError(f"the label of {name!r} is empty")
    if "split" not in row:
        return name, label, "all"
    split = _text(row, "split")
    if split.lower() not in _PART_OF:
        raise ValueError(f"the split of {name!r} is {split!r}, not train, val or test")
    return name, label, _PART_OF[split.lower()]


def _text(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if value is not None and not isinstance(value, str | int):
        raise ValueError(f"the {column} is neither text nor a whole number but {type(value).__name__}")
    return "" if value is None else str(value).strip()


def _csv_rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            _check_columns(table, list(reader.fieldnames))
            for row in reader:
                yield f"line {reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LoricaError(
            f"{table} cannot be read as CSV: {error}", "Save it as CSV in UTF-8, with commas."
        ) from error


def _parquet_rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        remedy = "pip install pyarrow, or save the table as CSV."
        raise LoricaError(f"reading {table} needs pyarrow, which is not installed", remedy) from error
    try:
        with parquet.ParquetFile(table) as file:
            columns = list(file.schema_arrow.names)
            _check_columns(table, columns)
            wanted = [name for name in ("path", "label", "split") if name in columns]
            rows = file.read(columns=wanted).to_pylist()
    except LoricaError:
        raise
    except Exception as error:  # on hostile bytes a decoder may raise anything
        raise LoricaError(f"{table} cannot be read as Parquet: {error}", "Is it the right file?") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _check_columns(table: Path, columns: list[str]) -> None:
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        found = ", ".join(repr(name) for name in columns[:20]) or "none"
        raise LoricaError(
            f"{table} has no column {' and no column '.join(missing)}; its columns are {found}",
            "The first line names the columns: path,label and, perhaps, split, with commas between them.",
        )
