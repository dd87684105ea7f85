"""A run of `lorica finetune` that is killed, interrupted or resumed ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_runs import (
    NETWORK,
    RUN,
    STEPS,
    around_step,
    assert_same_run,
    configured,
    press_ctrl_c,
    state,
    write_pictures,
)
from lorica.epochs import CHECKPOINTS, RESUME
from lorica.errors import LoricaError
from lorica.finetune import run
from lorica.finetune.trainer import Trainer
from lorica.monitor import read_metrics
from lorica.vision import ModelConfig, load_classifier

Finetune = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "colours")


@pytest.fixture
def finetune(pictures: Path, tmp_path: Path) -> Finetune:
    """Runs in tmp_path/run unless told otherwise."""
    return lambda **options: run(configured(**({"pictures": pictures, "output": tmp_path / "run"} | options)))


def test_a_run_killed_at_any_moment_and_resumed_ends_in_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL amid epochs, writes, validation, between log and state, and before the export; with average, automatic
    schedule, branch and dropout."""
    script = Path(__file__).with_name("kill_and_resume_finetune.py")
    done = subprocess.run(
        [sys.executable, str(script), str(pictures), str(tmp_path)],
        capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    struck = json.loads(done.stdout.splitlines()[-1])
    assert {moment["exit"] for moment in struck} == {-signal.SIGKILL}, struck
    assert any(0 < moment["at"][1] < 6 for moment in struck) and struck[-1]["at"] == [6, 0], struck
    rows = read_metrics(tmp_path / "whole")
    assert any(row["reloaded"] for row in rows) and len({row["learning_rate"] for row in rows}) > 1
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    "options",
    [
        {"natural_accuracy": "running", "epochs": 3},
        {"method": "twins", "ema": 0, "schedule": "auto", "epochs": 3, "schedule_every": 1},
        {"method": "vanilla", "options": {"batch_norm": "dual"}, "attack": {"kind": "n-fgsm", "eps": "4/255"}},
        {"method": "at", "momentum": 0, "similarity_batches": 0, "precision": "bf16"},
    ],
    ids=["running", "twins", "dual", "at"],
)
def test_ctrl_c_saves_and_the_resumed_run_is_the_uninterrupted_one(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    finetune(output=tmp_path / "whole", **options)
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        around_step(patch, STEPS + 1, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt, match=r"epoch 2 is saved.*--resume"):
            finetune(**options)
    assert signal.getsignal(signal.SIGINT) is handler
    _, header = state(tmp_path / "run")
    assert (header["epoch"], header["step_in_epoch"]) == (1, 2)
    assert not (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "model").exists()
    finetune(resume=True, **options)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_ctrl_c_in_the_last_step_of_an_epoch_loses_nothing_and_logs_nothing_twice(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        around_step(patch, STEPS - 1, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            finetune()
    with monkeypatch.context() as patch:  # and dies once more, with its first epoch logged and not saved
        patch.setattr(Trainer, "save", lambda *args: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            finetune(resume=True)
    assert len(read_metrics(tmp_path / "run")) == 1
    finetune(resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_ctrl_c_in_the_last_validation_stops_before_the_export(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(output=tmp_path / "whole", epochs=1)
    validate = Trainer.validate
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", lambda self: (press_ctrl_c(self), validate(self))[1])
        with pytest.raises(KeyboardInterrupt, match=r"after epoch 1 is saved.*--resume"):
            finetune(epochs=1)
    assert not (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "model").exists()
    finetune(epochs=1, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.fixture(scope="module")
def interrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second epoch, on a model of a weights file. Read only: copy it."""
    root = tmp_path_factory.mktemp("interrupted")
    torch.manual_seed(0)
    classifier, _ = load_classifier(ModelConfig(**NETWORK))
    save_file(classifier.backbone.state_dict(), root / "start.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        around_step(patch, STEPS + 1, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            run(configured(pictures, root / "run", model=NETWORK | {"checkpoint": root / "start.safetensors"}))
    return root


def copied(interrupted: Path, tmp_path: Path) -> dict[str, Any]:
    """Options to go on with a copy of the interrupted run."""
    shutil.copytree(interrupted / "run", tmp_path / "run")
    shutil.copy(interrupted / "start.safetensors", tmp_path)
    return {"resume": True, "model": NETWORK | {"checkpoint": interrupted / "start.safetensors"}}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "vanilla"}, "method (was autolora, now vanilla)"),
        ({"learning_rate": 0.1}, "learning_rate (was 0.05, now 0.1)"),
        ({"seed": 1, "epochs": 3}, "epochs (was 2, now 3), seed (was 0, now 1)"),
        ({"attack": {"steps": 3, "eps": "4/255"}}, "attack.steps (was 2, now 3)"),
        ({"options": {"rank": 4}}, "options (was {}, now {'rank': 4})"),
        ({"model": NETWORK}, "model.checkpoint (was"),
    ],
)
def test_resuming_with_another_configuration_names_the_changed_keys(
    finetune: Finetune, interrupted: Path, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    settings = copied(interrupted, tmp_path) | options
    before = contents(tmp_path / "run")
    with pytest.raises(LoricaError) as raised:
        finetune(**settings)
    assert named in raised.value.problem
    assert contents(tmp_path / "run") == before


def test_a_run_left_to_the_processor_goes_on_elsewhere_in_the_precision_in_which_it_began(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    whole = finetune(precision="auto", output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        around_step(patch, 1, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            finetune(precision="auto")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    capsys.readouterr()
    resumed = finetune(precision="auto", resume=True)
    assert "in fp32, as the run began" in capsys.readouterr().err
    assert (resumed["precision"], resumed["weights_sha256"]) == ("fp32", whole["weights_sha256"])


def test_resuming_on_other_pictures_is_refused(
    finetune: Finetune, interrupted: Path, pictures: Path, tmp_path: Path
) -> None:
    settings = copied(interrupted, tmp_path)
    other = shutil.copytree(pictures, tmp_path / "other")
    shutil.copy(other / "red" / "0.png", other / "red" / "1.png")
    before = contents(tmp_path / "run" / CHECKPOINTS)
    with pytest.raises(LoricaError, match=r"red/1\.png: changed"):
        finetune(**settings, pictures=other)
    assert contents(tmp_path / "run" / CHECKPOINTS) == before


def test_resuming_with_another_split_file_put_in_place_is_refused(
    finetune: Finetune, interrupted: Path, tmp_path: Path
) -> None:
    settings = copied(interrupted, tmp_path)
    file = tmp_path / "run" / "split.json"
    split = json.loads(file.read_text())
    parts = split["parts"]
    parts["train"][0], parts["test"][0] = parts["test"][0], parts["train"][0]
    file.write_text(json.dumps(split))
    with pytest.raises(LoricaError, match=r"not what it was when it began: pictures\n"):
        finetune(**settings)


def test_resuming_on_another_start_model_is_refused(finetune: Finetune, interrupted: Path, tmp_path: Path) -> None:
    settings = copied(interrupted, tmp_path)
    file = interrupted / "start.safetensors"
    weights = load_file(file)
    before = contents(tmp_path / "run" / CHECKPOINTS)
    try:
        save_file({key: value + 1e-3 for key, value in weights.items()}, file)
        with pytest.raises(LoricaError, match=r"not what it was when it began: model"):
            finetune(**settings)
    finally:
        save_file(weights, file)
    assert contents(tmp_path / "run" / CHECKPOINTS) == before


def test_resuming_on_a_model_folder_that_holds_another_network_now_is_refused(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(output=tmp_path / "first", epochs=1)
    model = {"name": str(tmp_path / "first" / "model")}
    with monkeypatch.context() as patch:
        around_step(patch, 0, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            finetune(model=model)
    wider = NETWORK | {"arguments": {"width": 6, "depths": [1, 1]}}
    finetune(output=tmp_path / "first", epochs=1, model=wider, overwrite=True)
    with pytest.raises(LoricaError, match=r"not what it was when it began: model"):
        finetune(model=model, resume=True)


def test_what_only_concerns_watching_may_change_and_pictures_may_move(
    finetune: Finetune, interrupted: Path, pictures: Path, tmp_path: Path
) -> None:
    settings = copied(interrupted, tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "plain")
    finetune(**settings, output=tmp_path / "plain")
    moved = shutil.copytree(pictures, tmp_path / "moved")
    finetune(**settings, pictures=moved, checkpoint_every=1, cache=tmp_path / "cache", export=["program"])
    assert (tmp_path / "run" / "model" / "model.pt2").is_file()
    assert_same_run(tmp_path / "run", tmp_path / "plain")


def test_resuming_a_complete_run_does_nothing(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(epochs=1)
    before = contents(tmp_path / "run")
    monkeypatch.setattr(RUN, "load_classifier", lambda *args: pytest.fail("the model was loaded"))
    assert finetune(epochs=1, resume=True) == json.loads((tmp_path / "run" / "run.json").read_text())
    assert contents(tmp_path / "run") == before


def test_resuming_where_there_is_nothing_starts_anew(finetune: Finetune, tmp_path: Path) -> None:
    finetune(epochs=1)
    finetune(epochs=1, output=tmp_path / "other", resume=True)
    assert_same_run(tmp_path / "other", tmp_path / "run")


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut short"])
def test_a_damaged_checkpoint_is_named(
    finetune: Finetune, interrupted: Path, tmp_path: Path, damage: bytes | None
) -> None:
    settings = copied(interrupted, tmp_path)
    file = tmp_path / "run" / CHECKPOINTS / RESUME
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(LoricaError, match=r"checkpoint .*resume\.safetensors cannot be used"):
        finetune(**settings)


# ----- nothing is lost ---------------------------------------------------------------------------------------------
def test_an_export_that_was_forgotten_is_made_by_resuming_a_complete_run(finetune: Finetune, tmp_path: Path) -> None:
    first = finetune()
    again = finetune(resume=True, export=["program"])
    assert (tmp_path / "run" / "model" / "model.pt2").is_file()
    assert again["weights_sha256"] == first["weights_sha256"]


def test_a_network_that_cannot_be_exported_is_no_less_measured(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> float:
        raise LoricaError("this network cannot be written so", "Leave it out.")

    monkeypatch.setattr(sys.modules["lorica.finetune.deliver"], "export_program", refuse)
    with pytest.raises(LoricaError, match="cannot be written so"):
        finetune(export=["program"], evaluate="quick")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["attack_version"] == "quick"
    assert finetune(resume=True, evaluate="quick") == record


@pytest.mark.parametrize("name", ["checkpoints/thesis.pt", "model/mine.txt", "split.json"])
def test_what_is_not_of_a_run_is_not_cleared_unasked(finetune: Finetune, tmp_path: Path, name: str) -> None:
    place = tmp_path / "run" / name
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    with pytest.raises(LoricaError, match=name.split("/")[0]):
        finetune()
    assert place.read_text() == "mine"
    finetune(overwrite=True)
