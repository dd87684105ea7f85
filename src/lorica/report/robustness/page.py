"""Assembles the report of robustness evaluations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorica.errors import LoricaError
from lorica.report.html import as_yaml, inline_json, told_apart, write_page
from lorica.report.look import DARK, Look, looks
from lorica.report.pictures import data_uri
from lorica.report.robustness import facts, figures, tables, training, words
from lorica.report.robustness.paths import absolute_paths, without_folders
from lorica.report.robustness.run import RobustnessRun, objects, radii, shared_radius
from lorica.report.run import Estimate, Rate, section
from lorica.report.words import rates

TITLE = "Robustness evaluation"
_VIEWS = ("natural", "adversarial", "difference")


@dataclass(frozen=True)
class Example:
    """An adversarial picture: what is known of it, and (what, data URI) of its three views."""

    about: dict[str, Any]
    said: str
    views: list[tuple[str, str]]


def build_robustness(runs: Sequence[RobustnessRun], *, title: str, command: str, output: Path) -> Path:
    """Write one self-contained page about one model, or about several to be compared.

    Absolute paths in the results and in the command are cut down to their last part.

    Args:
        runs: in the order in which they are shown.
        title: name of the page.
        command: what was typed to get it.
        output: the HTML file. It is replaced only when the page is complete.

    Returns:
        `output`.

    Raises:
        LoricaError: no runs, an example's picture that cannot be read, or a file that cannot be written.
    """
    if not runs:
        raise LoricaError("a report needs at least one result", "Give the folder of an evaluation.")
    known = [path for run in runs for config in _configs(run) for path in absolute_paths(config)]
    labels = told_apart([without_folders(run.label, known) for run in runs])
    clean = [
        replace(
            run,
            label=label,
            evaluation=without_folders(run.evaluation, known),
            record=without_folders(run.record, known),
        )
        for run, label in zip(runs, labels, strict=True)
    ]
    styles = looks(clean) if len(clean) > 1 else [replace(looks(clean)[0], dash="solid")]
    plots, examples = _plots(clean, styles), [_examples(run) for run in clean]
    return write_page(
        "robustness.html.j2",
        output,
        title=without_folders(title, known),
        command=without_folders(command, known),
        default_title=TITLE,
        runs=clean,
        indexed=list(enumerate(clean)),
        numbered=list(enumerate(labels)),
        looks=styles,
        plots=plots,
        data=inline_json({"figures": plots, "dark": DARK}),
        headline=words.headline(clean),
        bounds=words.bounds(clean),
        doubts=words.doubts(clean),
        level=words.level(clean),
        every=tables.every_attack(clean),
        comparison=tables.comparison(clean),
        flags=words.flags(clean),
        quiet=words.quiet_flags(clean),
        norms=[(norm, figures.norm_name(norm)) for norm in _norms(clean) if f"curve/{norm}" in plots],
        worst=words.worst_classes(clean),
        many_classes=max((len(figures.by_class(run)) for run in clean), default=0) > figures.MOST_CLASSES,
        radius=shared_radius(clean),
        confusions=_confusions(plots),
        mistakes=[(index, run, words.mistakes(run)) for index, run in enumerate(clean) if words.mistakes(run)],
        corrupted=[(i, run, *tables.corruptions(run)) for i, run in enumerate(clean) if run.part("corruptions")],
        corruption_means=tables.corruption_means(clean),
        membership=tables.membership(clean),
        rates=rates(key for _, _, entries in tables.membership(clean) for *_, found in entries
                    for key in section(found, "tpr")),
        rate_of=lambda found, key: Rate.of(section(found, "tpr").get(key)),
        estimate=Estimate.of,
        side_by_side=words.side_by_side,
        examples=[(i, run, found) for i, (run, found) in enumerate(zip(clean, examples, strict=True)) if found],
        learned=[(index, label) for index, label in enumerate(labels) if f"learning/{index}" in plots],
        layered=[(index, label) for index, label in enumerate(labels) if f"layers/{index}" in plots],
        heights=_heights(clean),
        measured=facts.measured(clean),
        trained=facts.trained(clean),
        notes=words.notes(clean),
        settings=[(f"{run.label}, {what}", as_yaml(config)) for run in clean
                  for what, config in zip(("evaluation", "training"), _configs(run), strict=True) if config],
        untested=words.untested(clean),
    )  # fmt: skip


def _configs(run: RobustnessRun) -> tuple[dict[str, Any], dict[str, Any]]:
    return run.part("provenance", "config"), section(run.record, "config")


def _norms(runs: Sequence[RobustnessRun]) -> list[str]:
    return list(dict.fromkeys(str(run.worst.get("norm")) for run in runs))


def _plots(runs: Sequence[RobustnessRun], styles: Sequence[Look]) -> dict[str, Any]:
    """Every figure of the page by the key under which the template asks for it; absent where there is no data."""
    drawn = {f"curve/{norm}": figures.curve(runs, styles, norm) for norm in _norms(runs)}
    if len(runs) > 1:
        drawn["classes/all"] = figures.classes_of_all(runs, styles)
        drawn["learning/all"] = training.learning_of_all(runs, styles)
    for index, (run, look) in enumerate(zip(runs, styles, strict=True)):
        drawn[f"classes/{index}"] = figures.classes(run, look)
        drawn[f"confusion/{index}/natural"] = figures.confusion(run.part("natural").get("confusion"), run.classes)
        for radius in radii([run]):
            counts = run.at(radius).get("confusion")
            drawn[f"confusion/{index}/{radius}"] = figures.confusion(counts, run.classes)
        drawn[f"learning/{index}"] = training.learning(run, look)
        drawn[f"losses/{index}"] = training.losses(run, look)
        drawn[f"layers/{index}"] = training.layers(run)
    drawn["schedules"] = training.schedules(runs, styles)
    drawn["similarity"] = training.similarity(runs, styles)
    drawn["membership"] = figures.robust_and_private(runs, styles)
    return {key: json.loads(figure.to_json()) for key, figure in drawn.items() if figure is not None}


def _confusions(plots: dict[str, Any]) -> list[tuple[str, str]]:
    """(last part of the keys of the confusion matrices, what to call it), in order."""
    kinds = dict.fromkeys(key.split("/", 2)[2] for key in plots if key.startswith("confusion/"))
    return [(kind, "no attacker" if kind == "natural" else kind) for kind in kinds]


def _heights(runs: Sequence[RobustnessRun]) -> dict[str, int]:
    """Pixels of plots that grow with what is in them, and the least width of confusion matrices."""
    most = max((len(figures.by_class(run)) for run in runs), default=0)
    outputs = max((len(run.classes) for run in runs), default=0)
    parameters = max((len(training.layers_of(run)) for run in runs), default=0)
    return {
        "classes": 110 + 24 * min(most, figures.MOST_CLASSES),
        "confusion": 210 + max(230, 18 * outputs),
        "matrix": 150 + outputs * (28 if outputs <= figures.SPELT_OUT else 14),
        "layers": min(1200, 120 + max(200, 13 * parameters)),
    }


def _examples(run: RobustnessRun) -> list[Example]:
    """Those of which all pictures are there."""
    found = []
    for entry in objects(run.evaluation.get("examples")):
        names = section(entry, "files")
        files = [(view, run.pictures.get(str(names.get(view)))) for view in _VIEWS]
        views = [(view, data_uri(file)) for view, file in files if file is not None]
        if len(views) == len(_VIEWS):
            found.append(Example(entry, words.example(run, entry), views))
    return found
