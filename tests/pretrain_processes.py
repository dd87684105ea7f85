"""Two steps of pre-training by each of several processes; a script for test_pretrain_distributed.py.

    python -m torch.distributed.run --nproc-per-node 2 pretrain_processes.py WORK METHOD OPTIONS

Every process writes WORK/<rank>.safetensors: gradients of the last step, weights and statistics after it, losses.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pretrain_runs import random_pictures, tiny_config, tiny_trainer


def steps(method: str, options: dict[str, str]) -> dict[str, torch.Tensor]:
    """In float64, so that no difference hides in rounding."""
    config = tiny_config(method=method, options=options, invariance="both", form="anchored", batch_size=8, epochs=2)
    trainer = tiny_trainer(config, random_pictures(16))
    trainer.method.double()
    gradients: dict[str, torch.Tensor] = {}

    def keep() -> None:
        gradients.update(
            {f"gradient {n}": p.grad.clone() for n, p in trainer.method.named_parameters() if p.grad is not None}
        )
        rate()

    rate, trainer._set_rate = trainer._set_rate, keep
    trainer.begin_epoch()
    for (pixels,) in trainer.pending():
        trainer.step(pixels.double())
    sums = {f"sum {name}": value for name, value in trainer.sums.items() if not name.startswith("alignment")}
    return gradients | trainer.method.state_dict() | sums


if __name__ == "__main__":
    work, method, options = sys.argv[1:]
    found = steps(method, json.loads(options))
    rank = torch.distributed.get_rank()
    save_file({name: value.contiguous() for name, value in found.items()}, Path(work) / f"{rank}.safetensors")
