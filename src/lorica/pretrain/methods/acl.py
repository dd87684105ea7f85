"""Adversarial contrastive learning."""

from lorica.pretrain.methods.base import METHODS, Method
from lorica.pretrain.schedule import Emphasis


@METHODS.register("acl")
class Acl(Method):
    """NT-Xent of natural views plus NT-Xent of adversarial ones (Jiang et al., NeurIPS 2020, arXiv 2010.13337).

    Their "dual stream". The sum is not halved, as in arXiv 2305.00374: its lambda_1 and lambda_2 are relative to that.
    """

    summary = "NT-Xent of natural and of adversarial views, with batch norms for each"
    source = "Jiang et al., NeurIPS 2020 (arXiv 2010.13337)"

    def emphasis(self, epoch: int, epochs: int) -> Emphasis:
        return Emphasis(strength=1.0, natural=1.0, adversarial=1.0)
