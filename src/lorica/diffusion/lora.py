"""LoRA on a latent diffusion model: where it sits, and the two dialects in which it is saved."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn

from lorica import __version__
from lorica.artefacts import write_bytes
from lorica.config import Config

ADAPTER = "lorica"
PEFT_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "lora_kohya.safetensors"
# Nothing else is ever written into a LoRA file's header: no path, name, caption or file name can leak through it.
METADATA_KEYS = (
    "format",
    "lora_adapter_metadata",
    "lorica_version",
    "lorica_base",
    "ss_network_dim",
    "ss_network_alpha",
)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
# Recent transformers left this out of the names of a CLIPTextModel. LoRA files keep it: every reader knows them so.
TEXT_PREFIX = "text_model."


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


def lora_parts(pipeline: Any) -> dict[str, Any]:
    """The parts of a `StableDiffusionPipeline` that a LoRA may sit on, by their names in LoRA files."""
    return {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}


# ----- placing ------------------------------------------------------------------------------------------------------
def add_lora(pipeline: Any, config: LoraConfig) -> list[nn.Parameter]:
    """Inject a fresh LoRA (A ~ Kaiming uniform, B = 0: the model is unchanged until trained), in float32.

    Its dropout is off, as everything is in eval mode; `LatentDiffusion.training` switches it on.

    Args:
        pipeline: a `StableDiffusionPipeline` whose parameters are all frozen.
        config: where and how large.

    Returns:
        The trainable parameters: the UNet's, then the text encoder's.
    """
    names = {pipeline.unet: unet_targets(pipeline.unet, config.targets)}
    if config.text_encoder:
        names[pipeline.text_encoder] = text_targets(pipeline.text_encoder, config.targets)
    for module, targets in names.items():
        inject(module, dict.fromkeys(targets, (config.rank, config.alpha)), config.dropout)
    return [parameter for module in names for parameter in module.parameters() if parameter.requires_grad]


def inject(module: Any, sizes: Mapping[str, tuple[int, float]], dropout: float = 0.0) -> None:
    """Put a fresh adapter on the layers {name: (rank, alpha)} of a UNet or text encoder, in float32, in eval mode."""
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    module.add_adapter(
        PeftLoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # peft only divides it
            target_modules=list(sizes),
            # peft takes these keys for regular expressions that may begin anywhere in a name.
            rank_pattern={f"^{re.escape(name)}": r for name, (r, _) in sizes.items() if r != rank},
            alpha_pattern={f"^{re.escape(name)}": a for name, (_, a) in sizes.items() if a != alpha},
            lora_dropout=dropout,
        ),
        adapter_name=ADAPTER,
    )
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    module.eval()  # peft's new layers are born in train mode, whatever the rest of the model is in


def unet_targets(unet: nn.Module, where: str) -> list[str]:
    """Full names of the UNet modules that get a LoRA."""
    if where == "attention":
        return [name for name, _ in unet.named_modules() if name.endswith(tuple(f".{end}" for end in ATTENTION))]
    return [
        f"{name}.{inner}"
        for name, block in unet.named_modules()
        if isinstance(block, Transformer2DModel)
        for inner, layer in block.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    ]


def text_targets(text_encoder: nn.Module, where: str) -> list[str]:
    """Full names of the text encoder's modules that get a LoRA."""
    ends = (*TEXT_ATTENTION, "fc1", "fc2") if where == "transformer-blocks" else TEXT_ATTENTION
    return [name for name, _ in text_encoder.named_modules() if name.endswith(tuple(f".{end}" for end in ends))]


def adapted_layers(module: nn.Module) -> dict[str, Any]:
    """The layers that carry the adapter, by their names in the model without it."""
    return {
        name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer) and ADAPTER in layer.r
    }


# ----- writing ------------------------------------------------------------------------------------------------------
def lora_state(pipeline: Any) -> dict[str, Tensor]:
    """The adapter's weights under PEFT names, e.g. `unet.<module>.lora_A.weight`, float32 on the CPU."""
    state = {}
    for part, module in lora_parts(pipeline).items():
        for name, layer in adapted_layers(module).items():
            stem = f"{part}.{name}" if part == "unet" else f"{part}.{TEXT_PREFIX}{name.removeprefix(TEXT_PREFIX)}"
            for side, weights in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                state[f"{stem}.{side}.weight"] = weights[ADAPTER].weight.detach().float().cpu().contiguous()
    return state


def save_lora(pipeline: Any, folder: Path, *, base_fingerprint: str, kohya: bool = True) -> dict[str, Path]:
    """Write the adapter made by `add_lora` in both dialects, atomically. Equal weights make equal files, byte by byte.

    `pytorch_lora_weights.safetensors` is read back exactly by `StableDiffusionPipeline.load_lora_weights`, also when
    alpha != rank, because the adapter configuration travels in its header. `lora_kohya.safetensors` has
    `lora_unet_....lora_down/up.weight` and `.alpha` for AUTOMATIC1111 and ComfyUI.

    Raises:
        LoricaError: the folder cannot be written or the disk is full; files from before are then as they were.
        ValueError: the adapter is not one that `add_lora` made.
    """
    state = lora_state(pipeline)
    adapters: dict[str, Any] = {}
    for part, module in lora_parts(pipeline).items():
        layers = adapted_layers(module)
        if layers:
            peft = module.peft_config[ADAPTER]
            if peft.rank_pattern or peft.alpha_pattern:
                raise ValueError("an adapter whose rank or alpha differ between layers was not made by add_lora")
            # peft abbreviates target_modules, "2" for ff.net.2; full names cannot match anything else.
            values = {"r": peft.r, "lora_alpha": peft.lora_alpha, "target_modules": sorted(layers)}
            adapters |= {f"{part}.{key}": value for key, value in values.items()}
    rank, alpha = adapters["unet.r"], float(adapters["unet.lora_alpha"])
    shared = {"format": "pt", "lorica_version": __version__, "lorica_base": base_fingerprint}
    files = {"peft": folder / PEFT_FILE}
    header = shared | {"lora_adapter_metadata": json.dumps(adapters, sort_keys=True)}
    write_bytes(files["peft"], _safetensors(state, header))
    if kohya:
        files["kohya"] = folder / KOHYA_FILE
        header = shared | {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
        write_bytes(files["kohya"], _safetensors(to_kohya(state, alpha), header))
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


def _safetensors(tensors: dict[str, Tensor], header: Mapping[str, str]) -> bytes:
    """A safetensors file. The library writes header entries in random order; here equal content is equal bytes."""
    content = safetensors.torch.save(tensors)
    end = 8 + int.from_bytes(content[:8], "little")
    index = json.dumps({"__metadata__": header} | json.loads(content[8:end]), separators=(",", ":"))
    padded = index.encode() + b" " * (-len(index.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + content[end:]
