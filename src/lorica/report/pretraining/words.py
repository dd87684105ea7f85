"""The sentences of the pre-training report. They restate what was measured and judge nothing anew."""

from collections.abc import Iterator, Sequence

from lorica.report.pretraining.run import PROBES, PretrainingRun
from lorica.report.run import Estimate, finite
from lorica.report.words import listed, percent

FORMS = {
    "paper": "the KL divergence as the paper defines it",
    "authors": "what the authors' released code computes instead; no divergence, it lies below 0",
    "anchored": "one KL divergence per picture, over all pictures of the batch, averaged",
}
_SUBJECTS = {"linear": "a linear probe", "knn": "a k-NN vote"}
_NAMED = 4  # so many runs are read in a sentence; more are counted


def form_of(term: str, form: str) -> str:
    """What a form of SIR or AIR is; nothing of one that is not known."""
    said = FORMS.get(form, "")
    return f"{said}; tiny, and the smaller the larger the batch" if (term, form) == ("AIR", "paper") else said


def headline(runs: Sequence[PretrainingRun]) -> str:
    """What was learned from how many pictures, and how well the probes do."""
    what = learned(runs)
    kind = _headed(runs)
    if kind is None:
        return f"{what}. How good, no probe tells yet."
    if len(runs) == 1:
        natural, robust = (runs[0].accuracy(kind, pictures).value for pictures in ("natural", "robust"))
        rates = [f"{percent(natural)} of the time"] if natural is not None else []
        rates += [f"at most {percent(robust)} under PGD"] if robust is not None else []
        return f"{what}: {_SUBJECTS[kind]} on it is right {', '.join(rates)}."
    natural_rates, robust_rates = (_known(runs, kind, pictures) for pictures in ("natural", "robust"))
    under, bound = ("under PGD, ", "at most ") if robust_rates else ("", "")
    start, rated = f"{what}: {under}{_SUBJECTS[kind]} is right", robust_rates or natural_rates
    if len(rated) > _NAMED:
        least, most = (choose(value for _, value in rated) for choose in (min, max))
        return f"{start} between {bound}{percent(least)} and {percent(most)} of the time."
    parts = [f"{percent(value)} on {run.label}" for run, value in rated]
    return f"{start} {bound}{listed(parts)}."


def _known(runs: Sequence[PretrainingRun], kind: str, pictures: str) -> list[tuple[PretrainingRun, float]]:
    rates = [(run, run.accuracy(kind, pictures).value) for run in runs]
    return [(run, value) for run, value in rates if value is not None]


def learned(runs: Sequence[PretrainingRun]) -> str:
    """Such as "An encoder learned from 50,000 pictures without labels"."""
    counts = {run.pictures for run in runs}
    pictures = f"{counts.pop():,.0f} pictures" if len(counts) == 1 and None not in counts else "pictures"
    return f"{'An encoder' if len(runs) == 1 else f'{len(runs)} encoders'} learned from {pictures} without labels"


def _headed(runs: Sequence[PretrainingRun]) -> str | None:
    """The kind of probe that the headline tells of: the first of which any run has a number."""
    found = (kind for kind in PROBES for run in runs if _rates(run, kind))
    return next(found, None)


def _rates(run: PretrainingRun, kind: str) -> list[Estimate]:
    rates = [run.accuracy(kind, what) for what in ("natural", "robust")]
    return [rate for rate in rates if rate.value is not None]


def probed(run: PretrainingRun) -> bool:
    """Whether any probe left a number."""
    return any(_rates(run, kind) for kind in PROBES)


def attacked(runs: Sequence[PretrainingRun]) -> bool:
    """Whether any probe was."""
    return any(_known(runs, kind, "robust") for kind in PROBES)


def attack(run: PretrainingRun) -> str:
    """How far the probes were attacked."""
    return str(run.probe.get("threat") or run.record.get("threat") or "")


def made(run: PretrainingRun) -> str:
    """Method, network, pictures and epochs of one run, in a sentence."""
    size = run.record.get("size")
    side = " × ".join(str(part) for part in size) + " pixels" if isinstance(size, list) and size else ""
    count, epochs = run.pictures, finite(run.record.get("epochs"))
    threat = run.record.get("threat")
    against = f"against attacks within {threat}" if threat else ""
    parts = [
        f"{run.record.get('architecture') or 'A network'} by {run.method or 'an unknown method'}",
        against if run.adversarial else "without an attacker",
        f"from {count:,.0f} pictures" + (f" of {side}" if side else "") if count is not None else "",
        f"in {epochs:,.0f} epoch{'s' if epochs != 1 else ''}" if epochs is not None else "",
    ]
    return ", ".join(part for part in parts if part) + "."


def level(runs: Sequence[PretrainingRun]) -> str:
    """The confidence level of the probes' intervals, such as 95%."""
    levels = {finite(rate.get("level")) for run in runs for rate in run.probe.values() if isinstance(rate, dict)}
    return listed(f"{100 * value:g}%" for value in sorted(v for v in levels if v is not None) or [0.95])


def untested(runs: Sequence[PretrainingRun]) -> list[str]:
    """What the numbers do not say."""
    return list(dict.fromkeys(_untested(runs)))


def _untested(runs: Sequence[PretrainingRun]) -> Iterator[str]:
    without = [run.label for run in runs if not probed(run)]
    if without:
        whose = "" if len(without) == len(runs) else f" on {listed(without)}"
        yield (
            f"No probes ran{whose}: the losses only say that training went on, not that the encoder is of use. Give "
            "labelled pictures, or fine-tune it."
        )
    if attacked(runs):
        yield (
            "The probes were attacked with a few steps of PGD, not with AutoAttack. Robust accuracy is measured after "
            "fine-tuning, by `lorica evaluate`."
        )
    if len({attack(run) for run in runs if probed(run)}) > 1:
        yield "The probes were not all attacked within the same radius: compare only those that were."
    if len({(run.classes, finite(run.probe.get("test"))) for run in runs if probed(run)}) > 1:
        yield "The probes were not all tested on the same pictures: compare only those that were."
    if any(map(probed, runs)):
        yield (
            "The intervals cover the choice of the test pictures, not the luck of training: small differences may "
            "turn around with another seed."
        )
    scl = [run.label for run in runs if not run.adversarial]
    if scl:
        yield f"{listed(scl)} never met an attacker: whatever it withstands was not learned on purpose."
    yield "Whether the encoder remembers its pictures, and tells who was among them, was not measured."


def notes(runs: Sequence[PretrainingRun]) -> list[str]:
    """What the runs themselves warn of; said once where it is said of all."""
    said: dict[str, list[str]] = {}
    for run in runs:
        found = run.record.get("notes")
        texts = [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
        for text in dict.fromkeys(texts):
            said.setdefault(text, []).append(run.label)
    return [text[:1].upper() + text[1:] if len(labels) == len(runs) else f"{listed(labels)}: {text}"
            for text, labels in said.items()]  # fmt: skip
