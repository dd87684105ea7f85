"""Residual networks for small pictures, which timm lacks: a 3x3 stem without pooling, registered as timm models.

`timm.create_model("cifar_resnet18")` works after `import lorica.vision.cifar_resnet`. Parameters are named as in timm
and torchvision (conv1, bn1, layer1.0.conv1, ..., layer2.0.downsample.0, fc).
"""

from typing import Any

import torch.nn.functional as F
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016, arXiv 1512.03385, figure 2)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(kept), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut (arXiv 1512.03385, figure 5)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)).add_(kept), inplace=True)


class PreactivationBlock(nn.Module):
    """Normalisation before each 3x3 convolution: wide ResNets (Zagoruyko and Komodakis, arXiv 1605.07146)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.downsample = None if shortcut is None else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        kept = x if self.downsample is None else self.downsample(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True)).add_(kept)


class PaddedShortcut(nn.Module):
    """Option A of arXiv 1512.03385, section 3.3: every other pixel, new channels filled with zeros; no parameters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        before = self.added // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.added - before))


Block = type[BasicBlock] | type[Bottleneck] | type[PreactivationBlock]


class CifarResNet(nn.Module):
    """A residual network for pictures of about 32 pixels: (N, 3, H, W) -> logits (N, num_classes).

    Args:
        block: of which the stages are made.
        depths: blocks per stage; every stage but the first halves the resolution.
        width: channels of the first stage, doubled by each further one, before the block's expansion and `widen`.
        widen: factor on the stages' channels, not on the stem's.
        padded_shortcuts: shortcuts of option A instead of 1x1 convolutions.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the input.
        global_pool: "avg", "max", "avgmax" or "" as in timm.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, ...],
        width: int = 64,
        widen: int = 1,
        padded_shortcuts: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.drop_rate = num_classes, drop_rate
        preactivated = block is PreactivationBlock
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = nn.Identity() if preactivated else nn.BatchNorm2d(width)
        self.stages = [f"layer{i + 1}" for i in range(len(depths))]
        channels = width
        for i, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            inner = width * widen * 2**i
            outer = inner * block.expansion
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(channels, inner, stride, _shortcut(channels, outer, stride, padded_shortcuts)))
                channels = outer
            self.add_module(name, nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(channels) if preactivated else nn.Identity()
        self.num_features = self.head_hidden_size = channels
        self.global_pool, self.fc = create_classifier(channels, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The head, as in timm."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for other classes, as in timm; None keeps the pooling."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, h, w), before pooling."""
        x = self.bn1(self.conv1(x))
        if isinstance(self.norm, nn.Identity):
            x = F.relu(x, inplace=True)
        for name in self.stages:
            x = getattr(self, name)(x)
        return x if isinstance(self.norm, nn.Identity) else F.relu(self.norm(x), inplace=True)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or pooled features (N, C)."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _shortcut(inputs: int, outputs: int, stride: int, padded: bool) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    if padded:
        return PaddedShortcut(inputs, outputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


_CONFIG = {
    "url": "", "num_classes": 10, "input_size": (3, 32, 32), "pool_size": None, "crop_pct": 1.0,
    "interpolation": "bilinear", "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616),
    "first_conv": "conv1", "classifier": "fc",
}  # fmt: skip

_FAMILY: dict[str, dict[str, Any]] = {
    "cifar_resnet18": {"block": BasicBlock, "depths": (2, 2, 2, 2)},
    "cifar_resnet34": {"block": BasicBlock, "depths": (3, 4, 6, 3)},
    "cifar_resnet50": {"block": Bottleneck, "depths": (3, 4, 6, 3)},
    # arXiv 1512.03385, section 4.2
    **{
        f"cifar_resnet{6 * n + 2}": {"block": BasicBlock, "depths": (n, n, n), "width": 16, "padded_shortcuts": True}
        for n in (3, 5, 7, 9)
    },
    "cifar_wrn16_4": {"block": PreactivationBlock, "depths": (2, 2, 2), "width": 16, "widen": 4},
    "cifar_wrn28_10": {"block": PreactivationBlock, "depths": (4, 4, 4), "width": 16, "widen": 10},
    "cifar_wrn34_10": {"block": PreactivationBlock, "depths": (5, 5, 5), "width": 16, "widen": 10},
}

default_cfgs = generate_default_cfgs({f"{name}.untrained": _CONFIG for name in _FAMILY})  # timm looks for this name


def _entry(name: str) -> None:
    """Register one of the family with timm, which takes the name from a function of this module."""

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return build_model_with_cfg(CifarResNet, name, pretrained, **{**_FAMILY[name], **options})

    create.__name__ = create.__qualname__ = name
    globals()[name] = register_model(create)


for _name in _FAMILY:
    _entry(_name)
