"""Stage 1: the model's answers about every picture, kept on disk. The only part of an audit that runs a model.

Features lie under `FOLDER/<kind>-<key>/`, where the key is a hash over base model, LoRA, measurement and seed, in
small files that each appear whole or not at all. A killed run goes on where it stopped; a second one asks nothing
again; a picture with another caption is another picture.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorica.artefacts import write_json, write_with
from lorica.audit.attacks.base import Attack, Features
from lorica.audit.queries import Sitting, answer
from lorica.data import Picture, pixels
from lorica.diffusion import Encoded
from lorica.progress import bar

if TYPE_CHECKING:
    from lorica.diffusion import LatentDiffusion

BASE = "base"


def row_key(picture: Picture) -> str:
    """Names a captioned picture by content, hexadecimal."""
    return hashlib.sha256(f"{picture.sha256}\x1f{picture.caption}".encode()).hexdigest()


Opened = tuple["LatentDiffusion", Encoded]
"""A model in some state, and the pictures as that state sees them."""


@dataclass(frozen=True)
class Subject:
    """A model in one state, the base alone or with a LoRA on, and the pictures that it is asked about.

    Attributes:
        fingerprint: of the base model.
        state: `BASE`, or the LoRA file's SHA-256.
        pictures: as files.
        enter: given the pictures, a context in which the model is in this state, that yields `Opened`: a LoRA on the
            text encoder changes how captions are encoded. Not called where every answer is known.
        name: for the progress bar.
    """

    fingerprint: str
    state: str
    pictures: tuple[Picture, ...]
    enter: Callable[[Sequence[Picture]], AbstractContextManager[Opened]]
    name: str = "the LoRA"

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """`row_key` of each picture."""
        return tuple(map(row_key, self.pictures))


def _sitting(opened: Opened, pictures: Sequence[Picture], rows: Sequence[int], seed: int) -> Sitting:
    """Some of the pictures before the model."""
    model, encoded = opened
    chosen = [pictures[row] for row in rows]
    captions = tuple(picture.caption for picture in chosen)
    return Sitting(model, encoded.take(rows), seed, lambda: pixels(chosen, model.resolution), captions)


@torch.inference_mode()
def as_seen_by_lora(model: "LatentDiffusion", encoded: Encoded, pictures: Sequence[Picture]) -> Encoded:
    """A LoRA on the text encoder encodes captions its own way; these embeddings are not cached, they are cheap.

    One at a time: in batches, rounding would depend on the neighbours, who are of the same group.
    """
    if not any("lora_" in name for name, _ in model.text_encoder.named_parameters()):
        return encoded
    contexts = [model.encode_captions([picture.caption]).float().cpu() for picture in pictures]
    return Encoded(encoded.latents, torch.cat(contexts), encoded.ids)


def extract(
    attacks: Mapping[str, Attack], subject: Subject, *, folder: Path, seed: int, batch_size: int
) -> dict[str, Features]:
    """Features of every picture for every attack, in the subject's order, from disk where they are there already.

    All attacks question a batch together, so that what several of them want to know is asked once.

    Args:
        attacks: what to measure; attacks with the same `measurement` share it.
        subject: model and pictures.
        folder: holds the features of any number of models and measurements.
        seed: of the noise.
        batch_size: pictures per UNet call and per file; no result depends on it but by floating-point rounding.

    Raises:
        LoricaError: the folder cannot be written or the disk is full; what was measured before stays.
    """
    stores = {name: _Store.of(attack, subject, folder, seed) for name, attack in attacks.items()}
    different = {store.path: name for name, store in stores.items()}  # one attack for each measurement
    # In the order of a hash, so that no batch is all members: nothing about a batch may coincide with membership.
    place = {key: i for i, key in enumerate(subject.keys)}
    wanting: dict[tuple[str, ...], list[str]] = {}  # pictures by the attacks that have not seen them
    for key in sorted(place):
        wanting.setdefault(tuple(n for n in different.values() if key not in stores[n].rows), []).append(key)
    wanting.pop((), None)
    if wanting:
        with subject.enter(subject.pictures) as opened, bar() as progress:
            task = progress.add_task(f"questions to {subject.name}", total=sum(map(len, wanting.values())))
            for names, keys in wanting.items():
                for start in range(0, len(keys), batch_size):
                    chunk = keys[start : start + batch_size]
                    sitting = _sitting(opened, subject.pictures, [place[key] for key in chunk], seed)
                    for name, features in answer(sitting, {n: attacks[n].ask(sitting) for n in names}).items():
                        stores[name].add(chunk, features)
                    progress.update(task, advance=len(chunk))
    for store in stores.values():
        store.rows = stores[different[store.path]].rows
    return {name: store.features(subject.keys) for name, store in stores.items()}


@dataclass
class _Store:
    """The features of one measurement of one model, on disk in small files and in memory by picture."""

    path: Path
    identity: dict[str, Any]
    rows: dict[str, Features]

    @classmethod
    def of(cls, attack: Attack, subject: Subject, folder: Path, seed: int) -> "_Store":
        identity = {
            "base": subject.fingerprint,
            "state": subject.state,
            "measurement": attack.measurement,
            "seed": seed,
        }
        path = folder / f"{attack.measurement['kind']}-{_digest(json.dumps(identity, sort_keys=True))[:16]}"
        return cls(path, identity, _stored(path))

    def add(self, keys: Sequence[str], features: Features) -> None:
        def save(path: Path) -> None:
            with path.open("wb") as file:  # given a path, numpy would append .npz to it
                np.savez(file, allow_pickle=False, keys=np.array(keys), **features)

        write_json(self.path / "identity.json", self.identity)
        write_with(self.path / f"{_digest(*keys)[:16]}.npz", save)
        self.rows |= _by_row(keys, features)

    def features(self, keys: Sequence[str]) -> Features:
        return {name: np.stack([self.rows[key][name] for key in keys]) for name in self.rows[keys[0]]}


def _stored(store: Path) -> dict[str, Features]:
    rows: dict[str, Features] = {}
    for file in sorted(store.glob("*.npz")):
        try:
            with np.load(file, allow_pickle=False) as archive:
                features = dict(archive)
            rows |= _by_row(features.pop("keys").tolist(), features)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue  # damaged from outside: measured again
    return rows


def _by_row(keys: Sequence[str], features: Features) -> dict[str, Features]:
    return {key: {name: values[i] for name, values in features.items()} for i, key in enumerate(keys)}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
