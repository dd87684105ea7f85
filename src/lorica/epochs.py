"""Training by epochs, as fine-tuning and pre-training share it: saved, interrupted, resumed, ended if it diverges."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorica.checkpoint import load_state
from lorica.devices import exactly
from lorica.errors import Diverged, LoricaError
from lorica.interrupt import interruptible
from lorica.monitor import Monitor
from lorica.progress import console

CHECKPOINTS, RESUME = "checkpoints", "resume.safetensors"

Precision = Literal["auto", "fp32", "bf16"]
PRECISION = "auto: bf16 on a GPU and on a CPU with instructions for it (AMX, AVX512-BF16), else fp32"
"""What `--help` says of it."""
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
"""Of CPUs, as `torch.cpu.get_capabilities` calls them."""


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What passes are computed in: bfloat16 wherever the device computes in it, unless something else is asked for.

    A CPU without instructions for it is slower in bfloat16 than in float32.
    """
    if precision != "auto":
        return precision
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    fast = device.type == "cuda" or any(able.get(name, False) for name in BF16_INSTRUCTIONS)
    return "bf16" if fast else "fp32"


class EpochTrainer(ABC):
    """What `train` drives: steps, epochs, and the state that a resumed run must find again.

    Args:
        accelerator: the processes.
        network: what is trained, on its device.
        precision: of forward and backward passes; weights stay in float32.
        channels_last: memory layout of the pictures.
    """

    steps_per_epoch: int

    def __init__(
        self, accelerator: Accelerator, network: nn.Module, *, precision: Precision, channels_last: bool
    ) -> None:
        self.accelerator, self.network, self.device = accelerator, network, accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.epoch = self.step_in_epoch = 0
        self.sums: dict[str, Tensor] = {}
        """Of what has been counted in the epoch so far."""
        self.precision, self._channels_last = resolve_precision(precision, self.device), channels_last

    @abstractmethod
    def begin_epoch(self) -> dict[str, float]:
        """Set what holds for an epoch; returns it, to be logged. Called again when an epoch is resumed."""

    @abstractmethod
    def pending(self) -> Iterator[tuple[Tensor, ...]]:
        """The batches that are left of the epoch; each holds the arguments of a step."""

    @abstractmethod
    def step(self, *batch: Tensor) -> None:
        """Learn from a batch, and count it in `step_in_epoch`."""

    @abstractmethod
    def end_epoch(self) -> dict[str, float]:
        """Means over the epoch's batches; waits for the device."""

    @abstractmethod
    def save(self, folder: Path, identity: Mapping[str, str], history: Mapping[str, Any]) -> None:
        """Write all that a resumed run needs."""

    @abstractmethod
    def load(self, groups: dict[str, dict[str, Tensor]], header: dict[str, Any]) -> None:
        """Go on from what `save` wrote."""

    def own(self) -> dict[str, Tensor]:
        """What each process has for itself until an epoch ends: what it counted, and statistics of batch norms.

        The tensors themselves, not copies.
        """
        statistics = {name: value for name, value in self.network.named_buffers() if value.is_floating_point()}
        return {f"sum {name}": value for name, value in self.sums.items()} | statistics

    def owned(self) -> dict[str, Tensor]:
        """`own` of all processes, (processes, ...) each, for a checkpoint; all must call it. Empty for one process."""
        if self.world == 1:
            return {}
        return {name: self.accelerator.gather(value[None].contiguous()) for name, value in self.own().items()}

    def take_own(self, owned: Mapping[str, Tensor]) -> None:
        """From `owned`, in each process its part."""
        for name, value in self.own().items() if owned else ():
            value.copy_(owned[name][self.rank])

    def finite(self) -> bool:
        """Whether the losses of the epoch so far and the weights are numbers; waits for the device."""
        values = [self.sums.get("loss", torch.zeros((), device=self.device)), *self.network.state_dict().values()]
        return bool(torch.stack([value.isfinite().all() for value in values]).all())

    def _count(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _share_gradients(self, how: str) -> None:
        """The "mean" or "sum" of the gradients of all processes, in each of them."""
        if self.world > 1:
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            together = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), how)
            for gradient, whole in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(whole.view_as(gradient))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _laid_out(self, pixels: Tensor) -> Tensor:
        return pixels.contiguous(memory_format=torch.channels_last) if self._channels_last else pixels


def resumed(trainer: EpochTrainer, output: Path, identity: Mapping[str, str], epochs: int) -> dict[str, Any] | None:
    """Restore a run's state, if it has left one; it goes on in the precision in which it began.

    Args:
        trainer: as it is before its first step.
        output: folder of the run.
        identity: what the state must belong to: digests of the model and of the pictures, the number of processes.
        epochs: of the whole run.

    Returns:
        The history that was saved with the state; None if there is none.

    Raises:
        LoricaError: the state belongs to something else, or is damaged.
    """
    file = output / CHECKPOINTS / RESUME
    if not file.is_file():
        return None
    groups, header = load_state(file)
    changed = [what for what, value in identity.items() if header["identity"].get(what) != value]
    if changed:
        raise LoricaError(
            f"this run cannot go on, as something is not what it was when it began: {', '.join(changed)}",
            "Restore it, or start a new run in another folder.",
        )
    trainer.load(groups, header)
    history = dict(header["history"])
    began = history.get("precision", trainer.precision)
    if trainer.rank == 0:
        console.print(f"Resuming in epoch {min(trainer.epoch + 1, epochs)} of {epochs}.")
        if began != trainer.precision:  # left to the device, and begun on another one
            console.print(f"[yellow]note:[/] in {began}, as the run began")
    trainer.precision = began
    return history


def train(
    trainer: EpochTrainer,
    *,
    output: Path,
    epochs: int,
    checkpoint_every: int,
    identity: Mapping[str, str],
    history: dict[str, Any],
    conclude: Callable[[dict[str, float]], dict[str, float]],
    doing: str,
    concluding: str,
    live: Mapping[str, str],
) -> None:
    """Train to the last epoch, or until `history["stopped"]` is set.

    Args:
        trainer: at the start, or as `resumed` left it.
        output: folder of the run.
        epochs: in all.
        checkpoint_every: steps between checkpoints within an epoch; one is written after each epoch, too.
        identity: see `resumed`.
        history: what is saved beside the state; `precision` is set and `seconds` kept up to date here, the rest by
            `conclude`.
        conclude: called at the end of each epoch, by all processes, with its means; returns what is to be logged
            besides.
        doing: the word before the progress bar.
        concluding: the same, while an epoch is concluded.
        live: what the bar shows, {figure: format}.

    Raises:
        Diverged: a loss or a weight is not finite; the last checkpoint is untouched.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    folder, per_epoch = output / CHECKPOINTS, trainer.steps_per_epoch
    history["precision"] = trainer.precision
    clock = time.perf_counter()

    def save() -> None:
        nonlocal clock
        now = time.perf_counter()
        history["seconds"] += now - clock
        clock = now
        trainer.save(folder, identity, history)

    def leave(where: str) -> None:
        trainer.accelerator.wait_for_everyone()
        raise KeyboardInterrupt(f"the state {where} is saved; go on with --resume")

    watched: AbstractContextManager[Monitor | None] = nullcontext()
    if trainer.rank == 0:
        # From the epoch's first step: an epoch whose last step is saved may have been logged, and will be again.
        watched = Monitor(output, epochs * per_epoch, trainer.epoch * per_epoch, doing=doing, live=live)
    with watched as monitor, interruptible(trainer.accelerator) as interrupted, exactly():
        while trainer.epoch < epochs and not history.get("stopped"):
            row = {"epoch": trainer.epoch + 1} | trainer.begin_epoch()
            for batch in trainer.pending():
                trainer.step(*batch)
                k = trainer.step_in_epoch
                if monitor:
                    monitor.advance(trainer.epoch * per_epoch + k)
                stop = interrupted(k % 10 == 0)
                if stop or k % checkpoint_every == 0:
                    _require_finite(trainer, folder)
                    save()
                if stop:
                    leave(f"in epoch {trainer.epoch + 1}")
            _require_finite(trainer, folder)
            row |= trainer.end_epoch()
            with monitor.during(concluding) if monitor else nullcontext():
                row |= conclude(row)
            if monitor:
                monitor.log(trainer.epoch * per_epoch, row)
            save()
            if interrupted(True):
                leave(f"after epoch {trainer.epoch}")


def _require_finite(trainer: EpochTrainer, folder: Path) -> None:
    if not trainer.finite():
        raise Diverged(
            f"training diverged: the loss or the weights of epoch {trainer.epoch + 1} are not finite",
            f"Lower --learning-rate. The last checkpoint is untouched ({folder}).",
        )
