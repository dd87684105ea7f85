"""SimA: the size of what the model wants to remove from a picture that has no noise in it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from lorica.audit.attacks.base import Attack, Groups, register
from lorica.audit.score import MembershipScores
from lorica.config import Config

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting


class SimaOptions(Config):
    timesteps: list[float] = Field(
        [0.0, 0.02, 0.05, 0.1, 0.2, 0.3],
        min_length=1,
        description="shares of the noise schedule to ask at; of several, the one that tells the auxiliary pictures "
        "apart best is taken",
    )
    norm: float = Field(4, ge=1, description="p of the l_p norm (paper: 4)")

    @field_validator("timesteps")
    @classmethod
    def _in_range(cls, places: list[float]) -> list[float]:
        if not all(0 <= place < 1 for place in places):
            raise ValueError("timesteps are shares of the schedule, in [0, 1)")
        return places


@register("sima")
class SimaAttack(Attack[SimaOptions]):
    """Score = -|e(z_0, t)|_p at the t that is best on the auxiliary pictures (the released code: on the test set).

    The optimal prediction points from the picture to the mean of training pictures nearby: for a member, to itself.
    """

    summary = "norm of the prediction for the picture without noise"
    source = "Rao, Qu and Moyer, 2025 (arXiv 2509.25003)"
    threat_model = "gray"
    Options = SimaOptions

    @property
    def queries(self) -> int:
        return len(self.options.timesteps)

    @property
    def trials(self) -> int:
        return len(self.options.timesteps)

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": "sima", **self.options.model_dump()}

    def ask(self, sitting: "Sitting") -> "Ask":
        """{"norm": (N, timesteps)}."""
        steps = [int(place * sitting.model.train_timesteps) for place in self.options.timesteps]
        queries = [sitting.given("clean", sitting.latents, t) for t in steps]
        answers = yield queries
        p = self.options.norm
        sizes = [
            sitting.noise(q, a).double().abs().flatten(1).pow(p).mean(1).pow(1 / p)
            for q, a in zip(queries, answers, strict=True)
        ]
        return {"norm": np.stack([size.cpu().numpy() for size in sizes], axis=1)}

    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        scores = {group: -features["norm"].astype(np.float64) for group, features in groups.items()}
        found = [
            MembershipScores(members, nonmembers).auc
            for members, nonmembers in zip(scores["aux_members"].T, scores["aux_nonmembers"].T, strict=True)
        ]
        return {group: values[:, int(np.argmax(found))] for group, values in scores.items()}
