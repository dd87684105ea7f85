"""The interface of a corruption: two published sets of constants and what they do to a batch of pictures."""

from abc import ABC
from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor

from lorica.errors import LoricaError
from lorica.registry import Registry

SEVERITIES = (1, 2, 3, 4, 5)
Category = Literal["noise", "blur", "weather", "digital"]
Fidelity = Literal["exact", "approximate", "own"]

_SMALL, _LARGE = 64, 128  # shorter sides, in pixels, up to and from which a published set is used as it is


class Corruption(ABC):
    """One type of corruption. The class docstring holds the formula, on pixels x in [0, 1].

    `apply` gets 8-bit pictures as floats (N, 3, H, W), the random numbers of the batch, and the constants of one
    severity; it returns floats of the same shape, which the caller clamps and rounds to 8 bits.
    """

    summary: ClassVar[str]
    """One line for the documentation."""
    category: ClassVar[Category]
    """The group in which the paper lists it."""
    fidelity: ClassVar[Fidelity] = "exact"
    """How it relates to the published generators, at their sizes: "exact" is the same definition with other random
    numbers, up to rounding; "approximate" differs in a detail that the class docstring names; "own" only resembles
    it."""
    cifar: ClassVar[tuple[tuple[float, ...], ...]]
    """The constants of CIFAR-10-C, made for 32 x 32 pixels, one tuple per severity."""
    imagenet: ClassVar[tuple[tuple[float, ...], ...]]
    """The constants of ImageNet-C, made for 224 x 224 pixels, one tuple per severity."""
    apply: ClassVar[Callable[..., Tensor]]
    """(pixels, draws, *constants) -> pixels; a static method that names its constants."""

    @classmethod
    def constants(cls, severity: int, height: int, width: int) -> tuple[float, ...]:
        """The constants for pictures of one size.

        With a shorter side of at most 64 pixels they are CIFAR-10-C's, from 128 pixels on ImageNet-C's, and between
        these each of them is interpolated linearly in the shorter side. The authors' variants for 64 and 299 pixels,
        with constants of their own, are not among them.

        Raises:
            LoricaError: no such severity.
        """
        at = checked_severity(severity) - 1
        share = min(max((min(height, width) - _SMALL) / (_LARGE - _SMALL), 0.0), 1.0)
        pairs = zip(cls.cifar[at], cls.imagenet[at], strict=True)
        return tuple((1 - share) * small + share * large for small, large in pairs)


def checked_severity(severity: int) -> int:
    """Raises: LoricaError, unless it is a whole number from 1 to 5."""
    if severity not in SEVERITIES:
        raise LoricaError(f"severity {severity!r} of a corruption does not exist", "Give 1, 2, 3, 4 or 5.")
    return int(severity)


CORRUPTIONS: Registry[Corruption] = Registry("corruption")
