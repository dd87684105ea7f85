"""RMIA: does training raise the likelihood of this picture more than that of pictures from the population?"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import logsumexp

from lorica.audit.attacks.base import Attack, Features, Groups, register
from lorica.audit.attacks.stream import StreamLosses
from lorica.config import Config


class RmiaOptions(Config):
    draws: int = Field(16, ge=1, description="(t, eps) per picture that the loss is averaged over")
    gamma: float = Field(1.0, gt=0, description="how much more likely than a population picture counts as a win")
    scale: float | None = Field(
        None,
        gt=0,
        description="likelihood = exp(-scale * loss); by default one over the deviation of a picture's loss between "
        "shadows, pooled over the auxiliary pictures",
    )


@register("rmia")
class RmiaAttack(StreamLosses, Attack[RmiaOptions]):
    """Score = share of population pictures z with [p(x | model) / p(x)] / [p(z | model) / p(z)] >= gamma.

    p(x) is the mean of p(x | shadow) over the shadows, half of which saw x. The population are the auxiliary
    non-members, of which none is compared with itself; test pictures never are. A share, so there are ties.

    A classifier's likelihood is its confidence; a diffusion model has only its loss, the bound on -log p(x) up to a
    factor that depends on weighting, resolution and number of timesteps. With the true factor, p(x) is the largest of
    the p(x | shadow), and all else drowns. So losses are measured in what they differ by between shadows: `scale` is
    one over that deviation, known without the audited model.
    """

    summary = "likelihood against shadow LoRAs, relative to that of population pictures"
    source = "Zarifzadeh, Liu and Shokri, ICML 2024 (arXiv 2312.03262)"
    threat_model = "gray"
    needs_shadows = True
    Options = RmiaOptions

    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        scale = self.options.scale or _scale([groups["aux_members"], groups["aux_nonmembers"]])
        gains = {group: _gain(features, scale) for group, features in groups.items()}
        population = gains["aux_nonmembers"]
        scores = {}
        for group, gain in gains.items():
            wins = gain[:, None] - population >= np.log(self.options.gamma)
            if group == "aux_nonmembers":
                np.fill_diagonal(wins, False)
            scores[group] = wins.sum(axis=1) / (len(population) - (group == "aux_nonmembers"))
        return scores


def _gain(features: Features, scale: float) -> NDArray[np.float64]:
    """(N,) log p(x | model) - log p(x)."""
    shadows = -scale * features["shadow_losses"].mean(axis=2)
    return -scale * features["losses"].mean(axis=1) - (logsumexp(shadows, axis=1) - np.log(shadows.shape[1]))


def _scale(auxiliary: list[Features]) -> float:
    """One over the deviation of a picture's mean loss between shadows; 1 where shadows do not differ."""
    losses = np.concatenate([features["shadow_losses"].mean(axis=2) for features in auxiliary])
    deviation = float(np.sqrt(losses.var(axis=1).mean()))
    return 1 / deviation if deviation > 0 else 1.0
