"""Robustness: attacks on classifiers, common corruptions, and evaluations that can be trusted."""
