"""The configuration of `lorica shadows`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from lorica.config import Config


class ShadowsConfig(Config):
    """Train shadow LoRAs for the attacks that need them: a run's own recipe on random halves of its pictures."""

    run: Path = Field(description="folder of the adapt run; the shadows come into RUN/shadows")
    count: int = Field(
        16,
        ge=1,
        description="shadows in all; even, so that they come in pairs. May be raised later: what is there stays",
    )
    seed: int = Field(0, ge=0, description="of the halves and of what the shadows draw")
    engine: Literal["local", "ray"] = Field(
        "local", description="local: one after the other; ray: over the processes or machines of a Ray cluster"
    )
    data: Path | None = Field(None, description="where the run's pictures are now, if their folder was moved")
    nonmember_data: Path | None = Field(None, description="the same for its non-members, if they had their own folder")
    device: str | None = Field(None, description="cpu or cuda; the run's own by default")
