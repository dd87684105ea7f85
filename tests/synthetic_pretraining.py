"""Pre-training runs without a network: made-up losses and accuracies, schedules and intervals by the real formulae."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lorica.report.pretraining import PretrainingRun
from lorica.robustness.accuracy import rate
from lorica.sheet import grid

Json = dict[str, Any]
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BEST = {"linear_natural": 0.74, "linear_robust": 0.36, "knn_natural": 0.68, "knn_robust": 0.31}
FRAGILE = {"linear_natural": 0.88, "linear_robust": 0.01, "knn_natural": 0.84, "knn_robust": 0.004}
"""What a robust encoder and an SCL one may reach."""

_SIZES = {"paper": (3e-3, 2e-6), "authors": (-6.2, -0.024), "anchored": (0.2, 0.3)}


def metrics(
    method: str = "dynacl",
    invariance: str = "both",
    form: str = "paper",
    *,
    epochs: int = 100,
    probe: Mapping[str, float] | None = BEST,
) -> list[Json]:
    """A `metrics.jsonl`: a row per epoch; every tenth of the way, and at the end, with probes."""
    rng, adversarial, rows = np.random.default_rng(len(method + invariance)), method != "scl", []
    sir, air = _SIZES.get(form, (1.0, 1.0))
    for epoch in range(1, epochs + 1):
        t = epoch / epochs
        strength = 1 - (epoch - 1) // 5 * 5 / epochs if method == "dynacl" else 1.0
        w = 2 / 3 * (1 - strength)
        learned = 1 - np.exp(-4 * t)
        row = {"step": 98 * epoch, "epoch": epoch, "learning_rate": 2.5 * (1 + np.cos(np.pi * t)) * min(1, 10 * t),
               "strength": strength, "weight_natural": 1 - w if adversarial else 1.0,
               "weight_adversarial": 1 + w if adversarial else 0.0,
               "weight_sir": 0.5 * (invariance in ("sir", "both")),
               "weight_air": 0.5 * (invariance in ("air", "both")),
               "natural": 5.6 - 1.2 * learned - 0.2 * w, "loss": 11.2 - 2 * learned, "alignment": 0.4 + 0.4 * learned,
               "seconds": 61.5 + rng.normal()}  # fmt: skip
        if adversarial:
            row |= {"adversarial": 6.1 - 1.1 * learned - 0.2 * w, "alignment_adversarial": 0.3 + 0.35 * learned}
        if row["weight_sir"]:
            row["sir"] = sir * (1.2 - 0.5 * learned + 0.02 * rng.normal())
        if row["weight_air"]:
            row["air"] = air * (1.2 - 0.5 * learned + 0.02 * rng.normal())
        if probe is not None and epoch % max(1, epochs // 10) == 0:
            row |= {key: 0.1 + (value - 0.1) * float(learned) / (1 - np.exp(-4)) for key, value in probe.items()}
        rows.append({key: float(value) if key not in ("step", "epoch") else value for key, value in row.items()})
    return rows


def record(
    method: str = "dynacl",
    invariance: str = "both",
    form: str = "paper",
    *,
    epochs: int = 100,
    probe: Mapping[str, float] | None = BEST,
    pictures: int = 50_000,
) -> Json:
    """A `run.json`; `probe` are the accuracies on 1,000 pictures."""
    found: Json | None = None
    if probe is not None:
        found = {"train": 5000, "test": 1000, "classes": list(TEN), "epoch": epochs}
        found |= {key: _rate(value) for key, value in probe.items()}
    return {
        "config": {"data": "/home/jane doe/pictures", "output": f"/home/jane doe/runs/{method}", "method": method,
                   "invariance": invariance, "epochs": epochs, "batch_size": 512, "learning_rate": 5.0},
        "seed": 0,
        "versions": {"lorica": "0.1.0", "torch": "2.15.0"},
        "hardware": {"device": "Example GPU", "processor": "Example CPU", "cores": 8, "system": "Linux"},
        "kind": "pretraining", "method": method, "invariance": invariance, "form": form, "threat": "L-inf 8/255",
        "architecture": "cifar_resnet18", "size": [32, 32], "pictures": pictures, "epochs": epochs,
        "steps": 98 * epochs, "seconds": 61.5 * epochs, "processes": 1,
        "route": "natural" if method == "scl" else "adversarial", "encoder_sha256": "3f9a0c5b7d21e864" * 4,
        "notes": ["3 pictures of /home/jane doe/pictures/broken were left out."], "probe": found,
    }  # fmt: skip


def _rate(accuracy: float, n: int = 1000) -> Json:
    return {key: value for key, value in rate(torch.arange(n) < round(accuracy * n)).items() if key != "correct"}


def views(file: Path, *, rows: int = 8, columns: int = 5, side: int = 32) -> Path:
    """A sheet: waves, two recoloured cuts of them, the first with noise, and the noise around grey."""
    rng, squares = np.random.default_rng(7), []
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    for _ in range(rows):
        waves = [np.sin(rng.uniform(2, 9) * across + rng.uniform(2, 9) * down + rng.uniform(0, 6)) for _ in range(3)]
        picture = 0.5 + 0.35 * np.stack(waves, axis=-1)
        first, second = picture[::-1] * rng.uniform(0.6, 1.3), picture[:, ::-1, ::-1]
        delta = rng.choice([-8 / 255, 8 / 255], picture.shape)
        for pixels in (picture, first, second, first + delta, 0.5 + 12 * delta)[:columns]:
            squares.append(Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8)))
    file.parent.mkdir(parents=True, exist_ok=True)
    grid(squares, columns).save(file)
    return file


def run(
    label: str,
    method: str = "dynacl",
    invariance: str = "both",
    form: str = "paper",
    *,
    epochs: int = 100,
    probe: Mapping[str, float] | None = BEST,
    sheet: Path | None = None,
) -> PretrainingRun:
    """A complete run, as the page wants it; with a sheet of views where a file is given for it."""
    rows = metrics(method, invariance, form, epochs=epochs, probe=probe)
    about = record(method, invariance, form, epochs=epochs, probe=probe)
    return PretrainingRun(label, about, rows, views(sheet, columns=3 if method == "scl" else 5) if sheet else None)


def three_runs(folder: Path | None = None) -> list[PretrainingRun]:
    """DynACL with both regularisers, ACL in the authors' form, and SCL."""
    sheets = [folder / f"{name}.png" if folder else None for name in ("dynacl", "acl", "scl")]
    return [
        run("DynACL + SIR + AIR", sheet=sheets[0]),
        run("ACL + AIR", "acl", "air", "authors", probe={k: 0.9 * v for k, v in BEST.items()}, sheet=sheets[1]),
        run("SCL", "scl", "none", probe=FRAGILE, sheet=sheets[2]),
    ]
