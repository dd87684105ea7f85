"""Loss: the adaptation loss at one (t, eps)."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lorica.audit.attacks.base import Features, StatisticAttack, register
from lorica.config import Config

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting


class LossOptions(Config):
    timestep: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="where on the noise schedule the one query is made, as a share of it: 0.2 is t = 200 of 1000, "
        "where the picture still matters to the prediction and noise already hides part of it",
    )


@register("loss")
class LossAttack(StatisticAttack[LossOptions]):
    """Score = -|eps - f(z_t, t, caption)|^2, the mean over elements, at one fixed t and one noise per picture.

    The weakest attack, because one draw of noise moves the loss more than membership does.
    """

    summary = "adaptation loss at one timestep and one noise"
    source = "Matsumoto et al., SPW 2023; Hu and Pang, ISC 2023"
    threat_model = "gray"
    Options = LossOptions

    @property
    def queries(self) -> int:
        return 1

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": "loss", "timestep": self.options.timestep}

    def ask(self, sitting: "Sitting") -> "Ask":
        """{"loss": (N,)}."""
        query = sitting.at(self.options.timestep, "loss")
        return {"loss": sitting.losses([query], (yield [query]))[:, 0].numpy()}

    def statistic(self, features: Features) -> NDArray[np.float64]:
        return -features["loss"].astype(np.float64)
