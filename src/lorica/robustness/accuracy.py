"""Accuracies as people should see them: with counts, exact intervals, by class, and with what was taken for what."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorica.audit.score import clopper_pearson


def rate(right: Tensor, level: float = 0.95) -> dict[str, Any]:
    """An accuracy over pictures (N,) bool, with its Clopper-Pearson interval.

    Returns:
        {"value", "low", "high", "correct", "n", "level"}; value and interval in [0, 1].

    Raises:
        ValueError: no pictures.
    """
    correct, n = int(right.sum()), len(right)
    if n == 0:
        raise ValueError("an accuracy over no pictures")
    low, high = clopper_pearson(correct, n, level)
    return {"value": correct / n, "low": low, "high": high, "correct": correct, "n": n, "level": level}


def per_class(right: Tensor, labels: Tensor, classes: Sequence[str], level: float = 0.95) -> dict[str, dict[str, Any]]:
    """`rate` by name of the class, for classes that have pictures; right (N,) bool, labels (N,) int64."""
    return {
        name: rate(right[labels == label], level)
        for label, name in enumerate(classes)
        if bool((labels == label).any())
    }


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> list[list[int]]:
    """Counts by [true class][predicted class]; labels and predictions (N,) int64."""
    counts = torch.bincount(labels * classes + predictions, minlength=classes * classes)
    return [list(map(int, row)) for row in counts.view(classes, classes)]


def confused(labels: Tensor, predictions: Tensor, classes: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
    """The most frequent mistakes: [{"class", "taken_for", "count"}], most frequent first."""
    matrix = torch.tensor(confusion(labels, predictions, len(classes))).fill_diagonal_(0)
    counts, places = matrix.flatten().sort(descending=True, stable=True)
    return [
        {"class": classes[place // len(classes)], "taken_for": classes[place % len(classes)], "count": count}
        for count, place in zip(counts[:most].tolist(), places[:most].tolist(), strict=True)
        if count
    ]
