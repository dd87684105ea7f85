"""The processes of a run: one, or several that `torchrun` or `accelerate launch` have started."""

import atexit
from datetime import timedelta

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

PATIENCE = timedelta(days=7)
"""How long processes wait for one another: one of them may probe, audit or attack at length while the others wait."""


def processes(device: torch.device) -> Accelerator:
    """Join the other processes, if there are any; precision is each trainer's own business."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Accelerator takes the current one
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    joined = Accelerator(mixed_precision="no", cpu=device.type == "cpu", kwargs_handlers=[waiting])
    if joined.num_processes > 1:
        atexit.unregister(_part)  # once, however many runs there are
        atexit.register(_part)
    return joined


def _part() -> None:
    """Leave the other processes before the interpreter goes: its threads, found running at the very end, abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
