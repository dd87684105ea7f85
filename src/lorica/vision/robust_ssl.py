"""Checkpoints of robust self-supervised pre-training in the layout of the public repositories, as one plain network.

VITA-Group/Adversarial-Contrastive-Learning (ACL, arXiv 2010.13337), PKU-ML/DYNACL (2303.01289), and
Enhancing_ACL_via_AIR (2305.00374) and RobustSSL_Benchmark of GodXuxilie name things alike: two batch norms in the
place of each (`bn1.bn_list.0.weight` for natural pictures, `bn1.bn_list.1.weight` for adversarial ones), the
normalisation of pixels inside (`normalize.mean`), a projection head for a classifier (`fc.fc1.weight`), and in
DynACL's training state two encoders, of which the average over training (`encoder_k.`) is the one to use.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lorica.errors import LoricaError
from lorica.vision.weights import without_prefixes

Route = Literal["adversarial", "natural"]

_NORM = re.compile(r"(.+)\.bn_list(?:\.([01]))?\.([^.]+)")  # without a number where there is one route
# A head of several layers: a single one, `fc.weight`, is a classifier.
_PROJECTION = re.compile(r"(fc|linear|projector|proj_head|projection_head|predictor)\.[^.]+\..+")
_STATISTICS = {"normalize.mean": "mean", "normalize.std": "std"}
_AVERAGE, _TRAINED = "encoder_k.", "encoder_q."


@dataclass(frozen=True)
class Unpacked:
    """A checkpoint with one batch norm in each place and no projection head.

    Attributes:
        weights: the state dict of the network.
        natural_norms: the tensors of the batch norms for natural pictures, by the same names, where `weights` has
            those for adversarial ones; None where there is one set.
        normalisation: "mean" and "std" of the three channels of pixels in [0, 1], if the checkpoint states them.
        notes: what was left out.
    """

    weights: dict[str, Tensor]
    natural_norms: dict[str, Tensor] | None
    normalisation: dict[str, tuple[float, ...]]
    notes: list[str]


def unpack(weights: Mapping[str, Tensor], *, own: Collection[str], what: str) -> Unpacked:
    """Bring a state dict of these repositories into the form of a plain network; any other is left as it is.

    Args:
        weights: a state dict without prefixes.
        own: names of the network's tensors, none of which is taken for a part of a projection head.
        what: the file is called, for error messages.

    Raises:
        LoricaError: a tensor is there twice, or the normalisation is none of three channels.
    """
    notes: list[str] = []
    weights = _of_one_encoder(weights, notes)
    weights = without_prefixes(_without_projection(weights, own, notes))
    normalisation = _normalisation(weights, what)
    if normalisation:
        weights = {key: value for key, value in weights.items() if key not in _STATISTICS}
    shared, natural, adversarial = _by_route(weights, what)
    if natural and adversarial:
        notes.append("the checkpoint has two sets of batch norms, for natural and for adversarial pictures")
        return Unpacked(shared | adversarial, natural, normalisation, notes)
    return Unpacked(shared | natural | adversarial, None, normalisation, notes)


def _of_one_encoder(weights: Mapping[str, Tensor], notes: list[str]) -> Mapping[str, Tensor]:
    average = {key.removeprefix(_AVERAGE): value for key, value in weights.items() if key.startswith(_AVERAGE)}
    if not average or not all(key.startswith((_AVERAGE, _TRAINED)) for key in weights):
        return weights
    if len(average) < len(weights):
        notes.append("of the checkpoint's two encoders the average over training (encoder_k) is used")
    return average


def _without_projection(weights: Mapping[str, Tensor], own: Collection[str], notes: list[str]) -> Mapping[str, Tensor]:
    found = {key: match[1] for key in weights if key not in own and (match := _PROJECTION.fullmatch(key))}
    for name in dict.fromkeys(found.values()):
        notes.append(f"the projection head ({name}, {list(found.values()).count(name)} tensors) was left out")
    return {key: value for key, value in weights.items() if key not in found}


def _normalisation(weights: Mapping[str, Tensor], what: str) -> dict[str, tuple[float, ...]]:
    if not all(key in weights for key in _STATISTICS):
        return {}
    stated = {name: tuple(weights[key].double().flatten().tolist()) for key, name in _STATISTICS.items()}
    sound = all(len(values) == 3 and all(abs(x) < float("inf") for x in values) for values in stated.values())
    if not sound or min(stated["std"]) <= 0:
        raise LoricaError(
            f"checkpoint {what} normalises pixels by a mean and std that are not those of three channels",
            "Remove normalize.mean and normalize.std from it, and give --model-mean and --model-std.",
        )
    return stated


def _by_route(
    weights: Mapping[str, Tensor], what: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What the routes share, and the batch norms of each, natural and adversarial, as if they were the only ones."""
    of: dict[str | None, dict[str, Tensor]] = {None: {}, "0": {}, "1": {}}
    twice = set()
    for key, value in weights.items():
        match = _NORM.fullmatch(key)
        name, route = (key, None) if match is None else (f"{match[1]}.{match[3]}", match[2])
        if name in of[route]:
            twice.add(name)
        of[route][name] = value
    if twice := twice | (of[None].keys() & (of["0"].keys() | of["1"].keys())):
        raise LoricaError(
            f"checkpoint {what} holds {min(twice)} twice, with and without bn_list or its number", "Save one of them."
        )
    return of[None], of["0"], of["1"]
