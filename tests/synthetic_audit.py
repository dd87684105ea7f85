"""Audits without a model: random scores of a chosen strength, everything else computed by the real formulae."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lorica.audit.score import MembershipScores
from lorica.report import ReportRun

Json = dict[str, Any]
CAPTIONS = ["a woman with red hair", "a man with glasses", "a person with a green hat", "an old man, blue background"]


@dataclass(frozen=True)
class Method:
    """How strongly a made-up LoRA leaks: the distance between the two groups' mean scores, in standard deviations."""

    objective: str
    shift: float
    quality: float


LORA = Method("lora", 2.4, 0.021)
MP_LORA = Method("mp-lora", 0.5, 0.061)
SMP_LORA = Method("smp-lora", 0.0, 0.026)
ATTACKS = {  # name: (share of the shift that it sees, needs captions, queries, source)
    "loss": (0.45, False, 1, "Matsumoto et al. 2023 (2302.03262)"),
    "mc-loss": (0.85, False, 16, "Carlini et al. 2023 (2301.13188), section 4"),
    "calibrated-loss": (1.0, False, 16, "Watson et al. 2022 (2111.08440), on error maps"),
    "nn-loss": (0.7, True, 8, "Luo et al. 2024 (2402.11989), section 3"),
}


def audit(method: Method, *, members: int = 60, nonmembers: int = 120, seed: int = 0, fair: bool = True) -> Json:
    """An `audit.json` of schema 1."""
    rng = np.random.default_rng([seed, len(method.objective)])

    def scored(shift: float) -> MembershipScores:
        return MembershipScores(rng.normal(shift, 1, members), rng.normal(0, 1, nonmembers))

    attacks = {}
    for name, (share, caption, queries, source) in ATTACKS.items():
        threshold = scored(method.shift * share).oracle_threshold()  # fresh draws: the auxiliary half
        about = {"threat_model": "white" if name == "nn-loss" else "gray", "needs_caption": caption}
        attacks[name] = (
            about | {"queries": queries, "source": source} | _measured(scored(method.shift * share), threshold)
        )
    rng = np.random.default_rng(seed)  # the controls do not depend on the method
    base = {name: _auc(scored(0.0)) for name in ATTACKS}
    blind = _auc(scored(0.0 if fair else 1.5))
    worst = max(attacks, key=lambda name: abs(attacks[name]["auc"]["value"] - 0.5))
    auc, tpr = attacks[worst]["auc"], attacks[worst]["tpr"]["0.05"]["value"]
    leaks = not _covers_chance(auc)
    return {
        "schema": 1,
        "provenance": {
            "config": {
                "base": "builtin",
                "attacks": list(ATTACKS),
                "adapt": {"objective": method.objective, "lam": 0.05},
            },
            "seed": seed,
            "versions": {"lorica": "0.1.0", "torch": "2.8.0", "diffusers": "0.36.0"},
            "hardware": {"device": "CPU", "processor": "Example CPU", "cores": 2, "system": "Linux"},
        },
        "target": {
            "base": "builtin",
            "base_fingerprint": "3f9a0c5b7d21e864",
            "lora": "pytorch_lora_weights.safetensors",
            "lora_sha256": "9d1c4a77b0e2f8563f9a0c5b7d21e864",
            "rank": 16,
            "alpha": 8,
            "steps": 1200,
            "steps_per_picture": 300.0,
            "augmentation": "none",
            "objective": method.objective,
            "lam": None if method.objective == "lora" else 0.05,
        },
        "counts": {
            "aux_members": members,
            "test_members": members,
            "aux_nonmembers": nonmembers,
            "test_nonmembers": nonmembers,
        },
        "captions": {"source": "constant", "used": 'the same for every picture: "sks person"'},
        "attacks": attacks,
        "collection": {
            "text": f"Taken together, the {members} test members score above the {nonmembers} non-members."
        },
        "controls": {
            "base": {name: {"auc": auc, "covers_chance": _covers_chance(auc)} for name, auc in base.items()},
            "blind": {
                "auc": blind,
                "fair": _covers_chance(blind),
                "method": "logistic regression on thumbnails and captions",
            },
        },
        "verdict": {
            "leaks": leaks,
            "worst_attack": worst,
            "text": f"{'The LoRA leaks its training pictures' if leaks else 'No leak was found in the LoRA'}. With "
            f"{attacks[worst]['queries']} UNet queries per picture, the strongest of {len(attacks)} attacks, {worst}, "
            f"reaches an AUC of {auc['value']:.3f} (95 % from {auc['low']:.3f} to {auc['high']:.3f}; chance is 0.5) "
            f"on {members} members and {nonmembers} non-members. It finds {100 * tpr:.1f} % of the members at 5 % "
            "false alarms, where guessing would find 5 %.",
        },
        "warnings": [attacks[worst]["tpr"]["0.01"]["note"]],
        "gate": {"rule": "auc>0.6", "failed": auc["value"] > 0.6, "reason": f"auc is {auc['value']:.3f}"},
    }


def metrics(method: Method, *, steps: int = 1200, seed: int = 0) -> list[Json]:
    """A `metrics.jsonl`: a loss at each logged step, the validation losses at every fifth of them."""
    rng = np.random.default_rng(seed)
    rows: list[Json] = []
    for step in range(0, steps + 1, 20):
        t = step / steps
        row = {"step": step, "loss": 0.12 + 0.1 * np.exp(-4 * t) + rng.normal(0, 0.008), "objective": method.objective}
        if step % 100 == 0:
            learned = 0.2 - 0.05 * (1 - np.exp(-4 * t))
            row["val_member"] = learned - 0.03 * method.shift * t + rng.normal(0, 8e-4)
            row["val_nonmember"] = learned + 0.008 * method.shift * t + rng.normal(0, 8e-4)
        rows.append(row)
    return rows


def pictures(method: Method, *, size: int = 64) -> list[Image.Image]:
    """One flat face per caption."""
    rng = np.random.default_rng([7, len(method.objective)])
    drawn = []
    for _ in CAPTIONS:
        back, face = (f"hsl({rng.integers(360)}, 45%, {lightness}%)" for lightness in (80, 55))
        picture = Image.new("RGB", (size, size), back)
        pen = ImageDraw.Draw(picture)
        pen.ellipse([0.2 * size, 0.15 * size, 0.8 * size, 0.95 * size], fill=face)
        for x in (0.36, 0.56):
            pen.ellipse([x * size, 0.42 * size, (x + 0.08) * size, 0.5 * size], fill="#222222")
        drawn.append(picture)
    return drawn


def run(method: Method, label: str, **options: Any) -> ReportRun:
    """A complete run, as the page wants it."""
    return ReportRun(
        label=label,
        audit=audit(method, **options),
        metrics=metrics(method),
        quality=quality(method),
        samples=list(pictures(method)),
        captions=list(CAPTIONS),
    )


def quality(method: Method) -> Json:
    return {
        "kid": {"value": method.quality, "std": 0.003},
        "fid": {"value": 1000 * method.quality + 12},
        "extractor": "built-in text-image encoder",
        "comparable": False,
        "validation_loss": 0.12 + method.quality,
    }


def base_run() -> ReportRun:
    """The base model: quality and pictures, no audit of its own."""
    base = Method("", 0.0, 0.083)
    return ReportRun("Base model", quality=quality(base), samples=list(pictures(base)), captions=list(CAPTIONS))


def three_runs() -> list[ReportRun]:
    return [base_run(), run(LORA, "LoRA"), run(MP_LORA, "MP-LoRA"), run(SMP_LORA, "SMP-LoRA")]


def _measured(scores: MembershipScores, threshold: float) -> Json:
    low, high = scores.interval("asr", threshold=threshold)
    oracle = scores.interval("oracle_asr", resamples=200)
    return {
        "auc": _auc(scores),
        "asr": {"value": scores.asr(threshold), "low": low, "high": high, "threshold": threshold},
        "oracle_asr": {"value": scores.oracle_asr(), "low": oracle[0], "high": oracle[1]},
        "tpr": {f"{fpr:g}": _rate(scores, fpr) for fpr in (0.001, 0.01, 0.05)},
        "auc_distance": scores.auc_distance,
        "scores": {"members": scores.members.tolist(), "nonmembers": scores.nonmembers.tolist()},
    }


def _auc(scores: MembershipScores) -> dict[str, float]:
    low, high = scores.interval("auc")
    return {"value": scores.auc, "low": low, "high": high, "level": 0.95}


def _covers_chance(auc: dict[str, float]) -> bool:
    return auc["low"] <= 0.5 <= auc["high"]


def _rate(scores: MembershipScores, fpr: float) -> Json:
    low, high = scores.interval("tpr", fpr=fpr)
    return {
        "value": scores.tpr_at(fpr),
        "low": low,
        "high": high,
        "attained_fpr": scores.attained_fpr(fpr),
        "reliable": scores.reliable(fpr),
        "note": scores.note(fpr),
    }
