"""Checkpoints of training: tensors in a safetensors file, everything else as JSON in its header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from lorica.artefacts import write_bytes
from lorica.errors import LoricaError

_HEADER = "lorica"


def save_state(file: Path, groups: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any]) -> None:
    """Write {group: {name: tensor}} and a JSON header, whole or not at all."""
    tensors = {
        f"{group}:{name}": tensor.detach().cpu().contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    write_bytes(file, save(tensors, metadata={_HEADER: json.dumps(header)}))


def load_state(file: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_state` wrote.

    Raises:
        LoricaError: the file is absent or damaged.
    """
    try:
        with safe_open(file, "pt") as reader:
            header = json.loads((reader.metadata() or {})[_HEADER])
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(file).items():
            group, _, name = key.partition(":")
            groups.setdefault(group, {})[name] = tensor
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise LoricaError(
            f"checkpoint {file} cannot be used: {type(error).__name__}: {error}", "Start again with --overwrite."
        ) from error
    return groups, header


def momenta(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimiser's state, by parameter and name."""
    states: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {
        f"{i}.{name}": tensor
        for i, state in states.items()
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }


def restore_momenta(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """From `momenta`; rates and other settings stay as they are."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".")
        states.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
