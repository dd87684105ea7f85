"""From two arrays of scores to what an attacker achieves, with intervals. Knows no model; numpy and scipy only.

>>> from lorica.audit import MembershipScores
>>> scores = MembershipScores(members=[2.0, 3.0, 1.5, 0.2], nonmembers=[0.1, 1.0, 0.3, -1.0])
>>> scores.auc
0.875
>>> scores.tpr_at(0.0)
0.75
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import beta, norm, rankdata

from lorica.audit.epsilon import Floats, Method, checked_scores, epsilon_from_scores

Interval = tuple[float, float]
Metric = Literal["auc", "asr", "oracle_asr", "tpr_at", "tpr", "attained_fpr"]


@dataclass(frozen=True, eq=False)
class MembershipScores:
    """The scores that one attack gave to members and to non-members of the training set.

    Args:
        members: (m,) scores of training pictures; higher means "more member-like".
        nonmembers: (n,) scores of pictures of the same origin that were not trained on.

    Raises:
        ValueError: an array is empty, not 1-D, or holds NaN or infinity.
    """

    members: Floats
    nonmembers: Floats

    def __init__(self, members: ArrayLike, nonmembers: ArrayLike) -> None:
        object.__setattr__(self, "members", checked_scores(members, "members"))
        object.__setattr__(self, "nonmembers", checked_scores(nonmembers, "nonmembers"))

    # --- the whole curve

    @cached_property
    def auc(self) -> float:
        """P(member scores above non-member) + P(tie) / 2, in [0, 1]; exact (Mann-Whitney).

        Signed: below 0.5 members score *lower*. That is a leak as well, for whoever flips the sign.
        """
        m, n = len(self.members), len(self.nonmembers)
        ranks = rankdata(np.concatenate([self.members, self.nonmembers]))
        return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))

    @property
    def auc_distance(self) -> float:
        """|AUC - 0.5| / 0.5 in [0, 1], as reported by Luo et al. (2402.11989, appendix E). It hides the sign."""
        return abs(self.auc - 0.5) / 0.5

    def roc(self) -> tuple[Floats, Floats]:
        """(fpr, tpr) at every distinct threshold, from (0, 0) to (1, 1). Exact; tied scores share one vertex."""
        _, fpr, tpr = self._curve
        return fpr, tpr

    @cached_property
    def _curve(self) -> tuple[Floats, Floats, Floats]:
        """(cuts, fpr, tpr): the distinct scores, falling, after "nobody is flagged"; `score >= cut` is flagged."""
        cuts = np.unique(np.concatenate([self.members, self.nonmembers]))[::-1]
        above = [np.sort(group)[::-1] for group in (self.nonmembers, self.members)]
        fpr, tpr = (np.searchsorted(-group, -cuts, side="right") / len(group) for group in above)
        nobody = np.nextafter(cuts[0], np.inf)
        return np.r_[nobody, cuts], np.r_[0.0, fpr], np.r_[0.0, tpr]

    # --- one threshold

    def asr(self, threshold: float) -> float:
        """Attack success rate in [0, 1]: (members at or above + non-members below) / all.

        The threshold must come from elsewhere (auxiliary scores), or the rate flatters the attack.
        """
        return self._correct(threshold) / self._size

    @property
    def constant_asr(self) -> float:
        """What "everyone is a member" or "nobody is" achieves: the rate that an ASR has to beat."""
        return max(len(self.members), len(self.nonmembers)) / self._size

    def oracle_asr(self) -> float:
        """The best ASR over all thresholds, chosen knowing the answer: optimistic, and more so with few scores."""
        return self.asr(self.oracle_threshold())

    def oracle_threshold(self) -> float:
        """The threshold of `oracle_asr`, midway between two neighbouring scores so that it transfers.

        Taken on auxiliary scores, it is an honest threshold for the ASR on test scores. Of equally good thresholds
        the highest is returned.
        """
        cuts, fpr, tpr = self._curve
        best = int(np.argmax(tpr * len(self.members) - fpr * len(self.nonmembers)))
        if best in (0, len(cuts) - 1):  # nobody, or everybody: there is no neighbour to keep a distance from
            return float(cuts[best])
        middle = float(cuts[best] / 2 + cuts[best + 1] / 2)
        return middle if middle > cuts[best + 1] else float(cuts[best])

    # --- few false alarms

    def tpr_at(self, fpr: float) -> float:
        """Share of members found at the largest attainable false-positive rate <= `fpr`, in [0, 1]. Exact, no grid.

        Tied non-members are flagged together or not at all, so with ties the attained rate may be well below `fpr`.
        """
        return float(np.mean(self.members > self._cut(fpr)))

    def attained_fpr(self, fpr: float) -> float:
        """The false-positive rate at which `tpr_at(fpr)` was taken."""
        return float(np.mean(self.nonmembers > self._cut(fpr)))

    def reliable(self, fpr: float) -> bool:
        """Whether at least 10 non-members are expected above the threshold, that is n >= 10 / `fpr`."""
        return len(self.nonmembers) * fpr >= 10 or math.isclose(len(self.nonmembers) * fpr, 10)

    def note(self, fpr: float) -> str:
        """What to say beside an unreliable `tpr_at(fpr)`; empty when it is reliable."""
        if self.reliable(fpr):
            return ""
        n = len(self.nonmembers)
        wanted = f"at least {math.ceil(10 / fpr - 1e-9)} are wanted" if fpr > 0 else "no number of them is enough"
        return (
            f"TPR at {fpr:.3g} FPR rests on {round(self.attained_fpr(fpr) * n)} of {n} non-members ({wanted}): "
            f"the true FPR may be as high as {self.interval('attained_fpr', fpr=fpr)[1]:.3f}"
        )

    def _cut(self, fpr: float) -> float:
        """Scores strictly above this are flagged."""
        if not 0 <= fpr <= 1:
            raise ValueError(f"a false-positive rate is in [0, 1], not {fpr}")
        n = len(self.nonmembers)
        allowed = min(n, math.floor(fpr * n) + 1)
        while allowed / n > fpr:  # compared as a quotient: 0.29 * 100 is 28.999..., 29 / 100 is 0.29
            allowed -= 1
        return -math.inf if allowed == n else float(np.sort(self.nonmembers)[n - 1 - allowed])

    # --- differential privacy

    def epsilon(self, delta: float = 0.0, level: float = 0.95, method: Method = "bonferroni", seed: int = 0) -> float:
        """The epsilon below which these scores reject (epsilon, `delta`)-privacy, in [0, inf); 0 rejects nothing.

        `lorica.audit.epsilon.epsilon_from_scores` says what it assumes: above all, scores that are independent.
        """
        return epsilon_from_scores(self.members, self.nonmembers, delta=delta, level=level, method=method, seed=seed)

    # --- intervals

    def interval(
        self,
        metric: Metric,
        *,
        level: float = 0.95,
        threshold: float | None = None,
        fpr: float | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> Interval:
        """A confidence interval for the value that infinitely many pictures of the same kind would give.

        - "auc": the union of two intervals that fail in different places. DeLong's on the logit scale (DeLong et al.
          1988; Pepe 2003, section 5.2) is right for any distributions but collapses where the AUC nears 0 or 1.
          Newcombe's method 5 (Statistics in Medicine 25, 2006, 559-573), which inverts the Hanley-McNeil variance at
          the hypothetical AUC, stays honest there but is too narrow where one group's scores spread far more than
          the other's. The union covers in both cases.
        - "asr" (needs `threshold`): Clopper-Pearson for that fixed threshold. Conservative, because two
          binomials of different rates vary less than one of their pooled rate.
        - "oracle_asr": percentile bootstrap, both groups resampled separately and the threshold optimised anew in
          each resample. It shows the spread of an optimistic number, and stays optimistic.
        - "tpr_at", or "tpr" (needs `fpr`): Clopper-Pearson for the rate of members above the threshold that
          these non-members set. It is conditional on that threshold: how far the threshold's own false-positive rate
          may be from `fpr` is said by the next one.
        - "attained_fpr" (needs `fpr`): Clopper-Pearson for the true false-positive rate at that threshold.
          The upper end is exact, the threshold being an order statistic of the non-members.

        Args:
            metric: one of the above.
            level: two-sided confidence level in (0, 1).
            threshold: for "asr".
            fpr: for "tpr_at", "tpr" and "attained_fpr".
            resamples: for "oracle_asr".
            seed: for "oracle_asr".

        Raises:
            ValueError: unknown metric, a level outside (0, 1), or a missing `threshold` or `fpr`.
        """
        if not 0 < level < 1:
            raise ValueError(f"a confidence level is in (0, 1), not {level}")
        match metric:
            case "auc":
                return self._auc_interval(level)
            case "asr":
                return clopper_pearson(self._correct(_needed(threshold, "asr", "threshold")), self._size, level)
            case "oracle_asr":
                return self._oracle_interval(level, resamples, seed)
            case "tpr_at" | "tpr" | "attained_fpr":
                group = self.nonmembers if metric == "attained_fpr" else self.members
                flagged = int(np.sum(group > self._cut(_needed(fpr, metric, "fpr"))))
                return clopper_pearson(flagged, len(group), level)
        raise ValueError(f"no interval for {metric!r}: one of auc, asr, oracle_asr, tpr_at, attained_fpr")

    @property
    def _size(self) -> int:
        return len(self.members) + len(self.nonmembers)

    def _correct(self, threshold: float) -> int:
        return int(np.sum(self.members >= threshold) + np.sum(self.nonmembers < threshold))

    def _auc_interval(self, level: float) -> Interval:
        z = float(norm.ppf((1 + level) / 2))
        m, n = len(self.members), len(self.nonmembers)
        low, high = newcombe(self.auc, m, n, z)
        if 0 < self.auc < 1 and min(m, n) > 1:
            spread = z * math.sqrt(self._delong_variance()) / (self.auc * (1 - self.auc))
            centre = math.log(self.auc / (1 - self.auc))
            low, high = min(low, _logistic(centre - spread)), max(high, _logistic(centre + spread))
        return low, high

    def _delong_variance(self) -> float:
        """DeLong, DeLong and Clarke-Pearson (1988), with midranks for ties."""
        m, n = len(self.members), len(self.nonmembers)
        pooled = rankdata(np.concatenate([self.members, self.nonmembers]))
        member_wins = (pooled[:m] - rankdata(self.members)) / n
        nonmember_losses = 1 - (pooled[m:] - rankdata(self.nonmembers)) / m
        return float(np.var(member_wins, ddof=1) / m + np.var(nonmember_losses, ddof=1) / n)

    def _oracle_interval(self, level: float, resamples: int, seed: int) -> Interval:
        rng = np.random.default_rng(seed)
        _, place = np.unique(-np.concatenate([self.members, self.nonmembers]), return_inverse=True)  # 0: highest
        members, nonmembers = place[: len(self.members)], place[len(self.members) :]
        best = np.zeros(resamples)
        for i in range(resamples):
            gained, lost = (
                np.bincount(rng.choice(group, len(group)), minlength=place.max() + 1)
                for group in (members, nonmembers)
            )
            # Lowering the threshold past a score gains its members and loses its non-members; it starts above all.
            best[i] = (max(0, np.cumsum(gained - lost).max()) + len(nonmembers)) / self._size
        low, high = np.quantile(best, [(1 - level) / 2, (1 + level) / 2])
        return min(float(low), self.oracle_asr()), max(float(high), self.oracle_asr())


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """The exact interval of a binomial rate (Clopper and Pearson, 1934)."""
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def newcombe(auc: float, m: int, n: int, z: float) -> Interval:
    """The AUCs that lie within z standard errors of the observed one, by *their* standard error (method 5)."""
    balanced = (m + n) / 2 - 1

    def error(a: float) -> float:
        variance = a * (1 - a) * (1 + balanced * ((1 - a) / (2 - a) + a / (1 + a))) / (m * n)
        return z * math.sqrt(variance)

    # `error` is concave and vanishes at 0 and 1, so that each side has one crossing besides those trivial ones.
    aside = 1e-12
    low = 0.0 if auc == 0 else float(brentq(lambda a: auc - a - error(a), 0.0, auc - aside))
    high = 1.0 if auc == 1 else float(brentq(lambda a: a - auc - error(a), auc + aside, 1.0))
    return low, high


def _needed(value: float | None, metric: str, name: str) -> float:
    if value is None:
        raise ValueError(f"the interval of {metric!r} needs {name}=")
    return value


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
