"""The tables of the pre-training report: what was measured, and how the runs were made; one value per run."""

from collections.abc import Callable, Sequence
from typing import Any

from lorica.report.html import shown
from lorica.report.pretraining import words
from lorica.report.pretraining.figures import chance
from lorica.report.pretraining.run import PROBES, PretrainingRun
from lorica.report.robustness.tables import Cell, Table, duration
from lorica.report.run import finite, section
from lorica.report.words import percent

_LAST = {
    "loss": "Loss",
    "natural": "NT-Xent, natural views",
    "adversarial": "NT-Xent, adversarial views",
    "sir": "SIR",
    "air": "AIR",
    "alignment": "Alignment, natural views",
    "alignment_adversarial": "Alignment, adversarial views",
}


def numbers(runs: Sequence[PretrainingRun]) -> Table:
    """The last probe with its intervals, and the last epoch; rows that no run has a value for are left out."""
    probes = [
        (
            name,
            [
                ("Natural accuracy", [_accuracy(run, kind, "natural") for run in runs]),
                ("Accuracy under PGD", [_accuracy(run, kind, "robust") for run in runs]),
            ],
        )
        for kind, name in PROBES.items()
    ]
    asked = [
        ("Learned from", [_count(run, "train") for run in runs]),
        ("Tested on", [_count(run, "test") for run in runs]),
        ("Guessing, classes equally frequent", [Cell(text=_percent(chance([run]))) for run in runs]),
        ("Probed after epoch", [Cell(text=_whole(finite(run.probe.get("epoch")))) for run in runs]),
    ]
    last = [(name, [_logged(run, key) for run in runs]) for key, name in _LAST.items()]
    groups: Table = [*probes, ("Labelled pictures of the probes", asked), ("Pre-training, last epoch", last)]
    known = [(title, [(name, row) for name, row in rows if any(cell.known for cell in row)]) for title, rows in groups]
    return [(title, rows) for title, rows in known if rows]


def _accuracy(run: PretrainingRun, probe: str, kind: str) -> Cell:
    n = finite(section(run.probe, f"{probe}_{kind}").get("n"))
    return Cell(
        run.accuracy(probe, kind),
        below=f"n = {n:,.0f}" if n is not None else "",
        warning="upper bound" if kind == "robust" else "",
    )


def _count(run: PretrainingRun, part: str) -> Cell:
    n = finite(run.probe.get(part))
    return Cell(text=f"{n:,.0f} pictures" if n is not None else "")


def _logged(run: PretrainingRun, key: str) -> Cell:
    value = run.epochs[-1].get(key) if run.epochs else None
    return Cell(text=f"{value:.4g}" if value is not None else "")


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else percent(value)


def provenance(runs: Sequence[PretrainingRun]) -> list[tuple[str, list[str]]]:
    """(name, one value per run): method, data, time, machine; without the names that no run knows."""
    wanted: list[tuple[str, Callable[[PretrainingRun], Any]]] = [
        ("Method", lambda run: run.method),
        ("Form of the invariance", lambda run: run.form if run.record.get("invariance") != "none" else None),
        ("Allowed to the attacker", lambda run: run.record.get("threat") if run.adversarial else "nothing"),
        ("Probes attacked within", lambda run: words.attack(run) if words.probed(run) else None),
        ("Architecture", lambda run: run.record.get("architecture")),
        ("Size of a picture", lambda run: _joined(run.record.get("size"), " × ")),
        ("Pictures", lambda run: _whole(run.pictures)),
        ("Epochs", lambda run: _whole(finite(run.record.get("epochs")))),
        ("Steps", lambda run: _whole(finite(run.record.get("steps")))),
        ("Time", lambda run: duration(finite(run.record.get("seconds")))),
        ("Processes", lambda run: run.record.get("processes")),
        ("Precision", lambda run: run.record.get("precision")),
        ("Batch norms of the encoder", lambda run: run.record.get("route")),
        ("Encoder's sha256", lambda run: run.record.get("encoder_sha256")),
        ("Classes of the probes", lambda run: _joined(run.probe.get("classes"), ", ")),
        ("Seed", lambda run: run.record.get("seed")),
        ("Hardware", lambda run: _hardware(section(run.record, "hardware"))),
        ("Versions", lambda run: ", ".join(f"{k} {v}" for k, v in section(run.record, "versions").items())),
    ]
    found = [(name, [shown(of(run)) or "—" for run in runs]) for name, of in wanted]
    return [(name, values) for name, values in found if any(value != "—" for value in values)]


def _joined(values: Any, between: str) -> str:
    return between.join(map(str, values)) if isinstance(values, list) else ""


def _hardware(machine: dict[str, Any]) -> str:
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}" if machine.get("cores") else None
    parts = [machine.get("device"), machine.get("processor"), cores, machine.get("system")]
    return ", ".join(str(part) for part in parts if part)
