"""Rows of a table compared seed by seed: the luck of training, which intervals over pictures do not hold."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

METRICS = ("natural", "pgd20", "robust")


def differences(runs: Sequence[Mapping[str, Any]], base: str, about: Sequence[str]) -> list[dict[str, Any]]:
    """Of every other row from `base`, over the seeds that both have.

    Args:
        runs: each with "row", "seed", the columns `about`, and {metric: {"value": ..., ...}}.
        base: the row that the others are compared with.
        about: columns in which compared runs are alike, e.g. "set".

    Returns:
        {"row", *about, "seeds": how many, metric: {"value", "low", "high"}} for each row: the mean difference with
        Student's 95 % interval (None for a single seed).
    """
    found = {(run["row"], *(run[key] for key in about), run["seed"]): run for run in runs}
    pairs: dict[tuple[Any, ...], list[tuple[Any, Any]]] = {}
    for (row, *where, seed), run in found.items():
        if row != base and (base, *where, seed) in found:
            pairs.setdefault((row, *where), []).append((run, found[base, *where, seed]))
    return [
        dict(zip(("row", *about), key, strict=True))
        | {"seeds": len(both)}
        | {metric: _interval([a[metric]["value"] - b[metric]["value"] for a, b in both]) for metric in METRICS}
        for key, both in pairs.items()
    ]


def print_differences(rows: Sequence[Mapping[str, Any]], base: str, about: Sequence[str]) -> None:
    """What `differences` found, in Markdown: points more than `base`."""
    if not rows:
        return
    columns = [f"points more than {base}", *about, "seeds", *METRICS]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        cells = [row["row"], *(str(row[key]) for key in (*about, "seeds")), *(_cell(row[key]) for key in METRICS)]
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
