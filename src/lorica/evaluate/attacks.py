"""Attacks on the evaluated pictures at one radius: plain PGD and AutoAttack, checked, and the worst case of all."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from lorica.devices import exactly
from lorica.evaluate.config import EvaluateConfig
from lorica.evaluate.subject import Subject
from lorica.progress import bar
from lorica.robustness.accuracy import confused, confusion, per_class, rate
from lorica.robustness.attacked import AttackedBatch, Counted, Kept, Outcome, attack_in_batches
from lorica.robustness.autoattack import TIERS, AutoAttackResult, AutoAttackSettings, autoattack, fitted
from lorica.robustness.flags import Flag
from lorica.robustness.pgd import worst_of
from lorica.robustness.recheck import Recheck, recheck
from lorica.robustness.threat import Threat
from lorica.seeds import stable_seed

FOLDER = "attacks"
"""In OUTPUT: the pictures that fooled the model, by radius and settings. They may be deleted; so may the folder."""

LARGEST_MATRIX = 100
"""Classes up to which a confusion matrix is written."""

Attack = Callable[[int, Tensor, Tensor], Tensor]
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Attacked:
    """What was left at one radius.

    Attributes:
        threat: the radius.
        robust: (N,) bool, right whatever was tried here and at smaller radii.
        predictions: (N,) int64, of the worst picture found; the natural one where there is none.
        found: (N,) bool, there is an adversarial picture of this radius on disk, in `batches`.
        entry: for robustness.json.
        flags: reasons for care.
        auto: what AutoAttack did.
        plain: batches of PGD.
    """

    threat: Threat
    robust: Tensor
    predictions: Tensor
    found: Tensor
    entry: dict[str, Any]
    flags: list[Flag]
    auto: AutoAttackResult
    plain: Kept

    def named_batches(self) -> Iterator[tuple[str, AttackedBatch]]:
        """Attacked batches with their attack's name."""
        for name in self.auto.outcomes:
            yield from ((name, batch) for batch in self.auto.kept.batches(name))
        yield from (("pgd", batch) for batch in self.plain.batches("pgd"))


def attack_at(
    threat: Threat,
    model: Counted,
    copied: Counted,
    subject: Subject,
    config: EvaluateConfig,
    logits: Tensor,
    weaker: Attacked | None,
) -> Attacked:
    """Attack all pictures that the model is right about.

    Every radius is attacked as if it were the only one, so that the result does not depend on the others; then what
    broke a picture at a smaller radius breaks it here as well.

    Args:
        threat: the radius.
        model: in `model.attacked()`; has the last word on what the attacks find.
        copied: what they go through in its place.
        subject: with the pictures.
        config: of the evaluation.
        logits: (N, classes), of the natural pictures.
        weaker: the result of the next smaller radius.
    """
    pixels, labels, natural = subject.pictures.pixels, subject.labels, logits.argmax(dim=1)
    right = natural == labels
    settings = AutoAttackSettings(attacks=TIERS[config.tier])
    plain = Kept(_folder(threat, subject, config, {
        "steps": config.pgd_steps, "size": _size(config, threat), "restarts": config.pgd_restarts,
    }))  # fmt: skip
    # Each tier begins with the attacks of the one before, whose batches it finds: what it adds is no part of the key.
    sizes = asdict(fitted(settings, logits.shape[1], subject.model.architecture.size, threat)[0]) | {"attacks": ()}
    kept = Kept(_folder(threat, subject, config, sizes | {"pyautoattack": version("pyautoattack")}))
    with _progress(threat) as advance:
        outcome = None
        if config.pgd_steps:
            outcome = attack_in_batches(
                "pgd", plain_pgd(copied, threat, config), copied, pixels, labels, right.nonzero().flatten(),
                kept=plain, batch_size=config.batch_size, advance=lambda done, total: advance("pgd", done, total),
            )  # fmt: skip
        auto = autoattack(
            copied, pixels, labels, threat, settings=settings, seed=config.seed, batch_size=config.batch_size,
            logits=logits, kept=kept, advance=advance,
        )  # fmt: skip
    with exactly():
        by_auto = recheck(model, pixels, labels, threat, auto.batches())
        by_pgd = recheck(model, pixels, labels, threat, plain.batches("pgd") if outcome else ())
    found = by_auto.broken | by_pgd.broken
    carried = torch.zeros_like(found) if weaker is None else ~weaker.robust & right & ~found
    predictions = torch.where(by_auto.broken, by_auto.predictions, natural)
    predictions = torch.where(by_pgd.broken & ~by_auto.broken, by_pgd.predictions, predictions)
    if weaker is not None:
        predictions = torch.where(carried, weaker.predictions, predictions)
    robust = right & ~found & ~carried
    only_pgd = by_pgd.broken & auto.robust
    entry = {
        "eps": threat.eps,
        "norm": threat.norm,
        "text": str(threat),
        "pgd": None if outcome is None else _pgd_entry(outcome, right, config, threat),
        "autoattack": _auto_entry(auto, config),
        "robust": rate(robust, config.level),
        "upper_bound": config.tier != "standard",
        "broken_by_pgd_only": int(only_pgd.sum()),
        "carried_from_smaller_eps": int(carried.sum()),
        "recheck": _recheck_entry(by_auto, by_pgd),
        "per_class": per_class(robust, labels, subject.classes, config.level),
        **confusions(labels, predictions, subject.classes),
    }
    flags = [*auto.flags, *_flags(entry, len(labels))]
    return Attacked(threat, robust, predictions, found, entry, flags, auto, plain)


def plain_pgd(model: Counted, threat: Threat, config: EvaluateConfig) -> Attack:
    """PGD of the configuration, for `attack_in_batches`."""

    def attack(number: int, pixels: Tensor, labels: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(stable_seed(config.seed, "pgd", number))
        return worst_of(
            model, pixels, labels, threat, steps=config.pgd_steps, step_size=_size(config, threat),
            restarts=config.pgd_restarts, generator=generator,
        )  # fmt: skip

    return attack


def _size(config: EvaluateConfig, threat: Threat) -> float:
    return config.pgd_step_size or threat.eps / 4


def _folder(threat: Threat, subject: Subject, config: EvaluateConfig, settings: dict[str, Any]) -> Any:
    identity = {
        "model": subject.about["sha256"], "pictures": subject.data["sha256"], "threat": asdict(threat),
        "settings": settings, "seed": config.seed, "batch_size": config.batch_size, "precision": config.precision,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return config.folder / FOLDER / f"{threat.norm}-{threat.eps:.5f}-{digest[:16]}"


@contextmanager
def _progress(threat: Threat) -> Iterator[Advance]:
    with bar() as progress:
        tasks: dict[str, Any] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(f"{name}, {threat}", total=total)
            progress.update(tasks[name], completed=done)

        yield advance


def confusions(labels: Tensor, predictions: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """What was taken for what; the whole matrix up to `LARGEST_MATRIX` classes."""
    small = len(classes) <= LARGEST_MATRIX
    return {
        "confusion": confusion(labels, predictions, len(classes)) if small else None,
        "confused": confused(labels, predictions, classes),
    }


def _cost(outcome: Outcome) -> dict[str, float]:
    return {"forwards": outcome.forwards, "backwards": outcome.backwards, "seconds": outcome.seconds}


def _pgd_entry(outcome: Outcome, right: Tensor, config: EvaluateConfig, threat: Threat) -> dict[str, Any]:
    return {
        "steps": config.pgd_steps,
        "restarts": config.pgd_restarts,
        "step_size": _size(config, threat),
        "accuracy": rate(right & ~outcome.broken, config.level),
        **_cost(outcome),
    }


def _auto_entry(auto: AutoAttackResult, config: EvaluateConfig) -> dict[str, Any]:
    return {
        "tier": config.tier,
        "package": f"pyautoattack {version('pyautoattack')}",
        "settings": {key: value for key, value in asdict(auto.settings).items() if key != "attacks"},
        "attacks": [
            {
                "name": name,
                "attacked": outcome.attacked,
                "broken": int(outcome.broken.sum()),
                "accuracy": rate(auto.after[name], config.level),
                **_cost(outcome),
            }
            for name, outcome in auto.outcomes.items()
        ],
        "accuracy": rate(auto.robust, config.level),
    }


def _recheck_entry(*checks: Recheck) -> dict[str, int]:
    counts = ("checked", "refused", "too_far", "outside", "not_finite", "unconfirmed")
    return {name: sum(getattr(check, name) for check in checks) for name in counts}


def _flags(entry: dict[str, Any], count: int) -> list[Flag]:
    refused, unconfirmed = entry["recheck"]["refused"], entry["recheck"]["unconfirmed"]
    only_pgd = entry["broken_by_pgd_only"]
    return [
        Flag(
            "pgd_beats_autoattack", only_pgd > 0, only_pgd,
            f"plain PGD broke {only_pgd} of {count} pictures that AutoAttack left; they count as broken",
            "Unless they are few, attack this model with more restarts or an attack of its own.",
            doubt=only_pgd > 0.01 * count,
        ),
        Flag(
            "refused_pictures", refused > 0, refused,
            f"{refused} pictures that fooled the model lie outside of what the attacker is allowed, and do not count",
            "Report this: an attack went wrong.",
        ),
        Flag(
            "unconfirmed_pictures", unconfirmed > 0, unconfirmed,
            f"{unconfirmed} pictures fooled the model when found and not when asked again; they count as broken",
            "A few are rounding at the decision boundary. Many mean a model that answers at random.", doubt=False,
        ),
    ]  # fmt: skip
