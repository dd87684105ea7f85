"""An offline extractor: random convolutions and a thumbnail, the same in every version of every library."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lorica.quality.extractors import EXTRACTORS, Extractor

SIDE = 64  # pixels that pictures are resized to
LEVELS = 4  # convolutions, each at half the resolution of the one before
CHANNELS = 10
THUMBNAIL = 4  # x 4 cells of mean colour
LEAVES, LEAF_PICTURES = 60, 128


@EXTRACTORS.register("builtin")
class Builtin(Extractor):
    """128 features of structure, texture, colour and layout from weights that were drawn, not trained.

    Random networks serve as extractors where no trained one fits the pictures or is at hand (Naeem et al. 2020,
    "Reliable fidelity and diversity metrics for generative models", arXiv 2002.09797). Here: mean and standard
    deviation of |random convolution| at four scales (80 features), which see texture and structure, and a 4 x 4
    thumbnail (48), which sees colour and layout. Without the thumbnail, blurry pictures would gain from shuffled
    patches, for the edges that these add. Few features in all, because FID needs more pictures than features.

    Each feature is standardised over dead leaves, pictures of overlapping discs with the statistics of natural scenes
    (Lee, Mumford and Huang 2001, "Occlusion models for natural images"), so that none outweighs the others, and then
    squashed into (-1, 1): KID's kernel is cubic in x.y, and a few unusual pictures would decide it.
    """

    name = "builtin"
    num_features = 2 * LEVELS * CHANNELS + 3 * THUMBNAIL**2
    comparable = False
    note = (
        "Random convolutional features at 64 pixels, made for offline use: only compare these numbers with others "
        "by the same extractor on the same reference pictures, never with published FID or KID."
    )

    def __init__(self) -> None:
        super().__init__()
        draw = uniform(seed=0)
        for level in range(LEVELS):
            filters = 2 * draw((CHANNELS, CHANNELS if level else 3, 3, 3)) - 1
            filters /= np.sqrt(np.square(filters).sum(axis=(1, 2, 3), keepdims=True))
            self.register_buffer(f"filters_{level}", torch.from_numpy(filters).float())
        with torch.no_grad():
            usual = self._describe(torch.from_numpy(dead_leaves(draw)).float())
        self.register_buffer("mean", usual.mean(dim=0))
        self.register_buffer("std", usual.std(dim=0))

    def forward(self, pictures: Tensor) -> Tensor:
        scaled = pictures.float() / 127.5 - 1
        if scaled.shape[-2:] != (SIDE, SIDE):
            scaled = F.interpolate(scaled, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        standard = (self._describe(scaled) - self.get_buffer("mean")) / self.get_buffer("std")
        return torch.tanh(standard / 2)

    def _describe(self, x: Tensor) -> Tensor:
        """(N, num_features) of (N, 3, SIDE, SIDE) in [-1, 1], each on its own scale."""
        found = [F.adaptive_avg_pool2d(x, THUMBNAIL).flatten(1)]
        for level in range(LEVELS):
            if level:
                x = F.avg_pool2d(x, 2)
            x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.get_buffer(f"filters_{level}")).abs()
            found += [x.mean(dim=(2, 3)), x.flatten(2).std(dim=2)]
        return torch.cat(found, dim=1)


def uniform(seed: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    """A source of float64 arrays in [0, 1).

    Made from raw bits, which NumPy promises never to change; its distributions carry no such promise (NEP 19).
    """
    bits = np.random.PCG64(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return (bits.random_raw(int(np.prod(shape))) >> np.uint64(11)).reshape(shape) * 2.0**-53

    return draw


def dead_leaves(draw: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
    """(LEAF_PICTURES, 3, SIDE, SIDE) in [-1, 1]: discs of random colours, radii ~ r^-3, one on top of the other."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pictures = np.empty((LEAF_PICTURES, SIDE, SIDE, 3))
    for picture, leaves in zip(pictures, draw((LEAF_PICTURES, LEAVES, 6)), strict=True):
        row, column, size = (part[:, None, None] for part in leaves[:, :3].T)
        radius = np.minimum(3 / np.sqrt(size + 1e-3), 0.75 * SIDE)
        inside = (rows - SIDE * row) ** 2 + (columns - SIDE * column) ** 2 < radius**2
        inside[0] = True  # the ground, under all the others
        topmost = LEAVES - 1 - inside[::-1].argmax(axis=0)
        picture[:] = 2 * leaves[topmost, 3:] - 1
    return pictures.transpose(0, 3, 1, 2)
