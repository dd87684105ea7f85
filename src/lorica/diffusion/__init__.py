"""Latent diffusion, the ground floor: one class around a diffusers text-to-image pipeline, LoRA files, caches."""

from lorica.diffusion.cache import Encoded, encode, encode_captions, encode_latents
from lorica.diffusion.lora import LoraConfig, add_lora, save_lora
from lorica.diffusion.model import SCHEDULERS, LatentDiffusion
from lorica.diffusion.noise import keyed_noise, keyed_uniform

__all__ = [
    "SCHEDULERS", "Encoded", "LatentDiffusion", "LoraConfig", "add_lora", "encode", "encode_captions",
    "encode_latents", "keyed_noise", "keyed_uniform", "save_lora",
]  # fmt: skip
