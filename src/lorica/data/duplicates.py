"""Copies and near-copies among pictures: a non-member that is a copy of a member makes every audit wrong.

Exact: the decoded pixels are equal, whatever the file format. Near: the root mean squared difference between the two
64 x 64 RGB thumbnails (resized and centre-cropped, levels 0..255) is below a threshold, directly or with one mirrored.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorica.data.pictures import Picture, fit, load_rgb
from lorica.progress import track

THRESHOLD = 8.0
"""RMSE in grey levels below which two thumbnails are near-duplicates."""
METHOD = (
    "exact: equal decoded pixels; near and mirrored: RMSE of 64x64 RGB thumbnails (levels 0..255) below the threshold"
)
_SIDE, _POOL, _CHUNK = 64, 4, 512


@dataclass(frozen=True)
class Duplicate:
    """Two pictures that are, or nearly are, the same. `distance` is the RMSE of their thumbnails in grey levels."""

    first: Picture
    second: Picture
    kind: Literal["exact", "near", "mirrored"]
    distance: float


def find_duplicates(pictures: Sequence[Picture], threshold: float = THRESHOLD) -> list[Duplicate]:
    """Find all pairs of copies and near-copies; of n exact copies, the n - 1 pairs with the first of them.

    Time grows with the square of the number of pictures; 5,000 take some seconds besides decoding them.
    """
    thumbnails = np.empty((len(pictures), _SIDE, _SIDE, 3), np.uint8)
    originals: dict[bytes, int] = {}
    found = []
    for index, picture in enumerate(track(pictures, "looking for duplicates", len(pictures))):
        image = load_rgb(picture.file)
        content = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        original = originals.setdefault(content, index)
        if original != index:
            found.append(Duplicate(pictures[original], picture, "exact", 0.0))
        thumbnails[index] = np.asarray(fit(image, _SIDE))
    kept = np.array(sorted(originals.values()), dtype=np.intp)
    for i, j, mirrored, distance in _near(thumbnails[kept], threshold):
        kind: Literal["near", "mirrored"] = "mirrored" if mirrored else "near"
        found.append(Duplicate(pictures[kept[i]], pictures[kept[j]], kind, distance))
    return found


def _near(thumbnails: NDArray[np.uint8], threshold: float) -> Iterator[tuple[int, int, bool, float]]:
    """Yield (i, j, mirrored, RMSE) for i < j; a pair that is near both ways is yielded once, unmirrored.

    The RMSE of 4 x 4 block means never exceeds the RMSE of the pixels (Jensen), so that comparing the block means, a
    matrix product sixteen times smaller, discards most pairs and loses none.
    """
    count, blocks = len(thumbnails), _SIDE // _POOL
    shape = (count, blocks, _POOL, blocks, _POOL, 3)
    means = thumbnails.reshape(shape).mean((2, 4), dtype=np.float32) - 127.5
    direct, flipped = means.reshape(count, -1), means[:, :, ::-1].reshape(count, -1)
    norms = (direct**2).sum(1)
    limit = (threshold**2 + 1) * direct.shape[1]  # one squared level of slack for rounding in the matrix product
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        near = [norms[rows, None] + norms - 2 * direct[rows] @ other.T < limit for other in (direct, flipped)]
        for i in range(start, min(start + _CHUNK, count)):
            candidates = np.flatnonzero(near[0][i - start] | near[1][i - start])
            candidates = candidates[candidates > i]
            for j in candidates:
                distances = [_rmse(thumbnails[i], other) for other in (thumbnails[j], thumbnails[j][:, ::-1])]
                mirrored = distances[0] >= threshold
                if distances[mirrored] < threshold:
                    yield i, int(j), mirrored, distances[mirrored]


def _rmse(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    difference = first.astype(np.float32) - second
    return float(np.sqrt((difference**2).mean()))
