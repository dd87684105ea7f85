"""MP-LoRA: adaptation loss plus lambda times the proxy attacker's MI gain."""

from torch import Tensor

from lorica.adapt.objectives.base import OBJECTIVES, Objective


def mp_loss(adaptation_loss: Tensor, gain: Tensor, lam: float) -> Tensor:
    """L_PL = L_ada + lambda G (arXiv 2402.11989, equation 6).

    Args:
        adaptation_loss: scalar L_ada >= 0.
        gain: scalar MI gain G <= 0.
        lam: lambda >= 0.

    Example:
        >>> mp_loss(torch.tensor(0.5), torch.tensor(-2.0), lam=0.05)
        tensor(0.4000)
    """
    return adaptation_loss + lam * gain


@OBJECTIVES.register("mp-lora")
class MpLoraObjective(Objective):
    summary = "adaptation loss + lambda * MI gain; unstable (kept as the paper's baseline)"
    source = "arXiv 2402.11989, equation (6)"
    needs_proxy = True

    def loss(self, adaptation_loss: Tensor, gain: Tensor | None) -> Tensor:
        assert gain is not None
        return mp_loss(adaptation_loss, gain, self.lam)
