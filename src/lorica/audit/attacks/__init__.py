"""Membership attacks: one file each, found by name in `ATTACKS`."""

from lorica.audit.attacks.base import ATTACKS, Attack, Features, Groups, StatisticAttack, register
from lorica.audit.attacks.calibrated_loss import CalibratedLossAttack
from lorica.audit.attacks.loss import LossAttack
from lorica.audit.attacks.mc_loss import McLossAttack
from lorica.audit.attacks.nn_loss import NnLossAttack

__all__ = [
    "ATTACKS", "Attack", "CalibratedLossAttack", "Features", "Groups", "LossAttack", "McLossAttack", "NnLossAttack",
    "StatisticAttack", "register",
]  # fmt: skip
