"""Adaptation losses without gradient: the validation loss, and the base model's expected loss at every timestep."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorica.diffusion import Encoded, LatentDiffusion, keyed_noise

# Few fixed noise levels: the validation loss compares steps and groups, it does not estimate an integral.
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7)
CALIBRATION_LEVELS = 40
_CHUNK = 16  # pictures per pass: no more memory than a training step takes


@torch.inference_mode()
def adaptation_losses(model: LatentDiffusion, encoded: Encoded, t: int, purpose: str, draw: int, seed: int) -> Tensor:
    """l_ada per element (N,), float64 on the CPU, of each picture at timestep t with its own fixed noise."""
    noise = keyed_noise(encoded.ids, purpose, draw, model.latent_shape, seed)
    losses = []
    for start in range(0, len(encoded), _CHUNK):
        part = slice(start, start + _CHUNK)
        latents = encoded.latents[part].to(model.device)
        maps = model.error_map(
            latents,
            torch.full((len(latents),), t, device=model.device),
            noise[part].to(model.device),
            encoded.contexts[part].to(model.device),
        )
        losses.append(maps.flatten(1).mean(1).cpu())
    return torch.cat(losses).double()


def validation_loss(model: LatentDiffusion, encoded: Encoded, seed: int) -> float:
    """Deterministic adaptation loss: fixed timesteps, and noise fixed per picture.

    The same pictures give the same number at every step and in every run of the same seed, so that the difference
    between two groups or two steps is not noise.
    """
    levels = [
        adaptation_losses(model, encoded, int(level * model.train_timesteps), "validation", draw, seed)
        for draw, level in enumerate(VALIDATION_LEVELS)
    ]
    return torch.stack(levels).mean().item()


def expected_loss(model: LatentDiffusion, encoded: Encoded, seed: int) -> Tensor:
    """Expected adaptation loss (T,) at every timestep, measured at `CALIBRATION_LEVELS` of them and interpolated.

    Both are logarithmic in t and in the loss, which falls by orders of magnitude over the first timesteps.
    """
    levels = np.unique(np.geomspace(1, model.train_timesteps, CALIBRATION_LEVELS).round().astype(int)) - 1
    losses = [
        adaptation_losses(model, encoded, int(t), "expected loss", draw, seed).mean().item()
        for draw, t in enumerate(levels)
    ]
    every = np.arange(model.train_timesteps)
    logs = np.interp(np.log1p(every), np.log1p(levels), np.log(np.maximum(losses, 1e-12)))
    return torch.from_numpy(np.exp(logs))


@dataclass(frozen=True)
class Validation:
    """The pictures whose validation loss is watched, members and non-members.

    Args:
        encoded: {"val_member": ..., "val_nonmember": ...}: test groups; and where a defence watches the auxiliary
            ones, "aux_member" and "aux_nonmember" too.
        captions: likewise, where the text encoder is trained and cached embeddings go stale; else empty.
        seed: of the run.
    """

    encoded: dict[str, Encoded]
    captions: dict[str, list[str]]
    seed: int

    def __call__(self, model: LatentDiffusion) -> dict[str, float]:
        """`val_member` and `val_nonmember`, their difference `val_gap` (> 0: members fit better), and `aux_...`."""
        values = {name: validation_loss(model, self._current(model, name), self.seed) for name in self.encoded}
        for kind in ("val", "aux"):
            if f"{kind}_member" in values:
                values[f"{kind}_gap"] = values[f"{kind}_nonmember"] - values[f"{kind}_member"]
        return values

    @torch.inference_mode()
    def _current(self, model: LatentDiffusion, name: str) -> Encoded:
        encoded, captions = self.encoded[name], self.captions.get(name, [])
        if not captions:
            return encoded
        parts = [captions[start : start + _CHUNK] for start in range(0, len(captions), _CHUNK)]
        contexts = torch.cat([model.encode_captions(part).float().cpu() for part in parts])
        return Encoded(encoded.latents, contexts, encoded.ids)
