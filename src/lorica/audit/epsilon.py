"""From scores to the differential privacy that they disprove: lower bounds on epsilon. numpy and scipy only.

A mechanism is (epsilon, delta)-private if, for one picture more or less in the training set, every set of outcomes has
P(outcome | in) <= e^epsilon P(outcome | out) + delta, and the same with in and out exchanged. An attack that does
better than this allows proves epsilon to be larger. Two audits differ in what they ask of the experiment:

- `epsilon_from_scores` compares error rates and needs **independent** scores, as from one training per score.
- `one_run_audit` is content with one training, and needs canaries that were included each by its **own fair coin**.

No bound from below says that a model is private: 0 means that this attack, with so many scores, disproved nothing.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import bdtrc, betaincinv, expit, logit
from scipy.stats import binom

Floats = NDArray[np.float64]
Method = Literal["bonferroni", "split"]


def epsilon_from_scores(
    members: ArrayLike,
    nonmembers: ArrayLike,
    *,
    delta: float = 0.0,
    level: float = 0.95,
    method: Method = "bonferroni",
    seed: int = 0,
) -> float:
    """The epsilon below which (epsilon, `delta`)-privacy is rejected at confidence `level`; in [0, inf).

    At every threshold TPR <= e^epsilon FPR + delta and 1 - FPR <= e^epsilon (1 - TPR) + delta (Kairouz, Oh and
    Viswanath 2015, theorem 2.1), and likewise for the inverted attack, which flags low scores. Each of these four
    needs a one-sided Clopper-Pearson bound on either rate; the two share the error budget 1 - level (as in Jagielski,
    Ullman and Oprea 2020). The best threshold of the very scores that are counted would flatter the attack:

    - "bonferroni": thresholds at ranks fixed beforehand (0, 1, 2, 4, 8, ... false alarms), and the budget divided by
      the number of all tests. Fixing the rank does not fix the threshold, which still moves with the scores. It is
      honest here because the rank is taken in the group whose rate is bounded from *above*: the true rate beyond an
      order statistic is Beta distributed, so that Clopper-Pearson's upper bound is exact for it, and the other group,
      independent of that threshold, is binomial beyond it. Ties would spoil this; they are broken by lot.
    - "split": threshold and direction are chosen on one half of either group, and a single bound with the whole budget
      is computed on the other half.

    The scores must be independent of one another, and members and non-members drawn alike. Many pictures scored on one
    model share that model's luck: to take them as independent is an assumption, which `one_run_audit` does not make.

    Args:
        members: (m,) scores of what was trained on; higher means "more member-like".
        nonmembers: (n,) scores of what was not.
        delta: in [0, 1], fixed beforehand.
        level: one-sided confidence in (0, 1): the bound exceeds the true epsilon with probability <= 1 - level.
        method: one of the above, chosen beforehand.
        seed: for the lots of "bonferroni" and the halves of "split", fixed beforehand.

    Raises:
        ValueError: scores that are empty, not 1-D or not finite, a `delta` or `level` out of range, an unknown
            `method`, or a group too small to be split.
    """
    ins, outs = checked_scores(members, "members"), checked_scores(nonmembers, "nonmembers")
    _check_delta(delta)
    match method:
        case "bonferroni":
            return _at_fixed_ranks(ins, outs, delta, _tail(level), _lots(seed))
        case "split":
            return _on_the_other_half(ins, outs, delta, _tail(level), _lots(seed))
    raise ValueError(f"no method {method!r}: one of bonferroni, split")


def one_run_audit(
    scores: ArrayLike,
    included: ArrayLike,
    guesses: Sequence[tuple[int, int]] | None = None,
    *,
    delta: float = 0.0,
    level: float = 0.95,
    seed: int = 0,
) -> float:
    """`one_run_epsilon` for canaries that one training run included each by its own fair coin; in [0, inf).

    Of m canaries the k_plus with the highest scores are guessed to be in and the k_minus with the lowest to be out;
    the auditor abstains on the others (Steinke et al., algorithm 1). Tied scores are ordered by lot, since their order
    in the array may give the answer away. Only the coins are random, so that canaries may influence one another
    through the model; but neither the scores nor `guesses` may depend on `included` in any other way.

    Args:
        scores: (m,) scores; higher means "more member-like". An inverted attack needs its sign flipped *beforehand*.
        included: (m,) booleans, the coins. A split of fixed sizes is not a series of fair coins.
        guesses: the pairs (k_plus, k_minus) that are tried, fixed beforehand. Each costs: 1 - level is divided by
            their number and the best bound is returned. None tries a grid that depends on m alone: k = m/2, m/8,
            m/32, ... down to 8, as (k, k), (k, 0) and (0, k). One well-chosen pair is sharper, all the more where
            m delta is not small: delta's share of the p-value does not shrink with the budget.
        delta: in [0, 1], fixed beforehand.
        level: one-sided confidence in (0, 1), for all pairs together.
        seed: for the lots between tied scores, fixed beforehand.

    Raises:
        ValueError: scores that are empty, not 1-D or not finite, `included` of another shape or type or so uneven that
            fair coins give it less often than once in a million, impossible `guesses`, a `delta` or `level` out of
            range.
    """
    marks, coins = checked_scores(scores, "scores"), np.asarray(included)
    m = len(marks)
    if coins.dtype != bool or coins.shape != marks.shape:
        raise ValueError(f"included must be ({m},) booleans, got {coins.dtype} of shape {coins.shape}")
    heads = int(coins.sum())
    if 2 * binom.cdf(min(heads, m - heads), m, 0.5) < 1e-6:
        raise ValueError(f"included holds {heads} of {m} canaries, which fair coins would not give")
    if guesses is None:
        sizes = [m >> j for j in range(1, m.bit_length(), 2) if m >> j >= 8] or [m // 2]
        guesses = [pair for k in sizes for pair in ((k, k), (k, 0), (0, k))]
    pairs = {(plus, minus) for plus, minus in guesses}
    if not pairs or any(min(pair) < 0 or sum(pair) > m for pair in pairs):
        raise ValueError(f"guesses are pairs (k_plus, k_minus) of at most {m} canaries together, not {guesses}")
    each = 1 - _tail(level) / len(pairs)
    falling = coins[np.lexsort((_lots(seed).random(m), -marks))]
    right = {(plus, minus): falling[:plus].sum() + (~falling[m - minus :]).sum() for plus, minus in pairs}
    return max(one_run_epsilon(int(count), sum(pair), m, delta, each) for pair, count in right.items())


def one_run_epsilon(correct: int, guesses: int, canaries: int, delta: float = 0.0, level: float = 0.95) -> float:
    """The largest epsilon that `one_run_p_value` rejects at confidence `level`, in [0, inf).

    Args:
        correct: guesses that were right.
        guesses: canaries guessed about, a number fixed before looking at the truth.
        canaries: all that a coin was thrown for, those abstained from included.
        delta: in [0, 1].
        level: one-sided confidence in (0, 1).

    Raises:
        ValueError: not 0 <= correct <= guesses <= canaries, or a `delta` or `level` out of range.
    """
    tail = _tail(level)
    if one_run_p_value(correct, guesses, canaries, 0.0, delta) >= tail:
        return 0.0
    pure = max(0.0, float(logit(_rate_low(np.array(correct), guesses, tail))))  # the binomial tail, inverted
    if delta == 0:
        return pure
    # Delta adds to the p-value, which therefore reaches the tail no later than it does without.
    return float(brentq(lambda e: one_run_p_value(correct, guesses, canaries, e, delta) - tail, 0.0, pure + 1))


def one_run_p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float = 0.0) -> float:
    """At most how probable so many right guesses are under (`epsilon`, `delta`)-privacy; in [0, 1].

    Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run" (2305.08846), theorem 5.2 as coded in
    appendix D. With W ~ Binomial(guesses, e^epsilon / (1 + e^epsilon)), v = `correct` and m = `canaries` it is

        P[W >= v] + 2 m delta max_{i = 1..v} P[v - i <= W < v] / i.

    Delta gives away at most 2 m delta right guesses on average, and i of them help where W misses v by no more than i.
    An i above v would only divide the same probability by more.

    Raises:
        ValueError: not 0 <= correct <= guesses <= canaries, epsilon < 0, or a `delta` outside [0, 1].
    """
    _check_delta(delta)
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"0 <= correct <= guesses <= canaries is needed, not {correct}, {guesses}, {canaries}")
    if not epsilon >= 0:
        raise ValueError(f"epsilon is at least 0, not {epsilon}")
    i = np.arange(correct + 1)
    at_least = bdtrc(correct - i - 1, guesses, expit(epsilon))  # P[W >= v - i]
    excused = np.max((at_least[1:] - at_least[0]) / i[1:], initial=0.0)
    return min(float(at_least[0] + 2 * canaries * delta * excused), 1.0)


def checked_scores(scores: ArrayLike, name: str) -> Floats:
    """A read-only copy of 1-D scores; a ValueError names them if they are empty, not 1-D or not finite."""
    array = np.array(scores, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be a 1-D array of scores, got shape {array.shape}")
    if not len(array):
        raise ValueError(f"{name} has no scores")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(array)).sum())} scores that are not finite")
    array.setflags(write=False)
    return array


def _at_fixed_ranks(ins: Floats, outs: Floats, delta: float, tail: float, rng: np.random.Generator) -> float:
    place = np.empty(len(ins) + len(outs))  # what matters of a score, its place among all, without ties
    place[np.lexsort((rng.random(len(place)), np.concatenate([ins, outs])))] = np.arange(len(place))
    views = _views(place[: len(ins)], place[len(ins) :])
    ranks = [np.r_[0, 2 ** np.arange((len(alarmed) - 1).bit_length())] for _, alarmed in views]
    share = tail / sum(map(len, ranks))
    return max(
        float(_bounds(found, alarmed, np.sort(alarmed)[::-1][rank], delta, share).max())
        for (found, alarmed), rank in zip(views, ranks, strict=True)
    )


def _on_the_other_half(ins: Floats, outs: Floats, delta: float, tail: float, rng: np.random.Generator) -> float:
    if min(len(ins), len(outs)) < 2:
        raise ValueError("method 'split' needs at least 2 members and 2 nonmembers")
    ins, outs = rng.permutation(ins), rng.permutation(outs)
    choices = []
    for view, pair in enumerate(_views(ins[::2], outs[::2])):
        values = np.unique(np.concatenate(pair))
        cuts = np.r_[
            values[:-1] / 2 + values[1:] / 2, values[-1]
        ]  # midway, so that they transfer; the last flags nobody
        bounds = _bounds(*pair, cuts, delta, tail)
        choices.append((bounds.max(), view, cuts[bounds.argmax()]))
    _, view, cut = max(choices)
    return float(_bounds(*_views(ins[1::2], outs[1::2])[view], np.array([cut]), delta, tail)[0])


def _views(ins: Floats, outs: Floats) -> list[tuple[Floats, Floats]]:
    """The four tests, each as (found, alarmed): is a high score likelier in `found` than e^epsilon times `alarmed`?"""
    return [(ins, outs), (outs, ins), (-ins, -outs), (-outs, -ins)]


def _bounds(found: Floats, alarmed: Floats, cuts: Floats, delta: float, tail: float) -> Floats:
    """(k,) lower bounds on epsilon, one for each of the (k,) `cuts`; scores strictly above a cut are flagged."""
    hits, alarms = (len(group) - np.searchsorted(np.sort(group), cuts, side="right") for group in (found, alarmed))
    low = _rate_low(hits, len(found), tail / 2)
    high = 1 - _rate_low(len(alarmed) - alarms, len(alarmed), tail / 2)
    return np.log(np.maximum((low - delta) / high, 1))


def _rate_low(successes: NDArray[np.int64], trials: int, tail: float) -> Floats:
    """Clopper and Pearson's lower bound on a binomial rate, above it with probability <= `tail`; elementwise."""
    return np.where(successes > 0, betaincinv(np.maximum(successes, 1), trials - successes + 1, tail), 0.0)


def _lots(seed: int) -> np.random.Generator:
    """A stream of its own: with NumPy's for `seed`, which may have thrown the coins, lots would repeat the answer."""
    return np.random.default_rng([seed, *b"lorica.audit.epsilon"])


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level is in (0, 1), not {level}")
    return 1 - level


def _check_delta(delta: float) -> None:
    if not 0 <= delta <= 1:
        raise ValueError(f"delta is in [0, 1], not {delta}")
