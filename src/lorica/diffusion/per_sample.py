"""Each sample's own gradient of the LoRA weights, from one backward pass over a batch."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lorica.diffusion.lora import ADAPTER, adapted_layers


class PerSampleGradients:
    """Records per-sample gradients of the LoRA on a network while it is entered as a context.

    A linear map y = W x has dL/dW = sum over positions of (dL/dy) x^T, and what belongs to sample n is the part of
    the sum over n's positions (Goodfellow, arXiv 1510.01799). The batch must be the first dimension of what each
    LoRA layer sees, and samples must not mix elsewhere, as in a UNet with group norm they do not.

    Args:
        network: with linear layers or 1x1 convolutions that carry the adapter.

    Raises:
        ValueError: another kind of layer carries it.
    """

    def __init__(self, network: nn.Module) -> None:
        layers = adapted_layers(network).values()
        self.modules: list[Any] = [side[ADAPTER] for layer in layers for side in (layer.lora_A, layer.lora_B)]
        self.parameters: list[nn.Parameter] = [module.weight for module in self.modules]
        for module in self.modules:
            pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == module.stride == (1, 1)
            if not (isinstance(module, nn.Linear) or pointwise) or module.bias is not None:
                raise ValueError(f"no per-sample gradients for {module}")
        self._found: dict[nn.Module, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "PerSampleGradients":
        self._found.clear()
        self._handles = [module.register_forward_hook(self._passed) for module in self.modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def gradients(self) -> list[Tensor]:
        """One tensor (N, *weight.shape) float32 per parameter, of what was passed backward since entering."""
        found = [self._found[module] for module in self.modules]
        self._found.clear()
        return found

    def _passed(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            x = inputs[0].detach()
            output.register_hook(lambda gradient: self._add(module, x, gradient))

    def _add(self, module: Any, x: Tensor, gradient: Tensor) -> None:
        own = torch.bmm(_positions(module, gradient).transpose(1, 2), _positions(module, x))
        own = own.view(len(x), *module.weight.shape)
        self._found[module] = self._found[module] + own if module in self._found else own


def _positions(module: nn.Module, x: Tensor) -> Tensor:
    """(N, positions, features) float32, whatever lies between batch and features."""
    if isinstance(module, nn.Conv2d):
        return x.detach().float().flatten(2).transpose(1, 2)
    return x.detach().float().reshape(len(x), -1, x.shape[-1])


def clipped_sum(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Sum over samples of gradients scaled down to a norm of at most `max_norm` over all parameters together.

    Args:
        gradients: (N, *shape) per parameter.
        max_norm: > 0.

    Returns:
        (*shape) per parameter.

    Example:
        >>> clipped_sum([torch.tensor([[3.0, 4.0], [0.3, 0.4]])], max_norm=1.0)
        [tensor([0.9000, 1.2000])]
    """
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    scales = (max_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)
    return [torch.tensordot(scales, g, dims=1) for g in gradients]
