"""What the tests of `lorica finetune` share: pictures of three colours, short runs, and ways to look at and disturb
them."""

import copy
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lorica.checkpoint import load_state
from lorica.epochs import CHECKPOINTS, RESUME
from lorica.finetune import FinetuneConfig, Method
from lorica.finetune.schedule import Decision
from lorica.finetune.trainer import Trainer
from lorica.monitor import read_metrics

RUN: Any = sys.modules["lorica.finetune.run"]  # the module; `lorica.finetune.run` is the function in it
TRAINER: Any = sys.modules["lorica.finetune.trainer"]
NETWORK = {"name": "cifar_resnet18", "pretrained": False, "size": (16, 16),
           "arguments": {"width": 4, "depths": [1, 1]}}  # fmt: skip
STEPS = 3
"""Per epoch: of 14 pictures of each class 3 test, 3 validate and 8 train, in batches of 8."""


def write_pictures(folder: Path, each: int = 14) -> Path:
    draw = np.random.default_rng(0)
    for name, colour in {"red": (190, 60, 60), "green": (60, 190, 60), "blue": (60, 60, 190)}.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.clip(np.array(colour) + draw.normal(0, 40, (16, 16, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def configured(pictures: Path, output: Path, **options: Any) -> FinetuneConfig:
    settings: dict[str, Any] = {
        "data": pictures, "output": output, "model": NETWORK, "epochs": 2, "epoch_steps": 1, "batch_size": 8,
        "learning_rate": 0.05, "attack": {"steps": 2, "eps": "4/255"}, "ema": 0.9, "val_share": 0.25,
        "schedule_every": 2, "similarity_batches": 1, "evaluate": "none", "device": "cpu",
        "judged_by": "accuracy",  # the paper's rule, which so few pictures would not get
        "precision": "fp32",  # whatever this processor is fastest in
    }  # fmt: skip
    return FinetuneConfig(**(settings | options))


def exported(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model" / "model.safetensors")


def state(output: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The last checkpoint, without the clock."""
    groups, header = load_state(output / CHECKPOINTS / RESUME)
    header["history"].pop("seconds")
    return groups, header


def record(output: Path) -> dict[str, Any]:
    """run.json without clock and place."""
    found = json.loads((output / "run.json").read_text())
    return {key: value for key, value in found.items() if key not in {"seconds", "config", "hardware"}}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def assert_same_run(output: Path, whole: Path) -> None:
    """In all that a run leaves: model, record, metrics and state of training, bit by bit."""
    assert same(exported(output), exported(whole))
    assert record(output) == record(whole)
    assert read_metrics(output) == read_metrics(whole)
    (groups, header), (expected, its_header) = state(output), state(whole)
    assert header == its_header and groups.keys() == expected.keys()
    assert all(same(groups[name], expected[name]) for name in groups)
    assert (output / "split.json").read_bytes() == (whole / "split.json").read_bytes()


def press_ctrl_c(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def around_step(
    patch: pytest.MonkeyPatch, number: int, happen: Callable[[Trainer], None], *, after: bool = False
) -> None:
    """Let something happen once, before or after step `number`, from 0, of the next run."""
    original, taken = Trainer.step, iter(range(10**6))

    def step(self: Trainer, *batch: Tensor) -> None:
        due = next(taken) == number
        if due and not after:
            happen(self)
        original(self, *batch)
        if due and after:
            happen(self)

    patch.setattr(Trainer, "step", step)


@dataclass
class Epoch:
    """What a run was around the decision at the end of an epoch."""

    decision: Decision
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    average: dict[str, Tensor]
    momenta: tuple[list[Tensor], list[Tensor]]
    method: Method


def watch_epochs(patch: pytest.MonkeyPatch, robust: list[float] | None = None, average: float = 0.0) -> list[Epoch]:
    """Record every epoch; with numbers, they are what validation says of the weights and, always, of the average."""
    original, seen = Trainer.decide, []
    if robust is not None:
        numbers = iter(robust)
        patch.setattr(
            Trainer, "validate",
            lambda self: {"val_natural": 0.9, "val_robust": next(numbers), "val_average_natural": 0.9,
                          "val_average_robust": average},
        )  # fmt: skip

    def momenta(trainer: Trainer) -> list[Tensor]:
        return [state["momentum_buffer"].clone() for state in trainer.optimiser.state.values()]

    def decide(self: Trainer, *arguments: Any) -> Decision:
        before, momenta_before = copy.deepcopy(self.method.state_dict()), momenta(self)
        decision = original(self, *arguments)
        assert self.average is not None
        seen.append(
            Epoch(
                decision, before, copy.deepcopy(self.method.state_dict()), copy.deepcopy(self.average.values),
                (momenta_before, momenta(self)), copy.deepcopy(self.method),
            )
        )  # fmt: skip
        return decision

    patch.setattr(Trainer, "decide", decide)
    return seen
