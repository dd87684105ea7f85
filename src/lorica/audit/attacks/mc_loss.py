"""Monte-Carlo loss: the adaptation loss averaged over many (t, eps)."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lorica.audit.attacks.base import Features, StatisticAttack, register
from lorica.audit.attacks.stream import StreamLosses
from lorica.config import Config


class McLossOptions(Config):
    draws: int = Field(16, ge=1, description="queries per picture, one in each of as many parts of the noise schedule")


@register("mc-loss")
class McLossAttack(StreamLosses, StatisticAttack[McLossOptions]):
    """Score = -(1/K) sum_k |eps_k - f(z_{t_k}, t_k, caption)|^2: the training loss itself, estimated per picture."""

    summary = "adaptation loss averaged over the noise schedule"
    source = (
        "Monte-Carlo form of Matsumoto et al., SPW 2023; a baseline in Zhai et al., NeurIPS 2024 (arXiv 2405.14800)"
    )
    threat_model = "gray"
    Options = McLossOptions

    def statistic(self, features: Features) -> NDArray[np.float64]:
        return -features["losses"].astype(np.float64).mean(axis=1)
