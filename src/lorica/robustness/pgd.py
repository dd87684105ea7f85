"""Projected gradient descent and its one-step relative N-FGSM: the attacks of adversarial training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorica.devices import sent
from lorica.robustness.threat import Threat

Model = Callable[[Tensor], Tensor]
"""Pixels (N, C, H, W) in [0, 1] to logits (N, classes)."""

Loss = Callable[[Tensor], Tensor]
"""Logits to the number that the attacker raises, summed over pictures."""


def cross_entropy(labels: Tensor) -> Loss:
    """The attacker's usual loss; labels (N,) int64."""
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


def divergence(natural: Tensor) -> Loss:
    """KL(natural || adversarial), TRADES' attack (arXiv 1901.08573, eq. 5); logits (N, classes), detached here."""
    target = natural.detach().softmax(dim=1)
    return lambda logits: F.kl_div(logits.log_softmax(dim=1), target, reduction="sum")


@contextmanager
def crafting(model: nn.Module) -> Iterator[None]:
    """Eval mode and frozen weights inside the block: no gradient is computed but that of the pixels.

    Leaving out the weights' gradients saves a third of an attack's arithmetic.
    """
    modes = [(module, module.training) for module in model.modules()]
    thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


def pgd(
    model: Model,
    pixels: Tensor,
    loss: Loss,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
) -> Tensor:
    """Projected gradient ascent on the loss (Madry et al., ICLR 2018, arXiv 1706.06083); the last iterate.

    `steps` forward and backward passes, nothing else, and no waiting for the device.

    Args:
        model: as it is: in eval mode and frozen, if the caller wants it so (`crafting`).
        pixels: (N, C, H, W) in [0, 1].
        loss: `cross_entropy(labels)` or `divergence(natural logits)`.
        threat: the allowed pictures.
        steps: number of steps; 0 returns the start.
        step_size: length of a step, in the units of `threat.eps`.
        start: where to begin, e.g. `threat.random(pixels)`; by default at the pictures themselves.

    Returns:
        (N, C, H, W), detached.
    """
    adversarial = (pixels if start is None else start).detach()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(model(adversarial)), adversarial)
        adversarial = threat.project(adversarial.detach() + step_size * threat.ascend(gradient), pixels)
    return adversarial.detach()


def n_fgsm(
    model: Model,
    pixels: Tensor,
    loss: Loss,
    threat: Threat,
    *,
    generator: torch.Generator | None = None,
    noise: float = 2.0,
) -> Tensor:
    """One gradient step of length eps from strong noise, not projected back (de Jorge et al., NeurIPS 2022, arXiv
    2202.01181, algorithm 1): a tenth of PGD-10's passes, and less prone to catastrophic overfitting than plain FGSM.

    For training only: its pictures may lie outside the threat model.

    Args:
        model: as in `pgd`; likewise pixels and loss.
        pixels: (N, C, H, W) in [0, 1].
        loss: what to raise.
        threat: L-inf; eps is the step.
        generator: of the noise.
        noise: its size k, uniform in [-k eps, k eps] (paper: 2).

    Raises:
        ValueError: another norm than L-inf.
    """
    if threat.norm != "linf":
        raise ValueError("N-FGSM is defined for L-inf")
    home = pixels.device if generator is None else generator.device
    uniform = sent(torch.rand(pixels.shape, generator=generator, device=home), pixels.device)
    noisy = (pixels + noise * threat.eps * (2 * uniform - 1)).requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(model(noisy)), noisy)
    return (noisy.detach() + threat.eps * gradient.sign()).clamp(0, 1)


def worst_of(
    model: Model,
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """PGD on cross-entropy for evaluation: per picture, a restart that fooled the model where one did.

    Args:
        model: as in `pgd`; likewise threat, steps and step_size.
        pixels: (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        threat: the allowed pictures.
        steps: per restart.
        step_size: length of a step.
        restarts: independent random starts, at least 1.
        random_start: False starts at the pictures, once.
        generator: of the starts.

    Returns:
        (N, C, H, W); the picture itself where the model is wrong about it already.
    """
    if restarts < 1:
        raise ValueError(f"{restarts} restarts attack nothing")
    with torch.no_grad():
        fooled = model(pixels).argmax(dim=1) != labels
    worst = pixels
    for restart in range(restarts if random_start else 1):
        start = threat.random(pixels, generator) if random_start else None
        found = pgd(model, pixels, cross_entropy(labels), threat, steps=steps, step_size=step_size, start=start)
        with torch.no_grad():
            wrong = model(found).argmax(dim=1) != labels
        # The first attempt is kept even where it fools nobody: the picture of a failed attack is still one.
        taken = ((wrong | (restart == 0)) & ~fooled).view(-1, 1, 1, 1)
        worst = torch.where(taken, found, worst)
        fooled = fooled | wrong
    return worst
