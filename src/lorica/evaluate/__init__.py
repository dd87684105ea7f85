"""Robustness evaluation: how often is a classifier right when its pictures are natural, attacked or corrupted?

`subject.py` finds the model and the pictures, `attacks.py` attacks them at each radius (the slow part, kept batch by
batch and resumable), `corrupted.py` corrupts them, `membership.py` asks what the same model tells about its training
pictures, and `verdict.py` says it in words. What is computed lies in `lorica.robustness`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorica.evaluate.config import EvaluateConfig
    from lorica.evaluate.console import print_evaluation
    from lorica.evaluate.runner import run

__all__ = ["EvaluateConfig", "print_evaluation", "run"]

_HOMES = {"EvaluateConfig": "config", "print_evaluation": "console", "run": "runner"}


def __getattr__(name: str) -> Any:
    """Imported on first use: whoever only wants the configuration does not wait for models."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
