"""Accuracy under common corruptions (Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261), by type and severity."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.stats import norm
from torch import Tensor

from lorica.artefacts import write_with
from lorica.errors import LoricaError
from lorica.evaluate.config import ALL, EvaluateConfig
from lorica.evaluate.subject import Subject
from lorica.progress import bar
from lorica.robustness.accuracy import rate
from lorica.robustness.attacked import Counted, as_floats, predict
from lorica.robustness.corruptions import CORRUPTIONS, SEVERITIES, Official, corrupt, official
from lorica.seeds import stable_seed

FOLDER = "corrupted"
"""In OUTPUT: which pictures of each type and severity the model was right about."""

_AT_ONCE = 20  # batches of official pictures in memory: those of ImageNet-C are too large together


@dataclass(frozen=True, eq=False)
class Corruptions:
    """Corrupted pictures that a model can be tried on.

    Attributes:
        source: "official" or "lorica".
        types: of corruptions.
        measure: (model, type, severity) -> (n,) bool, whether the model is right.
        folder: keeps what was measured.
        level: of intervals.
    """

    source: str
    types: list[str]
    measure: Callable[[Counted, str, int], Tensor]
    folder: Path
    level: float

    def table(self, model: Counted) -> dict[str, Any]:
        """Accuracy by type and severity, and the mean over all of them; the model in `model.attacked()`.

        Returns:
            {"source", "n", "types": {type: {"severities": {"1": rate, ...}, "mean"}}, "severities": {"1": mean, ...},
            "mean": {"value", "low", "high", "n", "level"}}. The mean's interval is over pictures, each of which
            contributes the share of types and severities under which the model is right about it.
        """
        right: dict[str, list[Tensor]] = {name: [] for name in self.types}
        with bar() as progress:
            task = progress.add_task("corruptions", total=len(self.types) * len(SEVERITIES))
            for name in self.types:
                for severity in SEVERITIES:
                    right[name].append(self._kept(model, name, severity))
                    progress.update(task, advance=1)
        return {"source": self.source, **_table(right, self.level)}

    def _kept(self, model: Counted, name: str, severity: int) -> Tensor:
        file = self.folder / f"{name}-{severity}.safetensors"
        try:
            return load_file(file)["right"]
        except (OSError, SafetensorError, KeyError):  # not there yet, or damaged from outside
            right = self.measure(model, name, severity)
            write_with(file, lambda path: save_file({"right": right}, path))
            return right


def corruptions_of(config: EvaluateConfig, subject: Subject) -> Corruptions | None:
    """What the configuration asks for. "all" are the benchmark's 15 types, as far as the official folder holds them.

    Raises:
        LoricaError: an unknown type, no official files of these classes and this size, or too small pictures.
    """
    if not config.corruptions:
        return None
    found = None if config.corruptions_folder is None else official(config.corruptions_folder)
    every = [name for name in CORRUPTIONS if found is None or name in found.types]
    types = list(dict.fromkeys(name for given in config.corruptions for name in (every if given == ALL else [given])))
    for name in types:
        if found is None:
            CORRUPTIONS[name]
        elif name not in found.types:
            raise LoricaError(f"{found.folder} holds no {name!r}", f"It holds {', '.join(found.types)}.")
    source, measure = _generated(subject, config) if found is None else _official(found, subject, config)
    identity = {"model": subject.about["sha256"], "source": source, "precision": config.precision}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Corruptions(
        "lorica" if found is None else "official", types, measure, config.folder / FOLDER / digest[:16], config.level
    )


Measured = tuple[dict[str, Any], Callable[[Counted, str, int], Tensor]]


def _generated(subject: Subject, config: EvaluateConfig) -> Measured:
    pixels = subject.pictures.pixels
    corrupt(as_floats(pixels[:0]), next(iter(CORRUPTIONS)), 1)  # refuses pictures that are too small

    def measure(model: Counted, name: str, severity: int) -> Tensor:
        said = []
        for rows in torch.arange(len(pixels)).split(config.batch_size):
            bad = corrupt(as_floats(pixels[rows], model.device), name, severity, ids=rows, seed=config.seed)
            said.append(model(bad).argmax(dim=1).cpu())
        return torch.cat(said) == subject.labels

    return {"pictures": subject.data["sha256"], "seed": config.seed}, measure


def _official(found: Official, subject: Subject, config: EvaluateConfig) -> Measured:
    """The order of the files may not be that of our pictures: labels are theirs."""
    outputs = _official_outputs(found, subject)
    size = tuple(found.load(found.types[0], 1, [0])[0].shape[-2:])
    if size != subject.model.architecture.size:
        raise LoricaError(
            f"the pictures in {found.folder} are {size}, the model takes {subject.model.architecture.size}",
            "Give the model whose pictures these are, or leave --corruptions-folder out to generate corruptions.",
        )
    if not found.classes and int(found.load(found.types[0], 1)[1].max()) >= len(outputs):
        raise LoricaError(f"{found.folder} has more classes than the data", "Is it of this data set?")
    count = found.count(found.types[0], 1)
    order = np.random.default_rng(stable_seed(config.seed, "official pictures")).permutation(count)
    rows = np.sort(order[: config.pictures])
    step = _AT_ONCE * config.batch_size

    def measure(model: Counted, name: str, severity: int) -> Tensor:
        right = []
        for start in range(0, len(rows), step):
            pixels, own = found.load(name, severity, rows[start : start + step])
            right.append(predict(model, pixels, batch_size=config.batch_size).argmax(dim=1) == outputs[own])
        return torch.cat(right)

    return {"folder": str(found.folder.resolve()), "rows": rows.tolist()}, measure


def _official_outputs(found: Official, subject: Subject) -> Tensor:
    """(classes of the files,) int64, the model's output for each: by name, or in the order of the data's classes."""
    place = {name: index for index, name in enumerate(subject.model.classes)}
    if found.classes and all(name in place for name in found.classes):
        return torch.tensor([place[name] for name in found.classes])
    if found.classes and len(found.classes) != len(subject.outputs):
        raise LoricaError(
            f"{found.folder} has {len(found.classes)} classes that the model does not name, the data has "
            f"{len(subject.outputs)}",
            "Is it of this data set?",
        )
    return subject.outputs


def _table(right: Mapping[str, Sequence[Tensor]], level: float) -> dict[str, Any]:
    cells = {name: [rate(cell, level) for cell in row] for name, row in right.items()}
    shares = torch.stack([torch.stack(list(row)) for row in right.values()]).double().mean(dim=(0, 1))
    mean, n = float(shares.mean()), len(shares)
    spread = float(norm.ppf((1 + level) / 2)) * float(shares.std()) / n**0.5 if n > 1 else 1.0
    return {
        "n": n,
        "types": {
            name: {
                "severities": {str(s): cell for s, cell in zip(SEVERITIES, row, strict=True)},
                "mean": sum(cell["value"] for cell in row) / len(row),
            }
            for name, row in cells.items()
        },
        "severities": {
            str(s): sum(row[i]["value"] for row in cells.values()) / len(cells) for i, s in enumerate(SEVERITIES)
        },
        "mean": {
            "value": mean, "low": max(0.0, mean - spread), "high": min(1.0, mean + spread), "n": n, "level": level,
        },
    }  # fmt: skip
