"""`lorica evaluate RUN --members train --shadows K`: the run's training repeated, and the attacks that need it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune_runs import configured, exported, write_pictures
from lorica import evaluate, finetune
from lorica.data.label_split import split_labelled
from lorica.data.labelled import LabelledSet
from lorica.errors import LoricaError
from lorica.evaluate import EvaluateConfig
from lorica.evaluate.shadow_classifiers import Shadows, shadow_answers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shadows")
    write_pictures(folder / "pictures")
    finetune.run(configured(folder / "pictures", folder / "run", method="at", epochs=1))
    return folder


def config(trained: Path, output: Path, **options) -> EvaluateConfig:
    settings = {
        "model": {"name": str(trained / "run")}, "data": trained / "pictures", "output": output, "members": "train",
        "shadows": 4, "tier": "quick", "pgd_steps": 0, "eps": "1/255", "examples": 0, "device": "cpu",
    }  # fmt: skip
    return EvaluateConfig(**settings | options)


# Which pictures a shadow is trained on


def pool(*sizes: int) -> LabelledSet:
    """So many pictures of each class, all of them black."""
    count = sum(sizes)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    names, sha256 = (tuple(text.format(number) for number in range(count)) for text in ("{}.png", "{:064x}"))
    pixels = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
    return LabelledSet(pixels, labels, tuple(map(str, range(len(sizes)))), names, sha256)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Shadows are divided as `finetune.run` divides them, but not trained; returns the folders of new ones."""
    made: list[Path] = []

    def divide(own: finetune.FinetuneConfig, parts: dict[str, LabelledSet]) -> None:
        if own.output.exists():  # a run that is complete does not look at pictures
            return
        split = split_labelled(parts, val_share=own.val_share, test_share=own.test_share, seed=own.seed)
        own.output.mkdir(parents=True)
        split.save(own.output / "split.json")
        made.append(own.output)

    monkeypatch.setattr(finetune, "run", divide)
    monkeypatch.setattr("lorica.evaluate.shadow_classifiers.load_classifier", lambda config: (nn.Flatten(), []))
    return made


def answers(
    pictures: LabelledSet, output: Path, shadows: int = 4, seed: int = 0, members: int | None = None, **recipe: Any
) -> Shadows:
    """Of shadows for a pool, of which the first half, or so many, are members; all pictures are asked about."""
    output.mkdir(exist_ok=True)
    (output / "recipe.yaml").write_text(
        configured(Path("data"), Path("run"), **({"val_share": 0.05} | recipe)).to_yaml()
    )
    first = len(pictures) // 2 if members is None else members
    sides = [pictures.take(range(first)), pictures.take(range(first, len(pictures)))]
    config = EvaluateConfig(
        data="data", output=output, members="train", shadows=shadows, seed=seed, batch_size=1000, device="cpu"
    )
    return shadow_answers(output / "recipe.yaml", sides[0], sides[1], pictures, config)


def splits(folders: Sequence[Path]) -> list[dict[str, list[dict[str, str]]]]:
    return [json.loads((folder / "split.json").read_text())["parts"] for folder in folders]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shadows", [2, 4])
@pytest.mark.parametrize("sizes", [[100] * 10, [9] * 40, [2, 3, 5, 4, 8, 30], [2, 2], [3, 3]])
def test_every_picture_is_trained_on_in_half_of_the_shadows(untrained, tmp_path, sizes, shadows, seed):
    inside = answers(pool(*sizes), tmp_path, shadows, seed).inside
    assert (inside.sum(axis=0) == shadows // 2).all()


def test_pairs_of_shadows_share_each_class_out_in_opposite_halves(untrained, tmp_path):
    pictures = pool(*[9] * 40, 12, 7)
    inside = answers(pictures, tmp_path, shadows=16).inside
    for one, other in zip(inside[::2], inside[1::2], strict=True):
        assert np.array_equal(one, ~other) and abs(int(one.sum()) - int(other.sum())) <= 1
    for label in range(42):
        own = inside[:, pictures.labels == label]
        assert (abs(2 * own.sum(axis=1) - own.shape[1]) <= 1).all()
    assert len({tuple(row) for row in inside}) == 16
    assert not np.array_equal(inside, answers(pictures, tmp_path, shadows=16, seed=1).inside)


def test_the_only_picture_of_a_class_is_trained_on_by_all_as_no_other_side_has_one_to_compare_it_with(
    untrained, tmp_path
):
    inside = answers(pool(1, 20, 21), tmp_path).inside
    assert inside[:, 0].all() and (inside[:, 1:].sum(axis=0) == 2).all()


def test_copies_of_a_picture_are_trained_on_by_the_same_shadows(untrained, tmp_path):
    pictures = pool(20, 20)
    sha256 = list(pictures.sha256)
    sha256[1], sha256[2], sha256[30] = sha256[0], sha256[0], sha256[31]
    inside = answers(replace(pictures, sha256=tuple(sha256)), tmp_path).inside
    assert (inside.sum(axis=0) == 2).all()
    assert np.array_equal(inside[:, 0], inside[:, 1]) and np.array_equal(inside[:, 30], inside[:, 31])


@pytest.mark.parametrize("seed", range(3))
def test_a_shadow_validates_on_pictures_that_it_leaves_out_and_another_leaves_them_out_without(
    untrained, tmp_path, seed
):
    answers(pool(*[40] * 5), tmp_path, seed=seed, val_share=0.1)
    left_out = Counter()
    for parts in splits(untrained):
        assert Counter(row["label"] for row in parts["val"]) == {str(label): 2 for label in range(5)}
        left_out.update(row["sha256"] for row in parts["test"])
    assert set(left_out) == set(pool(*[40] * 5).sha256)


# Which shadows of an earlier call are used


def test_more_shadows_are_added_to_those_that_are_there(untrained, tmp_path):
    few = answers(pool(9, 9), tmp_path, shadows=2).inside
    many = answers(pool(9, 9), tmp_path, shadows=4).inside
    assert np.array_equal(many[:2], few) and len(untrained) == 4
    answers(pool(9, 9), tmp_path, shadows=4, data="moved", device=None, cache="elsewhere")
    assert len(untrained) == 4


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def relabelled(pictures: LabelledSet) -> LabelledSet:
    return replace(pictures, labels=1 - pictures.labels)


def changed(pictures: LabelledSet) -> LabelledSet:
    return replace(pictures, sha256=("f" * 64, *pictures.sha256[1:]))


@pytest.mark.parametrize(
    ("other", "options"),
    [
        (relabelled, {}),
        (changed, {}),
        (lambda pictures: pictures.take(range(1, 18)), {}),
        (lambda pictures: pictures, {"seed": 1}),
        (lambda pictures: pictures, {"epochs": 3}),
    ],
    ids=["labels", "picture", "fewer", "seed", "recipe"],
)
def test_shadows_of_another_pool_seed_or_recipe_are_left_alone_and_not_used(
    untrained, tmp_path, capsys, other, options
):
    answers(pool(9, 9), tmp_path)
    before = {folder: (folder / "split.json").read_bytes() for folder in untrained}
    assert "left alone" not in said(capsys)
    pictures = other(pool(9, 9))
    found = answers(pictures, tmp_path, **options)
    assert len(untrained) == 8 and "left alone" in said(capsys)
    assert {folder: (folder / "split.json").read_bytes() for folder in untrained[:4]} == before
    assert (found.inside.sum(axis=0) == 2).all()
    answers(pool(9, 9), tmp_path)
    assert len(untrained) == 8


# Trained in earnest


def trained_shadows(evaluation: Path) -> list[Path]:
    """Folders of the shadows of one pool."""
    return sorted(split.parent for split in (evaluation / "shadows").rglob("split.json"))


def test_shadows_are_trained_by_the_models_own_recipe_and_lira_and_rmia_are_run(trained, tmp_path, monkeypatch):
    found = evaluate.run(config(trained, tmp_path / "evaluation"))["membership"]
    assert list(found["attacks"]) == ["loss", "adversarial-loss", "lira", "rmia"] and found["shadows"] == 4
    for attack in found["attacks"].values():
        assert 0 <= attack["auc"]["low"] <= attack["auc"]["value"] <= attack["auc"]["high"] <= 1
    run = json.loads((trained / "run" / "run.json").read_text())["config"]
    assert [found["attacks"][name]["form"] for name in ("lira", "rmia")] == ["online", "online"]
    weights, taught = [], []
    for folder in trained_shadows(tmp_path / "evaluation"):
        own = json.loads((folder / "run.json").read_text())["config"]
        free = {"output", "seed", "evaluate"}
        assert {k: v for k, v in own.items() if k not in free} == {k: v for k, v in run.items() if k not in free}
        weights.append(exported(folder)["conv1.weight"].numpy())
        split = json.loads((folder / "split.json").read_text())["parts"]
        taught.append({row["sha256"] for row in split["train"]})
        assert not taught[-1] & {row["sha256"] for part in ("val", "test") for row in split[part]}
    assert set(Counter(picture for some in taught for picture in some).values()) == {2}
    assert not taught[0] & taught[1] and not np.array_equal(weights[0], weights[1])

    def forbidden(self):
        pytest.fail("a shadow was trained again")

    monkeypatch.setattr("lorica.finetune.trainer.Trainer.begin_epoch", forbidden)
    assert evaluate.run(config(trained, tmp_path / "evaluation"))["membership"] == found


@pytest.mark.parametrize(("method", "share"), [("at", 1.0), ("distill", 0.5)])
def test_shadows_have_as_few_labels_as_the_model_had(trained, tmp_path, monkeypatch, method: str, share: float):
    finetune.run(configured(trained / "pictures", tmp_path / "run", method=method, epochs=1, labels=0.5))
    seen, original = [], finetune.run
    monkeypatch.setattr(finetune, "run", lambda own, parts: (seen.append(own.labels), original(own, parts))[1])
    evaluate.run(config(trained, tmp_path / "evaluation", model={"name": str(tmp_path / "run")}, shadows=2))
    assert seen == [share, share]


def test_the_training_has_to_be_known_and_members_asked_for(trained, tmp_path):
    model = {"name": str(trained / "run" / "model")}
    (trained / "copy").mkdir(exist_ok=True)
    for file in (trained / "run" / "model").iterdir():
        (trained / "copy" / file.name).write_bytes(file.read_bytes())
    split = trained / "run" / "split.json"
    with pytest.raises(LoricaError, match="no record"):
        evaluate.run(config(trained, tmp_path / "a", model={"name": str(trained / "copy")}, split=split))
    assert not (tmp_path / "a" / "robustness.json").exists()
    with pytest.raises(LoricaError, match="--members"):
        config(trained, tmp_path / "b", members=None)
    with pytest.raises(ValueError, match="multiple of 2"):
        config(trained, tmp_path / "c", model=model, shadows=3)


@pytest.mark.parametrize("options", [{"seed": 1}, {"pictures": 6, "overwrite": True}], ids=["seed", "pictures"])
def test_another_seed_or_other_pictures_train_other_shadows(trained, tmp_path, options):
    evaluate.run(config(trained, tmp_path, shadows=2))
    first = trained_shadows(tmp_path)
    evaluate.run(config(trained, tmp_path, shadows=2, **options))
    folders = trained_shadows(tmp_path)
    halves = [{row["sha256"] for row in parts["train"]} for parts in splits(folders)]
    assert len(first) == 2 and len(folders) == 4 and len({frozenset(half) for half in halves}) == 4
