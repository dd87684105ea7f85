"""Batch norms folded into convolutions for attacks: the same function with fewer passes over memory."""

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node


class Folded(nn.Module):
    """A copy of a model in eval mode, in which convolutions have taken in the batch norms behind them.

    In eval mode a batch norm is an affine map of each channel, so that norm(conv(x)) is one convolution (Jacob et al.,
    CVPR 2018, arXiv 1712.05877, section 3.2). An attack calls it many times between two changes of the weights: call
    `refresh` after each change. All that is not folded is the model's own, not a copy; the model is not changed. Batch
    norms that follow no convolution stay (those in front of one, as in wide ResNets), and a model without any is
    computed as it is.

    Args:
        model: any network. Of batch norms with routes, the route in use now is the copy's for good.
        pixels: an input for it (N, ...), by which the pairs are found; one is enough.

    Attributes:
        pairs: what was folded.
    """

    def __init__(self, model: nn.Module, pixels: Tensor) -> None:
        super().__init__()
        own = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        self.model = copy.deepcopy(model, own).eval()  # what `own` lists is taken over instead of copied
        self.pairs = [_Pair(conv, conv.weight, conv.bias, norm) for conv, norm in _found(self.model, pixels)]
        for conv, weight, _, norm in self.pairs:
            conv.weight = nn.Parameter(torch.empty_like(weight), requires_grad=False)
            conv.bias = nn.Parameter(torch.empty_like(weight[:, 0, 0, 0]), requires_grad=False)
            for name, module in list(self.model.named_modules(remove_duplicate=False)):
                if module is norm:
                    self.model.set_submodule(name, _rest(norm))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's present weights and statistics."""
        for conv, weight, bias, norm in self.pairs:
            assert norm.running_mean is not None and norm.running_var is not None and conv.bias is not None
            scale = (norm.running_var + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight
            mean = norm.running_mean if bias is None else norm.running_mean - bias
            conv.weight.copy_(weight * scale.view(-1, 1, 1, 1))
            conv.bias.copy_(-mean * scale if norm.bias is None else norm.bias - mean * scale)

    def forward(self, *inputs: Any) -> Any:
        """What the model returns in eval mode."""
        return self.model(*inputs)


class Quick(nn.Module):
    """A model in eval mode whose weights do not change, for attacks alone: `Folded`, and on a CPU channels last.

    Args:
        model: in eval mode, with frozen weights.
        pixels: (N, 3, H, W) in [0, 1], on the model's device.
    """

    def __init__(self, model: nn.Module, pixels: Tensor) -> None:
        super().__init__()
        self.folded, self._last = Folded(model, pixels[:1]), pixels.device.type == "cpu"
        if self._last:
            self.folded.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, as the model's but for rounding."""
        logits: Tensor = self.folded(pixels.contiguous(memory_format=torch.channels_last) if self._last else pixels)
        return logits


def quick(model: nn.Module, pixels: Tensor) -> nn.Module:
    """What an attack may go through in a model's place.

    Args:
        model: in eval mode, with frozen weights.
        pixels: (N, 3, H, W) in [0, 1], on the model's device; on these the two are compared.

    Returns:
        `Quick(model)`; the model itself if their logits differ by more than rounding, a thousandth of the largest.
    """
    copied = Quick(model, pixels)
    with torch.no_grad():
        expected, found = model(pixels), copied(pixels)
    return copied if (found - expected).abs().max() <= 1e-3 * expected.abs().max() else model


class _Pair(NamedTuple):
    conv: nn.Conv2d
    """Of the copy."""
    weight: Tensor
    """The model's own; likewise those of bias and norm."""
    bias: Tensor | None
    norm: nn.BatchNorm2d


def _foldable(module: nn.Module) -> bool:
    """Of these types alone it is known what they compute; timm's is told by its name, so that timm is not needed."""
    known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return known and getattr(module, "running_mean", None) is not None


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """What else a module does besides normalising."""
    return nn.Identity() if type(norm) is nn.BatchNorm2d else nn.Sequential(norm.drop, norm.act)  # type: ignore[arg-type]


def _found(model: nn.Module, pixels: Tensor) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions of which a batch norm is the only user, by one forward pass.

    Names and order of modules do not tell who uses what; the graph that autograd records does.
    """
    made: dict[Node | None, nn.Conv2d] = {}
    taken: list[tuple[Node | None, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def gave(module: Any, inputs: Any, output: Tensor) -> None:
        made[output.grad_fn] = module
        calls[module] += 1

    def takes(module: Any, inputs: tuple[Tensor, ...]) -> None:
        taken.append((inputs[0].grad_fn, module))
        calls[module] += 1

    handles = [m.register_forward_hook(gave) for m in model.modules() if type(m) is nn.Conv2d]
    handles += [m.register_forward_pre_hook(takes) for m in model.modules() if _foldable(m)]
    try:
        with torch.enable_grad():
            output: Tensor = model(pixels.detach().clone().requires_grad_(True))
    finally:
        for handle in handles:
            handle.remove()
    users = _users(output.grad_fn)
    for node, norm in taken:
        conv = made.get(node)
        if node is not None and conv is not None and users[node] == calls[conv] == calls[norm] == 1:
            yield conv, norm


def _users(last: Node | None) -> Counter[Node]:
    """How often each result of a graph is used in it."""
    users: Counter[Node] = Counter()
    pending = [] if last is None else [last]
    while pending:
        for node, _ in pending.pop().next_functions:
            if node is not None:
                if node not in users:
                    pending.append(node)
                users[node] += 1
    return users
