"""The report on robust pre-training: from run.json, metrics.jsonl and views.png to one HTML page."""

from lorica.report.pretraining.page import build_pretraining
from lorica.report.pretraining.run import PretrainingRun, load_pretraining

__all__ = ["PretrainingRun", "build_pretraining", "load_pretraining"]
