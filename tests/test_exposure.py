"""Which members an attacker would name first."""

import numpy as np

from lorica.audit.exposure import most_exposed
from lorica.audit.score import MembershipScores


def test_members_are_listed_by_how_few_nonmembers_score_as_high() -> None:
    scores = MembershipScores([0.5, 9.0, 3.0, 3.5, -1.0], [0.0, 1.0, 2.0, 3.0])
    assert most_exposed(scores) == [{"index": 1, "fpr": 0.0}, {"index": 3, "fpr": 0.0}, {"index": 2, "fpr": 0.25}]
    assert most_exposed(scores, listed=1) == [{"index": 1, "fpr": 0.0}]


def test_an_inverted_attack_exposes_the_members_that_score_lowest() -> None:
    scores = MembershipScores([-5.0, 0.5, -7.0], np.arange(10.0))
    assert [one["index"] for one in most_exposed(scores)] == [2, 0, 1]
    assert most_exposed(scores)[0]["fpr"] == 0.0
