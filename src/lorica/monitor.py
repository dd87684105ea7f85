"""What a run shows and writes while it trains: JSONL and TensorBoard logs, a live line of numbers, sample pictures."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from PIL import Image

from lorica.artefacts import write_text, write_with
from lorica.errors import LoricaError
from lorica.progress import bar
from lorica.sheet import grid as contact_sheet

METRICS_FILE = "metrics.jsonl"


class Monitor:
    """Logs of one run; use as a context manager, in the main process only.

    Args:
        folder: of the run.
        steps: in all.
        start: completed steps of an earlier part of the run. What was logged after it is dropped, as it comes again.
        doing: the work's name, beside the bar.
        live: {scalar: format} of the numbers beside the bar. Short enough to leave room for bar, steps and remaining
            time on a terminal of 80 columns.
    """

    def __init__(self, folder: Path, steps: int, start: int, *, doing: str, live: Mapping[str, str]) -> None:
        # Imported late: the import takes a second, which `lorica --help` should not pay.
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self._live = folder, live
        self._latest: dict[str, float] = {}
        self._progress = bar(columns=("numbers",))
        self._doing = doing
        self._task = self._progress.add_task(doing, total=steps, completed=start, numbers="")
        self._clock, self._clock_step = time.perf_counter(), start
        kept = [row for row in read_metrics(folder) if start and row["step"] <= start]
        write_text(folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else 0)

    def __enter__(self) -> "Monitor":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        with suppress(OSError):  # each row is flushed when it is logged, which has said so if the disk is full
            self._file.close()
        with suppress(OSError):
            self._board.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave what happens inside out of the step time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._clock += time.perf_counter() - start

    def lap(self, step: int) -> float:
        """Seconds per step since the last lap, after `step` completed steps whose numbers have been read."""
        now = time.perf_counter()
        seconds = (now - self._clock) / max(1, step - self._clock_step)
        self._clock, self._clock_step = now, step
        return seconds

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write and show the scalars after `step` completed steps; one call for each step that is logged."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        with self._explained():
            self._file.write(json.dumps({"step": step} | values) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._show(step, values)

    def advance(self, step: int) -> None:
        """Show that this many steps are done."""
        self._progress.update(self._task, completed=step)

    @contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """Say beside the bar, which stands still meanwhile, what else is being done."""
        self._progress.update(self._task, description=doing)
        try:
            yield
        finally:
            self._progress.update(self._task, description=self._doing)

    def samples(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Write a grid of pictures to samples/step_NNNNNN.png and to TensorBoard."""
        grid = contact_sheet(pictures)
        pixels = torch.frombuffer(bytearray(grid.tobytes()), dtype=torch.uint8).view(grid.height, grid.width, 3)
        with self._explained():
            write_with(self.folder / "samples" / f"step_{step:06d}.png", lambda path: grid.save(path, format="PNG"))
            self._board.add_image("samples", pixels, step, dataformats="HWC")

    def _show(self, step: int, values: dict[str, float]) -> None:
        self._latest |= values
        latest = self._latest
        numbers = " ".join(shown.format(latest[name]) for name, shown in self._live.items() if name in latest)
        self._progress.update(self._task, completed=step, numbers=numbers)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LoricaError(
                f"cannot write the logs in {self.folder}: {error.strerror or error}",
                "Check the free space. The last checkpoint is whole: go on from it with --resume.",
            ) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a torn last line is left out."""
    file = folder / METRICS_FILE
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
