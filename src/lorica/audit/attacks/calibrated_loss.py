"""Calibrated loss: how much better the LoRA predicts a picture than its base model does."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lorica.audit.attacks.base import Features, StatisticAttack, register
from lorica.audit.attacks.stream import StreamLosses
from lorica.config import Config


class CalibratedLossOptions(Config):
    draws: int = Field(
        16, ge=1, description="queries per picture and model, one in each of as many parts of the schedule"
    )
    form: Literal["log-ratio", "difference"] = Field(
        "log-ratio",
        description="log-ratio: mean log(base loss / LoRA loss), in which every timestep weighs the same; difference: "
        "mean (base loss - LoRA loss), in which the timesteps of large loss weigh most",
    )


@register("calibrated-loss")
class CalibratedLossAttack(StreamLosses, StatisticAttack[CalibratedLossOptions]):
    """Score = (1/K) sum_k log(l_base,k / l_lora,k), or the mean difference, both models at the same (t_k, eps_k).

    Some pictures are easy for any model; the base model says which, and what remains is owed to the training. The
    base of a published LoRA is public, so an attacker always has it.
    """

    summary = "base model's loss against the LoRA's, on the same noise"
    source = (
        "the fine-tuned/base loss ratio of Wang et al., arXiv 2402.17012 (language models), on the adaptation loss"
    )
    threat_model = "gray"
    needs_base = True
    Options = CalibratedLossOptions

    @property
    def queries(self) -> int:
        return 2 * self.options.draws

    def statistic(self, features: Features) -> NDArray[np.float64]:
        lora, base = (features[name].astype(np.float64) for name in ("losses", "base_losses"))
        if self.options.form == "difference":
            return (base - lora).mean(axis=1)
        smallest = np.finfo(np.float64).tiny  # a loss of exactly zero is as memorised as can be, not an error
        return (np.log(np.maximum(base, smallest)) - np.log(np.maximum(lora, smallest))).mean(axis=1)
