"""The plots of accuracy: pure functions from runs to Plotly figures; None where there is nothing to draw."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import plotly.graph_objects as go

from lorica.report.figures import shortened
from lorica.report.look import BAND, GRID, INK, MUTED, SURFACE, Look, dress, faded, plain, scale, titled
from lorica.report.robustness.run import RobustnessRun, objects, shared_radius
from lorica.report.run import Estimate, finite, section

MOST_CLASSES = 40
"""Classes that are drawn one by one; of more, those that fall lowest."""
SPELT_OUT = 16
"""Classes up to which the cells of a confusion matrix are labelled."""
_PERCENT: dict[str, Any] = {"range": [0, 1.005], "tickformat": ".0%"}


def curve(runs: Sequence[RobustnessRun], styles: Sequence[Look], norm: str) -> go.Figure | None:
    """Accuracy against the radius of the attack, from 0 on, with the band of its interval. Bounds have open marks."""
    figure, radii = go.Figure(), set[float]()
    for run, look in zip(runs, styles, strict=True):
        points = sorted(_points(run)) if str(run.worst.get("norm")) == norm else []
        if len(points) < 2:
            continue
        radii |= {eps for eps, *_ in points}
        band = [point for point in points if None not in point]
        figure.add_scatter(
            x=[p[0] for p in band] + [p[0] for p in reversed(band)],
            y=[p[2] for p in band] + [p[3] for p in reversed(band)],
            fill="toself",
            fillcolor=faded(look.light, BAND),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=run.label,
        )
        bound = run.upper_bound is True
        marks = [_mark(run, look) if eps else look.symbol for eps, *_ in points]
        figure.add_scatter(
            x=[eps for eps, *_ in points],
            y=[value for _, value, *_ in points],
            customdata=[_range(low, high) for *_, low, high in points],
            mode="lines+markers",
            name=plain(run.label),
            legendgroup=run.label,
            line={"color": look.light, "dash": look.dash, "width": 2},
            marker={"color": look.light, "symbol": marks, "size": 9, "line": {"color": look.light, "width": 2}},
            hovertemplate=f"{plain(run.label)}, %{{x}}<br>{'at most ' if bound else ''}%{{y:.1%}} right"
            "%{customdata}<extra></extra>",
        )
    if not figure.data:
        return None
    ticks = sorted(radii)
    names = [f"{255 * eps:.3g}/255" if norm == "linf" and eps else f"{eps:.3g}" for eps in ticks]
    return dress(
        figure,
        x={
            "title": titled(f"Radius of the attack ({norm_name(norm)}); 0: no attacker"),
            "tickvals": ticks,
            "ticktext": names,
            "range": [-0.03 * ticks[-1], 1.03 * ticks[-1]],
        },
        y=_PERCENT | {"title": titled("Rightly classified")},
        legend=len(runs) > 1,
        top=16,
    )


def _mark(run: RobustnessRun, look: Look) -> str:
    return f"{look.symbol}-open" if run.upper_bound else look.symbol


def norm_name(norm: str) -> str:
    """As people write it."""
    return {"linf": "L-inf", "l2": "L2"}.get(norm, norm)


def _points(run: RobustnessRun) -> list[tuple[float, float, float | None, float | None]]:
    found = []
    for entry in objects(run.evaluation.get("curve")):
        eps, rate = finite(entry.get("eps")), Estimate.of(entry)
        if eps is not None and rate.value is not None:
            found.append((eps, rate.value, rate.low, rate.high))
    return found


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f", interval {100 * low:.1f}% to {100 * high:.1f}%"


def by_class(run: RobustnessRun, radius: str | None = None) -> list[tuple[str, Estimate, Estimate]]:
    """(class, natural accuracy, accuracy in the worst case at a radius or the largest one), lowest first."""
    natural, robust = run.part("natural", "per_class"), section(run.at(radius), "per_class")
    rows = [(name, Estimate.of(natural.get(name)), Estimate.of(robust[name])) for name in robust]
    known = [(name, before, after) for name, before, after in rows if after.value is not None]
    return sorted(known, key=lambda row: (row[2].value, row[0]))


def classes(run: RobustnessRun, look: Look) -> go.Figure | None:
    """Natural and robust accuracy of every class, joined by a line; the class that falls lowest on top."""
    rows = by_class(run)[:MOST_CLASSES]
    if not rows:
        return None
    figure, places = go.Figure(), list(range(len(rows)))
    both = [(i, before.value, after.value) for i, (_, before, after) in enumerate(rows) if before.value is not None]
    figure.add_scatter(
        x=list(chain.from_iterable((after, before, None) for _, before, after in both)),
        y=list(chain.from_iterable((i, i, None) for i, *_ in both)),
        mode="lines",
        line={"color": GRID, "width": 4},
        hoverinfo="skip",
        showlegend=False,
    )
    drawn = (
        ("under attack", [after for *_, after in rows], True),
        ("natural", [before for _, before, _ in rows], False),
    )
    for name, rates, attacked in drawn:
        figure.add_scatter(
            x=[rate.value for rate in rates],
            y=places,
            customdata=[_range(rate.low, rate.high) for rate in rates],
            error_x=_whiskers(rates, look.light) if attacked else None,
            mode="markers",
            name=name,
            marker={"color": look.light, "symbol": look.symbol, "size": 9}
            if attacked
            else {"color": SURFACE, "symbol": "circle", "size": 9, "line": {"color": INK, "width": 1.6}},
            hovertemplate=f"%{{y}}, {name}: %{{x:.1%}}%{{customdata}}<extra></extra>",
        )
    return _class_axes(figure, [name for name, *_ in rows])


def classes_of_all(runs: Sequence[RobustnessRun], styles: Sequence[Look]) -> go.Figure | None:
    """Accuracy of every class at the largest radius that all models share; the class that falls lowest on top."""
    radius = shared_radius(runs)
    if radius is None:
        return None
    found = [{name: rate for name, _, rate in by_class(run, radius)} for run in runs]
    values: dict[str, list[float]] = {}
    for rates in found:
        for name, rate in rates.items():
            values.setdefault(name, []).append(rate.value or 0.0)
    names = sorted(values, key=lambda name: (sum(values[name]) / len(values[name]), name))[:MOST_CLASSES]
    if not names:
        return None
    figure = go.Figure()
    figure.add_scatter(
        x=list(chain.from_iterable((min(values[name]), max(values[name]), None) for name in names)),
        y=list(chain.from_iterable((i, i, None) for i in range(len(names)))),
        mode="lines",
        line={"color": GRID, "width": 4},
        hoverinfo="skip",
        showlegend=False,
    )
    for run, look, rates in zip(runs, styles, found, strict=True):
        shown = [(i, rates[name]) for i, name in enumerate(names) if name in rates]
        if not shown:
            continue
        figure.add_scatter(
            x=[rate.value for _, rate in shown],
            y=[i for i, _ in shown],
            customdata=[_range(rate.low, rate.high) for _, rate in shown],
            mode="markers",
            name=plain(run.label),
            marker={"color": look.light, "symbol": look.symbol, "size": 9},
            hovertemplate=f"%{{y}}, {plain(run.label)}: %{{x:.1%}}%{{customdata}}<extra></extra>",
        )
    return _class_axes(figure, names)


def _class_axes(figure: go.Figure, names: Sequence[str]) -> go.Figure:
    labels = [plain(shortened(name, 24)) for name in names]
    labels[0] = f"<b>{labels[0]}</b>"
    dress(
        figure,
        x=_PERCENT | {"range": [-0.01, 1.01], "title": titled("Rightly classified"), "side": "bottom"},
        y={"tickvals": list(range(len(names))), "ticktext": labels, "range": [len(names) - 0.4, -0.6]},
        top=16,
    )
    return figure.update_yaxes(showgrid=False)


def _whiskers(rates: Sequence[Estimate], colour: str) -> dict[str, Any]:
    above = [0.0 if r.value is None or r.high is None else r.high - r.value for r in rates]
    below = [0.0 if r.value is None or r.low is None else r.value - r.low for r in rates]
    return {"array": above, "arrayminus": below, "color": colour, "thickness": 1.2, "width": 3}


def confusion(counts: Any, names: Sequence[str]) -> go.Figure | None:
    """What every class is taken for, as shares of its pictures: right answers in one colour, mistakes in another.

    The colour grows with the square root of the share, so that rare mistakes are seen as well.

    Args:
        counts: [true class][predicted class].
        names: of the classes.
    """
    size = len(names)
    if (
        not size
        or not isinstance(counts, list)
        or [len(row) for row in counts if isinstance(row, list)] != [size] * size
    ):
        return None
    rows = [[finite(cell) or 0.0 for cell in row] for row in counts]
    shares = [[cell / sum(row) if sum(row) else 0.0 for cell in row] for row in rows]
    depth = [
        [round((1 if i == j else -1) * share**0.5, 3) for j, share in enumerate(row)] for i, row in enumerate(shares)
    ]
    spelt = size <= SPELT_OUT
    figure = go.Figure(
        go.Heatmap(
            z=depth,
            customdata=[[int(cell) for cell in row] for row in rows],
            text=[[f"{100 * share:.0f}" if share else "" for share in row] for row in shares],
            texttemplate="%{text}" if spelt else None,
            textfont={"size": 11} if spelt else None,
            hovertemplate="%{y} taken for %{x}:<br>%{customdata} pictures, %{text}% of the class<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            **scale([-1, -(0.25**0.5), 0, 0.25**0.5, 1], ["100% wrong", "25%", "0", "25%", "100% right"]),
        )
    )
    labels, places = [plain(shortened(name, 18)) for name in names], list(range(size))
    ticks = {"tickvals": places, "ticktext": labels, "showgrid": False}
    dress(figure, x=ticks | {"side": "top"}, y=ticks | {"autorange": "reversed"}, legend=False, top=16)
    longest = max(map(len, names))
    figure.update_xaxes(title=titled("taken for"), tickangle=-90 if size > 8 or longest > 9 else 0)
    figure.update_yaxes(title=titled("true class"))
    if size > 2 * SPELT_OUT:
        figure.update_xaxes(tickfont={"size": 10}).update_yaxes(tickfont={"size": 10})
    return figure.update_layout(plot_bgcolor=GRID)  # seen between the cells: a hairline grid


def robust_and_private(runs: Sequence[RobustnessRun], styles: Sequence[Look]) -> go.Figure | None:
    """Robust accuracy at a shared radius against the AUC of membership; None for fewer than two such models."""
    radius = shared_radius(runs)
    rated = [(run, look, run.robust(radius)) for run, look in zip(runs, styles, strict=True)]
    known = [entry for entry in rated if entry[2].value is not None and entry[0].membership.value is not None]
    if len(known) < 2 or radius is None:
        return None
    figure = go.Figure()
    for run, look, robust in known:
        figure.add_scatter(
            x=[robust.value],
            y=[run.membership.value],
            error_x=_whiskers([robust], look.light),
            error_y=_whiskers([run.membership], look.light),
            mode="markers",
            name=plain(run.label),
            marker={
                "color": look.light,
                "symbol": _mark(run, look),
                "size": 12,
                "line": {"color": look.light, "width": 2},
            },
            hovertemplate=f"{plain(run.label)}<br>robust accuracy %{{x:.1%}}<br>AUC %{{y:.3f}}<extra></extra>",
        )
    figure.add_hline(y=0.5, line={"color": MUTED, "width": 1.4, "dash": "2px,3px"})
    return dress(
        figure,
        x={"title": titled(f"Robust accuracy, {plain(radius)} (better to the right)"), "tickformat": ".0%"},
        y={"title": titled("AUC of membership (0.5: chance)")},
        top=16,
    )
