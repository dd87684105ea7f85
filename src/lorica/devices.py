"""Where things are computed, and how they get there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lorica.errors import LoricaError


def pick_device(device: str | None) -> torch.device:
    """The named device, or CUDA where there is one.

    Raises:
        LoricaError: there is no such device here.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # the latter: PyTorch without CUDA
        raise LoricaError(
            f"device {device!r} is not available", "Use --device cpu, or cuda where PyTorch sees a GPU."
        ) from error
    return chosen


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for what that is doing, unless it is the CPU, which needs the values.

    From the CPU that takes pinned memory: a copy out of any other waits for the work that is queued before it.
    """
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=device.type != "cpu")


@contextmanager
def exactly(precision: str = "fp32") -> Iterator[None]:
    """Products of float32 numbers in float32, or rounded to TF32, on GPUs that know it."""
    backends: Any = torch.backends
    products, convolutions = backends.cuda.matmul, backends.cudnn.conv
    before = products.fp32_precision, convolutions.fp32_precision
    products.fp32_precision = convolutions.fp32_precision = {"fp32": "ieee", "tf32": "tf32"}[precision]
    try:
        yield
    finally:
        products.fp32_precision, convolutions.fp32_precision = before
