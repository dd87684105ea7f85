"""Shadow classifiers: the audited model's own training, repeated on random halves of its members and non-members.

From them an attacker knows how models answer that did and did not see a picture (Carlini et al., S&P 2022, arXiv
2112.03570).
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lorica.artefacts import CONFIG_FILE, SPLIT_FILE, read_json
from lorica.config import load
from lorica.data.labelled import LabelledSet
from lorica.errors import LoricaError
from lorica.evaluate.config import EvaluateConfig
from lorica.progress import console
from lorica.robustness.attacked import Counted, predict
from lorica.seeds import stable_seed
from lorica.vision import ModelConfig, load_classifier

FOLDER = "shadows"
"""In OUTPUT: a fine-tuning run per shadow."""


class Shadows(NamedTuple):
    """What shadows say of S models and N pictures."""

    logits: NDArray[np.float64]
    """(S, N, C), in the order of the data's classes."""
    inside: NDArray[np.bool_]
    """(S, N), whether a shadow was trained on a picture."""


def recipe_file(run: Path | None) -> Path:
    """The configuration of the training that is to be repeated.

    Args:
        run: folder of the fine-tuning that made the model, if it is known.

    Raises:
        LoricaError: it is not known.
    """
    if run is None or not (run / CONFIG_FILE).is_file():
        raise LoricaError(
            "--shadows repeats the training of the model, of which there is no record",
            "Evaluate the folder of a `lorica finetune` run, or leave --shadows out.",
        )
    return run / CONFIG_FILE


def shadow_answers(
    recipe: Path, members: LabelledSet, others: LabelledSet, asked: LabelledSet, config: EvaluateConfig
) -> Shadows:
    """Train shadows, or find those of an earlier call, and ask them.

    Every picture of the pool is drawn into half of the shadows' training sets, in pairs of opposite halves. A shadow
    has validation pictures of its own, which it is not trained on.

    Args:
        recipe: configuration of `lorica finetune`.
        members: all pictures that the audited model was trained on.
        others: all that are evaluated, which it was not trained on.
        asked: the pictures that are asked about, some of both.
        config: with the number of `shadows`, an even one.
    """
    from lorica import finetune  # which evaluates, and so comes here

    pool = joined(members, others)
    own = load(finetune.FinetuneConfig, file=recipe)
    # Pictures that were left out for want of a label are no members; those that were learned from without one are.
    labels = own.labels if finetune.METHODS[own.method].takes_unlabelled else 1.0
    logits, inside = [], []
    for number in range(config.shadows):
        chosen = _half(len(pool), number, config.seed)
        parts = {
            "train": pool.take(chosen.nonzero()[0].tolist()),
            "test": pool.take((~chosen).nonzero()[0].tolist()),
        }
        folder = config.folder / FOLDER / f"{number:02d}"
        console.print(f"shadow classifier {number + 1} of {config.shadows}")
        settings = {
            "output": folder, "seed": stable_seed(config.seed, "shadow", number) % 2**31, "evaluate": "none",
            "export": [], "split": None, "labels": labels, "resume": True, "overwrite": False, "device": config.device,
        }  # fmt: skip
        finetune.run(own.model_copy(update=settings), parts)
        model, _ = load_classifier(ModelConfig(name=str(folder / "model")))
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        shadow = Counted(model.to(device))
        with shadow.attacked():
            answers = predict(shadow, asked.pixels, batch_size=config.batch_size)
        logits.append(answers.double().numpy())
        split = read_json(folder / SPLIT_FILE, "split of a shadow")
        trained = {row["sha256"] for row in split["parts"]["train"]}
        inside.append(np.array([value in trained for value in asked.sha256]))
    return Shadows(np.stack(logits), np.stack(inside))


def joined(members: LabelledSet, others: LabelledSet) -> LabelledSet:
    """Both in this order; of the others, copies of members are left out."""
    known = set(members.sha256)
    others = others.take([row for row, value in enumerate(others.sha256) if value not in known])
    return replace(
        members,
        pixels=torch.cat([members.pixels, others.pixels]),
        labels=torch.cat([members.labels, others.labels]),
        names=(*members.names, *others.names),
        sha256=(*members.sha256, *others.sha256),
    )


def _half(count: int, number: int, seed: int) -> NDArray[np.bool_]:
    """Which pictures a shadow may be trained on; the next one has the others."""
    order = np.random.default_rng(stable_seed(seed, "shadow halves", number // 2)).permutation(count)
    chosen = np.zeros(count, dtype=bool)
    chosen[order[: count // 2]] = True
    return chosen if number % 2 == 0 else ~chosen
