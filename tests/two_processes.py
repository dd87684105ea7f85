"""What each of several processes of `lorica adapt` does; a script for test_distributed.py.

    python -m torch.distributed.run --nproc-per-node 2 two_processes.py PICTURES MODEL WORK

Every process writes WORK/<scenario>.<rank>.safetensors: its weights in the end, its rows, and the gradients of its
attacker before and after the exchange.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lorica.adapt import AdaptConfig, Diverged, run
from lorica.adapt.pools import Batch, Pool
from lorica.adapt.step import Step

RANK = int(os.environ.get("RANK", 0))


class Witness(Step):
    """A step that keeps what it saw and may be disturbed."""

    last: "Witness"
    disturb: Any = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        Witness.last = self
        self.rows: list[Tensor] = []
        self.local: list[Tensor] = []
        self.exchanged: list[Tensor] = []

    def __call__(self, step: int) -> dict[str, Tensor]:
        if Witness.disturb is not None:
            Witness.disturb(self, step)
        return super().__call__(step)

    def _batch(self, pool: Pool, index: int, purpose: str) -> Batch:
        batch = super()._batch(pool, index, purpose)
        if purpose == "train":
            self.rows.append(batch.rows)
        return batch

    def _average(self, parameters: Any, numbers: dict[str, Tensor]) -> None:
        parameters = list(parameters)
        of_proxy = self.proxy is not None and parameters[0] is next(self.proxy.parameters())
        if of_proxy:
            self.local.append(torch.cat([p.grad.flatten() for p in parameters]))
        super()._average(parameters, numbers)
        if of_proxy:
            self.exchanged.append(torch.cat([p.grad.flatten() for p in parameters]))

    def write(self, file: Path) -> None:
        tensors = {f"lora.{i}": p.detach().clone() for i, p in enumerate(self.parameters)}
        if self.proxy is not None:
            tensors |= {f"proxy.{name}": tensor.clone() for name, tensor in self.proxy.state_dict().items()}
            tensors |= {"local": torch.stack(self.local), "exchanged": torch.stack(self.exchanged)}
        save_file(tensors | {"rows": torch.stack(self.rows)}, file)


def terminate(step: Witness, number: int) -> None:
    """One of the processes is asked to stop, before step 3 of 6."""
    if number == 2 and RANK == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def spoil(step: Witness, number: int) -> None:
    """One of the processes gets numbers that are not finite."""
    if number == 2 and RANK == 1:
        step.pools.train.latents.fill_(float("nan"))


def main(pictures: Path, model: Path, work: Path) -> None:
    def configured(name: str, **options: Any) -> AdaptConfig:
        settings = {
            "data": pictures, "base": str(model), "output": work / name, "cache": work / "cache", "device": "cpu",
            "steps": 6, "batch_size": 1, "learning_rate": 1e-2, "log_every": 2, "validate_every": 2,
            "validation_pictures": 2, "sample_every": 0, "checkpoint_every": 3, "lora": {"rank": 2, "alpha": 2.0},
        }  # fmt: skip
        return AdaptConfig(**(settings | options))

    def go(name: str, config: AdaptConfig) -> None:
        run(config)
        Witness.last.write(work / f"{name}.{RANK}.safetensors")

    # Everything that only one process does: validating, sampling, saving; with LoRA on both networks.
    full = {
        "lora": {"rank": 2, "text_encoder": True}, "gradient_accumulation": 2, "draws": "independent",
        "mi_gain": "full", "sample_every": 3, "sample_captions": ["a person"],
    }  # fmt: skip
    go("private", configured("private", **full))
    go("plain", configured("plain", objective="lora"))

    Witness.disturb = terminate
    try:
        run(configured("stopped", objective="lora"))
        outcome = "not stopped"
    except KeyboardInterrupt as interrupt:
        outcome = str(interrupt)
    (work / f"stopped.{RANK}.txt").write_text(outcome)
    Witness.disturb = None
    go("stopped", configured("stopped", objective="lora", resume=True))

    Witness.disturb = spoil
    try:
        run(configured("diverged", objective="lora"))
        outcome = "not diverged"
    except Diverged as error:
        outcome = error.problem
    (work / f"diverged.{RANK}.txt").write_text(outcome)


if __name__ == "__main__":
    from lorica.adapt import prepare

    prepare.Step = Witness  # type: ignore[misc]
    main(*map(Path, sys.argv[1:]))
