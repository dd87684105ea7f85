"""Augmentation: flipped and cropped views of the pictures, encoded once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from lorica.adapt.defences.base import DEFENCES, Defence
from lorica.adapt.pools import Batch, Pool
from lorica.config import Config
from lorica.data.pictures import Picture
from lorica.data.views import View
from lorica.diffusion import LatentDiffusion, encode_latents
from lorica.errors import LoricaError
from lorica.seeds import stable_seed


class AugmentConfig(Config):
    """Which views."""

    flip: bool = Field(True, description="mirror every other view")
    crop: float = Field(0.8, ge=0.25, le=1, description="smallest share of a side that a view keeps; 1 crops nothing")
    views: int = Field(8, ge=2, description="views per picture, the picture itself being the first; encoded once")


@DEFENCES.register("augment")
class Augment(Defence[AugmentConfig]):
    """Shows one of `views` fixed views of a picture at each draw. Validation and audits see the picture itself.

    Views belong to the picture, so that runs share them in the cache; only the draws depend on the seed.
    """

    summary = "shows flipped and cropped views of the pictures"
    source = "arXiv 2405.14800, table 4 (what it costs attacks)"
    Options = AugmentConfig

    @classmethod
    def check(cls, options: AugmentConfig, config: Any) -> None:
        if not options.flip and options.crop == 1:
            raise LoricaError("defence augment neither flips nor crops", "Set its flip or crop, or leave it out.")

    @property
    def augmentation(self) -> str:  # type: ignore[override]
        o = self.options
        parts = ["horizontal flips"] * o.flip + [f"crops down to {o.crop:g} of a side"] * (o.crop < 1)
        return f"{', '.join(parts)} ({o.views} views per picture)"

    def view(self, picture: Picture, number: int, size: int) -> View:
        """View `number` (0 is the picture as it is) of a picture of size x size pixels; the same in every run."""
        if number == 0:
            return View()
        lots = [stable_seed("view", picture.sha256, number, what) / 2**63 for what in ("side", "left", "top")]
        side = round(size * (self.options.crop + (1 - self.options.crop) * lots[0]))
        left, top = (int(lot * (size - side + 1)) for lot in lots[1:])
        return View(self.options.flip and number % 2 == 1, None if side == size else (left, top, side))

    def pool(self, pool: Pool, pictures: Sequence[Picture], model: LatentDiffusion, cache: Path) -> Pool:
        more = [
            encode_latents(model, pictures, cache, [self.view(p, number, model.resolution) for p in pictures])
            for number in range(1, self.options.views)
        ]
        return replace(pool, latents=torch.cat([pool.latents, *(latents.to(pool.latents) for latents in more)]))

    def batch(self, batch: Batch) -> Batch:
        draw, views = batch.draw, self.options.views
        shown = [stable_seed(self.seed, "view", draw.stream, place) % views for place in draw.places]
        return replace(batch, rows=batch.rows + len(batch.pool) * torch.tensor(shown))
