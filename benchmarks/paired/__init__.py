"""Rows of a table compared seed by seed: the luck of training, which intervals over pictures do not hold."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

METRICS = ("natural", "pgd20", "robust")

Found = Mapping[str, Mapping[str, float]]
"""{metric: {"value": ..., ...}} of one run."""


def difference(pairs: Sequence[tuple[Found, Found]]) -> dict[str, dict[str, float | None]]:
    """Of the first from the second of each pair, {metric: {"value", "low", "high"}}.

    The mean over the pairs, one for each seed, with Student's 95 % interval (None for a single one).
    """
    return {key: _interval([a[key]["value"] - b[key]["value"] for a, b in pairs]) for key in METRICS}


def print_differences(differences: Sequence[Mapping[str, Any]], base: str, about: Sequence[str]) -> None:
    """In Markdown: points more than `base`. Each row has the columns `about` besides the metrics."""
    if not differences:
        return
    columns = [f"points more than {base}", *about, *METRICS]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in differences:
        cells = [row["row"], *(str(row[key]) for key in about), *(_cell(row[key]) for key in METRICS)]
        print(f"| {' | '.join(cells)} |", flush=True)


def _interval(values: list[float]) -> dict[str, float | None]:
    if len(values) < 2:
        return {"value": values[0], "low": None, "high": None}
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return {"value": mean(values), "low": mean(values) - half, "high": mean(values) + half}


def _cell(found: Mapping[str, float | None]) -> str:
    value, low, high = found.values()
    interval = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * (value or 0):+.1f}{interval}"
