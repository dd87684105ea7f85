"""Anti-gradient control: samples that the model already fits abnormally well are left out."""

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.adapt.defences.base import DEFENCES, Defence
from lorica.config import Config
from lorica.diffusion import LatentDiffusion


class SkipLowLossConfig(Config):
    """What is abnormally low."""

    ratio: float = Field(0.5, gt=0, lt=1, description="skip below this share of the mean loss at t (authors: 1/2)")
    decay: float = Field(0.8, ge=0, lt=1, description="of the running mean loss at t (authors: 0.8)")
    levels: int | None = Field(
        None, ge=1, description="groups of timesteps that share a mean, for short runs (authors: each t its own)"
    )


@DEFENCES.register("skip-low-loss")
class SkipLowLoss(Defence[SkipLowLossConfig]):
    """A sample at t whose adaptation loss l is below ratio * mean[t] gets weight zero; the others share its weight.

    mean[t] starts at 0, so that nothing is skipped at first, and then takes in every sample, skipped or not:
    mean[t] = decay * mean[t] + (1 - decay) * l, one sample after another. Only L_ada is weighted, not the MI gain.

    The rule is that of anti-gradient control in the authors' code, for a single model: their ensemble over shards,
    and in the later paper the augmentation and redistribution of skipped samples, are not done.
    """

    summary = "does not train on samples whose loss is far below the running mean at their timestep (AGC)"
    source = "arXiv 2407.15328 and 2502.09434, anti-gradient control"
    Options = SkipLowLossConfig
    alone = True

    means: Tensor

    def attach(self, model: LatentDiffusion, parameters: list[nn.Parameter]) -> None:
        self.timesteps = model.train_timesteps
        self.means = torch.zeros(min(self.options.levels or self.timesteps, self.timesteps), device=model.device)

    def losses(self, losses: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        cells = t * len(self.means) // self.timesteps
        kept = (losses.detach() >= self.options.ratio * self.means[cells]).float()
        weights = kept * (len(kept) / kept.sum().clamp_min(1))
        self._remember(losses.detach(), cells)
        return losses * weights, {"skipped": 1 - kept.mean()}

    def _remember(self, losses: Tensor, cells: Tensor) -> None:
        for loss, cell in zip(losses.split(1), cells.split(1), strict=True):  # a cell may come twice in a batch
            before = self.means[cell]
            after = self.options.decay * before + (1 - self.options.decay) * loss
            self.means.index_copy_(0, cell, torch.where(loss.isfinite(), after, before))

    def state(self) -> dict[str, Tensor]:
        return {"means": self.means}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.means.copy_(tensors["means"])
