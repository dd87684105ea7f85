"""DynACL: weaker augmentation and more stress on adversarial views as training goes on."""

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.config import Config
from lorica.pretrain.methods.base import METHODS, Embedded, Method, Pair, in_full
from lorica.pretrain.network import ADVERSARIAL, NATURAL, ContrastiveNetwork
from lorica.pretrain.schedule import Emphasis, annealed


@METHODS.register("dynacl")
class DynAcl(Method):
    """ACL with annealed augmentation strength and loss weights (Luo et al., ICLR 2023, arXiv 2303.01289).

    Flavour "air" is what the code of arXiv 2305.00374 runs and its tables report. Flavour "original" adds the first
    authors' momentum encoder: view j goes through an average of the weights, which gets no gradient and is what is
    delivered. Both change strength and weights in the same epoch; the original code is one epoch earlier with the
    weights.
    """

    class Options(Config):
        flavour: Literal["air", "original"] = Field(
            "air", description="air: no momentum encoder; original: with one, which is what is delivered"
        )
        momentum: float = Field(0.99, ge=0, lt=1, description="of the momentum encoder (paper: 0.99)")
        every: int | None = Field(
            None,
            ge=1,
            description="epochs between two changes of strength; a 20th of all by default (paper: 50 of 1000)",
        )

    summary = "ACL with weaker augmentation and more weight on adversarial views as training goes on"
    source = "Luo et al., ICLR 2023 (arXiv 2303.01289)"

    def __init__(self, options: Any, network: ContrastiveNetwork) -> None:
        super().__init__(options, network)
        self.key: ContrastiveNetwork | None = None
        if options.flavour == "original":
            self.key = copy.deepcopy(network).requires_grad_(False)

    def emphasis(self, epoch: int, epochs: int) -> Emphasis:
        return annealed(epoch, epochs=epochs, every=self.options.every or max(1, round(epochs / 20)))

    def forward(self, natural: Pair, adversarial: Pair | None, originals: Tensor | None) -> Embedded:
        if self.key is None:
            return super().forward(natural, adversarial, originals)
        assert adversarial is not None
        parts = [(ADVERSARIAL, adversarial[0]), (NATURAL, natural[0])]
        parts += [(NATURAL, originals)] if originals is not None else []
        queries = [in_full(z) for z in self.network.through(parts)]
        with torch.no_grad():
            keys = [in_full(z) for z in self.key.through([(ADVERSARIAL, adversarial[1]), (NATURAL, natural[1])])]
        last = queries[2] if originals is not None else None
        return Embedded((queries[1], keys[1]), (queries[0], keys[0]), last)

    def attackable(self) -> nn.Module:
        return self.network if self.key is None else _TwoEncoders(self.network, self.key)

    @torch.no_grad()
    def after_step(self) -> None:
        """The momentum encoder follows; its batch-norm statistics come from its own passes."""
        if self.key is None:
            return
        for own, followed in zip(self.key.parameters(), self.network.parameters(), strict=True):
            own.lerp_(followed, 1 - self.options.momentum)

    def result(self) -> ContrastiveNetwork:
        return self.network if self.key is None else self.key


class _TwoEncoders(nn.Module):
    """Views i through one network and views j through another."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, views: Tensor) -> Tensor:
        i, j = views.chunk(2)
        return torch.cat([self.first(i), self.second(j)])
