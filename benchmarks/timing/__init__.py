"""Passes and arithmetic counted on the networks themselves, and paired times, for benchmarks of training steps."""

import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lorica.vision.cifar_resnet import CifarResNet


class Operations(TorchDispatchMode):
    """Counts floating-point operations of convolutions and matrix products, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            amount = formula(*args, **(kwargs or {}), out_val=result)
            if "backward" in str(func):
                self.backward += amount
            else:
                self.forward += amount
        return result


def count(step: Callable[..., object], *batch: Tensor) -> dict[str, float]:
    """Pictures per picture of the batch that pass through the network in a step, and 10^9 operations per picture.

    Args:
        step: takes the batch.
        batch: tensors of N rows, the first of them pictures.
    """
    passes: Counter[str] = Counter()

    def forward(module: nn.Module, inputs: object, output: Tensor) -> None:
        if isinstance(module, CifarResNet):
            passes["forward"] += len(output)
            if output.requires_grad:
                output.register_hook(lambda gradient: passes.update(backward=len(gradient)))

    step(*batch)  # the first one may look for what later ones know
    handle = nn.modules.module.register_module_forward_hook(forward)
    try:
        with Operations() as done:
            step(*batch)
    finally:
        handle.remove()
    return {
        "forward_passes": passes["forward"] / len(batch[0]),
        "backward_passes": passes["backward"] / len(batch[0]),
        "gflop_forward": round(done.forward / len(batch[0]) / 1e9, 4),
        "gflop_backward": round(done.backward / len(batch[0]) / 1e9, 4),
    }


class Clock:
    """Seconds that something takes, the device's work included."""

    def __init__(self, device: str, *, processor_time: bool) -> None:
        self.now = time.process_time if processor_time else time.perf_counter
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def __call__(self, work: Callable[[], object]) -> tuple[object, float]:
        self.wait()
        start = self.now()
        result = work()
        self.wait()
        return result, self.now() - start


def matmul_rate(device: str, dtype: torch.dtype, clock: Clock, rounds: int = 5) -> float:
    """10^9 operations per second of a large square product, the fastest of some rounds: what the device can do."""
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    seconds = [clock(lambda: a @ b)[1] for _ in range(rounds + 1)][1:]  # the first one warms up
    return 2 * side**3 / 1e9 / min(seconds)


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median and quartiles over rounds."""
    found = sorted(a / b for a, b in zip(above, below, strict=True))
    low, high = statistics.quantiles(found, n=4, method="inclusive")[::2] if len(found) > 1 else found * 2
    return {"median": round(statistics.median(found), 3), "low": round(low, 3), "high": round(high, 3)}
