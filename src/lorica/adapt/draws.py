"""Every random draw of a training step, as a pure function of the seed and of a place in an endless stream of samples.

No sampler state exists, so a resumed run draws what the uninterrupted run would have drawn. Rows are indices into the
pool itself: a training draw cannot leave D_tr. And as the stream does not know how it is cut into batches, one process
with a batch of 2n, two processes with n each and two accumulated batches of n see the same samples in a step.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lorica.seeds import stable_seed


def places(count: int, index: int, rank: int = 0, world: int = 1) -> range:
    """The places in the stream that batch `index` of one process takes.

    Args:
        count: samples per batch and process.
        index: of the batch, from 0.
        rank: of this process.
        world: number of processes; the places of different ranks are disjoint.
    """
    start = (index * world + rank) * count
    return range(start, start + count)


# A step looks at one or two epochs of at most four streams; an order of a million rows is 8 MB.
@lru_cache(maxsize=16)
def _epoch_order(size: int, stream: str, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng(stable_seed(seed, "rows", stream, epoch)).permutation(size)


def rows(where: range, size: int, stream: str, seed: int) -> Tensor:
    """Rows (N,) int64 of a pool, on the CPU: the stream is one shuffled epoch after another.

    Args:
        where: N consecutive places, N > 0.
        size: pictures in the pool; every picture comes once in each `size` places that start at a multiple of it.
        stream: name, so that streams are shuffled independently.
        seed: of the run.
    """
    epochs = range(where.start // size, (where.stop - 1) // size + 1)
    parts = [
        _epoch_order(size, stream, epoch, seed)[max(where.start - epoch * size, 0) : where.stop - epoch * size]
        for epoch in epochs
    ]
    return torch.from_numpy(np.concatenate(parts))


def timesteps_and_noise(
    where: Sequence[int], latent_shape: tuple[int, ...], timesteps: int, stream: str, seed: int
) -> tuple[Tensor, Tensor]:
    """t (N,) int64 uniform in [0, timesteps) and eps (N, *latent_shape) standard normal for N places, on the CPU.

    Drawn on the CPU on every machine, so that the run does not depend on the device.
    """
    t = torch.tensor([stable_seed(seed, "t", stream, place) % timesteps for place in where])
    noise = torch.empty(len(where), *latent_shape)
    generator = torch.Generator()
    for row, place in zip(noise, where, strict=True):
        row.normal_(generator=generator.manual_seed(stable_seed(seed, "noise", stream, place)))
    return t, noise
