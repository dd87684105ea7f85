"""Some of the labelled pictures: evenly from all classes, a share of each, or as many of each as another set has."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lorica.data.label_split import LabelledSplit
from lorica.seeds import stable_seed


def balanced(labels: Tensor, count: int | None, seed: int) -> list[int]:
    """Rows of `count` pictures, as evenly from all classes as there are pictures, in order; all rows for None.

    Args:
        labels: (N,) int64.
        count: how many.
        seed: of the choice.
    """
    if count is None or count >= len(labels):
        return list(range(len(labels)))
    order = np.random.default_rng(stable_seed(seed, "chosen pictures")).permutation(len(labels))
    turns: dict[int, int] = {}
    turn = np.empty(len(labels), dtype=np.int64)
    for row in order:
        label = int(labels[row])
        turn[row] = turns[label] = turns.get(label, -1) + 1
    by_turn = order[np.argsort(turn[order], kind="stable")]
    return sorted(by_turn[:count].tolist())


def keep_labels(split: LabelledSplit, share: float, seed: int) -> LabelledSplit:
    """A split whose training set has a share of each class; validation and test pictures are left alone.

    Which pictures are kept depends on their content and the seed. Copies of a picture count once and stay together;
    what a smaller share keeps, a larger one keeps too.

    Args:
        split: whose training set is to shrink.
        share: of each class's different training pictures, in (0, 1]; at least one is kept.
        seed: of the choice.

    Returns:
        The split itself for a share of 1; else a new one, with a note that says what was left out.
    """
    if share == 1:
        return split
    train = split.train
    kept: set[str] = set()
    for label, name in enumerate(train.classes):
        rows = (train.labels == label).nonzero().flatten().tolist()
        different = sorted({train.sha256[row] for row in rows})
        order = np.random.default_rng(stable_seed(seed, "labels", name)).permutation(len(different))
        kept.update(different[place] for place in order[: max(1, round(share * len(different)))])
    few = train.take([row for row, value in enumerate(train.sha256) if value in kept])
    note = (
        f"The labels of {len(few)} of {len(train)} training pictures are used, about {share:.3g} of each class, drawn "
        f"by chance (seed {seed}); the others are not trained on."
    )
    return replace(split, train=few, notes=(*split.notes, note))


def hide_labels(split: LabelledSplit, share: float, seed: int) -> LabelledSplit:
    """The same as `keep_labels`, but for the other training pictures: they stay, with -1 for a label."""
    few = keep_labels(split, share, seed)
    if few is split:
        return split
    train, known = split.train, set(few.train.sha256)
    shown = torch.tensor([value in known for value in train.sha256])
    note = (
        f"The labels of {len(few.train)} of {len(train)} training pictures are used, about {share:.3g} of each class, "
        f"drawn by chance (seed {seed}); the others are trained on without."
    )
    return replace(split, train=replace(train, labels=train.labels.where(shown, -1)), notes=(*split.notes, note))


def matched(first: Tensor, second: Tensor, count: int, seed: int) -> tuple[list[int], list[int]]:
    """As many rows of two sets of labels, with the same number of each class: what differs is then not the classes.

    Args:
        first: (N,) int64.
        second: (M,) int64, of the same classes.
        count: rows of each at most; fewer where a class is rarer in one of the sets than in the other. They are drawn
            as evenly from the classes as that allows.
        seed: of the choice.

    Returns:
        Rows of the first and of the second, each in order.
    """
    common = {
        label: min(int((first == label).sum()), int((second == label).sum())) for label in second.unique().tolist()
    }
    chosen: list[list[int]] = [[], []]
    wanted = torch.tensor([label for label, number in common.items() for _ in range(number)], dtype=torch.long)
    wanted = wanted[balanced(wanted, count, seed)]
    for side, labels in enumerate((first, second)):
        for label, number in zip(*(values.tolist() for values in wanted.unique(return_counts=True)), strict=True):
            rows = (labels == label).nonzero().flatten().numpy()
            order = np.random.default_rng(stable_seed(seed, "matched", side, label)).permutation(len(rows))
            chosen[side] += rows[order[:number]].tolist()
    return sorted(chosen[0]), sorted(chosen[1])
