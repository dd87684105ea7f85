"""The batch of several processes as one: a picture's negatives are those of all of them."""

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(rows: Tensor) -> Tensor:
    """The rows (N, D) of all processes, in the order of their ranks; gradients flow into this process's own.

    Each process then computes the loss of the whole batch. The sum of their gradients is that of one process with the
    whole batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[dist.get_rank()] = rows
    return torch.cat(parts)
