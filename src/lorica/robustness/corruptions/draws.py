"""Random numbers that belong to a picture, not to its batch: a counter-based generator, vectorised over pictures."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = (
    value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_HALF = (1 << 32) - 1


class Draws:
    """Random numbers for N pictures; row i is a function of (seed, name, severity, ids[i]) and of the calls before.

    SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): word j of a picture is a 64-bit mix of its key + j * golden ratio.
    The integers are the same on every device. It costs about ten passes over 8 bytes for every two numbers, 10 ns a
    number on one CPU core, and no loop over pictures.

    Args:
        seed, name, severity: of the corruption.
        ids: (N,) whole numbers that identify the pictures.
        device: where the numbers are wanted.
    """

    def __init__(
        self, seed: int, name: str, severity: int, ids: Sequence[int] | Tensor, device: torch.device | str = "cpu"
    ) -> None:
        digest = hashlib.sha256(f"{seed}\x1f{name}\x1f{severity}".encode()).digest()
        base = int.from_bytes(digest[:8], "little", signed=True)
        places = torch.as_tensor(ids, dtype=torch.int64).to(device)
        self.device = places.device
        self._keys = _mixed(places * _GOLDEN + base)
        self._spent = 0

    def uniform(self, *shape: int) -> Tensor:
        """Floats (N, *shape), uniform in the open interval (0, 1), in steps of 2^-23."""
        bits = self._halves(math.prod(shape)) >> 9
        return ((bits + 0.5) * 2.0**-23).reshape(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal floats (N, *shape), by the method of Box and Muller."""
        count = math.prod(shape)
        words = self._words((count + 1) // 2)
        radius = (((words & _HALF) + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
        angle = ((words >> 32) & _HALF) * (2 * math.pi * 2.0**-32)
        pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return pairs[:, :count].reshape(-1, *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers (N, *shape), int64, uniform in low, ..., high - 1."""
        return (low + (self._halves(math.prod(shape)) * (high - low) >> 32)).reshape(-1, *shape)

    def _halves(self, count: int) -> Tensor:
        words = self._words((count + 1) // 2)
        return torch.cat([words & _HALF, (words >> 32) & _HALF], dim=1)[:, :count]

    def _words(self, count: int) -> Tensor:
        counter = torch.arange(self._spent + 1, self._spent + count + 1, device=self._keys.device)
        self._spent += count
        return _mixed(self._keys[:, None] + counter * _GOLDEN)


def _mixed(words: Tensor) -> Tensor:
    """SplitMix64's bijection of 64-bit words; multiplication wraps, as int64's does in torch."""
    words = (words ^ _shifted(words, 30)).mul_(_FIRST)
    words = (words ^ _shifted(words, 27)).mul_(_SECOND)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, by: int) -> Tensor:
    return (words >> by).bitwise_and_((1 << (64 - by)) - 1)  # torch shifts the sign in
