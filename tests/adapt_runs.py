"""What the tests of `lorica adapt` share: looking at a run's folder, and ways to disturb a run."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lorica.adapt.step import Step
from lorica.monitor import read_metrics

WEIGHTS = "pytorch_lora_weights.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def weights(output: Path) -> bytes:
    return (output / WEIGHTS).read_bytes()


def numbers(output: Path) -> list[dict[str, Any]]:
    """The logged rows without the clock."""
    return [{k: v for k, v in row.items() if k != "step_seconds"} for row in read_metrics(output)]


def all_finite(output: Path) -> bool:
    """Whether no file of weights and no logged row holds a number that is not finite."""
    for file in output.rglob("*.safetensors"):
        with safe_open(file, "pt") as reader:
            if not all(reader.get_tensor(name).isfinite().all() for name in reader.keys()):  # noqa: SIM118
                return False
    return all(torch.tensor(list(row.values())).isfinite().all() for row in read_metrics(output))


def press_ctrl_c(step: Step) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def spoil(step: Step) -> None:
    with torch.no_grad():
        step.parameters[0][0, 0] = float("nan")
