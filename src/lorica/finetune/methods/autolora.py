"""AutoLoRa: the natural objective through a LoRA branch, the adversarial one through the feature extractor."""

from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lorica.config import Config
from lorica.finetune.branch import Coverage, LoraBranch
from lorica.finetune.methods.base import METHODS, Method, kl
from lorica.finetune.schedule import loss_weights
from lorica.vision import Classifier


@METHODS.register("autolora")
class AutoLora(Method):
    """Equation 5 of Xu et al., ICLR 2024 (arXiv 2310.01818), with lambda_1 and lambda_2 of its equations 7 to 9:

        lambda_1 CE(b(x), y) + (1 - lambda_1) CE(h(x~), y) + lambda_2 KL(b(x) || h(x~)),  b of weights theta_1 + BA

    The natural loss reaches A, B and the head; the adversarial one the whole classifier; the KL all of them: theta_1
    is held fixed in b, and neither side is detached. The natural pass comes first, and both passes update the shared
    batch norms, as in the authors' code. Inference drops the branch.
    """

    class Options(Config):
        rank: int = Field(8, ge=1, description="r of the branch (paper: 8)")
        branch_coverage: Coverage = Field(
            "all",
            description="layers with a branch. last-block: of the last block of each stage only, as in the authors' "
            "code for high resolutions",
        )
        alpha: float = Field(1.0, gt=0, description="sharpness of the schedule of the loss weights (paper: 1)")
        lambda2_max: float = Field(6.0, ge=0, description="weight of the KL at a natural accuracy of 1 (paper: 6)")
        lambda1: float | None = Field(None, ge=0, le=1, description="fixed instead of scheduled: for ablations")
        lambda2: float | None = Field(None, ge=0, description="likewise")

    summary = "natural loss through a LoRA branch, adversarial loss and KL through the network; weights scheduled"
    source = "Xu, Zhang and Kankanhalli, ICLR 2024 (arXiv 2310.01818), equation 5"
    automatic = True
    needs_natural_accuracy = True

    def __init__(self, options: Any, classifier: Classifier) -> None:
        super().__init__(options, classifier)
        self.branch = LoraBranch(classifier, rank=options.rank, coverage=options.branch_coverage)
        self.compared = ("adversarial", "kl")  # the natural loss has no gradient on the features
        self.adjust(0.0)

    def forward(self, natural: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        return self.natural_logits(natural), self.classifier(adversarial)

    def terms(self, clean: Tensor, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {
            "natural": F.cross_entropy(clean, labels),
            "adversarial": F.cross_entropy(attacked, labels),
            "kl": kl(clean, attacked),
        }

    def natural_logits(self, pixels: Tensor) -> Tensor:
        return self.branch(self.classifier, pixels)

    def adjust(self, natural_accuracy: float) -> None:
        options = self.options
        lambda1, lambda2 = loss_weights(natural_accuracy, options.alpha, options.lambda2_max)
        lambda1 = lambda1 if options.lambda1 is None else options.lambda1
        lambda2 = lambda2 if options.lambda2 is None else options.lambda2
        self.weights = {"natural": lambda1, "adversarial": 1 - lambda1, "kl": lambda2}
