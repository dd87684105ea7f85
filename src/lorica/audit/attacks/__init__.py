"""Membership attacks: one file each, found by name in `ATTACKS`."""

from lorica.audit.attacks.adaptive_nn import AdaptiveNnAttack
from lorica.audit.attacks.base import ATTACKS, Attack, Features, Groups, StatisticAttack, register
from lorica.audit.attacks.calibrated_loss import CalibratedLossAttack
from lorica.audit.attacks.clid import ClidAttack, ClidVecAttack
from lorica.audit.attacks.gsa import GsaAttack
from lorica.audit.attacks.lira import LiraAttack
from lorica.audit.attacks.loss import LossAttack
from lorica.audit.attacks.mc_loss import McLossAttack
from lorica.audit.attacks.nn_loss import NnLossAttack
from lorica.audit.attacks.pfami import PfamiAttack
from lorica.audit.attacks.pia import PiaAttack, PianAttack
from lorica.audit.attacks.reconstruction import ReconstructionAttack
from lorica.audit.attacks.rmia import RmiaAttack
from lorica.audit.attacks.secmi import SecmiAttack
from lorica.audit.attacks.sima import SimaAttack

__all__ = [
    "ATTACKS", "AdaptiveNnAttack", "Attack", "CalibratedLossAttack", "ClidAttack", "ClidVecAttack", "Features",
    "Groups", "GsaAttack", "LiraAttack", "LossAttack", "McLossAttack", "NnLossAttack", "PfamiAttack", "PiaAttack",
    "PianAttack", "ReconstructionAttack", "RmiaAttack", "SecmiAttack", "SimaAttack", "StatisticAttack", "register",
]  # fmt: skip
