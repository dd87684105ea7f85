"""CLiD: how much the caption helps the model with a picture."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.ensemble import HistGradientBoostingClassifier

from lorica.audit.attacks.base import Attack, Features, Groups, cross_fitted, register
from lorica.audit.score import MembershipScores
from lorica.config import Config

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting


class ClidOptions(Config):
    draws: int = Field(16, ge=1, description="(t, eps) per picture, each asked with and without the caption")


class _Clid(Attack[ClidOptions]):
    """I = |eps - e(z_t, t)|^2 - |eps - e(z_t, t, caption)|^2 at every draw: the conditional likelihood discrepancy."""

    source = "Zhai et al., NeurIPS 2024 (arXiv 2405.14800)"
    threat_model = "gray"
    needs_caption = True
    Options = ClidOptions

    @property
    def queries(self) -> int:
        return 2 * self.options.draws

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": "clid", "draws": self.options.draws}

    def ask(self, sitting: "Sitting") -> "Ask":
        """{"losses": (N, K), "losses_without": (N, K)}, in the order of t."""
        queries = [sitting.draw(k) for k in range(self.options.draws)]
        without = [sitting.draw(k, own_caption=False) for k in range(self.options.draws)]
        answers = yield [*queries, *without]
        return {
            name: sitting.along_schedule(asked, sitting.losses(asked, answered)).numpy()
            for name, asked, answered in (
                ("losses", queries, answers[: len(queries)]),
                ("losses_without", without, answers[len(queries) :]),
            )
        }


@register("clid")
class ClidAttack(_Clid):
    """Score = alpha S(mean I) + (1 - alpha) S(-mean loss), S scaling by median and interquartile range.

    Scales and alpha come from the auxiliary pictures (the paper takes them from a shadow model).
    """

    summary = "how much the caption lowers the loss, and the loss itself; threshold form"

    _WEIGHTS = np.linspace(0, 1, 11)

    @property
    def trials(self) -> int:
        return len(self._WEIGHTS)

    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        parts = {group: np.stack(_summaries(features), axis=1) for group, features in groups.items()}
        auxiliary = np.concatenate([parts["aux_members"], parts["aux_nonmembers"]])
        low, middle, high = np.quantile(auxiliary, [0.25, 0.5, 0.75], axis=0)
        scale = np.where(high > low, high - low, 1)
        scaled = {group: (values - middle) / scale for group, values in parts.items()}
        weights = np.stack([self._WEIGHTS, 1 - self._WEIGHTS])
        candidates = {group: values @ weights for group, values in scaled.items()}
        found = [
            MembershipScores(members, nonmembers).auc
            for members, nonmembers in zip(candidates["aux_members"].T, candidates["aux_nonmembers"].T, strict=True)
        ]
        return {group: values[:, int(np.argmax(found))] for group, values in candidates.items()}


@register("clid-vec")
class ClidVecAttack(_Clid):
    """Score = log-odds of boosted trees on all I and losses, in the order of t, fitted to the auxiliary pictures."""

    summary = "how much the caption lowers the loss, and the loss itself; vector form (boosted trees)"

    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        inputs = {group: np.concatenate(_discrepancies(features), axis=1) for group, features in groups.items()}

        def fit(members: NDArray[np.float64], nonmembers: NDArray[np.float64]) -> Any:
            trees = HistGradientBoostingClassifier(
                max_iter=100, learning_rate=0.05, max_leaf_nodes=4, min_samples_leaf=5, random_state=seed
            )
            labels = np.r_[np.ones(len(members)), np.zeros(len(nonmembers))]
            return trees.fit(np.concatenate([members, nonmembers]), labels).decision_function

        return cross_fitted(inputs, fit)


def _discrepancies(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """I (N, K) and losses (N, K)."""
    losses, without = (features[name].astype(np.float64) for name in ("losses", "losses_without"))
    return without - losses, losses


def _summaries(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    discrepancies, losses = _discrepancies(features)
    return discrepancies.mean(axis=1), -losses.mean(axis=1)
