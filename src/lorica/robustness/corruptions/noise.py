"""Noise, drawn for every pixel and channel by itself."""

import torch
from torch import Tensor

from lorica.robustness.corruptions.base import CORRUPTIONS, Corruption
from lorica.robustness.corruptions.draws import Draws


@CORRUPTIONS.register("gaussian_noise")
class GaussianNoise(Corruption):
    """x + std * n with n ~ N(0, 1)."""

    summary = "additive normal noise, as in low light"
    category = "noise"
    cifar = ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))
    imagenet = ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, std: float) -> Tensor:
        return pixels + std * draws.normal(*pixels.shape[1:])


@CORRUPTIONS.register("shot_noise")
class ShotNoise(Corruption):
    """k / photons with k ~ Poisson(x * photons)."""

    summary = "Poisson noise of counted photons"
    category = "noise"
    cifar = ((500,), (250,), (100,), (75,), (50,))
    imagenet = ((60,), (25,), (12,), (5,), (3,))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, photons: float) -> Tensor:
        return _poisson((pixels * 255).round().long(), photons / 255, draws.uniform(*pixels.shape[1:])) / photons


def _poisson(levels: Tensor, scale: float, uniform: Tensor) -> Tensor:
    """The quantile at `uniform` of Poisson(level * scale), for whole levels from 0 to 255, as float32.

    The 256 distribution functions lie end to end in one rising table, so that one search serves them all.
    """
    most = 255 * scale
    counts = torch.arange(int(most + 12 * most**0.5 + 20), dtype=torch.float64, device=levels.device)
    means = torch.arange(256, dtype=torch.float64, device=levels.device)[:, None] * scale
    chances = torch.exp(torch.xlogy(counts, means) - means - torch.lgamma(counts + 1))
    table = chances.cumsum(1).clamp(max=1) + torch.arange(256, device=levels.device)[:, None]
    found = torch.searchsorted(table.flatten(), uniform.double() + levels)
    return (found - levels * len(counts)).float()


@CORRUPTIONS.register("impulse_noise")
class ImpulseNoise(Corruption):
    """1 with probability amount / 2, 0 with probability amount / 2, else x."""

    summary = "salt and pepper, as from bit errors"
    category = "noise"
    cifar = ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))
    imagenet = ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))

    @staticmethod
    def apply(pixels: Tensor, draws: Draws, amount: float) -> Tensor:
        chance = draws.uniform(*pixels.shape[1:])
        return pixels.masked_fill(chance < amount, 0.0).masked_fill(chance < amount / 2, 1.0)
