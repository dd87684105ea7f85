"""Two processes under torchrun, over gloo on the CPU: they play one game, and none waits for the other in vain."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lorica.adapt import AdaptConfig, run
from lorica.adapt.folder import RESUME_FILE
from lorica.adapt.state import completed_steps
from lorica.errors import LoricaError
from lorica.monitor import read_metrics

WEIGHTS = "pytorch_lora_weights.safetensors"
MEMBERS = 12  # half of the people


@pytest.fixture(scope="module")
def work(people: Path, tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes ran all scenarios of two_processes.py."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(script), str(people), str(tiny_pipeline_folder), str(folder)],
        capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def both(work: Path) -> Callable[[str], list[dict[str, Tensor]]]:
    return lambda scenario: [load_file(work / f"{scenario}.{rank}.safetensors") for rank in (0, 1)]


Both = Callable[[str], list[dict[str, Tensor]]]


@pytest.mark.parametrize("scenario", ["private", "plain"])
def test_both_processes_end_with_the_same_lora_and_the_same_attacker(both: Both, scenario: str) -> None:
    first, second = both(scenario)
    weights = [name for name in first if name.startswith(("lora.", "proxy."))]
    assert weights and any(name.startswith("proxy.") for name in weights) == (scenario == "private")
    for name in weights:
        assert torch.equal(first[name], second[name]), name


def test_their_training_pictures_are_disjoint_and_make_up_whole_epochs(both: Both) -> None:
    first, second = (some["rows"].flatten().tolist() for some in both("plain"))
    assert len(first) == len(second) == 6
    assert sorted(first + second) == list(range(MEMBERS))


def test_the_attackers_gradients_are_averaged_over_the_processes(both: Both) -> None:
    first, second = both("private")
    assert (first["local"] - second["local"]).abs().max() > 0  # they saw different pictures
    mean = (first["local"] + second["local"]) / 2
    for some in (first, second):
        torch.testing.assert_close(some["exchanged"], mean, rtol=1e-6, atol=1e-9)


def test_two_processes_are_one_with_twice_the_batch_in_plain_lora(
    both: Both, people: Path, tiny_pipeline_folder: Path, work: Path, tmp_path: Path
) -> None:
    run(
        AdaptConfig(
            data=people, base=str(tiny_pipeline_folder), output=tmp_path / "alone", cache=work / "cache", device="cpu",
            objective="lora", steps=6, batch_size=2, learning_rate=1e-2, log_every=2, validate_every=2,
            validation_pictures=2, sample_every=0, lora={"rank": 2, "alpha": 2.0},
        )
    )  # fmt: skip
    alone, together = (load_file(folder / WEIGHTS) for folder in (tmp_path / "alone", work / "plain"))
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for ours, theirs in zip(read_metrics(work / "plain"), read_metrics(tmp_path / "alone"), strict=True):
        assert {k: v for k, v in ours.items() if k != "step_seconds"} == pytest.approx(
            {k: v for k, v in theirs.items() if k != "step_seconds"}, rel=1e-3
        )


def test_one_process_writes_the_results_of_all(work: Path) -> None:
    rows = read_metrics(work / "private")
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert sorted(path.name for path in (work / "private" / "samples").iterdir()) == [
        "step_000003.png",
        "step_000006.png",
    ]


def test_a_stop_asked_of_one_process_stops_both_at_the_same_step_and_can_be_resumed(work: Path, both: Both) -> None:
    said = [(work / f"stopped.{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and "step 4 is saved" in said[0]  # the first logged step after the request
    assert (work / "stopped" / WEIGHTS).read_bytes() == (work / "plain" / WEIGHTS).read_bytes()
    for stopped, plain in zip(both("stopped"), both("plain"), strict=True):
        assert all(torch.equal(stopped[name], plain[name]) for name in plain if name.startswith("lora."))


def test_divergence_in_one_process_stops_both(work: Path) -> None:
    said = [(work / f"diverged.{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and "diverged" in said[0]
    assert completed_steps(work / "diverged" / RESUME_FILE) == 0


def test_a_run_of_two_processes_is_not_resumed_with_one(
    work: Path, people: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    config = AdaptConfig(
        data=people, base=str(tiny_pipeline_folder), output=work / "plain", cache=work / "cache", device="cpu",
        objective="lora", steps=9, batch_size=1, learning_rate=1e-2, lora={"rank": 2, "alpha": 2.0}, resume=True,
    )  # fmt: skip
    with pytest.raises(LoricaError, match=r"not what it was .*: number of processes"):
        run(config)
