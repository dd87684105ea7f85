"""The plots of pre-training, epoch by epoch: from runs to Plotly figures; None where there is nothing to draw."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lorica.report.look import MUTED, Look, dress, plain, titled
from lorica.report.pretraining.run import PROBES, PretrainingRun

_FEW = 20  # epochs that are drawn with marks
_ACCURACY, _LOSS = "%{y:.1%}", "%{y:.4g}"
_KINDS = {"natural": "Natural accuracy", "robust": "Accuracy under PGD"}
_VIEWS = {"natural": "natural views", "adversarial": "adversarial views"}
_DASHES = {"natural": "dash", "adversarial": "solid"}
_WEIGHTS = {
    "weight_natural": ("natural", "dash"),
    "weight_adversarial": ("adversarial", "solid"),
    "weight_sir": ("SIR", "dot"),
    "weight_air": ("AIR", "dashdot"),
}


class Line(NamedTuple):
    """A number of the log: its key, what it is called, and its dash where its panel holds several."""

    key: str
    name: str
    dash: str = "solid"


class Panel(NamedTuple):
    """One of the plots that stand above each other."""

    title: str
    lines: Sequence[Line]
    template: str


def probe(runs: Sequence[PretrainingRun], styles: Sequence[Look], kind: str) -> go.Figure | None:
    """Natural accuracy of one kind of probe, and below it accuracy under PGD, of several runs.

    Args:
        runs: to be compared.
        styles: their looks.
        kind: "linear" or "knn".
    """
    panels = [Panel(title, [Line(f"{kind}_{what}", title)], _ACCURACY) for what, title in _KINDS.items()]
    return _accuracies(runs, styles, panels)


def probes(run: PretrainingRun, look: Look) -> go.Figure | None:
    """The same of one run, both kinds of probes in each."""
    dashes = {"linear": "solid", "knn": "dash"}
    panels = [
        Panel(title, [Line(f"{kind}_{what}", name, dashes[kind]) for kind, name in PROBES.items()], _ACCURACY)
        for what, title in _KINDS.items()
    ]
    return _accuracies([run], [look], panels)


def chance(runs: Sequence[PretrainingRun]) -> float | None:
    """The accuracy of guessing among equally frequent classes, where all probes had the same number of them."""
    counts = {run.classes for run in runs if run.probe}
    return 1 / counts.pop() if len(counts) == 1 and counts != {0} else None


def losses(runs: Sequence[PretrainingRun], styles: Sequence[Look]) -> go.Figure | None:
    """NT-Xent of natural and of adversarial views: in one plot for one run, in two for several."""
    return _by_views(runs, styles, "NT-Xent", "")


def alignment(runs: Sequence[PretrainingRun], styles: Sequence[Look]) -> go.Figure | None:
    """Mean cosine between the two views of a picture, likewise."""
    return _by_views(runs, styles, "Cosine", "alignment")


def invariance(runs: Sequence[PretrainingRun], styles: Sequence[Look], term: str) -> go.Figure | None:
    """SIR or AIR. The scale depends on the form: only runs of one form belong in one plot.

    Args:
        runs: of one form.
        styles: their looks.
        term: "sir" or "air".
    """
    figure = _draw(runs, styles, [Panel(term.upper(), [Line(term, term.upper())], _LOSS)])
    return figure and figure.update_yaxes(exponentformat="power", nticks=6)


def schedules(runs: Sequence[PretrainingRun], styles: Sequence[Look]) -> go.Figure | None:
    """Learning rate, strength of the augmentation, and the weights of the terms that ever had one."""
    panels = [
        Panel("Learning rate", [Line("learning_rate", "learning rate")], _LOSS),
        Panel("Augmentation", [Line("strength", "strength")], "%{y:.3f}"),
        Panel("Weights", [Line(key, *about) for key, about in _WEIGHTS.items()], "%{y:.3f}"),
    ]
    figure = _draw(runs, styles, panels)
    return figure and figure.update_yaxes(rangemode="tozero", exponentformat="power")


def _accuracies(runs: Sequence[PretrainingRun], styles: Sequence[Look], panels: Sequence[Panel]) -> go.Figure | None:
    figure = _draw(runs, styles, panels)
    if figure is None:
        return None
    guessed = chance(runs)
    if guessed is not None:
        for axis in figure.select_yaxes():
            name = axis.plotly_name.removeprefix("yaxis")
            figure.add_shape(type="line", layer="below", line={"color": MUTED, "width": 1.4, "dash": "2px,3px"},
                             x0=0, x1=1, xref=f"x{name} domain", y0=guessed, y1=guessed, yref=f"y{name}")  # fmt: skip
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def _by_views(runs: Sequence[PretrainingRun], styles: Sequence[Look], title: str, prefix: str) -> go.Figure | None:
    keys = {"natural": prefix or "natural", "adversarial": f"{prefix}_adversarial" if prefix else "adversarial"}
    lines = [Line(key, _VIEWS[kind], _DASHES[kind]) for kind, key in keys.items()]
    if len(runs) == 1:
        return _draw(runs, styles, [Panel(title, lines, _LOSS)])
    return _draw(runs, styles, [Panel(f"{title}, {line.name}", [line], _LOSS) for line in lines])


def _draw(runs: Sequence[PretrainingRun], styles: Sequence[Look], panels: Sequence[Panel]) -> go.Figure | None:
    """The panels above each other, without those that no run logged; None where no number was logged twice.

    A line is told from others by its run, or, in a panel of several lines, by its dash.
    """
    longest = [max(len(_logged(run, line.key)) for run in runs for line in panel.lines) for panel in panels]
    known = [panel for panel, length in zip(panels, longest, strict=True) if length]
    if max(longest) < 2:
        return None
    figure = make_subplots(rows=len(known), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    shown = set[str]()
    for row, panel in enumerate(known, start=1):
        for run, look in zip(runs, styles, strict=True):
            for line in panel.lines:
                several = len(panel.lines) > 1
                entry = run.label if len(runs) > 1 else line.name if several else ""
                drawn = _line(run, line, look, line.dash if several else look.dash, panel.template)
                if drawn is not None:
                    drawn.update(name=plain(entry), legendgroup=entry, showlegend=bool(entry) and entry not in shown)
                    figure.add_trace(drawn, row=row, col=1)
                    shown.add(entry)
        figure.update_yaxes(title=titled(panel.title), row=row, col=1)
    dress(figure, x={}, y={}, legend=len(shown - {""}) > 1, top=16)
    return figure.update_xaxes(title=titled("Epoch"), row=len(known), col=1)


def _logged(run: PretrainingRun, key: str) -> list[dict[str, float]]:
    """The epochs that logged a number; none for the weight of a term that never had any."""
    rows = [row for row in run.epochs if key in row]
    return [] if key in _WEIGHTS and not any(row[key] for row in rows) else rows


def _line(run: PretrainingRun, line: Line, look: Look, dash: str, template: str) -> go.Scatter | None:
    rows = _logged(run, line.key)
    if not rows:
        return None
    pen: dict[str, Any] = {"color": look.light, "width": 2, "dash": dash}
    return go.Scatter(
        x=[row["epoch"] for row in rows],
        y=[row[line.key] for row in rows],
        mode="lines+markers" if len(rows) <= _FEW else "lines",
        line=pen,
        marker={"size": 5, "symbol": look.symbol},
        hovertemplate=f"{plain(run.label)}, {line.name}<br>epoch %{{x}}: {template}<extra></extra>",
    )
