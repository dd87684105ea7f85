"""Shadow classifiers: the audited model's own training, repeated on random halves of its members and non-members.

From them an attacker knows how models answer that did and did not see a picture (Carlini et al., S&P 2022, arXiv
2112.03570).
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape

from lorica.artefacts import CONFIG_FILE, SPLIT_FILE, read_json
from lorica.config import load
from lorica.data.labelled import LabelledSet
from lorica.errors import LoricaError
from lorica.evaluate.config import EvaluateConfig
from lorica.fingerprint import sha256
from lorica.progress import console
from lorica.robustness.attacked import Counted, predict
from lorica.seeds import stable_seed
from lorica.vision import ModelConfig, load_classifier

if TYPE_CHECKING:
    from lorica.finetune import FinetuneConfig

FOLDER = "shadows"
"""In OUTPUT: a folder for each pool, seed and recipe, by their digest, with a fine-tuning run per shadow."""


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

    Every picture of the pool is in half of the shadows' training sets, see `divided`. Shadows of other pictures or
    labels, of another seed or recipe lie in other folders and are left alone; more shadows are added to few.

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
    common = {
        "seed": config.seed, "evaluate": "none", "export": [], "split": None, "labels": labels, "resume": True,
        "overwrite": False, "device": config.device,
    }  # fmt: skip
    own = own.model_copy(update=common)
    home = config.folder / FOLDER / _digest(pool, own)
    _announce(home)
    logits, inside = [], []
    for number, parts in enumerate(divided(pool, config.shadows, own.val_share, config.seed)):
        folder = home / f"{number:02d}"
        console.print(f"shadow classifier {number + 1} of {config.shadows}")
        settings = {"output": folder, "seed": stable_seed(config.seed, "shadow", number) % 2**31}
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


def divided(pool: LabelledSet, shadows: int, share: float, seed: int) -> Iterator[dict[str, LabelledSet]]:
    """The parts of each shadow: "train", a half of each class; "val" and "test", what is left out.

    Shadows come in pairs: what is left out of one is trained on in the other. Copies of a picture stay together. The
    only picture of a class is trained on by all: without it they could not learn the class, and whoever compares
    members and others of one class does not ask about it.

    A shadow is validated on pictures that it leaves out: taken from its half, they would lack a shadow that was
    trained on them. No gradient comes from them, but weights are chosen by them; so they are drawn first from those
    that validated no earlier shadow, and of four shadows or more another one usually leaves them out altogether.

    Args:
        pool: all pictures.
        shadows: how many, an even number. The first of many are the same as of few.
        share: of the left-out pictures of each class that validates; at least one of a class that has two.
        seed: of the division.
    """
    label_of: dict[str, int] = {}  # copies count once; where they disagree, the first class decides
    for value, label in zip(pool.sha256, pool.labels.tolist(), strict=True):
        label_of[value] = min(label, label_of.get(value, label))
    different = sorted(label_of)
    labels = np.array([label_of[value] for value in different])
    alone = np.bincount(labels)[labels] == 1
    validated = np.zeros(len(labels), dtype=np.int64)
    for number in range(shadows):
        train = _half(labels, number, seed) | alone
        rng = np.random.default_rng(stable_seed(seed, "shadow validation", number))
        val = _validation(labels, ~train, validated, share, rng)
        validated += val
        part_of = dict(zip(different, np.select([train, val], ["train", "val"], "test").tolist(), strict=True))
        yield {
            part: pool.take([row for row, value in enumerate(pool.sha256) if part_of[value] == part])
            for part in ("train", "val", "test")
        }


def _half(labels: NDArray[np.int64], number: int, seed: int) -> NDArray[np.bool_]:
    """Which pictures a shadow may be trained on; the next one has the others. Halves of odd classes differ by one."""
    rng = np.random.default_rng(stable_seed(seed, "shadow halves", number // 2))
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[by_class[int(rng.integers(2)) :: 2]] = True  # every other one, across classes: the halves are of one size
    return chosen if number % 2 == 0 else ~chosen


def _validation(
    labels: NDArray[np.int64],
    out: NDArray[np.bool_],
    validated: NDArray[np.int64],
    share: float,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """(N,): a share of each class's pictures that are `out`, at least one but not all; one of any class if need be."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(validated[order], kind="stable")]
    order = order[out[order]]
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[order]):
        own = order[labels[order] == label]
        chosen[own[: min(max(1, round(share * len(own))), len(own) - 1)]] = True
    if not chosen.any():
        chosen[order[:1]] = True
    return chosen


def _digest(pool: LabelledSet, recipe: "FinetuneConfig") -> str:
    """Of all that shadows depend on but their number; not of where pictures lie, nor of what a resumed run may change.

    Args:
        pool: all pictures.
        recipe: with the seed that those of the shadows are made of.
    """
    from lorica.finetune.run import FREE_ON_RESUME

    settings = recipe.model_dump(mode="json", exclude=set(FREE_ON_RESUME))
    rows = zip(pool.names, pool.sha256, pool.labels.tolist(), strict=True)
    return sha256(json.dumps([settings, pool.classes, list(rows)], sort_keys=True))[:12]


def _announce(home: Path) -> None:
    """Say that shadows of an earlier call are not used, if that is so."""
    if not home.exists() and home.parent.is_dir() and any(home.parent.iterdir()):
        console.print(
            f"[yellow]note:[/] the shadows in {escape(str(home.parent))} are of other pictures, another seed or "
            "another recipe: they are left alone, and new ones are trained"
        )
