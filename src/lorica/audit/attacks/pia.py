"""PIA and PIAN: does the model, given its own idea of the picture's noise, find that noise again?"""

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from lorica.audit.attacks.base import Features, StatisticAttack, register
from lorica.config import Config

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting


class PiaOptions(Config):
    timestep: float = Field(
        0.2, gt=0, lt=1, description="where on the noise schedule the second query is made, as a share of it"
    )
    norm: float = Field(4, ge=1, description="p of the l_p norm (paper: 4)")


class PianOptions(PiaOptions):
    scale: Literal["paper", "gaussian"] = Field(
        "paper",
        description="l_1 norm that the first prediction is brought to. paper: N sqrt(pi/2), equation (10); gaussian: "
        "N sqrt(2/pi), which standard normal noise has",
    )


@register("pia")
class PiaAttack(StatisticAttack[PiaOptions]):
    """Score = -|e_0 - e(sqrt(abar_t) z_0 + sqrt(1 - abar_t) e_0, t)|_p with e_0 = e(z_0, 0), per element."""

    summary = "whether the model finds its own first prediction again as noise"
    source = "Kong et al., ICLR 2024 (arXiv 2305.18355), equation (9)"
    threat_model = "gray"
    Options = PiaOptions

    @property
    def queries(self) -> int:
        return 2

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": self.name, **self.options.model_dump()}

    def ask(self, sitting: "Sitting") -> "Ask":
        """{"distance": (N,)}."""
        first = sitting.given("clean", sitting.latents, 0)
        (answer,) = yield [first]
        noise = self._initial(sitting.noise(first, answer))
        t = int(self.options.timestep * sitting.model.train_timesteps)
        noisy = sitting.model.add_noise(sitting.latents, torch.full_like(first.t, t), noise)
        second = sitting.given(f"{self.name} {self._recipe}", noisy, t)
        (answer,) = yield [second]
        difference = (sitting.noise(second, answer) - noise).double().abs().flatten(1)
        p = self.options.norm
        return {"distance": difference.pow(p).mean(1).pow(1 / p).cpu().numpy()}

    @property
    def _recipe(self) -> str:
        return ""

    def _initial(self, noise: Tensor) -> Tensor:
        return noise

    def statistic(self, features: Features) -> NDArray[np.float64]:
        return -features["distance"].astype(np.float64)


@register("pian")
class PianAttack(PiaAttack):
    """PIA with the first prediction brought to the l_1 norm of noise: e_0 N sqrt(pi/2) / |e_0|_1."""

    summary = "PIA, its first prediction scaled to the size of noise"
    source = "Kong et al., ICLR 2024 (arXiv 2305.18355), equation (10)"
    Options = PianOptions
    options: PianOptions

    @property
    def _recipe(self) -> str:
        return self.options.scale

    def _initial(self, noise: Tensor) -> Tensor:
        size = math.sqrt(math.pi / 2 if self.options.scale == "paper" else 2 / math.pi)
        return noise * size / noise.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
