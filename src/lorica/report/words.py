"""The sentences of the report: headline, doubts, controls, caveats. They restate the audit and judge nothing anew."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from lorica.report.run import Estimate, ReportRun, finite

_UNTESTED = {
    "an attacker who trains shadow LoRAs with the same recipe (LiRA, RMIA)": {"lira", "rmia"},
    "an attacker who reads gradients of the weights (GSA)": {"gsa"},
    "an attacker who sees generated pictures only": {"reconstruction"},
    "an attacker who knows the defence and adapts to it": {"adaptive-nn"},
}

_NAMED = 4  # so many names are read in a sentence; more are counted


@dataclass(frozen=True)
class Control:
    """A check on the audit itself. `passed` is None where it was not run; `method` says how it was made.

    `whose` names the runs in a sentence.
    """

    runs: tuple[str, ...]
    name: str
    passed: bool | None
    text: str
    method: str = ""
    whose: str = ""


def headline(runs: Sequence[ReportRun]) -> str:
    """The verdicts of all runs in at most two sentences."""
    leaking = [run.label for run in runs if run.leaks]
    tight = [run.label for run in runs if run.leaks is False]
    if len(runs) > _NAMED and leaking and tight:
        do = "leak their" if len(leaking) > 1 else "leaks its"
        return (
            f"{len(leaking)} of {len(runs)} LoRAs {do} training pictures. "
            f"No leak was found in {listed(tight) if len(tight) <= _NAMED else f'the other {len(tight)}'}."
        )
    sentences = []
    if leaking:
        many = len(leaking) > 1
        sentences.append(f"{listed(leaking)} {'leak their' if many else 'leaks its'} training pictures.")
    if tight:
        sentences.append(f"No leak was found in {listed(tight)}.")
    return " ".join(sentences) or "The audit holds no verdict."


def doubts(runs: Sequence[ReportRun]) -> list[str]:
    """Reasons not to rely on a verdict; they stand right under it."""
    return [f"{control.whose}: {control.text}" for control in controls(runs) if control.passed is False]


def controls(runs: Sequence[ReportRun]) -> list[Control]:
    """The blind baseline and the negative control of the audited runs; runs of equal outcome share one entry."""
    audited = [run for run in runs if run.attacks]
    single = [check(run) for check in (_blind, _negative) for run in audited]
    merged: dict[tuple[str, str], Control] = {}
    for control in single:
        key = (control.name, control.text)
        runs_so_far = merged[key].runs if key in merged else ()
        merged[key] = replace(control, runs=runs_so_far + control.runs)
    return [replace(control, whose=_whose(control.runs, audited)) for control in merged.values()]


def _whose(labels: Sequence[str], audited: Sequence[ReportRun]) -> str:
    return f"all {len(audited)} LoRAs" if len(labels) == len(audited) > _NAMED else listed(labels)


def _blind(run: ReportRun) -> Control:
    name, blind = "Blind baseline", run.part("controls", "blind")
    fair = blind.get("fair")
    if not isinstance(fair, bool):
        return Control((run.label,), name, None, "Not run: nothing shows that the split is fair.")
    shown = f"(AUC {interval(Estimate.of(blind.get('auc')))})"
    if fair:
        text = f"Without the model, members could not be told from non-members {shown}: the split looks fair."
    else:
        text = (
            f"Members can be told from non-members without the model {shown}: the groups differ by themselves, "
            "so that the attacks may see this difference and not the training."
        )
    return Control((run.label,), name, fair, text, str(blind.get("method") or ""))


def _negative(run: ReportRun) -> Control:
    name, base = "Negative control", run.part("controls", "base")
    told = {a: v.get("covers_chance") for a, v in base.items() if isinstance(v, dict)}
    told = {attack: covers for attack, covers in told.items() if isinstance(covers, bool)}
    if not told:
        return Control((run.label,), name, None, "Not run: the base model was not attacked.")
    off = [attack for attack, covers in told.items() if not covers]
    if not off:
        text = "On the base model, which never saw the members, every attack tried is at chance."
        return Control((run.label,), name, True, text)
    text = (
        f"On the base model, which never saw the members, {listed(off)} "
        f"{'are' if len(off) > 1 else 'is'} away from chance: what they find in the LoRA is not all due to training."
    )
    return Control((run.label,), name, False, text)


def caveats(runs: Sequence[ReportRun]) -> list[str]:
    """What a careful reader keeps in mind: the warnings of the audits, then the standing limits that apply here."""
    audited = [run for run in runs if run.attacks]
    if not audited:
        return []
    warned = [(run.label, str(text)) for run in runs for text in _warnings(run)]
    found = []
    for text in dict.fromkeys(text for _, text in warned):
        labels = [label for label, other in warned if other == text]
        found.append(text if len(labels) >= len(audited) else f"{listed(labels)}: {text}")
    skipped = [f"{c.name} of {c.whose}: {c.text}" for c in controls(audited) if c.passed is None]
    return [*found, *skipped, *_standing(audited, runs)]


def _warnings(run: ReportRun) -> list[str]:
    return [*(run.audit.get("warnings") or []), *((run.quality or {}).get("warnings") or [])]


def _standing(audited: Sequence[ReportRun], runs: Sequence[ReportRun]) -> Iterable[str]:
    tried = list(dict.fromkeys(attack for run in audited for attack in run.attacks))
    yield (
        f"Only these attacks were tried: {listed(tried)}. A model that withstands them may fall to another. "
        + _not_tried(tried)
    )
    if len(tried) > 1:
        yield (
            f"The figures on top are those of the strongest of {len(tried)} attacks, chosen after seeing the results: "
            "the largest of several estimates is a little too large on average, and the intervals shown do not "
            "account for the choice."
        )
    counts = _known(audited, "counts", "test_nonmembers")
    if counts:
        yield _resolution(int(min(counts)))
    seeds = {run.part("provenance").get("seed") for run in audited} - {None}
    if len(seeds) == 1:
        yield (
            f"One training run per method, one seed ({seeds.pop()}). The intervals cover the choice of pictures, not "
            "the luck of training: small differences between methods may turn around with another seed."
        )
    if len(audited) > 1:
        steps = {run.part("target").get("steps") for run in audited}
        yield (
            "All methods were trained for the same number of steps. A defence that only learns more slowly then looks "
            "private: read every AUC beside the quality that it left."
            if len(steps) == 1
            else "The methods were not trained for the same number of steps: fewer steps alone leak less."
        )
    epochs = _known(audited, "target", "steps_per_picture")
    if epochs:
        yield (
            f"Each picture was trained on about {max(epochs):.0f} times. Leakage grows with this number; results do "
            "not carry over to shorter or longer training."
        )
    if any(run.quality and run.quality.get("comparable") is False for run in runs):
        yield (
            "KID and FID were computed with a feature extractor other than the published Inception network. They rank "
            "the methods on this page and compare with no number elsewhere."
        )


def _known(runs: Iterable[ReportRun], section: str, key: str) -> list[float]:
    values = (finite(run.part(section).get(key)) for run in runs)
    return [value for value in values if value is not None]


def _not_tried(tried: Sequence[str]) -> str:
    missing = [who for who, names in _UNTESTED.items() if not names & set(tried)]
    return f"Not tried: {'; '.join(missing)}." if missing else ""


def _resolution(nonmembers: int) -> str:
    wanted = math.ceil(10 / 0.01)
    text = f"With {nonmembers} test non-members, false-alarm rates move in steps of {percent(1 / nonmembers, 2)}"
    if nonmembers >= wanted:
        return f"{text}: fine enough for the rates shown."
    at = nonmembers // 100
    rests = f"rests on {at} of them" if at else "is in truth taken at no false alarm at all"
    return f"{text}. The share found at 1% false alarms {rests}; a steady figure needs {wanted:,} or more."


def level(runs: Sequence[ReportRun]) -> str:
    """The confidence level of the intervals, such as 95%."""
    levels = {finite(run.part("attacks", attack, "auc").get("level")) for run in runs for attack in run.attacks}
    return listed(f"{100 * value:g}%" for value in sorted(value for value in levels if value is not None) or [0.95])


def rates(keys: Iterable[str]) -> list[tuple[str, str]]:
    """(key, percentage) of every false-positive rate at which a TPR is given, by rising rate."""
    known = {}
    for key in sorted(set(keys)):
        with suppress(ValueError):  # results may come from anyone
            if 0 < float(key) < 1:
                known[key] = float(key)
    return [(key, f"{100 * rate:g}%") for key, rate in sorted(known.items(), key=lambda item: item[1])]


def listed(names: Iterable[str]) -> str:
    """a; a and b; a, b and c."""
    *most, last = [str(name) for name in names] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def number(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals; an em dash where nothing was measured."""
    return "—" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    return "—" if value is None else f"{100 * value:.{digits}f}%"


def interval(estimate: Estimate) -> str:
    """0.912, interval 0.871 to 0.943."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)}, interval {number(estimate.low)} to {number(estimate.high)}"
