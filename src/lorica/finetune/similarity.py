"""How natural and adversarial gradients agree on the feature extractor (arXiv 2310.01818, section 3.2)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def gradient_similarity(
    first: Tensor, second: Tensor, parameters: Iterable[tuple[str, nn.Parameter]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cosine similarity of two losses' gradients. The graph is kept.

    Args:
        first: scalar loss.
        second: scalar loss.
        parameters: (name, parameter); one that a loss does not reach has the gradient 0.

    Returns:
        The cosine of all gradients as one vector, in [-1, 1], and those of the single parameters; NaN where one of
        the gradients is 0.
    """
    names, tensors = zip(*parameters, strict=True)
    gradients = [
        torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in (first, second)
    ]
    products = [
        torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()]).float()
        for a, b in zip(*gradients, strict=True)
    ]
    return _cosine(torch.stack(products).sum(dim=0)), {
        name: _cosine(product) for name, product in zip(names, products, strict=True)
    }


def _cosine(products: Tensor) -> Tensor:
    inner, first, second = products
    return (inner / (first.sqrt() * second.sqrt())).clamp(-1, 1)  # rounding may lead out
