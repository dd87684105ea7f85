"""Weights files: read as plain tensors whatever wraps them, and loaded into a network completely or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lorica.data.pictures import listed
from lorica.errors import LoricaError

# Wrappers around a state dict, and around the model that it is of; prefixes may be nested.
_INSIDE, _DEEPEST = ("state_dict", "model_state_dict", "model", "net"), 4
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
# What other code calls the same layers.
_ALIASES = (
    ("linear.", "fc."),
    (".shortcut.", ".downsample."),
    (".downsample.conv.", ".downsample.0."),
    (".downsample.bn.", ".downsample.1."),
)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, free of wrappers and prefixes (`state_dict`, `module.`, ...).

    Raises:
        LoricaError: no such file, damaged, or it holds more than tensors (a pickle that could run code).
    """
    content = read_tensors(file)
    for _ in range(_DEEPEST):  # a hostile file may hold itself
        content = next((content[key] for key in _INSIDE if _is_wrapper(content, key)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise LoricaError(f"checkpoint {file.name} holds no state dict", "Save model.state_dict().")
    return without_prefixes({str(key): value for key, value in content.items()})


def read_tensors(file: Path) -> Any:
    """What a file holds, as it is: a dict of tensors if it is of safetensors.

    Raises:
        LoricaError: as `read_weights`.
    """
    if not file.is_file():
        raise LoricaError(f"checkpoint not found: {file}", "Check the path.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise LoricaError(f"checkpoint {file.name} cannot be read: {error}", "Is it damaged?") from error
    except Exception as error:  # a refused pickle, a truncated archive: torch raises many things
        raise LoricaError(
            f"checkpoint {file.name} cannot be loaded as plain tensors: {type(error).__name__}",
            "Pickled objects can run code and are refused. Save the state_dict alone, best as .safetensors.",
        ) from error


def without_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what wrappers (`module.`, ...) put before all of its names."""
    weights = dict(weights)
    while (
        prefix := next((p for p in _PREFIXES if weights and all(k.startswith(p) for k in weights)), None)
    ) is not None:
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _is_wrapper(content: Any, key: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(key), dict)


def fit_weights(module: nn.Module, weights: Mapping[str, Tensor], *, what: str) -> None:
    """Load a state dict completely: each of its tensors, and every weight of the module.

    Raises:
        LoricaError: keys are missing, left over or of another shape; the first of them are named.
    """
    weights = aliased(weights, module)
    own = module.state_dict()
    require_fit(weights, own, what=what)
    module.load_state_dict({**own, **weights})


def require_fit(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, what: str) -> None:
    """Refuse tensors that are not those of a network, by name and shape, or are not finite.

    Args:
        weights: from a file called `what`.
        own: the network's.
        what: for the error message.

    Raises:
        LoricaError: as `fit_weights`.
    """
    # BatchNorm counts batches for a momentum of None only; many checkpoints leave the count out.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    extra = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {list(weights[key].shape)}, the network has {list(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if missing or extra or shapes:
        parts = (("missing", missing), ("not in this network", extra), ("of another shape", shapes))
        said = "\n".join(f"{len(keys)} {name}:\n{listed(keys)}" for name, keys in parts if keys)
        raise LoricaError(
            f"checkpoint {what} does not fit this network\n{said}", "Give the architecture that it was trained with."
        )
    bad = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise LoricaError(f"checkpoint {what} holds numbers that are not finite:\n{listed(bad)}", "It is damaged.")


def aliased(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Other code's names for the same layers, where this module knows only its own and the file does not have both."""
    own = module.state_dict().keys()
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = key
        for theirs, ours in _ALIASES:
            candidate = ours + name.removeprefix(theirs) if name.startswith(theirs) else name.replace(theirs, ours)
            taken = candidate in weights or candidate in renamed
            name = candidate if candidate in own and name not in own and not taken else name
        renamed[name] = value
    return renamed
