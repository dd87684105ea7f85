"""FID and KID between two sets of pictures, through torchmetrics, over any registered feature extractor."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lorica.errors import LoricaError
from lorica.quality.extractors import EXTRACTORS, Extractor

Pictures = Tensor | Sequence[Image.Image]
"""uint8 (N, 3, H, W) in [0, 255], or PIL pictures, all of one size."""

USUAL_SUBSET = 1000  # pictures per KID subset in Bińkowski et al. 2018 and torchmetrics
BATCH = 64


def measure(
    real: Pictures,
    generated: Pictures,
    extractor: str | Extractor = "builtin",
    *,
    subset_size: int | None = None,
    subsets: int = 100,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """FID and KID of generated pictures against real ones.

    Args:
        real: reference pictures, at least two.
        generated: generated pictures, at least two, of the size of the real ones: resize before, and the same way.
        extractor: name of a registered extractor, or one already built.
        subset_size: pictures per KID subset; None takes 1000, the usual number, or half of the smaller set where that
            has fewer than 1000 pictures.
        subsets: KID subsets.
        seed: of the draw of the KID subsets.
        device: where the features are computed.

    Returns:
        JSON-ready: {"fid": >= 0, "kid": {"value", "std", "subset_size", "subsets", "seed"}, "extractor": name,
        "dimension", "comparable": whether the numbers may be set beside published ones, "note",
        "counts": {"real", "generated"}, "warnings": [sentence, ...]}. Lower is better for both; KID may be slightly
        negative where the two sets hardly differ.

    Raises:
        LoricaError: too few pictures, pictures of several sizes, or an extractor that is unknown or cannot be had.
    """
    if isinstance(extractor, str):
        extractor = EXTRACTORS[extractor]()
    real_features = features(real, extractor, device=device)
    generated_features = features(generated, extractor, device=device)
    distance = _kid(real_features, generated_features, subset_size=subset_size, subsets=subsets, seed=seed)
    counts = {"real": len(real_features), "generated": len(generated_features)}
    return {
        "fid": _fid(real_features, generated_features),
        "kid": distance,
        "extractor": extractor.name,
        "dimension": extractor.num_features,
        "comparable": extractor.comparable,
        "note": extractor.note,
        "counts": counts,
        "warnings": _warnings(counts, extractor, distance["subset_size"]),
    }


def fid(real: Pictures, generated: Pictures, extractor: Extractor, *, device: torch.device | str = "cpu") -> float:
    """Fréchet distance ||m_r - m_g||^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2)) of the features' means and covariances.

    Heusel et al. 2017 (arXiv 1706.08500), equation (6). Biased upwards, the more so the fewer the pictures (Chong and
    Forsyth 2020, arXiv 1911.07023): compare at equal counts only.

    Raises:
        LoricaError: fewer than two pictures in a set, or pictures of several sizes.
    """
    return _fid(features(real, extractor, device=device), features(generated, extractor, device=device))


def kid(
    real: Pictures,
    generated: Pictures,
    extractor: Extractor,
    *,
    subset_size: int | None = None,
    subsets: int = 100,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Squared MMD of the features under the kernel (x.y / D + 1)^3, unbiased, averaged over random subsets.

    Bińkowski et al. 2018 (arXiv 1801.01401), section 4.

    Returns:
        {"value": mean over the subsets, "std": standard deviation between them, "subset_size", "subsets", "seed"}. The
        deviation is no standard error: it describes single subsets, which overlap.

    Raises:
        LoricaError: as for `fid`, or a subset larger than the smaller set.
    """
    return _kid(
        features(real, extractor, device=device),
        features(generated, extractor, device=device),
        subset_size=subset_size,
        subsets=subsets,
        seed=seed,
    )


@torch.inference_mode()
def features(pictures: Pictures, extractor: Extractor, *, device: torch.device | str = "cpu") -> Tensor:
    """(N, D) float64 features on the CPU, computed batch by batch."""
    if len(pictures) < 2:
        raise LoricaError(f"FID and KID need at least two pictures, here are {len(pictures)}", "Give more pictures.")
    extractor = extractor.to(device)
    batches = (_stack(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH))
    found = torch.cat([extractor(batch.to(device)).double().cpu() for batch in batches])
    # LAPACK can crash the interpreter on NaN.
    if not found.isfinite().all():
        raise ValueError(f"extractor {extractor.name} gave features that are not finite")
    return found


class _Given(nn.Module):
    """Lets torchmetrics take features where it expects pictures, so that they are extracted once for both metrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, given: Tensor) -> Tensor:
        return given


def _fid(real: Tensor, generated: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]))
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return max(float(metric.compute()), 0.0)  # rounding can leave equal sets at -1e-9


def _kid(real: Tensor, generated: Tensor, *, subset_size: int | None, subsets: int, seed: int) -> dict[str, Any]:
    smaller = min(len(real), len(generated))
    if subset_size is None:
        subset_size = USUAL_SUBSET if smaller >= USUAL_SUBSET else max(2, smaller // 2)
    if not 2 <= subset_size <= smaller:
        raise LoricaError(
            f"KID subsets of {subset_size} pictures cannot be drawn: the smaller set has {smaller}",
            f"Give a subset size from 2 to {smaller}.",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "will save all extracted features": they are in memory anyway
        metric = KernelInceptionDistance(feature=_Given(real.shape[1]), subsets=subsets, subset_size=subset_size)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator
        torch.manual_seed(seed)
        mean, std = metric.compute()
    return {"value": float(mean), "std": float(std), "subset_size": subset_size, "subsets": subsets, "seed": seed}


def _warnings(counts: dict[str, int], extractor: Extractor, subset_size: int) -> list[str]:
    found = []
    smaller = min(counts.values())
    if smaller <= extractor.num_features:
        found.append(
            f"FID is unreliable: the smaller set has {smaller} pictures, a covariance of {extractor.num_features} "
            f"features has full rank from {extractor.num_features + 1} on. Prefer KID, and compare FID at equal "
            "counts only."
        )
    if subset_size == smaller:
        found.append(
            f"The KID subsets of {subset_size} pictures take in the whole of the smaller set, so their standard "
            "deviation says little or nothing about the sampling error."
        )
    if subset_size < USUAL_SUBSET:
        found.append(
            f"KID uses subsets of {subset_size} pictures instead of the usual {USUAL_SUBSET}: its value is unbiased "
            "at any size, but its spread is larger."
        )
    return found


def _stack(pictures: Pictures) -> Tensor:
    if isinstance(pictures, Tensor):
        if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[1] != 3:
            shape = tuple(pictures.shape)
            raise ValueError(f"pictures must be uint8 of shape (N, 3, H, W), not {pictures.dtype} of shape {shape}")
        return pictures
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        raise LoricaError(
            f"pictures of several sizes, for example {sizes[0]} and {sizes[-1]}",
            "Bring them to one size first (lorica.data.pictures.fit).",
        )
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])).permute(0, 3, 1, 2)
