"""A tiny encoder and tiny pictures for tests of pre-training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from lorica.data.labelled import LabelledSet
from lorica.pretrain.config import PretrainConfig
from lorica.pretrain.trainer import Trainer, method_of
from lorica.vision import load_classifier

SIDE = 8
MODEL: dict[str, Any] = {"name": "cifar_resnet20", "arguments": {"width": 4}, "size": (SIDE, SIDE)}


def tiny_config(**changes: Any) -> PretrainConfig:
    """Two epochs of two steps on eight pictures."""
    settings = {
        "data": "pictures", "model": MODEL, "epochs": 2, "batch_size": 4, "attack": {"steps": 2}, "device": "cpu",
        "precision": "fp32",  # whatever this processor is fastest in
    }  # fmt: skip
    return PretrainConfig(**settings | changes)


def random_pictures(count: int = 8, seed: int = 0) -> LabelledSet:
    """Noise, in memory."""
    pixels = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    names = tuple(f"{seed}-{row}" for row in range(count))
    return LabelledSet(pixels.byte(), torch.zeros(count, dtype=torch.long), (), names, names)


def tiny_trainer(config: PretrainConfig, pictures: LabelledSet | None = None) -> Trainer:
    """Always the same for a configuration."""
    torch.manual_seed(config.seed)
    classifier, _ = load_classifier(config.model)
    method = method_of(config, classifier, torch.device("cpu"))
    return Trainer(config, Accelerator(cpu=True), method, pictures or random_pictures())


def write_pictures(folder: Path, count: int = 8, side: int = SIDE, labels: int = 0, seed: int = 0) -> Path:
    """Noise as files, in folders by class where there are labels; class k is as bright as its number."""
    rng = np.random.default_rng(seed)
    for row in range(count):
        parent = folder / f"class_{row % labels}" if labels else folder
        parent.mkdir(parents=True, exist_ok=True)
        level = 255 * (row % labels) // max(1, labels - 1) if labels > 1 else 128
        levels = np.clip(rng.normal(level, 30, (side, side, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(parent / f"{row:03d}.png")
    return folder
