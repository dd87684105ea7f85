"""The proxy attacker h: what it looks at, and its network."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.config import Config


class ProxyConfig(Config):
    """The proxy attacker of the min-max objectives (paper, Appendix E)."""

    input: Literal["error-map", "calibrated"] = Field(
        "error-map",
        description="error-map: the squared-error map at one random t (paper's code); calibrated: the map divided by "
        "the base model's expected loss at that t, with log loss ratio and t beside it",
    )
    learning_rate: float = Field(1e-5, gt=0, description="eta_1 of Adam (paper: 1e-5)")
    weight_decay: float = Field(1e-4, ge=0, description="of Adam (authors' code: 1e-4; the paper does not say)")
    dropout: float = Field(0.5, ge=0, lt=1, description="after both hidden layers (authors' code: 0.5)")
    steps: int = Field(1, ge=1, description="proxy steps for each step on the LoRA (paper: 1)")


class Proxy(nn.Module):
    """MLP [512, 256, 2] over one squared-error map; class 1 = member (arXiv 2402.11989, Appendix E).

    Args:
        latent_shape: (C, h, w) of the maps.
        config: input form and dropout.
        expected_loss: (T,) expected adaptation loss per timestep of the base model, which the calibrated input
            divides by; not looked at for error maps.
    """

    expected_loss: Tensor

    def __init__(self, latent_shape: tuple[int, int, int], config: ProxyConfig, expected_loss: Tensor) -> None:
        super().__init__()
        self.calibrated = config.input == "calibrated"
        # A buffer, so that it is in the checkpoint: a resumed run goes on with the very same numbers.
        self.register_buffer("expected_loss", expected_loss.float().clamp_min(1e-8))
        width = math.prod(latent_shape) + (2 if self.calibrated else 0)
        self.layers = nn.Sequential(
            nn.Linear(width, 512), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(512, 256), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(256, 2),
        )  # fmt: skip

    def forward(self, error_map: Tensor, t: Tensor) -> Tensor:
        """Logits (B, 2) from maps (B, C, h, w) >= 0 taken at timesteps t (B,)."""
        x = error_map.float().flatten(1)
        if self.calibrated:
            # At one random t the raw map says mostly which t it was; what is left after division by what t explains
            # is what the picture explains.
            ratio = x / self.expected_loss[t].unsqueeze(1)
            level = ratio.mean(1, keepdim=True).clamp_min(1e-8).log()
            time = (t.float() / len(self.expected_loss)).unsqueeze(1)
            x = torch.cat([ratio, level, time], dim=1)
        return self.layers(x)
