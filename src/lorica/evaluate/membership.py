"""Membership inference on a classifier: does it answer otherwise for the pictures that it was trained on?

Robust training may leak more than natural training, and most through adversarial pictures (Song, Shokri and Mittal,
CCS 2019, arXiv 1905.10291). The attacks are functions of arrays, so that anyone's shadow classifiers can be used; all
return one score per picture, higher = more member-like, for `lorica.audit.MembershipScores`.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp
from scipy.stats import norm
from torch import Tensor

from lorica.audit.score import MembershipScores, clopper_pearson
from lorica.data.labelled import LabelledSet
from lorica.data.subsets import matched
from lorica.errors import LoricaError
from lorica.evaluate.config import EvaluateConfig
from lorica.evaluate.shadow_classifiers import Shadows, joined, recipe_file, shadow_answers
from lorica.evaluate.subject import Subject
from lorica.robustness.attacked import Counted, as_floats, predict
from lorica.robustness.pgd import cross_entropy, pgd
from lorica.robustness.threat import Threat
from lorica.seeds import stable_seed

Floats = NDArray[np.float64]
Form = Literal["online", "offline"]
"""Of an attack with shadows: offline uses only those that were not trained on a picture."""

FPRS = (0.001, 0.01, 0.05)
"""False-positive rates that true-positive rates are reported at."""

_FLOOR = 1e-12  # of a deviation: shadows that learned nothing agree on everything
_ATTACKS = {
    "loss": "cross-entropy of the natural picture",
    "adversarial-loss": "cross-entropy of its adversarial picture (arXiv 1905.10291, section 4.1)",
}
_WITH_SHADOWS = {
    "lira": "likelihood ratio of its scaled confidence among shadow classifiers (arXiv 2112.03570)",
    "rmia": "its confidence against that of other pictures, each relative to shadow classifiers (arXiv 2312.03262)",
}
_RMIA_OFFLINE = 0.3  # a, as its authors choose it for CIFAR-10


# ----- on arrays ----------------------------------------------------------------------------------------------------
def scaled_confidence(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """phi = log p_y - log(1 - p_y) (LiRA, arXiv 2112.03570, section V-C), in double precision and without overflow.

    It orders pictures as the cross-entropy -log p_y does, in reverse, and is closer to Gaussian.

    Args:
        logits: (..., N, C), two or more classes.
        labels: (N,), in [0, C).

    Returns:
        (..., N): z_y - logsumexp of the other logits.
    """
    z = np.asarray(logits, dtype=np.float64)
    own = np.arange(z.shape[-1]) == np.asarray(labels)[:, None]
    return np.where(own, z, 0).sum(axis=-1) - logsumexp(np.where(own, -np.inf, z), axis=-1)


def lira(
    phi: ArrayLike,
    shadows: ArrayLike,
    inside: ArrayLike,
    *,
    form: Form = "online",
    own_deviation: int = 16,
) -> Floats:
    """Likelihood ratio among shadow models (Carlini et al., S&P 2022, arXiv 2112.03570).

    online:  log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out)
    offline: (phi - mu_out) / s_out

    Args:
        phi: (N,) statistic of the audited model, such as `scaled_confidence`.
        shadows: (S, N) the same of S shadow models.
        inside: (S, N) bool, whether a shadow was trained on a picture.
        form: offline needs no shadow that saw a picture.
        own_deviation: shadows of a kind from which on a picture's own deviation is used; with fewer, one pooled over
            all pictures.

    Raises:
        ValueError: shapes that do not match, or a picture without the shadows that the form needs.
    """
    target, among, saw = _checked(phi, shadows, inside)
    mean_out, deviation_out = _gaussian(np.where(saw, np.nan, among), own_deviation, "without")
    if form == "offline":
        return (target - mean_out) / deviation_out
    mean_in, deviation_in = _gaussian(np.where(saw, among, np.nan), own_deviation, "with")
    return norm.logpdf(target, mean_in, deviation_in) - norm.logpdf(target, mean_out, deviation_out)


def rmia(
    confidence: ArrayLike,
    shadows: ArrayLike,
    inside: ArrayLike,
    population: ArrayLike,
    *,
    gamma: float = 1.0,
    offline: float | None = None,
) -> Floats:
    """Share of population pictures z with [p(x | model) / p(x)] / [p(z | model) / p(z)] >= gamma.

    Zarifzadeh, Liu and Shokri, ICML 2024 (arXiv 2312.03262). p(x) is the mean of its means over shadows with and
    without x; offline, with those without alone, it is ((1 + a) mean_out + 1 - a) / 2 (section 3 there).

    Args:
        confidence: (N,) p_y of the audited model, in (0, 1].
        shadows: (S, N) the same of S shadow models.
        inside: (S, N) bool, whether a shadow was trained on a picture.
        population: (M,) rows of pictures that the audited model was not trained on. None is compared with itself.
        gamma: how much more likely than a population picture counts as a win.
        offline: a, in [0, 1]; None is online.

    Raises:
        ValueError: shapes that do not match, or a picture without the shadows that the form needs.
    """
    target, among, saw = _checked(confidence, shadows, inside)
    rows = np.asarray(population)
    mean_out = _mean(np.where(saw, np.nan, among), "without")
    if offline is None:
        prior = (_mean(np.where(saw, among, np.nan), "with") + mean_out) / 2
    else:
        prior = ((1 + offline) * mean_out + 1 - offline) / 2
    gain = np.log(target) - np.log(prior)
    wins = gain[:, None] - gain[rows] >= np.log(gamma)
    wins[rows, np.arange(len(rows))] = False
    others = len(rows) - np.isin(np.arange(len(target)), rows)
    return wins.sum(axis=1) / np.maximum(others, 1)


def _checked(target: ArrayLike, shadows: ArrayLike, inside: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    own, among, saw = np.asarray(target, float), np.asarray(shadows, float), np.asarray(inside)
    if own.ndim != 1 or among.shape != saw.shape or among.shape[1:] != own.shape or saw.dtype != bool:
        raise ValueError(f"(N,), (S, N) and (S, N) bool are wanted, not {own.shape}, {among.shape}, {saw.shape}")
    return own, among, saw


def _mean(values: Floats, kind: str) -> Floats:
    """(N,) over the shadows that are not NaN."""
    count = (~np.isnan(values)).sum(axis=0)
    if not count.all():
        raise ValueError(f"picture {int(np.argmin(count))} has no shadow {kind} it")
    return np.nansum(values, axis=0) / count


def _gaussian(values: Floats, own_deviation: int, kind: str) -> tuple[Floats, Floats]:
    """(N,) means and standard deviations over the shadows that are not NaN; deviation 1 where none is known."""
    mean, count = _mean(values, kind), (~np.isnan(values)).sum(axis=0)
    squares = np.nansum(np.square(values - mean), axis=0)
    freedom = (count - 1).sum()
    pooled = np.sqrt(squares.sum() / freedom) if freedom else 1.0
    own = np.sqrt(squares / np.maximum(count - 1, 1))
    return mean, np.maximum(np.where(count >= max(own_deviation, 2), own, pooled), _FLOOR)


# ----- on a model ---------------------------------------------------------------------------------------------------
def shadows_of(subject: Subject, config: EvaluateConfig) -> Shadows | None:
    """Answers of shadow classifiers to the pictures that `membership` asks about; None where none are asked for.

    Raises:
        LoricaError: the training of the model is not known.
    """
    if not config.shadows or subject.members is None:
        return None
    asked = joined(*_sides(subject, config))
    return shadow_answers(recipe_file(subject.run), subject.members, subject.pictures, asked, config)


def _sides(subject: Subject, config: EvaluateConfig) -> tuple[LabelledSet, LabelledSet]:
    """As many members as other pictures, of the same classes: easy classes would look like members otherwise."""
    assert subject.members is not None
    rows = matched(subject.members.labels, subject.pictures.labels, config.membership_pictures, config.seed)
    if len(rows[0]) < 2:
        raise LoricaError(
            "members and evaluated pictures have less than two pictures of the same classes",
            "Evaluate pictures of the classes that the model was trained on, or leave out --members.",
        )
    return subject.members.take(rows[0]), subject.pictures.take(rows[1])


def membership(
    model: Counted, copied: Counted, subject: Subject, config: EvaluateConfig, shadows: Shadows | None = None
) -> dict[str, Any]:
    """Audit a classifier: without shadows by its losses, with them by `lira` and `rmia` on logits, too.

    As many members as evaluated pictures, at most `config.membership_pictures`, and as many of each class. The
    adversarial pictures are PGD's at the largest radius, from a random start, whatever the model says to the natural
    ones.

    Args:
        model: in `model.attacked()`; its answers are compared.
        copied: what adversarial pictures are made with in its place.
        subject: with members and the evaluated pictures, which are the non-members.
        config: of the evaluation.
        shadows: what `shadows_of` gave.

    Returns:
        {"members", "nonmembers", "part", "eps", "shadows", "attacks": {name: {"signal", "auc", "tpr", "asr",
        "leaks"}}, "leaks", "worst_attack"}; with "form", online or offline, of an attack that uses shadows. An attack
        is held to find a leak where the interval of its AUC, by Bonferroni's rule over the attacks, excludes 0.5. ASR:
        threshold from one half of the pictures, success on the other, and vice versa.
    """
    threat, sides = config.threats[-1], _sides(subject, config)
    count = len(sides[0])
    found = [_signals(model, copied, side.pixels, subject.outputs[side.labels], threat, config) for side in sides]
    signals = {name: (found[0][name], found[1][name]) for name in _ATTACKS}
    forms: dict[str, Form] = {}
    if shadows is not None:
        # Of `shadow_answers`, some are trained on each picture; of anyone's shadows, perhaps none.
        form: Form = "online" if shadows.inside.any(axis=0).all() else "offline"
        signals |= _against(shadows, form, model, subject, sides, config)
        forms = dict.fromkeys(_WITH_SHADOWS, form)
    strict = 1 - (1 - config.level) / len(signals)
    entries = {}
    for name, (members, others) in signals.items():
        scores = MembershipScores(members, others)
        low, high = scores.interval("auc", level=strict)
        signal = (_ATTACKS | _WITH_SHADOWS)[name]
        entries[name] = {"signal": signal, **_measured(scores, config.level), "leaks": not low <= 0.5 <= high}
        if name in forms:
            entries[name]["form"] = forms[name]
    worst = max(entries, key=lambda name: abs(entries[name]["auc"]["value"] - 0.5))
    return {
        "members": count,
        "nonmembers": count,
        "part": config.members,
        "eps": threat.eps,
        "shadows": 0 if shadows is None else len(shadows.logits),
        "attacks": entries,
        "leaks": any(entry["leaks"] for entry in entries.values()),
        "worst_attack": worst,
    }


def _against(
    shadows: Shadows,
    form: Form,
    model: Counted,
    subject: Subject,
    sides: tuple[LabelledSet, LabelledSet],
    config: EvaluateConfig,
) -> dict[str, tuple[Floats, Floats]]:
    members, asked = sides[0], joined(*sides)
    labels = asked.labels.numpy()
    own = predict(model, asked.pixels, batch_size=config.batch_size).double().numpy()[:, subject.outputs.numpy()]
    phi, among = scaled_confidence(own, labels), scaled_confidence(shadows.logits, labels)
    population = np.arange(len(members), len(asked))
    offline = None if form == "online" else _RMIA_OFFLINE
    scores = {
        "lira": lira(phi, among, shadows.inside, form=form),
        "rmia": rmia(expit(phi), expit(among), shadows.inside, population, offline=offline),
    }
    return {name: (values[: len(members)], values[len(members) :]) for name, values in scores.items()}


def _signals(
    model: Counted, copied: Counted, pixels: Tensor, labels: Tensor, threat: Threat, config: EvaluateConfig
) -> dict[str, Floats]:
    natural = predict(model, pixels, batch_size=config.batch_size)
    steps = config.pgd_steps or 20
    size = config.pgd_step_size or threat.eps / 4
    attacked = []
    batches = zip(pixels.split(config.batch_size), labels.split(config.batch_size), strict=True)
    for number, (some, own) in enumerate(batches):
        x, y = as_floats(some, model.device), own.to(model.device)
        generator = torch.Generator().manual_seed(stable_seed(config.seed, "membership", number))
        start = threat.random(x, generator)
        found = pgd(copied, x, cross_entropy(y), threat, steps=steps, step_size=size, start=start)
        attacked.append(model(found).cpu())
    return {
        "loss": scaled_confidence(natural.numpy(), labels.numpy()),
        "adversarial-loss": scaled_confidence(torch.cat(attacked).numpy(), labels.numpy()),
    }


def _measured(scores: MembershipScores, level: float) -> dict[str, Any]:
    return {
        "auc": _estimate(scores.auc, scores.interval("auc", level=level)) | {"level": level},
        "tpr": {
            f"{fpr:g}": _estimate(scores.tpr_at(fpr), scores.interval("tpr", fpr=fpr, level=level))
            | {"attained_fpr": scores.attained_fpr(fpr), "reliable": scores.reliable(fpr), "note": scores.note(fpr)}
            for fpr in FPRS
        },
        "asr": _success(scores, level),
    }


def _success(scores: MembershipScores, level: float) -> dict[str, float]:
    halves = [MembershipScores(scores.members[i::2], scores.nonmembers[i::2]) for i in (0, 1)]
    sizes = [len(half.members) + len(half.nonmembers) for half in halves]
    hits = sum(
        round(half.asr(other.oracle_threshold()) * size)
        for half, other, size in zip(halves, reversed(halves), sizes, strict=True)
    )
    return _estimate(hits / sum(sizes), clopper_pearson(hits, sum(sizes), level))


def _estimate(value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {"value": value, "low": interval[0], "high": interval[1]}
