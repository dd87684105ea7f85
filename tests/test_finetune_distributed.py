"""Two processes under torchrun, over gloo on the CPU, fine-tune like one that sees the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune_runs import assert_same_run, configured, exported, state, write_pictures
from lorica.finetune import run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Without batch norm and dropout, whose draws and statistics are each process's own.
NETWORK = {"name": "vit_tiny_patch16_224", "pretrained": False, "size": (16, 16),
           "arguments": {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 12, "num_heads": 2}}  # fmt: skip
SETTINGS = {"model": NETWORK, "attack": {"steps": 2, "eps": "4/255", "start": "none"}, "learning_rate": 0.01}


@pytest.mark.parametrize("method", ["autolora", "vanilla"])
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, method: str) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    alone = run(configured(pictures, tmp_path / "one", method=method, **SETTINGS))
    config = configured(pictures, tmp_path / "two", method=method, **SETTINGS)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    done = launched("-m", "lorica", "finetune", "--config", str(tmp_path / "config.yaml"))
    assert done.returncode == 0, done.stderr[-3000:]
    together = json.loads((tmp_path / "two" / "run.json").read_text())
    assert together["processes"] == 2
    for key in ("val_natural", "val_robust", "best_epoch", "weights", "counts"):
        assert together[key] == alone[key], key
    one, two = exported(tmp_path / "one"), exported(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)


def test_two_processes_that_are_killed_within_an_epoch_and_resumed_end_in_the_same_bits(tmp_path: Path) -> None:
    # The network has batch norms, whose statistics differ between processes until an epoch ends.
    pictures, script = write_pictures(tmp_path / "pictures"), str(Path(__file__).with_name("finetune_processes.py"))
    for output, how in (("whole", "whole"), ("run", "killed"), ("run", "resumed")):
        done = launched(script, str(pictures), str(tmp_path / output), how)
        assert (done.returncode != 0) == (how == "killed"), done.stderr[-3000:]
        if how == "killed":
            _, header = state(tmp_path / "run")
            assert (header["epoch"], header["step_in_epoch"]) == (1, 2)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *arguments], capture_output=True, text=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
