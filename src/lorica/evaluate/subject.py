"""What is evaluated: the model, the pictures, and how the classes of one are those of the other."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica.artefacts import RUN_FILE, SPLIT_FILE, read_json
from lorica.data.label_split import load_split
from lorica.data.labelled import LabelledSet, read_labelled
from lorica.data.subsets import balanced
from lorica.errors import LoricaError
from lorica.evaluate.config import EvaluateConfig
from lorica.vision import Classifier, load_classifier
from lorica.vision.loading import model_folder


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and the pictures that it is tried on.

    Attributes:
        model: on the CPU.
        pictures: that are evaluated.
        labels: (N,) int64, of the pictures, as places among the model's outputs.
        members: pictures that it was trained on, if it is asked for them.
        classes: names of the model's outputs; the data's where the model has none.
        outputs: (classes of the data,) int64, place of each among the model's outputs.
        about: the model, for the record: with "sha256".
        data: the pictures, for the record: with "sha256".
        notes: what a reader should know of either.
        run: folder of the training that made the model, if it is known.
    """

    model: Classifier
    pictures: LabelledSet
    labels: Tensor
    members: LabelledSet | None
    classes: tuple[str, ...]
    outputs: Tensor
    about: dict[str, Any]
    data: dict[str, Any]
    notes: list[str]
    run: Path | None = None


def subject_of(config: EvaluateConfig) -> Subject:
    """Load and check everything that is evaluated.

    Raises:
        LoricaError: no such model, data, split or part; or the model's classes are not the data's.
    """
    place, run = _places(config.model.name)
    model, notes = load_classifier(config.model.model_copy(update={"name": place}))
    size = model.architecture.size
    parts = read_labelled(config.data, size=size, cache=config.cache or config.folder / "cache")
    split, why_not = _split(config, run, parts)
    notes += why_not
    available = parts if split is None else parts | split
    name = config.part or ("test" if "test" in available else "all")
    pictures = _part(available, name, "--part")
    if name == "all":
        notes.append("All pictures of the data are evaluated: if the model was trained on some of them, give --split.")
    if name in ("train", "val"):
        notes.append(f"The {name} part is evaluated, which the model was fitted or chosen on: its numbers flatter.")
    members = None if config.members is None else _members(available, config.members, name, pictures)
    outputs, renamed = _outputs(model.classes, pictures.classes)
    notes += renamed
    whole, pictures = pictures, pictures.take(balanced(pictures.labels, config.pictures, config.seed))
    notes += _other_shares(whole, pictures)
    data = {
        "source": config.data.name,
        "part": name,
        "pictures": len(pictures),
        "classes": {pictures.classes[i]: int(n) for i, n in enumerate(torch.bincount(pictures.labels)) if n},
        "sha256": _sha256([pictures.sha256, pictures.labels.tolist()]),
        "split": split is not None,
    }
    classes = model.classes if set(pictures.classes) <= set(model.classes) else pictures.classes
    about = _about(model, place, run)
    labels = outputs[pictures.labels]
    return Subject(model, pictures, labels, members, classes, outputs, about, data, notes, run)


def _places(name: str) -> tuple[str, Path | None]:
    """The model that a name means, and the folder of the run that made it; either may be given for a run."""
    folder = Path(name)
    if not folder.is_dir():
        return name, None
    folder = model_folder(folder)
    runs = [place for place in (folder, folder.absolute().parent) if (place / RUN_FILE).is_file()]
    return str(folder), next(iter(runs), None)


def _split(
    config: EvaluateConfig, run: Path | None, parts: Mapping[str, LabelledSet]
) -> tuple[dict[str, LabelledSet] | None, list[str]]:
    """The parts of the split, where there is one of these pictures, and what is to be said about it."""
    beside = None if run is None else run / SPLIT_FILE
    file = config.split or (beside if beside is not None and beside.is_file() else None)
    if file is None:
        return None, []
    try:
        found = load_split(file, parts)
    except LoricaError as error:
        if config.split is not None or (config.part or "test") not in parts:
            raise
        return None, [f"The split of the model's run is of other pictures, and was not used: {error.problem}"]
    return {"train": found.train, "val": found.val, "test": found.test}, list(found.notes)


def _part(available: Mapping[str, LabelledSet], name: str, option: str) -> LabelledSet:
    if name not in available:
        raise LoricaError(
            f"{option} {name}: the data has no such part",
            f"It has {', '.join(available)}. A --split of the run that trained the model knows train, val and test.",
        )
    if not len(available[name]):
        raise LoricaError(f"{option} {name}: there are no pictures in it", f"Give one of {', '.join(available)}.")
    return available[name]


def _other_shares(whole: LabelledSet, chosen: LabelledSet) -> list[str]:
    """What to say where classes are rarer or more frequent among the chosen pictures than in the whole part."""
    among, found = (torch.bincount(data.labels, minlength=len(whole.classes)) for data in (chosen, whole))
    expected = found * (len(chosen) / len(whole))
    off = (among - expected).abs()
    if off.max() < 1:  # a draw by shares would have to round as much
        return []
    most = int(off.argmax())
    return [
        f"{len(chosen)} of {len(whole)} pictures were drawn evenly from the classes, whose shares differ: class "
        f"{whole.classes[most]} has {100 * int(among[most]) / len(chosen):.3g} % of them and "
        f"{100 * int(found[most]) / len(whole):.3g} % of the part. Accuracies and their intervals are those of "
        "this mix of classes, not of the part."
    ]


def _members(available: Mapping[str, LabelledSet], name: str, evaluated: str, pictures: LabelledSet) -> LabelledSet:
    """The pictures of a part, without copies of those that are evaluated."""
    if name == evaluated:
        raise LoricaError(
            f"--members {name} are the very pictures that are evaluated",
            "Members are pictures that the model was trained on: --members train --part test.",
        )
    members, known = _part(available, name, "--members"), set(pictures.sha256)
    return members.take([row for row, value in enumerate(members.sha256) if value not in known])


def _outputs(model: Sequence[str], data: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Which output of the model stands for each class of the data: by name, or by order where the model has no names.

    Raises:
        LoricaError: neither is possible.
    """
    place = {name: index for index, name in enumerate(model)}
    if all(name in place for name in data):
        notes = [] if len(data) == len(model) else [f"The model knows {len(model)} classes, the data {len(data)}."]
        return torch.tensor([place[name] for name in data]), notes
    if tuple(model) == tuple(map(str, range(len(data)))):
        return torch.arange(len(data)), ["The model does not name its classes: they were taken in the data's order."]
    strange = [name for name in data if name not in place]
    raise LoricaError(
        f"the model does not know {len(strange)} of the {len(data)} classes of the data, such as {strange[0]!r}",
        f"It knows {len(model)}: {', '.join(map(repr, model[:5]))}{', ...' if len(model) > 5 else ''}. Name the class "
        "folders so, or give the model that was trained for these.",
    )


def _about(model: Classifier, place: str, run: Path | None) -> dict[str, Any]:
    mean, std = (getattr(model, name).flatten().tolist() for name in ("mean", "std"))
    return {
        "name": Path(place).name,
        "architecture": model.architecture.name,
        "timm": version("timm"),
        "arguments": model.architecture.arguments,
        "size": list(model.architecture.size),
        "classes": list(model.classes),
        "mean": mean,
        "std": std,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **_training(model, run),
        "sha256": model_digest(model),
    }


def _training(model: Classifier, run: Path | None) -> dict[str, str]:
    """Method, and which weights: "ema" or "raw"; "unknown" unless the record of the run is of these weights."""
    from lorica.fingerprint import weights_digest

    record = read_json(run / RUN_FILE, "record of the run") if run is not None else None
    if not isinstance(record, dict) or record.get("weights_sha256") != weights_digest(model):
        record = {}
    return {key: str(record.get(key, "unknown")) for key in ("method", "weights")}


def model_digest(model: Classifier) -> str:
    """SHA-256 of all that answers depend on: weights, running statistics of batch norms, normalisation."""
    digest = hashlib.sha256(json.dumps([model.architecture.name, model.architecture.arguments], default=str).encode())
    for name, tensor in sorted([*model.state_dict().items(), ("mean", model.mean), ("std", model.std)]):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update((value.float() if value.is_floating_point() else value).numpy().tobytes())
    return digest.hexdigest()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
