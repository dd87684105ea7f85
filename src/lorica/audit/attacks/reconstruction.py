"""Reconstruction: does the model, given the picture's caption, draw something like the picture?"""

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator

from lorica.audit.attacks.base import Features, StatisticAttack, register
from lorica.config import Config
from lorica.diffusion.noise import keyed_uniform
from lorica.quality import EXTRACTORS, Extractor, features

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting

_SCHEDULER = "dpm++"  # needs the fewest steps


class ReconstructionOptions(Config):
    pictures: int = Field(3, ge=1, description="pictures drawn for each caption")
    steps: int = Field(3, ge=1, description="denoising steps of each (dpm++)")
    guidance: float = Field(
        3.0,
        ge=0,
        description="classifier-free guidance scale; above 1 a step costs two UNet calls. Some guidance draws what "
        "the caption is about, much of it overshoots; fewer steps want more of it",
    )
    extractor: str = Field(
        "builtin",
        description=f"features in which pictures are compared: {', '.join(EXTRACTORS)}. builtin sees colour, layout "
        "and texture and needs no download; the paper's is a trained network",
    )
    closeness: Literal["cosine", "distance"] = Field(
        "cosine", description="of two pictures: cosine of their features, or minus the Euclidean distance"
    )
    over: Literal["max", "mean"] = Field("max", description="score: the closest drawn picture, or the mean over all")

    @field_validator("extractor")
    @classmethod
    def _known(cls, name: str) -> str:
        EXTRACTORS[name]
        return name


@register("reconstruction")
class ReconstructionAttack(StatisticAttack[ReconstructionOptions]):
    """Score = max_k cos(f(x), f(y_k)), where y_1 ... y_n are drawn from the caption of x and f is a feature extractor.

    All that an attacker sees who may only prompt. Noise is keyed by picture and k: base and LoRA draw from the same.
    Nothing of it is shared with other attacks. A few steps are enough: pictures need not be good to be compared.

    Raises:
        LoricaError: the extractor is unknown or cannot be had.
    """

    summary = "closeness of the picture to pictures drawn from its caption"
    source = "threshold form of Pang and Wang, NDSS 2025 (arXiv 2312.08207), by default over the built-in extractor"
    threat_model = "black"
    needs_caption = True
    Options = ReconstructionOptions

    def __init__(self, options: ReconstructionOptions | None = None) -> None:
        super().__init__(options)
        self._extractor = _built(self.options.extractor)  # what is missing is missed before any model runs

    @property
    def queries(self) -> int:
        return self.options.pictures * self.options.steps * (2 if self.options.guidance > 1 else 1)

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": "reconstruction", **self.options.model_dump(exclude={"closeness", "over"})}

    def ask(self, sitting: "Sitting") -> "Ask":
        """{"cosine": (N, n) in [-1, 1], "distance": (N, n) >= 0}, between each picture and the n drawn for it."""
        yield from ()
        own = ((sitting.pixels.cpu() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        drawn = [self._drawn(sitting, k) for k in range(self.options.pictures)]
        rows = [
            self._compared([Image.fromarray(picture), *others], sitting.model.device)
            for picture, *others in zip(own, *drawn, strict=True)
        ]
        return {name: np.stack([row[name] for row in rows]) for name in ("cosine", "distance")}

    def _drawn(self, sitting: "Sitting", k: int) -> list[Image.Image]:
        """The k-th picture for each caption."""
        seeds = (keyed_uniform(sitting.encoded.ids, "reconstruction", k, sitting.seed) * 2**53).long().tolist()
        return sitting.model.sample(
            sitting.captions,
            seed=seeds,
            steps=self.options.steps,
            guidance=self.options.guidance,
            scheduler=_SCHEDULER,
            batch_size=len(seeds),
            progress=False,
        )

    def _compared(self, pictures: list[Image.Image], device: torch.device) -> Features:
        """The first with each of the others. One picture at a time: its features must not depend on its batch."""
        found = features(pictures, self._extractor, device=device).numpy()
        picture, drawn = found[0], found[1:]
        sizes = np.linalg.norm(found, axis=1)
        return {
            "cosine": drawn @ picture / np.maximum(sizes[0] * sizes[1:], np.finfo(np.float64).tiny),
            "distance": np.linalg.norm(drawn - picture, axis=1),
        }

    def statistic(self, features: Features) -> NDArray[np.float64]:
        closeness = features["cosine"] if self.options.closeness == "cosine" else -features["distance"]
        return np.asarray(closeness.max(axis=1) if self.options.over == "max" else closeness.mean(axis=1), np.float64)


@cache
def _built(name: str) -> Extractor:
    return EXTRACTORS[name]()
