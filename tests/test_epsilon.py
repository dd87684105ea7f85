"""Lower bounds on epsilon: against mechanisms whose epsilon is known, exact binomial sums, and brute force."""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm

from lorica.audit.epsilon import epsilon_from_scores, one_run_audit, one_run_epsilon, one_run_p_value
from lorica.audit.score import MembershipScores

SEEDS = 400
METHODS = ("bonferroni", "split")
Mechanism = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def randomised_response(epsilon: float) -> Mechanism:
    """Reports each bit truly with probability e^epsilon / (1 + e^epsilon): exactly (epsilon, 0)-private."""
    return lambda rng, bits: (bits ^ (rng.random(len(bits)) > 1 / (1 + math.exp(-epsilon)))).astype(float)


def gaussian(rng: np.random.Generator, bits: np.ndarray) -> np.ndarray:
    return rng.normal(bits, 1.0)


def gaussian_epsilon(delta: float) -> float:
    """Of a Gaussian mechanism of sensitivity 1 and deviation 1 (Balle and Wang 2018, theorem 8)."""
    return float(brentq(lambda e: norm.cdf(0.5 - e) - math.exp(e) * norm.cdf(-0.5 - e) - delta, 0, 20))


def leaking(epsilon: float, delta: float) -> Mechanism:
    """Randomised response that, with probability delta, says the truth and that it is the truth."""

    def mechanism(rng: np.random.Generator, bits: np.ndarray) -> np.ndarray:
        leaked = rng.random(len(bits)) < delta
        return np.where(leaked, np.where(bits, 2.0, -1.0), randomised_response(epsilon)(rng, bits))

    return mechanism


def nothing(rng: np.random.Generator, bits: np.ndarray) -> np.ndarray:
    return rng.normal(size=len(bits))


KNOWN = {  # mechanism, epsilon, delta
    "nothing": (nothing, 0.0, 0.0),
    "randomised response": (randomised_response(1.0), 1.0, 0.0),
    "gaussian": (gaussian, gaussian_epsilon(0.05), 0.05),
    "leaking": (leaking(1.0, 0.05), 1.0, 0.05),
}


def rated(mechanism: Mechanism, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return mechanism(rng, np.ones(n, bool)), mechanism(rng, np.zeros(n, bool))


def exceeding(bounds: Iterable[float], truth: float) -> int:
    return sum(bound > truth + 1e-9 for bound in bounds)


def allowed(level: float) -> int:
    """More than this many of 400 bounds exceed the truth once in a thousand times, if each may with 1 - level."""
    return int(binom.isf(0.001, SEEDS, 1 - level))


def naive_bound(ins: np.ndarray, outs: np.ndarray, tail: float, ranks: Iterable[int], delta: float = 0.0) -> float:
    """The four inequalities written out, at the thresholds with so many false alarms; corrected for nothing."""
    best = 0.0
    for sign in (1, -1):
        for found, alarmed in ((sign * ins, sign * outs), (sign * outs, sign * ins)):
            for alarms in ranks:
                hits = sum(found > sorted(alarmed, reverse=True)[alarms])
                low = beta.ppf(tail / 2, hits, len(found) - hits + 1) if hits else 0.0
                high = beta.ppf(1 - tail / 2, alarms + 1, len(alarmed) - alarms)
                best = max(best, math.log((low - delta) / high) if low > delta else 0.0)
    return best


# --- from two groups of scores


@pytest.mark.parametrize("level", [0.95, 0.8])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KNOWN)
def test_the_bound_exceeds_a_known_epsilon_no_oftener_than_promised(name: str, method: str, level: float) -> None:
    """400 draws of 150 + 150 scores."""
    mechanism, truth, delta = KNOWN[name]
    rng = np.random.default_rng(1)
    bounds = [
        epsilon_from_scores(*rated(mechanism, rng, 150), delta=delta, level=level, method=method, seed=seed)
        for seed in range(SEEDS)
    ]
    assert min(bounds) >= 0.0
    assert exceeding(bounds, truth) <= allowed(level)


def test_the_best_of_several_thresholds_breaks_the_promise_unless_it_is_corrected() -> None:
    """What the correction is for; and a proof that the tolerance above is fine enough to miss it."""
    rng = np.random.default_rng(2)
    draws = [rated(nothing, rng, 60) for _ in range(SEEDS)]
    assert exceeding((naive_bound(*draw, 0.5, (0, 2, 8, 32)) for draw in draws), 0.0) > allowed(0.5)
    assert exceeding((epsilon_from_scores(*draw, level=0.5) for draw in draws), 0.0) <= allowed(0.5)


@pytest.mark.parametrize("delta", [0.0, 0.1])
def test_every_rank_and_direction_tried_is_paid_for(delta: float) -> None:
    rng = np.random.default_rng(3)
    ins, outs = rng.normal(1.5, 1, 40), rng.normal(0, 1, 40)
    tests = 4 * 7  # 0, 1, 2, 4, 8, 16, 32 false alarms of 40
    expected = naive_bound(ins, outs, 0.1 / tests, (0, 1, 2, 4, 8, 16, 32), delta)
    assert epsilon_from_scores(ins, outs, delta=delta, level=0.9) == pytest.approx(expected) and expected > 0


def test_a_perfect_separation_has_the_bound_of_n_successes_and_no_failure() -> None:
    ins, outs = np.arange(1000.0) + 5000, np.arange(1000.0)
    share = 0.05 / (4 * 11)  # 0, 1, 2, ..., 512 false alarms
    rate = (share / 2) ** (1 / 1000)
    assert epsilon_from_scores(ins, outs) == pytest.approx(math.log(rate / (1 - rate)))
    rate = 0.025 ** (1 / 500)
    assert epsilon_from_scores(ins, outs, method="split") == pytest.approx(math.log(rate / (1 - rate)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["randomised response", "gaussian", "leaking"])
def test_the_bound_approaches_the_truth_with_more_scores(name: str, method: str) -> None:
    mechanism, truth, delta = KNOWN[name]
    rng = np.random.default_rng(4)
    few, some, many = (
        np.mean([epsilon_from_scores(*rated(mechanism, rng, n), delta=delta, method=method) for _ in range(3)])
        for n in (100, 1500, 20_000)
    )
    assert few < some < many <= truth
    assert many > 0.75 * truth


@pytest.mark.parametrize("method", METHODS)
def test_a_leak_that_delta_does_not_excuse_raises_the_bound(method: str) -> None:
    ins, outs = rated(leaking(1.0, 0.05), np.random.default_rng(5), 3000)
    strict, loose = (epsilon_from_scores(ins, outs, delta=delta, method=method) for delta in (0.0, 0.05))
    assert strict > 1.5 > 1.0 > loose > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_an_inverted_attack_and_a_hunt_for_nonmembers_are_found_as_well(method: str) -> None:
    rng = np.random.default_rng(6)
    ins, outs = rng.normal(2, 1, 300), rng.normal(0, 1, 300)
    ins[:150], outs[:100] = rng.normal(0, 1, 150), -9  # the outs at the bottom are the surest
    bound = epsilon_from_scores(ins, outs, method=method)
    assert epsilon_from_scores(-ins, -outs, method=method) == pytest.approx(bound) and bound > 1
    assert epsilon_from_scores(outs, ins, method="bonferroni") == pytest.approx(epsilon_from_scores(ins, outs))


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_are_all_equal_disprove_nothing(method: str) -> None:
    assert [epsilon_from_scores(np.ones(300), np.ones(300), method=method, seed=s) for s in range(50)] == [0.0] * 50


def test_a_stricter_level_or_a_larger_delta_lowers_the_bound() -> None:
    ins, outs = rated(gaussian, np.random.default_rng(7), 2000)
    by_level = [epsilon_from_scores(ins, outs, level=level) for level in (0.5, 0.9, 0.99)]
    by_delta = [epsilon_from_scores(ins, outs, delta=delta) for delta in (0.0, 0.01, 0.1, 1.0)]
    assert by_level == sorted(by_level, reverse=True) and len(set(by_level)) == 3
    assert by_delta == sorted(by_delta, reverse=True) and by_delta[0] > by_delta[-1] == 0.0


def test_membership_scores_know_their_epsilon() -> None:
    ins, outs = rated(gaussian, np.random.default_rng(8), 400)
    scores = MembershipScores(ins, outs)
    assert scores.epsilon() == epsilon_from_scores(ins, outs) > 0
    options = {"delta": 0.01, "level": 0.8, "method": "split", "seed": 3}
    assert scores.epsilon(**options) == epsilon_from_scores(ins, outs, **options)
    assert scores.epsilon(method="split", seed=1) != scores.epsilon(method="split", seed=2)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"members": []}, "members"),
        ({"nonmembers": [[1.0]]}, "nonmembers"),
        ({"nonmembers": [np.nan]}, "nonmembers"),
        ({"delta": -0.1}, "delta"),
        ({"delta": np.nan}, "delta"),
        ({"level": 95}, "level"),
        ({"method": "best"}, "best"),
        ({"method": "split", "members": [1.0]}, "split"),
    ],
)
def test_what_cannot_be_bounded_is_refused_by_name(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        epsilon_from_scores(**{"members": [1.0, 2.0], "nonmembers": [0.0, 1.0], **options})


# --- from one run


def exact_tail(r: int, v: int, rate: Fraction) -> Fraction:
    """P[Binomial(r, rate) >= v]."""
    return sum((math.comb(r, k) * rate**k * (1 - rate) ** (r - k) for k in range(max(v, 0), r + 1)), Fraction(0))


def exact_p_value(v: int, r: int, m: int, rate: Fraction, delta: Fraction) -> Fraction:
    """As theorem 5.2 has it, with i up to m."""
    beyond = exact_tail(r, v, rate)
    worst = max((exact_tail(r, v - i, rate) - beyond) / i for i in range(1, m + 1))
    return min(beyond + 2 * m * delta * worst, Fraction(1))


@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 10_000), Fraction(1, 100)])
@pytest.mark.parametrize(("r", "m"), [(1, 1), (7, 7), (12, 30), (25, 25)])
def test_the_p_value_is_that_of_exact_sums(r: int, m: int, delta: Fraction) -> None:
    for v in range(r + 1):
        for odds in (1, 3, 10):
            expected = exact_p_value(v, r, m, Fraction(odds, 1 + odds), delta)
            found = one_run_p_value(v, r, m, math.log(odds), float(delta))
            assert found == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 1000)])
def test_the_bound_exceeds_an_epsilon_just_when_the_exact_p_value_rejects_it(delta: Fraction) -> None:
    for v in range(21):
        bound = one_run_epsilon(v, 20, 24, float(delta), 0.9)
        for odds in (1, 2, 3, 5):
            rejected = exact_p_value(v, 20, 24, Fraction(odds, 1 + odds), delta) < Fraction(1, 10)
            assert (bound > math.log(odds)) == rejected


def test_guesses_that_are_all_right_have_a_bound_in_closed_form() -> None:
    rate = 0.05 ** (1 / 100)
    assert one_run_epsilon(100, 100, 100) == pytest.approx(math.log(rate / (1 - rate)))
    assert one_run_epsilon(100, 100, 10**6) == one_run_epsilon(100, 100, 100)
    assert one_run_epsilon(0, 0, 10) == one_run_epsilon(0, 10, 10) == one_run_epsilon(4, 4, 4) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_more_right_guesses_raise_the_bound_and_more_canaries_or_delta_lower_it(delta: float) -> None:
    bounds = [one_run_epsilon(v, 200, 300, delta) for v in range(201)]
    assert bounds == sorted(bounds) and bounds[100] == 0.0 and bounds[-1] > 3
    if delta:
        assert one_run_epsilon(180, 200, 300, delta / 10) > bounds[180] > one_run_epsilon(180, 200, 600, delta)


ONE_RUN = {
    **KNOWN,
    "gaussian": (gaussian, gaussian_epsilon(1e-3), 1e-3),
    "leaking": (leaking(1.0, 1e-3), 1.0, 1e-3),
}


@pytest.mark.parametrize("guesses", [None, [(40, 40)], [(20, 0)]])
@pytest.mark.parametrize("name", ONE_RUN)
def test_one_run_exceeds_a_known_epsilon_no_oftener_than_promised(name: str, guesses: list | None) -> None:
    """400 runs with 160 canaries, at a level where chance is quick to show."""
    mechanism, truth, delta = ONE_RUN[name]
    rng = np.random.default_rng(9)
    bounds = []
    for seed in range(SEEDS):
        coins = rng.random(160) < 0.5
        bounds.append(one_run_audit(mechanism(rng, coins), coins, guesses, delta=delta, level=0.8, seed=seed))
    assert min(bounds) >= 0.0
    assert exceeding(bounds, truth) <= allowed(0.8)


def test_the_best_of_several_numbers_of_guesses_breaks_the_promise_unless_it_is_corrected() -> None:
    rng = np.random.default_rng(10)
    pairs = [pair for k in range(4, 80, 16) for pair in ((k, 0), (0, k))]
    naive, corrected = [], []
    for _ in range(SEEDS):
        coins = rng.random(80) < 0.5
        scores = rng.normal(size=80)
        naive.append(max(one_run_audit(scores, coins, [pair], level=0.8) for pair in pairs))
        corrected.append(one_run_audit(scores, coins, pairs, level=0.8))
    assert exceeding(naive, 0.0) > allowed(0.8) >= exceeding(corrected, 0.0)


def test_a_leak_that_delta_excuses_is_not_held_against_a_mechanism() -> None:
    rng = np.random.default_rng(11)
    coins = rng.random(2000) < 0.5
    scores = leaking(1.0, 0.02)(rng, coins)
    assert one_run_audit(scores, coins, [(15, 0)]) > 1.0
    assert one_run_audit(scores, coins, [(15, 0)], delta=0.02) <= 1.0


def test_one_run_approaches_the_truth_with_more_canaries() -> None:
    """Whom randomised response reports as "in" is guessed to be in, and nobody is abstained from."""
    rng = np.random.default_rng(12)
    bounds = []
    for m in (100, 2000, 100_000):
        coins = rng.random(m) < 0.5
        scores = randomised_response(1.0)(rng, coins)
        called_in = int(scores.sum())
        bounds.append(one_run_audit(scores, coins, [(called_in, m - called_in)]))
    assert bounds == sorted(bounds) and 0.95 < bounds[-1] <= 1.0


def test_a_shift_that_all_canaries_share_changes_nothing() -> None:
    rng = np.random.default_rng(13)
    coins = rng.random(200) < 0.5
    scores = gaussian(rng, coins)
    assert one_run_audit(scores * 3 - 40, coins) == one_run_audit(scores, coins) > 0


def test_every_pair_is_counted_as_by_hand_and_paid_for() -> None:
    scores = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    included = [True, True, False, True, False, False]
    right = {(3, 3): 4, (2, 0): 2, (0, 2): 2, (2, 3): 4, (0, 0): 0}
    for (plus, minus), correct in right.items():
        expected = one_run_epsilon(correct, plus + minus, 6, level=0.3)
        assert one_run_audit(scores, included, [(plus, minus)], level=0.3) == expected
    expected = max(one_run_epsilon(correct, 2, 6, level=0.65) for correct in (2, 2))
    assert one_run_audit(scores, included, [(2, 0), (0, 2), (2, 0)], level=0.3) == expected


def test_the_default_grid_is_paid_for() -> None:
    coins = np.arange(128) < 64
    expected = one_run_epsilon(128, 128, 128, level=1 - 0.05 / 6)  # k = 64 and 16, three shapes each
    assert one_run_audit(-np.arange(128.0), coins) == pytest.approx(expected)
    assert one_run_audit(np.arange(128.0), coins) == 0.0


def test_the_order_of_tied_canaries_gives_nothing_away() -> None:
    coins = np.arange(200) < 100
    for truth in (coins, ~coins):
        found = [one_run_audit(np.ones(200), truth, [(50, 50)], level=0.99, seed=seed) for seed in range(50)]
        assert exceeding(found, 0.0) <= 5


def test_lots_of_the_seed_that_made_the_data_do_not_repeat_it() -> None:
    """The same default_rng(0) draws the reports or the coins, and then seeds the audit."""
    ins, outs = rated(randomised_response(1.0), np.random.default_rng(0), 1500)
    assert all(0 < epsilon_from_scores(ins, outs, method=method, seed=0) < 1.0 for method in METHODS)
    coins = np.random.default_rng(0).random(200) < 0.5
    assert one_run_audit(np.ones(200), coins, [(50, 50)], level=0.99, seed=0) == 0.0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"scores": [[1.0] * 4]}, "scores"),
        ({"scores": [np.inf] * 4}, "scores"),
        ({"included": [1, 0, 1, 0]}, "included"),
        ({"included": [True, False]}, "included"),
        ({"scores": np.arange(100.0), "included": np.arange(100) < 90}, "90 of 100 canaries"),
        ({"guesses": [(3, 2)]}, "guesses"),
        ({"guesses": [(-1, 2)]}, "guesses"),
        ({"guesses": []}, "guesses"),
        ({"delta": 2.0}, "delta"),
        ({"level": 1.0}, "level"),
    ],
)
def test_an_audit_of_one_run_that_cannot_be_is_refused_by_name(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        one_run_audit(**{"scores": [1.0, 2.0, 3.0, 4.0], "included": [True, False, True, False], **options})


@pytest.mark.parametrize("counts", [(3, 2, 5), (1, 6, 5), (-1, 2, 5)])
def test_counts_that_contradict_each_other_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="correct <= guesses <= canaries"):
        one_run_epsilon(*counts)
    with pytest.raises(ValueError, match="correct <= guesses <= canaries"):
        one_run_p_value(*counts, 1.0)
    with pytest.raises(ValueError, match="epsilon"):
        one_run_p_value(1, 2, 5, -1.0)
