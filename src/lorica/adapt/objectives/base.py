"""The interface of an adaptation objective."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from lorica.registry import Registry


class Objective(ABC):
    """Turns adaptation loss and MI gain into the scalar that a step on the LoRA minimises.

    Args:
        lam: lambda, the weight of the MI gain.
        delta: stabiliser of a ratio objective.
    """

    summary: ClassVar[str]
    """One line for `--help` and the documentation."""
    source: ClassVar[str]
    """Paper and equation."""
    needs_proxy: ClassVar[bool]
    """Whether the trainer must keep a proxy attacker and hand over its MI gain."""

    def __init__(self, lam: float, delta: float) -> None:
        self.lam = lam
        self.delta = delta

    @abstractmethod
    def loss(self, adaptation_loss: Tensor, gain: Tensor | None) -> Tensor:
        """Scalar to minimise, from a batch's scalar adaptation loss and scalar MI gain (<= 0; None without proxy)."""


OBJECTIVES: Registry[Objective] = Registry("objective")
