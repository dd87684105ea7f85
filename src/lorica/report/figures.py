"""The plots of the report: pure functions from runs to Plotly figures, in one visual language.

A run keeps its colour, dash and marker in every plot, so that it is found again at a glance, also by a reader who sees
no colour. Figures carry the colours of a light page; `DARK` says what the page puts in their place after dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from lorica.audit.score import MembershipScores
from lorica.report.run import Estimate, ReportRun, finite

Array = NDArray[np.float64]

INK, MUTED, GRID, SHADE, SURFACE = "#1f2a37", "#566374", "#e4e8ee", "#eef1f5", "#ffffff"
_NEUTRAL = {INK: "#e8ebf0", MUTED: "#a3aebd", GRID: "#303843", SHADE: "#262d37", SURFACE: "#1b2028"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
QUALITY = {"validation_loss": "Validation loss", "kid": "KID", "fid": "FID"}  # all better when lower


@dataclass(frozen=True)
class Look:
    """How a run is drawn in every plot and table."""

    light: str
    dark: str
    dash: str
    symbol: str


_KNOWN = {
    "base": Look("#66717f", "#9aa6b5", "longdashdot", "x"),
    "lora": Look("#c2521b", "#f29559", "solid", "circle"),
    "mp-lora": Look("#85479f", "#cb9ae0", "dot", "diamond"),
    "smp-lora": Look("#1f68ad", "#6fb1f0", "dash", "square"),
}
_SPARE = (
    Look("#2c7a52", "#6cc79a", "dashdot", "triangle-up"),
    Look("#96700f", "#dcb54a", "9px,4px", "cross"),
    Look("#b0336b", "#f088b4", "12px,4px,2px,4px,2px,4px", "star"),
    Look("#4a54b8", "#9aa4f5", "2px,6px", "hexagon"),
    Look("#117a83", "#55c3cc", "16px,8px", "triangle-down"),
    Look("#7a5a3a", "#c9a27c", "8px,3px,2px,3px", "bowtie"),
)


def faded(colour: str) -> str:
    """The translucent form of a hex colour, for areas."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.5)"


_EVERY = (*_KNOWN.values(), *_SPARE)
DARK: dict[str, str] = (
    _NEUTRAL | {look.light: look.dark for look in _EVERY} | {faded(look.light): faded(look.dark) for look in _EVERY}
)


def looks(runs: Sequence[ReportRun]) -> list[Look]:
    """One look per run: the objective's own for the first run of it, spare ones for the others."""
    free = dict(_KNOWN)
    spare = cycle(_SPARE)
    return [free.pop(run.objective, None) or next(spare) for run in runs]


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
            own = look if several or strongest else _SPARE[rank % len(_SPARE)]
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
    ticks = [t for t in (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0) if t >= floor]
    axis: dict[str, Any] = {"range": [0, 1], "tickformat": ".0%"}
    if scale == "log":
        axis = {
            "type": "log",
            "range": [float(np.log10(floor)), 0],
            "tickvals": ticks,
            "ticktext": [f"{100 * tick:g}%" for tick in ticks],
        }
    return _dress(
        figure,
        x=axis | {"title": _titled("False alarms among non-members")},
        y={"range": [0, 1.01], "tickformat": ".0%", "title": _titled("Members found")},
    )


def histogram(run: ReportRun, attack: str, look: Look) -> go.Figure | None:
    """Scores of members (filled) and non-members (outline), as shares of their group over the same bins.

    Only the counts per bin go into the page: it carries no score of a single picture.
    """
    measured = scores(run, attack)
    if measured is None:
        return None
    both = np.concatenate([measured.members, measured.nonmembers])
    # Heavy tails (loss ratios have them) would squeeze the bulk into two bars: the outermost bins take what lies beyond.
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
        figure.add_annotation(
            x=threshold, y=1, yref="paper", yanchor="bottom", text="threshold", showarrow=False, font={"size": 11, "color": MUTED}
        )
    return _dress(
        figure,
        x={"title": _titled("Score (higher: more member-like)"), "nticks": 6},
        y={"title": _titled("Share of group"), "tickformat": ".0%", "rangemode": "tozero"},
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
    _dress(figure, x={}, y={})
    figure.update_yaxes(title=_titled("Adaptation loss"), row=1, col=1)
    figure.update_yaxes(title=_titled("Gap"), row=2, col=1)
    figure.update_xaxes(title=_titled("Training step"), row=2, col=1)
    return figure


def tradeoff(points: Sequence[tuple[ReportRun, Estimate, Estimate]], axis: str, styles: Sequence[Look]) -> go.Figure | None:
    """Quality against privacy, one point per run with its intervals; None for fewer than two points.

    Args:
        points: (run, quality estimate, AUC estimate of its strongest attack); points without a value are left out.
        axis: title of the quality axis, a measure that is better when lower.
        styles: the look of each point's run.
    """
    known = [
        (run, quality, auc, look)
        for (run, quality, auc), look in zip(points, styles, strict=True)
        if quality.value is not None and auc.value is not None
    ]
    if len(known) < 2:
        return None
    least, most = (pick(quality.value for _, quality, _, _ in known) for pick in (min, max))
    figure = go.Figure()
    for run, quality, auc, look in known:
        figure.add_scatter(
            x=[quality.value],
            y=[auc.value],
            error_x=_error_bar(quality, look),
            error_y=_error_bar(auc, look),
            mode="markers+text",
            name=plain(run.label),
            text=[plain(run.label)],
            textposition="top right" if quality.value <= (least + most) / 2 else "top left",
            textfont={"color": look.light, "size": 14},
            marker={"color": look.light, "symbol": look.symbol, "size": 12},
            hovertemplate=f"{plain(run.label)}<br>{axis} %{{x:.4g}}<br>AUC %{{y:.3f}}<extra></extra>",
            cliponaxis=False,
        )
    figure.add_hline(y=0.5, line={"color": MUTED, "width": 1.4, "dash": "2px,3px"})
    pad = 0.2 * (most - least) or 0.1 * abs(most) or 1.0
    lowest = min([0.45, *(auc.low for _, _, auc, _ in known if auc.low is not None)])
    ticks = [tenth / 10 for tenth in range(11)]
    return _dress(
        figure,
        x={"title": _titled(f"{axis} (better to the left)"), "range": [least - pad, most + pad]},
        y={
            "title": _titled("AUC of the strongest attack"),
            "range": [lowest - 0.05, 1.03],
            "tickvals": ticks,
            "ticktext": ["chance 0.5" if tick == 0.5 else f"{tick:g}" for tick in ticks],
        },
        legend=False,
        top=28,
    )


def corners(false: Array, true: Array) -> tuple[Array, Array]:
    """Drop the points inside straight pieces of a ROC: the same curve with as few points as draw it."""
    step_x, step_y = np.diff(false), np.diff(true)
    turns = np.abs(step_x[:-1] * step_y[1:] - step_x[1:] * step_y[:-1]) > 1e-12
    keep = np.concatenate([[True], turns, [True]])
    return false[keep], true[keep]


def plain(text: str) -> str:
    """Plotly reads markup in names and labels, links included: hostile text must arrive as text."""
    return escape(text).replace("%{", "%&#123;")


def _on_axis(false: Array, scale: str, floor: float) -> list[float]:
    """A logarithmic axis has no zero: what lies there is drawn at the left edge."""
    return (np.maximum(false, floor) if scale == "log" else false).tolist()


def _error_bar(estimate: Estimate, look: Look) -> dict[str, Any] | None:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    above, below = estimate.high - estimate.value, estimate.value - estimate.low
    return {"array": [above], "arrayminus": [below], "color": look.light, "thickness": 1.6, "width": 5}


def _titled(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 12, "font": {"size": 13, "color": MUTED}}


def _dress(figure: go.Figure, *, x: dict[str, Any], y: dict[str, Any], legend: bool = True, top: int = 8) -> go.Figure:
    """The calm common to all plots: hairline grid, no frame, the page's own background."""
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "tickcolor": GRID,
        "automargin": True,
        "tickangle": 0,
        "tickfont": {"size": 12, "color": MUTED},
    }
    figure.update_layout(
        template="none",
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 24, "t": top, "b": 8},
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "font": {"size": 13}},
        hoverlabel={"bgcolor": SURFACE, "bordercolor": GRID, "font": {"color": INK, "family": FONT}},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
        dragmode=False,
    )
    figure.update_xaxes(**axis, **x)
    figure.update_yaxes(**axis, **y)
    return figure
