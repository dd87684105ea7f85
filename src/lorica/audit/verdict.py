"""The audit in plain words: does it leak, by which attack, how sure, and may the answer be trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorica.audit.attacks.base import Attack
from lorica.audit.score import MembershipScores


def judge(
    scores: Mapping[str, MembershipScores],
    attacks: Mapping[str, Attack],
    *,
    subject: str,
    shadows: int | None,
    fprs: Sequence[float],
    level: float,
    objections: Sequence[str],
) -> dict[str, Any]:
    """Judge a set of attacks on one model.

    A leak is an AUC whose interval excludes 0.5, on *either* side, or a TPR whose interval lies above that of the
    false-positive rate it was taken at. Many attacks are looked at and one is enough, so each comparison is made at a
    level raised by Bonferroni's rule: a model that leaks nothing is accused with a probability of about 1 - `level`
    at most.

    Args:
        scores: test scores by attack.
        attacks: the attacks, by the same names.
        subject: what was audited, for the sentence: "The LoRA".
        shadows: how many shadow LoRAs the attacks had; None where there can be none.
        fprs: false-positive rates to look at; unreliable ones are passed over.
        level: confidence level of the verdict.
        objections: reasons not to trust the audit, from its controls.

    Returns:
        {"leaks": bool, "trusted": bool, "worst_attack": name, "text": sentences}.
    """
    comparisons = sum(1 + sum(s.reliable(f) for f in fprs) for s in scores.values())
    strict = 1 - (1 - level) / comparisons
    found = {name: _evidence(s, fprs, strict) for name, s in scores.items()}
    worst = max(scores, key=lambda name: (bool(found[name]), scores[name].auc_distance))
    leaks = any(found.values())
    it = f"{subject[:1].lower()}{subject[1:]}"
    sentences = [f"{subject} leaks its training pictures." if leaks else f"No leak was found in {it}."]
    sentences.append(_strength(worst, scores[worst], attacks[worst], len(scores), level, shadows))
    sentences += found[worst] if leaks else [_resolution(scores, strict)]
    if not leaks and shadows is not None and not any(attacks[name].needs_shadows for name in scores):
        sentences.append("No attacker with shadow LoRAs was tried: they find leaks that others miss.")
    if len(scores) > 1:
        sentences.append(f"The worst of {len(scores)} attacks was taken; the verdict allows for that (Bonferroni).")
    if objections:
        sentences.append(f"But the audit cannot be trusted as it is: {'; '.join(objections)}.")
    return {"leaks": leaks, "trusted": not objections, "worst_attack": worst, "text": " ".join(sentences)}


def _evidence(scores: MembershipScores, fprs: Sequence[float], level: float) -> list[str]:
    """What proves a leak at this confidence level, as sentences; none where nothing does."""
    reliable = [fpr for fpr in fprs if scores.reliable(fpr)]
    low, high = scores.interval("auc", level=level)
    if high < 0.5:
        return ["The ranking is inverted, members score lower: an attacker who knows that flips the sign."]
    if low > 0.5:
        return [_finds(scores, min(reliable, default=max(fprs)))]
    for fpr in reliable:
        least, most = (scores.interval(metric, fpr=fpr, level=level) for metric in ("tpr_at", "attained_fpr"))
        if least[0] > most[1]:
            return [_finds(scores, fpr)]
    return []


def _strength(
    name: str, scores: MembershipScores, attack: Attack, count: int, level: float, shadows: int | None
) -> str:
    low, high = scores.interval("auc", level=level)
    ranked = f"the strongest of {count} attacks, {name}," if count > 1 else f"the attack {name}"
    calls = f"{attack.queries} UNet {'query' if attack.queries == 1 else 'queries'} per picture"
    if attack.needs_shadows:
        calls = f"{shadows} shadow {'LoRA' if shadows == 1 else 'LoRAs'} and {calls}"
    return (
        f"With {calls}, {ranked} reaches an AUC of {scores.auc:.3f} ({100 * level:g} % interval {low:.3f} to "
        f"{high:.3f}; chance is 0.5) on {len(scores.members)} members and {len(scores.nonmembers)} non-members."
    )


def _finds(scores: MembershipScores, fpr: float) -> str:
    doubt = "" if scores.reliable(fpr) else " (too few non-members to be sure of this rate)"
    return (
        f"It finds {100 * scores.tpr_at(fpr):.1f} % of the members at {100 * fpr:g} % false alarms, where guessing "
        f"would find {100 * fpr:g} %{doubt}."
    )


def _resolution(scores: Mapping[str, MembershipScores], level: float) -> str:
    bounds = [s.interval("auc", level=level) for s in scores.values()]
    most = max(max(high, 1 - low) for low, high in bounds)
    return f"With this many pictures an AUC of up to {most:.2f} cannot be ruled out."
