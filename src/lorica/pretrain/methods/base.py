"""The interface of a pre-training method."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lorica.config import Config
from lorica.pretrain.network import ADVERSARIAL, NATURAL, ContrastiveNetwork
from lorica.pretrain.schedule import Emphasis
from lorica.registry import Registry
from lorica.vision.batch_norm import on_route

Pair = tuple[Tensor, Tensor]
"""Of views i and j of the same N pictures."""


class Embedded(NamedTuple):
    """What a step's pictures become, each (N, D)."""

    natural: Pair
    adversarial: Pair | None
    originals: Tensor | None


class Method(nn.Module, ABC):
    """Decides what an epoch stresses, and sends views through the network.

    It holds the network and whatever it adds to it in training, so that its state dict is the state of training.

    Args:
        options: its own settings.
        network: is trained in place.
    """

    class Options(Config):
        """Settings of the method; none unless a method says so."""

    summary: ClassVar[str]
    """One line for `--help` and the documentation."""
    source: ClassVar[str]
    """Paper."""
    robust: ClassVar[bool] = True
    """Whether it learns from adversarial views by itself; otherwise only AIR brings them in."""

    def __init__(self, options: Any, network: ContrastiveNetwork) -> None:
        super().__init__()
        self.options = options
        self.network = network

    @abstractmethod
    def emphasis(self, epoch: int, epochs: int) -> Emphasis:
        """Of an epoch, counted from 1, of so many."""

    def forward(self, natural: Pair, adversarial: Pair | None, originals: Tensor | None) -> Embedded:
        """The embeddings of all, each part normalised by itself.

        Args:
            natural: two views (N, 3, H, W) each of the same pictures, in [0, 1].
            adversarial: the same, attacked.
            originals: the pictures without augmentation.
        """
        parts = [(NATURAL, torch.cat(natural))]
        if adversarial is not None:
            # The adversarial views first, as in the authors' code; the order matters to running statistics only.
            parts.insert(0, (ADVERSARIAL, torch.cat(adversarial)))
        if originals is not None:
            parts.append((NATURAL, originals))
        z = [in_full(part) for part in self.network.through(parts)]
        last = z.pop() if originals is not None else None
        pairs = [pair(part) for part in z]
        return Embedded(pairs[-1], pairs[0] if adversarial is not None else None, last)

    def attackable(self) -> nn.Module:
        """A network from 2N adversarial views, i then j, to their z: what the attack goes through, in eval mode."""
        return self.network

    def attacked(self) -> AbstractContextManager[None]:
        """Context in which `attackable` uses the batch norms of adversarial pictures."""
        return on_route(self, ADVERSARIAL)

    def after_step(self) -> None:
        """Called when the weights have changed."""

    def result(self) -> ContrastiveNetwork:
        """The network whose encoder is delivered."""
        return self.network


def in_full(z: Tensor) -> Tensor:
    """Half precision becomes float32 before losses are computed from it."""
    return z.float() if z.dtype in (torch.bfloat16, torch.float16) else z


def pair(both: Tensor) -> Pair:
    """Its first half, of views i, and its second, of views j."""
    i, j = both.chunk(2)
    return i, j


METHODS: Registry[Method] = Registry("pre-training method")
