"""Linear fine-tuning: a new head on a frozen encoder."""

from typing import Any, Self

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lorica.config import Config
from lorica.finetune.methods.base import METHODS, Method
from lorica.vision import Classifier


@METHODS.register("linear")
class Linear(Method):
    """CE(h(x), y), or CE(h(x~), y), over the head's weights only (Xu et al., NeurIPS 2023, arXiv 2305.00374).

    Standard (SLF) and adversarial (ALF) linear fine-tuning, by which robust encoders are compared. The encoder stays
    in eval mode: neither its weights nor the statistics of its batch norms change.
    """

    class Options(Config):
        adversarial: bool = Field(False, description="of attacked pictures (ALF) instead of natural ones (SLF)")

    summary = "cross-entropy of natural or adversarial pictures; the head learns, all else is frozen"
    source = "SLF and ALF of Xu et al., NeurIPS 2023 (arXiv 2305.00374)"

    def __init__(self, options: Any, classifier: Classifier) -> None:
        super().__init__(options, classifier)
        self.weights = {"adversarial" if options.adversarial else "natural": 1.0}
        for _, parameter in classifier.feature_parameters():
            parameter.requires_grad_(False)
        self.train()

    @property
    def needs_attack(self) -> bool:
        return bool(self.options.adversarial)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, natural: Tensor, adversarial: Tensor) -> tuple[Tensor | None, Tensor]:
        logits = self.classifier(adversarial if self.needs_attack else natural)
        return (None if self.needs_attack else logits), logits

    def terms(self, clean: Tensor | None, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        (name,) = self.weights
        return {name: F.cross_entropy(attacked, labels)}
