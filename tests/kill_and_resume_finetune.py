"""Run `lorica finetune` to the end, once undisturbed and once killed again and again; a script for
test_finetune_resume.py.

    python kill_and_resume_finetune.py PICTURES WORK

Each attempt is a fork of one process that has imported everything. WORK/whole and WORK/killed hold the two runs; the
last line printed is JSON: where each kill struck.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.utils.tensorboard  # noqa: F401  (so that no attempt spends its time on imports)

import lorica.vision.cifar_resnet  # noqa: F401  (likewise: timm)
from lorica.checkpoint import load_state
from lorica.epochs import CHECKPOINTS, RESUME
from lorica.finetune import FinetuneConfig, run
from lorica.finetune.trainer import Trainer
from lorica.monitor import Monitor


def configured(pictures: Path, output: Path, *, resume: bool) -> FinetuneConfig:
    """Six epochs of two passes of three steps, each saved; the schedule looks at every other epoch."""
    return FinetuneConfig(
        data=pictures, output=output, epochs=6, epoch_steps=4, batch_size=8, learning_rate=0.1, schedule_every=2,
        ema=0.9, val_share=0.25, similarity_batches=2, checkpoint_every=1, evaluate="none", device="cpu",
        attack={"steps": 1, "eps": "2/255"}, options={"rank": 2}, resume=resume,
        model={"name": "cifar_resnet18", "pretrained": False, "size": (16, 16),
               "arguments": {"width": 4, "depths": [1, 1], "drop_rate": 0.2}},
    )  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(home: Any, name: str, number: int) -> None:
    """Die instead of the call of this number to a class's method or a module's function."""
    original, left = getattr(home, name), number

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if left == 0:
            die()
        left -= 1
        return original(*args, **kwargs)

    setattr(home, name, call)


def after_log(number: int) -> None:
    """Die when an epoch has been logged, and its state not yet saved."""
    original, left = Monitor.log, number

    def log(self: Monitor, step: int, values: dict[str, float]) -> None:
        nonlocal left
        original(self, step, values)
        if left == 0:
            die()
        left -= 1

    Monitor.log = log  # type: ignore[method-assign]


def torn_write(number: int) -> None:
    """Die half-way through a write of a checkpoint."""
    original, left = Path.write_bytes, number

    def write_bytes(path: Path, content: bytes) -> int:
        nonlocal left
        if path.parent.name == CHECKPOINTS:
            if left == 0:
                original(path, content[: len(content) // 2])
                die()
            left -= 1
        return original(path, content)

    Path.write_bytes = write_bytes  # type: ignore[method-assign, assignment]


MOMENTS: dict[str, Callable[[], None]] = {
    "in the first write": lambda: torn_write(0),
    "in the second pass of epoch 1": lambda: before(Trainer, "step", 4),
    "before validation": lambda: before(Trainer, "validate", 0),
    "after the log of epoch 1": lambda: after_log(0),
    "in a write of epoch 2": lambda: torn_write(4),
    "in epoch 3": lambda: before(Trainer, "step", 5),
    "after the log of epoch 4": lambda: after_log(1),
    "in epoch 5": lambda: before(Trainer, "step", 8),
    "before the export": lambda: before(sys.modules["lorica.finetune.run"], "deliver", 0),
}


def attempt(config: FinetuneConfig, moment: str | None) -> None:
    if moment is not None:
        MOMENTS[moment]()
    run(config)


def main(pictures: Path, work: Path) -> None:
    fork = multiprocessing.get_context("fork")

    def live(output: Path, moment: str | None, *, resume: bool) -> int | None:
        process = fork.Process(target=attempt, args=(configured(pictures, output, resume=resume), moment))
        process.start()
        process.join()
        return process.exitcode

    assert live(work / "whole", None, resume=False) == 0
    output, struck = work / "killed", []
    for number, moment in enumerate(MOMENTS):
        code = live(output, moment, resume=number > 0)
        file = output / CHECKPOINTS / RESUME
        header = load_state(file)[1] if file.exists() else {"epoch": 0, "step_in_epoch": 0}
        struck.append({"moment": moment, "exit": code, "at": [header["epoch"], header["step_in_epoch"]]})
    assert live(output, None, resume=True) == 0
    print(json.dumps(struck))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
