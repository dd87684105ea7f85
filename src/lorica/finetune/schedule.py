"""What takes the place of a hyper-parameter search: loss weights and learning rate that follow the training itself."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal


def loss_weights(natural_accuracy: float, alpha: float = 1.0, lambda2_max: float = 6.0) -> tuple[float, float]:
    """(lambda_1, lambda_2) = (1 - SA^alpha, lambda2_max SA^alpha) (arXiv 2310.01818, equations 7 to 9).

    The better the natural objective is learned, the more weight the adversarial ones get.

    Args:
        natural_accuracy: SA of the LoRA branch on the training set, in [0, 1].
        alpha: sharpness (paper: 1).
        lambda2_max: weight of the KL term at an accuracy of 1 (paper: 6).

    Returns:
        lambda_1 in [0, 1], the weight of the natural loss (1 - lambda_1 is that of the adversarial one); lambda_2 in
        [0, lambda2_max].

    Raises:
        ValueError: an accuracy outside [0, 1], an alpha that is not positive, or a negative lambda2_max.
    """
    if not 0 <= natural_accuracy <= 1:
        raise ValueError(f"an accuracy is in [0, 1], not {natural_accuracy}")
    if not alpha > 0 or lambda2_max < 0:
        raise ValueError(f"alpha = {alpha} must be positive and lambda2_max = {lambda2_max} not negative")
    learned = natural_accuracy**alpha
    return 1 - learned, lambda2_max * learned


@dataclass(frozen=True)
class Decision:
    """What to do after an epoch.

    Attributes:
        learning_rate: of the next epoch.
        best: this epoch's weights are the best so far: keep them.
        reload: go on from the best weights.
        stop: the learning rate is spent.
    """

    learning_rate: float
    best: bool
    reload: bool = False
    stop: bool = False


@dataclass
class RobustAccuracyLR:
    """Halves the learning rate when robust validation accuracy stops rising (arXiv 2310.01818, section 3.4).

    The rule is that of APGD's step size (Croce and Hein, ICML 2020, arXiv 2003.01690, section 3.1), with epochs for
    steps. After epoch 0 and every `every` epochs from there is a checkpoint. At a checkpoint the rate is divided, and
    training goes on from the best weights, if
    1. the accuracy rose in fewer than rho of the epochs since the last checkpoint, or
    2. neither the rate nor the best accuracy has changed since the last checkpoint.

    Args:
        learning_rate: at the start (paper: 0.01).
        every: epochs between checkpoints (paper: 4).
        rho: share of epochs that must improve (paper: 0.75).
        divide: by which the rate is divided (paper: 2).
        smallest: training ends below this rate (1e-5).
    """

    learning_rate: float
    every: int = 4
    rho: float = 0.75
    divide: float = 2.0
    smallest: float = 1e-5
    accuracies: list[float] = field(default_factory=list)
    """Of all epochs so far."""
    best: float = -math.inf
    at_checkpoint: tuple[float, float] | None = None
    """Rate and best accuracy at the last checkpoint."""

    def step(self, robust_accuracy: float) -> Decision:
        """Take one epoch's robust accuracy on the validation set; or any other number that is to rise."""
        self.accuracies.append(robust_accuracy)
        better = robust_accuracy > self.best
        self.best = max(self.best, robust_accuracy)
        epoch = len(self.accuracies) - 1
        if epoch % self.every:
            return Decision(self.learning_rate, better)
        previous, self.at_checkpoint = self.at_checkpoint, (self.learning_rate, self.best)
        if previous is None or not (self._stalled() or previous == self.at_checkpoint):
            return Decision(self.learning_rate, better)
        self.learning_rate /= self.divide
        return Decision(self.learning_rate, better, reload=True, stop=self.learning_rate < self.smallest)

    def _stalled(self) -> bool:
        window = self.accuracies[-self.every - 1 :]
        return sum(later > earlier for earlier, later in pairwise(window)) < self.rho * self.every

    def state(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return asdict(self)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "RobustAccuracyLR":
        """From `state()`."""
        kept = state["at_checkpoint"]
        return cls(**{**state, "at_checkpoint": tuple(kept) if kept is not None else None})


@dataclass
class StepLR:
    """Divides the learning rate by 10 at fixed shares of the epochs, as the codes of TWINS do at 30 and 50 of 60.

    Args:
        learning_rate: at the start.
        epochs: in all.
        at: shares of the epochs.
    """

    learning_rate: float
    epochs: int
    at: tuple[float, ...] = (0.5, 5 / 6)
    best: float = -math.inf
    done: int = 0

    def step(self, robust_accuracy: float) -> Decision:
        """As `RobustAccuracyLR.step`; the accuracy decides only which weights are kept."""
        self.done += 1
        better = robust_accuracy > self.best
        self.best = max(self.best, robust_accuracy)
        if self.done in {round(share * self.epochs) for share in self.at}:
            self.learning_rate /= 10
        return Decision(self.learning_rate, better)

    def state(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return asdict(self)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "StepLR":
        """From `state()`."""
        return cls(**{**state, "at": tuple(state["at"])})


Schedule = RobustAccuracyLR | StepLR


def schedule_of(
    kind: Literal["auto", "step", "constant"],
    learning_rate: float,
    epochs: int,
    every: int = 4,
    milestones: Sequence[int] | None = None,
) -> Schedule:
    """A schedule by its name.

    Args:
        kind: "auto" is `RobustAccuracyLR`, "step" `StepLR`, "constant" one that never falls.
        learning_rate: at the start.
        epochs: in all.
        every: of "auto".
        milestones: of "step": epochs after which the rate falls, instead of the usual shares.
    """
    if kind == "auto":
        return RobustAccuracyLR(learning_rate, every)
    if kind == "constant":
        return StepLR(learning_rate, epochs, at=())
    if milestones is None:
        return StepLR(learning_rate, epochs)
    return StepLR(learning_rate, epochs, at=tuple(milestone / epochs for milestone in milestones))
