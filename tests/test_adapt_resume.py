"""A run of `lorica adapt` that is killed, interrupted or resumed ends as if nothing had happened."""

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

from adapt_runs import WEIGHTS, contents, numbers, press_ctrl_c, weights
from lorica.adapt import losses, prepare
from lorica.adapt.folder import RESUME_FILE
from lorica.adapt.state import completed_steps
from lorica.adapt.step import Step
from lorica.diffusion import LatentDiffusion
from lorica.errors import LoricaError

Adapt = Callable[..., dict[str, Any]]


def test_a_run_killed_at_any_moment_and_resumed_ends_in_the_same_bits(
    people: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL while writing cache, configuration, split, LoRA and state, and at random; LoRA on both networks."""
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, str(script), str(people), str(tiny_pipeline_folder), str(tmp_path)],
        capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    struck = json.loads(done.stdout.splitlines()[-1])
    killed = [moment for moment in struck if moment["exit"] == -signal.SIGKILL]
    assert len(killed) >= 7, struck
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    same = [WEIGHTS, "lora_kohya.safetensors", "split.json", str(RESUME_FILE)]
    same += [f"checkpoints/step_{step:06d}/{WEIGHTS}" for step in range(1, 13)]
    for name in same:
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), f"{name} differs after {struck}"
    assert numbers(resumed) == numbers(whole)


def test_ctrl_c_saves_and_the_resumed_run_is_the_uninterrupted_one(
    adapt: Adapt, whole: Path, tmp_path: Path, before_step: Callable[..., None]
) -> None:
    before_step(2, press_ctrl_c)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"step 3 is saved.*--resume"):
        adapt()
    assert signal.getsignal(signal.SIGINT) is handler
    output = tmp_path / "run"
    assert completed_steps(output / RESUME_FILE) == 3
    assert not (output / WEIGHTS).exists()
    adapt(resume=True)
    assert weights(output) == weights(whole)
    assert numbers(output) == numbers(whole)
    assert (output / "split.json").read_bytes() == (whole / "split.json").read_bytes()
    names = {"resume.safetensors", "step_000002", "step_000004", "step_000006"}  # none of the interruption's own
    assert {path.name for path in (output / "checkpoints").iterdir()} == names


def test_a_termination_request_saves_like_ctrl_c(
    adapt: Adapt, tmp_path: Path, before_step: Callable[..., None]
) -> None:
    before_step(0, lambda step: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt, match="step 1 is saved"):
        adapt()
    assert completed_steps(tmp_path / "run" / RESUME_FILE) == 1


def test_a_second_ctrl_c_does_not_wait_for_the_step(
    adapt: Adapt, tmp_path: Path, before_step: Callable[..., None]
) -> None:
    def twice(step: Step) -> None:
        press_ctrl_c(step)
        press_ctrl_c(step)

    before_step(3, twice)
    with pytest.raises(KeyboardInterrupt) as raised:
        adapt()
    assert not str(raised.value)
    assert completed_steps(tmp_path / "run" / RESUME_FILE) == 2


def test_a_calibrated_attacker_is_resumed_without_measuring_again(
    adapt: Adapt, tmp_path: Path, before_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CALIBRATION_LEVELS", 4)
    proxy = {"input": "calibrated"}
    adapt(output=tmp_path / "undisturbed", proxy=proxy, steps=3)
    before_step(1, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        adapt(proxy=proxy, steps=3)
    monkeypatch.setattr(prepare, "expected_loss", lambda *args: pytest.fail("measured again"))
    adapt(proxy=proxy, steps=3, resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")


def test_a_complete_run_can_be_resumed_for_more_steps(adapt: Adapt, whole: Path, tmp_path: Path) -> None:
    adapt(steps=4)
    record = adapt(resume=True)
    assert record["config"]["steps"] == 6 and record["steps_per_picture"] == 1
    assert weights(tmp_path / "run") == weights(whole)
    assert numbers(tmp_path / "run") == numbers(whole)


def test_resuming_a_complete_run_does_nothing(adapt: Adapt, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(whole)
    monkeypatch.setattr(LatentDiffusion, "load", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    assert adapt(output=whole, resume=True) == json.loads((whole / "run.json").read_text())
    assert contents(whole) == before


def test_a_run_that_died_between_its_last_checkpoint_and_its_result_is_finished(
    adapt: Adapt, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for name in ("run.json", WEIGHTS):
        (tmp_path / "run" / name).unlink()
    assert adapt(resume=True)["val_member"] == json.loads((whole / "run.json").read_text())["val_member"]
    assert weights(tmp_path / "run") == weights(whole)


def test_resuming_where_there_is_nothing_starts_anew(adapt: Adapt, whole: Path, tmp_path: Path) -> None:
    adapt(resume=True)
    assert weights(tmp_path / "run") == weights(whole)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lam": 0.1}, "lam (was 0.05, now 0.1)"),
        ({"seed": 1}, "seed (was 0, now 1)"),
        ({"lora": {"rank": 4, "alpha": 2.0}}, "lora.rank (was 2, now 4)"),
        ({"proxy": {"input": "calibrated"}}, "proxy.input (was error-map, now calibrated)"),
        ({"batch_size": 1, "objective": "lora"}, "objective (was smp-lora, now lora), batch_size (was 2, now 1)"),
    ],
)
def test_resuming_with_another_configuration_names_the_changed_keys(
    adapt: Adapt, whole: Path, options: dict[str, Any], named: str
) -> None:
    before = contents(whole)
    with pytest.raises(LoricaError) as raised:
        adapt(output=whole, steps=8, resume=True, **options)
    assert named in raised.value.problem
    assert contents(whole) == before


def test_fewer_steps_than_taken_are_refused_on_resume(adapt: Adapt, whole: Path) -> None:
    with pytest.raises(LoricaError, match="already taken 6 steps"):
        adapt(output=whole, steps=2, resume=True)


def test_resuming_after_the_pictures_moved_goes_on(adapt: Adapt, whole: Path, tmp_path: Path, people: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(people, moved)
    adapt(steps=2, data=moved)
    shutil.rmtree(moved)
    adapt(resume=True, data=people)
    assert weights(tmp_path / "run") == weights(whole)


def test_resuming_with_other_captions_is_refused(adapt: Adapt, tmp_path: Path, people: Path) -> None:
    data = tmp_path / "mine"
    shutil.copytree(people, data)
    adapt(steps=2, data=data)
    next(data.glob("*.txt")).write_text("somebody else")
    before = contents(tmp_path / "run")
    with pytest.raises(LoricaError, match=r"not what it was .*: pictures or captions"):
        adapt(resume=True, data=data)
    assert contents(tmp_path / "run") == before


def test_resuming_on_another_base_model_is_refused(adapt: Adapt, tmp_path: Path, tiny_pipeline_folder: Path) -> None:
    other = tmp_path / "other"
    pipeline = LatentDiffusion.load(str(tiny_pipeline_folder)).pipeline
    pipeline.unet.conv_in.weight.data += 1e-3
    pipeline.save_pretrained(other)
    adapt(steps=2)
    before = contents(tmp_path / "run")
    with pytest.raises(LoricaError, match=r"not what it was .*: base model"):
        adapt(resume=True, base=str(other))
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut short"])
def test_a_damaged_checkpoint_is_named(adapt: Adapt, whole: Path, tmp_path: Path, damage: bytes | None) -> None:
    file = shutil.copytree(whole, tmp_path / "run") / RESUME_FILE
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(LoricaError, match=r"checkpoint .*resume\.safetensors cannot be used"):
        adapt(steps=8, resume=True)


def test_a_torn_line_of_metrics_is_written_again(adapt: Adapt, whole: Path, tmp_path: Path) -> None:
    adapt(steps=2)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.1}\n{"step": 4, "lo')
    adapt(resume=True)
    assert numbers(tmp_path / "run") == numbers(whole)
