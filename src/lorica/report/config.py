"""The configuration of `lorica report`."""

from pathlib import Path

from pydantic import Field

from lorica.config import Config


class ReportConfig(Config):
    """Put one or several audits on one self-contained HTML page."""

    audits: list[Path] = Field(description="folders written by `lorica audit`", min_length=1)
    output: Path = Field(Path("report.html"), description="the HTML file")
    title: str = Field("Membership audit", description="shown at the top")
