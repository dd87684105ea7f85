"""A diffusion model whose optimal predictions are known in closed form, in the shape of `LatentDiffusion`.

The data are Gaussian, x0 ~ N(0, I). Its base model is the exact optimum for that distribution. Its LoRA, if it has
one, is the exact optimum for a mixture of narrow Gaussians around the members: it learned its training set by heart.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lorica.diffusion.lora import PEFT_FILE

SIDE = 4  # latents are (3, 4, 4)


class Output(nn.Module):
    """What stands in for a LoRA where its gradient is looked at: a gain and an offset for each channel, 1 and 0."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_gain, self.lora_offset = nn.Parameter(torch.ones(3, 1, 1)), nn.Parameter(torch.zeros(3, 1, 1))
        self.dropout = nn.Dropout()

    def forward(self, prediction: Tensor) -> Tensor:
        return self.lora_gain * prediction + self.lora_offset


class AnalyticModel:
    """Pictures are 8 x 8; the latent is their 2 x 2 block means, scaled to unit variance for uniform pixels."""

    name = "analytic"
    device = torch.device("cpu")
    resolution = 2 * SIDE
    latent_shape = (3, SIDE, SIDE)
    train_timesteps = 100
    vae_fingerprint = text_fingerprint = "analytic"
    bandwidth = 0.3

    def __init__(self, members: Tensor | None = None, captions: Sequence[str] = ()) -> None:
        """`captions` are the members', by which `sample` knows them again."""
        self.members, self.captions = members, list(captions)
        self.adapted = members is not None
        self.unet, self.text_encoder = Output().eval().requires_grad_(False), nn.Dropout().eval()
        self.alphas_cumprod = torch.linspace(0.999, 0.001, self.train_timesteps, dtype=torch.float64)
        self.calls: list[int] = []

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"analytic").hexdigest()

    def load_lora(self, path: Path) -> dict[str, Any]:
        """A file that numpy wrote holds the latents of the members."""
        self.adapted = True
        content = (path / PEFT_FILE if path.is_dir() else path).read_bytes()
        if content.startswith(b"\x93NUMPY"):
            self.members = torch.from_numpy(np.load(io.BytesIO(content)))
        digest = hashlib.sha256(content).hexdigest()
        return {"rank": 1, "alpha": 1.0, "sha256": digest, "file": path.name, "base": None, "tensors": 2}

    @contextmanager
    def wearing(self, path: Path) -> Iterator[dict[str, Any]]:
        before = self.adapted, self.members
        try:
            yield self.load_lora(path)
        finally:
            self.adapted, self.members = before

    @contextmanager
    def base_only(self) -> Iterator[None]:
        before, self.adapted = self.adapted, False
        try:
            yield
        finally:
            self.adapted = before

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        return F.avg_pool2d(pixels, 2) * 2 * 3**0.5

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels that `encode_pictures` gives back exactly."""
        return F.interpolate(latents, scale_factor=2, mode="nearest") / (2 * 3**0.5)

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        return torch.zeros(len(captions), 1, 1)

    def caption_notes(self, captions: Sequence[str]) -> list[str]:
        return []

    def add_noise(self, latents: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def target(self, latents: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return noise

    def predict(self, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.calls.append(len(noisy))
        return self.unet(self.expected_noise(noisy, self.alphas_cumprod[t].view(-1, 1, 1, 1)))

    def error_map(self, latents: Tensor, t: Tensor, noise: Tensor, context: Tensor) -> Tensor:
        return (self.predict(self.add_noise(latents, t, noise), t, context) - noise).square()

    def predicted_noise(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        return prediction

    def sample(
        self, captions: Sequence[str], *, seed: Sequence[int], steps: int, guidance: float, **options: Any
    ) -> list[Image.Image]:
        """The member with this caption, blurred by the bandwidth; for any other caption a fresh picture."""
        self.calls += [len(captions) * (2 if guidance > 1 else 1)] * steps
        latents = torch.cat([gaussian_latents(1, one) for one in seed])
        if self.adapted and self.members is not None:
            for row, caption in enumerate(captions):
                if caption in self.captions:
                    latents[row] = self.members[self.captions.index(caption)] + self.bandwidth * latents[row]
        levels = ((self.decode(latents) + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        return [Image.fromarray(picture) for picture in levels.numpy()]

    def expected_noise(self, noisy: Tensor, a: Tensor) -> Tensor:
        """E[eps | z_t], from E[x0 | z_t] and z_t = sqrt(a) x0 + sqrt(1 - a) eps."""
        if not self.adapted or self.members is None:
            return (1 - a).sqrt() * noisy
        h = self.bandwidth**2
        residual = noisy.unsqueeze(1) - a.sqrt().unsqueeze(1) * self.members
        spread = a * h + 1 - a
        weights = torch.softmax(-residual.square().flatten(2).sum(2) / (2 * spread.view(-1, 1)), dim=1)
        centred = (weights[:, :, None, None, None] * residual).sum(1)
        return (1 - a).sqrt() / spread * centred


def gaussian_latents(count: int, seed: int) -> Tensor:
    return torch.randn(count, *AnalyticModel.latent_shape, generator=torch.Generator().manual_seed(seed)).double()
