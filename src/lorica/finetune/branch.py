"""The LoRA branch of AutoLoRa: the network's weights plus low-rank updates, for natural pictures in training only."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lorica.errors import LoricaError
from lorica.vision import Classifier

Coverage = Literal["all", "last-block"]


class LoraBranch(nn.Module):
    """Low-rank updates for the layers of a feature extractor (arXiv 2310.01818, section 3.3).

    Of a k x k convolution, A is (r k, C_in k), drawn from N(0, 1), and B (C_out k, r k) is zero, so that the branch
    begins as the network itself; the update is B A / r, read as (C_out, C_in, k, k). A linear layer is a convolution
    of k = 1. Stem, head, grouped convolutions and those that are not square have none.

    Args:
        classifier: whose layers are covered; it is not changed.
        rank: r (paper: 8).
        coverage: "all" covers every layer of the blocks and the shortcuts; "last-block" those of the last block of
            each stage only, and no shortcut, which is what the authors' code for high resolutions reaches.

    Raises:
        LoricaError: no layer can be covered.
    """

    def __init__(self, classifier: Classifier, *, rank: int = 8, coverage: Coverage = "all") -> None:
        super().__init__()
        self.rank = rank
        self.shapes = {name: layer.weight.shape for name, layer in _covered(classifier, coverage)}
        if not self.shapes:
            raise LoricaError(
                f"{classifier.architecture.name} has no layer for a LoRA branch of coverage {coverage}",
                "Use --set options.branch_coverage=all, or another network.",
            )
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, (outputs, inputs, *kernel) in self.shapes.items():
            k = kernel[0] if kernel else 1
            self.down[_key(name)] = nn.Parameter(torch.randn(rank * k, inputs * k))
            self.up[_key(name)] = nn.Parameter(torch.zeros(outputs * k, rank * k))

    def weight(self, name: str, frozen: Tensor) -> Tensor:
        """W + B A / r of one layer; gradient flows into A and B only."""
        update = self.up[_key(name)] @ self.down[_key(name)]
        return frozen.detach() + update.view(frozen.shape) / self.rank

    def forward(self, classifier: Classifier, pixels: Tensor) -> Tensor:
        """Logits of the branch: h of (theta_1 held fixed + B A, theta_2), (N, classes).

        Gradient reaches A, B and the head, nothing else: batch norms are shared, their scales held fixed.
        """
        fixed = {name: parameter.detach() for name, parameter in classifier.feature_parameters()}
        for name in self.shapes:
            fixed[f"{name}.weight"] = self.weight(name, fixed[f"{name}.weight"])
        return functional_call(classifier, fixed, (pixels,))


def _key(name: str) -> str:
    return name.replace(".", "/")  # a parameter's name may hold no dot


def _covered(classifier: Classifier, coverage: Coverage) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    head = tuple({name.rpartition(".")[0] for name in classifier.head_names()})
    layers = [
        (name, module) for name, module in classifier.named_modules() if _plain(module) and not _within(name, head)
    ]
    stems = _stems(classifier, [name for name, _ in layers])
    layers = [(name, module) for name, module in layers if not _within(name, stems)]
    if coverage == "all":
        yield from layers
        return
    last: dict[str, str] = {}
    for name, _ in layers:
        stage, block = _place(name)
        if stage is not None and int(block) >= int(last.get(stage, 0)):
            last[stage] = block
    for name, module in layers:
        stage, block = _place(name)
        if stage is not None and last[stage] == block and "downsample" not in name.split("."):
            yield name, module


def _plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.kernel_size[0] == module.kernel_size[1]
    return isinstance(module, nn.Linear)


def _within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _stems(classifier: Classifier, layers: list[str]) -> tuple[str, ...]:
    """Where pictures enter: timm names the first convolution, and the stem is the part that it lies in.

    Where that part is most of the network (`features` of a DenseNet), the stem is a part of it.
    """
    first = (getattr(classifier.backbone, "pretrained_cfg", None) or {}).get("first_conv") or "conv1"
    stems = []
    for name in [first] if isinstance(first, str) else first:
        stem, *deeper = f"backbone.{name}".split(".")
        while deeper and 2 * sum(_within(layer, (stem,)) for layer in layers) > len(layers):
            stem = f"{stem}.{deeper.pop(0)}"
        stems.append(stem)
    return tuple(stems)


def _place(name: str) -> tuple[str | None, str]:
    """("backbone.layer3", "1") of backbone.layer3.1.conv2; (None, "") outside of stages."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    # The innermost: stages may be numbered too, as in layers.3.blocks.1 and blocks.3.1.
    inwards = (i for i in reversed(numbers) if parts[i - 1].startswith(("layer", "blocks")) or i - 1 in numbers)
    at = next(inwards, None)
    return (None, "") if at is None else (".".join(parts[:at]), parts[at])


def parameters_of(branch: LoraBranch) -> int:
    """Number of parameters that the branch adds in training: r k^2 (C_in + C_out) per layer."""
    return sum(math.prod(parameter.shape) for parameter in branch.parameters())
