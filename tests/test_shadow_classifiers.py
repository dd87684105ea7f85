"""`lorica evaluate RUN --members train --shadows K`: the run's training repeated, and the attacks that need it."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune_runs import configured, exported, write_pictures
from lorica import evaluate, finetune
from lorica.errors import LoricaError
from lorica.evaluate import EvaluateConfig
from lorica.evaluate.shadow_classifiers import _half


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


def test_pairs_of_shadows_share_the_pictures_out_in_opposite_halves():
    halves = [_half(10, number, 0) for number in range(4)]
    assert all(half.sum() == 5 for half in halves)
    assert np.array_equal(halves[0], ~halves[1]) and np.array_equal(halves[2], ~halves[3])
    assert not np.array_equal(halves[0], halves[2]) and not np.array_equal(halves[0], _half(10, 0, 1))


def test_shadows_are_trained_by_the_models_own_recipe_and_lira_and_rmia_are_run(trained, tmp_path, monkeypatch):
    found = evaluate.run(config(trained, tmp_path / "evaluation"))["membership"]
    assert list(found["attacks"]) == ["loss", "adversarial-loss", "lira", "rmia"] and found["shadows"] == 4
    for attack in found["attacks"].values():
        assert 0 <= attack["auc"]["low"] <= attack["auc"]["value"] <= attack["auc"]["high"] <= 1
    run = json.loads((trained / "run" / "run.json").read_text())["config"]
    weights, taught = [], []
    for number in range(4):
        folder = tmp_path / "evaluation" / "shadows" / f"{number:02d}"
        own = json.loads((folder / "run.json").read_text())["config"]
        free = {"output", "seed", "evaluate"}
        assert {k: v for k, v in own.items() if k not in free} == {k: v for k, v in run.items() if k not in free}
        weights.append(exported(folder)["conv1.weight"].numpy())
        split = json.loads((folder / "split.json").read_text())["parts"]
        taught.append({row["sha256"] for row in split["train"]})
        assert not taught[-1] & {row["sha256"] for part in ("val", "test") for row in split[part]}
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
