"""One class around a diffusers text-to-image pipeline whose UNet predicts epsilon or v (Stable Diffusion 1.x, 2.x).

SDXL and flow-matching transformers condition and noise differently. They will be further classes with the same
methods, chosen in `LatentDiffusion.load` by the pipeline class that the checkpoint names.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from PIL import Image
from torch import Tensor, nn

from lorica.devices import pick_device
from lorica.diffusion.fingerprint import digests, schedule_text
from lorica.diffusion.loading import BUILTIN, load_pipeline, model_name, quiet_libraries
from lorica.diffusion.lora import adapted_layers, lora_parts
from lorica.diffusion.lora_reading import load_lora
from lorica.errors import LoricaError
from lorica.fingerprint import sha256
from lorica.progress import bar

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": PNDMScheduler,
}


class LatentDiffusion:
    """A latent diffusion model as the rest of Lorica sees it.

    Noise schedule, latent scale and prediction type come from the checkpoint. Everything is in eval mode; gradients
    flow only into LoRA weights.

    Args:
        pipeline: a `StableDiffusionPipeline`, as `load` makes it. Moved, frozen and kept.
        name: for reports.
        device: where it runs; the CPU by default.
        dtype: of the frozen weights.

    Attributes:
        resolution: side of its pictures in pixels.
        latent_shape: (C, h, w) of its latents.
        train_timesteps: number of noise levels; t is in [0, train_timesteps).
        alphas_cumprod: abar_t (train_timesteps,) float64, the share of the picture in the variance of z_t.
        prediction_type: "epsilon" or "v_prediction".
    """

    def __init__(
        self, pipeline: Any, *, name: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.pipeline = pipeline
        self.name = name
        self.unet: nn.Module = pipeline.unet
        self.text_encoder: nn.Module = pipeline.text_encoder
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self._lora: Path | None = None
        self._digests = digests(pipeline)  # before the cast: a model has one identity in all precisions
        with quiet_libraries():
            for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
                module.requires_grad_(False).eval().to(self.device, dtype)
        pipeline.set_progress_bar_config(disable=True)

        # DDPMScheduler resolves every beta schedule and zero-terminal-SNR rescaling that a checkpoint can name.
        self._schedule: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction_type: str = self._schedule.config.prediction_type
        self.train_timesteps: int = self._schedule.config.num_train_timesteps
        self.alphas_cumprod: Tensor = self._schedule.alphas_cumprod.double()
        self._signal = self.alphas_cumprod.sqrt().float().to(self.device)
        self._noise = (1 - self.alphas_cumprod).sqrt().float().to(self.device)

        self.latent_scale: float = pipeline.vae.config.scaling_factor
        self.latent_shift: float = pipeline.vae.config.get("shift_factor") or 0.0
        size = pipeline.unet.config.sample_size
        self.latent_shape: tuple[int, int, int] = (pipeline.unet.config.in_channels, size, size)
        self.resolution: int = size * pipeline.vae_scale_factor

    # ----- loading ----------------------------------------------------------------------------------------------
    @classmethod
    def load(
        cls,
        base: str = BUILTIN,
        *,
        device: str | None = None,
        dtype: torch.dtype = torch.float32,
        config: str | None = None,
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
        return cls(load_pipeline(base, config), name=model_name(base), device=target, dtype=dtype)

    def load_lora(self, path: Path) -> dict[str, Any]:
        """Load a LoRA file (PEFT/diffusers or kohya keys) on top; returns what is known of it (rank, alpha, ...)."""
        known = load_lora(self.pipeline, path)
        self._lora = path
        return known

    @contextmanager
    def wearing(self, path: Path) -> Iterator[dict[str, Any]]:
        """Put another LoRA in the place of the loaded one, if any, inside the block; gives what is known of it."""
        before = self._lora
        self._take_off()
        try:
            yield self.load_lora(path)
        finally:
            self._take_off()
            if before is not None:
                self.load_lora(before)

    def _take_off(self) -> None:
        self.pipeline.unload_lora_weights()
        self._lora = None

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Switch a loaded LoRA off inside the block: the base model on the very same inputs."""
        active = [layer for layer in self._adapted_layers() if not layer.disable_adapters]
        trained = [p for layer in active for p in layer.parameters() if p.requires_grad]
        for layer in active:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in active:
                layer.enable_adapters(True)
                layer.requires_grad_(False)  # peft makes a LoRA trainable whenever it is switched on
            for parameter in trained:
                parameter.requires_grad_(True)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let the dropout of the LoRA, which must be there by now, act inside the block. All else stays in eval."""
        for layer in self._dropout:
            layer.train()
        try:
            yield
        finally:
            for layer in self._dropout:
                layer.eval()

    @cached_property
    def _dropout(self) -> list[nn.Module]:
        modules = [module for layer in self._adapted_layers() for module in layer.lora_dropout.values()]
        return [module for module in modules if isinstance(module, nn.Dropout)]

    def _adapted_layers(self) -> list[Any]:
        return [layer for part in lora_parts(self.pipeline).values() for layer in adapted_layers(part).values()]

    # ----- identity ---------------------------------------------------------------------------------------------
    @property
    def fingerprint(self) -> str:
        """SHA-256 over base weights and schedule, hexadecimal; the same with a LoRA on top and in any precision."""
        return sha256(*self._digests.values(), schedule_text(self._schedule.config), *self._latent_scaling)

    @property
    def vae_fingerprint(self) -> str:
        """Names what `encode_pictures` computes."""
        return sha256(self._digests["vae"], *self._latent_scaling, str(self.dtype))

    @property
    def text_fingerprint(self) -> str:
        """Names what `encode_captions` computes without a LoRA."""
        return sha256(self._digests["text_encoder"], self._digests["tokenizer"], str(self.dtype))

    @property
    def _latent_scaling(self) -> tuple[str, str]:
        return str(self.latent_scale), str(self.latent_shift)

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
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        masked = getattr(self.pipeline.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]

    def caption_notes(self, captions: Sequence[str]) -> list[str]:
        """What a user should know: how many captions have more tokens than the text encoder reads."""
        tokenizer = self.pipeline.tokenizer
        with quiet_libraries():
            tokens = tokenizer(list(captions), truncation=False).input_ids if captions else []
        limit = tokenizer.model_max_length
        if not (cut := sum(len(ids) > limit for ids in tokens)):
            return []
        return [f"{cut} of {len(tokens)} captions are longer than {limit} tokens: their ends have no effect"]

    # ----- the objective's raw material -------------------------------------------------------------------------
    def add_noise(self, latents: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps (arXiv 2402.11989, eq. 1); t (B,) in [0, train_timesteps)."""
        return self._signal[t].view(-1, 1, 1, 1) * latents + self._noise[t].view(-1, 1, 1, 1) * noise

    def target(self, latents: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the UNet is asked to predict: eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0."""
        if self.prediction_type == "epsilon":
            return noise
        return self._signal[t].view(-1, 1, 1, 1) * noise - self._noise[t].view(-1, 1, 1, 1) * latents

    def predict(self, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The UNet's raw output (B, C, h, w) float32, of the kind that `prediction_type` says, for z_t at t."""
        return self.unet(noisy.to(self.dtype), t, context.to(self.dtype)).sample.float()

    def predicted_noise(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """`predict`'s output as eps: itself, or sqrt(abar_t) v + sqrt(1 - abar_t) z_t (arXiv 2202.00512, app. D)."""
        if self.prediction_type == "epsilon":
            return prediction
        return self._signal[t].view(-1, 1, 1, 1) * prediction + self._noise[t].view(-1, 1, 1, 1) * noisy

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
        prediction = self.predict(self.add_noise(latents, t, noise), t, context)
        return (prediction - self.target(latents, t, noise).float()).square()

    # ----- pictures ---------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def sample(
        self,
        captions: Sequence[str],
        *,
        seed: int | Sequence[int],
        steps: int = 30,
        guidance: float = 4.0,
        scheduler: str = "ddim",
        batch_size: int = 16,
        progress: bool = True,
    ) -> list[Image.Image]:
        """Draw one picture per caption.

        Args:
            captions: prompts.
            seed: picture i starts from noise seeded with seed + i (or seed[i]), whatever the batch size.
            steps: denoising steps.
            guidance: classifier-free guidance scale; 1 switches guidance off.
            scheduler: one of `SCHEDULERS`.
            batch_size: pictures per UNet call; no picture depends on it but by floating-point rounding.
            progress: show a progress bar.

        Raises:
            LoricaError: no such scheduler, one that cannot follow the noise schedule, or more steps than it has.
        """
        if not 1 <= steps <= self.train_timesteps:
            raise LoricaError(f"{steps} denoising steps", f"This model has between 1 and {self.train_timesteps}.")
        seeds = [seed + i for i in range(len(captions))] if isinstance(seed, int) else list(seed)
        if len(seeds) != len(captions):
            raise ValueError(f"{len(seeds)} seeds for {len(captions)} captions")
        drawn: list[Image.Image] = []
        # Quiet: of a long caption, the pipeline would print the part that it cuts off.
        with bar() as progress_bar, self._sampling_with(scheduler), quiet_libraries():
            task = progress_bar.add_task("drawing pictures", total=len(captions), visible=progress)
            for start in range(0, len(captions), batch_size):
                chosen = slice(start, start + batch_size)
                drawn += self.pipeline(
                    prompt=list(captions[chosen]),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=[torch.Generator().manual_seed(s) for s in seeds[chosen]],
                    height=self.resolution,
                    width=self.resolution,
                ).images
                progress_bar.update(task, completed=len(drawn))
        return drawn

    @contextmanager
    def _sampling_with(self, name: str) -> Iterator[None]:
        if name not in SCHEDULERS:
            raise LoricaError(f"unknown scheduler {name!r}", f"Known: {', '.join(SCHEDULERS)}.")
        kept = self.pipeline.scheduler
        # What a checkpoint does not say falls back to defaults meant for diffusion on pixels: clipping to [-1, 1], and
        # PNDM's extra Runge-Kutta steps.
        chosen = SCHEDULERS[name].from_config(kept.config, clip_sample=False, skip_prk_steps=True)
        option = "rescale_betas_zero_snr"
        if kept.config.get(option) and option not in inspect.signature(SCHEDULERS[name].__init__).parameters:
            raise LoricaError(
                f"scheduler {name!r} cannot follow this model's noise schedule (zero terminal SNR)",
                "Use ddim, ddpm, dpm++ or euler.",
            )
        self.pipeline.scheduler = chosen
        try:
            yield
        finally:
            self.pipeline.scheduler = kept
