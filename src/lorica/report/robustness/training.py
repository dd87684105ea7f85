"""The plots of training: what was learned epoch by epoch, and what the schedules made of it."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lorica.report.figures import shortened
from lorica.report.look import INK, MUTED, SURFACE, Look, dress, plain, scale, titled
from lorica.report.robustness.run import RobustnessRun
from lorica.report.run import finite

LAYER = "layer/"
_FEW = 20  # epochs that are drawn with marks
_KINDS = {"natural": "Natural accuracy", "robust": "Robust accuracy"}
_IN_TRAINING = {"natural": "natural_correct", "robust": "adversarial_correct"}
_WEIGHTS = {
    "weight_natural": ("natural, λ₁", "solid", 1),
    "weight_adversarial": ("adversarial, 1 − λ₁", "dash", 1),
    "weight_kl": ("KL, λ₂", "solid", 2),
}


_TERMS = {
    "natural": ("natural cross-entropy", "solid", 1),
    "adversarial": ("adversarial cross-entropy", "dash", 1),
    "kl": ("KL(natural ‖ adversarial)", "dot", 2),
}


def learning(run: RobustnessRun, look: Look) -> go.Figure | None:
    """Natural and robust accuracy of a model: in training, on the validation set, there with averaged weights too."""
    if not _any(run, "val_natural", "val_robust", *_IN_TRAINING.values()):
        return None
    figure = _rows(2)
    for row, (kind, title) in enumerate(_KINDS.items(), start=1):
        lines = (
            ("training", _IN_TRAINING[kind], {"color": MUTED, "width": 1.6, "dash": "2px,3px"}),
            ("validation", f"val_{kind}", {"color": look.light, "width": 1.6, "dash": "solid"}),
            ("validation, averaged weights", f"val_average_{kind}", {"color": INK, "width": 2.2, "dash": "dash"}),
        )
        for name, key, line in lines:
            _line(figure, run, key, row, name=name, line=line, template="%{y:.1%}", shown=row == 1)
        _kept(figure, run, kind, row, look)
        figure.update_yaxes(title=titled(title), row=row, col=1)
    _turns(figure, run, rows=2)
    return _epochs(figure, rows=2, percent=True)


def learning_of_all(runs: Sequence[RobustnessRun], styles: Sequence[Look]) -> go.Figure | None:
    """The same on the validation set for several models, each with the kind of weights that was kept of it."""
    figure = _rows(2)
    for run, look in zip(runs, styles, strict=True):
        for row, (kind, title) in enumerate(_KINDS.items(), start=1):
            line = {"color": look.light, "width": 2, "dash": look.dash}
            _line(figure, run, _chosen(run, kind), row, name=run.label, line=line, template="%{y:.1%}", shown=row == 1)
            _kept(figure, run, kind, row, look, shown=False)
            figure.update_yaxes(title=titled(title), row=row, col=1)
    return _epochs(figure, rows=2, percent=True) if figure.data else None


def losses(run: RobustnessRun, look: Look) -> go.Figure | None:
    """The terms that training minimises, before their weights: cross-entropies, and the KL below them."""
    if not _any(run, *_TERMS):
        return None
    figure = _rows(2 if _any(run, "kl") else 1)
    for key, (name, dash, row) in _TERMS.items():
        line = {"color": look.light, "width": 2, "dash": dash}
        _line(figure, run, key, row, name=name, line=line, template="%{y:.4f}")
    for row, title in ((1, "Cross-entropy"), (2, "KL")) if _any(run, "kl") else ((1, "Cross-entropy"),):
        figure.update_yaxes(title=titled(title), row=row, col=1)
    return _epochs(figure, rows=2 if _any(run, "kl") else 1)


def schedules(runs: Sequence[RobustnessRun], styles: Sequence[Look]) -> go.Figure | None:
    """Weights of the loss terms and the learning rate, with a mark where training went back to the best weights."""
    figure = _rows(3)
    several = sum(_any(run, "learning_rate", *_WEIGHTS) for run in runs) > 1
    for run, look in zip(runs, styles, strict=True):
        for key, (name, dash, row) in _WEIGHTS.items():
            line = {"color": look.light, "width": 2, "dash": dash}
            label = f"{run.label}: {name}" if several else name
            _line(
                figure,
                run,
                key,
                row,
                name=label,
                line=line,
                template="%{y:.3f}",
                shown=not several and key == "weight_adversarial",
            )
        line = {"color": look.light, "width": 2, "dash": look.dash, "shape": "hv"}
        _line(figure, run, "learning_rate", 3, name=run.label, line=line, template="%{y:.2e}", shown=several)
        back = [row for row in run.epochs if row.get("reloaded") and "learning_rate" in row]
        if back:
            figure.add_scatter(
                x=[row["epoch"] for row in back],
                y=[row["learning_rate"] for row in back],
                mode="markers",
                name=plain(f"{run.label}: back to the best weights" if several else "back to the best weights"),
                marker=_hollow("triangle-left", look),
                hovertemplate="after epoch %{x}: back to the best weights<extra></extra>",
                row=3,
                col=1,
            )  # fmt: skip
    if not figure.data:
        return None
    for row, title in enumerate(("λ₁ natural, - - adversarial", "λ₂ KL", "Learning rate"), start=1):
        figure.update_yaxes(title=titled(title), rangemode="tozero", row=row, col=1)
    _epochs(figure, rows=3)
    return figure.update_yaxes(type="log", exponentformat="none", row=3, col=1)


def similarity(runs: Sequence[RobustnessRun], styles: Sequence[Look]) -> go.Figure | None:
    """Cosine of the two losses' gradients on the feature extractor, all parameters as one vector."""
    figure = go.Figure()
    for run, look in zip(runs, styles, strict=True):
        rows = [row for row in run.epochs if "similarity" in row]
        if rows:
            figure.add_scatter(
                x=[row["epoch"] for row in rows],
                y=[row["similarity"] for row in rows],
                mode=_mode(rows),
                name=plain(run.label),
                line={"color": look.light, "width": 2, "dash": look.dash},
                marker={"symbol": look.symbol, "size": 6},
                hovertemplate=f"{plain(run.label)}, epoch %{{x}}: %{{y:.3f}}<extra></extra>",
            )
    if not figure.data:
        return None
    figure.add_hline(y=0, line={"color": MUTED, "width": 1.4, "dash": "2px,3px"})
    return dress(
        figure,
        x={"title": titled("Epoch")},
        y={"title": titled("Cosine similarity"), "rangemode": "tozero"},
        legend=len(figure.data) > 1,
        top=16,
    )


def layers_of(run: RobustnessRun) -> list[str]:
    """Parameters of which a similarity was logged, in the order of the network."""
    return list(dict.fromkeys(key for row in run.epochs for key in row if key.startswith(LAYER)))


def layers(run: RobustnessRun) -> go.Figure | None:
    """The same cosine by parameter and epoch; the first parameter of the network on top."""
    names, rows = layers_of(run), run.epochs
    if not names:
        return None
    every = max(1, len(names) // 80 + 1)
    labels = [plain(shortened(name.removeprefix(LAYER).removeprefix("backbone."), 34)) for name in names]
    figure = go.Figure(
        go.Heatmap(
            x=[row["epoch"] for row in rows],
            y=list(range(len(names))),
            z=[[_rounded(row.get(name)) for row in rows] for name in names],
            text=[[label] * len(rows) for label in labels],
            hoverongaps=False,
            hovertemplate="%{text}<br>epoch %{x}: %{z:.3f}<extra></extra>",
            **scale([-1, 0, 1], ["−1 opposed", "0", "1 agreed"]),
        )
    )
    dress(
        figure,
        x={"title": titled("Epoch"), "showgrid": False},
        y={"autorange": "reversed", "showgrid": False, "tickvals": list(range(0, len(names), every)),
           "ticktext": labels[::every]},
        legend=False,
        top=16,
    )  # fmt: skip
    return figure.update_yaxes(tickfont={"size": 10})


# ----- parts --------------------------------------------------------------------------------------------------------
def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _any(run: RobustnessRun, *keys: str) -> bool:
    return any(key in row for row in run.epochs for key in keys)


def _rows(count: int) -> go.Figure:
    return make_subplots(rows=count, cols=1, shared_xaxes=True, vertical_spacing=0.06)


def _mode(rows: Sequence[Any]) -> str:
    return "lines+markers" if len(rows) <= _FEW else "lines"


def _chosen(run: RobustnessRun, kind: str) -> str:
    """The validation accuracy of the weights that were kept."""
    averaged = f"val_average_{kind}"
    return averaged if run.record.get("weights") != "raw" and _any(run, averaged) else f"val_{kind}"


def _line(
    figure: go.Figure,
    run: RobustnessRun,
    key: str,
    row: int,
    *,
    name: str,
    line: dict[str, Any],
    template: str,
    shown: bool = True,
) -> None:
    rows = [entry for entry in run.epochs if key in entry]
    if not rows:
        return
    figure.add_scatter(
        x=[entry["epoch"] for entry in rows],
        y=[entry[key] for entry in rows],
        mode=_mode(rows),
        name=plain(name),
        legendgroup=name,
        showlegend=shown,
        line=line,
        marker={"size": 5},
        hovertemplate=f"{plain(name)}<br>epoch %{{x}}: {template}<extra></extra>",
        row=row,
        col=1,
    )


def _kept(figure: go.Figure, run: RobustnessRun, kind: str, row: int, look: Look, *, shown: bool = True) -> None:
    """A star where the weights come from that were exported."""
    best, key = finite(run.record.get("best_epoch")), _chosen(run, kind)
    for entry in run.epochs:
        if entry["epoch"] == best and key in entry:
            figure.add_scatter(
                x=[best],
                y=[entry[key]],
                mode="markers",
                name="weights that were kept",
                legendgroup="kept",
                showlegend=shown and row == 1,
                marker={"symbol": "star", "size": 14, "color": look.light, "line": {"color": SURFACE, "width": 1}},
                hovertemplate=f"{plain(run.label)}: weights kept<br>epoch %{{x}}: %{{y:.1%}}<extra></extra>",
                row=row,
                col=1,
            )


def _turns(figure: go.Figure, run: RobustnessRun, rows: int) -> None:
    """Upright lines where training went back to the best weights."""
    line = {"color": MUTED, "width": 1, "dash": "2px,3px"}
    back = [entry["epoch"] for entry in run.epochs if entry.get("reloaded")]
    axes = [str(row) if row > 1 else "" for row in range(1, rows + 1)]
    figure.update_layout(
        shapes=[
            {"type": "line", "layer": "below", "line": line, "x0": epoch, "x1": epoch, "xref": f"x{axis}", "y0": 0,
             "y1": 1, "yref": f"y{axis} domain"}
            for axis in axes for epoch in back
        ]
    )  # fmt: skip


def _hollow(symbol: str, look: Look) -> dict[str, Any]:
    return {"color": SURFACE, "symbol": symbol, "size": 10, "line": {"color": look.light, "width": 2}}


def _epochs(figure: go.Figure, rows: int, *, percent: bool = False) -> go.Figure:
    dress(figure, x={}, y={"tickformat": ".0%"} if percent else {}, top=16)
    return figure.update_xaxes(title=titled("Epoch"), row=rows, col=1)
