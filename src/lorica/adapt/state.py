"""Checkpoints: all that a run needs to go on exactly where it was, in one file that appears whole or not at all."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lorica.adapt.defences import Defence
from lorica.adapt.proxy import Proxy
from lorica.artefacts import write_bytes
from lorica.errors import LoricaError


@dataclass
class State:
    """The mutable parts of a run. Draws are functions of the step number: no sampler or generator is among them.

    Args:
        parameters: of the LoRA.
        optimiser: of the LoRA.
        proxy: the attacker; None for objectives without one.
        proxy_optimiser: of the attacker.
        scaler: of fp16 gradients; disabled otherwise.
        identity: {what: value} of things outside the configuration that must be the same for the run to go on, e.g.
            {"base model": "3f2a..."}.
        defences: by name; some have a state of their own.
    """

    parameters: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    proxy: Proxy | None
    proxy_optimiser: torch.optim.Optimizer | None
    scaler: torch.amp.GradScaler
    identity: dict[str, str]
    defences: dict[str, Defence] = field(default_factory=dict)

    def weights(self) -> list[nn.Parameter]:
        """Of both players."""
        return self.parameters + (list(self.proxy.parameters()) if self.proxy is not None else [])

    def save(self, file: Path, step: int) -> None:
        """Write the state after `step` completed steps. The old file stays if that fails."""
        tensors = {f"lora.{i}": p for i, p in enumerate(self.parameters)} | _moments("optimiser", self.optimiser)
        if self.proxy is not None and self.proxy_optimiser is not None:
            tensors |= {f"proxy.{name}": tensor for name, tensor in self.proxy.state_dict().items()}
            tensors |= _moments("proxy_optimiser", self.proxy_optimiser)
        for name, defence in self.defences.items():
            tensors |= {f"defence.{name}.{key}": tensor for key, tensor in defence.state().items()}
        header = {"step": step, "identity": self.identity, "scaler": self.scaler.state_dict()}
        content = save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            metadata={"lorica": json.dumps(header)},
        )
        write_bytes(file, content)

    def load(self, file: Path) -> int:
        """Restore in place; returns the number of completed steps.

        Raises:
            LoricaError: the file is damaged, belongs to a run of another shape, or the base model, the pictures, the
                captions or the number of processes are not those of the run.
        """
        header = _header(file)
        changed = [what for what, value in self.identity.items() if header["identity"].get(what) != value]
        if changed:
            raise LoricaError(
                f"this run cannot go on, as something is not what it was when it began: {', '.join(changed)}",
                "Restore it, or start a new run in another folder.",
            )
        try:
            tensors = load_file(file)
            with torch.no_grad():
                for i, parameter in enumerate(self.parameters):
                    if parameter.shape != tensors[f"lora.{i}"].shape:
                        raise ValueError("its LoRA has another shape")
                    parameter.copy_(tensors[f"lora.{i}"])
            _restore("optimiser", self.optimiser, tensors)
            if self.proxy is not None and self.proxy_optimiser is not None:
                self.proxy.load_state_dict(_under("proxy", tensors))
                _restore("proxy_optimiser", self.proxy_optimiser, tensors)
            for name, defence in self.defences.items():
                defence.load_state(_under(f"defence.{name}", tensors))
            self.scaler.load_state_dict(header["scaler"])
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise _unusable(file, error) from error
        return int(header["step"])


def completed_steps(file: Path) -> int:
    """Steps that a checkpoint stands for; 0 where there is none.

    Raises:
        LoricaError: the file is damaged.
    """
    return int(_header(file)["step"]) if file.exists() else 0


def _header(file: Path) -> dict[str, Any]:
    try:
        with safe_open(file, "pt") as reader:
            header = json.loads(reader.metadata()["lorica"])
        return {key: header[key] for key in ("step", "identity", "scaler")}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unusable(file, error) from error


def _moments(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    states: dict[int, dict[str, Tensor]] = optimiser.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": tensor for i, state in states.items() for name, tensor in state.items()}


def _restore(prefix: str, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _under(prefix, tensors).items():
        index, name = key.split(".")
        states.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): tensor for key, tensor in tensors.items() if key.startswith(f"{prefix}.")}


def _unusable(file: Path, error: Exception) -> LoricaError:
    return LoricaError(
        f"checkpoint {file} cannot be used: {type(error).__name__}: {error}",
        "Start again with --overwrite, or give the run's own configuration.",
    )
