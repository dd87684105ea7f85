"""What is written to disk: atomically, refused where it would overwrite, and stamped with its provenance."""

import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import lorica
from lorica.errors import LoricaError

_STAMPED = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "torchmetrics")


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary file beside `target`; move it into place when the block ends well, remove it when not.

    Raises:
        LoricaError: the folder cannot be written or the disk is full. `target` is then as it was before.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise LoricaError(
            f"cannot write {target}: {error.strerror or error}",
            "Check the permissions and the free space, or choose another --output. Nothing earlier was touched.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused: no reader agrees on them."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_with(target: Path, save: Callable[[Path], object]) -> None:
    """Write atomically through a library's own `save(path)`."""
    with atomic_path(target) as temporary:
        save(temporary)


def read_json(path: Path, what: str) -> Any:
    """Raises: LoricaError when the file is absent or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoricaError(f"{what} not found: {path}", "Check the path.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LoricaError(f"{what} cannot be read: {path}: {error}", "Is it the right file?") from error


def prepare_output(folder: Path, *, marker: str, resume: bool, overwrite: bool = False) -> None:
    """Refuse an output folder that holds an earlier result, and prove that it can be written before work starts.

    Args:
        folder: the output folder; made when absent.
        marker: name of the file whose presence means "there is a result here".
        resume: an earlier result is welcome.
        overwrite: the user said so.
    """
    if folder.exists() and not folder.is_dir():
        raise LoricaError(f"--output {folder} is a file", "Give a folder.")
    if (folder / marker).exists() and not (resume or overwrite):
        raise LoricaError(
            f"--output {folder} already holds a result ({marker})",
            "Give another folder, --resume to go on with it, or --overwrite to replace it.",
        )
    with atomic_path(folder / ".writable") as probe:
        probe.write_bytes(b"")
    (folder / ".writable").unlink()


def hardware() -> dict[str, Any]:
    """What the result was computed on."""
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
    found = {"lorica": lorica.__version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _STAMPED}


def provenance(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The stamp saved with every result: resolved configuration, versions, seed, hardware."""
    return {"config": config, "seed": seed, "versions": versions(), "hardware": hardware()}
