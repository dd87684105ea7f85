"""The report on robustness: from robustness.json, and the record and log of the training, to one HTML page."""

from lorica.report.robustness.page import build_robustness
from lorica.report.robustness.run import RobustnessRun, load_robustness

__all__ = ["RobustnessRun", "build_robustness", "load_robustness"]
