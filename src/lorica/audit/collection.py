"""Was this collection used? One test of all pictures together, where no single one may be provable.

Whoever owns many pictures need not prove any one of them to be a member: weak evidence adds up. After CDI (Dubinski et
al., CVPR 2025, arXiv 2411.12858): the scores of several attacks become one by logistic regression, and a one-sided
Welch t-test compares the published pictures, which the model may have been trained on, with unpublished ones of the
same kind, which it cannot have been. Scores only; knows no model.

CDI fits the regression in folds, so that each picture is scored by one that was fitted to the others. These scores are
not independent, as the t-test has it: every picture had a part in the score of every other. An audit has auxiliary
halves. The regression is fitted to these alone and scores each test picture once. If the model was not trained on any
of the members, the scores of test members (published) and test non-members (unpublished) are then independent draws
from one distribution, and the p-value is that of a plain t-test. The labels of test pictures enter where the claim
itself does: they say which of the pictures were published.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ttest_ind
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lorica.audit.score import MembershipScores

Halves = Mapping[str, tuple[MembershipScores, MembershipScores]]
"""(auxiliary, test) scores by attack; the pictures of a group in the same order in every attack."""

ALPHA = 0.01
RESAMPLES = 500
METHOD = (
    "logistic regression on the standardised scores of all attacks with a fixed score, fitted to the auxiliary "
    "pictures; one-sided Welch t-test between test members and test non-members"
)


def collection_test(target: Halves, base: Halves, *, seed: int, fair: bool = True) -> dict[str, Any]:
    """The entry "collection" of audit.json.

    Args:
        target: scores of the model under audit; attacks that fit nothing, since an auxiliary picture's score must be
            like a test picture's.
        base: scores of the base model, which saw none of the pictures: the negative control. Empty without one.
        seed: of the subsets behind "pictures_needed".
        fair: whether the audit's other controls hold; where they do not, nothing is claimed.

    Returns:
        {"p_value", "alpha", "detected": p_value <= alpha, "pictures_needed": see `pictures_needed`, "pictures":
        {"members", "nonmembers"}, "attacks", "base": the same p-value on the base model, or None, "trusted": `fair`,
        and the base model is not convicted too, "method", "text": sentences}.

    Raises:
        ValueError: no attack in `target`.
    """
    scores = collection_scores(target)
    p = float(welch(scores.members, scores.nonmembers))
    found: dict[str, Any] = {
        "p_value": p,
        "alpha": ALPHA,
        "detected": p <= ALPHA,
        "pictures_needed": pictures_needed(scores, seed=seed),
        "pictures": {"members": len(scores.members), "nonmembers": len(scores.nonmembers)},
        "attacks": list(target),
        "base": None,
        "trusted": fair,
        "method": METHOD,
    }
    if base:
        control = collection_scores(base)
        found["base"] = float(welch(control.members, control.nonmembers))
        found["trusted"] = fair and found["base"] > ALPHA
    return found | {"text": _sentences(found)}


def collection_scores(halves: Halves) -> MembershipScores:
    """One score per test picture: the probability of membership, in [0, 1], so that no outlier decides the t-test.

    Raises:
        ValueError: no attack.
    """
    if not halves:
        raise ValueError("a collection is tested on the scores of at least one attack")
    auxiliary, test = ([pair[half] for pair in halves.values()] for half in (0, 1))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    members, nonmembers = _columns(auxiliary)
    classifier.fit(np.concatenate([members, nonmembers]), np.r_[np.ones(len(members)), np.zeros(len(nonmembers))])
    return MembershipScores(*(classifier.predict_proba(rows)[:, 1] for rows in _columns(test)))


def welch(members: ArrayLike, nonmembers: ArrayLike) -> NDArray[np.float64]:
    """p-values, in [0, 1], of mean(members) > mean(nonmembers) against equality, along the last axis.

    Where no score differs from another there is no evidence: 1.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of variances that are nearly zero
        p = ttest_ind(members, nonmembers, axis=-1, equal_var=False, alternative="greater").pvalue
    return np.where(np.isnan(p), 1.0, p)


def pictures_needed(
    scores: MembershipScores, *, seed: int, alpha: float = ALPHA, resamples: int = RESAMPLES
) -> int | None:
    """With how many published pictures, and as many unpublished, the test rejects at `alpha` more often than not.

    The smallest size, to within a tenth, at which the median p-value over random subsets of the test pictures is at
    most `alpha`; None where not even all of the smaller group suffice. The regression stays as it is.
    """
    rng = np.random.default_rng(seed)
    orders = [
        rng.permuted(np.broadcast_to(group, (resamples, len(group))), axis=1)
        for group in (scores.members, scores.nonmembers)
    ]
    for size in _sizes(min(len(scores.members), len(scores.nonmembers))):
        if np.median(welch(*(order[:, :size] for order in orders))) <= alpha:
            return size
    return None


def _sizes(largest: int) -> Iterator[int]:
    size = 2
    while size < largest:
        yield size
        size = max(size + 1, int(1.1 * size))
    yield largest


def _columns(scores: list[MembershipScores]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Members (m, attacks) and non-members (n, attacks)."""
    return np.stack([s.members for s in scores], axis=1), np.stack([s.nonmembers for s in scores], axis=1)


def _sentences(found: Mapping[str, Any]) -> str:
    members, nonmembers = found["pictures"]["members"], found["pictures"]["nonmembers"]
    together = f"Taken together as one collection, the {members} test members"
    against = f"the {nonmembers} non-members ({_shown(found['p_value'])}, one-sided)"
    if not found["detected"]:
        return f"{together} cannot be told from {against}: that they were trained on cannot be shown."
    if found["base"] is not None and found["base"] <= ALPHA:
        return (
            f"{together} score above {against}, but so they do on the base model, which saw none of them "
            f"({_shown(found['base'])}): the groups differ by themselves, and nothing is shown."
        )
    if not found["trusted"]:
        return f"{together} score above {against}, which shows nothing as long as the audit cannot be trusted."
    needed = found["pictures_needed"]
    few = f", already by {needed} of them" if needed is not None and needed < members else ""
    return f"{together} score above {against}: that they were trained on can be shown{few}."


def _shown(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-99 else "p < 1e-99"
