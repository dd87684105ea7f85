"""One self-contained HTML page per result, from the same JSON that the command line writes."""

from lorica.report.page import build
from lorica.report.run import ReportRun, load_run

__all__ = ["ReportRun", "build", "load_run"]
