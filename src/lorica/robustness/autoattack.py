"""AutoAttack (Croce and Hein, ICML 2020, arXiv 2003.01690): its original attacks, made resumable, counted and checked.

The attacks are those of the package pyautoattack, which carries the authors' code. With the same seed, pictures and
batch size, `autoattack` breaks the same pictures as pyautoattack's own `run_standard_evaluation`: both give every
batch of every attack the same seed, so that a batch is also the same one in a run that was killed and resumed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from types import ModuleType
from typing import Any, Literal

from torch import Tensor, nn

from lorica.errors import LoricaError
from lorica.robustness.attacked import AttackedBatch, Counted, Kept, Outcome, attack_in_batches, predict
from lorica.robustness.flags import Flag
from lorica.robustness.threat import Threat

Tier = Literal["quick", "lite", "standard"]

TIERS: dict[Tier, tuple[str, ...]] = {
    "quick": ("apgd-ce",),
    "lite": ("apgd-ce", "apgd-t"),
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
}
"""Attacks by tier, in the order in which they run. What quick and lite leave bounds from above what standard does."""

_NOTICEABLE = 0.002  # by which Square has to beat the others to be suspicious (AutoAttack's own rule)


@dataclass(frozen=True)
class AutoAttackSettings:
    """The sizes of the attacks; by default those of AutoAttack's version "standard" for L-inf and L2.

    Attributes:
        attacks: of `TIERS`, or apgd-dlr, in order.
        iterations: of APGD and FAB.
        restarts: of the untargeted APGD.
        targets: classes that APGD-T and FAB-T aim at, the likeliest wrong ones; at most classes - 1.
        queries: of Square.
    """

    attacks: tuple[str, ...] = TIERS["standard"]
    iterations: int = 100
    restarts: int = 1
    targets: int = 9
    queries: int = 5000


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """What AutoAttack left.

    Attributes:
        robust: (N,) bool, classified rightly whatever was tried.
        after: attack -> (N,) bool, the same after this attack and those before it.
        outcomes: attack -> what it broke and what it cost.
        settings: as run.
        flags: few_classes, square_padded and square_beats_white_box, where they apply.
        kept: the pictures that fooled the model.
    """

    robust: Tensor
    after: dict[str, Tensor]
    outcomes: dict[str, Outcome]
    settings: AutoAttackSettings
    flags: list[Flag]
    kept: Kept = field(repr=False)

    def batches(self) -> Iterator[AttackedBatch]:
        """All attacked batches; no picture is broken in two of them."""
        return chain.from_iterable(self.kept.batches(attack) for attack in self.outcomes)


def autoattack(
    model: Counted | nn.Module,
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    settings: AutoAttackSettings | None = None,
    seed: int = 0,
    batch_size: int = 250,
    logits: Tensor | None = None,
    kept: Kept | None = None,
    advance: Callable[[str, int, int], None] | None = None,
) -> AutoAttackResult:
    """Run the attacks one after the other, each on the pictures that are still classified rightly.

    Args:
        model: pixels (N, 3, H, W) in [0, 1] to logits; frozen and in eval mode meanwhile.
        pixels: (N, 3, H, W), uint8 or floats in [0, 1], on the CPU.
        labels: (N,) int64.
        threat: eps has no default here: the original's, 0.3, is not what anyone means on photographs.
        settings: by default AutoAttack's standard ones.
        seed: of every batch of every attack.
        batch_size: pictures at a time. Random numbers depend on it.
        logits: (N, classes) of the pictures, if they are known.
        kept: where results go; given those of a killed run, that run is gone on with.
        advance: told before the first and after every batch (attack, pictures done, of how many).

    Raises:
        LoricaError: pyautoattack is not installed, a single class, or results cannot be written.
    """
    counted = model if isinstance(model, Counted) else Counted(model)
    kept = Kept() if kept is None else kept
    height, width = pixels.shape[-2:]
    with counted.attacked():
        logits = predict(counted, pixels, batch_size=batch_size) if logits is None else logits
        settings, flags = fitted(settings or AutoAttackSettings(), logits.shape[1], (height, width), threat)
        padded = any(flag.name == "square_padded" for flag in flags)
        attacks = original().attackers(counted, threat, settings, padded=padded, seed=seed)
        robust = logits.argmax(dim=1) == labels
        after, outcomes = {"natural": robust}, {}
        for name in settings.attacks:
            outcomes[name] = attack_in_batches(
                name, _whatever_the_batch(attacks[name]), counted, pixels, labels, robust.nonzero().flatten(),
                kept=kept, batch_size=batch_size, advance=None if advance is None else _about(advance, name),
            )  # fmt: skip
            after[name] = robust = robust & ~outcomes[name].broken
    flags += _suspicious_square(after)
    del after["natural"]
    return AutoAttackResult(robust, after, outcomes, settings, flags, kept)


def fitted(
    settings: AutoAttackSettings, classes: int, size: tuple[int, int], threat: Threat
) -> tuple[AutoAttackSettings, list[Flag]]:
    """The settings that are possible for so many classes and pictures of this (H, W), and what had to be changed.

    The targeted DLR loss is a ratio of four logits, the untargeted one of three (arXiv 2003.01690, section 4). With
    three classes APGD-T gives way to five restarts of APGD-DLR; with two it is left out. In both cases APGD-CE starts
    five times as well. FAB-T and Square know no such limit.

    Raises:
        LoricaError: fewer than two classes.
    """
    if classes < 2:
        raise LoricaError("the model has a single class", "There is nothing to attack.")
    flags = []
    settings = replace(settings, targets=min(settings.targets, classes - 1))
    if classes < 4 and "apgd-t" in settings.attacks:
        without = tuple(name for name in settings.attacks if name != "apgd-t")
        replaced = tuple("apgd-dlr" if name == "apgd-t" else name for name in settings.attacks)
        attacks = without if classes == 2 else replaced
        settings = replace(settings, attacks=attacks, restarts=max(5, settings.restarts))
        changed = "is left out" if classes == 2 else "gives way to APGD-DLR"
        problem = (
            f"with {classes} classes there is no targeted DLR loss: APGD-T {changed}, and untargeted APGD starts "
            f"{settings.restarts} times"
        )
        flags.append(Flag("few_classes", True, classes, problem, _NAME_IT, doubt=False))
    if "square" in settings.attacks and threat.norm == "l2" and not tiles_fit(*size):
        problem = (
            f"the original Square attack does not start in L2 on pictures of {size[0]} x {size[1]} pixels: it ran on "
            "a padded canvas, of which it could change the picture only"
        )
        flags.append(Flag("square_padded", True, list(size), problem, _NAME_IT, doubt=False))
    return settings, flags


_NAME_IT = "Name this change wherever the number stands beside that of standard AutoAttack."


def tiles_fit(height: int, width: int) -> bool:
    """Whether the original Square attack can start in L2 on pictures of this size.

    It lays a grid of tiles whose sides are a fifth of the height. They jut out of some pictures that are not square,
    and of square ones of 12, 14, 18, 19 or 24 pixels a side; below 5 there is no tile.
    """
    side = height // 5
    start = (height - 5 * side) // 2
    return side == 1 or (side > 1 and all(start + length // side * side <= length for length in (height, width)))


def original() -> ModuleType:
    """The authors' attacks.

    Raises:
        LoricaError: pyautoattack is not installed.
    """
    try:
        from lorica.robustness import _original
    except ImportError as error:
        raise LoricaError(
            f"AutoAttack needs {error.name}, which is missing", "pip install 'lorica[vision]'"
        ) from error
    return _original


def _whatever_the_batch(attack: Any) -> Callable[[int, Tensor, Tensor], Tensor]:
    return lambda number, pixels, labels: attack.perturb(pixels, labels)


def _about(advance: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda done, total: advance(name, done, total)


def _suspicious_square(after: dict[str, Tensor]) -> list[Flag]:
    if "square" not in after or len(after) < 3:
        return []
    shares = {name: float(robust.double().mean()) for name, robust in after.items()}
    gain = min(share for name, share in shares.items() if name != "square") - shares["square"]
    problem = (
        f"Square, which sees no gradient, broke another {100 * gain:.1f} % of the pictures after all attacks by "
        "gradient: gradients may be masked"
    )
    advice = "Look for what hides them (saturated outputs, rounding, randomness), and attack the model without it."
    return [Flag("square_beats_white_box", gain > _NOTICEABLE, gain, problem, advice)]
