"""Assembles the report of membership audits."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorica.errors import LoricaError
from lorica.report import figures, words
from lorica.report.html import as_yaml, inline_json, shown, told_apart, write_page
from lorica.report.look import DARK, looks
from lorica.report.pictures import exposed, samples
from lorica.report.run import Estimate, Rate, ReportRun, finite


@dataclass(frozen=True)
class Row:
    """One attack on one run; on the base model only the AUC is known."""

    run: ReportRun
    colour: int
    attack: str | None
    auc: Estimate
    about: dict[str, Any]

    @property
    def distance(self) -> float | None:
        return finite(self.about.get("auc_distance"))

    @property
    def asr(self) -> Estimate:
        return Estimate.of(self.about.get("asr"))

    @property
    def oracle(self) -> Estimate:
        return Estimate.of(self.about.get("oracle_asr"))

    @property
    def constant_asr(self) -> float | None:
        """What calling every picture a member, or none, achieves: the rate an ASR has to beat."""
        sizes = [finite(self.run.part("counts").get(f"test_{group}")) for group in ("members", "nonmembers")]
        known = [size for size in sizes if size]
        return max(known) / sum(known) if len(known) == 2 else None

    def rate(self, fpr: str) -> Rate | None:
        rates = self.about.get("tpr")
        return Rate.of(rates.get(fpr)) if isinstance(rates, dict) else None


def build(runs: Sequence[ReportRun], *, title: str, command: str, output: Path) -> Path:
    """Write one self-contained page about one run, or about several to be compared.

    Args:
        runs: in the order in which they are shown. A run without an audit stands for the base model; when there is
            none, the base model's row is taken from the negative control.
        title: name of the page.
        command: what was typed to get the results.
        output: the HTML file. It is replaced only when the page is complete.

    Returns:
        `output`.

    Raises:
        LoricaError: no runs, a sample picture that cannot be read, or a file that cannot be written.
    """
    if not runs:
        raise LoricaError("a report needs at least one result", "Give the folder of an audit.")
    return _write(_complete(runs), title, command, output)


def _complete(runs: Sequence[ReportRun]) -> list[ReportRun]:
    """Tell equal labels apart, and gather what the other runs know of the base model."""
    labels = told_apart([run.label for run in runs])
    named = [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]
    if any(run.part("controls", "base") for run in runs) and not any(run.objective == "base" for run in runs):
        named.insert(0, ReportRun("Base model"))
    # Before its first step a LoRA is the base model.
    untrained = [run.validated[0]["val_nonmember"] for run in runs if run.validated and not run.validated[0]["step"]]
    if not untrained or not np.allclose(untrained, untrained[0], rtol=1e-4):
        return named
    return [
        replace(run, quality={"validation_loss": untrained[0]} | (run.quality or {}))
        if run.objective == "base"
        else run
        for run in named
    ]


def _write(runs: list[ReportRun], title: str, command: str, output: Path) -> Path:
    audited = [run for run in runs if run.attacks]
    strongest = [_strongest(run, index, runs) for index, run in enumerate(runs)]
    plots, every = _plots(runs, strongest), _every_attack(runs)
    return write_page(
        "report.html.j2",
        output,
        title=title,
        command=command,
        headline=words.headline(audited),
        level=words.level(audited),
        doubts=words.doubts(audited),
        runs=runs,
        audited=[(index, run) for index, run in enumerate(runs) if run.attacks],
        strongest=strongest,
        every=every,
        rates=words.rates(key for run in audited for name in run.attacks for key in run.part("attacks", name, "tpr")),
        matrix=[(name, [run.auc(name) for run in audited]) for name, _, _ in every] if len(audited) > 1 else [],
        attacks=list(dict.fromkeys(attack for run in audited for attack in run.attacks)),
        measures={
            key: name
            for key, name in figures.QUALITY.items()
            if any(quality(run, key).value is not None for run in runs)
        },
        tradeoffs={key: name for key, name in figures.QUALITY.items() if f"quality/{key}" in plots},
        quality=quality,
        controls=words.controls(audited),
        base_control=_base_control(audited),
        samples=samples(runs),
        exposed=exposed(runs),
        facts=_facts(audited),
        settings=[(run.label, as_yaml(run.part("provenance", "config"))) for run in audited],
        caveats=words.caveats(runs),
        looks=looks(runs),
        plots=plots,
        data=inline_json({"figures": plots, "dark": DARK}),
    )


def quality(run: ReportRun, measure: str) -> Estimate:
    if measure == "validation_loss":
        return Estimate(run.validation_loss)
    return Estimate.of((run.quality or {}).get(measure))


def _strongest(run: ReportRun, index: int, runs: Sequence[ReportRun]) -> Row:
    if run.worst is not None:
        return Row(run, index, run.worst, run.auc(run.worst), run.part("attacks", run.worst))
    for other in runs:  # the base model: the attack that is strongest on the first LoRA, so not chosen by its result
        for attack in other.attacks:
            if control := other.part("controls", "base", attack):
                return Row(run, index, attack, Estimate.of(control.get("auc")), {})
    return Row(run, index, None, Estimate(), {})


def _every_attack(runs: Sequence[ReportRun]) -> list[tuple[str, dict[str, Any], list[Row]]]:
    """(attack, what it is, its rows), the attack that finds most on any run first."""
    names = {attack for run in runs for attack in run.attacks}
    found = []
    for name in names:
        rows = [
            Row(run, index, name, run.auc(name), run.part("attacks", name))
            for index, run in enumerate(runs)
            if name in run.attacks
        ]
        found.append((name, rows[0].about, rows))
    return sorted(found, key=lambda entry: (-max(row.run.strength(entry[0]) or 0 for row in entry[2]), entry[0]))


def _plots(runs: Sequence[ReportRun], strongest: Sequence[Row]) -> dict[str, Any]:
    """Every figure of the page by the key under which the template asks for it; absent where there is no data."""
    styles = looks(runs)
    drawn = {"roc/log": figures.roc(runs, "log"), "roc/linear": figures.roc(runs, "linear")}
    for index, run in enumerate(runs):
        for attack in run.attacks:
            drawn[f"histogram/{index}/{attack}"] = figures.histogram(run, attack, styles[index])
    drawn["training"] = figures.training(runs)
    for measure, name in figures.QUALITY.items():
        points = [(row.run, quality(row.run, measure), row.auc) for row in strongest]
        drawn[f"quality/{measure}"] = figures.tradeoff(points, name, styles)
    return {key: json.loads(figure.to_json()) for key, figure in drawn.items() if figure is not None}


def _base_control(audited: Sequence[ReportRun]) -> list[tuple[str, Estimate, bool | None]]:
    """(attack, AUC on the base model, whether its interval covers chance); the base model is the same for all runs."""
    found: dict[str, tuple[str, Estimate, bool | None]] = {}
    for run in audited:
        for attack, raw in run.part("controls", "base").items():
            if isinstance(raw, dict) and attack not in found:
                found[attack] = (attack, Estimate.of(raw.get("auc")), raw.get("covers_chance"))
    return list(found.values())


def _facts(audited: Sequence[ReportRun]) -> list[tuple[str, list[str]]]:
    """Where the numbers come from: (name, one value per run), without the names that no run knows."""
    wanted = [
        ("Objective", ("target", "objective")),
        ("Lambda", ("target", "lam")),
        ("LoRA rank", ("target", "rank")),
        ("LoRA alpha", ("target", "alpha")),
        ("Steps", ("target", "steps")),
        ("Steps per picture", ("target", "steps_per_picture")),
        ("Augmentation", ("target", "augmentation")),
        ("Shadow LoRAs", ("target", "shadows")),
        ("LoRA file", ("target", "lora")),
        ("LoRA sha256", ("target", "lora_sha256")),
        ("Captions", ("captions", "used")),
        ("Base model", ("target", "base")),
        ("Base fingerprint", ("target", "base_fingerprint")),
        ("Auxiliary members", ("counts", "aux_members")),
        ("Test members", ("counts", "test_members")),
        ("Auxiliary non-members", ("counts", "aux_nonmembers")),
        ("Test non-members", ("counts", "test_nonmembers")),
        ("Seed", ("provenance", "seed")),
        *[(key.capitalize(), ("provenance", "hardware", key)) for key in ("device", "processor", "cores", "system")],
    ]
    known = {path[-1] for _, path in wanted}
    more = dict.fromkeys(key for run in audited for key in run.part("target") if key not in known)
    wanted += [(str(key).replace("_", " ").capitalize(), ("target", key)) for key in more]
    packages = sorted({name for run in audited for name in run.part("provenance", "versions")})
    wanted += [(name, ("provenance", "versions", name)) for name in packages]
    facts = [(name, [shown(run.part(*path[:-1]).get(path[-1])) for run in audited]) for name, path in wanted]
    return [(name, values) for name, values in facts if any(value != "—" for value in values)]
