"""How encoders are compared: the fine-tuning protocols of robust self-supervision as data, and which of them to run.

One recipe per protocol serves every encoder (Xu et al., NeurIPS 2023, arXiv 2305.00374: SLF, ALF and AFF). The
authors' code tunes rates and epochs by method and data set instead; those settings are presets, to be asked for by
name. Its carrying of one protocol's epochs into the next is not repeated: each protocol has its own.
"""

import copy
import difflib
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lorica.config import Config
from lorica.errors import LoricaError

Recipe = dict[str, Any]
"""Fields of FinetuneConfig with their values."""

TITLES = {
    "slf": "standard linear fine-tuning",
    "alf": "adversarial linear fine-tuning",
    "aff": "adversarial full fine-tuning",
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


class ProtocolConfig(Config):
    """Which protocols an encoder goes through, and what is changed in their recipes."""

    names: list[Literal["slf", "alf", "aff"]] = Field(
        [],
        description="fine-tune MODEL, an encoder, on labelled pictures and evaluate the result: slf (linear head on "
        "natural pictures), alf (linear head on adversarial ones), aff (all weights, by TRADES)",
        json_schema_extra={"flag": "--protocol"},
    )
    preset: str | None = Field(
        None,
        description="the authors' tuning of the recipes, METHOD-DATA such as acl-air-cifar10; by default one recipe "
        "serves all encoders, which is what a comparison needs",
    )
    finetune: Literal["trades", "autolora"] = Field(
        "trades", description="of aff. autolora: AutoLoRa, which needs no recipe"
    )
    labels: float = Field(
        1.0, gt=0, le=1, description="share of each class's training pictures whose labels are used, e.g. 0.01"
    )
    epochs: int | None = Field(
        None, ge=1, description="instead of the recipe's 25 (60 of autolora); its milestones move along"
    )
    val_share: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="of the training pictures, instead of the recipe's 0.02 (only watched) and autolora's 0.05",
    )

    @field_validator("names", mode="before")
    @classmethod
    def _separate(cls, given: Any) -> Any:
        values = given if isinstance(given, list | tuple) else [given]
        return list(dict.fromkeys(name.strip().lower() for value in values for name in str(value).split(",")))

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.names:
            changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
            if changed:
                raise LoricaError(
                    f"--protocol-{changed[0].replace('_', '-')} without --protocol",
                    "Say which: --protocol slf,alf,aff.",
                )
        if self.preset is not None and self.preset not in PRESETS:
            near = difflib.get_close_matches(self.preset, PRESETS, n=1)
            raise LoricaError(
                f"unknown preset {self.preset!r}" + (f": did you mean {near[0]!r}?" if near else ""),
                "What each changes in the recipes:\n" + "\n".join(f"{name}: {changes(name)}" for name in PRESETS),
            )
        if self.finetune == "autolora" and "aff" in PRESETS.get(self.preset or "", {}):
            raise LoricaError(
                f"preset {self.preset} changes the recipe of aff, which autolora does without",
                "Leave out --protocol-preset or --protocol-finetune.",
            )
        return self

    def recipe(self, name: str) -> Recipe:
        """The fields of FinetuneConfig that a protocol sets; a new mapping each time, shared with no other run.

        Args:
            name: of the protocol.
        """
        if name == "aff" and self.finetune == "autolora":
            recipe = copy.deepcopy(AUTOLORA)
        else:
            recipe = copy.deepcopy(RECIPES[name] | PRESETS.get(self.preset or "", {}).get(name, {}))
        if self.epochs is not None:
            recipe = shortened(recipe, self.epochs)
        if self.val_share is not None:
            recipe["val_share"] = self.val_share
        return recipe | {"labels": self.labels}
