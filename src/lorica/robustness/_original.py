"""The attacks of AutoAttack as their authors wrote them, from the package pyautoattack; imported only when wanted."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor

from lorica.robustness.attacked import Counted
from lorica.robustness.threat import Threat

if TYPE_CHECKING:
    from lorica.robustness.autoattack import AutoAttackSettings

_SILENT = logging.Logger("pyautoattack")  # no child of the root: what it warns of, our flags say
_SILENT.addHandler(logging.NullHandler())


def attackers(
    model: Counted, threat: Threat, settings: "AutoAttackSettings", *, padded: bool, seed: int
) -> dict[str, Any]:
    """The attacks by name, with the settings of AutoAttack's version "standard" where `settings` has no others.

    Each has a method `perturb(pixels, labels)`, which seeds torch with `seed` and returns adversarial pixels.

    Args:
        model: that is attacked.
        threat: the allowed pictures.
        settings: sizes of the attacks.
        padded: whether Square needs a canvas.
        seed: of every call of `perturb`.
    """
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    common: dict[str, Any] = {"eps": threat.eps, "norm": norm, "seed": seed, "device": model.device, "verbose": False}
    apgd = common | {"n_iter": settings.iterations, "rho": 0.75, "eot_iter": 1, "logger": _SILENT}
    targeted = {"n_restarts": 1, "n_target_classes": settings.targets}
    square = PaddedSquare if padded else SquareAttack
    return {
        "apgd-ce": APGDAttack(model, n_restarts=settings.restarts, loss="ce", **apgd),
        "apgd-dlr": APGDAttack(model, n_restarts=settings.restarts, loss="dlr", **apgd),
        "apgd-t": APGDAttack_targeted(model, **targeted, **apgd),
        "fab-t": FABAttack_PT(model, n_iter=settings.iterations, targeted=True, **targeted, **common),
        "square": square(
            model, p_init=0.8, n_queries=settings.queries, n_restarts=1, resc_schedule=False, **common
        ),
    }  # fmt: skip


class PaddedSquare(SquareAttack):
    """The original, on a square canvas that the picture lies in a corner of and that its grid of tiles fits.

    The model sees the picture alone. Outside of it perturbations are erased before they are scaled to length eps, so
    that none of the length is spent there; queries whose squares miss the picture are lost.
    """

    def __init__(self, predict: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__(lambda canvas: predict(self._picture(canvas)), **options)

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """As in the original."""
        self.height, self.width = x.shape[2:]
        side = -(-max(self.height, self.width) // 5) * 5
        margin = (0, side - self.width, 0, side - self.height)
        self.inside = F.pad(x.new_ones(1, 1, self.height, self.width), margin)
        return self._picture(super().perturb(F.pad(x, margin), y))

    def normalize(self, x: Tensor) -> Tensor:
        """A perturbation, erased outside of the picture and of length 1."""
        return super().normalize(x * self.inside)

    def _picture(self, canvas: Tensor) -> Tensor:
        return canvas[..., : self.height, : self.width].contiguous()
