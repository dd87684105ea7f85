"""Common corruptions: 15 types at 5 severities, generated for pictures of any size, or read from the official files.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019
(1903.12261). The definitions and constants are those of the authors' generators of CIFAR-10-C and ImageNet-C. To add
a corruption, register a `Corruption` in one of the files of this package.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorica.errors import LoricaError
from lorica.robustness.corruptions.base import CORRUPTIONS, SEVERITIES, Corruption, checked_severity
from lorica.robustness.corruptions.draws import Draws
from lorica.robustness.corruptions.filters import rounded
from lorica.robustness.corruptions.official import Official, official

# isort: off
from lorica.robustness.corruptions import noise, blur, weather, digital  # noqa: F401  (in the order of the paper)
# isort: on

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "Official", "corrupt", "official"]

_SMALLEST = 8
_BLOCK, _CPU_BLOCK = 1 << 25, 1 << 19  # numbers worked on at once; a CPU is fastest with what its caches hold


@torch.no_grad()
def corrupt(
    pixels: Tensor, name: str, severity: int, *, ids: Sequence[int] | Tensor | None = None, seed: int = 0
) -> Tensor:
    """Corrupt pictures as the official files are, with other random numbers.

    A picture's corruption is a function of (seed, name, severity, its id, its pixels), whatever batch it is in. It
    starts from the picture rounded to 8 bits, as files hold it.

    Args:
        pixels: (N, 3, H, W) floats in [0, 1], H and W at least 8, on any device with float64.
        name: of a type in `CORRUPTIONS`.
        severity: 1 (weak) to 5.
        ids: (N,) whole numbers that identify the pictures, such as their places in the data set; 0 to N - 1 where
            absent, so give them for every batch but the first.
        seed: of all random numbers.

    Returns:
        The same shape, type and device, in multiples of 1/255. Official ImageNet-C pictures were saved as JPEG of
        quality 85 on top of this, and official values were rounded down, not to the nearest.

    Raises:
        LoricaError: no such type or severity, or `pixels` or `ids` are not as described.
    """
    corruption = CORRUPTIONS[name]
    severity = checked_severity(severity)
    _check(pixels)
    ids = torch.arange(len(pixels)) if ids is None else torch.as_tensor(ids)
    if ids.shape != pixels.shape[:1] or ids.is_floating_point():
        raise LoricaError(
            f"ids of shape {tuple(ids.shape)} and type {ids.dtype} for {len(pixels)} pictures",
            "Give one whole number per picture.",
        )
    if not len(pixels):
        return pixels.clone()
    constants = corruption.constants(severity, *pixels.shape[-2:])
    size = max(1, (_CPU_BLOCK if pixels.device.type == "cpu" else _BLOCK) // pixels[0].numel())
    done = []
    for block, keys in zip(pixels.split(size), ids.split(size), strict=True):
        draws = Draws(seed, name, severity, keys, pixels.device)
        done.append(rounded(corruption.apply(rounded(block.float()), draws, *constants)).to(pixels.dtype))
    return torch.cat(done)


def _check(pixels: Tensor) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < _SMALLEST:
        raise LoricaError(
            f"pictures of shape {tuple(pixels.shape)} cannot be corrupted",
            f"Give (N, 3, H, W) with H and W of at least {_SMALLEST} pixels.",
        )
    if not pixels.is_floating_point() or (len(pixels) and not (pixels.min() >= 0 and pixels.max() <= 1)):
        raise LoricaError("pixels to corrupt are not floats in [0, 1]", "Divide 8-bit levels by 255.")
