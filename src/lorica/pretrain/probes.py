"""Probes: how much labelled pictures tell of an encoder while it is trained, on natural pictures and under attack.

Two classifiers are put on top of the frozen encoder, of which neither has a setting that would have to be tuned:
weighted k nearest neighbours and logistic regression. Both are attacked through the encoder. They are for watching a
training: PGD of few steps leaves more pictures standing than AutoAttack would.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lorica.data.batches import ordered
from lorica.data.labelled import LabelledSet
from lorica.errors import LoricaError
from lorica.robustness.accuracy import rate
from lorica.robustness.pgd import cross_entropy, pgd
from lorica.robustness.threat import Threat
from lorica.seeds import stable_seed

Features = Callable[[Tensor], Tensor]
"""Pixels (N, 3, H, W) in [0, 1] to features (N, D)."""

_NO_VOTE = 1e-20  # of the largest vote; finite logits for classes without any
_UNKNOWN = -1e9  # logit of a class that the linear probe has seen no picture of


class Classifying(Protocol):
    """A classifier of features (N, D), as it is used and as it is attacked: both return logits (N, classes)."""

    def __call__(self, features: Tensor) -> Tensor: ...

    def attacked(self, features: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class NearestNeighbours:
    """Weighted votes of the k nearest pictures (Wu et al., CVPR 2018, arXiv 1805.01978, section 3.4).

    Args:
        bank: (M, D) features of known pictures.
        labels: (M,) int64, theirs.
        classes: how many there are, also without pictures in the bank.
        neighbours: k; at most M vote.
        temperature: tau; a picture of cosine similarity s votes with exp(s / tau).
    """

    bank: Tensor
    labels: Tensor
    classes: int
    neighbours: int = 20
    temperature: float = 0.1

    def __call__(self, features: Tensor) -> Tensor:
        """Log of the votes per class (N, classes); of a class without votes, 46 less than the largest single vote."""
        return self._votes(features, min(self.neighbours, len(self.bank)))

    def attacked(self, features: Tensor) -> Tensor:
        """The same with votes of the whole bank, for the attacker.

        Where the k nearest are of one class, which is common, the gradient of their votes' cross-entropy is exactly
        zero: an attack on them would find nothing, and the probe would look robust.
        """
        return self._votes(features, len(self.bank))

    def _votes(self, features: Tensor, count: int) -> Tensor:
        similarity = F.normalize(features, dim=1) @ F.normalize(self.bank, dim=1).T
        nearest, places = similarity.topk(count, dim=1)
        largest = nearest[:, :1].detach()
        votes = ((nearest - largest) / self.temperature).exp()
        by_class = votes.new_zeros(len(features), self.classes).scatter_add(1, self.labels[places], votes)
        return by_class.clamp_min(_NO_VOTE).log() + largest / self.temperature


@dataclass(frozen=True, eq=False)
class Linear:
    """Logits of standardised features: ((features - mean) / std) weight^T + bias.

    Args:
        weight: (classes, D).
        bias: (classes,).
        mean: (D,).
        std: (D,), above 0.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return (features - self.mean) / self.std @ self.weight.T + self.bias

    attacked = __call__


def fit_linear(features: Tensor, labels: Tensor, classes: int) -> Linear:
    """Logistic regression: the summed cross-entropy and a penalty of |W|^2 / 2, minimised; a pure function.

    Of two classes the weights of the first are zero, so that the penalty is on those of the second.

    Args:
        features: (M, D).
        labels: (M,) int64, of two classes at least.
        classes: how many there are; those without a picture are never predicted.
    """
    known, rows = features.double().cpu().numpy(), labels.cpu().numpy()
    mean, std = known.mean(0), known.std(0)
    std[std < 1e-12] = 1.0  # a dead feature
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a thousand steps are near enough
        fitted = LogisticRegression(max_iter=1000).fit((known - mean) / std, rows)
    weight, bias = np.zeros((classes, known.shape[1])), np.full(classes, _UNKNOWN)
    seen = fitted.classes_
    bias[seen] = 0.0
    taught = seen if len(seen) > 2 else seen[1:]  # of two classes there is only the second's logit over the first's
    weight[taught], bias[taught] = fitted.coef_, fitted.intercept_
    return Linear(*(torch.from_numpy(part).to(features) for part in (weight, bias, mean, std)))


class Probe:
    """Accuracies of two classifiers on top of an encoder.

    Args:
        train: pictures that they learn from; natural, not augmented.
        test: pictures that they are tried on, of the same classes.
        threat: of the attack.
        steps: of PGD on cross-entropy from a random start; 0 leaves the attacks out.
        step_size: of PGD, in the units of `threat.eps`; a fourth of it by default.
        neighbours: k of `NearestNeighbours`.
        temperature: likewise.
        batch_size: pictures at a time.
        seed: of the random starts, which are the same in every measurement.
        device: where the encoder is.

    Raises:
        LoricaError: no pictures, pictures of one class only to learn from, classes that differ, or a number that is
            out of range.
    """

    def __init__(
        self,
        train: LabelledSet,
        test: LabelledSet,
        *,
        threat: Threat,
        steps: int = 10,
        step_size: float | None = None,
        neighbours: int = 20,
        temperature: float = 0.1,
        batch_size: int = 256,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(test) == 0 or len(train.labels.unique()) < 2:
            raise LoricaError(
                f"a probe of {len(train)} pictures of {len(train.labels.unique())} class(es) to learn from and "
                f"{len(test)} to try on says nothing",
                "Give labelled pictures of two classes or more, some of each to learn from.",
            )
        if train.classes != test.classes:
            raise LoricaError(
                "the probe's pictures to learn from and to try on have other classes", "Take one source."
            )
        size = threat.eps / 4 if step_size is None else step_size
        for name, value, sound in (
            ("steps", steps, steps >= 0),
            ("step_size", size, 0 < size < float("inf")),
            ("neighbours", neighbours, neighbours >= 1),
            ("temperature", temperature, 0 < temperature < float("inf")),
            ("batch_size", batch_size, batch_size >= 1),
        ):
            if not sound:
                raise LoricaError(f"{name} of the probe is {value}", "It has to be positive (0 steps: no attack).")
        self.train, self.test, self.threat = train, test, threat
        self._steps, self._step_size, self._batch, self._seed = steps, size, batch_size, seed
        self._neighbours, self._temperature, self._device = neighbours, temperature, torch.device(device)

    def measure(self, features: Features) -> dict[str, float]:
        """Accuracies in [0, 1] on the pictures to try on.

        Args:
            features: the encoder, in eval mode and frozen, differentiable with respect to pixels.

        Returns:
            knn_natural, linear_natural and, unless `steps` is 0, knn_robust and linear_robust. A picture that is
            wrong already counts as broken.

        Raises:
            LoricaError: the features are not finite.
        """
        return {name: float(right.double().mean()) for name, right in self.right(features).items()}

    def measure_rates(self, features: Features, level: float = 0.95) -> dict[str, dict[str, Any]]:
        """Likewise with Clopper-Pearson intervals of this level, as `lorica.robustness.accuracy.rate` gives them."""
        return {name: rate(right, level) for name, right in self.right(features).items()}

    def right(self, features: Features) -> dict[str, Tensor]:
        """By the same names, which pictures are recognised: (N,) bool on the CPU, in the order of `test`."""
        found: dict[str, list[Tensor]] = {}
        classifiers = self._taught(features)
        for number, (pixels, labels) in enumerate(ordered(self.test, self._batch, self._device)):
            seen = _seen(features, pixels)
            start = self.threat.random(pixels, torch.Generator().manual_seed(stable_seed(self._seed, "probe", number)))
            for name, classifier in classifiers.items():
                right = classifier(seen).argmax(dim=1) == labels
                found.setdefault(f"{name}_natural", []).append(right.cpu())
                if self._steps and right.any():
                    still = self._withstands(features, classifier, pixels[right], labels[right], start[right])
                    right = right.masked_scatter(right, still)
                if self._steps:
                    found.setdefault(f"{name}_robust", []).append(right.cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _taught(self, features: Features) -> dict[str, Classifying]:
        batches = [(_seen(features, pixels), y) for pixels, y in ordered(self.train, self._batch, self._device)]
        bank, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        classes = len(self.train.classes)
        return {
            "knn": NearestNeighbours(bank, labels, classes, self._neighbours, self._temperature),
            "linear": fit_linear(bank, labels, classes),
        }

    def _withstands(
        self, features: Features, classifier: Classifying, pixels: Tensor, labels: Tensor, start: Tensor
    ) -> Tensor:
        """Which pictures are still recognised after an attack, (N,) bool."""
        adversarial = pgd(
            lambda x: classifier.attacked(features(x).float()), pixels, cross_entropy(labels), self.threat,
            steps=self._steps, step_size=self._step_size, start=start,
        )  # fmt: skip
        return classifier(_seen(features, adversarial)).argmax(dim=1) == labels


@torch.no_grad()
def _seen(features: Features, pixels: Tensor) -> Tensor:
    found = features(pixels).float()
    if not found.isfinite().all():
        raise LoricaError(
            "the encoder's features are not finite", "Has its training diverged? Lower the learning rate."
        )
    return found
