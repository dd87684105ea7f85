"""What may make an evaluation flatter a model: looked for, and said in fields instead of printed warnings.

The checks are those of AutoAttack (arXiv 2003.01690 and its document on flags).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lorica.robustness.attacked import Counted, as_floats
from lorica.vision.classifier import returns_probabilities

_NAMED = 5  # classes
_PASSES, _CHANGE = 5, 1e-4  # of a model that may be random; AutoAttack's own numbers


@dataclass(frozen=True)
class Flag:
    """One reason for care.

    Attributes:
        name: in snake case.
        raised: whether it holds.
        value: what was measured.
        problem: what it means, a clause without a full stop.
        advice: what to do about it, a sentence.
        doubt: whether the robust accuracy may be too high where it is raised.
    """

    name: str
    raised: bool
    value: Any
    problem: str
    advice: str
    doubt: bool = True


def probe(model: Counted, pixels: Tensor, labels: Tensor, *, batch_size: int) -> list[Flag]:
    """Question a model before it is attacked.

    Args:
        model: in `model.attacked()`.
        pixels: (N, 3, H, W), uint8 or floats in [0, 1]. The first batch is enough for all but zero_gradient.
        labels: (N,) int64.
        batch_size: pictures at a time.

    Returns:
        The flags randomised, probabilities, gradients_at_test_time and zero_gradient, raised or not.
    """
    first = as_floats(pixels[:batch_size], model.device)
    logits = [model(first) for _ in range(_PASSES)]
    change = _largest_change(logits)
    zeros = sum(
        _zero_gradients(model, as_floats(x, model.device), y.to(model.device))
        for x, y in zip(pixels.split(batch_size), labels.split(batch_size), strict=True)
    )
    return [
        Flag(
            "randomised", change > _CHANGE, change,
            "the model answers the same question differently: an attack that asks once is averaged out",
            "Turn its randomness off, or attack the mean of many answers (AutoAttack's version rand).",
        ),
        Flag(
            "probabilities", returns_probabilities(logits[0]), None,
            "the model returns probabilities instead of logits: gradients vanish where it is sure",
            "Remove its softmax and evaluate again.",
        ),
        Flag(
            "gradients_at_test_time", _calls_autograd(lambda: model(first[:1])), None,
            "the model computes gradients to answer a question: attacks do not differentiate through that",
            "Write an attack for this defence.",
        ),
        Flag(
            "zero_gradient", zeros > 0, zeros / max(1, len(labels)),
            f"at {zeros} of {len(labels)} pictures the gradient of the loss is zero: attacks by gradient start blind",
            "Look for what hides it (saturated outputs, rounding, half precision); Square does not need it.",
        ),
    ]  # fmt: skip


def unanswered(predictions: Tensor, labels: Tensor, classes: Sequence[str]) -> Flag:
    """Whether a model leaves out whole classes: its robust accuracy is then that of a few easy ones.

    Args:
        predictions: (N,) int64, for natural pictures.
        labels: (N,) int64.
        classes: names, by label.
    """
    shown, said = set(labels.tolist()), set(predictions.tolist())
    left = [classes[label] for label in sorted(shown - said)]
    names = ", ".join(left[:_NAMED]) + (", ..." if len(left) > _NAMED else "")
    return Flag(
        "unanswered_classes", bool(left), len(left),
        f"the model never answers with {len(left)} of the {len(shown)} classes that it is shown: {names}",
        "Unless each has very few pictures, it has not learned them: train longer (lorica finetune --epochs), or at a "
        "rate that does not fall (--schedule constant).", doubt=False,
    )  # fmt: skip


def _largest_change(logits: list[Tensor]) -> float:
    """Of a picture's normalised logits between passes, L2; infinite where a prediction changes."""
    if any(not torch.equal(logits[0].argmax(dim=1), other.argmax(dim=1)) for other in logits):
        return float("inf")
    unit = torch.stack([part / (part.norm(dim=1, keepdim=True) + 1e-10) for part in logits])
    return float((unit[:, None] - unit[None]).norm(dim=-1).max())


def _zero_gradients(model: Counted, pixels: Tensor, labels: Tensor) -> int:
    pixels.requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(pixels), labels, reduction="sum"), pixels)
    return int((gradient == 0).flatten(1).all(dim=1).sum())


def _calls_autograd(work: Callable[[], object]) -> bool:
    """Whether `torch.autograd` is asked for gradients meanwhile; by Python code, not inside compiled models."""
    watched = {torch.autograd.grad.__code__, torch.autograd.backward.__code__}
    seen = False

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal seen
        seen = seen or (event == "call" and frame.f_code in watched)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(before)
    return seen
