"""Standard contrastive learning: SimCLR, without an attacker."""

from lorica.pretrain.methods.base import METHODS, Method
from lorica.pretrain.schedule import Emphasis


@METHODS.register("scl")
class Scl(Method):
    """NT-Xent of natural views (Chen et al., ICML 2020, arXiv 2002.05709): the baseline that is not robust."""

    summary = "NT-Xent of natural views: SimCLR, the baseline without robustness"
    source = "Chen et al., ICML 2020 (arXiv 2002.05709)"
    robust = False

    def emphasis(self, epoch: int, epochs: int) -> Emphasis:
        return Emphasis(strength=1.0, natural=1.0, adversarial=0.0)
