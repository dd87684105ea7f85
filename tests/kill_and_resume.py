"""Run `lorica adapt` to the end, once undisturbed and once killed again and again; a script for test_adapt_run.py.

    python kill_and_resume.py PICTURES MODEL WORK

Each attempt is a fork of one process that has imported everything. WORK/whole and WORK/killed hold the two runs; the
last line printed is JSON: where each kill struck.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch.utils.tensorboard  # noqa: F401  (so that no attempt spends its time on imports)

from lorica.adapt import AdaptConfig, run
from lorica.adapt.folder import RESUME_FILE
from lorica.adapt.state import completed_steps

STEPS = 12
DEFENCES = {
    "augment": {"views": 2}, "caption-dropout": {"rate": 0.5}, "early-stopping": {"patience": 9},
    "skip-low-loss": {"levels": 2},
}  # fmt: skip


def configured(pictures: Path, model: Path, output: Path, *, resume: bool) -> AdaptConfig:
    return AdaptConfig(
        data=pictures, base=str(model), output=output, steps=STEPS, batch_size=2, objective="smp-lora", device="cpu",
        learning_rate=1e-2, log_every=1, validate_every=4, validation_pictures=2, sample_every=0, checkpoint_every=1,
        lora={"rank": 2, "text_encoder": True, "dropout": 0.1}, defences=DEFENCES, resume=resume,
    )  # fmt: skip


def attempt(config: AdaptConfig, place: str | None, writes_before_death: int) -> None:
    """Run; with a place, die half-way through a write in the folder of that name."""
    if place is not None:
        left, original = writes_before_death, Path.write_bytes

        def write_bytes(path: Path, content: bytes) -> int:
            nonlocal left
            if path.parent.name.startswith(place):
                if left == 0:
                    original(path, content[: len(content) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return original(path, content)

        Path.write_bytes = write_bytes  # type: ignore[method-assign, assignment]
    run(config)


def main(pictures: Path, model: Path, work: Path) -> None:
    fork = multiprocessing.get_context("fork")

    def live(
        output: Path, *, place: str | None = None, writes: int = 0, after: int | None = None, resume: bool = True
    ) -> int | None:
        config = configured(pictures, model, output, resume=resume)
        process = fork.Process(target=attempt, args=(config, place, writes))
        process.start()
        if after is not None:
            while process.is_alive() and completed_steps(output / RESUME_FILE) < after:
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.1))
            process.kill()
        process.join()
        return process.exitcode

    assert live(work / "whole", resume=False) == 0

    output, struck = work / "killed", []
    moments: list[dict[str, Any]] = [
        {"place": "latents", "writes": 3},
        {"place": "captions", "writes": 1},
        {"place": output.name, "writes": 0},  # the configuration
        {"place": output.name, "writes": 1},  # the split
        {"after": 1},  # steps, and some milliseconds of whatever comes next
        {"after": 3},
        {"place": "step_", "writes": 1},  # a LoRA file that is kept
        {"place": "checkpoints", "writes": 1},  # a state
    ]
    for number, moment in enumerate(moments):
        code = live(output, **moment, resume=number > 0)
        struck.append({"exit": code, "steps": completed_steps(output / RESUME_FILE)} | moment)
    assert live(output) == 0
    print(json.dumps(struck))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
