"""Batch normalisation with several routes: one set of statistics and scales per kind of input, weights shared.

Natural and adversarial pictures have different statistics (Xie et al., CVPR 2020, arXiv 1911.09665), and TWINS (Liu et
al., CVPR 2023, arXiv 2303.11135) keeps one route at the statistics of pre-training. Routes are modules in the place of
the network's own norms, switched by name: no argument has to travel through the network, and `merge` leaves a plain
one for compilers and exporters.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


class RoutedBatchNorm(nn.Module):
    """Copies of a batch norm, of which one is in use.

    Args:
        norm: any subclass of `nn.BatchNorm2d`; each route begins as a copy.
        routes: names; the first is in use.
        frozen: routes that always normalise with the statistics that they began with. Their scales still train.
    """

    def __init__(self, norm: nn.Module, routes: Sequence[str], frozen: Sequence[str] = ()) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({route: copy.deepcopy(norm) for route in routes})
        self.route = routes[0]
        self.frozen = tuple(frozen)

    def train(self, mode: bool = True) -> "RoutedBatchNorm":
        super().train(mode)
        for route in self.frozen:
            self.norms[route].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.route](x)


def split_routes(model: nn.Module, routes: Sequence[str], frozen: Sequence[str] = ()) -> int:
    """Give every batch norm of a model these routes, in place; returns how many there are."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name, module in found:
        routed = RoutedBatchNorm(module, routes, frozen).train(module.training)
        _replace(model, name, routed)
    return len(found)


def merge_routes(model: nn.Module, keep: str) -> None:
    """Put the batch norms of one route back in the place of all, in place."""
    for name, module in list(_routed(model)):
        _replace(model, name, module.norms[keep])


@contextmanager
def on_route(model: nn.Module, route: str) -> Iterator[None]:
    """Use a route inside the block; a model without routes is left alone."""
    before = [(module, module.route) for _, module in _routed(model)]
    for module, _ in before:
        module.route = route
    try:
        yield
    finally:
        for module, earlier in before:
            module.route = earlier


def _routed(model: nn.Module) -> Iterator[tuple[str, RoutedBatchNorm]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, RoutedBatchNorm))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
