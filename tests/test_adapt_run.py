"""`lorica adapt` end to end on a tiny model: every objective, its output folder, and runs that diverge."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from adapt_runs import WEIGHTS, all_finite, contents, numbers, spoil, weights
from lorica.adapt import OBJECTIVES, AdaptConfig, Diverged
from lorica.adapt.folder import RESUME_FILE
from lorica.adapt.losses import validation_loss
from lorica.adapt.state import completed_steps
from lorica.adapt.step import Step
from lorica.artefacts import sole_writer
from lorica.data.split import Split
from lorica.diffusion import LatentDiffusion, encode
from lorica.errors import LoricaError
from lorica.monitor import Monitor, read_metrics

Adapt = Callable[..., dict[str, Any]]


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
    adapt: Adapt,
    adapt_config: Callable[..., AdaptConfig],
    tmp_path: Path,
    tiny_model: LatentDiffusion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, trained = LatentDiffusion.error_map, []

    def spy(self: LatentDiffusion, latents: Tensor, *args: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            trained.extend(latent.clone() for latent in latents)
        return original(self, latents, *args)

    monkeypatch.setattr("lorica.adapt.step.ONE_CALL_POSITIONS", 0)  # or the proxy's pictures ride along, detached
    monkeypatch.setattr(LatentDiffusion, "error_map", spy)
    adapt(steps=12, validate_every=12)
    members = encode(
        tiny_model, Split.load(tmp_path / "run" / "split.json").members, adapt_config(output=tmp_path).cache
    ).latents
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
    tiny_model: LatentDiffusion, whole: Path, adapt_config: Callable[..., AdaptConfig]
) -> None:
    encoded = encode(tiny_model, Split.load(whole / "split.json").members, adapt_config(output=whole).cache)
    value = validation_loss(tiny_model, encoded, seed=0)
    torch.manual_seed(99)
    assert validation_loss(tiny_model, encoded, seed=0) == value
    assert validation_loss(tiny_model, encoded, seed=1) != value
    one_by_one = [validation_loss(tiny_model, encoded.take([i]), seed=0) for i in range(len(encoded))]
    assert sum(one_by_one) / len(encoded) == pytest.approx(value, rel=1e-5)


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
    (tmp_path / "run" / "my audit").mkdir()
    (tmp_path / "run" / "my audit" / "audit.json").touch()
    (tmp_path / "run" / "shadows" / "000").mkdir(parents=True)
    (tmp_path / "run" / "shadows" / "000" / "config.yaml").touch()
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

        def on_a_full_disk(self: Monitor, *args: Any, **options: Any) -> None:
            original(self, *args, **options)
            self._file.close()
            self._file = Path("/dev/full").open("w")  # noqa: SIM115

        patch.setattr(Monitor, "__init__", on_a_full_disk)
        with pytest.raises(LoricaError, match=r"cannot write the logs in .*No space left on device"):
            adapt()
    adapt(resume=True)
    assert weights(tmp_path / "run") == weights(whole)


# ----- divergence ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_diverging_run_explains_itself_and_writes_no_nan(adapt: Adapt, tmp_path: Path, objective: str) -> None:
    with pytest.raises(Diverged, match="diverged") as raised:
        adapt(objective=objective, learning_rate=1e30, steps=20, checkpoint_every=3, validate_every=3, log_every=5)
    assert "learning-rate" in raised.value.remedy
    assert ("lam" in raised.value.remedy) == OBJECTIVES[objective].needs_proxy
    assert all_finite(tmp_path / "run")
    assert not (tmp_path / "run" / WEIGHTS).exists() and not (tmp_path / "run" / "run.json").exists()


def test_divergence_keeps_the_last_good_checkpoint(
    adapt: Adapt, whole: Path, tmp_path: Path, before_step: Callable[..., None]
) -> None:
    before_step(4, spoil)
    with pytest.raises(Diverged, match="noticed at step 5"):
        adapt()
    assert all_finite(tmp_path / "run")
    assert completed_steps(tmp_path / "run" / RESUME_FILE) == 4
    adapt(resume=True)
    assert weights(tmp_path / "run") == weights(whole)


def test_weights_that_an_update_spoils_are_not_written_before_the_next_loss_shows_it(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Step.__call__

    def call(self: Step, step: int) -> dict[str, Tensor]:
        values = original(self, step)
        if step == 3:
            spoil(self)
        return values

    monkeypatch.setattr(Step, "__call__", call)
    with pytest.raises(Diverged):
        adapt(validate_every=100)
    assert all_finite(tmp_path / "run")
    assert completed_steps(tmp_path / "run" / RESUME_FILE) == 2
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_a_folder_in_which_another_process_trains_is_left_to_it(
    adapt: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with sole_writer(tmp_path / "run"), pytest.raises(LoricaError, match="another process is at work"):
        adapt(data=tmp_path / "not even looked at")
    assert not any((tmp_path / "run").iterdir())
    assert adapt()["steps"] == 6  # as soon as it is free
