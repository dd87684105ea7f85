"""DynACL++: clusters of the encoder's features as if they were labels, then a linear probe, then all weights (Luo et
al., ICLR 2023, arXiv 2303.01289, section 4.3)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica import finetune
from lorica.data.batches import ordered
from lorica.data.labelled import LabelledSet
from lorica.finetune.recipes import PLUS_PLUS, shortened
from lorica.pretrain.config import PretrainConfig
from lorica.pretrain.network import NATURAL
from lorica.pretrain.pseudo import pseudo_labels, relabelled
from lorica.pretrain.trainer import Trainer
from lorica.progress import console
from lorica.robustness.pgd import crafting
from lorica.vision import Classifier, ModelConfig, load_classifier
from lorica.vision.export import export_folder

FOLDER = "plus_plus"
"""In the run's own, with one for each CLUSTERS_EPOCHS: the encoder before (`before`), the fine-tunings (`probe`,
`all`)."""


def plus_plus(
    config: PretrainConfig, trainer: Trainer, encoder: Classifier, pictures: LabelledSet, *, card: str
) -> tuple[Classifier, dict[str, Any]]:
    """Fine-tune an encoder on pseudo-labels.

    The recipes are `lorica.finetune.recipes.PLUS_PLUS`; 2 % of the pictures watch, and 1 % are left out as a test set
    that nobody looks at. A second call goes on where the first was stopped.

    Args:
        config: with `plus_plus`, the number of clusters.
        trainer: whose natural route makes the clusters, as in the authors' code.
        encoder: as pre-training would deliver it.
        pictures: without labels.
        card: of the encoder.

    Returns:
        The encoder without its head; and what was done, for the record.

    Raises:
        LoricaError: the pictures do not fall into so many clusters.
    """
    assert config.plus_plus is not None
    labels = pseudo_labels(_features(trainer, pictures), config.plus_plus, config.seed)
    parts = {"all": relabelled(pictures, labels)}
    console.print(f"DynACL++: {config.plus_plus} clusters of {torch.bincount(labels).tolist()} pictures")
    folder = config.output / FOLDER / f"{config.plus_plus}_{config.plus_plus_epochs}"
    before, probe = folder / "before", folder / "probe"
    export_folder(encoder, before, card=card)
    records = [
        finetune.run(_config(config, "probe", before, probe), parts),
        finetune.run(_config(config, "all", probe / "model", folder / "all"), parts),
    ]
    better, _ = load_classifier(ModelConfig(name=str(folder / "all" / "model")))
    better.take_classes(())
    done = {
        "clusters": config.plus_plus,
        "asked_epochs": config.plus_plus_epochs,
        "pictures": torch.bincount(labels).tolist(),
        "epochs": [record["epochs"] for record in records],
        "seconds": sum(record["seconds"] for record in records),
    }
    return better, done


def _features(trainer: Trainer, pictures: LabelledSet) -> Tensor:
    with crafting(trainer.method), torch.no_grad():
        features = trainer.features(NATURAL)
        return torch.cat([features(pixels).cpu() for pixels, _ in ordered(pictures, 256, trainer.device)])


def _config(config: PretrainConfig, part: str, model: Path, output: Path) -> finetune.FinetuneConfig:
    share = PLUS_PLUS[part]["epochs"] / PLUS_PLUS["all"]["epochs"]
    recipe = shortened(PLUS_PLUS[part], max(1, round(share * config.plus_plus_epochs)))
    recipe["attack"] |= {"eps": config.attack.eps, "step_size": config.attack.eps / 4}
    return finetune.FinetuneConfig(
        **recipe,
        data=config.data,
        output=output,
        model={"name": str(model)},
        test_share=0.01,
        evaluate="none",
        seed=config.seed,
        device=config.device,
        precision=config.precision,
        channels_last=config.channels_last,
        resume=True,
    )
