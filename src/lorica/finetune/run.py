"""`lorica finetune`: labelled pictures and a pre-trained network -> training loop -> a robust model and its record."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from rich.markup import escape

from lorica.artefacts import (
    CONFIG_FILE,
    EVALUATION,
    RUN_FILE,
    SPLIT_FILE,
    sole_writer,
    write_text,
)
from lorica.config import load
from lorica.data.label_split import LabelledSplit, load_split, split_labelled
from lorica.data.labelled import LabelledSet, read_labelled
from lorica.data.subsets import hide_labels, keep_labels
from lorica.devices import pick_device
from lorica.epochs import CHECKPOINTS, resumed, train
from lorica.finetune.config import FinetuneConfig
from lorica.finetune.deliver import MODEL, complete, deliver
from lorica.finetune.methods import METHODS, Method
from lorica.finetune.trainer import Trainer
from lorica.fingerprint import sha256, weights_digest
from lorica.monitor import METRICS_FILE
from lorica.processes import processes
from lorica.progress import console
from lorica.resume import clear, require_startable, settled
from lorica.robustness.autoattack import original
from lorica.vision import Classifier, load_classifier, require_logits
from lorica.vision.export import require_onnx

LIVE = {"val_natural": "nat {:.2f}", "val_robust": "rob {:.2f}", "learning_rate": "lr {:.0e}"}
LAMBDAS = {"weight_natural": "λ1 {:.2f}", "weight_kl": "λ2 {:.1f}"}
# What a resumed run may change: how it is watched, and where its inputs lie.
FREE_ON_RESUME = {
    "resume", "overwrite", "output", "device", "cache", "data", "checkpoint_every", "evaluate", "export",
    "compile", "channels_last",
}  # fmt: skip
MAKES = (
    CHECKPOINTS, MODEL, "tensorboard", EVALUATION, RUN_FILE, METRICS_FILE, SPLIT_FILE, "report.html",
)  # fmt: skip
"""In OUTPUT, besides the configuration and the cache."""
COLLAPSE = 0.5
"""Catastrophic overfitting: robust validation accuracy stays below this share of the best (Wong et al., ICLR 2020)."""


def run(config: FinetuneConfig, parts: Mapping[str, LabelledSet] | None = None) -> dict[str, Any]:
    """Fine-tune; the same as `lorica finetune`.

    Args:
        config: of the run.
        parts: labelled pictures as `read_labelled` returns them, for a caller who has made the labels; by default
            those of `config.data`.

    Returns:
        The contents of OUTPUT/run.json; empty in processes other than the main one.

    Raises:
        LoricaError: bad input, before any work starts; or a diverging run (`Diverged`).
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    device = pick_device(config.device)
    accelerator = processes(device)
    main = accelerator.is_main_process
    if main:
        require_startable(
            config, config.output, resume=config.resume, overwrite=config.overwrite, free=FREE_ON_RESUME, makes=MAKES
        )
    if config.resume and (record := complete(config)) is not None:
        if main:
            console.print(f"The run in {escape(str(config.output))} is complete.")
        return record if main else {}
    if "onnx" in config.export:
        require_onnx()
    if config.evaluate != "none":
        original()  # of AutoAttack, which is wanted only after training
    torch.manual_seed(config.seed)  # of a new head and of the branch
    classifier, notes = load_classifier(config.model)
    start = weights_digest(classifier)
    if parts is None:
        parts = _read(config, classifier, accelerator)
    split = _split(config, parts)
    if classifier.take_classes(split.train.classes):
        notes.append(f"the head is new: {len(classifier.classes)} classes of the data")
    if config.head == "zeros":
        for parameter in classifier.head.parameters():
            torch.nn.init.zeros_(parameter)
    method = _method(config, classifier, accelerator.device)
    learned = hide_labels(split, config.labels, config.seed) if method.takes_unlabelled else split
    trainer = Trainer(config, accelerator, method, learned)
    for note in [*learned.notes, *notes] if main else []:
        console.print(f"[yellow]note:[/] {escape(note)}")
    identity = {
        "model": start,
        "pictures": sha256(*split.train.sha256, "", *split.val.sha256),
        "processes": str(accelerator.num_processes),
    }
    before = resumed(trainer, config.output, identity, config.epochs) if config.resume else None
    history = before or {"seconds": 0.0, "stopped": None, "val_robust": [], "last": {}}
    with sole_writer(config.output) if main else nullcontext():
        if main:
            _begin(config, split)
        train(
            trainer,
            output=config.output,
            epochs=config.epochs,
            checkpoint_every=config.checkpoint_every,
            identity=identity,
            history=history,
            conclude=lambda row: _conclude(config, trainer, history, row),
            doing=config.method,
            concluding="validating",
            live=LIVE | (LAMBDAS if method.needs_natural_accuracy else {}),
        )
        record = deliver(config, trainer, split, [*learned.notes, *notes], identity, history) if main else {}
    accelerator.wait_for_everyone()
    return record


# ----- before training ----------------------------------------------------------------------------------------------
def _read(config: FinetuneConfig, classifier: Classifier, accelerator: Accelerator) -> dict[str, LabelledSet]:
    with accelerator.main_process_first():  # of several processes one decodes, the others find its cache
        cache = config.cache or config.output / "cache"
        return read_labelled(config.data, size=classifier.architecture.size, cache=cache)


def _split(config: FinetuneConfig, parts: Mapping[str, LabelledSet]) -> LabelledSplit:
    own = config.output / SPLIT_FILE
    if config.resume and own.is_file():
        return load_split(own, parts)
    if config.split is not None:
        split = load_split(config.split, parts)
    else:
        split = split_labelled(parts, val_share=config.val_share, test_share=config.test_share, seed=config.seed)
    return split if METHODS[config.method].takes_unlabelled else keep_labels(split, config.labels, config.seed)


def _method(config: FinetuneConfig, classifier: Classifier, device: torch.device) -> Method:
    cls = METHODS[config.method]
    size = classifier.architecture.size
    require_logits(classifier.eval(), torch.rand(2, 3, *size))
    method = cls(load(cls.Options, options=config.options), classifier).to(device)
    if config.channels_last:
        method.to(memory_format=torch.channels_last)
    if config.compile:
        from torch._functorch import config as graphs

        graphs.donated_buffer = False  # a backward pass may use up its buffers, but similarity takes several
        classifier.backbone.compile()
    return method


def _begin(config: FinetuneConfig, split: LabelledSplit) -> None:
    if not config.resume:
        clear(config.output, MAKES)
    write_text(config.output / CONFIG_FILE, settled(config).to_yaml())
    if not (config.output / SPLIT_FILE).exists():
        split.save(config.output / SPLIT_FILE)


# ----- training -----------------------------------------------------------------------------------------------------
def _conclude(
    config: FinetuneConfig, trainer: Trainer, history: dict[str, Any], row: dict[str, float]
) -> dict[str, float]:
    """Validate after an epoch, keep the best weights and set the next learning rate; returns what is to be logged."""
    found = trainer.validate()
    decision = trainer.decide(row | found, config.output / CHECKPOINTS)
    history["val_robust"].append(max(found["val_robust"], found.get("val_average_robust", 0.0)))
    history["last"] = {"epoch": row["epoch"]} | found
    history["stopped"] = _reason(config, history["val_robust"], decision.stop, trainer.epoch)
    return found | {"reloaded": float(decision.reload)}


def _reason(config: FinetuneConfig, robust: list[float], spent: bool, epoch: int) -> str | None:
    """Why training ends before its last epoch, if it does."""
    if epoch >= config.epochs or config.select == "last":
        return None
    if spent:
        return f"the learning rate was spent after epoch {epoch}"
    # Twice in a row, of the weights and of their average: a single bad epoch is only a large learning rate.
    best = max(robust)
    if all(value < COLLAPSE * best and best - value > 0.1 for value in robust[-2:]):
        return (
            f"catastrophic overfitting in epoch {epoch}: robust validation accuracy fell from {best:.3f} to "
            f"{robust[-1]:.3f}"
        )
    return None
