"""The interface of a robust fine-tuning method."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorica.config import Config
from lorica.registry import Registry
from lorica.robustness.pgd import Loss, cross_entropy
from lorica.vision import Classifier


class Method(nn.Module, ABC):
    """Turns natural and adversarial pictures into a weighted sum of loss terms.

    It holds the classifier and whatever it adds to it in training, so that its state dict is the state of training.

    Args:
        options: its own settings.
        classifier: is trained in place; a method may change its batch norms.

    Raises:
        LoricaError: the method is not for this network.
    """

    class Options(Config):
        """Settings of the method; none unless a method says so."""

    summary: ClassVar[str]
    """One line for `--help` and the documentation."""
    source: ClassVar[str]
    """Paper and equation."""
    automatic: ClassVar[bool] = False
    """Whether the learning rate follows robust accuracy by default."""

    smallest: ClassVar[int] = 1
    """Pictures that each process must have of a batch."""
    takes_unlabelled: ClassVar[bool] = False
    """Whether it learns from pictures without labels, too: those have the label -1."""

    def __init__(self, options: Any, classifier: Classifier) -> None:
        super().__init__()
        self.options = options
        self.classifier = classifier
        self.weights: dict[str, float] = {}
        self.compared: tuple[str, str] | None = None  # terms whose gradients on the features are watched in training

    @abstractmethod
    def forward(self, natural: Tensor, adversarial: Tensor) -> tuple[Tensor | None, Tensor]:
        """Logits (N, classes) of natural pictures, where the method looks at them, and of their adversarial versions.

        Args:
            natural: pictures (N, 3, H, W) in [0, 1].
            adversarial: the same, attacked; where `needs_attack` is false, the natural ones themselves.
        """

    @abstractmethod
    def terms(self, clean: Any, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss terms, means over the batch; training minimises the sum of `weights` times these.

        Args:
            clean: what `forward` gave; likewise `attacked`.
            attacked: (N, classes).
            labels: (N,) int64.
        """

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        """What training minimises."""
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def route(self) -> AbstractContextManager[None]:
        """Context in which the classifier is the model that will be used: attacked, validated, exported."""
        return nullcontext()

    def attacker(self, natural: Tensor, labels: Tensor) -> Loss:
        """What the attack in training raises; inside `route` and eval mode. Cross-entropy unless a method says so."""
        return cross_entropy(labels)

    @property
    def needs_attack(self) -> bool:
        """Whether training looks at adversarial pictures; where it does not, none are crafted."""
        return True

    needs_natural_accuracy: ClassVar[bool] = False
    """Whether `adjust` wants to know the accuracy of `natural_logits` on the training set before each epoch."""

    def natural_logits(self, pixels: Tensor) -> Tensor:
        """Logits of the part that learns from natural pictures, (N, classes)."""
        with self.route():
            return self.classifier(pixels)

    def adjust(self, natural_accuracy: float) -> None:
        """Set `weights` for an epoch; only where `needs_natural_accuracy`."""

    def inference(self) -> Classifier:
        """A copy of the classifier as it will be used, without what only training needs."""
        copied = copy.deepcopy(self.classifier).eval()
        copied.natural_norms = None  # those of the encoder that training began with
        return copied

    def features(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of the feature extractor."""
        return self.classifier.feature_parameters()


def kl(natural: Tensor, adversarial: Tensor) -> Tensor:
    """KL(natural || adversarial), mean over pictures, of logits (N, classes); neither side is detached."""
    return F.kl_div(adversarial.log_softmax(dim=1), natural.log_softmax(dim=1), reduction="batchmean", log_target=True)


METHODS: Registry[Method] = Registry("method")
