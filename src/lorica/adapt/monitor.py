"""What a run shows and writes while it trains: JSONL and TensorBoard logs, validation losses, sample pictures."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from lorica.artefacts import write_text, write_with
from lorica.diffusion import Encoded, LatentDiffusion, keyed_noise
from lorica.diffusion.sheet import grid as contact_sheet
from lorica.progress import bar

METRICS_FILE = "metrics.jsonl"
# Few fixed noise levels: the validation loss compares steps and groups, it does not estimate an integral.
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7)


def validation_loss(model: LatentDiffusion, encoded: Encoded, seed: int, batch_size: int = 64) -> float:
    """Deterministic adaptation loss: fixed timesteps, and noise fixed per picture.

    The same pictures give the same number at every step and in every run of the same seed, so that the difference
    between two groups or two steps is not noise.
    """
    rows = [(i, level) for i in range(len(encoded)) for level in range(len(VALIDATION_LEVELS))]
    noises = [keyed_noise(encoded.ids, "validation", level, model.latent_shape, seed) for level in range(len(VALIDATION_LEVELS))]
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            index = [i for i, _ in chunk]
            t = torch.tensor([int(VALIDATION_LEVELS[level] * model.train_timesteps) for _, level in chunk])
            noise = torch.stack([noises[level][i] for i, level in chunk])
            maps = model.error_map(
                encoded.latents[index].to(model.device), t.to(model.device), noise.to(model.device),
                encoded.contexts[index].to(model.device),
            )  # fmt: skip
            total += maps.flatten(1).mean(1).sum().item()
    return total / len(rows)


class Monitor:
    """Logs of one run; use as a context manager.

    Args:
        folder: of the run.
        steps: in all.
        start: completed steps of an earlier part of the run; later log lines of it are dropped.
        main: whether this process writes.
    """

    def __init__(self, folder: Path, steps: int, start: int, *, main: bool) -> None:
        self.folder, self.steps, self.main = folder, steps, main
        self._progress = bar(columns=("numbers",))
        self._task = self._progress.add_task("adapting", total=steps, completed=start, numbers="", visible=main)
        self._gap = ""
        self._clock, self._clock_step = time.perf_counter(), start
        if main:
            self._drop_lines_after(start)
            self._file = (folder / METRICS_FILE).open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> "Monitor":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        if self.main:
            self._file.close()
            self._board.close()

    def restart_clock(self, step: int) -> None:
        """Leave validation and sampling out of the step time."""
        self._clock, self._clock_step = time.perf_counter(), step

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log scalars after `step` completed steps, with the mean step time since the last call."""
        seconds = (time.perf_counter() - self._clock) / max(1, step - self._clock_step)
        self.restart_clock(step)
        self._write(step, values | {"step_seconds": seconds})
        gain = f" G {values['gain']:+.3f}" if "gain" in values else ""
        numbers = f"loss {values['adaptation_loss']:.4f}{gain} {1e3 * seconds:.0f} ms/step{self._gap}"
        self._progress.update(self._task, completed=step, numbers=numbers)

    def validated(self, step: int, member: float, nonmember: float) -> None:
        """Log the validation losses; their gap is shown live."""
        self._gap = f" val {member:.4f}/{nonmember:.4f} gap {nonmember - member:+.4f}"
        self._write(step, {"val_member": member, "val_nonmember": nonmember, "val_gap": nonmember - member})

    def samples(self, step: int, model: LatentDiffusion, captions: list[str], seed: int) -> None:
        """Draw the sample grid to samples/step_NNNNNN.png."""
        pictures = model.sample(captions, seed=seed, progress=False)
        grid = contact_sheet(pictures)
        if self.main:
            write_with(self.folder / "samples" / f"step_{step:06d}.png", lambda path: grid.save(path, format="PNG"))
            pixels = torch.frombuffer(bytearray(grid.tobytes()), dtype=torch.uint8).view(grid.height, grid.width, 3)
            self._board.add_image("samples", pixels, step, dataformats="HWC")

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self.main:
            self._file.write(json.dumps({"step": step} | values) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _drop_lines_after(self, step: int) -> None:
        """Of a run that was killed: lines after its checkpoint will be written again, the last may be torn."""
        write_text(self.folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in read_metrics(self.folder) if row["step"] <= step))


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
