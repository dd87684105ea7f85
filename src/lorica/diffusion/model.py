"""One class around a diffusers text-to-image pipeline whose UNet predicts epsilon or v (Stable Diffusion 1.x, 2.x).

SDXL and flow-matching transformers condition and noise differently. They will be further classes with the same
methods, chosen in `LatentDiffusion.load` by the pipeline class that the checkpoint names.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor, nn
from transformers import logging as transformers_logging

from lorica.diffusion.lora import load_lora
from lorica.errors import LoricaError
from lorica.progress import bar

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).parent.parent / "assets" / "base"

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": PNDMScheduler,
}


def pick_device(device: str | None) -> torch.device:
    """The named device, or CUDA where there is one."""
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise LoricaError(f"device {device!r} is not available", "This PyTorch sees no CUDA device; use --device cpu.")
    return chosen


class LatentDiffusion:
    """A latent diffusion model as the rest of Lorica sees it.

    Noise schedule, latent scale and prediction type come from the checkpoint. Everything is in eval mode; gradients
    flow only into LoRA weights.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, *, name: str, device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.pipeline = pipeline
        self.name = name
        self.unet: nn.Module = pipeline.unet
        self.text_encoder: nn.Module = pipeline.text_encoder
        self.device = device or torch.device("cpu")
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(False).eval().to(self.device, dtype)
        pipeline.set_progress_bar_config(disable=True)

        # DDPMScheduler resolves every beta schedule and zero-terminal-SNR rescaling that a checkpoint can name.
        schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction_type: str = schedule.config.prediction_type
        self.train_timesteps: int = schedule.config.num_train_timesteps
        self.alphas_cumprod: Tensor = schedule.alphas_cumprod.double()
        self._signal = self.alphas_cumprod.sqrt().float().to(self.device)
        self._noise = (1 - self.alphas_cumprod).sqrt().float().to(self.device)

        self.latent_scale: float = pipeline.vae.config.scaling_factor
        self.latent_shift: float = getattr(pipeline.vae.config, "shift_factor", None) or 0.0
        size = pipeline.unet.config.sample_size
        self.latent_shape: tuple[int, int, int] = (pipeline.unet.config.in_channels, size, size)
        self.resolution: int = size * pipeline.vae_scale_factor

    # ----- loading ----------------------------------------------------------------------------------------------
    @classmethod
    def load(
        cls, base: str = BUILTIN, *, device: str | None = None, dtype: torch.dtype = torch.float32, config: str | None = None
    ) -> "LatentDiffusion":
        """Load a base model.

        Args:
            base: "builtin", a local folder in the diffusers layout, a single-file `.safetensors` checkpoint, or a
                hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5".
            device: "cpu", "cuda", "cuda:1"; None picks CUDA where there is one.
            dtype: of the frozen weights.
            config: for a single file: folder or hub id whose layout describes it (diffusers guesses it otherwise).

        Raises:
            LoricaError: nothing there, pickled weights, or a model that is not an epsilon- or v-predicting UNet.
        """
        target = pick_device(device)
        pipeline = _load_pipeline(base, config)
        if not isinstance(pipeline, StableDiffusionPipeline) or not isinstance(pipeline.unet, UNet2DConditionModel):
            raise LoricaError(
                f"base model {base} is a {type(pipeline).__name__}",
                "Lorica works with Stable Diffusion 1.x and 2.x layouts (UNet, one text encoder).",
            )
        if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
            raise LoricaError(f"base model {base} is an in-painting or editing model", "Give a text-to-image model.")
        prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise LoricaError(f"base model {base} predicts {prediction!r}", "Supported: epsilon, v_prediction.")
        name = base if base == BUILTIN or not Path(base).exists() else Path(base).stem
        return cls(pipeline, name=name, device=target, dtype=dtype)

    def load_lora(self, path: Path) -> dict[str, Any]:
        """Load a LoRA file (PEFT/diffusers or kohya keys) on top; returns what is known of it (rank, alpha, ...)."""
        return load_lora(self.pipeline, path)

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Switch a loaded LoRA off inside the block: the base model on the very same inputs."""
        adapted = [m for m in (self.pipeline.unet, self.pipeline.text_encoder) if getattr(m, "peft_config", None)]
        for module in adapted:
            module.disable_adapters()
        try:
            yield
        finally:
            for module in adapted:
                module.enable_adapters()

    @cached_property
    def vae_fingerprint(self) -> str:
        return _fingerprint(self.pipeline.vae, extra=f"{self.latent_scale}/{self.latent_shift}")

    @cached_property
    def text_fingerprint(self) -> str:
        return _fingerprint(self.pipeline.text_encoder, extra=repr(sorted(self.pipeline.tokenizer.get_vocab().items())))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over base weights and schedule (LoRA weights left out), hexadecimal."""
        schedule = hashlib.sha256(self.alphas_cumprod.numpy().tobytes() + self.prediction_type.encode()).hexdigest()
        parts = (_fingerprint(self.pipeline.unet), self.vae_fingerprint, self.text_fingerprint, schedule)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    # ----- encoding ---------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, h, w), scaled for the UNet, of pictures (B, 3, H, W) in [-1, 1].

        The posterior mean, not a sample: an audit must see the same latent each time.
        """
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        return (posterior.mode().float() - self.latent_shift) * self.latent_scale

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Caption embeddings (B, L, D), as the pipeline itself makes them. Carries gradient into a text LoRA."""
        tokens = self.pipeline.tokenizer(
            list(captions), padding="max_length", truncation=True,
            max_length=self.pipeline.tokenizer.model_max_length, return_tensors="pt",
        )  # fmt: skip
        mask = tokens.attention_mask.to(self.device) if self._uses_attention_mask else None
        return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]

    @property
    def _uses_attention_mask(self) -> bool:
        return bool(getattr(self.pipeline.text_encoder.config, "use_attention_mask", False))

    # ----- the objective's raw material -------------------------------------------------------------------------
    def add_noise(self, latents: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps (arXiv 2402.11989, eq. 1); t (B,) in [0, train_timesteps)."""
        return self._signal[t].view(-1, 1, 1, 1) * latents + self._noise[t].view(-1, 1, 1, 1) * noise

    def target(self, latents: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the UNet is asked to predict: eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0."""
        if self.prediction_type == "epsilon":
            return noise
        return self._signal[t].view(-1, 1, 1, 1) * noise - self._noise[t].view(-1, 1, 1, 1) * latents

    def error_map(self, latents: Tensor, t: Tensor, noise: Tensor, context: Tensor) -> Tensor:
        """Per-sample squared error between the UNet's prediction and its target.

        Args:
            latents: (B, C, h, w) clean scaled latents.
            t: (B,) int64 timesteps in [0, train_timesteps).
            noise: (B, C, h, w) standard normal.
            context: (B, L, D) caption embeddings.

        Returns:
            (B, C, h, w) float32, >= 0; its mean over (C, h, w) is the adaptation loss l_ada of eq. (1), per element.
        """
        prediction = self.unet(self.add_noise(latents, t, noise).to(self.dtype), t, context.to(self.dtype)).sample
        return (prediction.float() - self.target(latents, t, noise).float()).square()

    @property
    def dtype(self) -> torch.dtype:
        return self.pipeline.unet.dtype

    # ----- pictures ---------------------------------------------------------------------------------------------
    def sample(
        self, captions: Sequence[str], *, seed: int | Sequence[int], steps: int = 30, guidance: float = 4.0,
        scheduler: str = "ddim", batch_size: int = 16, progress: bool = True,
    ) -> list[Image.Image]:  # fmt: skip
        """Draw one picture per caption.

        Args:
            captions: prompts.
            seed: picture i starts from noise seeded with seed + i (or seed[i]), whatever the batch size.
            steps: denoising steps.
            guidance: classifier-free guidance scale; 1 switches guidance off.
            scheduler: one of `SCHEDULERS`.
            batch_size: pictures per UNet call.
            progress: show a progress bar.
        """
        if scheduler not in SCHEDULERS:
            raise LoricaError(f"unknown scheduler {scheduler!r}", f"Known: {', '.join(SCHEDULERS)}.")
        seeds = [seed + i for i in range(len(captions))] if isinstance(seed, int) else list(seed)
        kept, drawn = self.pipeline.scheduler, []
        self.pipeline.scheduler = SCHEDULERS[scheduler].from_config(kept.config)
        try:
            with bar() as progress_bar, torch.inference_mode():
                task = progress_bar.add_task("drawing pictures", total=len(captions), visible=progress)
                for start in range(0, len(captions), batch_size):
                    chosen = slice(start, start + batch_size)
                    drawn += self.pipeline(
                        prompt=list(captions[chosen]), num_inference_steps=steps, guidance_scale=guidance,
                        generator=[torch.Generator().manual_seed(s) for s in seeds[chosen]],
                        height=self.resolution, width=self.resolution,
                    ).images  # fmt: skip
                    progress_bar.update(task, completed=len(drawn))
        finally:
            self.pipeline.scheduler = kept
        return drawn


def _load_pipeline(base: str, config: str | None) -> Any:
    path = BUILTIN_FOLDER if base == BUILTIN else Path(base)
    # Checkpoints without a safety checker are normal here; the libraries' reminders about it are noise.
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    try:
        if path.is_file():
            if path.suffix != ".safetensors":
                raise LoricaError(f"{path} is not a .safetensors file", "Pickled checkpoints can run code: convert it first.")
            if config is not None:
                options |= {"config": config}
            return StableDiffusionPipeline.from_single_file(str(path), **options)
        if path.is_dir():
            if not (path / "model_index.json").is_file():
                raise LoricaError(f"{path} holds no model_index.json", "Give a folder in the diffusers layout, e.g. one written by save_pretrained.")
            return StableDiffusionPipeline.from_pretrained(str(path), local_files_only=True, use_safetensors=True, **options)
        if path.is_absolute() or base.startswith((".", "~")) or base.count("/") != 1:
            raise LoricaError(f"base model not found: {base}", "Give 'builtin', a folder, a .safetensors file or a hub id like owner/name.")
        return StableDiffusionPipeline.from_pretrained(base, use_safetensors=True, **options)
    except LoricaError:
        raise
    except Exception as error:  # the libraries raise anything from OSError to KeyError for a bad folder
        summary = str(error).strip().splitlines()
        raise LoricaError(
            f"base model {base} cannot be loaded: {type(error).__name__}: {summary[0] if summary else ''}",
            "It must be a Stable Diffusion 1.x/2.x text-to-image model with safetensors weights"
            + ("." if path.exists() else "; for a hub id, check the name, the network and your access token."),
        ) from error


def _fingerprint(module: nn.Module, extra: str = "") -> str:
    digest = hashlib.sha256(extra.encode())
    for name, tensor in sorted(module.state_dict().items()):
        if "lora_" in name:
            continue
        digest.update(name.replace(".base_layer", "").encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().view(torch.uint8).numpy()) if tensor.dim() else str(tensor.item()).encode())
    return digest.hexdigest()
