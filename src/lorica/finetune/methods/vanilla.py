"""Vanilla robust fine-tuning: TRADES on all weights."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lorica.config import Config
from lorica.errors import LoricaError
from lorica.finetune.methods.base import METHODS, Method, kl
from lorica.robustness.pgd import Loss, cross_entropy, divergence
from lorica.vision import Classifier
from lorica.vision.batch_norm import load_route, merge_routes, on_route, split_routes

NATURAL, ADVERSARIAL = "natural", "adversarial"


@METHODS.register("vanilla")
class Vanilla(Method):
    """CE(h(x), y) + beta KL(h(x) || h(x~)) (Zhang et al., ICML 2019, arXiv 1901.08573; equation 2 of 2310.01818)."""

    class Options(Config):
        beta: float = Field(6.0, ge=0, description="weight of the KL term")
        attack_loss: Literal["ce", "kl"] = Field("ce", description="what the attack raises; kl: as in TRADES")
        batch_norm: Literal["shared", "dual"] = Field(
            "shared", description="dual: natural and adversarial pictures have statistics of their own, as the "
            "encoder brings them or else both as its only ones; inference keeps the adversarial ones"
        )  # fmt: skip

    summary = "cross-entropy of natural pictures + beta times the KL from natural to adversarial outputs"
    source = "TRADES: Zhang et al., ICML 2019 (arXiv 1901.08573)"

    def __init__(self, options: Any, classifier: Classifier) -> None:
        super().__init__(options, classifier)
        self.weights, self.compared = {"natural": 1.0, "kl": options.beta}, ("natural", "kl")
        if options.batch_norm == "shared":
            return
        if not split_routes(classifier, (ADVERSARIAL, NATURAL)):
            raise LoricaError(
                f"dual batch norms need batch norms, which {classifier.architecture.name} has not",
                "Use --set options.batch_norm=shared, or a ResNet.",
            )
        if classifier.natural_norms is not None:
            load_route(classifier.backbone, NATURAL, classifier.natural_norms)

    def forward(self, natural: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        with on_route(self.classifier, NATURAL):
            clean = self.classifier(natural)
        return clean, self.classifier(adversarial)

    def terms(self, clean: Tensor, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"natural": F.cross_entropy(clean, labels), "kl": kl(clean, attacked)}

    def route(self) -> AbstractContextManager[None]:
        return on_route(self.classifier, ADVERSARIAL)

    def attacker(self, natural: Tensor, labels: Tensor) -> Loss:
        if self.options.attack_loss == "ce":
            return cross_entropy(labels)
        with torch.no_grad(), on_route(self.classifier, NATURAL):
            return divergence(self.classifier(natural))

    def inference(self) -> Classifier:
        copied = super().inference()
        merge_routes(copied, ADVERSARIAL)
        return copied
