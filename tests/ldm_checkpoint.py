"""A diffusers pipeline as one file in the layout of the original latent-diffusion code, as model sites offer it.

The inverse of the conversion in diffusers' `from_single_file`, for the block structure of `conftest.tiny_pipeline`.
"""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_ldm_checkpoint(pipeline: StableDiffusionPipeline, file: Path) -> None:
    """Write UNet, VAE and text encoder; what a single file does not hold (schedule, tokenizer) is left out."""
    tensors: dict[str, Tensor] = {}
    per_block = pipeline.unet.config.layers_per_block + 1
    for name, tensor in pipeline.unet.state_dict().items():
        tensors[f"model.diffusion_model.{_unet_name(name, per_block, pipeline.unet.config.up_block_types)}"] = tensor
    for name, tensor in pipeline.vae.state_dict().items():
        new = _vae_name(name, blocks=len(pipeline.vae.config.block_out_channels))
        # The original attention is made of 1x1 convolutions.
        tensors[f"first_stage_model.{new}"] = tensor[:, :, None, None] if _is_matrix_of_attention(new) else tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _unet_name(name: str, per_block: int, up_block_types: tuple[str, ...]) -> str:
    for ours, original in _UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return original + name.removeprefix(ours)
    match = re.fullmatch(
        r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    assert match is not None, name
    side, block, kind, index = match[1], int(match[2] or 0), match[3], int(match[4])
    rest = match[5]
    if kind == "resnets":
        head, _, leaf = rest.partition(".")
        rest = f"{_RESNET[head]}.{leaf}"
    if side == "mid":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    place = {"resnets": 0, "attentions": 1}.get(kind)
    if kind == "downsamplers":
        return f"input_blocks.{1 + block * per_block + per_block - 1}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        place, index = (2 if "CrossAttn" in up_block_types[block] else 1), per_block - 1
    if side == "down":
        return f"input_blocks.{1 + block * per_block + index}.{place}.{rest}"
    return f"output_blocks.{block * per_block + index}.{place}.{rest}"


def _vae_name(name: str, blocks: int) -> str:
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    if "mid_block.attentions.0" in name:
        head, leaf = name.split("mid_block.attentions.0.")
        stem, _, kind = leaf.rpartition(".")
        return f"{head}mid.attn_1.{_VAE_ATTENTION[stem]}.{kind}"
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def _is_matrix_of_attention(name: str) -> bool:
    return ".attn_1." in name and name.endswith(".weight") and ".norm." not in name
