"""Semi-supervised robust fine-tuning: where labels are missing, a teacher's outputs stand in for them."""

import copy
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lorica.config import Config
from lorica.errors import LoricaError
from lorica.finetune.methods.base import METHODS, Method, kl
from lorica.robustness.pgd import Loss, cross_entropy
from lorica.vision import Classifier, ModelConfig, load_classifier


@METHODS.register("distill")
class Distill(Method):
    """The recipe of ACL for few labels (Jiang et al., NeurIPS 2020, arXiv 2010.13337), as its code has it.

    Mean over the batch's pictures, t being the teacher and H(p, q) = -sum p log q:

        (1 - alpha) CE(h(x~), y) + alpha H(t(x), h(x~))   where the label is known
        H(t(x), h(x~))                                    elsewhere
        + beta KL(h(x) || h(x~))

    x~ raises the cross-entropy with the label, or with what the teacher says where there is none. The teacher sees the
    same random crop as the network; the authors ask it once, about each whole picture.
    """

    class Options(Config):
        teacher: str | None = Field(
            None, description="folder of a classifier of the same classes; by default the network as it is when "
            "training begins, which makes sense where its head is kept"
        )  # fmt: skip
        alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher where the label is known")
        beta: float = Field(6.0, ge=0, description="weight of the KL term")

    summary = "adversarial cross-entropy with labels and a teacher, by the teacher alone where labels miss, + KL"
    source = "Jiang et al., NeurIPS 2020 (arXiv 2010.13337), and its code"
    takes_unlabelled = True

    def __init__(self, options: Any, classifier: Classifier) -> None:
        super().__init__(options, classifier)
        self.weights = {"adversarial": 1 - options.alpha, "distillation": 1.0, "kl": options.beta}
        self.compared = ("distillation", "kl")
        self.teacher = copy.deepcopy(classifier) if options.teacher is None else _teacher(options.teacher, classifier)
        self.teacher.requires_grad_(False)
        self._asked: Tensor | None = None
        self._said: Tensor | None = None
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, natural: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        self._teach(natural)
        return self.classifier(natural), self.classifier(adversarial)

    def terms(self, clean: Tensor, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """With -1 among the labels where they are not known; means over all pictures of the batch."""
        assert self._said is not None
        known = labels >= 0
        told = -(self._said.softmax(1).to(attacked.dtype) * attacked.log_softmax(1)).sum(1)
        labelled = F.cross_entropy(attacked, labels, ignore_index=-1, reduction="sum") / len(labels)
        return {
            "adversarial": labelled,
            "distillation": (torch.where(known, self.options.alpha, 1.0) * told).mean(),
            "kl": kl(clean, attacked),
        }

    def attacker(self, natural: Tensor, labels: Tensor) -> Loss:
        return cross_entropy(torch.where(labels >= 0, labels, self._teach(natural).argmax(1)))

    def _teach(self, natural: Tensor) -> Tensor:
        """The teacher's logits (N, classes); it is asked once per batch."""
        if self._said is None or self._asked is not natural:
            with torch.no_grad():
                self._asked, self._said = natural, self.teacher(natural).float()
        return self._said


def _teacher(name: str, classifier: Classifier) -> Classifier:
    teacher, _ = load_classifier(ModelConfig(name=name))
    same = {
        "classes": (teacher.classes, classifier.classes),
        "sizes of pictures": (teacher.architecture.size, classifier.architecture.size),
    }
    for what, (its, ours) in same.items():
        if its != ours:
            raise LoricaError(
                f"the teacher {name} has other {what} than the network: {its}, not {ours}",
                "Train the teacher on the same data: lorica finetune --method standard.",
            )
    return teacher
