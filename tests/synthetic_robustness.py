"""Robustness evaluations without a model: made-up right and wrong answers, everything else by the real formulae."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lorica.audit.score import MembershipScores
from lorica.evaluate.verdict import judge
from lorica.finetune.schedule import RobustAccuracyLR, loss_weights
from lorica.report.robustness import RobustnessRun
from lorica.robustness.accuracy import confused, confusion, per_class, rate
from lorica.robustness.autoattack import TIERS
from lorica.robustness.corruptions import CORRUPTIONS
from lorica.robustness.flags import Flag
from lorica.robustness.threat import Threat
from synthetic_audit import _auc as auc_of
from synthetic_audit import _rate as tpr_of

Json = dict[str, Any]
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DOUBT = Flag(
    "zero_gradient", True, 0.31, "at 155 of 500 pictures the gradient of the loss is zero: attacks start blind",
    "Look for what hides it; Square does not need it.",
)  # fmt: skip
NOTE = Flag(
    "unconfirmed_pictures", True, 2, "2 pictures fooled the model when found and not when asked again",
    "A few are rounding at the decision boundary.", doubt=False,
)  # fmt: skip
QUIET = (
    Flag("randomised", False, 0.0, "the model answers the same question differently", "Turn its randomness off."),
    Flag("probabilities", False, None, "the model returns probabilities", "Remove its softmax."),
)


@dataclass(frozen=True)
class Model:
    """How good a made-up classifier is: without an attacker, and at the customary radius; and how it was trained."""

    method: str
    natural: float
    robust: float
    leak: float = 0.5


AUTOLORA = Model("autolora", 0.84, 0.51, 0.5)
TWINS = Model("twins", 0.82, 0.47, 0.8)
VANILLA = Model("vanilla", 0.80, 0.44, 1.1)


def evaluation(
    model: Model,
    *,
    classes: Sequence[str] = TEN,
    pictures: int = 500,
    radii: Sequence[int] = (2, 4, 8),
    tier: str = "standard",
    flags: Sequence[Flag] = (),
    corruptions: bool = True,
    membership: bool = True,
    examples: list[Json] | None = None,
) -> Json:
    """A `robustness.json` of schema 1; radii in levels of 255."""
    rng = np.random.default_rng([len(model.method), len(classes)])
    labels = torch.arange(pictures) % len(classes)
    margin, taken_for = _margins(model, labels, len(classes), rng)
    right = margin > 0
    natural = rate(right)
    threats = [_threat(Threat(eps / 255), margin, labels, taken_for, classes, tier) for eps in radii]
    raised = [(None, flag) for flag in (*QUIET, *flags)]
    table, members = _corruptions(model, pictures) if corruptions else None, _membership(model) if membership else None
    return {
        "schema": 1,
        "provenance": {
            "config": {"model": {"name": f"runs/{model.method}/model"}, "data": "/home/jane doe/pets", "tier": tier,
                       "batch_size": 250, "precision": "fp32", "seed": 0, "cache": "/scratch/jane/cache"},
            "seed": 0,
            "versions": {"lorica": "0.1.0", "torch": "2.15.0"},
            "hardware": {"device": "Example GPU", "processor": "Example CPU", "cores": 8, "system": "Linux"},
        },
        "model": {
            "name": "model", "architecture": "resnet18", "arguments": {}, "size": [224, 224],
            "classes": list(classes), "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
            "parameters": 11181642, "weights": "ema", "sha256": "3f9a0c5b7d21e864" * 4,
        },
        "data": {
            "source": "pets", "part": "test", "pictures": pictures, "split": True, "sha256": "9d1c4a77b0e2f856" * 4,
            "classes": {name: int((labels == i).sum()) for i, name in enumerate(classes)},
        },
        "natural": natural | _by_class(right, labels, taken_for, classes),
        "threats": threats,
        "curve": [{"eps": 0.0, **natural}, *({"eps": entry["eps"], **entry["robust"]} for entry in threats)],
        "corruptions": table,
        "membership": members,
        "flags": [{"threat": where, **asdict(flag)} for where, flag in raised],
        "cost": {"attacks": {"forwards": 43_200_000, "backwards": 10_700_000, "seconds": 7512.4},
                 "this_call": {"forwards": 43_210_000, "backwards": 10_700_000, "seconds": 7600.0}},
        "examples": examples or [],
        "verdict": judge(
            natural, threats, tier=tier, part="test", flags=raised, corruptions=table, membership=members
        ),
        "warnings": ["The model knows 10 classes, the data 10; read from /home/jane doe/pets/list.csv."],
    }  # fmt: skip


def _margins(model: Model, labels: Tensor, classes: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(radius in levels of 255 that breaks each picture, not positive where none is needed; what it is taken for)."""
    ease = rng.normal(0, 1.5, classes)[labels.numpy()]
    # P(margin > 0) is about `natural` and P(margin > 8) about `robust`.
    spread = 8 / max(0.05, 3 * (model.natural - model.robust))
    at_zero = spread * np.log(model.natural / (1 - model.natural)) * 0.8
    margin = torch.tensor(at_zero + ease * spread * 0.4 + rng.logistic(0, spread * 0.8, len(labels)))
    neighbour = (labels + torch.tensor(rng.choice([1, 2, -2], len(labels), p=[0.6, 0.25, 0.15]))) % classes
    return margin, neighbour


def _threat(
    threat: Threat, margin: Tensor, labels: Tensor, taken_for: Tensor, classes: Sequence[str], tier: str
) -> Json:
    radius = 255 * threat.eps
    stages = {"pgd": 0.85, "apgd-ce": 0.9, "apgd-t": 0.985, "fab-t": 0.99, "square": 1.0}
    left = {name: margin > max(0, strength * radius) for name, strength in stages.items()}
    robust = left[TIERS[tier][-1]] & left["pgd"]
    cost = {"forwards": 50_000, "backwards": 50_000, "seconds": 12.5}
    attacks, before = [], margin > 0
    for name in TIERS[tier]:
        now = before & left[name]
        attacks.append({"name": name, "attacked": int(before.sum()), "broken": int((before & ~now).sum()),
                        "accuracy": rate(now), **cost})  # fmt: skip
        before = now
    return {
        "eps": threat.eps,
        "norm": threat.norm,
        "text": str(threat),
        "pgd": {"steps": 20, "restarts": 1, "step_size": threat.eps / 4, "accuracy": rate(left["pgd"]), **cost},
        "autoattack": {"tier": tier, "settings": {"iterations": 100, "restarts": 1, "targets": 9, "queries": 5000},
                       "attacks": attacks, "accuracy": rate(before)},
        "robust": rate(robust),
        "upper_bound": tier != "standard",
        "broken_by_pgd_only": 0,
        "carried_from_smaller_eps": 0,
        "recheck": {"checked": 312, "refused": 0, "too_far": 0, "outside": 0, "not_finite": 0, "unconfirmed": 0},
        **_by_class(robust, labels, taken_for, classes),
    }  # fmt: skip


def _by_class(right: Tensor, labels: Tensor, taken_for: Tensor, classes: Sequence[str]) -> Json:
    said, small = torch.where(right, labels, taken_for), len(classes) <= 100
    return {
        "per_class": per_class(right, labels, classes),
        "confusion": confusion(labels, said, len(classes)) if small else None,
        "confused": confused(labels, said, classes),
    }


def _corruptions(model: Model, pictures: int) -> Json:
    rng, types = np.random.default_rng(len(model.method)), {}
    for place, name in enumerate(CORRUPTIONS):
        loss = 0.03 + 0.05 * (place % 4)
        cells = {}
        for severity in range(1, 6):
            share = max(0.1, model.natural - loss * severity + rng.normal(0, 0.01))
            cells[str(severity)] = rate(torch.arange(pictures) < share * pictures)
        types[name] = {"severities": cells, "mean": sum(cell["value"] for cell in cells.values()) / 5}
    mean = sum(entry["mean"] for entry in types.values()) / len(types)
    by_severity = {
        str(s): sum(entry["severities"][str(s)]["value"] for entry in types.values()) / len(types) for s in range(1, 6)
    }
    return {
        "source": "lorica",
        "n": pictures,
        "types": types,
        "severities": by_severity,
        "mean": {"value": mean, "low": mean - 0.03, "high": mean + 0.03, "n": pictures, "level": 0.95},
    }


def _membership(model: Model, count: int = 300) -> Json:
    rng, attacks = np.random.default_rng(len(model.method)), {}
    for name, share in (("loss", 0.6), ("adversarial-loss", 1.0)):
        scores = MembershipScores(rng.normal(share * model.leak, 1, count), rng.normal(0, 1, count))
        auc = auc_of(scores)
        asr = scores.oracle_asr()
        attacks[name] = {
            "signal": f"cross-entropy of the {'natural' if name == 'loss' else 'adversarial'} picture",
            "auc": auc,
            "tpr": {f"{fpr:g}": tpr_of(scores, fpr) for fpr in (0.001, 0.01, 0.05)},
            "asr": {"value": asr, "low": asr - 0.03, "high": asr + 0.03},
            "leaks": not auc["low"] <= 0.5 <= auc["high"],
        }
    worst = max(attacks, key=lambda name: abs(attacks[name]["auc"]["value"] - 0.5))
    leaks = any(attack["leaks"] for attack in attacks.values())
    return {"members": count, "nonmembers": count, "part": "train", "eps": 8 / 255, "attacks": attacks,
            "leaks": leaks, "worst_attack": worst}  # fmt: skip


def metrics(model: Model, *, epochs: int = 60) -> list[Json]:
    """A `metrics.jsonl`: a row per epoch, whose learning rate and loss weights follow the real schedules."""
    rng, schedule, rate = np.random.default_rng(len(model.method)), RobustAccuracyLR(0.01), 0.01
    automatic, rows = model.method == "autolora", []
    for epoch in range(1, epochs + 1):
        t = epoch / epochs
        learned = 1 - np.exp(-5 * t)
        natural, trained = model.natural * learned, min(0.99, 1.08 * model.natural * learned + 0.1 * t)
        robust = model.robust * (1 - np.exp(-8 * t)) - 0.1 * max(0.0, t - 0.6) + rng.normal(0, 0.008)
        first, kl = loss_weights(trained) if automatic else (1.0, 6.0)
        row = {"step": 40 * epoch, "epoch": epoch, "learning_rate": rate, "weight_natural": first, "weight_kl": kl}
        row |= {"weight_adversarial": 1 - first, "natural_accuracy": trained} if automatic else {}
        row |= {"loss": 2.2 - 1.2 * t, "natural": 1.2 - t, "adversarial": 1.9 - t, "kl": 0.2,
                "natural_correct": trained,
                "adversarial_correct": model.robust * learned + 0.25 * t}  # fmt: skip
        row |= {"similarity": -0.15 + 0.3 * t + rng.normal(0, 0.02) + 0.3 * automatic}
        row |= {f"layer/backbone.layer{1 + i // 5}.{i % 5}.weight": float(np.tanh(0.8 - i / 8 + 0.5 * t))
                for i in range(20) if (i, epoch) != (3, 2)}  # fmt: skip
        row |= {"val_natural": natural, "val_robust": max(0.0, robust)}
        row |= {"val_average_natural": natural * 0.995, "val_average_robust": max(0.0, robust + 0.03 * t)}
        decision = schedule.step(row["val_robust"]) if automatic else None
        row["reloaded"] = float(decision is not None and decision.reload)
        rate = decision.learning_rate if decision is not None else 0.01 * 0.1 ** ((t >= 0.5) + (t >= 5 / 6))
        rows.append(row)
        if decision is not None and decision.stop:
            break
    return rows


def record(model: Model, rows: Sequence[Json]) -> Json:
    """A `run.json`."""
    best = max(rows, key=lambda row: row["val_average_robust"])
    return {
        "config": {"data": "/home/jane doe/pets", "output": f"/home/jane doe/runs/{model.method}",
                   "model": {"name": "resnet18", "checkpoint": None}, "options": {"rank": 8},
                   "attack": {"kind": "pgd", "steps": 10}, "batch_size": 128, "ema": 0.995},
        "learning_rate": 0.01,
        "seed": 0,
        "method": model.method,
        "threat": "L-inf 8/255",
        "counts": {"train": 3500, "val": 180, "test": 500},
        "notes": ["180 of the training pictures are held out by chance (seed 0) for validation."],
        "weights": "ema",
        "best_epoch": best["epoch"],
        "val_natural": best["val_average_natural"],
        "val_robust": best["val_average_robust"],
        "epochs": len(rows),
        "stopped": None,
        "seconds": 5321.0,
    }  # fmt: skip


def examples(folder: Path, classes: Sequence[str] = TEN, *, count: int = 4, side: int = 32) -> list[Json]:
    """Entries of robustness.json, with their pictures in `folder`/examples."""
    rng, entries = np.random.default_rng(5), []
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    for row in range(count):
        waves = [np.sin(rng.uniform(2, 9) * across + rng.uniform(2, 9) * down + rng.uniform(0, 6)) for _ in range(3)]
        natural = 0.5 + 0.35 * np.stack(waves, axis=-1)
        delta = rng.choice([-8 / 255, 8 / 255], natural.shape)
        shown = {"natural": natural, "adversarial": natural + delta, "difference": 0.5 + 16 * delta}
        files = {}
        for name, pixels in shown.items():
            files[name] = f"examples/{row:05d}_{name}.png"
            levels = (255 * pixels.clip(0, 1)).round().astype(np.uint8)
            image = Image.fromarray(levels).resize((256, 256), Image.Resampling.NEAREST)
            image.save(folder / files[name])
        entries.append({
            "index": row, "name": f"{classes[row]}/{row}.png", "class": classes[row], "natural": classes[row],
            "adversarial": classes[(row + 1) % len(classes)], "attack": "apgd-ce", "eps": 8 / 255, "distance": 8 / 255,
            "fools_as_8_bit": row != 1, "files": files,
        })  # fmt: skip
    return entries


def run(model: Model, label: str, *, folder: Path | None = None, epochs: int = 60, **options: Any) -> RobustnessRun:
    """A complete run, as the page wants it; with examples where a folder is given for them."""
    entries = examples(folder) if folder is not None else []
    rows = metrics(model, epochs=epochs)
    files = {name: (folder or Path()) / name for entry in entries for name in entry["files"].values()}
    return RobustnessRun(label, evaluation(model, examples=entries, **options), record(model, rows), rows, files)


def three_runs(folder: Path | None = None) -> list[RobustnessRun]:
    return [run(VANILLA, "Vanilla (TRADES)", folder=folder), run(TWINS, "TWINS", folder=folder, tier="lite"),
            run(AUTOLORA, "AutoLoRa", folder=folder)]  # fmt: skip
