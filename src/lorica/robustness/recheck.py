"""A last look at every picture that fooled a model: whether it was allowed to, and whether it still does."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorica.robustness.attacked import AttackedBatch, Counted, as_floats
from lorica.robustness.threat import Threat

_SLACK = 1e-6  # of distances and pixels, for rounding


@dataclass(frozen=True, eq=False)
class Recheck:
    """Whether pictures that fooled a model were allowed to.

    Attributes:
        broken: (N,) bool, there is an allowed picture that fooled the model when it was found.
        predictions: (N,) int64, what the model says to it now; -1 where there is none.
        checked: number of pictures.
        too_far: of these, farther from the original than eps + 1e-6.
        outside: with pixels below 0 or above 1.
        not_finite: with pixels that are no numbers.
        unconfirmed: allowed ones that the model is no longer wrong about. They count as broken, as in AutoAttack.
    """

    broken: Tensor
    predictions: Tensor
    checked: int
    too_far: int
    outside: int
    not_finite: int
    unconfirmed: int

    @property
    def refused(self) -> int:
        """Pictures that were not allowed, and do not count."""
        return self.checked - int(self.broken.sum())


def recheck(
    model: Counted, pixels: Tensor, labels: Tensor, threat: Threat, batches: Iterable[AttackedBatch]
) -> Recheck:
    """Look at every kept picture again: a claim that a picture was broken rests on this, not on the attack's word.

    Args:
        model: in `model.attacked()`.
        pixels: (N, 3, H, W), uint8 or floats in [0, 1].
        labels: (N,) int64.
        threat: the allowed pictures.
        batches: of attacks, none of which broke a picture that another broke.
    """
    sound, predictions = torch.zeros(len(labels), dtype=torch.bool), torch.full((len(labels),), -1)
    counts = dict.fromkeys(("checked", "too_far", "outside", "not_finite", "unconfirmed"), 0)
    for batch in batches:
        rows = batch.rows[batch.broken]
        if not len(rows):
            continue
        found, original = batch.adversarial.to(model.device), as_floats(pixels[rows], model.device)
        finite = found.isfinite().flatten(1).all(dim=1)
        near = threat.distance(found.double(), original.double()) <= threat.eps + _SLACK
        inside = ((found >= -_SLACK) & (found <= 1 + _SLACK)).flatten(1).all(dim=1)
        allowed = finite & near & inside
        said = model(found.nan_to_num()).argmax(dim=1)
        wrong = said != labels[rows].to(model.device)
        sound[rows], predictions[rows] = allowed.cpu(), torch.where(allowed, said, -1).cpu()
        tests = {
            "checked": torch.ones_like(finite), "too_far": finite & ~near, "outside": finite & ~inside,
            "not_finite": ~finite, "unconfirmed": allowed & ~wrong,
        }  # fmt: skip
        for name, hits in tests.items():
            counts[name] += int(hits.sum())
    return Recheck(sound, predictions, **counts)
