"""NN-loss: a network that learns membership from squared-error maps, the evaluation attack h' of SMP-LoRA's paper."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from lorica.audit.attacks.base import Attack, Groups, cross_fitted, register
from lorica.audit.attacks.stream import StreamMaps
from lorica.config import Config


class NnLossOptions(Config):
    draws: int = Field(8, ge=1, description="error maps per picture, to train on and to average the score over")
    input: Literal["raw", "normalised"] = Field(
        "raw",
        description="raw: the squared-error map (paper); normalised: each part of the noise schedule shifted and "
        "scaled to mean 0 and deviation 1 over the auxiliary maps, since otherwise the timestep dominates",
    )
    epochs: int = Field(100, ge=1, description="passes over the auxiliary pictures (paper: 100)")
    batch_size: int = Field(16, ge=2, multiple_of=2, description="maps per step, half of them members'")
    learning_rate: float = Field(1e-5, gt=0, description="of Adam (paper: 1e-5)")
    weight_decay: float = Field(1e-4, ge=0, description="of Adam (authors' code, for the training proxy: 1e-4)")
    dropout: float = Field(0.5, ge=0, lt=1, description="after both hidden layers (authors' code: 0.5)")


@register("nn-loss")
class NnLossAttack(StreamMaps, Attack[NnLossOptions]):
    """Score = log h'(map) - log(1 - h'(map)), averaged over draws; h' = MLP [512, 256, 2] on the flattened map.

    Trained with cross-entropy on the auxiliary pictures, in batches of as many members as non-members, for a number
    of epochs fixed beforehand: the paper keeps the checkpoint that is best on the test set, which no attacker can. The
    paper counts it as white-box; outputs of the UNet suffice for it.
    """

    summary = "network trained on the error maps of auxiliary pictures (the paper's h')"
    source = "Luo et al., AAAI 2025 (arXiv 2402.11989), appendix E"
    threat_model = "white"
    Options = NnLossOptions

    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        maps = {group: features["maps"].reshape(*features["maps"].shape[:2], -1) for group, features in groups.items()}
        if self.options.input == "normalised":
            maps = _normalise(maps)

        def fit(members: NDArray[Any], nonmembers: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
            network = self._train(torch.from_numpy(members), torch.from_numpy(nonmembers))
            return lambda values: _log_odds(network, torch.from_numpy(values))

        # Initial weights and dropout come from the global generator: seeded here, and handed back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cross_fitted(maps, fit)

    def _train(self, members: Tensor, nonmembers: Tensor) -> nn.Module:
        """Fit h' on maps (M, draws, D) and (N, draws, D).

        An epoch shows every picture of the larger group once, at one of its draws: the nearest that stored maps come
        to a fresh (t, eps) each time.
        """
        options, half = self.options, self.options.batch_size // 2
        network = _mlp(members.shape[-1], options.dropout)
        optimiser = torch.optim.Adam(
            network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        longest = max(len(members), len(nonmembers))
        for _ in range(options.epochs):
            orders = [_shuffled(len(group), longest) for group in (members, nonmembers)]
            for start in range(0, longest, half):
                batch = [
                    group[rows := order[start : start + half], torch.randint(group.shape[1], rows.shape)]
                    for group, order in zip((members, nonmembers), orders, strict=True)
                ]
                labels = torch.cat(
                    [torch.full((len(maps),), label) for maps, label in zip(batch, (1, 0), strict=True)]
                )
                optimiser.zero_grad()
                nn.functional.cross_entropy(network(torch.cat(batch)), labels).backward()
                optimiser.step()
        return network.eval()


def _mlp(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 512), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(512, 256), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(256, 2),
    )  # fmt: skip


def _shuffled(size: int, length: int) -> Tensor:
    """`length` row numbers: whole shuffles of range(size), one after the other, the last cut short."""
    return torch.cat([torch.randperm(size) for _ in range(-(-length // size))])[:length]


@torch.inference_mode()
def _log_odds(network: nn.Module, maps: Tensor) -> NDArray[np.float64]:
    """(N,) mean over draws of the log-odds of membership, from maps (N, draws, D)."""
    logits = network(maps)
    return (logits[..., 1] - logits[..., 0]).double().mean(dim=1).numpy()


def _normalise(maps: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Shift and scale each draw, that is each part of the noise schedule, by what the auxiliary maps have there."""
    auxiliary = np.concatenate([maps["aux_members"], maps["aux_nonmembers"]])
    mean, deviation = auxiliary.mean(axis=(0, 2)), auxiliary.std(axis=(0, 2))
    scale = np.where(deviation > 0, deviation, 1)
    return {group: ((values - mean[:, None]) / scale[:, None]).astype(np.float32) for group, values in maps.items()}
