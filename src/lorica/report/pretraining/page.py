"""Assembles the report of pre-training runs."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from lorica.data.pictures import load_rgb
from lorica.errors import LoricaError
from lorica.report.html import as_yaml, inline_json, told_apart, write_page
from lorica.report.look import DARK, Look, looks
from lorica.report.pretraining import facts, figures, words
from lorica.report.pretraining.run import PROBES, PretrainingRun
from lorica.report.robustness.paths import absolute_paths, without_folders
from lorica.report.run import section

TITLE = "Robust pre-training"
COLUMNS = ("picture", "view i", "view j", "view i, attacked", "difference, magnified")
"""Of the sheet of views; without an attacker it may end after the third."""
_MOST_ROWS = 8
_SHEET_SIDE = 1024  # longest side of the sheet in the page: squares of 128 pixels
_COARSE = 600  # pixels of width below which a sheet is enlarged on the page: seen as squares, not blurred


@dataclass(frozen=True)
class Sheet:
    """Pictures and their views: names of the columns (none where the shape does not tell their number), a data URI,
    and whether it has few pixels."""

    columns: Sequence[str]
    picture: str
    coarse: bool


def build_pretraining(runs: Sequence[PretrainingRun], *, title: str, command: str, output: Path) -> Path:
    """Write one self-contained page about one pre-training run, or about several to be compared.

    Absolute paths in the records and in the command are cut down to their last part.

    Args:
        runs: in the order in which they are shown.
        title: name of the page.
        command: what was typed to get it.
        output: the HTML file. It is replaced only when the page is complete.

    Returns:
        `output`.

    Raises:
        LoricaError: no runs, a sheet of views that cannot be read, or a file that cannot be written.
    """
    if not runs:
        raise LoricaError("a report needs at least one result", "Give the folder of a pre-training run.")
    known = [path for run in runs for path in absolute_paths(section(run.record, "config"))]
    labels = told_apart([without_folders(run.label, known) for run in runs])
    clean = [replace(run, label=label, record=without_folders(run.record, known))
             for run, label in zip(runs, labels, strict=True)]  # fmt: skip
    styles = looks(clean) if len(clean) > 1 else [replace(looks(clean)[0], dash="solid")]
    plots = _plots(clean, styles)
    return write_page(
        "pretraining.html.j2",
        output,
        title=without_folders(title, known),
        command=without_folders(command, known),
        default_title=TITLE,
        runs=clean,
        indexed=list(enumerate(clean)),
        looks=styles,
        plots=plots,
        heights={key: 110 + 190 * _rows(plot) for key, plot in plots.items()},
        data=inline_json({"figures": plots, "dark": DARK}),
        headline=words.headline(clean),
        made=words.made,
        attack=words.attack,
        probed=words.probed,
        attacked=words.attacked(clean),
        probes=[(kind, name) for kind, name in PROBES.items() if _probed(clean, kind)],
        drawn=[(kind, name) for kind, name in PROBES.items() if f"probe/{kind}" in plots],
        numbers=facts.numbers(clean),
        level=words.level(clean),
        chance=figures.chance(clean),
        invariances=_invariances(clean, plots),
        form_of=words.form_of,
        views=[(index, run, _sheet(run, run.views)) for index, run in enumerate(clean) if run.views is not None],
        provenance=facts.provenance(clean),
        notes=words.notes(clean),
        settings=[(run.label, as_yaml(section(run.record, "config"))) for run in clean
                  if section(run.record, "config")],
        untested=words.untested(clean),
    )  # fmt: skip


def _plots(runs: Sequence[PretrainingRun], styles: Sequence[Look]) -> dict[str, Any]:
    """Every figure of the page by the key under which the template asks for it; absent where there is no data."""
    drawn = {
        "losses": figures.losses(runs, styles),
        "alignment": figures.alignment(runs, styles),
        "schedules": figures.schedules(runs, styles),
    }
    if len(runs) == 1:
        drawn["probes"] = figures.probes(runs[0], styles[0])
    else:
        drawn |= {f"probe/{kind}": figures.probe(runs, styles, kind) for kind in PROBES}
    for place, form in enumerate(_forms(runs)):
        same = [(run, look) for run, look in zip(runs, styles, strict=True) if run.form == form]
        for term in ("sir", "air"):
            drawn[f"{term}/{place}"] = figures.invariance([run for run, _ in same], [look for _, look in same], term)
    return {key: json.loads(figure.to_json()) for key, figure in drawn.items() if figure is not None}


def _rows(plot: dict[str, Any]) -> int:
    return sum(name.startswith("yaxis") for name in plot["layout"])


def _probed(runs: Sequence[PretrainingRun], kind: str) -> bool:
    return any(run.accuracy(kind, what).value is not None for run in runs for what in ("natural", "robust"))


def _forms(runs: Sequence[PretrainingRun]) -> list[str]:
    return list(dict.fromkeys(run.form for run in runs))


def _invariances(runs: Sequence[PretrainingRun], plots: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key of the plot, term, form) of SIR and AIR."""
    every = [(f"{term}/{place}", term.upper(), form) for term in ("sir", "air")
             for place, form in enumerate(_forms(runs))]  # fmt: skip
    return [entry for entry in every if entry[0] in plots]


def _sheet(run: PretrainingRun, file: Path) -> Sheet:
    try:
        picture = load_rgb(file)
    except LoricaError as error:
        raise LoricaError(f"{file.name} of {run.label}: {error.problem}", "Repair it or take it away.") from error
    factor = run.record.get("magnified")
    columns = [
        f"difference, {factor}-fold" if name == COLUMNS[-1] and isinstance(factor, int) else name
        for name in _columns(picture, run.adversarial)
    ]
    picture.thumbnail((_SHEET_SIDE, _SHEET_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Sheet(columns, uri, coarse=picture.width < _COARSE)


def _columns(picture: Image.Image, adversarial: bool) -> Sequence[str]:
    """How many equal squares stand side by side, the shape tells: with any other number there were no whole rows."""

    def misfit(columns: Sequence[str]) -> float:
        rows = len(columns) * picture.height / picture.width
        return abs(rows - round(rows)) if 1 <= round(rows) <= _MOST_ROWS else 1.0

    best = min((COLUMNS, COLUMNS[:3]) if adversarial else (COLUMNS[:3], COLUMNS), key=misfit)
    return best if misfit(best) < 0.2 else ()  # not 0 where there are gaps between the squares
