"""`lorica pretrain`: pictures without labels -> training loop -> a robust encoder and its record."""

import os
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from rich.markup import escape

from lorica.artefacts import CONFIG_FILE, RUN_FILE, read_json, sole_writer, write_text
from lorica.data.label_split import split_labelled
from lorica.data.labelled import LabelledSet, read_labelled
from lorica.data.subsets import balanced
from lorica.data.unlabelled import read_unlabelled
from lorica.devices import pick_device
from lorica.epochs import CHECKPOINTS, resumed, train
from lorica.errors import LoricaError
from lorica.fingerprint import sha256, weights_digest
from lorica.monitor import METRICS_FILE
from lorica.pretrain.config import PretrainConfig
from lorica.pretrain.deliver import ENCODER, VIEWS_FILE, deliver
from lorica.pretrain.plus_plus import FOLDER as PLUS_PLUS
from lorica.pretrain.probes import Probe
from lorica.pretrain.trainer import Trainer, method_of
from lorica.processes import processes
from lorica.progress import console
from lorica.resume import clear, require_startable, settled
from lorica.robustness.pgd import crafting
from lorica.vision import Classifier, load_classifier
from lorica.vision.loading import RANDOM_WEIGHTS

LIVE = {
    "loss": "loss {:.2f}", "knn_natural": "knn {:.2f}", "knn_robust": "rob {:.2f}", "strength": "s {:.2f}",
    "learning_rate": "lr {:.1f}",
}  # fmt: skip
# What a resumed run may change: how it is watched, and where its inputs lie.
FREE_ON_RESUME = {
    "resume", "overwrite", "output", "device", "cache", "data", "checkpoint_every", "compile", "channels_last",
    "probe", "probe_every", "probe_pictures", "plus_plus", "plus_plus_epochs",
}  # fmt: skip

MAKES = (
    CHECKPOINTS, ENCODER, PLUS_PLUS, "tensorboard", RUN_FILE, METRICS_FILE, VIEWS_FILE, "report.html",
)  # fmt: skip
"""In OUTPUT, besides the configuration and the cache."""
COLLAPSED = 0.9999
"""Mean cosine of a picture's two views above which they are all alike."""


def run(config: PretrainConfig) -> dict[str, Any]:
    """Pre-train; the same as `lorica pretrain`.

    Returns:
        The contents of OUTPUT/run.json; empty in processes other than the main one.

    Raises:
        LoricaError: bad input, before any work starts; or a diverging run (`Diverged`).
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    device = pick_device(config.device)
    if config.plus_plus is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LoricaError("--plus-plus runs in a single process", "Give it to a second call, with --resume.")
    accelerator = processes(device)
    main = accelerator.is_main_process
    if main:
        require_startable(
            config, config.output, resume=config.resume, overwrite=config.overwrite, free=FREE_ON_RESUME, makes=MAKES
        )
    if config.resume and (record := _complete(config)) is not None:
        if main:
            console.print(f"The run in {escape(str(config.output))} is complete.")
        return record if main else {}
    torch.manual_seed(config.seed)  # of the weights
    classifier, came = load_classifier(config.model)
    start = weights_digest(classifier)
    pictures, probe = _pictures(config, classifier, accelerator)
    method = method_of(config, classifier, accelerator.device)
    trainer = Trainer(config, accelerator, method, pictures)
    identity = {
        "model": start, "pictures": sha256(*pictures.sha256), "processes": str(accelerator.num_processes),
    }  # fmt: skip
    notes = _notes(config, came, pictures, probe)
    for note in notes if main else []:
        console.print(f"[yellow]note:[/] {escape(note)}")
    before = resumed(trainer, config.output, identity, config.epochs) if config.resume else None
    history: dict[str, Any] = {"seconds": 0.0, "warnings": []} | (before or {})
    with sole_writer(config.output) if main else nullcontext():
        if main:
            _begin(config)
        train(
            trainer,
            output=config.output,
            epochs=config.epochs,
            checkpoint_every=config.checkpoint_every,
            identity=identity,
            history=history,
            conclude=lambda row: _conclude(config, trainer, probe, history["warnings"], row),
            doing=config.method,
            concluding=config.method if probe is None else "probing",
            live=LIVE,
        )
        notes += history["warnings"]
        record = deliver(config, trainer, pictures, probe, notes, history) if main else {}
    accelerator.wait_for_everyone()
    return record


# ----- before training ----------------------------------------------------------------------------------------------
def _complete(config: PretrainConfig) -> dict[str, Any] | None:
    """The record of a run of which nothing is left to do."""
    if not (config.output / RUN_FILE).is_file():
        return None
    record: dict[str, Any] = read_json(config.output / RUN_FILE, "record of the run")
    done = record.get("plus_plus") or {}
    asked = {"clusters": config.plus_plus, "asked_epochs": config.plus_plus_epochs}
    return record if config.plus_plus is None or asked.items() <= done.items() else None


def _pictures(
    config: PretrainConfig, classifier: Classifier, accelerator: Accelerator
) -> tuple[LabelledSet, Probe | None]:
    size, cache = classifier.architecture.size, config.cache or config.output / "cache"
    with accelerator.main_process_first():  # of several processes one decodes, the others find its cache
        pictures = read_unlabelled(config.data, size=size, cache=cache)
        if config.plus_plus is not None and config.plus_plus > len(pictures):
            raise LoricaError(f"{config.plus_plus} clusters of {len(pictures)} pictures", "Ask for fewer --plus-plus.")
        if config.probe is None:
            return pictures, None
        parts = read_labelled(config.probe, size=size, cache=cache)
    # Where no test part is declared, one is left out that a fine-tuning with this seed will draw, too.
    split = split_labelled(parts, val_share=0.2, test_share=0.2, seed=config.seed)
    known = split.train.take(balanced(split.train.labels, config.probe_pictures, config.seed))
    tried = split.val.take(balanced(split.val.labels, -(-config.probe_pictures // 4), config.seed))
    return pictures, Probe(
        known, tried, threat=config.attack.threat, step_size=config.attack.size, seed=config.seed,
        device=accelerator.device,
    )  # fmt: skip


def _notes(config: PretrainConfig, came: list[str], pictures: LabelledSet, probe: Probe | None) -> list[str]:
    """What a user should know; `came` is what there is to say of how the network came to be."""
    notes = [note for note in came if note != RANDOM_WEIGHTS]
    left_out = len(pictures) % config.batch_of(len(pictures))
    if left_out:
        notes.append(f"{left_out} of {len(pictures)} pictures make no full batch: each epoch leaves out others")
    if RANDOM_WEIGHTS in came and config.epochs < 200:
        notes.append(f"{config.epochs} epochs from random weights are few: the published encoders had 1000")
    seen = len(set(probe.test.sha256) & set(pictures.sha256)) if probe is not None else 0
    if probe is not None and seen:
        notes.append(
            f"{seen} of the {len(probe.test)} pictures that the probes are tried on are among those that the encoder "
            "learns from, though without their labels"
        )
    return notes


def _begin(config: PretrainConfig) -> None:
    if not config.resume:
        clear(config.output, MAKES)
    write_text(config.output / CONFIG_FILE, settled(config).to_yaml())


# ----- training -----------------------------------------------------------------------------------------------------
def _conclude(
    config: PretrainConfig, trainer: Trainer, probe: Probe | None, warnings: list[str], row: dict[str, float]
) -> dict[str, float]:
    """Try the encoder after an epoch, where that is due; returns what was found."""
    _warn_of_collapse(row, warnings)
    if probe is None or trainer.rank or not _is_probed(trainer.epoch, config):
        return {}
    with crafting(trainer.method):
        return probe.measure(trainer.features())


def _is_probed(epoch: int, config: PretrainConfig) -> bool:
    return epoch % config.probe_every == 0 or epoch == config.epochs


def _warn_of_collapse(row: dict[str, float], warnings: list[str]) -> None:
    """Views that all lie on one point tell no picture from another; say so once."""
    said = "all views have collapsed onto one point, from which no training comes back: lower --learning-rate"
    if row["alignment"] > COLLAPSED and said not in warnings:
        warnings.append(said)
        console.print(f"[yellow]warning:[/] {said}")
