"""Threat models: how far an attacker may move a picture's pixels, which lie in [0, 1]."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lorica.devices import sent
from lorica.errors import LoricaError

Norm = Literal["linf", "l2"]

# From here on a radius is one in levels of 0 to 255. In L-inf 1 spans the whole range of a pixel. In L2 papers go from
# 0.25 to 5 (0.5 on CIFAR-10, 3 on ImageNet), which in levels are 64 and more; 8 is the first whole number above theirs
# that people know as a radius: the 8 of 8/255.
_IN_LEVELS = {"linf": 1, "l2": 8}


@dataclass(frozen=True)
class Threat:
    """All pictures within `eps` of the original one.

    Attributes:
        eps: radius, in units of pixels in [0, 1]: 8/255 = 0.0314 is customary for L-inf, 0.5 for L2.
        norm: over all channels and pixels of a picture.

    Raises:
        LoricaError: a radius that is not positive and finite, or one in levels of 0 to 255.
    """

    eps: float
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        if not 0 < self.eps < float("inf"):
            raise LoricaError(f"eps = {self.eps:g}: the radius of an attack is above 0", "For example 8/255.")
        if self.eps >= _IN_LEVELS[self.norm]:
            customary = " Customary in L2 is 0.5." if self.norm == "l2" else ""
            raise LoricaError(
                f"eps = {self.eps:g}: pixels lie in [0, 1]",
                f"For {self.eps:g} levels of 255 write {self.eps:g}/255.{customary}",
            )

    def project(self, adversarial: Tensor, pixels: Tensor) -> Tensor:
        """The nearest allowed picture (N, C, H, W); for L2, first into the ball and then into the box [0, 1]."""
        if self.norm == "linf":
            return adversarial.clamp(pixels - self.eps, pixels + self.eps).clamp(0, 1)
        delta = adversarial - pixels
        return (pixels + delta * (self.eps / _length(delta).clamp_min(1e-12)).clamp_max(1)).clamp(0, 1)

    def ascend(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 in which the loss rises most: signs for L-inf, the unit vector for L2."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _length(gradient).clamp_min(1e-12)

    def random(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A start in the ball (N, C, H, W): uniform for L-inf; for L2 in a random direction, at a uniform length."""
        home = pixels.device if generator is None else generator.device  # one of the CPU draws the same everywhere
        if self.norm == "linf":
            noise = sent(torch.rand(pixels.shape, generator=generator, device=home), pixels.device)
            return (pixels + self.eps * (2 * noise - 1)).clamp(0, 1)
        noise = sent(torch.randn(pixels.shape, generator=generator, device=home), pixels.device)
        share = sent(torch.rand((len(pixels), 1, 1, 1), generator=generator, device=home), pixels.device)
        return (pixels + self.eps * share * noise / _length(noise).clamp_min(1e-12)).clamp(0, 1)

    def distance(self, adversarial: Tensor, pixels: Tensor) -> Tensor:
        """How far each picture was moved, (N,)."""
        delta = adversarial - pixels
        return delta.abs().flatten(1).amax(1) if self.norm == "linf" else _length(delta).flatten()

    def __str__(self) -> str:
        if self.norm == "linf":
            return f"L-inf {self.eps * 255:.4g}/255"
        return f"L2 {self.eps:.4g}"


def _length(delta: Tensor) -> Tensor:
    """L2 norm per picture, (N, 1, 1, 1)."""
    return delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def parse_eps(value: object) -> float:
    """A radius as people write it: 0.03, "0.03" or "8/255".

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    numerator, slash, denominator = str(value).partition("/")
    try:
        return float(numerator) / float(denominator if slash else 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is not a number; write 8/255 or 0.03") from None
