"""The processes of a run: one, or several that `torchrun` or `accelerate launch` have started."""

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

PATIENCE = timedelta(days=7)
"""How long processes wait for one another: one of them may probe, audit or attack at length while the others wait."""


def processes(device: torch.device) -> Accelerator:
    """Join the other processes, if there are any; precision is each trainer's own business."""
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(mixed_precision="no", cpu=device.type == "cpu", kwargs_handlers=[waiting])
