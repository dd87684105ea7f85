"""After pre-training: the encoder is exported, probed once more and described."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from lorica.artefacts import RUN_FILE, provenance, write_json, write_with
from lorica.data.labelled import LabelledSet
from lorica.fingerprint import weights_digest
from lorica.pretrain.config import PretrainConfig
from lorica.pretrain.network import ADVERSARIAL, NATURAL
from lorica.pretrain.plus_plus import plus_plus
from lorica.pretrain.probes import Probe
from lorica.pretrain.trainer import Trainer
from lorica.pretrain.views import Views
from lorica.resume import settled
from lorica.vision.batch_norm import norm_tensors
from lorica.vision.card import encoder_card
from lorica.vision.export import export_folder

ENCODER, VIEWS_FILE = "encoder", "views.png"
"""In the run's folder: the exported encoder, and what it was shown."""

_SHOWN, _MAGNIFIED = 8, 10


def deliver(
    config: PretrainConfig,
    trainer: Trainer,
    pictures: LabelledSet,
    probe: Probe | None,
    notes: list[str],
    history: dict[str, Any],
) -> dict[str, Any]:
    """Export the encoder and write run.json last; returns the contents of run.json."""
    network = trainer.method.result()
    encoder = network.delivered(trainer.route).cpu()
    if trainer.route == ADVERSARIAL:
        natural = norm_tensors(network.encoder.backbone, NATURAL)
        encoder.natural_norms = {name: value.cpu() for name, value in natural.items()} or None
    record = provenance(settled(config).model_dump(mode="json"), config.seed) | {
        "kind": "pretraining",
        "method": config.method,
        "invariance": config.invariance,
        "form": config.form,
        "adversarial": config.adversarial,
        "threat": str(config.attack.threat),
        "architecture": encoder.architecture.name,
        "size": list(encoder.architecture.size),
        "pictures": len(pictures),
        "batch_size": config.batch_of(len(pictures)),
        "epochs": trainer.epoch,
        "steps": trainer.epoch * trainer.steps_per_epoch,
        "seconds": history["seconds"],
        "processes": trainer.world,
        "precision": trainer.precision,
        "route": trainer.route,
        "plus_plus": None,
        "magnified": _MAGNIFIED,
        "notes": notes,
        "probe": None,
    }
    if config.plus_plus is not None:
        encoder, record["plus_plus"] = plus_plus(config, trainer, encoder, pictures, card=encoder_card(record))
    record["encoder_sha256"] = weights_digest(encoder)
    if probe is not None:
        still = encoder.to(trainer.device).requires_grad_(False)
        rates = probe.measure_rates(lambda pixels: still(pixels).float())
        record["probe"] = {
            "train": len(probe.train), "test": len(probe.test), "classes": list(probe.train.classes),
            "epoch": trainer.epoch, **rates,
        }  # fmt: skip
    _draw_views(config, trainer, pictures)
    export_folder(encoder.cpu(), config.output / ENCODER, card=encoder_card(record))
    write_json(config.output / RUN_FILE, record)
    return record


def _draw_views(config: PretrainConfig, trainer: Trainer, pictures: LabelledSet) -> None:
    """A sheet of pictures, their views, an adversarial view, and what was changed in it, magnified."""
    rows = np.linspace(0, len(pictures) - 1, min(_SHOWN, len(pictures))).round().astype(int).tolist()
    pixels = pictures.take(rows).pixels.to(trainer.device).float() / 255
    trainer.views = Views(trainer.method.emphasis(1, config.epochs).strength)  # at their strongest
    i, j = trainer.draw(pixels, config.seed)
    columns = [pixels, i, j]
    if config.adversarial:
        attacked, _ = trainer.attack((i, j), config.seed, alone=True)
        columns += [attacked, (0.5 + _MAGNIFIED * (attacked - i)).clamp(0, 1)]
    sheet = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)  # (3, rows H, columns W)
    levels = (sheet * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    scale = max(1, 64 // pixels.shape[2])
    image = Image.fromarray(levels.repeat(scale, axis=0).repeat(scale, axis=1))
    write_with(config.output / VIEWS_FILE, lambda path: image.save(path, format="PNG"))
