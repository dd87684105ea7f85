"""Private adaptation: LoRA on a latent diffusion model, with the membership-privacy objectives of arXiv 2402.11989."""

from lorica.adapt.config import AdaptConfig, SplitConfig
from lorica.adapt.defences import DEFENCES, Defence
from lorica.adapt.gain import mi_gain
from lorica.adapt.objectives import OBJECTIVES, Objective, mp_loss, smp_loss
from lorica.adapt.proxy import Proxy, ProxyConfig
from lorica.adapt.run import run
from lorica.errors import Diverged

__all__ = [
    "DEFENCES", "OBJECTIVES", "AdaptConfig", "Defence", "Diverged", "Objective", "Proxy", "ProxyConfig", "SplitConfig",
    "mi_gain", "mp_loss", "run", "smp_loss",
]  # fmt: skip
