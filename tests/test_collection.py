"""The test of a whole collection: an honest p-value when nothing was trained on, and a small one when it was."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from scipy.stats import binomtest, kstest

from lorica.audit.collection import Halves, collection_scores, collection_test, pictures_needed, welch
from lorica.audit.score import MembershipScores

ATTACKS = ("a", "b", "c", "d", "e", "f")


def halves(
    shift: float, seed: int, sizes: tuple[int, int, int, int] = (30, 30, 30, 30), attacks: tuple[str, ...] = ATTACKS
) -> Halves:
    """Scores of attacks that see much the same, with heavy tails; those of all members `shift` higher."""
    rng = np.random.default_rng(seed)

    def group(size: int, by: float) -> NDArray[np.float64]:
        shared = rng.standard_t(3, (size, 1))
        return 0.7 * shared + rng.standard_t(3, (size, len(attacks))) + by

    aux_members, test_members = (group(size, shift) for size in sizes[:2])
    aux_nonmembers, test_nonmembers = (group(size, 0.0) for size in sizes[2:])
    return {
        name: (
            MembershipScores(aux_members[:, i], aux_nonmembers[:, i]),
            MembershipScores(test_members[:, i], test_nonmembers[:, i]),
        )
        for i, name in enumerate(attacks)
    }


def p_of(given: Halves) -> float:
    scores = collection_scores(given)
    return float(welch(scores.members, scores.nonmembers))


@pytest.mark.parametrize("sizes", [(30, 30, 30, 30), (12, 40, 30, 15)])
def test_the_p_value_is_uniform_when_members_and_nonmembers_are_exchangeable(sizes: tuple[int, int, int, int]) -> None:
    found = [p_of(halves(0.0, 1000 + trial, sizes)) for trial in range(400)]
    assert kstest(found, "uniform").pvalue > 0.01
    for alpha in (0.01, 0.05, 0.2):
        rejected = sum(p <= alpha for p in found)
        assert binomtest(rejected, len(found), alpha, alternative="greater").pvalue > 0.01


def test_the_p_value_would_not_be_honest_if_test_pictures_took_part_in_the_fit() -> None:
    """The simulation can fail: a regression fitted to the pictures that it is tested on rejects without cause."""
    leaky = [p_of({name: (test, test) for name, (_, test) in halves(0.0, trial).items()}) for trial in range(100)]
    assert np.mean(np.array(leaky) <= 0.05) > 0.2


def test_a_shift_that_no_single_attack_could_prove_is_found_in_the_collection() -> None:
    found = [halves(0.5, 5000 + trial, (200,) * 4) for trial in range(40)]
    assert np.median([p_of(given) for given in found]) < 0.01
    single = [given["a"][1].auc for given in found]
    assert np.mean(single) < 0.6


def test_several_attacks_together_find_more_than_one_of_them() -> None:
    together, alone = [], []
    for trial in range(40):
        given = halves(0.3, 7000 + trial, (100,) * 4)
        together.append(p_of(given))
        alone.append(p_of({"a": given["a"]}))
    assert np.median(together) < np.median(alone)


def test_an_inverted_attack_counts_as_much_as_an_upright_one() -> None:
    given = halves(0.5, 0, (100,) * 4)
    turned = {
        name: (MembershipScores(-aux.members, -aux.nonmembers), MembershipScores(-test.members, -test.nonmembers))
        for name, (aux, test) in given.items()
    }
    assert p_of(turned) == pytest.approx(p_of(given))


def test_welch_is_the_t_test_with_welchs_degrees_of_freedom() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.4, 2, (3, 11)), rng.normal(0, 1, (3, 17))
    for row, p in enumerate(welch(x, y)):
        vx, vy = x[row].var(ddof=1) / 11, y[row].var(ddof=1) / 17
        t = (x[row].mean() - y[row].mean()) / np.sqrt(vx + vy)
        freedom = (vx + vy) ** 2 / (vx**2 / 10 + vy**2 / 16)
        assert p == pytest.approx(stdtr(freedom, -t), rel=1e-9)


def test_scores_that_do_not_vary_are_no_evidence() -> None:
    constant = {"a": (MembershipScores([0.0] * 4, [0.0] * 4), MembershipScores([0.0] * 4, [0.0] * 4))}
    found = collection_test(constant, {}, seed=0)
    assert found["p_value"] == 1.0 and not found["detected"] and found["pictures_needed"] is None


def test_no_score_of_a_test_picture_depends_on_another_one() -> None:
    whole = collection_scores(halves(0.5, 3))
    part = collection_scores(
        {
            name: (aux, MembershipScores(test.members[:5], test.nonmembers[-4:]))
            for name, (aux, test) in halves(0.5, 3).items()
        }
    )
    np.testing.assert_allclose(part.members, whole.members[:5])
    np.testing.assert_allclose(part.nonmembers, whole.nonmembers[-4:])


def test_the_pictures_needed_follow_the_power_of_the_t_test() -> None:
    """For unit normals a distance d apart the median p is 0.01 where d sqrt(n / 2) = t_{0.99}, 2n - 2 freedom."""
    rng = np.random.default_rng(0)
    for distance in (1.5, 0.8):
        expected = next(n for n in range(2, 99) if distance * np.sqrt(n / 2) >= stdtrit(2 * n - 2, 0.99))
        scores = MembershipScores(rng.normal(distance, 1, 4000), rng.normal(0, 1, 4000))
        needed = pictures_needed(scores, seed=0)
        assert needed is not None and abs(needed - expected) <= max(1, 0.2 * expected)
    nothing = MembershipScores(rng.normal(0, 1, 200), rng.normal(0, 1, 200))
    assert pictures_needed(nothing, seed=0) is None


def test_the_pictures_needed_are_the_same_for_the_same_seed() -> None:
    scores = collection_scores(halves(0.8, 1, (60,) * 4))
    assert pictures_needed(scores, seed=3) == pictures_needed(scores, seed=3)


def test_the_entry_says_what_was_found_and_on_how_many() -> None:
    found = collection_test(halves(1.0, 0, (60,) * 4), halves(0.0, 1, (60,) * 4), seed=0)
    assert found["detected"] and found["trusted"] and found["attacks"] == list(ATTACKS)
    assert found["p_value"] <= found["alpha"] < found["base"]
    assert 2 <= found["pictures_needed"] <= 60
    assert "60 test members" in found["text"] and f"by {found['pictures_needed']} of them" in found["text"]
    nothing = collection_test(halves(0.0, 2), {}, seed=0)
    assert not nothing["detected"] and nothing["base"] is None and "cannot be shown" in nothing["text"]


def test_a_base_model_that_is_convicted_as_well_takes_the_proof_away() -> None:
    found = collection_test(halves(1.0, 0, (60,) * 4), halves(1.0, 1, (60,) * 4), seed=0)
    assert found["detected"] and not found["trusted"] and "nothing is shown" in found["text"]


def test_nothing_is_claimed_while_the_audit_is_not_to_be_trusted() -> None:
    found = collection_test(halves(1.0, 0, (60,) * 4), {}, seed=0, fair=False)
    assert found["detected"] and not found["trusted"] and "shows nothing" in found["text"]


def test_no_attack_is_no_test() -> None:
    with pytest.raises(ValueError, match="at least one attack"):
        collection_scores({})
