"""LiRA: is the picture's loss that of models which saw it, or that of models which did not?"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import norm

from lorica.audit.attacks.base import Attack, Groups, register
from lorica.audit.attacks.stream import StreamLosses
from lorica.config import Config
from lorica.errors import LoricaError

_FLOOR = 1e-12  # of a deviation: shadows that learned nothing agree on everything
_AUXILIARY = ("aux_members", "aux_nonmembers")


class LiraOptions(Config):
    draws: int = Field(16, ge=1, description="(t, eps) per picture that the statistic is averaged over")
    form: Literal["online", "offline"] = Field(
        "online",
        description="online: log N(phi; in) - log N(phi; out), from shadows with and without the picture; offline: "
        "how far phi lies above the shadows without it, in deviations",
    )
    own_deviation: int = Field(
        16,
        ge=2,
        description="shadows of a kind from which on a picture's own deviation is used; with fewer, one pooled over "
        "the auxiliary pictures",
    )


@register("lira")
class LiraAttack(StreamLosses, Attack[LiraOptions]):
    """Likelihood ratio of phi = -(mean adaptation loss), Gaussian among the shadows of either kind.

    online:  log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out)
    offline: (phi - mu_out) / s_out

    mu and s are a picture's own, over the shadows that it was or was not a member of. A picture that lacks shadows of
    one kind gets its mean there from the other kind, by the mean distance between both over the auxiliary pictures.
    Where no picture has two shadows of a kind, s is unknown and set to 1: the scores keep their order.
    """

    summary = "adaptation loss against those of shadow LoRAs with and without the picture"
    source = (
        "Carlini et al., S&P 2022 (arXiv 2112.03570), on the diffusion loss as in Carlini et al., USENIX 2023 "
        "(arXiv 2301.13188)"
    )
    threat_model = "gray"
    needs_shadows = True
    Options = LiraOptions

    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        phi = {group: -features["losses"].astype(np.float64).mean(axis=1) for group, features in groups.items()}
        among = {
            kind: {
                group: np.where(features["shadow_in"] == inside, -features["shadow_losses"].mean(axis=2), np.nan)
                for group, features in groups.items()
            }
            for kind, inside in (("in", True), ("out", False))
        }
        mean = {kind: {g: _mean(values) for g, values in among[kind].items()} for kind in among}
        gap = _mean(np.concatenate([mean["in"][g] - mean["out"][g] for g in _AUXILIARY])[None])[0]
        deviation = {kind: self._deviations(values) for kind, values in among.items()}
        scores = {}
        for group in groups:
            mu_out = np.where(np.isnan(mean["out"][group]), mean["in"][group] - gap, mean["out"][group])
            mu_in = np.where(np.isnan(mean["in"][group]), mean["out"][group] + gap, mean["in"][group])
            if self.options.form == "offline":
                scores[group] = (phi[group] - mu_out) / deviation["out"][group]
            else:
                scores[group] = norm.logpdf(phi[group], mu_in, deviation["in"][group]) - norm.logpdf(
                    phi[group], mu_out, deviation["out"][group]
                )
            if np.isnan(scores[group]).any():
                raise LoricaError(
                    "there are too few shadows: no auxiliary picture is in one and out of another",
                    "Train more, with lorica shadows RUN --count; or take the form offline.",
                )
        return scores

    def _deviations(self, among: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """(N,) standard deviations by group, of values (N, S) with NaN for shadows of the other kind."""
        auxiliary = np.concatenate([among[group] for group in _AUXILIARY])
        freedom = np.maximum(_count(auxiliary) - 1, 0).sum()
        pooled = np.sqrt(_squares(auxiliary).sum() / freedom) if freedom else 1.0
        deviations = {}
        for group, values in among.items():
            count = _count(values)
            own = np.sqrt(_squares(values) / np.maximum(count - 1, 1))
            deviations[group] = np.maximum(np.where(count >= self.options.own_deviation, own, pooled), _FLOOR)
        return deviations


def _count(values: NDArray[np.float64]) -> NDArray[np.int_]:
    return (~np.isnan(values)).sum(axis=1)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) means over what is not NaN; NaN where nothing is."""
    count = _count(values)
    return np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)


def _squares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) sums of squares about the mean."""
    return np.nansum(np.square(values - _mean(values)[:, None]), axis=1)
