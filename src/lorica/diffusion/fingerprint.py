"""The identity of a base model: what its weights, tokenizer and noise schedule are, wherever it was loaded from."""

from collections.abc import Mapping
from typing import Any

from lorica.fingerprint import sha256, weights_digest

_SCHEDULE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type",
)  # fmt: skip


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
