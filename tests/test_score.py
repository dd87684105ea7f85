"""From scores to rates and intervals: against scikit-learn, brute force, closed forms and simulation."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from lorica.audit.score import MembershipScores, clopper_pearson, newcombe

FPRS = (0.0, 0.01, 0.05, 0.1, 0.29, 0.5, 0.999, 1.0)


def drawn(seed: int, m: int = 40, n: int = 55, *, tied: bool = False, shift: float = 0.7) -> MembershipScores:
    rng = np.random.default_rng(seed)
    members, nonmembers = rng.normal(shift, 1, m), rng.normal(0, 1, n)
    return MembershipScores(np.round(members), np.round(nonmembers)) if tied else MembershipScores(members, nonmembers)


def labelled(scores: MembershipScores) -> tuple[np.ndarray, np.ndarray]:
    labels = np.r_[np.ones(len(scores.members)), np.zeros(len(scores.nonmembers))]
    return labels, np.r_[scores.members, scores.nonmembers]


def brute_tpr(scores: MembershipScores, target: float) -> tuple[float, float]:
    """(FPR, TPR) of the best threshold among all: the largest FPR not above the target, then the largest TPR."""
    cuts = [np.inf, *scores.members, *scores.nonmembers]
    rates = [(np.mean(scores.nonmembers >= c), np.mean(scores.members >= c)) for c in cuts]
    return max(rate for rate in rates if rate[0] <= target)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_auc_is_that_of_scikit_learn_and_of_counting_pairs(seed: int, tied: bool) -> None:
    scores = drawn(seed, tied=tied)
    pairs = np.sign(scores.members[:, None] - scores.nonmembers[None, :])
    assert scores.auc == pytest.approx(roc_auc_score(*labelled(scores)), abs=1e-12)
    assert scores.auc == pytest.approx((pairs.mean() + 1) / 2, abs=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_the_roc_has_every_vertex_that_scikit_learn_has(tied: bool) -> None:
    scores = drawn(3, tied=tied)
    fpr, tpr, _ = roc_curve(*labelled(scores), drop_intermediate=False)
    np.testing.assert_allclose(np.array(scores.roc()), np.array([fpr, tpr]), atol=1e-12)
    assert np.trapezoid(scores.roc()[1], scores.roc()[0]) == pytest.approx(scores.auc)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_tpr_is_taken_at_the_largest_attainable_fpr_that_is_not_above_the_target(seed: int, tied: bool) -> None:
    scores = drawn(seed, tied=tied)
    for target in FPRS:
        assert (scores.attained_fpr(target), scores.tpr_at(target)) == pytest.approx(brute_tpr(scores, target))


def test_a_target_that_floating_point_cannot_multiply_is_still_attained_exactly() -> None:
    scores = MembershipScores([0.0], np.arange(100.0))
    assert 0.29 * 100 < 29
    assert scores.attained_fpr(0.29) == 0.29


def test_tied_nonmembers_are_never_split_to_reach_a_false_positive_rate() -> None:
    scores = MembershipScores([3.0, 2.0, 2.0, 1.0], [2.0, 2.0, 1.0, 0.0])
    assert (scores.attained_fpr(0.25), scores.tpr_at(0.25)) == (0.0, 0.25)
    assert (scores.attained_fpr(0.5), scores.tpr_at(0.5)) == (0.5, 0.75)


def test_the_auc_of_a_gaussian_shift_converges_to_its_closed_form() -> None:
    scores = drawn(0, 20_000, 20_000, shift=1.2)
    assert scores.auc == pytest.approx(norm.cdf(1.2 / np.sqrt(2)), abs=0.005)
    assert scores.tpr_at(0.01) == pytest.approx(norm.sf(norm.isf(0.01) - 1.2), abs=0.02)
    assert scores.oracle_asr() == pytest.approx(norm.cdf(0.6), abs=0.005)
    assert scores.oracle_threshold() == pytest.approx(0.6, abs=0.1)


def test_an_inverted_ranking_keeps_its_sign_and_its_distance() -> None:
    scores = drawn(1, shift=1.0)
    inverted = MembershipScores(scores.nonmembers, scores.members)
    assert inverted.auc == pytest.approx(1 - scores.auc) and inverted.auc < 0.5
    assert inverted.auc_distance == pytest.approx(scores.auc_distance)
    low, high = scores.interval("auc")
    assert MembershipScores(-scores.members, -scores.nonmembers).interval("auc") == pytest.approx((1 - high, 1 - low))


def test_scores_that_are_all_equal_say_nothing() -> None:
    scores = MembershipScores([1.0] * 30, [1.0] * 30)
    assert scores.auc == 0.5
    assert scores.tpr_at(0.99) == 0.0 and scores.tpr_at(1.0) == 1.0
    low, high = scores.interval("auc")
    assert low < 0.4 and high > 0.6


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_beats_the_oracle(seed: int, tied: bool) -> None:
    scores = drawn(seed, tied=tied)
    values = np.unique(np.r_[scores.members, scores.nonmembers])
    everywhere = np.r_[values, (values[1:] + values[:-1]) / 2, values[0] - 1, values[-1] + 1]
    assert scores.oracle_asr() == max(scores.asr(threshold) for threshold in everywhere)
    assert scores.asr(scores.oracle_threshold()) == scores.oracle_asr() >= scores.constant_asr


def test_the_asr_counts_a_score_at_the_threshold_as_a_member() -> None:
    scores = MembershipScores([1.0, 2.0, 0.0], [0.5, 0.0])
    assert scores.asr(1.0) == 4 / 5
    assert scores.asr(1.1) == 3 / 5
    assert scores.asr(0.5) == 3 / 5
    assert scores.constant_asr == 3 / 5


def test_the_oracle_threshold_lies_midway_between_separated_groups() -> None:
    assert MembershipScores([3.0, 4.0], [0.0, 1.0]).oracle_threshold() == 2.0


def test_the_oracle_threshold_of_neighbouring_floats_separates_them() -> None:
    scores = MembershipScores([np.nextafter(1.0, 2)], [1.0])
    assert scores.asr(scores.oracle_threshold()) == 1.0


# --- intervals


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("auc", [0.5, 0.8, 0.97])
def test_the_auc_interval_covers_the_truth_in_small_samples(auc: float, spread: float) -> None:
    """25 + 25 normal scores, with equal deviations and with members spread three times as wide."""
    rng = np.random.default_rng(7)
    shift = norm.ppf(auc) * np.hypot(spread, 1)
    trials = [
        MembershipScores(rng.normal(shift, spread, 25), rng.normal(0, 1, 25)).interval("auc", level=0.95)
        for _ in range(600)
    ]
    covered = np.mean([low <= auc <= high for low, high in trials])
    assert covered >= 0.93
    assert np.mean([high - low for low, high in trials]) < 0.36


def test_a_perfect_separation_does_not_give_an_interval_of_width_zero() -> None:
    low, high = MembershipScores(np.arange(10.0) + 10, np.arange(10.0)).interval("auc")
    assert 0.75 < low < 0.9 and high == 1.0
    low, high = MembershipScores(np.arange(10.0), np.arange(10.0) + 10).interval("auc")
    assert low == 0.0 and 0.1 < high < 0.25


def test_one_score_each_gives_an_interval_that_says_nothing() -> None:
    low, high = MembershipScores([1.0], [0.0]).interval("auc")
    assert low < 0.5 and high == 1.0


@pytest.mark.parametrize("auc", [0.0, 0.3, 0.5, 0.97, 1.0])
def test_newcombe_bounds_lie_one_hypothetical_standard_error_times_z_away(auc: float) -> None:
    m, n, z = 30, 50, 1.96
    for bound in newcombe(auc, m, n, z):
        star = (m + n) / 2 - 1
        shape = 1 + star * ((1 - bound) / (2 - bound) + bound / (1 + bound))
        assert abs(auc - bound) == pytest.approx(z * np.sqrt(bound * (1 - bound) * shape / (m * n)), abs=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_the_auc_interval_contains_delongs_on_the_logit_scale(tied: bool) -> None:
    """Few members and many non-members of wide spread, or the reverse: there Newcombe's alone would be too narrow."""
    rng = np.random.default_rng(8)
    for m, n, wide in ((20, 400, "members"), (400, 20, "nonmembers")):
        a, b = rng.normal(0.5, 3 if wide == "members" else 1, m), rng.normal(0, 3 if wide == "nonmembers" else 1, n)
        scores = MembershipScores(np.round(a), np.round(b)) if tied else MembershipScores(a, b)
        wins = (np.sign(scores.members[:, None] - scores.nonmembers[None, :]) + 1) / 2
        variance = wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n
        logit = np.log(scores.auc / (1 - scores.auc))
        spread = 1.959964 * np.sqrt(variance) / (scores.auc * (1 - scores.auc))
        expected = 1 / (1 + np.exp(-np.array([logit - spread, logit + spread])))
        assert expected[0] < newcombe(scores.auc, m, n, 1.96)[0]
        assert scores.interval("auc") == pytest.approx(tuple(expected), abs=1e-6)


def test_the_auc_interval_shrinks_with_the_root_of_the_sample() -> None:
    widths = [np.diff(drawn(2, n, n).interval("auc")).item() for n in (100, 400, 1600)]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.15)


def test_the_tpr_interval_is_clopper_pearsons_on_the_members() -> None:
    scores = drawn(4)
    found = int(np.sum(scores.members > np.sort(scores.nonmembers)[-3]))
    assert scores.attained_fpr(0.05) == 2 / 55
    assert scores.interval("tpr_at", fpr=0.05) == clopper_pearson(found, 40)
    assert scores.interval("tpr", fpr=0.05, level=0.9) == clopper_pearson(found, 40, 0.9)


def test_clopper_pearson_inverts_the_binomial_tails() -> None:
    from scipy.stats import binom

    low, high = clopper_pearson(7, 20, 0.95)
    assert binom.sf(6, 20, low) == pytest.approx(0.025)
    assert binom.cdf(7, 20, high) == pytest.approx(0.025)
    assert clopper_pearson(0, 20)[0] == 0.0 and clopper_pearson(20, 20)[1] == 1.0


def test_the_true_fpr_lies_under_its_upper_bound_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        scores = MembershipScores([0.0], rng.random(60))
        truth = 1 - np.sort(scores.nonmembers)[60 - 1 - 3]  # of a uniform variable, above the fourth highest
        held.append(truth <= scores.interval("attained_fpr", fpr=0.05, level=0.9)[1])
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)  # one-sided half of 10 %


def test_the_asr_interval_covers_the_true_rate() -> None:
    rng = np.random.default_rng(1)
    truth = norm.cdf(0.5)
    covered = [
        low <= truth <= high
        for low, high in (
            MembershipScores(rng.normal(1, 1, 25), rng.normal(0, 1, 25)).interval("asr", threshold=0.5)
            for _ in range(500)
        )
    ]
    assert np.mean(covered) >= 0.94


def test_the_oracle_interval_is_a_bootstrap_of_the_optimum() -> None:
    scores = drawn(5)
    rng = np.random.default_rng(3)
    naive = [
        MembershipScores(rng.choice(scores.members, 40), rng.choice(scores.nonmembers, 55)).oracle_asr()
        for _ in range(1500)
    ]
    expected = np.quantile(naive, [0.025, 0.975])
    low, high = scores.interval("oracle_asr", seed=9)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.02)
    assert low <= scores.oracle_asr() <= high
    assert scores.interval("oracle_asr", seed=9) == (low, high)


def test_a_higher_level_gives_a_wider_interval() -> None:
    scores = drawn(6)
    for options in ({"metric": "auc"}, {"metric": "tpr", "fpr": 0.1}, {"metric": "asr", "threshold": 0.0}):
        wide, narrow = (scores.interval(**options, level=level) for level in (0.99, 0.8))
        assert wide[0] < narrow[0] and narrow[1] < wide[1]


# --- honesty about small numbers


def test_a_tpr_is_reliable_from_ten_expected_false_positives_on() -> None:
    assert MembershipScores([0.0], np.arange(200.0)).reliable(0.05)
    assert MembershipScores([0.0], np.arange(1000.0)).reliable(0.01)
    assert not MembershipScores([0.0], np.arange(199.0)).reliable(0.05)
    assert not MembershipScores([0.0], np.arange(999.0)).reliable(0.01)


def test_an_unreliable_tpr_says_on_how_many_nonmembers_it_rests() -> None:
    scores = MembershipScores(np.arange(60.0), np.arange(60.0))
    assert "0 of 60 non-members" in scores.note(0.01) and "at least 1000" in scores.note(0.01)
    assert "3 of 60 non-members" in scores.note(0.05) and "at least 200" in scores.note(0.05)
    assert f"{clopper_pearson(0, 60)[1]:.3f}" in scores.note(0.01)
    assert scores.note(0.5) == ""


@pytest.mark.parametrize("bad", [[], [[1.0, 2.0]], [np.nan], [1.0, np.inf], 3.0])
def test_arrays_that_are_no_scores_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="members"):
        MembershipScores(bad, [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nonmembers"):
        MembershipScores([1.0], bad)  # type: ignore[arg-type]


def test_nonsense_asked_of_an_interval_is_refused() -> None:
    scores = drawn(0)
    for options, word in (
        ({"metric": "tpr"}, "fpr"),
        ({"metric": "asr"}, "threshold"),
        ({"metric": "f1"}, "f1"),
        ({"metric": "auc", "level": 95}, "level"),
        ({"metric": "tpr", "fpr": 5}, "rate"),
    ):
        with pytest.raises(ValueError, match=word):
            scores.interval(**options)  # type: ignore[arg-type]


def test_scores_cannot_be_changed_after_the_fact() -> None:
    given = np.array([1.0, 2.0])
    scores = MembershipScores(given, [0.0])
    given[0] = -5
    assert scores.auc == 1.0
    with pytest.raises(ValueError):
        scores.members[0] = 0.0
    with pytest.raises(AttributeError):
        scores.members = given  # type: ignore[misc]


def test_scoring_arrays_does_not_wait_for_torch() -> None:
    code = "import sys; from lorica.audit import MembershipScores; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
