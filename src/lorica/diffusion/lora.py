"""LoRA on a latent diffusion model: where it sits, how it is saved, how any LoRA file is read."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import StableDiffusionPipeline, Transformer2DModel
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorica.artefacts import write_with
from lorica.config import Config
from lorica.errors import LoricaError

ADAPTER = "lorica"
PEFT_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "lora_kohya.safetensors"
# Nothing else is ever written into a LoRA file's header: no path, name, caption or file name can leak through it.
METADATA_KEYS = ("format", "lora_adapter_metadata", "lorica_version", "lorica_base", "ss_network_dim", "ss_network_alpha")
ADAPTER_KEYS = ("r", "lora_alpha", "target_modules")

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoraConfig(Config):
    """Where the low-rank matrices sit and how large they are."""

    rank: int = Field(64, ge=1, description="rank r of the update BA (paper: 64)")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / rank (paper: 32)")
    targets: Literal["attention", "transformer-blocks"] = Field(
        "attention",
        description="attention: the UNet's attention projections (paper, section 2); transformer-blocks: every Linear "
        "and 1x1 convolution of its transformer blocks (authors' code)",
    )
    text_encoder: bool = Field(False, description="adapt the text encoder too (authors' code does)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the LoRA input")


def add_lora(pipeline: StableDiffusionPipeline, config: LoraConfig) -> list[nn.Parameter]:
    """Inject a fresh LoRA (A ~ Kaiming uniform, B = 0: the model is unchanged until trained), in float32.

    Returns:
        The trainable parameters: the UNet's, then the text encoder's.
    """
    modules = {pipeline.unet: unet_targets(pipeline.unet, config.targets)}
    if config.text_encoder:
        modules[pipeline.text_encoder] = text_targets(pipeline.text_encoder, config.targets)
    parameters = []
    for module, targets in modules.items():
        module.add_adapter(
            PeftLoraConfig(
                r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=config.dropout
            ),
            adapter_name=ADAPTER,
        )  # fmt: skip
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                parameters.append(parameter)
    return parameters


def unet_targets(unet: nn.Module, where: str) -> list[str]:
    """Full names of the UNet modules that get a LoRA."""
    if where == "attention":
        return [name for name, _ in unet.named_modules() if name.endswith(tuple(f".{end}" for end in ATTENTION))]
    names = []
    for name, module in unet.named_modules():
        if isinstance(module, Transformer2DModel):
            for inner, layer in module.named_modules():
                if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
                    names.append(f"{name}.{inner}")
    return names


def text_targets(text_encoder: nn.Module, where: str) -> list[str]:
    ends = (*TEXT_ATTENTION, "fc1", "fc2") if where == "transformer-blocks" else TEXT_ATTENTION
    return [name for name, _ in text_encoder.named_modules() if name.endswith(tuple(f".{end}" for end in ends))]


# ----- writing ------------------------------------------------------------------------------------------------------
def lora_state(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """The adapter's weights under PEFT names, e.g. `unet.<module>.lora_A.weight`, float32 on the CPU."""
    state = {}
    for prefix, module in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
        if ADAPTER in (getattr(module, "peft_config", None) or {}):
            for name, tensor in get_peft_model_state_dict(module, adapter_name=ADAPTER).items():
                state[f"{prefix}.{name}"] = tensor.detach().float().cpu().contiguous()
    return state


def save_lora(
    pipeline: StableDiffusionPipeline, folder: Path, *, base_fingerprint: str, kohya: bool = True
) -> dict[str, Path]:
    """Write the adapter in both dialects, atomically.

    `pytorch_lora_weights.safetensors` is read back exactly by `StableDiffusionPipeline.load_lora_weights`, also when
    alpha != rank, because the adapter configuration travels in its header. `lora_kohya.safetensors` has
    `lora_unet_....lora_down/up.weight` and `.alpha` for AUTOMATIC1111 and ComfyUI.
    """
    from lorica import __version__

    state = lora_state(pipeline)
    adapters: dict[str, Any] = {}
    for prefix, module in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
        peft = (getattr(module, "peft_config", None) or {}).get(ADAPTER)
        if peft is not None:
            values = {"r": peft.r, "lora_alpha": peft.lora_alpha, "target_modules": sorted(peft.target_modules)}
            adapters |= {f"{prefix}.{key}": values[key] for key in ADAPTER_KEYS}
    rank, alpha = adapters["unet.r"], float(adapters["unet.lora_alpha"])
    shared = {"format": "pt", "lorica_version": __version__, "lorica_base": base_fingerprint}
    peft_header = shared | {"lora_adapter_metadata": json.dumps(adapters, sort_keys=True)}
    kohya_header = shared | {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    files = {"peft": folder / PEFT_FILE}
    write_with(files["peft"], lambda path: save_file(state, path, metadata=peft_header))
    if kohya:
        files["kohya"] = folder / KOHYA_FILE
        write_with(files["kohya"], lambda path: save_file(to_kohya(state, alpha), path, metadata=kohya_header))
    return files


def to_kohya(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """PEFT names -> kohya names, with one `.alpha` per module."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(unet|text_encoder)\.(.+)\.lora_([AB])\.weight", name)
        if match is None:
            raise ValueError(f"not a LoRA weight: {name}")
        part, module, side = match.groups()
        stem = f"{'lora_unet' if part == 'unet' else 'lora_te'}_{module.replace('.', '_')}"
        converted[f"{stem}.{'lora_down' if side == 'A' else 'lora_up'}.weight"] = tensor
        converted[f"{stem}.alpha"] = torch.tensor(alpha)
    return converted


# ----- reading ------------------------------------------------------------------------------------------------------
def load_lora(pipeline: StableDiffusionPipeline, path: Path) -> dict[str, Any]:
    """Put a LoRA file on a pipeline as the adapter `lorica`.

    Args:
        pipeline: gets the adapter; must hold none yet.
        path: a `.safetensors` file with PEFT/diffusers or kohya keys, or a folder that holds
            `pytorch_lora_weights.safetensors`.

    Returns:
        {"rank", "alpha", "sha256", "file", "base", "tensors"}: rank and alpha of the UNet part (the largest where
        they differ), the file's hash and bare name, the fingerprint of its base model when the file states it.

    Raises:
        LoricaError: no such file, a pickle, not a LoRA, or one made for another model.
    """
    file = path / PEFT_FILE if path.is_dir() else path
    if not file.is_file():
        raise LoricaError(f"LoRA not found: {file}", f"Give a .safetensors file or a folder with {PEFT_FILE}.")
    if file.suffix != ".safetensors":
        raise LoricaError(f"LoRA {file.name} is not a .safetensors file", "Pickled weights can run code: convert it first.")
    try:
        with safe_open(file, "pt") as reader:
            header = reader.metadata() or {}
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise LoricaError(f"LoRA {file} cannot be read: {error}", "The file is damaged or is not safetensors.") from error
    if not state or not all("lora" in key for key in state):
        raise LoricaError(f"{file.name} is not a LoRA file", "Its tensors have no lora_A/lora_B or lora_down/lora_up names.")
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=ADAPTER)
    except Exception as error:
        raise LoricaError(
            f"LoRA {file.name} does not fit this base model: {str(error).strip().splitlines()[0][:200]}",
            "Give the base model that it was trained on (--base).",
        ) from error
    loaded = lora_state(pipeline)
    pairs = sum(key.endswith((".lora_A.weight", ".lora_down.weight", ".lora.down.weight")) for key in state)
    if sum(key.endswith(".lora_A.weight") for key in loaded) != pairs:
        raise LoricaError(
            f"LoRA {file.name} does not fit this base model: {pairs} low-rank modules in the file, "
            f"{sum(k.endswith('.lora_A.weight') for k in loaded)} found a place",
            "Give the base model that it was trained on (--base).",
        )
    for module in (pipeline.unet, pipeline.text_encoder):
        module.requires_grad_(False).eval()
    peft = pipeline.unet.peft_config[ADAPTER] if getattr(pipeline.unet, "peft_config", None) else pipeline.text_encoder.peft_config[ADAPTER]
    return {
        "rank": max([peft.r, *(peft.rank_pattern or {}).values()]),
        "alpha": float(max([peft.lora_alpha, *(peft.alpha_pattern or {}).values()])),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "file": file.name,
        "base": header.get("lorica_base"),
        "tensors": len(state),
    }
