"""SecMI: how far one deterministic step forward and back misses the place it started from."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from lorica.audit.attacks.base import Features, StatisticAttack, register
from lorica.config import Config

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting
    from lorica.diffusion import LatentDiffusion


class SecmiOptions(Config):
    timestep: float = Field(0.1, gt=0, lt=1, description="t_sec as a share of the noise schedule (paper: 100 of 1000)")
    steps: int = Field(10, ge=1, description="deterministic steps up to there (paper: 10)")


@register("secmi")
class SecmiAttack(StatisticAttack[SecmiOptions]):
    """Score = -|psi(phi(z_t, t), t) - z_t|^2, the mean over elements.

    z_t is reached from the picture by deterministic DDIM steps phi; phi then goes one step further and psi one step
    back. Both use the model's prediction, so that no noise is drawn at all.
    """

    summary = "error of one deterministic step forward and back, on the way into noise"
    source = "SecMI_stat: Duan et al., ICML 2023 (arXiv 2302.01316), equations (8) to (10)"
    threat_model = "gray"
    Options = SecmiOptions

    @property
    def queries(self) -> int:
        return self.options.steps + 2

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": "secmi", **self.options.model_dump()}

    def ask(self, sitting: "Sitting") -> "Ask":
        """{"t_error": (N,)}."""
        o, model = self.options, sitting.model
        places = np.arange(o.steps + 2) * o.timestep / o.steps
        times = np.minimum((places * model.train_timesteps).round(), model.train_timesteps - 1).astype(int).tolist()
        path = [sitting.latents]
        for now, to in pairwise(times):
            query = sitting.given("clean" if now == 0 else f"ddim by {times[1]}", path[-1], now)
            (answer,) = yield [query]
            path.append(ddim_step(model, path[-1], sitting.noise(query, answer), now, to))
        query = sitting.given(f"ddim by {times[1]}", path[-1], times[-1])
        (answer,) = yield [query]
        back = ddim_step(model, path[-1], sitting.noise(query, answer), times[-1], times[-2])
        return {"t_error": (back - path[-2]).double().square().flatten(1).mean(1).cpu().numpy()}

    def statistic(self, features: Features) -> NDArray[np.float64]:
        return -features["t_error"].astype(np.float64)


def ddim_step(model: "LatentDiffusion", z: Tensor, noise: Tensor, t: int, to: int) -> Tensor:
    """Deterministic DDIM for a predicted eps, forward or backward in t (Song et al., ICLR 2021, eq. 12, sigma 0)."""
    here, there = (model.alphas_cumprod[i].item() for i in (t, to))
    clean = (z - (1 - here) ** 0.5 * noise) / here**0.5
    return there**0.5 * clean + (1 - there) ** 0.5 * noise
