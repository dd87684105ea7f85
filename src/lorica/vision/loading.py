"""From what a user calls a model to a `Classifier`: timm names, hub ids, exported folders, checkpoint files."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lorica.artefacts import read_json
from lorica.config import Config
from lorica.data.pictures import listed
from lorica.errors import LoricaError
from lorica.vision._timm import timm
from lorica.vision.classifier import Architecture, Classifier, head_modules

WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "config.json"
"""What `save_for_hf` of timm, and so Lorica's export, leave in a folder."""

# Wrappers around a state dict, and around the model that it is of; prefixes may be nested.
_INSIDE, _DEEPEST = ("state_dict", "model_state_dict", "model", "net"), 4
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
# What other code calls the same layers.
_ALIASES = (("linear.", "fc."), (".shortcut.", ".downsample."))


class ModelConfig(Config):
    """Which network, and where its weights come from."""

    name: str = Field(
        "resnet18",
        description="timm architecture (cifar_resnet18 and its family for pictures of 32 pixels are ours), hub id "
        "(owner/name), or folder with config.json and model.safetensors",
        json_schema_extra={"flag": "--model"},
    )
    checkpoint: Path | None = Field(
        None, description="weights file (.safetensors, or .pt/.pth holding tensors only) for the architecture"
    )
    pretrained: bool = Field(True, description="download the architecture's weights when no checkpoint is given")
    arguments: dict[str, Any] = Field({}, description="further arguments of the architecture, e.g. {width: 16}")
    size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="height, width of its pictures; the checkpoint's own by default"
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="of the channels in [0, 1]; the checkpoint's own by default"
    )
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(None, description="likewise")


def load_classifier(config: ModelConfig, classes: Sequence[str] | None = None) -> tuple[Classifier, list[str]]:
    """Build a classifier.

    Args:
        config: which one.
        classes: of the data. The checkpoint's head is kept if it states the same classes; otherwise the head is made
            anew. None keeps the checkpoint's head whatever it was trained for.

    Returns:
        The model, in eval mode on the CPU; and what a user should know of how it came to be.

    Raises:
        LoricaError: no such architecture, weights that are absent, unreadable, pickled or do not fit.
    """
    folder = Path(config.name)
    local = folder.is_dir()
    if not local and config.name.endswith((".safetensors", ".pt", ".pth", ".th")):
        raise LoricaError(
            f"{config.name} is a weights file, which does not say what network it is of",
            "Give the architecture as the model (e.g. cifar_resnet18) and the file as --model-checkpoint.",
        )
    if local:
        _check_description(folder)
    remote = config.pretrained and config.checkpoint is None and not local
    notes = []
    backbone = _create(config, local=local, pretrained=remote)
    known = dict(getattr(backbone, "pretrained_cfg", None) or {})
    named = _label_names(known, backbone)
    if local:
        file = config.checkpoint or folder / WEIGHTS_FILE
        fit_weights(backbone, read_weights(file), what=file.name)
    elif config.checkpoint is not None:
        weights = read_weights(config.checkpoint)
        count = _head_size(backbone, weights)
        if count is not None:
            backbone.reset_classifier(count)  # type: ignore[operator]
        fit_weights(backbone, weights, what=config.checkpoint.name)
        named = None
    elif not remote:
        named = None
        notes.append("the network starts from random weights: robust fine-tuning is meant for pre-trained ones")
    if config.size is not None:
        _resize(backbone, config)
    return _with_head(_wrapped(backbone, config, known, named), classes, notes)


def _check_description(folder: Path) -> None:
    described = read_json(folder / DESCRIPTION_FILE, "description of the model")
    if not isinstance(described, dict) or not isinstance(described.get("architecture"), str):
        raise LoricaError(f"{folder / DESCRIPTION_FILE} names no architecture", "Give a folder that timm can load.")


def _create(config: ModelConfig, *, local: bool, pretrained: bool) -> nn.Module:
    library = timm()
    name = config.name
    if local:
        name = f"local-dir:{name}"
    elif "/" in name and not name.startswith(("hf-hub:", "hf_hub:")):
        name = f"hf-hub:{name}"
    try:
        backbone = library.create_model(name, pretrained=pretrained, **config.arguments)
    except Exception as error:  # timm raises anything, from RuntimeError to the network library's own
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        near = difflib.get_close_matches(config.name, library.list_models(), n=5) if "/" not in name else []
        hint = f" Near: {', '.join(near)}." if near else ""
        raise LoricaError(
            f"model {config.name} cannot be made: {said}",
            f"Give a timm architecture, a hub id or a folder; --no-model-pretrained starts without a download.{hint}",
        ) from error
    if not hasattr(backbone, "get_classifier"):
        raise LoricaError(f"model {config.name} is no classifier", "Give another architecture or other arguments.")
    return backbone


def _resize(backbone: nn.Module, config: ModelConfig) -> None:
    """Interpolate the positions of a transformer, which is made for one size; other networks take any."""
    if not timm().models.get_model_input_config(backbone)["fixed_input_size"]:
        return
    try:
        backbone.set_input_size(img_size=config.size)  # type: ignore[operator]
    except Exception as error:  # no such method, or a size that its patches or windows do not divide
        raise LoricaError(
            f"model {config.name} cannot be made to take pictures of {config.size}: {error}", "Leave --model-size out."
        ) from error


def _label_names(known: Mapping[str, Any], backbone: nn.Module) -> list[str] | None:
    names = known.get("label_names")
    if not isinstance(names, list | tuple) or len(names) != backbone.num_classes:
        return None
    return [str(name) for name in names]


def _wrapped(
    backbone: nn.Module, config: ModelConfig, known: Mapping[str, Any], named: Sequence[str] | None
) -> Classifier:
    models = timm().models
    try:
        stated = ModelConfig(
            size=config.size or models.get_model_input_config(backbone)["input_size"][-2:],
            mean=config.mean or known.get("mean", (0.5, 0.5, 0.5)),
            std=config.std or known.get("std", (0.5, 0.5, 0.5)),
        )
    except ValidationError as error:
        (key, *_) = error.errors()[0]["loc"]
        raise LoricaError(
            f"model {config.name} states a {key} that cannot be used", f"Give it as --model-{key}."
        ) from error
    assert stated.size is not None and stated.mean is not None and stated.std is not None
    arguments = config.arguments | models.get_model_args(backbone)
    return Classifier(
        backbone,
        mean=stated.mean,
        std=stated.std,
        architecture=Architecture(
            str(known.get("architecture", config.name)),
            {key: value for key, value in arguments.items() if key != "num_classes"},
            stated.size,
        ),
        classes=tuple(named) if named else tuple(str(i) for i in range(int(backbone.num_classes))),  # type: ignore[arg-type]
    ).eval()


def _with_head(
    classifier: Classifier, classes: Sequence[str] | None, notes: list[str]
) -> tuple[Classifier, list[str]]:
    if classes is not None and classifier.take_classes(classes):
        notes = [*notes, f"the head is new: {len(classes)} classes of the data"]
    return classifier, notes


# ----- weights ------------------------------------------------------------------------------------------------------
def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, free of wrappers and prefixes (`state_dict`, `module.`, ...).

    Raises:
        LoricaError: no such file, damaged, or it holds more than tensors (a pickle that could run code).
    """
    if not file.is_file():
        raise LoricaError(f"checkpoint not found: {file}", "Check the path.")
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise LoricaError(f"checkpoint {file.name} cannot be read: {error}", "Is it damaged?") from error
    except Exception as error:  # a refused pickle, a truncated archive: torch raises many things
        raise LoricaError(
            f"checkpoint {file.name} cannot be loaded as plain tensors: {type(error).__name__}",
            "Pickled objects can run code and are refused. Save the state_dict alone, best as .safetensors.",
        ) from error
    for _ in range(_DEEPEST):  # a hostile file may hold itself
        content = next((content[key] for key in _INSIDE if _is_wrapper(content, key)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise LoricaError(f"checkpoint {file.name} holds no state dict", "Save model.state_dict().")
    weights = {str(key): value for key, value in content.items()}
    while (prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in weights)), None)) is not None:
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _is_wrapper(content: Any, key: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(key), dict)


def _head_size(backbone: nn.Module, weights: Mapping[str, Tensor]) -> int | None:
    """Classes of the head in a state dict; None where it has none."""
    heads = set(head_modules(backbone))
    prefix = next((name for name, module in backbone.named_modules() if module in heads), "")
    found = _aliased(weights, backbone).get(f"{prefix}.weight")
    return None if found is None else len(found)


def fit_weights(module: nn.Module, weights: Mapping[str, Tensor], *, what: str) -> None:
    """Load a state dict completely: each of its tensors, and every weight of the module.

    Raises:
        LoricaError: keys are missing, left over or of another shape; the first of them are named.
    """
    weights = _aliased(weights, module)
    own = module.state_dict()
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
    module.load_state_dict({**own, **weights})


def _aliased(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Other code's names for the same layers, where this module knows only its own."""
    own = module.state_dict().keys()
    renamed = {}
    for key, value in weights.items():
        name = key
        for theirs, ours in _ALIASES:
            candidate = ours + name.removeprefix(theirs) if name.startswith(theirs) else name.replace(theirs, ours)
            name = candidate if candidate in own and name not in own else name
        renamed[name] = value
    return renamed
