"""A fine-tuning by several processes; a script for test_finetune_distributed.py.

    python -m torch.distributed.run --nproc-per-node 2 finetune_processes.py PICTURES OUTPUT {whole,killed,resumed}

Checkpoints are written in the middle of epochs; `killed` ends all processes at once, one step after such a one.
"""

import os
import sys
from pathlib import Path

import pytest

from finetune_runs import around_step, configured
from lorica.finetune import run

if __name__ == "__main__":
    pictures, output, how = sys.argv[1:]
    config = configured(Path(pictures), Path(output), checkpoint_every=2, resume=how == "resumed")
    with pytest.MonkeyPatch.context() as patch:
        if how == "killed":
            around_step(patch, 5, lambda _: os._exit(9))
        run(config)
