"""From what a user calls a model to a `Classifier`: timm names, hub ids, exported folders, checkpoint files."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor, nn

from lorica.artefacts import read_json
from lorica.config import Config
from lorica.errors import LoricaError
from lorica.vision._timm import timm
from lorica.vision.batch_norm import norm_tensors
from lorica.vision.classifier import Architecture, Classifier, head_modules
from lorica.vision.robust_ssl import Route, Unpacked, unpack
from lorica.vision.weights import aliased, fit_weights, read_tensors, read_weights, require_fit

WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "config.json"
"""What `save_for_hf` of timm, and so Lorica's export, leave in a folder."""
NATURAL_NORMS_FILE = "natural_norms.safetensors"
"""Beside them, of a network with two sets of batch norms: `Classifier.natural_norms`."""

_HALF = (0.5, 0.5, 0.5)  # mean and std of an architecture that states none: pixels in [-1, 1]

RANDOM_WEIGHTS = "the network starts from random weights: robust fine-tuning is meant for pre-trained ones"


class ModelConfig(Config):
    """Which network, and where its weights come from."""

    name: str = Field(
        "resnet18",
        description="timm architecture (cifar_resnet18 and its family for pictures of 32 pixels are ours), hub id "
        "(owner/name), or folder with config.json and model.safetensors, or of a run that made one",
        json_schema_extra={"flag": "--model"},
    )
    checkpoint: Path | None = Field(
        None, description="weights file (.safetensors, or .pt/.pth holding tensors only) for the architecture"
    )
    pretrained: bool = Field(True, description="download the architecture's weights when no checkpoint is given")
    route: Route = Field("adversarial", description="of a checkpoint with dual batch norms, which to keep")
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
            anew. None keeps the checkpoint's head whatever it was trained for; a checkpoint without one gives an
            encoder that returns features and has no classes.

    Returns:
        The model, in eval mode on the CPU; and what a user should know of how it came to be. Of a checkpoint or folder
        with dual batch norms it has those of `config.route`, and the natural ones besides (`natural_norms`) where
        that is the adversarial route.

    Raises:
        LoricaError: no such architecture, weights that are absent, unreadable, pickled or do not fit.
    """
    folder = model_folder(Path(config.name))
    local = folder.is_dir()
    if local:
        config = config.model_copy(update={"name": str(folder)})
    if not local and config.name.endswith((".safetensors", ".pt", ".pth", ".th")):
        raise LoricaError(
            f"{config.name} is a weights file, which does not say what network it is of",
            "Give the architecture as the model (e.g. cifar_resnet18) and the file as --model-checkpoint.",
        )
    if local:
        _check_description(folder)
    remote = config.pretrained and config.checkpoint is None and not local
    notes: list[str] = []
    backbone = _create(config, local=local, pretrained=remote)
    known = dict(getattr(backbone, "pretrained_cfg", None) or {})
    named = _label_names(known, backbone)
    natural = None
    if local or config.checkpoint is not None:
        file = config.checkpoint or folder / WEIGHTS_FILE
        found = unpack(read_weights(file), own=backbone.state_dict().keys(), what=file.name)
        notes += found.notes
        known |= found.normalisation
        if not local:
            notes += _fit_head(backbone, found.weights)
            notes += _assumed(config, known, found)
            named = None
        fit_weights(backbone, found.weights, what=file.name)
        beside = file.with_name(NATURAL_NORMS_FILE) if config.checkpoint is None else None
        natural = _natural_norms(backbone, found, beside)
    elif not remote:
        named = None
        notes.append(RANDOM_WEIGHTS)
    if config.route == "natural":
        notes.append(_take_natural(backbone, natural))
        natural = None
    if config.size is not None:
        _resize(backbone, config)
    classifier = _wrapped(backbone, config, known, named)
    classifier.natural_norms = natural
    return _with_head(classifier, classes, notes)


def model_folder(folder: Path) -> Path:
    """Where the model lies in the folder of a run (its model/ or encoder/); any other folder itself."""
    places = (folder, *(folder / name for name in ("model", "encoder")))
    return next((place for place in places if (place / DESCRIPTION_FILE).is_file()), folder)


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
            mean=config.mean or known.get("mean", _HALF),
            std=config.std or known.get("std", _HALF),
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


def _assumed(config: ModelConfig, known: Mapping[str, Any], found: Unpacked) -> list[str]:
    """What to say of a normalisation that neither the user nor the checkpoint states: a wrong one costs accuracy."""
    names = [name for name in ("mean", "std") if getattr(config, name) is None and name not in found.normalisation]
    if not names:
        return []
    values = " and ".join(f"{name} {', '.join(f'{x:.4g}' for x in known.get(name, _HALF))}" for name in names)
    flags = " and ".join(f"--model-{name}" for name in names)
    return [f"the checkpoint does not say how pixels are normalised: {values} are assumed; {flags} change that"]


def _with_head(
    classifier: Classifier, classes: Sequence[str] | None, notes: list[str]
) -> tuple[Classifier, list[str]]:
    if classes is not None and classifier.take_classes(classes):
        notes = [*notes, f"the head is new: {len(classes)} classes of the data"]
    return classifier, notes


def _fit_head(backbone: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Give the network a head of as many classes as a state dict has, or none like it; what to say of it."""
    heads = set(head_modules(backbone))
    prefix = next((name for name, module in backbone.named_modules() if module in heads), "")
    weights = aliased(weights, backbone)
    if f"{prefix}.weight" in weights:
        backbone.reset_classifier(len(weights[f"{prefix}.weight"]))  # type: ignore[operator]
    elif prefix and backbone.num_classes and not any(key.startswith(f"{prefix}.") for key in weights):
        backbone.reset_classifier(0)  # type: ignore[operator]
        return ["the checkpoint has no classifier: without a new one the network returns features"]
    return []


def _natural_norms(backbone: nn.Module, found: Unpacked, beside: Path | None) -> dict[str, Tensor] | None:
    """The batch norms for natural pictures, of a checkpoint or of the file beside it, if there are any."""
    norms, what = found.natural_norms, "of the natural batch norms"
    if beside is not None and beside.is_file():
        norms, what = read_tensors(beside), beside.name
    if norms is None:
        return None
    norms = aliased(norms, backbone)
    require_fit(norms, norm_tensors(backbone), what=what)
    return norms


def _take_natural(backbone: nn.Module, norms: Mapping[str, Tensor] | None) -> str:
    """Put the batch norms for natural pictures in the place of those for adversarial ones; what to say of it."""
    if norms is None:
        return "there is one set of batch norms: the route natural makes no difference"
    backbone.load_state_dict({**backbone.state_dict(), **norms})
    return "of two sets of batch norms that of natural pictures is used, that of adversarial ones left out"
