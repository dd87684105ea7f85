"""What a training step may look at: encoded pictures by group, and the batches drawn from them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pool:
    """Encoded pictures of one group on the training device; `contexts` is None while the text encoder is trained.

    A defence may append rows: further views of all pictures to `latents`, one whole set after another, and the empty
    caption to `contexts`. `captions` is one per picture, always.
    """

    name: str
    latents: Tensor
    contexts: Tensor | None
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def caption(self, row: int) -> str:
        """The caption in a row of `contexts`."""
        return self.captions[row] if row < len(self) else ""


@dataclass(frozen=True)
class Pools:
    """What a step may draw from: D_tr, and the two halves of D_aux."""

    train: Pool
    aux_members: Pool
    aux_nonmembers: Pool


@dataclass(frozen=True)
class Draw:
    """Pictures of a pool, rows (N,) on the CPU, and the places (N) of a named stream that key all else about them."""

    stream: str
    places: Sequence[int]
    rows: Tensor


@dataclass(frozen=True)
class Batch:
    """What a draw became: rows (N,) of the pool's latents and captions, on the CPU; timesteps t (N,) and noise
    (N, C, h, w), on the device."""

    pool: Pool
    draw: Draw
    rows: Tensor
    captions: Tensor
    t: Tensor
    noise: Tensor
