"""The tables of the report: cells of numbers that the evaluations hold, one column per model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lorica.report.robustness.run import RobustnessRun, objects, radii
from lorica.report.run import Estimate, finite, section

UNKNOWN = Estimate()


@dataclass(frozen=True)
class Cell:
    """A number with its interval, or words; what stands small below it, and a warning."""

    estimate: Estimate = UNKNOWN
    text: str = ""
    below: str = ""
    warning: str = ""
    digits: int | str = "percent"

    @property
    def known(self) -> bool:
        return bool(self.text) or self.estimate.value is not None


Table = list[tuple[str, list[tuple[str, list[Cell]]]]]
"""Groups of rows by title; a row is its name and one cell per run."""


def comparison(runs: Sequence[RobustnessRun]) -> Table:
    """Every model beside the others; rows that no model has a value for are left out."""
    groups = [
        (
            "Model",
            [
                _row(runs, "Method", lambda run: Cell(text=run.method or "unknown")),
                _row(runs, "Weights", _weights),
                _row(runs, "Pictures", _pictures),
            ],
        ),
        ("Without an attacker", [_row(runs, "Natural accuracy", lambda run: Cell(run.natural))]),
        *((f"Attacked within {text}", _attacked(runs, text)) for text in largest(runs)),
        ("Robust accuracy at smaller radii", [(text, _left(runs, text)) for text in smaller(runs)]),
        (
            "Besides",
            [
                _row(runs, "Accuracy under corruptions, mean", _corrupted),
                _row(runs, "AUC of membership", _membership),
            ],
        ),
        (
            "Cost of the attacks",
            [
                _row(runs, "Forward passes", lambda run: Cell(text=amount(_cost(run, "forwards")))),
                _row(runs, "Backward passes", lambda run: Cell(text=amount(_cost(run, "backwards")))),
                _row(runs, "Time", lambda run: Cell(text=duration(_cost(run, "seconds")))),
            ],
        ),
    ]
    return _kept(groups)


def every_attack(runs: Sequence[RobustnessRun]) -> Table:
    """The attacks at the smaller radii."""
    return _kept([(f"Attacked within {text}", _attacked(runs, text)) for text in smaller(runs)])


def _kept(groups: Table) -> Table:
    known = [(title, [(name, row) for name, row in rows if any(cell.known for cell in row)]) for title, rows in groups]
    return [(title, rows) for title, rows in known if rows]


def largest(runs: Sequence[RobustnessRun]) -> list[str]:
    """The largest radius of each run, without repetition."""
    return [text for text in radii(runs) if any(str(run.worst.get("text")) == text for run in runs)]


def smaller(runs: Sequence[RobustnessRun]) -> list[str]:
    """The other radii."""
    return [text for text in radii(runs) if text not in largest(runs)]


def _row(runs: Sequence[RobustnessRun], name: str, cell: Callable[[RobustnessRun], Cell]) -> tuple[str, list[Cell]]:
    return name, [cell(run) for run in runs]


def _attacked(runs: Sequence[RobustnessRun], radius: str) -> list[tuple[str, list[Cell]]]:
    entries = [run.at(radius) for run in runs]
    rows: dict[str, list[Cell]] = {}

    def put(name: str, place: int, cell: Cell) -> None:
        rows.setdefault(name, [Cell()] * len(runs))[place] = cell

    for place, entry in enumerate(entries):
        pgd = section(entry, "pgd")
        if pgd:
            put(f"PGD-{pgd.get('steps')}", place, Cell(Estimate.of(pgd.get("accuracy"))))
    for place, entry in enumerate(entries):
        for attack in objects(section(entry, "autoattack").get("attacks")):
            name = attack_name(str(attack.get("name")))
            first = name == "APGD-CE"
            put(name if first else f"then {name}", place, Cell(Estimate.of(attack.get("accuracy"))))
    return [*rows.items(), ("Robust accuracy", _left(runs, radius))]


def _left(runs: Sequence[RobustnessRun], radius: str) -> list[Cell]:
    return [_worst(run, run.at(radius)) for run in runs]


def attack_name(name: str) -> str:
    """As papers write it."""
    return name.capitalize() if name == "square" else name.upper()


def _worst(run: RobustnessRun, entry: dict[str, Any]) -> Cell:
    rate = section(entry, "robust")
    correct, n = finite(rate.get("correct")), finite(rate.get("n"))
    warnings = ["upper bound"] * (entry.get("upper_bound") is True) + ["in doubt"] * (run.trusted is False)
    below = f"{correct:,.0f} of {n:,.0f}" if correct is not None and n is not None else ""
    return Cell(Estimate.of(rate), below=below, warning=", ".join(warnings))


def _weights(run: RobustnessRun) -> Cell:
    name = {"ema": "averaged (EMA)", "raw": "raw"}.get(run.weights or "", "unknown")
    return Cell(text=name, below="" if run.part("model").get("weights") in ("ema", "raw") or run.weights is None
                else "by the training record")  # fmt: skip


def _pictures(run: RobustnessRun) -> Cell:
    data, n = run.part("data"), finite(run.part("data").get("pictures"))
    part = "" if data.get("part") in (None, "all") else f" of {data['part']}"
    return Cell(text="" if n is None else f"{n:,.0f}{part}")


def _corrupted(run: RobustnessRun) -> Cell:
    found = run.part("corruptions")
    return Cell(
        Estimate.of(found.get("mean")), below=f"{len(section(found, 'types'))} types, {corruption_source(run)}"
    )


def corruption_source(run: RobustnessRun) -> str:
    """Where corrupted pictures came from."""
    source = run.part("corruptions").get("source")
    return {"official": "official files", "lorica": "generated here"}.get(str(source), "")


def _membership(run: RobustnessRun) -> Cell:
    found = run.part("membership")
    warning = "leak found" if found.get("leaks") is True else ""
    return Cell(run.membership, below=str(found.get("worst_attack") or ""), warning=warning, digits=3)


def _cost(run: RobustnessRun, key: str) -> float | None:
    return finite((run.part("cost", "attacks") or run.part("cost")).get(key))


def corruptions(run: RobustnessRun) -> tuple[list[str], list[tuple[str, list[Estimate]]]]:
    """(severities, [(type, accuracies: mean first, then by severity)]); the last row is over all types."""
    found = run.part("corruptions")
    types = section(found, "types")
    severities = list(dict.fromkeys(key for name in types for key in section(types, name, "severities")))
    rows = [
        (name.replace("_", " "), [Estimate.of(section(types, name).get("mean")),
                                  *(Estimate.of(section(types, name, "severities").get(key)) for key in severities)])
        for name in types
    ]  # fmt: skip
    every = [Estimate.of(found.get("mean")), *(Estimate.of(section(found, "severities").get(k)) for k in severities)]
    return severities, [*rows, ("all types", every)] if rows else []


def corruption_means(runs: Sequence[RobustnessRun]) -> list[tuple[str, list[Estimate]]]:
    """Mean accuracy by type, one per run."""
    tables = [dict(corruptions(run)[1]) for run in runs]
    names = [name for name in dict.fromkeys(name for table in tables for name in table) if name != "all types"]
    return [(name, [table.get(name, [UNKNOWN])[0] for table in tables]) for name in [*names, "all types"] if names]


def membership(
    runs: Sequence[RobustnessRun],
) -> list[tuple[int, RobustnessRun, list[tuple[str, str, dict[str, Any]]]]]:
    """(index, run, [(attack, what it looks at and in which form, its results)]) of the runs that were asked."""
    found = []
    for index, run in enumerate(runs):
        attacks = run.part("membership", "attacks")
        entries = [(name, _signal(section(attacks, name)), section(attacks, name)) for name in attacks]
        if entries:
            found.append((index, run, entries))
    return found


def _signal(attack: dict[str, Any]) -> str:
    form = attack.get("form")
    told = [attack.get("signal"), f"{form} form" if form in ("online", "offline") else None]
    return "; ".join(str(part) for part in told if part)


def amount(value: float | None) -> str:
    """12,345; 43.2 million."""
    if value is None:
        return ""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """4.2 s; 3 min 20 s; 2 h 05 min."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
