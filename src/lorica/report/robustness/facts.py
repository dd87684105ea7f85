"""How the numbers were measured, and the models trained: names and values, one value per run."""

from collections.abc import Callable, Sequence
from typing import Any

from lorica.report.html import shown
from lorica.report.robustness.run import RobustnessRun, objects
from lorica.report.robustness.tables import amount, attack_name, corruption_source, duration
from lorica.report.run import finite, section
from lorica.report.words import listed, percent

Facts = list[tuple[str, list[str]]]
_Wanted = list[tuple[str, tuple[str, ...] | Callable[[RobustnessRun], Any]]]


def measured(runs: Sequence[RobustnessRun]) -> Facts:
    """Threat model, attacks, data, model, machine; without the names that no run knows."""
    wanted: _Wanted = [
        ("Allowed to the attacker", lambda run: listed(str(entry.get("text")) for entry in run.threats)),
        ("AutoAttack", lambda run: section(run.worst, "autoattack").get("tier")),
        ("Its attacks, in order", _attacks),
        ("Its settings", lambda run: _pairs(section(run.worst, "autoattack", "settings"))),
        ("Plain PGD beside it", _pgd),
        ("Broken by plain PGD alone", lambda run: run.worst.get("broken_by_pgd_only")),
        ("Adversarial pictures checked again", _checks),
        ("Intervals", _intervals),
        ("Pictures from", ("data", "source")),
        ("Part", ("data", "part")),
        ("Of the training's split", ("data", "split")),
        ("Pictures", ("data", "pictures")),
        ("Pictures per class", _per_class),
        ("Pictures' sha256", ("data", "sha256")),
        ("Architecture", ("model", "architecture")),
        ("Its arguments", lambda run: _pairs(run.part("model", "arguments"))),
        ("Size of a picture", lambda run: _numbers(run.part("model").get("size"), " × ")),
        ("Parameters", lambda run: amount(finite(run.part("model").get("parameters")))),
        ("Normalisation, mean", lambda run: _numbers(run.part("model").get("mean"))),
        ("Normalisation, deviation", lambda run: _numbers(run.part("model").get("std"))),
        ("Model's sha256", ("model", "sha256")),
        ("Corruptions", corruption_source),
        ("Corrupted pictures", ("corruptions", "n")),
        ("Members asked for", _members),
        ("Batch size", ("provenance", "config", "batch_size")),
        ("Precision", ("provenance", "config", "precision")),
        ("Seed", ("provenance", "seed")),
        ("Hardware", lambda run: _hardware(run.part("provenance", "hardware"))),
        ("Versions", lambda run: _pairs(run.part("provenance", "versions"))),
    ]
    return _known(wanted, runs, lambda run: run.evaluation)


def trained(runs: Sequence[RobustnessRun]) -> Facts:
    """Method, attack, data and choice of the weights in training; empty where no run has a record of it."""
    wanted: _Wanted = [
        ("Method", lambda run: run.method),
        ("Options", lambda run: _pairs(section(run.record, "config", "options"))),
        ("Began with", ("config", "model", "name")),
        ("Checkpoint", ("config", "model", "checkpoint")),
        ("Attack in training", _training_attack),
        ("Pictures", lambda run: _pairs(section(run.record, "counts"))),
        ("Epochs", ("epochs",)),
        ("Batch size", ("config", "batch_size")),
        ("Learning rate at the start", lambda run: run.record.get("learning_rate")),
        ("Weight decay", ("config", "weight_decay")),
        ("Averaging of weights, decay", ("config", "ema")),
        ("Weights kept", ("weights",)),
        ("Weights chosen by", ("chosen_by",)),
        ("Of epoch", ("best_epoch",)),
        ("Natural accuracy then, validation", lambda run: _percent(run.record.get("val_natural"))),
        ("Robust accuracy then, validation", lambda run: _percent(run.record.get("val_robust"))),
        ("Precision of training", ("precision",)),
        ("Seed", ("seed",)),
        ("Time", lambda run: duration(finite(run.record.get("seconds")))),
        ("Hardware", lambda run: _hardware(section(run.record, "hardware"))),
        ("Versions", lambda run: _pairs(section(run.record, "versions"))),
    ]
    return _known(wanted, runs, lambda run: run.record)


def _known(wanted: _Wanted, runs: Sequence[RobustnessRun], of: Callable[[RobustnessRun], Any]) -> Facts:
    found = []
    for name, source in wanted:
        if isinstance(source, tuple):
            raw = [section(of(run), *source[:-1]).get(source[-1]) for run in runs]
        else:
            raw = [source(run) for run in runs]
        values = [shown(_yes(value)) for value in raw]
        found.append((name, [value or "—" for value in values]))
    return [(name, values) for name, values in found if any(value != "—" for value in values)]


def _yes(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if isinstance(value, float) and finite(value) is None else value


def _attacks(run: RobustnessRun) -> str:
    attacks = objects(section(run.worst, "autoattack").get("attacks"))
    return listed(attack_name(str(attack.get("name"))) for attack in attacks)


def _pgd(run: RobustnessRun) -> str:
    pgd = section(run.worst, "pgd")
    if not pgd:
        return ""
    size, eps = finite(pgd.get("step_size")), finite(run.worst.get("eps"))
    step = (
        "" if size is None else f" of {255 * size:.3g}/255" if run.worst.get("norm") == "linf" else f" of {size:.3g}"
    )
    tries = f", {pgd.get('restarts')} random start{'s' if pgd.get('restarts') != 1 else ''}"
    return f"{pgd.get('steps')} steps{step if eps is not None else ''}{tries}"


def _checks(run: RobustnessRun) -> str:
    counts = {key: finite(value) for key, value in section(run.worst, "recheck").items()}
    named = [f"{amount(value)} {key.replace('_', ' ')}" for key, value in counts.items() if value is not None]
    return ", ".join(named)


def _intervals(run: RobustnessRun) -> str:
    level = finite(run.part("natural").get("level"))
    return "" if level is None else f"{100 * level:g}%, Clopper-Pearson"


def _per_class(run: RobustnessRun) -> str:
    counts = [count for count in map(finite, run.part("data", "classes").values()) if count is not None]
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    each = f"{least:.0f}" if least == most else f"{least:.0f} to {most:.0f}"
    return f"{each}, {len(counts)} classes"


def _members(run: RobustnessRun) -> str:
    found = run.part("membership")
    if not found:
        return ""
    part = f" of {found['part']}" if found.get("part") else ""
    return f"{shown(found.get('members'))}{part}, beside {shown(found.get('nonmembers'))} others"


def _training_attack(run: RobustnessRun) -> str:
    attack = section(run.record, "config", "attack")
    steps = f", {attack.get('steps')} steps" if attack.get("kind") == "pgd" else ""
    return ", ".join(str(part) for part in (attack.get("kind"), run.record.get("threat")) if part) + steps


def _hardware(machine: dict[str, Any]) -> str:
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}" if machine.get("cores") else None
    parts = [machine.get("device"), machine.get("processor"), cores, machine.get("system")]
    return ", ".join(str(part) for part in parts if part)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_yes(value)}" for key, value in values.items())


def _numbers(values: Any, between: str = ", ") -> str:
    if not isinstance(values, list):
        return ""
    known = [finite(value) for value in values]
    return between.join("—" if value is None else f"{value:.4g}" for value in known)


def _percent(value: Any) -> str:
    return percent(finite(value)) if finite(value) is not None else ""
