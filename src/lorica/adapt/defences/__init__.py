"""Defences: what a run does against leaking beside its objective. One file each, found by name in `DEFENCES`."""

from lorica.adapt.defences.augment import Augment
from lorica.adapt.defences.base import DEFENCES, Defence, chosen, explained
from lorica.adapt.defences.caption_dropout import CaptionDropout
from lorica.adapt.defences.dp_lora import DpLora
from lorica.adapt.defences.early_stopping import EarlyStopping
from lorica.adapt.defences.skip_low_loss import SkipLowLoss

__all__ = [
    "DEFENCES", "Augment", "CaptionDropout", "Defence", "DpLora", "EarlyStopping", "SkipLowLoss", "chosen",
    "explained",
]  # fmt: skip
