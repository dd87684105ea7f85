"""The configuration of `lorica report`."""

from pathlib import Path

from pydantic import Field

from lorica.config import Config


class ReportConfig(Config):
    """Put audits, robustness evaluations or pre-training runs on one self-contained HTML page."""

    results: list[Path] = Field(
        description="folders written by `lorica audit`; or by `lorica evaluate` or `lorica finetune`", min_length=1
    )
    output: Path = Field(Path("report.html"), description="the HTML file")
    title: str | None = Field(None, description="shown at the top; what was measured by default")
