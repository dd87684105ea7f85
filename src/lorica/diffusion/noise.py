"""Noise keyed by sample: the same for members and non-members, base and LoRA, in any batch and any order.

A membership score that compares two groups must not let the groups see different noise; drawing per sample id from a
counter-based generator makes that impossible to get wrong.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def _generator(key: str, purpose: str, draw: int, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\x1f{purpose}\x1f{draw}\x1f{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def keyed_noise(ids: Sequence[str], purpose: str, draw: int, shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise (N, *shape), float32; row i depends only on (ids[i], purpose, draw, seed)."""
    rows = [_generator(key, purpose, draw, seed).standard_normal(tuple(shape), dtype=np.float32) for key in ids]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)


def keyed_uniform(ids: Sequence[str], purpose: str, draw: int, seed: int) -> Tensor:
    """Uniform numbers (N,) in [0, 1), float64, keyed like `keyed_noise`."""
    return torch.tensor([_generator(key, purpose, draw, seed).random() for key in ids], dtype=torch.float64)
