"""`lorica adapt` end to end on a tiny model: every objective, and everything that may come between start and end."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lorica.adapt import OBJECTIVES, AdaptConfig, Diverged, losses, prepare, run
from lorica.adapt.folder import RESUME_FILE
from lorica.adapt.losses import validation_loss
from lorica.adapt.monitor import Monitor, read_metrics
from lorica.adapt.state import completed_steps
from lorica.adapt.step import Step
from lorica.data.cohort import write_cohort
from lorica.data.split import Split
from lorica.diffusion import LatentDiffusion, encode
from lorica.errors import LoricaError

WEIGHTS = "pytorch_lora_weights.safetensors"
Adapt = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("people") / "people", 24, seed=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def configured(people: Path, cache: Path, tiny_pipeline_folder: Path) -> Callable[..., AdaptConfig]:
    """A run of six steps on 12 members."""

    def make(**options: Any) -> AdaptConfig:
        settings = {
            "data": people, "base": str(tiny_pipeline_folder), "cache": cache,
            "device": "cpu", "steps": 6, "batch_size": 2, "learning_rate": 1e-2, "lora": {"rank": 2, "alpha": 2.0},
            "log_every": 1, "validate_every": 2, "validation_pictures": 2, "sample_every": 0, "checkpoint_every": 2,
        }  # fmt: skip
        return AdaptConfig(**(settings | options))

    return make


@pytest.fixture
def adapt(configured: Callable[..., AdaptConfig], tmp_path: Path) -> Adapt:
    """Runs in tmp_path/run unless told otherwise."""
    return lambda **options: run(configured(**({"output": tmp_path / "run"} | options)))


@pytest.fixture(scope="module")
def whole(configured: Callable[..., AdaptConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed. Read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(configured(output=folder))
    return folder


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[Step], None]], None]]:
    """Let something happen once, before step `number` (from 0) of whatever run comes to it first."""
    original = Step.__call__

    def arrange(number: int, happen: Callable[[Step], None]) -> None:
        due = [True]

        def call(self: Step, step: int) -> dict[str, Tensor]:
            if step == number and due:
                due.clear()
                happen(self)
            return original(self, step)

        monkeypatch.setattr(Step, "__call__", call)

    yield arrange


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def weights(output: Path) -> bytes:
    return (output / WEIGHTS).read_bytes()


def numbers(output: Path) -> list[dict[str, Any]]:
    """The logged rows without the clock."""
    return [{k: v for k, v in row.items() if k != "step_seconds"} for row in read_metrics(output)]


def press_ctrl_c(step: Step) -> None:
    os.kill(os.getpid(), signal.SIGINT)


# ----- every objective ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_every_objective_runs_from_pictures_to_lora_files(adapt: Adapt, tmp_path: Path, objective: str) -> None:
    record = adapt(objective=objective, steps=4, sample_every=4, sample_captions=["one", "two", "three"])
    output = tmp_path / "run"
    assert json.loads((output / "run.json").read_text()) == record
    assert record["config"]["objective"] == objective and record["seed"] == 0
    assert record["counts"] == dict.fromkeys(("aux_members", "test_members", "aux_nonmembers", "test_nonmembers"), 6)
    assert record["steps_per_picture"] == 4 * 2 / 12
    assert {"torch", "lorica"} <= set(record["versions"]) and record["hardware"]["device"] == "CPU"

    rows = read_metrics(output)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in rows if "val_member" in row] == [0, 2, 4]
    private = OBJECTIVES[objective].needs_proxy
    for row in rows[1:]:
        assert ("gain" in row) == ("proxy_gain" in row) == private
        assert row["loss"] > 0 and row["adaptation_loss"] > 0 and row["step_seconds"] > 0
    assert rows[0]["val_gap"] == pytest.approx(rows[0]["val_nonmember"] - rows[0]["val_member"])
    assert (record["val_member"], record["val_nonmember"]) == (rows[-1]["val_member"], rows[-1]["val_nonmember"])

    assert all(tensor.abs().max() > 0 for tensor in load_file(output / WEIGHTS).values())  # B has left zero
    assert (output / "lora_kohya.safetensors").is_file()
    assert weights(output / "checkpoints" / "step_000004") == weights(output)
    assert weights(output / "checkpoints" / "step_000002") != weights(output)
    with Image.open(output / "samples" / "step_000004.png") as grid:
        assert grid.size == (64 * 2 + 2, 64 * 2 + 2)
    assert any((output / "tensorboard").iterdir())


def test_gradients_flow_from_pictures_of_the_splits_members_only(
    adapt: Adapt, tmp_path: Path, cache: Path, tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, trained = LatentDiffusion.error_map, []

    def spy(self: LatentDiffusion, latents: Tensor, *args: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            trained.extend(latent.clone() for latent in latents)
        return original(self, latents, *args)

    monkeypatch.setattr(LatentDiffusion, "error_map", spy)
    adapt(steps=12, validate_every=12)
    members = encode(tiny_model, Split.load(tmp_path / "run" / "split.json").members, cache).latents
    seen = [next(i for i, member in enumerate(members) if torch.equal(member, latent)) for latent in trained]
    assert sorted(seen) == sorted(2 * list(range(12)))  # two epochs of all twelve, and nobody else


def test_the_learning_rate_of_the_text_encoder_is_its_own(adapt: Adapt, tmp_path: Path) -> None:
    lora = {"rank": 2, "text_encoder": True}
    adapt(objective="lora", lora=lora, learning_rate=1e-2, text_encoder_learning_rate=1e-6)
    up = {
        name: tensor.abs().max() for name, tensor in load_file(tmp_path / "run" / WEIGHTS).items() if "lora_B" in name
    }
    text, unet = ([value for name, value in up.items() if name.startswith(part)] for part in ("text_encoder", "unet"))
    assert text and all(0 < value < 1e-5 for value in text)
    assert unet and all(value > 1e-3 for value in unet)


def test_gradient_checkpointing_changes_memory_and_not_the_numbers(
    adapt: Adapt, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, recomputed = torch.utils.checkpoint.checkpoint, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        recomputed.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", spy)
    adapt(gradient_checkpointing=True)
    assert recomputed
    for plain, saving in zip(numbers(whole), numbers(tmp_path / "run"), strict=True):
        assert saving == pytest.approx(plain, rel=1e-4, abs=1e-6)


def test_bf16_trains_float32_lora_weights_on_the_same_base_model(adapt: Adapt, tmp_path: Path) -> None:
    records = {
        kind: adapt(output=tmp_path / kind, precision=kind, steps=4, sample_every=4, sample_captions=["a"])
        for kind in ("fp32", "bf16")
    }
    assert records["bf16"]["base_fingerprint"] == records["fp32"]["base_fingerprint"]
    assert records["bf16"]["val_member"] == pytest.approx(records["fp32"]["val_member"], rel=0.02)
    assert records["bf16"]["val_member"] != records["fp32"]["val_member"]
    assert {tensor.dtype for tensor in load_file(tmp_path / "bf16" / WEIGHTS).values()} == {torch.float32}
    assert (tmp_path / "bf16" / "samples" / "step_000004.png").is_file()


def test_fp16_on_a_cpu_is_refused(adapt: Adapt, tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="fp16 needs a GPU"):
        adapt(precision="fp16")
    assert not (tmp_path / "run").exists()


def test_validation_is_deterministic_and_does_not_depend_on_the_company(
    tiny_model: LatentDiffusion, whole: Path, cache: Path
) -> None:
    encoded = encode(tiny_model, Split.load(whole / "split.json").members, cache)
    value = validation_loss(tiny_model, encoded, seed=0)
    torch.manual_seed(99)
    assert validation_loss(tiny_model, encoded, seed=0) == value
    assert validation_loss(tiny_model, encoded, seed=1) != value
    one_by_one = [validation_loss(tiny_model, encoded.take([i]), seed=0) for i in range(len(encoded))]
    assert sum(one_by_one) / len(encoded) == pytest.approx(value, rel=1e-5)


# ----- killed, interrupted, resumed ---------------------------------------------------------------------------------
def test_a_run_killed_at_any_moment_and_resumed_ends_in_the_same_bits(
    people: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL while writing configuration, split, cache, LoRA and state, and at random; LoRA on both networks."""
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, str(script), str(people), str(tiny_pipeline_folder), str(tmp_path)],
        capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    struck = json.loads(done.stdout.splitlines()[-1])
    killed = [moment for moment in struck if moment["exit"] == -signal.SIGKILL]
    assert len(killed) >= 6 and any(0 < moment["steps"] < 10 for moment in killed), struck
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    same = [WEIGHTS, "lora_kohya.safetensors", "split.json", str(RESUME_FILE)]
    same += [f"checkpoints/step_{step:06d}/{WEIGHTS}" for step in range(1, 11)]
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
    with pytest.raises(LoricaError, match=r"not what it was .*: pictures or captions"):
        adapt(resume=True, data=data)


def test_resuming_on_another_base_model_is_refused(adapt: Adapt, tmp_path: Path, tiny_pipeline_folder: Path) -> None:
    other = tmp_path / "other"
    pipeline = LatentDiffusion.load(str(tiny_pipeline_folder)).pipeline
    pipeline.unet.conv_in.weight.data += 1e-3
    pipeline.save_pretrained(other)
    adapt(steps=2)
    with pytest.raises(LoricaError, match=r"not what it was .*: base model"):
        adapt(resume=True, base=str(other))


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


# ----- the output folder --------------------------------------------------------------------------------------------
def test_an_existing_run_is_refused_without_resume_or_overwrite(adapt: Adapt, whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(LoricaError, match="already holds a result"):
        adapt(output=whole)
    with pytest.raises(LoricaError, match="contradict"):
        adapt(output=whole, resume=True, overwrite=True)
    assert contents(whole) == before


def test_overwriting_leaves_nothing_of_the_earlier_run(adapt: Adapt, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "samples").mkdir()
    (tmp_path / "run" / "samples" / "step_000500.png").touch()
    adapt(steps=2, seed=1, overwrite=True)
    adapt(output=tmp_path / "fresh", steps=2, seed=1)
    ours, fresh = (contents(tmp_path / name) for name in ("run", "fresh"))
    ours, fresh = ({name for name in some if "tensorboard" not in name} for some in (ours, fresh))
    assert ours == fresh
    assert weights(tmp_path / "run") == weights(tmp_path / "fresh")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "fresh")


def test_the_kept_configuration_neither_resumes_nor_overwrites(adapt: Adapt, tmp_path: Path) -> None:
    adapt(steps=1, overwrite=True)
    kept = (tmp_path / "run" / "config.yaml").read_text()
    assert "overwrite: false" in kept and "resume: false" in kept


@pytest.mark.parametrize("bad", [{"data": Path("nowhere")}, {"base": "./nowhere"}, {"split": {"holdout": 0.01}}])
def test_bad_input_is_found_before_the_run_to_overwrite_is_touched(
    adapt: Adapt, whole: Path, bad: dict[str, Any]
) -> None:
    before = contents(whole)
    with pytest.raises(LoricaError):
        adapt(output=whole, overwrite=True, **bad)
    assert contents(whole) == before


def test_bad_input_leaves_no_run_behind(adapt: Adapt, tmp_path: Path) -> None:
    with pytest.raises(LoricaError):
        adapt(base="./nowhere")
    assert contents(tmp_path / "run") == {}
    adapt(steps=1)  # so that the corrected command is not refused


def test_the_split_of_an_abandoned_run_is_not_taken_for_a_new_one(adapt: Adapt, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").unlink()
    adapt(steps=1, seed=1)
    assert Split.load(tmp_path / "run" / "split.json").seed == 1


def test_a_given_split_is_used_as_it_is(adapt: Adapt, whole: Path, tmp_path: Path) -> None:
    adapt(steps=1, seed=5, split={"file": whole / "split.json"})
    assert (tmp_path / "run" / "split.json").read_bytes() == (whole / "split.json").read_bytes()


def test_an_output_that_cannot_be_written_is_refused_before_work_starts(adapt: Adapt, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LoricaError, match=r"cannot write|is a file"):
        adapt(output=tmp_path / "file" / "run")


def test_a_full_disk_stops_the_run_and_loses_nothing(
    adapt: Adapt, whole: Path, tmp_path: Path, before_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        original(path, content[:50])
        raise OSError(28, "No space left on device")

    before_step(3, lambda step: monkeypatch.setattr(Path, "write_bytes", full))
    with pytest.raises(LoricaError, match="No space left on device"):
        adapt()
    monkeypatch.setattr(Path, "write_bytes", original)
    output = tmp_path / "run"
    assert completed_steps(output / RESUME_FILE) == 2
    assert not list(output.rglob("*.part")) and not (output / WEIGHTS).exists()
    adapt(resume=True)
    assert weights(output) == weights(whole)


def test_logs_that_cannot_be_written_stop_the_run_with_the_reason(
    adapt: Adapt, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        original = Monitor.__init__

        def on_a_full_disk(self: Monitor, *args: Any) -> None:
            original(self, *args)
            self._file.close()
            self._file = Path("/dev/full").open("w")  # noqa: SIM115

        patch.setattr(Monitor, "__init__", on_a_full_disk)
        with pytest.raises(LoricaError, match=r"cannot write the logs in .*No space left on device"):
            adapt()
    adapt(resume=True)
    assert weights(tmp_path / "run") == weights(whole)


# ----- divergence ---------------------------------------------------------------------------------------------------
def assert_all_finite(output: Path) -> None:
    for file in output.rglob("*.safetensors"):
        with safe_open(file, "pt") as reader:
            assert all(reader.get_tensor(name).isfinite().all() for name in reader.keys()), file  # noqa: SIM118
    for row in read_metrics(output):
        assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_diverging_run_explains_itself_and_writes_no_nan(adapt: Adapt, tmp_path: Path, objective: str) -> None:
    with pytest.raises(Diverged, match="diverged") as raised:
        adapt(objective=objective, learning_rate=1e30, steps=20, checkpoint_every=3, validate_every=3, log_every=5)
    assert "learning-rate" in raised.value.remedy
    assert ("lam" in raised.value.remedy) == OBJECTIVES[objective].needs_proxy
    assert_all_finite(tmp_path / "run")
    assert not (tmp_path / "run" / WEIGHTS).exists() and not (tmp_path / "run" / "run.json").exists()


def spoil(step: Step) -> None:
    with torch.no_grad():
        step.parameters[0][0, 0] = float("nan")


def test_divergence_keeps_the_last_good_checkpoint(
    adapt: Adapt, whole: Path, tmp_path: Path, before_step: Callable[..., None]
) -> None:
    before_step(4, spoil)
    with pytest.raises(Diverged, match="noticed at step 5"):
        adapt()
    assert_all_finite(tmp_path / "run")
    assert completed_steps(tmp_path / "run" / RESUME_FILE) == 4
    adapt(resume=True)
    assert weights(tmp_path / "run") == weights(whole)


def test_weights_that_the_very_last_update_spoils_are_not_written(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Step.__call__

    def call(self: Step, step: int) -> dict[str, Tensor]:
        values = original(self, step)
        if step == 5:
            spoil(self)
        return values

    monkeypatch.setattr(Step, "__call__", call)
    with pytest.raises(Diverged):
        adapt(validate_every=100)
    assert_all_finite(tmp_path / "run")
    assert completed_steps(tmp_path / "run" / RESUME_FILE) == 4
    assert not (tmp_path / "run" / WEIGHTS).exists()
