"""Which members an attacker would name first: by place in the split, never by name or picture."""

from typing import Any

import numpy as np

from lorica.audit.score import MembershipScores

LISTED = 10


def most_exposed(scores: MembershipScores, listed: int = LISTED) -> list[dict[str, Any]]:
    """Members in the order in which an attack would name them, with the share of false alarms it takes.

    Where the ranking is inverted (AUC below 0.5) the attacker turns the score round, and so does this.

    Args:
        scores: test scores of the attack.
        listed: how many members at most.

    Returns:
        [{"index": place among the test members, "fpr": share of non-members that score at least as high}], by falling
        exposure; members whom fewer than half of the non-members would hide.
    """
    sign = 1 if scores.auc >= 0.5 else -1
    members, nonmembers = sign * scores.members, np.sort(sign * scores.nonmembers)
    above = len(nonmembers) - np.searchsorted(nonmembers, members, side="left")
    order = np.lexsort((-members, above))[:listed]
    found = [{"index": int(i), "fpr": float(above[i] / len(nonmembers))} for i in order]
    return [one for one in found if one["fpr"] < 0.5]
