"""What is written to disk: atomically, refused where it would overwrite, and stamped with its provenance."""

import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

import lorica
from lorica.errors import LoricaError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RUN_FILE, CONFIG_FILE, SPLIT_FILE = "run.json", "config.yaml", "split.json"
"""What an adapt run leaves beside its weights, and an audit looks for: its record, its settings, who was a member."""
SHADOWS = "shadows"
"""The folder in a run's own that holds its shadows."""
EVALUATION = "evaluation"
"""The folder in a fine-tuning run's own that says how robust its model is."""

THUMBNAILS, THUMBNAIL = "exposed", "member_"
"""Folder in an audit's output with small copies of exposed members, and what their names begin with."""

_STAMPED = (
    "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "torchmetrics", "timm", "torchvision",
    "pyautoattack",
)  # fmt: skip


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary file beside `target`; move it into place when the block ends well, remove it when not.

    Raises:
        LoricaError: the folder cannot be written or the disk is full. `target` is then as it was before.
    """
    temporary = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)  # with the permissions that the user's umask gives, unlike tempfile
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, which nobody else may read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except Exception as error:
        if not _is_write_failure(error):
            raise
        raise LoricaError(
            f"cannot write {target}: {getattr(error, 'strerror', None) or error}",
            "Check the permissions and the free space, or choose another --output. Nothing earlier was touched.",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_write_failure(error: Exception) -> bool:
    """Also in the words of the libraries that write through `atomic_path`: on a full disk torch.save raises a
    RuntimeError of its archive writer, safetensors an error of its own."""
    return isinstance(error, OSError | SafetensorError) or (
        isinstance(error, RuntimeError) and ("inline_container" in str(error) or "PytorchStreamWriter" in str(error))
    )


def write_bytes(target: Path, content: bytes) -> None:
    """Write atomically.

    Raises:
        LoricaError: as `atomic_path`; likewise for all that follow.
    """
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 atomically. File names that are not UTF-8 may be in it: what cannot be encoded is escaped."""
    write_bytes(target, text.encode("utf-8", "backslashreplace"))


def write_json(target: Path, value: Any) -> None:
    """Write JSON atomically.

    Raises:
        ValueError: NaN or infinity in it, on which no two readers agree.
    """
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_with(target: Path, save: Callable[[Path], object]) -> None:
    """Write atomically through a library's own `save(path)`."""
    with atomic_path(target) as temporary:
        save(temporary)


def read_json(path: Path, what: str) -> Any:
    """Read JSON that may come from anyone.

    Args:
        path: the file.
        what: it is meant to be, for the error message.

    Raises:
        LoricaError: the file is absent or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoricaError(f"{what} not found: {path}", "Check the path.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise LoricaError(f"{what} cannot be read: {path}: {error}", "Is it the right file?") from error


def prepare_output(folder: Path, *, marker: str, resume: bool, overwrite: bool = False) -> None:
    """Refuse an output folder that holds an earlier result, and prove that it can be written before work starts.

    Args:
        folder: the output folder; not yet made when absent, so that work refused later leaves nothing behind.
        marker: name of the file whose presence means "there is a result here".
        resume: an earlier result is welcome.
        overwrite: the user said so.

    Raises:
        LoricaError: it is a file, it holds a result, or it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise LoricaError(f"--output {folder} is a file", "Give a folder.")
    if (folder / marker).exists() and not (resume or overwrite):
        raise LoricaError(
            f"--output {folder} already holds a result ({marker})",
            "Give another folder, --resume to go on with it, or --overwrite to replace it.",
        )
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    write_bytes(folder / ".writable", b"")
    (folder / ".writable").unlink()
    with suppress(OSError):  # another process may already have put something there
        for place in absent:
            place.rmdir()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Let one process at a time work in `folder`, which is made where it is absent.

    The lock is on the folder itself: it leaves no file behind and ends with the process, however that ends. Where
    there are no such locks (Windows, some network file systems) nothing is refused.

    Raises:
        LoricaError: another process is at work there.
    """
    with suppress(OSError):  # the first file that is written says it better
        folder.mkdir(parents=True, exist_ok=True)
    handle = _lockable(folder)
    try:
        if handle is not None:
            _lock(handle, folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lockable(folder: Path) -> int | None:
    if fcntl is None:
        return None
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:
        return None


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LoricaError(
            f"another process is at work in {folder}", "Wait until it ends, or choose another --output."
        ) from error
    except OSError:
        return  # a file system without locks


def hardware() -> dict[str, Any]:
    """What the result was computed on."""
    import torch  # here, as `lorica --help` comes by

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(0) if cuda else "CPU",
        "devices": torch.cuda.device_count() if cuda else 0,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Lorica, Python and the libraries that numbers depend on."""
    found = {"lorica": lorica.__version__, "python": platform.python_version()}
    for name in _STAMPED:
        with suppress(importlib.metadata.PackageNotFoundError):  # some come with extras
            found[name] = importlib.metadata.version(name)
    return found


def provenance(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The stamp saved with every result: resolved configuration, versions, seed, hardware."""
    return {"config": config, "seed": seed, "versions": versions(), "hardware": hardware()}
