"""One visual language for all plots: a colour, dash and marker per run, a hairline grid, the page's own background.

A run keeps its look in every plot, so that it is found again at a glance, also by a reader who sees no colour. Figures
carry the colours of a light page; `DARK` says what the page puts in their place after dark.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import count
from typing import Any, Protocol

import plotly.graph_objects as go

INK, MUTED, GRID, SHADE, SURFACE = "#1f2a37", "#566374", "#e4e8ee", "#eef1f5", "#ffffff"
BAD, GOOD = "#a51d2d", "#1d63a6"
"""Ends of a scale on both sides of the surface's colour; apart for colour-blind readers too."""
_NEUTRAL = {INK: "#e8ebf0", MUTED: "#a3aebd", GRID: "#303843", SHADE: "#262d37", SURFACE: "#1b2028"}
_NEUTRAL |= {BAD: "#d4535c", GOOD: "#4189cf"}
BAND = 0.16
"""Opacity of an area that others lie over."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Look:
    """How a run is drawn in every plot and table."""

    light: str
    dark: str
    dash: str
    symbol: str


class Drawn(Protocol):
    """A run on a page."""

    @property
    def objective(self) -> str:
        """What decides its look."""


_GREY = Look("#66717f", "#9aa6b5", "longdashdot", "x")
_ORANGE = Look("#c2521b", "#f29559", "solid", "circle")
_PURPLE = Look("#85479f", "#cb9ae0", "dot", "diamond")
_BLUE = Look("#1f68ad", "#6fb1f0", "dash", "square")
_KNOWN = {
    "base": _GREY,
    "lora": _ORANGE,
    "mp-lora": _PURPLE,
    "smp-lora": _BLUE,
    "at": _GREY,
    "vanilla": _ORANGE,
    "twins": _PURPLE,
    "autolora": _BLUE,
}
SPARE = (
    Look("#2c7a52", "#6cc79a", "dashdot", "triangle-up"),
    Look("#96700f", "#dcb54a", "9px,4px", "cross"),
    Look("#b0336b", "#f088b4", "12px,4px,2px,4px,2px,4px", "star"),
    Look("#4a54b8", "#9aa4f5", "2px,6px", "hexagon"),
    Look("#117a83", "#55c3cc", "16px,8px", "triangle-down"),
    Look("#7a5a3a", "#c9a27c", "8px,3px,2px,3px", "bowtie"),
)


def faded(colour: str, opacity: float = 0.5) -> str:
    """The translucent form of a hex colour, for areas."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


_EVERY = (*_KNOWN.values(), *SPARE)
DARK: dict[str, str] = (
    _NEUTRAL
    | {look.light: look.dark for look in _EVERY}
    | {faded(look.light, opacity): faded(look.dark, opacity) for look in _EVERY for opacity in (0.5, BAND)}
)


def looks(runs: Sequence[Drawn]) -> list[Look]:
    """One look per run: the objective's own for the first run of it, spare ones for the others."""
    known, spare = dict(_KNOWN), _spare()
    return [known.pop(run.objective) if run.objective in known else next(spare) for run in runs]


def _spare() -> Iterator[Look]:
    """Spare looks without end: when the colours come round again, it is with another dash and marker."""
    for turn in count():
        for place, look in enumerate(SPARE):
            other = SPARE[(place + turn) % len(SPARE)]
            yield replace(look, dash=other.dash, symbol=other.symbol)


def plain(text: str) -> str:
    """Plotly reads markup in names and labels, links included: hostile text must arrive as text."""
    return escape(text).replace("%{", "%&#123;")


def titled(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 12, "font": {"size": 13, "color": MUTED}}


def scale(ticks: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    """A heatmap's colours from -1 to 1, and a slim bar of them below it."""
    return {
        "colorscale": [[0, BAD], [0.5, SURFACE], [1, GOOD]],
        "zmin": -1,
        "zmax": 1,
        "colorbar": {
            "orientation": "h",
            "tickvals": list(ticks),
            "ticktext": list(names),
            "ticks": "",
            "tickfont": {"size": 11, "color": MUTED},
            "thickness": 8,
            "outlinewidth": 0,
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "ypad": 4,
        },
    }


def dress(figure: go.Figure, *, x: dict[str, Any], y: dict[str, Any], legend: bool = True, top: int = 36) -> go.Figure:
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
        # Below, where many entries may fold: above they would reach under the buttons.
        legend={"orientation": "h", "yanchor": "bottom", "yref": "container", "y": 0, "x": 0, "font": {"size": 13}},
        hoverlabel={"bgcolor": SURFACE, "bordercolor": GRID, "font": {"color": INK, "family": FONT}},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
        dragmode=False,
    )
    figure.update_xaxes(**axis, **x)
    figure.update_yaxes(**axis, **y)
    return figure
