"""Every random draw of a training step, as a pure function of (seed, step, process).

No sampler state exists, so a resumed run draws what the uninterrupted run would have drawn, and the indices of the
training batch are indices into D_tr itself: a draw cannot leave it.
"""

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed from a sequence of numbers and names, the same on every platform."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "little") >> 1


@lru_cache(maxsize=64)
def _epoch_order(size: int, pool: str, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng(stable_seed(seed, pool, epoch)).permutation(size)


def batch_rows(size: int, pool: str, count: int, step: int, seed: int, rank: int = 0, world: int = 1) -> Tensor:
    """Rows (count,) of a pool for one step: consecutive parts of an endless stream of shuffled epochs.

    Every picture of the pool comes once per epoch; with several processes, their parts are disjoint.

    Args:
        size: pictures in the pool.
        pool: name, so that pools are shuffled independently.
        count: rows per process.
        step: counts from 0.
        seed: of the run.
        rank: of this process.
        world: number of processes.
    """
    start = (step * world + rank) * count
    positions = np.arange(start, start + count)
    rows = [_epoch_order(size, pool, int(epoch), seed)[position] for epoch, position in zip(positions // size, positions % size, strict=True)]
    return torch.from_numpy(np.array(rows, dtype=np.int64))


def timesteps_and_noise(
    count: int, latent_shape: tuple[int, ...], timesteps: int, purpose: str, step: int, seed: int, rank: int = 0
) -> tuple[Tensor, Tensor]:
    """t (count,) uniform in [0, timesteps) and eps (count, C, h, w) standard normal, on the CPU."""
    generator = torch.Generator().manual_seed(stable_seed(seed, purpose, step, rank))
    t = torch.randint(timesteps, (count,), generator=generator)
    return t, torch.randn((count, *latent_shape), generator=generator)
