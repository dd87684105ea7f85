"""Plain LoRA: the adaptation loss alone."""

from torch import Tensor

from lorica.adapt.objectives.base import OBJECTIVES, Objective


@OBJECTIVES.register("lora")
class LoraObjective(Objective):
    summary = "adaptation loss only; no protection (the baseline)"
    source = "arXiv 2402.11989, equation (3)"
    needs_proxy = False

    def loss(self, adaptation_loss: Tensor, gain: Tensor | None) -> Tensor:
        return adaptation_loss
