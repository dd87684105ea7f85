"""The configuration of `lorica evaluate --protocol`: which recipes, and what is changed in them."""

import copy
import difflib
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lorica.config import Config
from lorica.errors import LoricaError
from lorica.finetune.recipes import AUTOLORA, PRESETS, RECIPES, TEACHER, Recipe, changes, shortened


class ProtocolConfig(Config):
    """Which protocols an encoder goes through, and what is changed in their recipes."""

    names: list[Literal["slf", "alf", "aff", "semi"]] = Field(
        [],
        description="fine-tune MODEL, an encoder, on labelled pictures and evaluate the result: slf (linear head on "
        "natural pictures), alf (linear head on adversarial ones), aff (all weights, by TRADES), semi (all weights by "
        "few labels and by a teacher that has learned from these)",
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
        None,
        ge=1,
        description="instead of the recipe's 25 (60 of autolora; 15 of semi, and 100 of its teacher); its "
        "milestones move along",
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
        if "semi" in self.names and self.labels == 1:
            raise LoricaError("protocol semi is for few labels", "Say how many: --protocol-labels 0.1.")
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
            return self._changed(AUTOLORA)
        return self._changed(RECIPES[name] | PRESETS.get(self.preset or "", {}).get(name, {}))

    def teacher(self) -> Recipe:
        """Likewise, of the teacher of `semi`."""
        return self._changed(TEACHER)

    def _changed(self, recipe: Recipe) -> Recipe:
        recipe = copy.deepcopy(recipe)
        if self.epochs is not None:
            recipe = shortened(recipe, self.epochs)
        if self.val_share is not None:
            recipe["val_share"] = self.val_share
        return recipe | {"labels": self.labels}
