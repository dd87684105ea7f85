"""Adaptive NN: an attacker who knows that the model was trained against a proxy, and learns what is left to learn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from lorica.audit.attacks.base import Attack, Groups, cross_fitted, register
from lorica.audit.attacks.stream import StreamMaps
from lorica.config import Config

_FLOOR = 1e-6  # of squared errors under the logarithm
_SIDE = 16


class AdaptiveNnOptions(Config):
    draws: int = Field(16, ge=1, description="error maps per picture, all seen at once")
    epochs: int = Field(60, ge=1, description="passes over the auxiliary pictures")
    batch_size: int = Field(16, ge=1, description="pictures per step")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW")


@register("adaptive-nn")
class AdaptiveNnAttack(StreamMaps, Attack[AdaptiveNnOptions]):
    """Score = log-odds of a convolutional network that sees all error maps of a picture at once, each with its t.

    SMP-LoRA's proxy looks at one map at one random t through an MLP, and is fooled by the model it trains against.
    This attacker is trained against the *finished* model, has another architecture, and does what no single draw
    allows: it averages over the noise schedule after having normalised each part of it.
    """

    summary = "convolutional network over error maps at many timesteps, trained against the finished model"
    source = "adaptive evaluation as in Tramer et al., NeurIPS 2020 (arXiv 2002.08347), for the defence of 2402.11989"
    threat_model = "white"
    Options = AdaptiveNnOptions

    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        maps = {group: np.log(_coarse(features["maps"]) + _FLOOR) for group, features in groups.items()}
        auxiliary = np.concatenate([maps["aux_members"], maps["aux_nonmembers"]])
        mean = auxiliary.mean(axis=(0, 2, 3, 4), keepdims=True)
        scale = np.maximum(auxiliary.std(axis=(0, 2, 3, 4), keepdims=True), 1e-6)
        inputs = {
            group: np.concatenate([(values - mean) / scale, _planes(groups[group]["t"], values.shape)], axis=2)
            for group, values in maps.items()
        }

        def fit(members: NDArray[Any], nonmembers: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
            network = self._train(np.concatenate([members, nonmembers]), len(members))
            return lambda values: _log_odds(network, values)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cross_fitted(inputs, fit)

    def _train(self, inputs: NDArray[Any], members: int) -> nn.Module:
        """On inputs (N, K, C + 1, h, w), members first; the two groups weigh the same whatever their sizes."""
        o = self.options
        x, y = torch.from_numpy(inputs).float(), (torch.arange(len(inputs)) < members).float()
        weights = torch.where(y == 1, 0.5 / members, 0.5 / max(1, len(x) - members)) * len(x)
        network = _Network(x.shape[2])
        optimiser = torch.optim.AdamW(network.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
        steps = o.epochs * -(-len(x) // o.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, o.learning_rate, total_steps=steps)
        for _ in range(o.epochs):
            for rows in torch.randperm(len(x)).split(o.batch_size):
                optimiser.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(network(x[rows]), y[rows], weights[rows]).backward()
                optimiser.step()
                schedule.step()
        return network.eval()


class _Network(nn.Module):
    """The same convolutions over every map, then one decision over their averages in the order of t."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.each = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.SiLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.SiLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.decide = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Dropout(0.3), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,) of membership from (N, K, C, h, w)."""
        return self.decide(self.each(x.flatten(0, 1)).view(*x.shape[:2], -1).mean(1))[:, 0]


def _coarse(maps: NDArray[Any]) -> NDArray[np.float32]:
    """Maps (N, K, C, h, w) averaged down to at most `_SIDE` a side: noise goes, and training costs no more for SD."""
    sides = min(maps.shape[-2], _SIDE), min(maps.shape[-1], _SIDE)
    pooled = nn.functional.adaptive_avg_pool2d(torch.from_numpy(maps).float().flatten(0, 1), sides)
    return pooled.view(*maps.shape[:3], *sides).numpy()


def _planes(t: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Each map's t as a further channel (N, K, 1, h, w)."""
    return np.broadcast_to(t[:, :, None, None, None], (*shape[:2], 1, *shape[3:])).astype(np.float32)


@torch.inference_mode()
def _log_odds(network: nn.Module, inputs: NDArray[Any]) -> NDArray[np.float64]:
    return network(torch.from_numpy(inputs).float()).double().numpy()
