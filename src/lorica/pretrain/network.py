"""The network of contrastive pre-training: an encoder and a projector, with batch norms for natural and adversarial
pictures."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorica.vision import Classifier
from lorica.vision.batch_norm import load_route, merge_routes, on_route, on_streams, split_routes

NATURAL, ADVERSARIAL = "natural", "adversarial"
"""Routes of the batch norms; the authors call them "normal" and "pgd"."""


class ContrastiveNetwork(nn.Module):
    """g(f(x)): a backbone without a head, and a projector of linear layers and batch norms on top.

    All batch norms, those of the projector too, have a natural and an adversarial route (Jiang et al., NeurIPS 2020,
    arXiv 2010.13337, "dual stream").

    Args:
        classifier: the backbone with its normalisation; loses its head. Is changed in place.
        layers: of the projector, 2 or 3 (authors: 3), each as wide as the features.
    """

    def __init__(self, classifier: Classifier, layers: int = 3) -> None:
        super().__init__()
        classifier.take_classes(())
        self.encoder = classifier
        self.projector = projector(int(classifier.backbone.num_features), layers)  # type: ignore[arg-type]
        split_routes(self, (NATURAL, ADVERSARIAL))
        if classifier.natural_norms is not None:  # of an encoder that learned from both before
            load_route(classifier.backbone, NATURAL, classifier.natural_norms)
            classifier.natural_norms = None

    def forward(self, pixels: Tensor) -> Tensor:
        """z (N, D) of pixels (N, 3, H, W) in [0, 1], along the routes in use."""
        return self.projector(self.encoder(pixels))

    def through(self, parts: Sequence[tuple[str, Tensor]], *, at_once: bool | None = None) -> list[Tensor]:
        """z of several batches, each normalised by itself along its route, in order.

        Args:
            parts: (route, pixels (N, 3, H, W)).
            at_once: in one pass, or in one for each: the same outputs and running statistics. By default at once, but
                not on a CPU, where copying costs more (12 % of the step) than calling.
        """
        if at_once is None:
            at_once = parts[0][1].device.type != "cpu"
        if at_once:
            with on_streams(self, [(route, len(pixels)) for route, pixels in parts]):
                z = self(torch.cat([pixels for _, pixels in parts]))
            return list(z.split([len(pixels) for _, pixels in parts]))
        found = []
        for route, pixels in parts:
            with on_route(self, route):
                found.append(self(pixels))
        return found

    def features(self, pixels: Tensor, route: str) -> Tensor:
        """f(x) (N, D), without the projector."""
        with on_route(self.encoder, route):
            return self.encoder(pixels)

    def delivered(self, route: str) -> Classifier:
        """A copy of the encoder that keeps the batch norms of one route."""
        copied = copy.deepcopy(self.encoder).eval()
        merge_routes(copied, route)
        return copied


def projector(width: int, layers: int) -> nn.Sequential:
    """Linear layers of `width`, each with a batch norm behind it and all but the last with a ReLU behind that.

    Only the first has a bias, as in the authors' code; behind it the others' would have no effect at all.
    """
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts += [nn.Linear(width, width, bias=layer == 0), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts[:-1])
