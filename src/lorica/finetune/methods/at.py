"""Adversarial training."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lorica.finetune.methods.base import METHODS, Method
from lorica.vision import Classifier


@METHODS.register("at")
class AdversarialTraining(Method):
    """CE(h(x~), y) (Madry et al., ICLR 2018, arXiv 1706.06083, equation 2.1)."""

    summary = "cross-entropy of adversarial pictures"
    source = "Madry et al., ICLR 2018 (arXiv 1706.06083), equation 2.1"

    def __init__(self, options: Any, classifier: Classifier) -> None:
        super().__init__(options, classifier)
        self.weights = {"adversarial": 1.0}

    def forward(self, natural: Tensor, adversarial: Tensor) -> tuple[None, Tensor]:
        return None, self.classifier(adversarial)

    def terms(self, clean: Tensor | None, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"adversarial": F.cross_entropy(attacked, labels)}
