"""Release gates: `--fail-if "auc>0.6"` turns an audit into an exit code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorica.audit.score import MembershipScores
from lorica.errors import LoricaError

METRICS = ("auc", "auc_distance", "asr", "oracle_asr", "tpr@FPR")
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RULE = re.compile(
    rf"(?P<upper>upper\()?(?P<metric>auc_distance|auc|asr|oracle_asr|tpr@(?P<fpr>{_NUMBER}))(?(upper)\))"
    rf"(?P<comparison>>=|>)(?P<limit>{_NUMBER})"
)


@dataclass(frozen=True)
class Gate:
    """A rule that fails an audit when *any* attack reaches the limit.

    - `auc>0.6` compares the point value; `upper(auc)>0.6` the upper end of its interval, the stricter rule: it fails
      also when too few pictures were audited to rule the limit out.
    - `auc` means max(AUC, 1 - AUC) here: an attacker flips an inverted score, and a gate must not be passed by one.
      `audit.json` keeps the sign.
    - `asr` is at the attack's own threshold, `oracle_asr` at the best one; `tpr@0.01` is the TPR at 1 % FPR;
      `auc_distance` is |AUC - 0.5| / 0.5.
    """

    rule: str
    metric: str
    fpr: float | None
    upper: bool
    strict: bool
    limit: float

    @classmethod
    def parse(cls, rule: str) -> "Gate":
        """Raises: LoricaError when it is not `metric>limit` or `upper(metric)>limit` with a limit in [0, 1]."""
        match = _RULE.fullmatch("".join(rule.split()))
        if match is None:
            raise LoricaError(
                f"--fail-if {rule!r} is not a rule",
                f'Write metric>limit or upper(metric)>limit with > or >=, e.g. "auc>0.6", "upper(tpr@0.01)>0.05". '
                f"Metrics: {', '.join(METRICS)}.",
            )
        fpr = float(match["fpr"]) if match["fpr"] else None
        limit = float(match["limit"])
        if limit > 1 or (fpr is not None and fpr > 1):
            raise LoricaError(f"--fail-if {rule!r} can never hold", "Rates and AUCs are in [0, 1]: write 0.6, not 60.")
        return cls(rule, match["metric"], fpr, bool(match["upper"]), match["comparison"] == ">", limit)

    def check(
        self, scores: Mapping[str, MembershipScores], thresholds: Mapping[str, float], level: float
    ) -> dict[str, Any]:
        """{"rule", "failed", "attack", "value", "reason"} for the attack with the highest value."""
        values = {name: self.value(scores[name], thresholds[name], level) for name in scores}
        attack = max(values, key=values.__getitem__)
        value = values[attack]
        failed = value > self.limit if self.strict else value >= self.limit
        what = f"the upper {100 * level:g} % bound of {self.metric}" if self.upper else self.metric
        reason = f"{what} of {attack} is {value:.3f}, the highest of {len(values)}; the limit is {self.limit:g}"
        if self.fpr is not None and (note := scores[attack].note(self.fpr)):
            reason += f". {note}"
        return {"rule": self.rule, "failed": failed, "attack": attack, "value": value, "reason": reason}

    def value(self, scores: MembershipScores, threshold: float, level: float) -> float:
        """The number that is compared with the limit."""
        if self.metric.startswith("tpr"):
            assert self.fpr is not None
            return scores.interval("tpr", fpr=self.fpr, level=level)[1] if self.upper else scores.tpr_at(self.fpr)
        if self.metric == "asr":
            return scores.interval("asr", threshold=threshold, level=level)[1] if self.upper else scores.asr(threshold)
        if self.metric == "oracle_asr":
            return scores.interval("oracle_asr", level=level)[1] if self.upper else scores.oracle_asr()
        low, high = scores.interval("auc", level=level) if self.upper else (scores.auc, scores.auc)
        better = max(high, 1 - low)
        return better if self.metric == "auc" else (better - 0.5) / 0.5
