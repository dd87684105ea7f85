"""The identity of texts and of weights, wherever they were loaded from."""

import hashlib

from torch import nn


def sha256(*parts: str) -> str:
    """Of several texts together, hexadecimal."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


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
