"""Two processes under torchrun, over gloo on the CPU, pre-train like one that sees the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain_processes import steps


@pytest.mark.parametrize(("method", "options"), [("acl", {}), ("dynacl", {"flavour": "original"})])
def test_two_processes_have_the_losses_gradients_statistics_and_weights_of_one(tmp_path, method, options):
    alone = steps(method, options)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(__file__).with_name("pretrain_processes.py"))
    done = subprocess.run(
        [*launcher, script, str(tmp_path), method, json.dumps(options)],
        capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value.detach(), rtol=1e-7, atol=1e-9, msg=f"{name} of {rank}")
    assert float(alone["gradient encoder.backbone.conv1.weight".replace("encoder", "network.encoder")].abs().max()) > 0
