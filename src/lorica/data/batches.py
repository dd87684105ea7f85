"""Batches of labelled pictures for training and evaluation, cut from uint8 pixels that stay on the device if they fit.

Order and augmentation are drawn on the CPU, once per epoch, as a pure function of the seed, the epoch and the place in
the epoch: the same on every device, for any number of processes, and in a run that was resumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorica.data.labelled import LabelledSet
from lorica.devices import sent
from lorica.errors import LoricaError
from lorica.seeds import stable_seed

Batch = tuple[Tensor, Tensor]
"""Pixels (B, 3, H, W) float32 in [0, 1], labels (B,) int64."""


@dataclass(frozen=True)
class Augment:
    """A random crop of the zero-padded picture, then a mirror image of every other one on average.

    At 32 pixels the defaults are the usual augmentation of CIFAR (He et al., arXiv 1512.03385, section 4.2).
    """

    padding: float = 0.125
    """Share of a side that is added at both of its ends; 0.125 of 32 pixels are 4."""
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.padding <= 1:
            raise LoricaError(f"padding = {self.padding} is not a share of the side in [0, 1]", "For example: 0.125")

    def draw(self, count: int, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
        """The draws for `count` pictures of `size` = (H, W), on the CPU; row i is the same whatever `count` is.

        Returns:
            shifts (count, 2) int64, where the crop starts in the unpadded picture, down and right, uniform in
            [-p, p] for p = round(padding * side); flips (count,) bool.
        """
        p = np.array([round(self.padding * side) for side in size])
        shifts = _rng(seed, "shifts").integers(-p, p + 1, (count, 2))
        flips = _rng(seed, "flips").random(count) < (0.5 if self.flip else 0)
        return torch.from_numpy(shifts), torch.from_numpy(flips)

    @staticmethod
    def apply(pixels: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
        """Crop and mirror a batch in one gather.

        Args:
            pixels: (B, C, H, W) of any type.
            shifts: (B, 2), as `draw` returns them, on the device of the pixels; likewise `flips`.
            flips: (B,).

        Returns:
            New pixels of the same shape and type; what lies outside the picture is 0.
        """
        channels, height, width = pixels.shape[1:]
        row = torch.arange(height, device=pixels.device) + shifts[:, :1]
        column = torch.arange(width, device=pixels.device).expand(len(pixels), -1)
        column = torch.where(flips[:, None], width - 1 - column, column) + shifts[:, 1:]
        source = row.clamp(0, height - 1)[:, :, None] * width + column.clamp(0, width - 1)[:, None, :]
        taken = pixels.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, channels, -1))
        outside = ((row < 0) | (row >= height))[:, :, None] | ((column < 0) | (column >= width))[:, None, :]
        return taken.view_as(pixels).masked_fill_(outside[:, None], 0)


class Batches:
    """A labelled set as an endless supply of epochs.

    Args:
        data: the pictures.
        batch_size: pictures per batch, over all processes together.
        seed: of order and augmentation.
        device: where the batches are wanted.
        augment: what is done to each picture; None leaves it alone.
        shuffle: in another order each epoch; otherwise in that of `data`.
        drop_last: leave out a last batch that is not full.
        shard: (rank, world): this process receives its own slice of each batch. A last batch that does not divide
            evenly loses at most world - 1 pictures, so that all processes take equal parts in every step.
        resident_limit: pixels of at most this many bytes are kept on the device (`resident` then is true); more
            travel batch by batch.

    Raises:
        LoricaError: no batch can be made of so few pictures, or the batch size is not a multiple of the processes.
    """

    def __init__(
        self,
        data: LabelledSet,
        batch_size: int,
        *,
        seed: int,
        device: torch.device | str,
        augment: Augment | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        shard: tuple[int, int] = (0, 1),
        resident_limit: int = 2 * 2**30,
    ) -> None:
        rank, world = shard
        if batch_size < 1 or batch_size % world:
            raise LoricaError(
                f"a batch of {batch_size} pictures cannot be shared by {world} process(es)",
                f"Give a multiple of {world} as the batch size.",
            )
        used = len(data) // batch_size * batch_size if drop_last else len(data) // world * world
        if used == 0:
            raise LoricaError(
                f"{len(data)} picture(s) make no batch of {batch_size} for {world} process(es)",
                "Give a smaller batch size or more pictures.",
            )
        self._size, self._used, self._slice = batch_size, used, (rank, world)
        self._seed, self._augment, self._shuffle = seed, augment, shuffle
        self._device = torch.device(device)
        self.resident = data.pixels.numel() <= resident_limit
        self._pixels = data.pixels.to(self._device) if self.resident else data.pixels
        self._labels = data.labels.to(self._device)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self._used // self._size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch; nothing waits for the device.

        Args:
            epoch: its number, from 0.
            start: the first batch wanted; it is the same as in the whole epoch.
        """
        order, draws = self._plan(epoch)
        on_device = sent(order, self._device)
        draws = [sent(draw, self._device) for draw in draws]
        for number in range(start, len(self)):
            mine = self._places(number)
            pixels = self._pixels[on_device[mine]] if self.resident else self._fetched(order[mine])
            if self._augment is not None:
                pixels = self._augment.apply(pixels, *(draw[mine] for draw in draws))
            yield pixels.float().div_(255), self._labels[on_device[mine]]

    def _plan(self, epoch: int) -> tuple[Tensor, list[Tensor]]:
        """Rows of `data` in the order of the epoch, and what happens to each, on the CPU."""
        size = len(self._labels)
        order = _rng(self._seed, "order", epoch).permutation(size) if self._shuffle else np.arange(size)
        if self._augment is None:
            return torch.from_numpy(order), []
        height, width = self._pixels.shape[2:]
        seed = stable_seed(self._seed, "augmentation", epoch)
        return torch.from_numpy(order), list(self._augment.draw(size, (height, width), seed))

    def _places(self, number: int) -> slice:
        """The places in the epoch of this process's slice of a batch."""
        rank, world = self._slice
        first = number * self._size
        share = min(self._size, self._used - first) // world
        return slice(first + rank * share, first + (rank + 1) * share)

    def _fetched(self, rows: Tensor) -> Tensor:
        pixels = self._pixels
        pinned = self._device.type == "cuda"
        batch = torch.empty(len(rows), *pixels.shape[1:], dtype=pixels.dtype, pin_memory=pinned)
        return sent(torch.index_select(pixels, 0, rows, out=batch), self._device)


def ordered(data: LabelledSet, batch_size: int, device: torch.device | str) -> Iterator[Batch]:
    """All pictures as they are and in their own order, for evaluation."""
    return Batches(data, batch_size, seed=0, device=device, shuffle=False, resident_limit=0).epoch(0)


def _rng(*key: int | str) -> np.random.Generator:
    return np.random.default_rng(stable_seed(*key))
