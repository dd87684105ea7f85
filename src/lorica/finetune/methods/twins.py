"""TWINS: two networks of shared weights, one of them normalising with the statistics of pre-training."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lorica.config import Config
from lorica.errors import LoricaError
from lorica.finetune.methods.base import METHODS, Method, kl
from lorica.vision import Classifier
from lorica.vision.batch_norm import merge_routes, on_route, split_routes

FROZEN, ADAPTIVE = "frozen", "adaptive"


@METHODS.register("twins")
class Twins(Method):
    """The adaptive net's loss plus lambda times the frozen net's (Liu et al., CVPR 2023, arXiv 2303.11135).

    Half of a batch goes through each net, as in the authors' code. Both have scales of their own; the frozen net keeps
    the means and variances of pre-training. The attack and inference use the adaptive net.
    """

    class Options(Config):
        form: Literal["trades", "at"] = Field("trades", description="trades: TWINS-TRADES; at: TWINS-AT")
        lam: float = Field(0.3, ge=0, description="lambda, weight of the frozen net (authors: 0.3 to 1 by data set)")
        beta: float = Field(6.0, ge=0, description="weight of the KL term of TWINS-TRADES")
        kl_mean: Literal["paper", "authors"] = Field(
            "paper",
            description="paper: mean over each net's half of the batch; authors: over the whole batch, halving beta",
        )

    summary = "TRADES (or adversarial training) on two nets that differ in their batch-norm statistics"
    source = "Liu et al., CVPR 2023 (arXiv 2303.11135)"
    smallest = 2  # one for each net

    def __init__(self, options: Any, classifier: Classifier) -> None:
        super().__init__(options, classifier)
        if not split_routes(classifier, (ADAPTIVE, FROZEN), frozen=(FROZEN,)):
            raise LoricaError(
                f"method twins needs batch norms, which {classifier.architecture.name} has not",
                "Use autolora or vanilla, or a ResNet.",
            )
        if options.form == "at":
            self.weights = {"adversarial": 1.0}
        else:
            self.compared = ("natural", "kl")
            self.weights = {"natural": 1.0, "kl": options.beta / (2 if options.kl_mean == "authors" else 1)}

    def forward(self, natural: Tensor, adversarial: Tensor) -> tuple[Tensor | None, Tensor]:
        clean, attacked = [], []
        for route, x, perturbed in zip((FROZEN, ADAPTIVE), natural.chunk(2), adversarial.chunk(2), strict=True):
            with on_route(self.classifier, route):
                if self.options.form == "trades":
                    clean.append(self.classifier(x))
                attacked.append(self.classifier(perturbed))
        return torch.cat(clean) if clean else None, torch.cat(attacked)

    def terms(self, clean: Tensor | None, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        for weight, half in zip(
            (self.options.lam, 1.0), zip(*_halves(clean, attacked, labels), strict=True), strict=True
        ):
            for name, term in self._terms(*half).items():
                totals[name] = weight * term + totals.get(name, 0.0)
        return totals

    def _terms(self, clean: Tensor | None, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if clean is None:
            return {"adversarial": F.cross_entropy(attacked, labels)}
        return {"natural": F.cross_entropy(clean, labels), "kl": kl(clean, attacked)}

    def route(self) -> AbstractContextManager[None]:
        return on_route(self.classifier, ADAPTIVE)

    def inference(self) -> Classifier:
        copied = super().inference()
        merge_routes(copied, ADAPTIVE)
        return copied


def _halves(*tensors: Tensor | None) -> list[tuple[Tensor | None, ...]]:
    """Of each, the part of the frozen net and that of the adaptive one."""
    return [(None, None) if tensor is None else tensor.chunk(2) for tensor in tensors]
