"""What changes as pre-training goes on: the learning rate, and DynACL's augmentation strength and loss weights."""

import math
from typing import NamedTuple


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, floor: float = 1e-6) -> float:
    """Linear warm-up from 0, then half a cosine down to the floor, step by step.

    Args:
        step: of the update, from 1 to `steps`; the authors' first update has number 1.
        steps: of the whole run.
        warmup: steps at whose end the rate is at its peak; 0 for none.
        peak: the highest rate.
        floor: the rate of the last step (authors: 1e-6).
    """
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


class Emphasis(NamedTuple):
    """What an epoch does to its pictures, and what it learns from."""

    strength: float
    """s of the augmentation, in [0, 1]."""
    natural: float
    """Weight of NT-Xent of the natural views, 1 - w."""
    adversarial: float
    """Weight of NT-Xent of the adversarial views, 1 + w."""


def annealed(epoch: int, *, epochs: int, every: int) -> Emphasis:
    """DynACL's schedule (Luo et al., ICLR 2023, arXiv 2303.01289), as the code of arXiv 2305.00374 has it:
    s = 1 - floor((e - 1) / K) K / T and w = 2/3 (1 - s).

    Args:
        epoch: e, from 1.
        epochs: T (paper: 1000).
        every: K, epochs between two changes (paper: 50).

    Returns:
        s falls from 1 to K/T, w rises from 0 towards 2/3.
    """
    strength = 1 - (epoch - 1) // every * every / epochs
    w = 2 / 3 * (1 - strength)
    return Emphasis(strength, 1 - w, 1 + w)
