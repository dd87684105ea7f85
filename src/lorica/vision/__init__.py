"""Classifiers, the ground floor: timm backbones with their normalisation inside, and where their weights come from."""

from lorica.vision.classifier import Architecture, Classifier, require_logits, returns_probabilities
from lorica.vision.loading import ModelConfig, load_classifier
from lorica.vision.weights import read_weights

__all__ = [
    "Architecture", "Classifier", "ModelConfig", "load_classifier", "read_weights", "require_logits",
    "returns_probabilities",
]  # fmt: skip
