"""Stage 1: the model's answers about every picture, kept on disk. The only part of an audit that runs a model.

Features lie under `FOLDER/<kind>-<key>/`, where the key is a hash over base model, LoRA, measurement and seed, in
small files that each appear whole or not at all. A killed run goes on where it stopped; a second one asks nothing
again; a picture with another caption is another picture.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorica.artefacts import write_json, write_with
from lorica.audit.attacks.base import Attack, Features
from lorica.data import Picture
from lorica.progress import bar

if TYPE_CHECKING:
    from lorica.diffusion import Encoded, LatentDiffusion

BASE = "base"


def row_key(picture: Picture) -> str:
    """Names a captioned picture by content, hexadecimal."""
    return hashlib.sha256(f"{picture.sha256}\x1f{picture.caption}".encode()).hexdigest()


@dataclass(frozen=True)
class Subject:
    """A model in one state, the base alone or with the LoRA on, and the pictures as that state sees them.

    Attributes:
        model: the model.
        state: `BASE`, or the LoRA file's SHA-256.
        encoded: the pictures; a LoRA on the text encoder changes how captions are encoded.
        keys: `row_key` of each picture.
        entered: context in which the model is in this state.
    """

    model: "LatentDiffusion"
    state: str
    encoded: "Encoded"
    keys: tuple[str, ...]
    entered: Callable[[], AbstractContextManager[Any]] = nullcontext


def extract(attack: Attack, subject: Subject, *, folder: Path, seed: int, batch_size: int) -> Features:
    """Features of every picture, in the subject's order, from disk where they are there already.

    Args:
        attack: what to measure; attacks with the same `measurement` share it.
        subject: model and pictures.
        folder: holds the features of any number of models and measurements.
        seed: of the noise.
        batch_size: pictures per UNet call and per file; no result depends on it but by floating-point rounding.

    Raises:
        LoricaError: the folder cannot be written or the disk is full; what was measured before stays.
    """
    identity = {
        "base": subject.model.fingerprint,
        "state": subject.state,
        "measurement": attack.measurement,
        "seed": seed,
    }
    store = folder / f"{attack.measurement['kind']}-{_digest(json.dumps(identity, sort_keys=True))[:16]}"
    rows = _stored(store)
    # In the order of a hash, so that no batch is all members: nothing about a batch may coincide with membership.
    missing = sorted({key: i for i, key in enumerate(subject.keys) if key not in rows}.items())
    if missing:
        write_json(store / "identity.json", identity)
        label = f"{attack.measurement['kind']} of the {'base model' if subject.state == BASE else 'LoRA'}"
        with subject.entered(), bar() as progress:
            task = progress.add_task(label, total=len(missing))
            for start in range(0, len(missing), batch_size):
                chunk = missing[start : start + batch_size]
                keys = [key for key, _ in chunk]
                features = attack.extract(subject.model, subject.encoded.take([i for _, i in chunk]), seed)
                _store(store, keys, features)
                rows |= _by_row(keys, features)
                progress.update(task, advance=len(chunk))
    first = rows[subject.keys[0]]
    return {name: np.stack([rows[key][name] for key in subject.keys]) for name in first}


def _store(store: Path, keys: Sequence[str], features: Features) -> None:
    def save(path: Path) -> None:
        with path.open("wb") as file:  # given a path, numpy would append .npz to it
            np.savez(file, allow_pickle=False, keys=np.array(keys), **features)

    write_with(store / f"{_digest(*keys)[:16]}.npz", save)


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
