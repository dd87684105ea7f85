"""Caption dropout: now and then a picture is shown with the empty caption."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field

from lorica.adapt.defences.base import DEFENCES, Defence
from lorica.adapt.pools import Batch, Pool
from lorica.config import Config
from lorica.data.pictures import Picture
from lorica.diffusion import LatentDiffusion, encode_captions
from lorica.seeds import stable_seed


class CaptionDropoutConfig(Config):
    """How often."""

    rate: float = Field(0.1, gt=0, le=1, description="probability that a picture comes with the empty caption")


@DEFENCES.register("caption-dropout")
class CaptionDropout(Defence[CaptionDropoutConfig]):
    """Replaces a drawn picture's caption by the empty one with probability `rate`."""

    summary = "shows a picture with the empty caption now and then: a caption points less clearly to one picture"
    source = "arXiv 2207.12598 (for guidance); against copying, captions changed at random: arXiv 2305.20086"
    Options = CaptionDropoutConfig

    def pool(self, pool: Pool, pictures: Sequence[Picture], model: LatentDiffusion, cache: Path) -> Pool:
        if pool.contexts is None:  # the text encoder is trained: captions are encoded in each step
            return pool
        empty = encode_captions(model, [""], cache).to(pool.contexts)
        return replace(pool, contexts=torch.cat([pool.contexts, empty]))

    def batch(self, batch: Batch) -> Batch:
        draw = batch.draw
        lots = [stable_seed(self.seed, "caption dropout", draw.stream, place) / 2**63 for place in draw.places]
        dropped = torch.tensor(lots, dtype=torch.float64) < self.options.rate
        return replace(batch, captions=torch.where(dropped, len(batch.pool), batch.captions))
