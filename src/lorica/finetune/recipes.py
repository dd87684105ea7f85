"""How encoders are compared: the fine-tuning protocols of robust self-supervision as data, and which of them to run.

One recipe per protocol serves every encoder (Xu et al., NeurIPS 2023, arXiv 2305.00374: SLF, ALF and AFF). The
authors' code tunes rates and epochs by method and data set instead; those settings are presets, to be asked for by
name. Its carrying of one protocol's epochs into the next is not repeated: each protocol has its own.
"""

import copy
from typing import Any

Recipe = dict[str, Any]
"""Fields of FinetuneConfig with their values."""

TITLES = {
    "slf": "standard linear fine-tuning",
    "alf": "adversarial linear fine-tuning",
    "aff": "adversarial full fine-tuning",
    "semi": "semi-supervised adversarial full fine-tuning",
}

_ATTACK: Recipe = {
    "kind": "pgd", "norm": "linf", "eps": 8 / 255, "steps": 10, "step_size": 2 / 255, "start": "uniform"
}  # fmt: skip
_COMMON: Recipe = {
    "epochs": 25,
    "schedule": "step",
    "momentum": 0.9,
    "weight_decay": 2e-4,
    "ema": 0.0,
    "head": "zeros",
    "select": "last",
    "augment": True,
    "val_share": 0.02,  # is only watched: the authors hold nothing out
    "attack": _ATTACK,
}
_LINEAR = _COMMON | {"method": "linear", "batch_size": 512, "learning_rate": 0.01, "milestones": [10, 20]}

RECIPES: dict[str, Recipe] = {
    "slf": _LINEAR | {"options": {"adversarial": False}},
    "alf": _LINEAR | {"options": {"adversarial": True}},
    "aff": _COMMON
    | {
        "method": "vanilla",
        "options": {"beta": 6.0, "attack_loss": "kl", "batch_norm": "dual"},
        "batch_size": 128,
        "learning_rate": 0.1,
        "milestones": [15, 20],
        "attack": _ATTACK | {"start": "gaussian"},
    },
}
_FULL = _COMMON | {"batch_size": 128, "learning_rate": 0.1}
TEACHER: Recipe = _FULL | {"method": "standard", "epochs": 100, "milestones": [40, 60]}
"""Of the teacher in `semi`: natural pictures along the natural batch norms, on the few labels there are."""
RECIPES["semi"] = _FULL | {
    "method": "distill",
    "options": {"alpha": 0.5, "beta": 6.0},
    "epochs": 15,
    "milestones": [5, 10],
}
"""ACL's for few labels (Jiang et al., NeurIPS 2020, arXiv 2010.13337, and its code)."""
PLUS_PLUS: dict[str, Recipe] = {
    "probe": _LINEAR
    | {"epochs": 10, "learning_rate": 0.01, "milestones": [], "weight_decay": 1e-4, "options": {"adversarial": False}},
    "all": _COMMON
    | {
        "method": "vanilla",
        "options": {"beta": 6.0, "attack_loss": "kl"},
        "batch_size": 512,
        "learning_rate": 0.1,
        "milestones": [10, 20],
        "weight_decay": 1e-4,
        "head": "random",  # which keeps the one that was learned
        "attack": _ATTACK | {"start": "gaussian"},
    },
}
"""DynACL++ on pseudo-labels: a linear probe, then all weights, along one set of batch norms (arXiv 2303.01289, section
4.3, and its code)."""
AUTOLORA: Recipe = {"method": "autolora"}
"""Of AFF with `finetune=autolora`, which sets its rate and loss weights itself: all else is its own default."""


def _linear(learning_rate: float) -> dict[str, Recipe]:
    return {"slf": {"learning_rate": learning_rate}, "alf": {"learning_rate": learning_rate}}


_LONG: dict[str, Recipe] = {"aff": {"epochs": 100, "milestones": [40, 60]}}
_SMALL_BATCH: dict[str, Recipe] = {"slf": {"batch_size": 128}}
_EARLY_STOP: Recipe = {"milestones": []}

PRESETS: dict[str, dict[str, Recipe]] = {
    "acl-cifar10": _LONG,
    "acl-cifar100": _linear(0.05) | _LONG,
    "acl-stl10-96": _linear(0.1) | _LONG,
    "acl-stl10-32": _SMALL_BATCH | _LONG,
    "dynacl-cifar10": {},
    "dynacl-cifar100": _linear(0.05),
    "dynacl-stl10-96": _linear(0.1) | {"aff": {"milestones": [10, 20]}},
    "dynacl-stl10-32": _SMALL_BATCH,
    "dynacl++-cifar10": {},
    "dynacl++-cifar100": _linear(0.05),
    "dynacl++-stl10-96": _linear(0.1),
    "dynacl++-stl10-32": _SMALL_BATCH,
    "acl-air-cifar10": {"slf": {"learning_rate": 0.005}} | _LONG,
    "acl-air-cifar100": _linear(0.1) | _LONG,
    "acl-air-stl10-96": _LONG,
    "acl-air-stl10-32": _SMALL_BATCH | _LONG,
    "dynacl-air-cifar10": {"slf": {"epochs": 5} | _EARLY_STOP},
    "dynacl-air-cifar100": _linear(0.1),
    "dynacl-air-stl10-96": {"slf": {"learning_rate": 0.1}, "alf": {"learning_rate": 0.1, "batch_size": 128}},
    "dynacl-air-stl10-32": _SMALL_BATCH,
    "dynacl-air++-cifar10": {"alf": {"epochs": 4} | _EARLY_STOP},
    "dynacl-air++-cifar100": _linear(0.1),
    "dynacl-air++-stl10-96": _linear(0.1),
    "dynacl-air++-stl10-32": {"slf": {"learning_rate": 0.1, "batch_size": 128}, "alf": {"learning_rate": 0.1}},
}
"""What the authors' code changes in a protocol's recipe, by METHOD-DATA; STL-10 at 96 pixels or resized to 32."""


def changes(preset: str) -> str:
    """What a preset changes in words: "slf: learning rate 0.005; aff: epochs 100, milestones [40, 60]"."""
    said = []
    for name, changed in PRESETS[preset].items():
        values = ", ".join(f"{key} {value}" for key, value in changed.items())
        said.append(f"{name}: {values}".replace("_", " "))
    return "; ".join(said) or "nothing"


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """A copy with another number of epochs; its milestones move along."""
    changed = copy.deepcopy(recipe) | {"epochs": epochs}
    if "milestones" in recipe:
        moved = {round(milestone * epochs / recipe["epochs"]) for milestone in recipe["milestones"]}
        changed["milestones"] = sorted(milestone for milestone in moved if 0 < milestone < epochs)
    return changed
