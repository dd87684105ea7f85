"""PFAMI: does the loss rise when the picture is cropped a little?"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lorica.audit.attacks.base import Features, StatisticAttack, register
from lorica.config import Config

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting


class PfamiOptions(Config):
    draws: int = Field(10, ge=1, description="crops, each compared with the picture at one (t, eps) (paper: 10)")
    highest: float = Field(
        0.45, gt=0, le=1, description="timesteps are spread over this first share of the schedule (paper: 450 of 1000)"
    )
    smallest: float = Field(0.75, gt=0, lt=1, description="sides of the crops are between this share and all")


@register("pfami")
class PfamiAttack(StatisticAttack[PfamiOptions]):
    """Score = mean_k (l(crop_k) - l(picture)) / l(picture), both losses at the same (t_k, eps_k).

    A member sits where the model's likelihood has a local maximum, so that every neighbour of it is less likely. What
    makes a picture easy or hard for any model cancels. Crops are of the picture as the model sees it, scaled back to
    its resolution.
    """

    summary = "rise of the loss from the picture to crops of it"
    source = "PFAMI_met: Fu et al., 2023 (arXiv 2308.12143)"
    threat_model = "gray"
    Options = PfamiOptions

    @property
    def queries(self) -> int:
        return 2 * self.options.draws

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": "pfami", **self.options.model_dump()}

    def ask(self, sitting: "Sitting") -> "Ask":
        """{"losses": (N, K), "losses_of_crops": (N, K)}."""
        count, o = self.options.draws, self.options
        places = [o.highest * (k + 0.5) / count for k in range(count)]
        queries = [sitting.at(place, "pfami", k) for k, place in enumerate(places)]
        crops = [sitting.at(place, "pfami", k, smallest_crop=o.smallest) for k, place in enumerate(places)]
        answers = yield [*queries, *crops]
        return {
            "losses": sitting.losses(queries, answers[:count]).numpy(),
            "losses_of_crops": sitting.losses(crops, answers[count:]).numpy(),
        }

    def statistic(self, features: Features) -> NDArray[np.float64]:
        losses = np.maximum(features["losses"].astype(np.float64), np.finfo(np.float64).tiny)
        return ((features["losses_of_crops"] - losses) / losses).mean(axis=1)
