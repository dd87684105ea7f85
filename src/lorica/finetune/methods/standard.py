"""Standard fine-tuning of all weights: the baseline without robustness, and the teacher of the semi-supervised one."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lorica.finetune.methods.base import METHODS, Method
from lorica.vision import Classifier


@METHODS.register("standard")
class Standard(Method):
    """CE(h(x), y), over all weights; no picture is attacked in training."""

    summary = "cross-entropy of natural pictures: the baseline without robustness"
    source = "the usual one"

    def __init__(self, options: Any, classifier: Classifier) -> None:
        super().__init__(options, classifier)
        self.weights = {"natural": 1.0}

    @property
    def needs_attack(self) -> bool:
        return False

    def forward(self, natural: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(natural)
        return logits, logits

    def terms(self, clean: Tensor, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"natural": F.cross_entropy(clean, labels)}
