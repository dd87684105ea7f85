"""How good generated pictures are: FID and KID over a named feature extractor."""

from lorica.quality.extractors import EXTRACTORS, Extractor
from lorica.quality.metrics import fid, kid, measure

__all__ = ["EXTRACTORS", "Extractor", "fid", "kid", "measure"]
