"""Any LoRA file for Stable Diffusion, placed on a model completely or not at all.

A membership audit of a LoRA that was read in part, or scaled wrongly, would call a leaking model private. So every
tensor of the file must find its layer, with fitting shapes, before the model is touched.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lorica.diffusion.lora import ADAPTER, PEFT_FILE, adapted_layers, inject, lora_parts
from lorica.errors import LoricaError

# Names that diffusers has given LoRA weights, from the newest to the oldest:
#   unet.<layer>.lora_A.weight
#   unet.<layer>.lora.down.weight, text_encoder.<layer>.lora_linear_layer.down.weight
#   unet.<block>.attn1.processor.to_q_lora.down.weight
_DIFFUSERS = re.compile(
    r"(unet|text_encoder)\.(.+?)(?:\.lora_(?=[AB]\.)|\.lora\.|\.lora_linear_layer\.|_lora\.)(A|B|down|up)\.weight"
)
_KOHYA = re.compile(r"lora_(unet|te1?)_([^.]+)\.(?:lora_(down|up)\.weight|(alpha))")
_SIDES = {"A": "down", "B": "up"}


class _Misfit(Exception):
    """The file is not a LoRA for this model; says why."""


@dataclass
class _Update:
    """The update alpha / rank * up @ down of one layer, as the file has it."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None


@dataclass(frozen=True)
class _Fitted:
    """The same in the layer's own shapes, (rank, in, ...) and (out, rank, ...), float32."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)


def load_lora(pipeline: Any, path: Path) -> dict[str, Any]:
    """Put a LoRA file on a pipeline as the adapter `lorica`, in float32.

    Args:
        pipeline: gets the adapter; must hold none yet.
        path: a `.safetensors` file with PEFT/diffusers or kohya keys, or a folder that holds
            `pytorch_lora_weights.safetensors`.

    Returns:
        {"rank", "alpha", "sha256", "file", "base", "tensors"}: rank and alpha of the UNet part (the largest where
        they differ), the file's hash and bare name, the fingerprint of its base model when the file states it.

    Raises:
        LoricaError: no such file, a pickle, damaged, not a LoRA, of a kind that is not supported (DoRA, LoHa, ...), or
            made for another model. The pipeline is then as it was.
        ValueError: the pipeline holds a LoRA already.
    """
    parts = lora_parts(pipeline)
    if any(adapted_layers(module) for module in parts.values()):
        raise ValueError("the model holds a LoRA already: load the base model afresh")
    file = _file(path)
    tensors, header = _read(file)
    try:
        adapters = _adapter_configuration(header)
        fitted = {
            part: {
                name: _fit(parts[part], part, name, update, adapters.get(part, {})) for name, update in found.items()
            }
            for part, found in _sorted(tensors, parts).items()
        }
    except _Misfit as misfit:
        raise LoricaError(
            f"LoRA {file.name} does not fit this base model: {misfit}",
            "Give a plain LoRA of a Stable Diffusion 1.x/2.x model, with the base that it was trained on (--base).",
        ) from misfit
    for part, updates in fitted.items():
        _place(parts[part], updates)
    updates = fitted.get("unet") or fitted["text_encoder"]
    return {
        "rank": max(update.rank for update in updates.values()),
        "alpha": max(update.alpha for update in updates.values()),
        "sha256": lora_digest(path),
        "file": file.name,
        "base": header.get("lorica_base"),
        "tensors": len(tensors),
    }


def lora_digest(path: Path) -> str:
    """SHA-256 of a LoRA's file, hexadecimal; `path` and errors as `load_lora`."""
    file = _file(path)
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise LoricaError(f"LoRA {file.name} cannot be read: {error.strerror}", "Check its permissions.") from error


def _file(path: Path) -> Path:
    file = path / PEFT_FILE if path.is_dir() else path
    if not file.is_file():
        raise LoricaError(f"LoRA not found: {file}", f"Give a .safetensors file or a folder with {PEFT_FILE}.")
    return file


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header."""
    if file.suffix != ".safetensors":
        raise LoricaError(f"LoRA {file.name} is not a .safetensors file", "Pickles can run code: convert it first.")
    try:
        with safe_open(file, "pt") as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}, reader.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LoricaError(f"LoRA {file.name} cannot be read: {error}", "It is damaged or not safetensors.") from error


def _adapter_configuration(header: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What diffusers keeps in the header, by part: {"unet": {"lora_alpha": 32, ...}}."""
    try:
        flat = json.loads(header.get("lora_adapter_metadata") or "{}")
        parts: dict[str, dict[str, Any]] = {}
        for key, value in flat.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = value
    except (AttributeError, ValueError, RecursionError) as error:
        raise _Misfit("its header is damaged") from error
    for values in parts.values():
        for kind in ("use_dora", "use_rslora", "lora_bias"):
            if values.get(kind):
                raise _Misfit(f"it is not a plain LoRA ({kind})")
    return parts


def _sorted(tensors: Mapping[str, Tensor], parts: Mapping[str, nn.Module]) -> dict[str, dict[str, _Update]]:
    """The tensors by part and layer: {"unet": {"down_blocks....to_q": update}}."""
    places = {part: {_flat(part, name): name for name, _ in model.named_modules()} for part, model in parts.items()}
    updates: dict[str, dict[str, _Update]] = {}
    for name, tensor in tensors.items():
        match = _DIFFUSERS.fullmatch(name) or _KOHYA.fullmatch(name)
        if match is None:
            raise _Misfit(f"{name[:100]!r} is not a weight of a known kind of LoRA")
        part = "unet" if match[1] == "unet" else "text_encoder"
        layer = places[part].get(_flat(part, match[2]))
        if layer is None:
            raise _Misfit(f"there is no layer for {name[:100]!r}")
        what = match[match.lastindex or 0]
        setattr(updates.setdefault(part, {}).setdefault(layer, _Update()), _SIDES.get(what, what), tensor)
    if not updates:
        raise _Misfit("it is empty")
    return updates


def _flat(part: str, layer: str) -> str:
    """A layer's name in a form that all dialects and library versions share: kohya's, without dots."""
    flat = layer.replace(".processor.", ".").replace(".", "_")
    if part == "unet":
        return re.sub(r"_to_out$", "_to_out_0", flat)
    return re.sub(r"_to_(q|k|v|out)$", r"_\1_proj", flat.removeprefix("text_model_"))


def _fit(model: nn.Module, part: str, name: str, update: _Update, adapter: Mapping[str, Any]) -> _Fitted:
    """Check an update against its layer. Its alpha: the file's own, else the header's, else the rank."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise _Misfit(f"{name} is not a linear or convolutional layer")
    if update.down is None or update.up is None:
        raise _Misfit(f"half of the update of {name} is missing")
    rank = update.down.shape[0] if update.down.dim() else 0
    down = _shaped(update.down, (rank, *layer.weight.shape[1:]), name)
    up = _shaped(update.up, (layer.weight.shape[0], rank, *(1 for _ in layer.weight.shape[2:])), name)
    if update.alpha is not None:
        alpha = float(_shaped(update.alpha, (), f"the alpha of {name}"))
    else:
        alpha = _stated_alpha(adapter, part, name, default=float(rank))
    if rank == 0 or not (math.isfinite(alpha) and down.isfinite().all() and up.isfinite().all()):
        raise _Misfit(f"the update of {name} is empty or holds numbers that are not finite")
    return _Fitted(down, up, alpha)


def _shaped(tensor: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    # A 1x1 convolution may also be written as the matrix that it is, a number as a vector of one.
    if (shape and tensor.shape[:2] != shape[:2]) or tensor.numel() != math.prod(shape):
        raise _Misfit(f"{name} takes {list(shape)}, the file has {list(tensor.shape)}")
    return tensor.float().reshape(shape)


def _stated_alpha(adapter: Mapping[str, Any], part: str, name: str, *, default: float) -> float:
    """Alpha in the header. Pattern keys are regular expressions to peft; from a file only plain names are taken."""
    try:
        for key, alpha in (adapter.get("alpha_pattern") or {}).items():
            plain = key.removeprefix("^").replace("\\", "")
            if not re.fullmatch(r"[\w.]+", plain):
                raise _Misfit("its header names layers in an unknown way")
            here, there = _flat(part, name), _flat(part, plain)
            if here == there or (not key.startswith("^") and here.endswith(f"_{there}")):
                return float(alpha)
        return float(adapter.get("lora_alpha", default))
    except (AttributeError, TypeError, ValueError) as error:
        raise _Misfit("its header is damaged") from error


@torch.no_grad()
def _place(model: nn.Module, updates: Mapping[str, _Fitted]) -> None:
    inject(model, {name: (update.rank, update.alpha) for name, update in updates.items()})
    model.requires_grad_(False)
    layers = adapted_layers(model)
    for name in (
        layers.keys() | updates.keys()
    ):  # peft matches by pattern: a layer too many or too few is an error here
        layers[name].lora_A[ADAPTER].weight.copy_(updates[name].down)
        layers[name].lora_B[ADAPTER].weight.copy_(updates[name].up)
