"""Adaptation objectives: what one step on the LoRA minimises. One file each, found by name in `OBJECTIVES`."""

from lorica.adapt.objectives.base import OBJECTIVES, Objective
from lorica.adapt.objectives.lora import LoraObjective
from lorica.adapt.objectives.mp_lora import MpLoraObjective, mp_loss
from lorica.adapt.objectives.smp_lora import SmpLoraObjective, smp_loss

__all__ = ["OBJECTIVES", "LoraObjective", "MpLoraObjective", "Objective", "SmpLoraObjective", "mp_loss", "smp_loss"]
