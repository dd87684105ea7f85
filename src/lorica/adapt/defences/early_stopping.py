"""Early stopping: the run ends when validation no longer improves, and keeps the best weights."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.adapt.defences.base import DEFENCES, Defence
from lorica.config import Config
from lorica.diffusion import LatentDiffusion


class EarlyStoppingConfig(Config):
    """What is watched, and for how long."""

    watch: Literal["loss", "gap"] = Field(
        "loss",
        description="loss: of non-members, which rises when the model begins to memorise; gap: their loss minus that "
        "of members, the leak itself, which is smallest after few steps",
    )
    on: Literal["aux", "test"] = Field(
        "aux",
        description="aux: the auxiliary groups; test: the groups that an audit tests on, which then have had a say in "
        "what they test",
    )
    patience: int = Field(3, ge=1, description="validations without improvement after which the run ends")
    keep: Literal["best", "last"] = Field(
        "best", description="which weights are saved: of the best validation or last"
    )


@DEFENCES.register("early-stopping")
class EarlyStopping(Defence[EarlyStoppingConfig]):
    """Ends the run after `patience` validations in a row that were no better than the best one before them.

    The base model (step 0) is not in the running. Without a stop the best weights are saved all the same.
    """

    summary = "ends the run when the validation loss of non-members, or the gap to members, no longer improves"
    source = "as in many trainers; a cheap baseline that defences are often not compared with"
    Options = EarlyStoppingConfig
    alone = True
    settles = frozenset({"validate_every", "validation_pictures"})

    best, best_step, without = math.inf, 0, 0
    weights: list[Tensor]

    @property
    def watches_aux(self) -> bool:  # type: ignore[override]
        return self.options.on == "aux"

    @property
    def watched(self) -> str:
        """Name of the number that should be small."""
        prefix = "aux" if self.options.on == "aux" else "val"
        return f"{prefix}_{'nonmember' if self.options.watch == 'loss' else 'gap'}"

    def attach(self, model: LatentDiffusion, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.weights = [p.detach().clone() for p in parameters]

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        if step == 0:
            return
        self.without += 1
        if values[self.watched] < self.best:
            self.best, self.best_step, self.without = values[self.watched], step, 0
            self._copy(self.parameters, self.weights)

    @property
    def stopped(self) -> str | None:
        if self.without < self.options.patience:
            return None
        return f"{self.watched} has not improved since step {self.best_step}"

    def finish(self, steps: int) -> int:
        if self.options.keep == "last" or not self.best_step:
            return steps
        self._copy(self.weights, self.parameters)
        return self.best_step

    def facts(self, steps: int) -> dict[str, Any]:
        return {"watched": self.watched, "best_step": self.best_step, "stopped": self.stopped}

    def state(self) -> dict[str, Tensor]:
        counts = torch.tensor([self.best, self.best_step, self.without], dtype=torch.float64)
        return {"counts": counts} | {str(i): weight for i, weight in enumerate(self.weights)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        best, best_step, without = tensors["counts"].tolist()
        self.best, self.best_step, self.without = best, int(best_step), int(without)
        self._copy([tensors[str(i)] for i in range(len(self.weights))], self.weights)

    @torch.no_grad()
    def _copy(self, source: list[Any], target: list[Any]) -> None:
        for x, y in zip(source, target, strict=True):
            y.copy_(x)
