"""Robust fine-tuning methods: what one step minimises. One file each, found by name in `METHODS`."""

from lorica.finetune.methods.at import AdversarialTraining
from lorica.finetune.methods.autolora import AutoLora
from lorica.finetune.methods.base import METHODS, Method, kl
from lorica.finetune.methods.distill import Distill
from lorica.finetune.methods.linear import Linear
from lorica.finetune.methods.standard import Standard
from lorica.finetune.methods.twins import Twins
from lorica.finetune.methods.vanilla import Vanilla

__all__ = [
    "METHODS", "AdversarialTraining", "AutoLora", "Distill", "Linear", "Method", "Standard", "Twins", "Vanilla", "kl",
]  # fmt: skip
