"""Robust fine-tuning of pre-trained classifiers: AutoLoRa (arXiv 2310.01818), TWINS, TRADES, adversarial training."""

from lorica.errors import Diverged
from lorica.finetune.branch import LoraBranch
from lorica.finetune.config import AttackConfig, FinetuneConfig
from lorica.finetune.methods import METHODS, Method
from lorica.finetune.run import run
from lorica.finetune.schedule import RobustAccuracyLR, StepLR, loss_weights
from lorica.finetune.similarity import gradient_similarity

__all__ = [
    "METHODS", "AttackConfig", "Diverged", "FinetuneConfig", "LoraBranch", "Method", "RobustAccuracyLR", "StepLR",
    "gradient_similarity", "loss_weights", "run",
]  # fmt: skip
