"""After training: the best weights on the validation set, or the last, are exported and tried once on the test set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorica import evaluate
from lorica.artefacts import EVALUATION, RUN_FILE, SPLIT_FILE, provenance, read_json, write_json, write_text
from lorica.checkpoint import load_state
from lorica.data.label_split import LabelledSplit
from lorica.epochs import CHECKPOINTS
from lorica.finetune.config import FinetuneConfig
from lorica.finetune.trainer import BEST, BEST_AVERAGE, Trainer
from lorica.fingerprint import weights_digest
from lorica.resume import settled
from lorica.robustness.autoattack import TIERS
from lorica.vision.card import model_card
from lorica.vision.export import CARD_FILE, export_folder, export_onnx, export_program

MODEL = "model"
"""Folder of the exported model, in the run's own."""
EXPORTS = {"onnx": "model.onnx", "program": "model.pt2"}
"""Files beside the exported model, by what `--export` calls them."""


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
    record |= _known(config, record)
    export_folder(classifier, config.output / MODEL, card=_card(record))
    write_json(config.output / RUN_FILE, record)  # of which the evaluation learns what these weights are
    if not _enough(config, record):
        _evaluate(config)  # which puts what it finds into run.json and the card
        record = read_json(config.output / RUN_FILE, "record of the run")
    for name in config.export:  # last, as a network that cannot be written so is no less measured
        if name == "onnx":
            export_onnx(classifier, config.output / MODEL / EXPORTS[name])
        else:
            export_program(classifier, config.output / MODEL / EXPORTS[name])
    return record


def complete(config: FinetuneConfig) -> dict[str, Any] | None:
    """The record of a run of which nothing is left to do."""
    if not (config.output / RUN_FILE).is_file():
        return None
    record: dict[str, Any] = read_json(config.output / RUN_FILE, "record of the run")
    exported = all((config.output / MODEL / EXPORTS[name]).is_file() for name in config.export)
    return record if exported and _enough(config, record) else None


def record_evaluation(run: Path, found: Mapping[str, Any]) -> None:
    """Put into the record of a run, and on the card of its model, what an evaluation of its test pictures found.

    Nothing is changed where the evaluation is of other weights, pictures or radii than the run's own would be.

    Args:
        run: folder of the run.
        found: the contents of robustness.json.
    """
    file = run / RUN_FILE
    record = read_json(file, "record of the run") if file.is_file() else None
    if not isinstance(record, dict) or "weights_sha256" not in record or found["model"]["method"] == "unknown":
        return
    threats = [threat for threat in found["threats"] if threat["text"] == record.get("threat")]
    whole = found["data"]["split"] and found["data"]["pictures"] == record["counts"]["test"]
    if not threats or found["data"]["part"] != "test" or not whole:
        return
    record |= {
        "natural": found["natural"],
        "robust": threats[-1]["robust"],
        "attack": "AutoAttack",
        "attack_version": threats[-1]["autoattack"]["tier"],
        "verdict": found["verdict"]["text"],
        "flags": [flag for flag in found["flags"] if flag["raised"]],
    }
    write_text(run / MODEL / CARD_FILE, _card(record))
    write_json(file, record)


_FOUND = ("natural", "robust", "attack", "attack_version", "verdict", "flags")


def _known(config: FinetuneConfig, record: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call has measured on these weights."""
    file = config.output / RUN_FILE
    before = read_json(file, "record of the run") if config.resume and file.is_file() else {}
    same = before.get("weights_sha256") == record["weights_sha256"]
    return {key: before[key] for key in _FOUND if key in before} if same else {}


def _enough(config: FinetuneConfig, record: dict[str, Any]) -> bool:
    """Whether an evaluation as thorough as the one that is asked for, or more so, is on record."""
    tiers = ["none", *TIERS]
    done = record.get("attack_version", "none")
    return done in tiers and tiers.index(done) >= tiers.index(config.evaluate)


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


def _card(record: dict[str, Any]) -> str:
    # It says of the validation accuracies that the weights were chosen on the same pictures.
    unsaid = {"val_natural", "val_robust"} if record["config"]["select"] == "last" else set()
    return model_card({key: value for key, value in record.items() if key not in unsaid})


def _evaluate(config: FinetuneConfig) -> None:
    evaluate.run(
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
