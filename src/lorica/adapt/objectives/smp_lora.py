"""SMP-LoRA: adaptation loss divided by one minus lambda times the proxy attacker's MI gain."""

from torch import Tensor

from lorica.adapt.objectives.base import OBJECTIVES, Objective


def smp_loss(adaptation_loss: Tensor, gain: Tensor, lam: float, delta: float = 1e-5) -> Tensor:
    """L_SPL = L_ada / (1 - lambda G + delta) (arXiv 2402.11989, equation 10).

    Gradient flows through numerator and denominator. As G <= 0 the denominator is at least 1.

    Args:
        adaptation_loss: scalar L_ada >= 0.
        gain: scalar MI gain G <= 0.
        lam: lambda >= 0.
        delta: stabiliser, about 1e-5.

    Example:
        >>> smp_loss(torch.tensor(0.5), torch.tensor(-20.0), lam=0.05)
        tensor(0.2500)
    """
    return adaptation_loss / (1 - lam * gain + delta)


@OBJECTIVES.register("smp-lora")
class SmpLoraObjective(Objective):
    summary = "adaptation loss / (1 - lambda * MI gain); stable, private adaptation"
    source = "arXiv 2402.11989, equation (10)"
    needs_proxy = True

    def loss(self, adaptation_loss: Tensor, gain: Tensor | None) -> Tensor:
        assert gain is not None
        return smp_loss(adaptation_loss, gain, self.lam, self.delta)
