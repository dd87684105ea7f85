"""Pre-train and die of SIGKILL; a script for test_pretrain_run.py.

    python killed_pretraining.py PICTURES OUTPUT N

Dies right after the N-th checkpoint is written, or in the middle of writing it if N is negative.
"""

import os
import signal
import sys
from pathlib import Path

import lorica.checkpoint
from lorica.pretrain import run
from lorica.pretrain.trainer import Trainer
from pretrain_runs import tiny_config


def main(pictures: Path, output: Path, number: int) -> None:
    left, original = abs(number), Trainer.save

    def torn(file: Path, content: bytes) -> None:
        """Half of it, where an atomic writer would have put it before it moves it into place."""
        file.with_name(".half.part").write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def save(self, *arguments):  # type: ignore[no-untyped-def]
        nonlocal left
        left -= 1
        if left == 0 and number < 0:
            lorica.checkpoint.write_bytes = torn
        original(self, *arguments)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.save = save
    run(tiny_config(data=pictures, output=output, method="acl", checkpoint_every=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
