"""After training: the best weights on the validation set, or the last, are exported and tried once on the test set."""

from pathlib import Path
from typing import Any

from lorica import evaluate
from lorica.artefacts import RUN_FILE, SPLIT_FILE, provenance, read_json, write_json
from lorica.checkpoint import load_state
from lorica.data.label_split import LabelledSplit
from lorica.epochs import CHECKPOINTS
from lorica.finetune.config import FinetuneConfig
from lorica.finetune.trainer import BEST, BEST_AVERAGE, Trainer
from lorica.fingerprint import weights_digest
from lorica.resume import settled
from lorica.vision import Classifier
from lorica.vision.card import model_card
from lorica.vision.export import export_folder, export_onnx, export_program

MODEL, EVALUATION = "model", "evaluation"
"""Folders of the exported model and of its evaluation, in the run's own."""


def deliver(
    config: FinetuneConfig,
    trainer: Trainer,
    split: LabelledSplit,
    notes: list[str],
    identity: dict[str, str],
    history: dict[str, Any],
) -> dict[str, Any]:
    """Export, write run.json, evaluate and add what was found; returns the contents of run.json."""
    chosen, row = _chosen(config, trainer, history)
    classifier = trainer.method.inference().cpu()
    prefix = "val_average_" if chosen == "ema" else "val_"
    record = provenance(settled(config).model_dump(mode="json"), config.seed) | {
        "method": config.method,
        "fast_mode": config.attack.kind != "pgd",
        "threat": str(config.attack.threat),
        "architecture": classifier.architecture.name,
        "size": list(classifier.architecture.size),
        "classes": list(classifier.classes),
        "counts": {part: len(getattr(split, part)) for part in ("train", "val", "test")},
        "notes": notes,
        "start": identity["model"],
        "weights": chosen,
        "chosen_by": "last epoch" if config.select == "last" else f"robust validation {trainer.judged_by}",
        "weights_sha256": weights_digest(classifier),
        "best_epoch": row["epoch"],
        "val_natural": row[f"{prefix}natural"],
        "val_robust": row[f"{prefix}robust"],
        "epochs": trainer.epoch,
        "stopped": history["stopped"],
        "seconds": history["seconds"],
        "processes": trainer.world,
        "precision": trainer.precision,
        "learning_rate": trainer.initial_rate,
    }
    _export(config, classifier, record)
    write_json(config.output / RUN_FILE, record)  # of which the evaluation learns what these weights are
    if config.evaluate != "none":
        record |= _evaluated(config)
        _export(config, classifier, record)  # now its card says what was measured
        write_json(config.output / RUN_FILE, record)
    return record


def complete(config: FinetuneConfig) -> dict[str, Any] | None:
    """The record of a run of which nothing is left to do."""
    if not (config.output / RUN_FILE).is_file():
        return None
    record: dict[str, Any] = read_json(config.output / RUN_FILE, "record of the run")
    done = config.evaluate == "none" or record.get("attack_version") == config.evaluate
    return record if done else None


def _chosen(config: FinetuneConfig, trainer: Trainer, history: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Put the weights to be delivered in place; "raw" or "ema", and their epoch's numbers."""
    if config.select == "best":
        return _best(trainer, config.output / CHECKPOINTS)
    if trainer.average is None:
        return "raw", history["last"]
    trainer.method.classifier.load_state_dict(trainer.average.values)
    return "ema", history["last"]


def _best(trainer: Trainer, folder: Path) -> tuple[str, dict[str, Any]]:
    """Load the better of the best weights and the best averaged weights."""
    groups, row = load_state(folder / BEST)
    if (folder / BEST_AVERAGE).is_file():
        averaged, its_row = load_state(folder / BEST_AVERAGE)
        if trainer.merit(its_row, "average_") >= trainer.merit(row):
            trainer.method.classifier.load_state_dict(averaged["classifier"])
            return "ema", its_row
    trainer.method.load_state_dict(groups["method"])
    return "raw", row


def _export(config: FinetuneConfig, classifier: Classifier, record: dict[str, Any]) -> None:
    folder = config.output / MODEL
    # The card says of the validation accuracies that the weights were chosen on the same pictures.
    unsaid = {"val_natural", "val_robust"} if config.select == "last" else set()
    card = model_card({key: value for key, value in record.items() if key not in unsaid})
    export_folder(classifier, folder, card=card)
    if "onnx" in config.export:
        export_onnx(classifier, folder / "model.onnx")
    if "program" in config.export:
        export_program(classifier, folder / "model.pt2")


def _evaluated(config: FinetuneConfig) -> dict[str, Any]:
    """What is said of the test pictures."""
    found = evaluate.run(
        evaluate.EvaluateConfig(
            model={"name": str(config.output / MODEL)},
            data=config.data,
            split=config.output / SPLIT_FILE,
            part="test",
            members="train",
            output=config.output / EVALUATION,
            eps=[config.attack.eps],
            norm=config.attack.norm,
            tier=config.evaluate,
            seed=config.seed,
            device=config.device,
            cache=config.cache or config.output / "cache",
            overwrite=True,
        )
    )
    threat = found["threats"][-1]
    return {
        "natural": found["natural"],
        "robust": threat["robust"],
        "attack": "AutoAttack",
        "attack_version": config.evaluate,
        "verdict": found["verdict"]["text"],
        "flags": [flag for flag in found["flags"] if flag["raised"]],
    }
