"""Shadow LoRAs in an audit: found beside the run, asked what the audited LoRA is asked, stacked for `score`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorica.artefacts import SHADOWS
from lorica.audit.attacks.base import Attack, Features
from lorica.audit.config import AuditConfig
from lorica.audit.extract import extract
from lorica.audit.subjects import Models
from lorica.audit.target import find_run
from lorica.data import Split
from lorica.errors import LoricaError
from lorica.shadows import ForeignShadow, Shadow, find_shadows

_NONE = "there are no shadow LoRAs to compare with (lorica shadows RUN trains them)"


def shadows_of(config: AuditConfig, split: Split) -> tuple[list[Shadow], str]:
    """The shadows that an audit may use, in `config.shadows` or else beside the LoRA; and why there are none.

    Raises:
        LoricaError: no such folder, or no finished shadow in the folder that was asked for.
    """
    run = find_run(config.lora) if config.lora is not None else None
    folder = config.shadows or (run / SHADOWS if run is not None else None)
    if folder is None or (config.shadows is None and not folder.is_dir()):
        return [], _NONE
    part = config.lora.resolve().relative_to(run) if config.lora is not None and run is not None else Path()
    try:
        found = find_shadows(folder, split.members + split.nonmembers, run=run, part=part)
    except ForeignShadow as error:
        return [], error.problem
    if config.shadows is not None and not found:
        raise LoricaError(f"no finished shadow in {folder}", "Train them: lorica shadows RUN")
    return found, _NONE


def of_this_base(shadows: Sequence[Shadow], fingerprint: str) -> tuple[list[Shadow], str]:
    """The shadows, if all were trained on this base model; none of them, and why, if not."""
    foreign = [shadow.name for shadow in shadows if shadow.base != fingerprint]
    if foreign:
        return [], f"shadow {foreign[0]} was trained on another base model than the one that is audited"
    return list(shadows), _NONE


def shadow_features(
    config: AuditConfig, attacks: Mapping[str, Attack], models: Models, shadows: Sequence[Shadow], folder: Path
) -> dict[str, Features]:
    """What attacks learn from the shadows, by attack: `shadow_<name>` (N, S, ...) and `shadow_in` (N, S) bool.

    Args:
        config: of the audit.
        attacks: those that need shadows.
        models: the base model.
        shadows: S of them, of this base model.
        folder: of the features.
    """
    answers: dict[str, list[Features]] = {name: [] for name in attacks}
    for shadow in shadows if attacks else []:
        subject = models.shadow(shadow)
        found = extract(attacks, subject, folder=folder, seed=config.seed, batch_size=config.batch_size)
        for name in attacks:
            answers[name].append(found[name])
    inside = np.array([[p.sha256 in shadow.members for shadow in shadows] for p in models.pictures])
    return {name: _stacked(each) | {"shadow_in": inside} for name, each in answers.items()}


def _stacked(answers: list[Features]) -> dict[str, Any]:
    return {f"shadow_{key}": np.stack([answer[key] for answer in answers], axis=1) for key in answers[0]}
