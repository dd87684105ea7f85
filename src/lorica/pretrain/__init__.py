"""Robust pre-training: an encoder learned from pictures without labels by adversarial contrastive learning.

`losses.py` has the objectives, `methods/` decide what an epoch stresses, `views.py` draws the random views,
`trainer.py` takes the steps, `runner.py` is `lorica pretrain`, and `probes.py` watch the encoder by labelled pictures.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorica.errors import Diverged
    from lorica.pretrain.config import PretrainConfig
    from lorica.pretrain.losses import adversarial_invariance, nt_xent, standard_invariance
    from lorica.pretrain.runner import run

__all__ = ["Diverged", "PretrainConfig", "adversarial_invariance", "nt_xent", "run", "standard_invariance"]

_HOMES = {
    "Diverged": "lorica.errors", "PretrainConfig": "lorica.pretrain.config",
    "adversarial_invariance": "lorica.pretrain.losses", "nt_xent": "lorica.pretrain.losses",
    "run": "lorica.pretrain.runner", "standard_invariance": "lorica.pretrain.losses",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imported on first use: whoever only wants the losses does not wait for models."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
