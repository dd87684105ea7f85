"""The plots of the report: pure functions from runs to Plotly figures; None where there is nothing to draw."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from lorica.audit.score import MembershipScores
from lorica.report.look import INK, MUTED, SHADE, SPARE, Look, dress, faded, looks, plain, titled
from lorica.report.run import Estimate, ReportRun, finite

Array = NDArray[np.float64]

_TOP = 1.03  # of an AUC axis
QUALITY = {"validation_loss": "Validation loss", "kid": "KID", "fid": "FID"}  # all better when lower


def scores(run: ReportRun, attack: str) -> MembershipScores | None:
    """The attack's scores; None where the audit keeps none for one of the groups."""
    raw = run.part("attacks", attack, "scores")
    groups = [np.array([x for x in map(finite, raw.get(g) or []) if x is not None]) for g in ("members", "nonmembers")]
    return MembershipScores(*groups) if all(len(group) for group in groups) else None


def roc(runs: Sequence[ReportRun], scale: Literal["log", "linear"]) -> go.Figure | None:
    """Every attack on every run. With several runs the colour says which run, with one it says which attack.

    Traces of an attack carry `meta = {"attack": name, "alone": line}`, by which the page shows one attack at a time.
    """
    figure = go.Figure()
    resolution = 1.0
    drawn = [(run, look) for run, look in zip(runs, looks(runs), strict=True) if run.attacks]
    several = len(drawn) > 1
    for run, look in drawn:
        for rank, attack in enumerate(run.attacks):
            measured = scores(run, attack)
            if measured is None:
                continue
            strongest = attack == run.worst
            own = look if several or strongest else SPARE[rank % len(SPARE)]
            alone = {"color": own.light, "dash": own.dash, "width": 3}
            thin = {"color": own.light, "dash": "solid", "width": 1.3} if several else alone | {"width": 2}
            false, true = corners(*measured.roc()[:2])
            resolution = min(resolution, 1 / len(measured.nonmembers))
            figure.add_scatter(
                x=_on_axis(false, scale, 0.5 / len(measured.nonmembers)),
                y=true.tolist(),
                customdata=false.tolist(),
                mode="lines",
                name=plain(run.label if several else attack),
                legendgroup=run.label if several else attack,
                showlegend=strongest or not several,
                line=alone if strongest else thin,
                opacity=0.6 if several and not strongest else 1.0,
                hovertemplate=f"{plain(run.label)}, {plain(attack)}<br>finds %{{y:.1%}} of members"
                "<br>at %{customdata:.2%} false alarms<extra></extra>",
                meta={"attack": attack, "alone": alone},
            )
    if not figure.data:
        return None
    floor = 0.5 * resolution
    chance = np.geomspace(floor, 1, 60) if scale == "log" else np.array([0.0, 1.0])
    figure.add_scatter(
        x=chance.tolist(),
        y=chance.tolist(),
        mode="lines",
        name="chance",
        line={"color": MUTED, "width": 1.4, "dash": "2px,3px"},
        hoverinfo="skip",
    )
    left = floor if scale == "log" else 0
    figure.add_vrect(x0=left, x1=min(1.0, 10 * resolution), fillcolor=SHADE, line_width=0, layer="below")
    ticks = [t for t in (0.0001, 0.001, 0.01, 0.05, 0.1, 0.3, 1.0) if t >= floor]
    axis: dict[str, Any] = {"range": [0, 1], "tickformat": ".0%"}
    if scale == "log":
        axis = {
            "type": "log",
            "range": [float(np.log10(floor)), 0],
            "tickvals": ticks,
            "ticktext": [f"{100 * tick:g}%" for tick in ticks],
        }
    return dress(
        figure,
        x=axis | {"title": titled("False alarms among non-members")},
        y={"range": [0, 1.01], "tickformat": ".0%", "title": titled("Members found")},
    )


def histogram(run: ReportRun, attack: str, look: Look) -> go.Figure | None:
    """Scores of members (filled) and non-members (outline), as shares of their group over the same bins.

    Only the counts per bin go into the page: it carries no score of a single picture.
    """
    measured = scores(run, attack)
    if measured is None:
        return None
    both = np.concatenate([measured.members, measured.nonmembers])
    # Heavy tails, as of loss ratios, would squeeze the bulk into two bars: the outermost bins hold what lies beyond.
    low, high = np.quantile(both, [0.005, 0.995])
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(round(3 * len(both) ** (1 / 3)), 10, 40))
    edges = np.linspace(low, high, bins + 1)
    figure = go.Figure()
    for name, values in (("members", measured.members), ("non-members", measured.nonmembers)):
        counts, _ = np.histogram(np.clip(values, low, high), edges)
        share = counts / len(values)
        member = name == "members"
        figure.add_scatter(
            x=[edges[0], *edges[:-1].tolist(), edges[-1], edges[-1]],
            y=[0, *share.tolist(), share[-1], 0],
            mode="lines",
            name=name,
            line={"shape": "hv", "width": 1 if member else 2, "color": look.light if member else INK},
            fill="tozeroy" if member else "none",
            fillcolor=faded(look.light) if member else None,
            hovertemplate=f"{name}: %{{y:.1%}} of them<br>at score %{{x:.4g}}<extra></extra>",
        )
    threshold = finite(run.part("attacks", attack, "asr").get("threshold"))
    if threshold is not None and low <= threshold <= high:
        figure.add_vline(x=threshold, line={"color": MUTED, "width": 1.4, "dash": "dash"})
        note = {"text": "threshold", "showarrow": False, "font": {"size": 11, "color": MUTED}}
        figure.add_annotation(note, x=threshold, y=1, yref="paper", yanchor="bottom")
    return dress(
        figure,
        x={"title": titled("Score (higher: more member-like)"), "nticks": 6},
        y={"title": titled("Share of group"), "tickformat": ".0%", "rangemode": "tozero"},
        legend=False,
        top=24,
    )


def training(runs: Sequence[ReportRun]) -> go.Figure | None:
    """Validation loss of members (solid) and non-members (dashed) over training, and below it how far they part."""
    drawn = [(run, look) for run, look in zip(runs, looks(runs), strict=True) if run.validated]
    if not drawn:
        return None
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=0.07)
    for run, look in drawn:
        steps = [row["step"] for row in run.validated]
        series = {
            "members": ([row["val_member"] for row in run.validated], "solid", 1),
            "non-members": ([row["val_nonmember"] for row in run.validated], "dash", 1),
            "gap": ([row["val_nonmember"] - row["val_member"] for row in run.validated], "solid", 2),
        }
        for name, (values, dash, row) in series.items():
            figure.add_scatter(
                x=steps,
                y=values,
                mode="lines+markers",
                name=plain(run.label),
                legendgroup=run.label,
                showlegend=name == "members",
                line={"color": look.light, "width": 2, "dash": dash},
                marker={"symbol": look.symbol, "size": 6},
                hovertemplate=f"{plain(run.label)}, {name}<br>step %{{x}}: %{{y:.4f}}<extra></extra>",
                row=row,
                col=1,
            )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1.4, "dash": "2px,3px"}, row=2, col=1)
    dress(figure, x={}, y={})
    figure.update_yaxes(title=titled("Adaptation loss"), row=1, col=1)
    figure.update_yaxes(title=titled("Gap"), row=2, col=1)
    figure.update_xaxes(title=titled("Training step"), row=2, col=1)
    return figure


def tradeoff(
    points: Sequence[tuple[ReportRun, Estimate, Estimate]], axis: str, styles: Sequence[Look]
) -> go.Figure | None:
    """Quality against privacy, one point per run with its intervals; None for fewer than two points.

    Args:
        points: (run, quality estimate, AUC estimate of its strongest attack); points without a value are left out.
        axis: title of the quality axis, a measure that is better when lower.
        styles: the look of each point's run.
    """
    known = [
        (run, look, quality, auc, quality.value, auc.value)
        for (run, quality, auc), look in zip(points, styles, strict=True)
        if quality.value is not None and auc.value is not None
    ]
    if len(known) < 2:
        return None
    least, most = _span([(run, x) for run, _, _, _, x, _ in known])
    pad = 0.2 * (most - least) or 0.1 * abs(most) or 1.0
    bottom = min([0.45, *(auc.low for _, _, _, auc, _, _ in known if auc.low is not None)]) - 0.05
    gap = (_TOP - bottom) / max(19, len(known))
    figure, widest = go.Figure(), 0
    places = apart([y for *_, y in known], gap, bottom + gap / 2, _TOP - gap / 2)
    for (run, look, quality, auc, value, y), place in zip(known, places, strict=True):
        x = min(value, most + 0.85 * pad)
        label = shortened(run.label) + (f" (at {value:.3g})" if x < value else "")
        widest = max(widest, len(label))
        figure.add_scatter(
            x=[x],
            y=[y],
            error_x=_error_bar(quality, look) if x == value else None,
            error_y=_error_bar(auc, look),
            mode="markers",
            name=plain(run.label),
            marker={"color": look.light, "symbol": look.symbol, "size": 12},
            hovertemplate=f"{plain(label)}<br>{axis} {value:.4g}<br>AUC %{{y:.3f}}<extra></extra>",
            cliponaxis=False,
        )
        # Points of equal quality lie on one another: names stand in a column, each with a line to its point.
        figure.add_annotation(
            {"x": x, "y": y, "ax": most + pad, "ay": place, "axref": "x", "ayref": "y", "xanchor": "left"},
            text=plain(label),
            font={"color": look.light, "size": 13},
            showarrow=True,
            arrowhead=0,
            arrowwidth=0.7,
            arrowcolor=look.light,
            standoff=7,
        )
    figure.add_hline(y=0.5, line={"color": MUTED, "width": 1.4, "dash": "2px,3px"})
    ticks = [tenth / 10 for tenth in range(11)]
    dress(
        figure,
        x={"title": titled(f"{axis} (better to the left)"), "range": [least - pad, most + pad]},
        y={
            "title": titled("AUC of the strongest attack"),
            "range": [bottom, _TOP],
            "tickvals": ticks,
            "ticktext": ["chance 0.5" if tick == 0.5 else f"{tick:g}" for tick in ticks],
        },
        legend=False,
        top=28,
    )
    return figure.update_layout(margin_r=24 + 7 * widest)


def shortened(label: str, most: int = 40) -> str:
    """A name that leaves room for the plot beside it."""
    return label if len(label) <= most else label[: most - 1] + "…"


def _span(points: Sequence[tuple[ReportRun, float]]) -> tuple[float, float]:
    """The range of a quality axis: a base model far off, which must not squeeze the others, is drawn at its edge."""
    adapted = [x for run, x in points if run.objective != "base"]
    every = [x for _, x in points]
    if len(adapted) < 2 or max(every) <= max(adapted) + 2 * (max(adapted) - min(adapted)):
        return min(every), max(every)
    return min(every), max(adapted)


def apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near `heights` that keep their order and are at least `gap` apart, in [low, high]: a column of names."""
    order = sorted(range(len(heights)), key=lambda i: -heights[i])
    places = dict.fromkeys(order, 0.0)
    above = high + gap
    for i in order:  # down from the top: each below the one before
        places[i] = above = min(heights[i], above - gap)
    below = low - gap
    for i in reversed(order):  # and up again from the bottom, where that went too far
        places[i] = below = max(places[i], below + gap)
    return [places[i] for i in range(len(heights))]


def corners(false: Array, true: Array) -> tuple[Array, Array]:
    """Drop the points inside straight pieces of a ROC: the same curve with as few points as draw it."""
    step_x, step_y = np.diff(false), np.diff(true)
    turns = np.abs(step_x[:-1] * step_y[1:] - step_x[1:] * step_y[:-1]) > 1e-12
    keep = np.concatenate([[True], turns, [True]])
    return false[keep], true[keep]


def _on_axis(false: Array, scale: str, floor: float) -> list[float]:
    """A logarithmic axis has no zero: what lies there is drawn at the left edge."""
    return (np.maximum(false, floor) if scale == "log" else false).tolist()


def _error_bar(estimate: Estimate, look: Look) -> dict[str, Any] | None:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    above, below = estimate.high - estimate.value, estimate.value - estimate.low
    return {"array": [above], "arrayminus": [below], "color": look.light, "thickness": 1.6, "width": 5}
