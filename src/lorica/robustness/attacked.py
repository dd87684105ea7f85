"""Attacks on many pictures: batch by batch, each kept as soon as it is done, all passes counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lorica.artefacts import write_with
from lorica.robustness.pgd import crafting

Advance = Callable[[int, int], None]
"""Told after every batch how many pictures of an attack are done, and of how many."""


class Counted:
    """A model that counts the pictures that pass through it: each once per forward, and once per backward, pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forwards = self.backwards = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels)
        self.forwards += len(pixels)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @contextmanager
    def attacked(self) -> Iterator[None]:
        """For attacks: weights frozen, eval mode, and the caller's random state left as it was."""
        devices = [self.device] if self.device.type == "cuda" else []
        with crafting(self.model), torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield


@dataclass(frozen=True, eq=False)
class AttackedBatch:
    """What an attack did to a batch of pictures.

    Attributes:
        rows: (M,) int64, which pictures of the set.
        broken: (M,) bool, whether the model was fooled.
        adversarial: (K, 3, H, W) float32 on the CPU, the pictures that fooled it, in the order of `rows`.
        forwards: pictures passed through the model.
        backwards: likewise for gradients.
        seconds: that it took.
    """

    rows: Tensor
    broken: Tensor
    adversarial: Tensor
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0


class Kept:
    """Attacked batches by attack and number: in memory, or as files of a folder, where a killed run finds them again.

    Args:
        folder: for one model, one set of pictures, one threat, one seed and one batch size: whoever names it sees to
            that. None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._held: dict[tuple[str, int], AttackedBatch] = {}

    def put(self, attack: str, number: int, batch: AttackedBatch) -> None:
        """Keep a batch.

        Raises:
            LoricaError: the folder cannot be written.
        """
        if self.folder is None:
            self._held[attack, number] = batch
            return
        cost = torch.tensor([batch.forwards, batch.backwards, batch.seconds], dtype=torch.float64)
        tensors = {"rows": batch.rows, "broken": batch.broken, "adversarial": batch.adversarial, "cost": cost}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_with(self._file(attack, number), lambda path: save_file(contiguous, path))

    def get(self, attack: str, number: int, rows: Tensor | None = None) -> AttackedBatch | None:
        """A batch; None where there is none of these rows, or a file was damaged."""
        batch = self._held.get((attack, number)) if self.folder is None else self._read(attack, number)
        return None if batch is None or (rows is not None and not torch.equal(batch.rows, rows)) else batch

    def batches(self, attack: str) -> Iterator[AttackedBatch]:
        """All batches of an attack, read one by one."""
        number = 0
        while (batch := self.get(attack, number)) is not None:
            yield batch
            number += 1

    def _file(self, attack: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{attack}-{number:05d}.safetensors"

    def _read(self, attack: str, number: int) -> AttackedBatch | None:
        try:
            with safe_open(self._file(attack, number), "pt") as file:
                found = {name: file.get_tensor(name) for name in ("rows", "broken", "adversarial", "cost")}
        except (OSError, SafetensorError):
            return None  # absent, or damaged from outside
        forwards, backwards, seconds = found.pop("cost").tolist()
        return AttackedBatch(**found, forwards=int(forwards), backwards=int(backwards), seconds=seconds)


@dataclass
class Outcome:
    """What an attack did to all its pictures.

    Attributes:
        broken: (N,) bool over the whole set.
        attacked: how many pictures it was tried on.
        forwards: pictures passed through the model, in this run or one that was killed.
        backwards: likewise for gradients.
        seconds: likewise.
    """

    broken: Tensor
    attacked: int
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0


def attack_in_batches(
    name: str,
    attack: Callable[[int, Tensor, Tensor], Tensor],
    model: Counted,
    pixels: Tensor,
    labels: Tensor,
    rows: Tensor,
    *,
    kept: Kept,
    batch_size: int,
    advance: Advance | None = None,
) -> Outcome:
    """Attack some of the pictures; what is kept already is not attacked again.

    Args:
        name: under which the batches are kept.
        attack: from (number of the batch, pixels (M, 3, H, W) in [0, 1], labels (M,)) to adversarial pixels. Its
            random numbers must depend on the number alone, or a resumed run is another one.
        model: that is attacked; in `model.attacked()`.
        pixels: (N, 3, H, W), uint8 or floats in [0, 1].
        labels: (N,) int64.
        rows: (M,) int64, which of them.
        kept: where results go.
        batch_size: pictures at a time.
        advance: told how far it is, from 0 on: (pictures done, of how many).

    Raises:
        LoricaError: results cannot be written; what was kept before stays.
    """
    outcome = Outcome(torch.zeros(len(labels), dtype=torch.bool), len(rows))
    if advance is not None and len(rows):
        advance(0, len(rows))
    for number, chosen in enumerate(rows.split(batch_size) if len(rows) else ()):
        batch = kept.get(name, number, chosen)
        if batch is None:
            batch = _attacked(lambda x, y, number=number: attack(number, x, y), model, pixels, labels, chosen)  # type: ignore[misc]
            kept.put(name, number, batch)
        outcome.broken[batch.rows[batch.broken]] = True
        outcome.forwards += batch.forwards
        outcome.backwards += batch.backwards
        outcome.seconds += batch.seconds
        if advance is not None:
            advance(min((number + 1) * batch_size, len(rows)), len(rows))
    return outcome


def _attacked(
    attack: Callable[[Tensor, Tensor], Tensor], model: Counted, pixels: Tensor, labels: Tensor, rows: Tensor
) -> AttackedBatch:
    began, forwards, backwards = perf_counter(), model.forwards, model.backwards
    x, y = as_floats(pixels[rows], model.device), labels[rows].to(model.device)
    found = attack(x, y).detach()
    broken = (model(found).argmax(dim=1) != y).cpu()
    adversarial = found.cpu()[broken].float()
    return AttackedBatch(
        rows,
        broken,
        adversarial,
        model.forwards - forwards,
        model.backwards - backwards,
        perf_counter() - began,
    )


def predict(model: Counted, pixels: Tensor, *, batch_size: int) -> Tensor:
    """Logits (N, classes) on the CPU of pixels (N, 3, H, W), uint8 or floats in [0, 1]; in `model.attacked()`."""
    return torch.cat([model(as_floats(x, model.device)).cpu() for x in pixels.split(batch_size)])


def as_floats(pixels: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Pixels in [0, 1] as float32; levels of 0 to 255 where they are uint8."""
    moved = pixels.contiguous().to(device)
    return moved.float() / 255 if moved.dtype == torch.uint8 else moved.float()
