"""Captioned picture folders: found, checked in full before anything starts, and turned into pixels.

Two layouts are read: pictures with a text file of the same name beside each (`fox.png`, `fox.txt`), sub-folders
included; and an imagefolder, whose `metadata.jsonl` holds `{"file_name": ..., "text" or "caption": ...}` per line.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from lorica.errors import LoricaError
from lorica.progress import track

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# The decoders that may see a file, whatever its suffix claims; some of Pillow's others start foreign programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_METADATA = "metadata.jsonl"
_LISTED = 10  # offending files named in one error


@dataclass(frozen=True)
class Picture:
    """One picture file with its caption. Nothing is decoded until `load_rgb`."""

    file: Path
    """Absolute path of the source file."""
    name: str
    """Path relative to the root folder, POSIX."""
    sha256: str
    """Of the file's bytes."""
    caption: str

    @property
    def id(self) -> str:
        """Key for noise, caches and features: it follows the content, not the name or the place."""
        return self.sha256[:16]


def read_folder(root: Path, *, captions_required: bool = True) -> list[Picture]:
    """Read every captioned picture under a folder; hidden files are ignored.

    Every file is hashed and decoded once, so that a damaged one is met here and not in the middle of a run.

    Args:
        root: the folder; a `metadata.jsonl` directly inside holds the captions, otherwise text files do.
        captions_required: refuse pictures without a caption; otherwise their caption is "".

    Returns:
        The pictures, sorted by name.

    Raises:
        LoricaError: no such folder, no pictures, or files that cannot be used (damaged, oversized, no caption, empty
            caption): all of them in one error, the first ten by name.
    """
    root = _folder(root)
    names = {file.relative_to(root).as_posix() for file in visible_files(root) if file.suffix.lower() in SUFFIXES}
    return _read(root, names, captions_required=captions_required, metadata_too=True)


def read_pictures(root: Path, names: Iterable[str], *, captions_required: bool = True) -> list[Picture]:
    """Read the named pictures of a folder, whatever else it holds; otherwise as `read_folder`."""
    return _read(_folder(root), set(names), captions_required=captions_required, metadata_too=False)


def _folder(root: Path) -> Path:
    root = Path(root)
    if not root.exists():
        raise LoricaError(f"picture folder not found: {root}", "Check the path.")
    if not root.is_dir():
        raise LoricaError(f"{root} is a file, not a folder of pictures", "Give the folder that holds it.")
    return root.resolve()


def _read(root: Path, names: set[str], *, captions_required: bool, metadata_too: bool) -> list[Picture]:
    problems: list[str] = []
    if (root / _METADATA).is_file():
        captions = _from_metadata(root, problems)
        names = names | set(captions) if metadata_too else names
    else:
        captions = _from_text_files(root, names, problems)
    if not names and not problems:
        raise LoricaError(
            f"no pictures in {root}",
            f"Put pictures ({' '.join(SUFFIXES)}) there, each with a .txt caption of the same name, or a {_METADATA}.",
        )
    pictures = []
    for name in track(sorted(names), "checking pictures", len(names)):
        faults = []
        try:
            name.encode()
            content = (root / name).read_bytes()
            load_rgb(root / name)
        except UnicodeEncodeError:
            faults.append("the file name is not valid UTF-8")
        except LoricaError as error:
            faults.append(error.problem)
        except OSError as error:
            faults.append(error.strerror or str(error))
        caption = captions.get(name)
        if captions_required and not caption:
            faults.append("no caption" if caption is None else "the caption is empty")
        if faults:
            problems.append(f"{shown_name(name)}: {'; '.join(faults)}")
        else:
            pictures.append(Picture(root / name, name, hashlib.sha256(content).hexdigest(), caption or ""))
    if problems:
        raise LoricaError(
            f"{root} cannot be used as it is:\n{listed(problems)}",
            "Repair or remove these files, and give every picture a caption: a .txt file of the same name, or a line "
            f"in {_METADATA}. Nothing was started.",
        )
    return pictures


def listed(problems: list[str]) -> str:
    """The first problems, one per line, and how many more there are."""
    rest = len(problems) - _LISTED
    return "\n".join(f"  {problem}" for problem in problems[:_LISTED]) + (f"\n  and {rest} more" if rest > 0 else "")


def load_rgb(file: Path) -> Image.Image:
    """Decode a picture to 8-bit RGB, upright as EXIF says, transparency over white, the first frame of an animation.

    16-bit greyscale is scaled to 8 bits (Pillow alone would clip it). Colour profiles are ignored.

    Raises:
        LoricaError: the file cannot be decoded completely, has 32-bit pixels, whose range no header tells, or has more
            pixels than Pillow's limit against decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata does not matter
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image), image.format)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LoricaError(f"too many pixels (the limit is {Image.MAX_IMAGE_PIXELS:,})", "Scale it down.") from error
    except FileNotFoundError as error:
        raise LoricaError(f"no such picture: {file}", "Was it moved after the folder was read?") from error
    except UnidentifiedImageError as error:
        raise LoricaError("is not a picture that can be read", "Repair or remove it.") from error
    except Exception as error:  # on hostile bytes a decoder may raise anything
        raise LoricaError(f"cannot be decoded ({error})", "Repair or remove it.") from error


def fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (Lanczos), then crop the centre to `size` x `size`."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def pixels(pictures: list[Picture], size: int) -> torch.Tensor:
    """Pictures as a float32 tensor (N, 3, size, size) in [-1, 1], resized and centre-cropped by `fit`."""
    stack = torch.empty(len(pictures), 3, size, size)
    for index, picture in enumerate(pictures):
        levels = np.array(fit(load_rgb(picture.file), size), dtype=np.float32)
        stack[index] = torch.from_numpy(levels).permute(2, 0, 1) / 127.5 - 1
    return stack


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        levels = np.asarray(image).astype(np.float32) / 257  # 65535 -> 255
        image = Image.fromarray(levels.round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels, whose range is ambiguous; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def visible_files(root: Path) -> Iterator[Path]:
    seen: set[str] = set()  # links to folders are followed, loops are not
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _from_text_files(root: Path, names: set[str], problems: list[str]) -> dict[str, str]:
    captions = {}
    for name in sorted(names):
        file = (root / name).with_suffix(".txt")
        if not file.is_file():
            continue
        try:
            captions[name] = _clean(file.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{shown_name(file.relative_to(root).as_posix())}: not readable as UTF-8 text ({error})")
            captions[name] = "(unreadable)"  # named already: do not call it empty as well
    return captions


def _from_metadata(root: Path, problems: list[str]) -> dict[str, str]:
    captions: dict[str, str] = {}
    try:
        lines = (root / _METADATA).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LoricaError(f"{root / _METADATA} is not readable as UTF-8 text: {error}", "Save it as UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            name, caption = _metadata_row(line)
            if name in captions:
                raise ValueError(f"{name!r} is named twice")
            captions[name] = caption
        except ValueError as error:
            problems.append(f"{_METADATA} line {number}: {error}")
    return captions


def _metadata_row(line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError('no "file_name"')
    caption = row.get("text") or row.get("caption") or ""
    if not isinstance(caption, str):
        raise ValueError(f"the caption of {row['file_name']!r} is not text")
    if any("\ud800" <= letter <= "\udfff" for letter in caption):  # JSON can escape halves of characters
        raise ValueError(f"the caption of {row['file_name']!r} is not valid Unicode")
    return relative_name(row["file_name"]), _clean(caption)


def relative_name(name: str) -> str:
    """Normalise a relative path that came from a file, hence from anyone.

    Raises:
        ValueError: it is empty, absolute or climbs out of its folder, on this system or on another.
    """
    windows = PureWindowsPath(name)
    if not PurePosixPath(name).parts or windows.anchor or ".." in windows.parts or "\0" in name:
        raise ValueError(f"{name!r} is not a path inside the folder")
    return PurePosixPath(name).as_posix()


def shown_name(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _clean(caption: str) -> str:
    return " ".join(caption.split())
