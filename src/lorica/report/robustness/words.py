"""The sentences of the robustness report. They restate the evaluations and judge nothing anew."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorica.report.robustness.figures import by_class, norm_name
from lorica.report.robustness.run import RobustnessRun, objects, shared_radius
from lorica.report.robustness.tables import attack_name, largest, membership
from lorica.report.run import Estimate, finite, section
from lorica.report.words import listed, number, percent

_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
_TYPES = 15  # of corruptions in the benchmark
_NAMED = 4  # so many models are read in a sentence; more are counted


@dataclass(frozen=True)
class Raised:
    """A flag that was raised, on the runs and at the radii that it was raised for."""

    name: str
    problem: str
    advice: str
    doubt: bool
    where: tuple[str, ...]


def headline(runs: Sequence[RobustnessRun]) -> str:
    """How much is left, in one sentence: where models are compared, at the largest radius that they share."""
    radius = shared_radius(runs)
    rates = [(run, run.robust(radius).value) for run in runs]
    known = [(run, value) for run, value in rates if value is not None]
    if not known:
        return "The evaluation holds no robust accuracy."
    start = f"Attacked within {radius}," if radius else "Attacked within different radii,"
    if len(known) > _NAMED:
        least, most = (choose(value for _, value in known) for choose in (min, max))
        bound = "at most " if any(run.upper_bound for run, _ in known) else ""
        return (
            f"{start} {len(known)} models are right between {bound}{percent(least)} and {percent(most)} of the time."
        )
    parts = [f"{run.label} {_at_most(run)}{percent(value)}" for run, value in known]
    first, value = known[0]
    parts[0] = f"{first.label} is right {_at_most(first)}{percent(value)} of the time"
    if len(known) == 1 and first.natural.value is not None:
        parts[0] += f"; {percent(first.natural.value)} without an attacker"
    return f"{start} {listed(parts)}."


def _at_most(run: RobustnessRun) -> str:
    return "at most " if run.upper_bound else ""


def bounds(runs: Sequence[RobustnessRun]) -> str:
    """Whose numbers are upper bounds by their own verdict; empty for none."""
    labels = [run.label for run in runs if run.upper_bound]
    if not labels:
        return ""
    return f"Less than standard AutoAttack ran on {listed(labels)}. The full attack usually breaks more pictures."


def flags(runs: Sequence[RobustnessRun]) -> list[Raised]:
    """Raised flags, those that cast doubt first; one entry for equal ones."""
    merged: dict[tuple[str, str, str, bool], dict[str, None]] = {}
    for run in runs:
        for flag in _raised(run):
            name, problem, advice = (str(flag.get(part) or "") for part in ("name", "problem", "advice"))
            at = f", {flag['threat']}" if flag.get("threat") else ""
            merged.setdefault((name, problem, advice, _casts_doubt(flag)), {})[f"{run.label}{at}"] = None
    found = [Raised(*key, where=tuple(where)) for key, where in merged.items()]
    return sorted(found, key=lambda flag: not flag.doubt)


def doubts(runs: Sequence[RobustnessRun]) -> list[str]:
    """Reasons not to rely on a verdict; they stand right under it."""
    said = [f"{listed(flag.where)}: {flag.problem}." for flag in flags(runs) if flag.doubt]
    unexplained = [run.label for run in runs if run.trusted is False and not any(map(_casts_doubt, _raised(run)))]
    return said + [f"{label}: the evaluation does not trust its own number." for label in unexplained]


def _raised(run: RobustnessRun) -> list[dict[str, Any]]:
    return [flag for flag in run.flags if flag.get("raised") is True]


def _casts_doubt(flag: dict[str, Any]) -> bool:
    return flag.get("doubt") is not False


def quiet_flags(runs: Sequence[RobustnessRun]) -> list[str]:
    """Names of flags that were looked for and not raised on any run."""
    names = dict.fromkeys(str(flag.get("name")) for run in runs for flag in run.flags)
    raised = {str(flag.get("name")) for run in runs for flag in _raised(run)}
    return [name.replace("_", " ") for name in names if name not in raised]


def worst_classes(runs: Sequence[RobustnessRun]) -> list[tuple[int, str, Estimate, Estimate, int]]:
    """(run index, class, natural, robust, how many others fall as low) of the lowest class of each run."""
    found = []
    for index, run in enumerate(runs):
        rows = by_class(run)
        if rows:
            name, natural, robust = rows[0]
            ties = sum(other.value == robust.value for _, _, other in rows[1:])
            found.append((index, name, natural, robust, ties))
    return found


def mistakes(run: RobustnessRun) -> list[str]:
    """The most frequent mistakes in the worst case, with their number."""
    return [
        f"{entry.get('class')} taken for {entry.get('taken_for')} ({entry.get('count')})"
        for entry in objects(run.worst.get("confused"))[:5]
    ]


def side_by_side(run: RobustnessRun) -> str:
    """The evaluation's own sentence on membership, or the two numbers."""
    found = run.part("membership")
    if found.get("text"):
        return str(found["text"])
    auc, members = run.membership, finite(found.get("members"))
    told = {"True": "It leaks which pictures it was trained on", "False": "No leak of its training pictures was found"}
    said = told.get(str(found.get("leaks")), "Asked for its training pictures")
    count = "" if members is None else f" on {members:,.0f} members and as many others"
    return (
        f"{said}: {found.get('worst_attack') or 'the strongest attack'} reaches an AUC of {number(auc.value)}{count}, "
        f"where 0.5 is chance. Robust accuracy beside it: {percent(run.robust().value)}."
    )


def example(run: RobustnessRun, about: dict[str, Any]) -> str:
    """By which attack a picture was moved how far, and whether it still fools the model as a file."""
    distance, norm = finite(about.get("distance")), str(run.worst.get("norm"))
    far = "" if distance is None else f"{255 * distance:.3g}/255" if norm == "linf" else f"{distance:.3g}"
    rounded = {"True": "fools the model as an 8-bit file, too", "False": "does not fool the model as an 8-bit file"}
    said = [
        attack_name(str(about.get("attack"))),
        f"moved by {far} in {norm_name(norm)}" if far else "",
        rounded.get(str(about.get("fools_as_8_bit")), ""),
    ]
    return "; ".join(part for part in said if part)


def untested(runs: Sequence[RobustnessRun]) -> list[str]:
    """What the numbers do not say."""
    return list(dict.fromkeys(_untested(runs)))


def _untested(runs: Sequence[RobustnessRun]) -> Iterator[str]:
    attacked = [run for run in runs if run.threats]
    for run in attacked:
        ran = {str(attack.get("name")) for attack in objects(section(run.worst, "autoattack").get("attacks"))}
        missing = [attack_name(name) for name in _STANDARD if name not in ran]
        if run.upper_bound and missing:
            yield f"{run.label}: of standard AutoAttack, {listed(missing)} did not run."
    if attacked:
        yield (
            f"Only attackers who move pixels within {listed(largest(attacked))} were tried: no larger radius, no "
            "other norm, no patches, no turned, shifted or recoloured pictures."
        )
        yield "No attack was written for these models: one that knows how they work may do better than all that ran."
    yield from _missing(runs, "corruptions", "Common corruptions were not tried")
    for run in runs:
        types, source = run.part("corruptions", "types"), run.part("corruptions").get("source")
        if types and len(types) < _TYPES:
            yield f"{run.label}: {len(types)} of the benchmark's {_TYPES} types of corruptions were tried."
        if types and source != "official":
            yield (
                "Corruptions were generated here with the benchmark's formulas: compare their mean with others made "
                "so, not with published numbers on the official files."
            )
    yield from _missing(runs, "membership", "Whether training pictures leak was not measured")
    if any(run.part("membership") and not run.part("membership").get("shadows") for run in runs):
        yield (
            "Membership was tried by attackers without shadow models. Those who train some (LiRA, RMIA) usually find "
            "more."
        )
    if any(attack.get("form") == "offline" for _, _, entries in membership(runs) for _, _, attack in entries):
        yield (
            "LiRA and RMIA were tried in their offline forms, as some pictures were in no shadow model's training: "
            "online, they usually find more."
        )
    if any(run.record for run in runs):
        yield (
            "One training run per model. The intervals cover the choice of pictures, not the luck of training: small "
            "differences may turn around with another seed."
        )
    for run in runs:
        beside = run.record.get("natural")
        if run.part("model").get("weights") == "unknown" and run.record and beside != run.evaluation.get("natural"):
            yield f"{run.label}: nothing shows that the training record beside it is that of the evaluated weights."


def _missing(runs: Sequence[RobustnessRun], part: str, text: str) -> Iterator[str]:
    without = [run.label for run in runs if not run.part(part)]
    if without:
        yield f"{text}." if len(without) == len(runs) else f"{text} on {listed(without)}."


def notes(runs: Sequence[RobustnessRun]) -> list[str]:
    """What the evaluations and trainings themselves warn of; said once where it is said of all."""
    said: dict[str, list[str]] = {}
    for run in runs:
        for text in [*_texts(run.evaluation.get("warnings")), *_texts(run.record.get("notes"))]:
            said.setdefault(text, []).append(run.label)
        if run.record.get("stopped"):
            said.setdefault(f"training ended early: {run.record['stopped']}.", []).append(run.label)
    return [
        f"{text[:1].upper()}{text[1:]}"
        if len(set(labels)) == len(runs)
        else f"{listed(dict.fromkeys(labels))}: {text}"
        for text, labels in said.items()
    ]


def _texts(value: object) -> Iterable[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def level(runs: Sequence[RobustnessRun]) -> str:
    """The confidence level of the intervals, such as 95%."""
    rates = [run.part("natural") for run in runs] + [section(run.worst, "robust") for run in runs]
    levels = {finite(rate.get("level")) for rate in rates} - {None}
    return listed(f"{100 * value:g}%" for value in sorted(v for v in levels if v is not None) or [0.95])
