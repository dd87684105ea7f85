"""How good generated pictures are: FID and KID over a named feature extractor."""

# Importing an extractor's module registers it.
from lorica.quality import builtin, inception
from lorica.quality.extractors import EXTRACTORS, Extractor
from lorica.quality.metrics import features, fid, kid, measure

__all__ = ["EXTRACTORS", "Extractor", "builtin", "features", "fid", "inception", "kid", "measure"]
