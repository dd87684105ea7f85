"""What attacks ask of a model, one (t, eps) per picture at a time, with every draw keyed by the picture.

The noise of a picture depends on its content, on what it is drawn for, and on the seed; never on the group, the batch
or the model. Members and non-members, base and LoRA are so measured with one and the same ruler.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorica.diffusion.noise import keyed_noise, keyed_uniform

if TYPE_CHECKING:
    from lorica.diffusion import Encoded, LatentDiffusion


def stratified_timesteps(encoded: "Encoded", purpose: str, draw: int, draws: int, timesteps: int, seed: int) -> Tensor:
    """t (N,) int64, uniform in the `draw`-th of `draws` equal parts of [0, timesteps).

    Over all draws together t is uniform, as in training, but every picture gets its share of each part of the
    schedule; the losses differ by orders of magnitude between the parts, so that this removes most of the variance.
    """
    place = (draw + keyed_uniform(encoded.ids, f"{purpose}.t", draw, seed)) / draws
    return (place * timesteps).long().clamp_max(timesteps - 1)


@torch.inference_mode()
def error_maps(model: "LatentDiffusion", encoded: "Encoded", t: Tensor, purpose: str, draw: int, seed: int) -> Tensor:
    """Squared-error maps (N, C, h, w), float32 on the CPU, at timesteps t (N,) with the pictures' own noise.

    One conditional UNet call, so there is no guidance.

    Raises:
        RuntimeError: a part of the model is in training mode, where dropout would make scores random.
    """
    require_eval(model)
    noise = keyed_noise(encoded.ids, f"{purpose}.noise", draw, tuple(encoded.latents.shape[1:]), seed)
    latents, context = encoded.latents.to(model.device), encoded.contexts.to(model.device)
    return model.error_map(latents, t.to(model.device), noise.to(model.device), context).float().cpu()


def adaptation_losses(
    model: "LatentDiffusion", encoded: "Encoded", t: Tensor, purpose: str, draw: int, seed: int
) -> Tensor:
    """The mean (N,) float64 of each picture's error map: its adaptation loss (arXiv 2402.11989, eq. 1) per element."""
    return error_maps(model, encoded, t, purpose, draw, seed).double().flatten(1).mean(1)


def stratified_losses(model: "LatentDiffusion", encoded: "Encoded", draws: int, seed: int) -> NDArray[np.float64]:
    """Adaptation losses (N, draws), each at a `stratified_timesteps` of its own."""
    columns = []
    for draw in range(draws):
        t = stratified_timesteps(encoded, "losses", draw, draws, model.train_timesteps, seed)
        columns.append(adaptation_losses(model, encoded, t, "losses", draw, seed).numpy())
    return np.stack(columns, axis=1)


def require_eval(model: "LatentDiffusion") -> None:
    for part in (model.unet, model.text_encoder):
        if any(module.training for module in part.modules()):
            raise RuntimeError(f"{type(part).__name__} is in training mode: an audit needs eval mode")
