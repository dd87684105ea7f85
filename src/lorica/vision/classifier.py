"""One class around a timm model: pixels in [0, 1] in, logits out, so that attacks and people see the same pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorica.errors import LoricaError


@dataclass(frozen=True)
class Architecture:
    """What is needed to build the backbone again.

    Attributes:
        name: of the timm architecture.
        arguments: of `timm.create_model`, without num_classes.
        size: (H, W) of its pictures.
    """

    name: str
    arguments: dict[str, Any]
    size: tuple[int, int]


class Classifier(nn.Module):
    """A backbone with its input normalisation inside.

    A feature extractor (theta_1: all parameters but the head's) and a head (theta_2), in arXiv 2310.01818's words.

    Args:
        backbone: a timm model.
        mean: of each channel of pixels in [0, 1].
        std: likewise.
        architecture: how the backbone was made.
        classes: names, in the order of the logits; none of an encoder, which has no head and returns features.

    Attributes:
        natural_norms: of a network with batch norms for natural pictures and others for adversarial ones, of which
            the backbone holds the latter: the former's tensors on the CPU, by their names in the backbone's state
            dict. They are as they were loaded: whoever trains the backbone sets them anew or to None.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        architecture: Architecture,
        classes: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.architecture = architecture
        self.classes = classes
        self.natural_norms: dict[str, Tensor] | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, classes), or features (N, D) where there is no head, of pixels (N, 3, H, W) in [0, 1]."""
        return self.backbone((pixels - self.mean) / self.std)

    @property
    def head(self) -> nn.Module:
        """The classifier on top of the features; a list of them for networks with several."""
        found = head_modules(self.backbone)
        return found[0] if len(found) == 1 else nn.ModuleList(found)

    def take_classes(self, classes: Sequence[str]) -> bool:
        """Have a head for these classes; returns whether it had to be made anew, as the present one is of others."""
        if tuple(classes) == self.classes:
            return False
        self.backbone.reset_classifier(len(classes))  # type: ignore[operator]
        self.classes = tuple(classes)
        return True

    def head_names(self) -> set[str]:
        """Names of the head's parameters among `named_parameters`."""
        head = {id(parameter) for parameter in self.head.parameters()}
        return {name for name, parameter in self.named_parameters() if id(parameter) in head}

    def feature_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of the feature extractor."""
        head = self.head_names()
        return ((name, parameter) for name, parameter in self.named_parameters() if name not in head)


def head_modules(backbone: nn.Module) -> list[nn.Module]:
    """The classifiers of a timm model: one, or two of a distilled transformer."""
    found = backbone.get_classifier()  # type: ignore[operator]
    return [found] if isinstance(found, nn.Module) else list(found)


@torch.no_grad()
def require_logits(model: nn.Module, pixels: Tensor) -> None:
    """Refuse a model that ends in a softmax, on which gradients vanish and attacks look weaker than they are.

    Args:
        model: in eval mode.
        pixels: (N, 3, H, W) in [0, 1], a few pictures.

    Raises:
        LoricaError: its outputs are probabilities, or not finite, or not one row per picture.
    """
    outputs = model(pixels)
    if outputs.dim() != 2 or len(outputs) != len(pixels):
        raise LoricaError(f"the model returns {tuple(outputs.shape)} for {len(pixels)} pictures", "Logits are needed.")
    if not outputs.isfinite().all():
        raise LoricaError("the model's logits are not finite", "Are its weights damaged?")
    if returns_probabilities(outputs):
        raise LoricaError(
            "the model returns probabilities instead of logits", "Remove its softmax: attacks need the logits."
        )


def returns_probabilities(outputs: Tensor) -> bool:
    """Whether all rows (N, classes) look like a distribution: none negative, each summing to 1 within 1e-4."""
    return bool((outputs >= 0).all() and ((outputs.sum(dim=1) - 1).abs() < 1e-4).all())
