"""What FID and KID look at: named maps from a picture to a vector of features."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from lorica.registry import Registry


class Extractor(nn.Module):
    """A frozen feature map. `num_features`, not `dimension`, because that is the name torchmetrics knows."""

    name: ClassVar[str]
    num_features: ClassVar[int]
    comparable: ClassVar[bool]
    """Whether FID and KID over these features may be set beside the FID and KID of publications."""
    note: ClassVar[str]
    """What a reader of the numbers has to know."""

    @abstractmethod
    def forward(self, pictures: Tensor) -> Tensor:
        """Features (N, num_features) float32 of pictures (N, 3, H, W) uint8 in [0, 255]."""


EXTRACTORS: Registry[Extractor] = Registry("extractor")
