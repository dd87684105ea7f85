"""Membership inference: can someone who holds the LoRA tell which pictures it was trained on?

An audit has two stages with files between them. **Extract** asks the model about every picture and keeps the answers
on disk (`extract.py`, the only slow part, resumable). **Score** works on those arrays alone: `attacks/` turn them into
one number per picture, `score.py` turns two arrays of numbers into AUC, ASR and TPR@FPR with intervals, `controls.py`
asks whether the audit itself can be trusted, `verdict.py` says it in words and `gate.py` decides for a release.

A new attack is one file in `attacks/`; `MembershipScores` also audits scores from anywhere else.
"""

from typing import TYPE_CHECKING, Any

from lorica.audit.score import MembershipScores

if TYPE_CHECKING:
    from lorica.audit.attacks import ATTACKS
    from lorica.audit.config import AuditConfig
    from lorica.audit.runner import run

__all__ = ["ATTACKS", "AuditConfig", "MembershipScores", "run"]

_HOMES = {"ATTACKS": "attacks", "AuditConfig": "config", "run": "runner"}


def __getattr__(name: str) -> Any:
    """Models are imported on first use: whoever only scores arrays does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
