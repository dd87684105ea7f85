"""The identity of a base model: what its weights, tokenizer and noise schedule are, wherever it was loaded from."""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import nn

_SCHEDULE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type",
)  # fmt: skip


def sha256(*parts: str) -> str:
    """Of several texts together, hexadecimal."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def schedule_text(config: Mapping[str, Any]) -> str:
    """Noise schedule and target of a scheduler's configuration.

    Not the numbers computed from them, whose last digit differs between processors.
    """
    return repr([(key, config[key]) for key in _SCHEDULE])


def digests(pipeline: Any) -> dict[str, str]:
    """SHA-256 of the weights of "unet", "vae" and "text_encoder", and of the "tokenizer"."""
    tokenizer = pipeline.tokenizer
    vocabulary = repr((sorted(tokenizer.get_vocab().items()), tokenizer.model_max_length, tokenizer.pad_token))
    weights = {part: weights_digest(getattr(pipeline, part)) for part in ("unet", "vae", "text_encoder")}
    return weights | {"tokenizer": sha256(vocabulary)}


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of names and float32 values, without LoRA weights, and whatever peft and transformers do to the names.

    Of the parameters and of the statistics that batch norms keep: two networks that answer differently differ in it. A
    checkpoint stored in half precision has the same digest as its copy in float32: the conversion is exact.
    """
    kept = module.state_dict().keys()
    statistics = [
        (name, value) for name, value in module.named_buffers() if name in kept and value.is_floating_point()
    ]
    named = [
        (name.replace(".base_layer", "").removeprefix("text_model."), value)
        for name, value in [*module.named_parameters(), *statistics]
        if "lora_" not in name
    ]
    digest = hashlib.sha256()
    for name, value in sorted(named, key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
