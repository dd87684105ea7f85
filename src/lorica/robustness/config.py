"""What the attacks of training, fine-tuning and pre-training have in common in their configuration."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from lorica.config import Config
from lorica.errors import LoricaError
from lorica.robustness.threat import Threat, parse_eps

Radius = Annotated[float, BeforeValidator(parse_eps)]


class PgdConfig(Config):
    """Projected gradient ascent in a ball of L-inf, of pixels in [0, 1]; other norms are for subclasses to offer."""

    eps: Radius = Field(8 / 255, description="radius, of pixels in [0, 1]; 8/255 may be written so")
    step_size: Radius | None = Field(None, description="of PGD; eps/4 by default (paper: 2/255 at 8/255)")

    @property
    def threat(self) -> Threat:
        """The allowed pictures."""
        return Threat(self.eps)

    @property
    def size(self) -> float:
        """Of a step."""
        return self.step_size if self.step_size is not None else self.eps / 4

    @model_validator(mode="after")
    def _sound(self) -> Self:
        threat = self.threat
        if not 0 < self.size <= 2 * self.eps:
            raise LoricaError(
                f"step_size = {self.size:g}: a step is above 0 and at most as long as the ball of eps = {self.eps:g} "
                "is wide",
                f"For {self.size:g} levels of 255 write {self.size:g}/255."
                if self.size >= 1 and threat.norm == "linf"
                else "Leave it out for eps/4.",
            )
        return self
