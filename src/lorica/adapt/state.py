"""Checkpoints: everything a run needs to go on exactly where it was, in one file that appears whole or not at all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorica.adapt.proxy import Proxy
from lorica.artefacts import write_with
from lorica.errors import LoricaError


@dataclass
class State:
    """The mutable parts of a run. Draws are functions of the step number, so no sampler is among them."""

    parameters: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    proxy: Proxy | None
    proxy_optimiser: torch.optim.Optimizer | None
    accelerator: Accelerator

    def save(self, file: Path, step: int) -> None:
        """Write the state after `step` completed steps."""
        value: dict[str, Any] = {
            "step": step,
            "lora": [p.detach().cpu() for p in self.parameters],
            "optimiser": self.optimiser.state_dict(),
            "torch": torch.get_rng_state(),
        }
        if self.proxy is not None and self.proxy_optimiser is not None:
            value |= {"proxy": self.proxy.state_dict(), "proxy_optimiser": self.proxy_optimiser.state_dict()}
        if self.accelerator.scaler is not None:
            value["scaler"] = self.accelerator.scaler.state_dict()
        write_with(file, lambda path: torch.save(value, path))

    def load(self, file: Path) -> int:
        """Restore in place; returns the number of completed steps.

        Raises:
            LoricaError: the file is damaged or belongs to a run of another shape.
        """
        try:
            value = torch.load(file, map_location="cpu", weights_only=True)
            stored: list[Tensor] = value["lora"]
            if [p.shape for p in stored] != [p.shape for p in self.parameters]:
                raise ValueError("its LoRA has other shapes")
            with torch.no_grad():
                for parameter, tensor in zip(self.parameters, stored, strict=True):
                    parameter.copy_(tensor)
            self.optimiser.load_state_dict(value["optimiser"])
            if self.proxy is not None and self.proxy_optimiser is not None:
                self.proxy.load_state_dict(value["proxy"])
                self.proxy_optimiser.load_state_dict(value["proxy_optimiser"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(value["scaler"])
            torch.set_rng_state(value["torch"])
            return int(value["step"])
        except LoricaError:
            raise
        except Exception as error:
            raise LoricaError(
                f"checkpoint {file} cannot be used: {error}",
                "Start again with --overwrite, or give the run's own configuration.",
            ) from error
