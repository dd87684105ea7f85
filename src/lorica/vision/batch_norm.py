"""Batch normalisation with several routes: one set of statistics and scales per kind of input, weights shared.

Natural and adversarial pictures have different statistics (Xie et al., CVPR 2020, arXiv 1911.09665), and TWINS (Liu et
al., CVPR 2023, arXiv 2303.11135) keeps one route at the statistics of pre-training. Routes are modules in the place of
the network's own norms, switched by name: no argument has to travel through the network, and `merge` leaves a plain
one for compilers and exporters.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lorica.vision.weights import require_fit

Streams = Sequence[tuple[str, int]]
"""(route, number of rows) of the parts of a batch, in order."""


class RoutedBatchNorm(nn.Module):
    """Copies of a batch norm, of which one is in use.

    Args:
        norm: any batch norm; each route begins as a copy.
        routes: names; the first is in use.
        frozen: routes that always normalise with the statistics that they began with. Their scales still train.
    """

    def __init__(self, norm: nn.Module, routes: Sequence[str], frozen: Sequence[str] = ()) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({route: copy.deepcopy(norm) for route in routes})
        self.route = routes[0]
        self.frozen = tuple(frozen)
        self.streams: Streams | None = None
        self.together = False

    def train(self, mode: bool = True) -> "RoutedBatchNorm":
        super().train(mode)
        for route in self.frozen:
            self.norms[route].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.streams is None:
            return self._normalised(self.route, x)
        parts = x.split([rows for _, rows in self.streams])
        routed = zip(self.streams, parts, strict=True)
        return torch.cat([self._normalised(route, part) for (route, _), part in routed])

    def _normalised(self, route: str, x: Tensor) -> Tensor:
        norm = self.norms[route]
        if self.together and norm.training and isinstance(norm, _BatchNorm) and torch.distributed.is_initialized():
            return _normalised_together(norm, x)
        return norm(x)


def split_routes(model: nn.Module, routes: Sequence[str], frozen: Sequence[str] = ()) -> int:
    """Give every batch norm of a model these routes, in place; returns how many there are."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for name, module in found:
        routed = RoutedBatchNorm(module, routes, frozen).train(module.training)
        _replace(model, name, routed)
    return len(found)


def merge_routes(model: nn.Module, keep: str) -> None:
    """Put the batch norms of one route back in the place of all, in place."""
    for name, module in list(_routed(model)):
        _replace(model, name, module.norms[keep])


def norm_tensors(model: nn.Module, route: str | None = None) -> dict[str, Tensor]:
    """The tensors of all batch norms, by their names in the state dict of the network without routes.

    Args:
        model: the network itself (of a `Classifier` its backbone), so that names are those of its weights file.
        route: whose; None for a model without routes.
    """
    norms: dict[str, nn.Module]
    if route is None:
        norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
    else:
        norms = {name: module.norms[route] for name, module in _routed(model)}
    return {f"{name}.{key}": value for name, norm in norms.items() for key, value in norm.state_dict().items()}


def load_route(model: nn.Module, route: str, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into the batch norms of one route, all of them or none.

    Args:
        model: with routes; of a `Classifier` its backbone.
        route: whose norms are set.
        tensors: as `norm_tensors` returns them, or `Classifier.natural_norms`; counts of batches may be missing.

    Raises:
        LoricaError: names or shapes are not those of this network's batch norms, or numbers are not finite.
    """
    require_fit(tensors, norm_tensors(model, route), what=f"of the {route} batch norms")
    for name, module in _routed(model):
        norm = module.norms[route]
        own = norm.state_dict()
        norm.load_state_dict({key: tensors.get(f"{name}.{key}", value) for key, value in own.items()})


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


@contextmanager
def on_streams(model: nn.Module, streams: Streams) -> Iterator[None]:
    """Send the parts of each batch along routes of their own inside the block, as if each had a pass for itself.

    Args:
        model: with routes.
        streams: of which the batch consists, in order; statistics are updated in that order.
    """
    found = [module for _, module in _routed(model)]
    for module in found:
        module.streams = tuple(streams)
    try:
        yield
    finally:
        for module in found:
            module.streams = None


def normalise_together(model: nn.Module) -> None:
    """From now on take the statistics of a training batch over all processes, in the routed norms of a model."""
    for _, module in _routed(model):
        module.together = True


def _normalised_together(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What `norm` gives for its rows of a batch that is shared by processes. torch's own SyncBatchNorm needs a GPU."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    given, x = x.dtype, x if x.dtype == torch.float64 else x.float()  # sums in half precision are no statistics
    axes, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
    count = x.numel() // x.shape[1] * torch.distributed.get_world_size()  # all processes have as many rows
    mean = _Summed.apply(x.sum(axes)) / count
    centred = x - mean.view(shape)
    variance = _Summed.apply(centred.square().sum(axes)) / count
    with torch.no_grad():
        share = norm.momentum if norm.momentum is not None else 1 / (float(norm.num_batches_tracked) + 1)
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean.to(norm.running_mean), share)
        norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var), share)
    x = centred * (variance + norm.eps).rsqrt().view(shape)
    x = (x if norm.weight is None else x * norm.weight.view(shape) + norm.bias.view(shape)).to(given)
    activated: Any = norm
    return activated.act(activated.drop(x)) if hasattr(norm, "act") else x  # timm's BatchNormAct2d


class _Summed(torch.autograd.Function):
    """The sum over all processes. So is its gradient: the losses of all depend on it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        whole = gradient.clone()
        torch.distributed.all_reduce(whole)
        return whole


def _routed(model: nn.Module) -> Iterator[tuple[str, RoutedBatchNorm]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, RoutedBatchNorm))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
