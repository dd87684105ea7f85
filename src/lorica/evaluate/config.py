"""The configuration of `lorica evaluate`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lorica.artefacts import EVALUATION
from lorica.config import Config
from lorica.errors import LoricaError
from lorica.evaluate.protocol_config import ProtocolConfig
from lorica.robustness.autoattack import Tier
from lorica.robustness.threat import Norm, Threat, parse_eps
from lorica.vision import ModelConfig

CUSTOMARY = {"linf": 8 / 255, "l2": 0.5}
"""Radii that CIFAR-10 models are compared at."""

ALL = "all"

ENCODER, PROTOCOLS = "encoder", "protocols"
"""Folders in that of a pre-training run: what it made, and how that fared."""


class EvaluateConfig(Config):
    """Measure how often a classifier is right about natural, attacked and corrupted pictures."""

    model: ModelConfig = ModelConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    data: Path = Field(
        description="folder with a folder of pictures per class (or train/, val/, test/ with these in each), a CSV or "
        "Parquet file with path,label[,split], or CIFAR's binary files"
    )
    output: Path | None = Field(
        None,
        description="folder for robustness.json, adversarial pictures and examples; RUN/evaluation for the model of a "
        "run, else runs/evaluation. With --protocol, for their runs: RUN/protocols, else runs/protocols",
    )
    split: Path | None = Field(
        None, description="split.json of the run that trained the model; by default the one of MODEL's run, if it fits"
    )
    part: str | None = Field(None, description="part of the data: test by default, and all where there are no parts")
    pictures: int | None = Field(
        None,
        ge=1,
        description="only so many, drawn evenly from the classes: where these differ in size, accuracies and their "
        "intervals are then of a set in which every class counts the same; default: all",
    )

    eps: list[float] | None = Field(
        None,
        description="radii of the attacks on pixels in [0, 1], e.g. 4/255,8/255; 8/255 by default, 0.5 for l2",
    )
    norm: Norm = Field("linf", description="linf or l2")
    tier: Tier = Field(
        "standard",
        description="standard: AutoAttack; lite (APGD-CE and APGD-T, a fifth of the cost) and quick (APGD-CE) only "
        "bound from above what it leaves",
    )
    pgd_steps: int = Field(20, ge=0, description="of plain PGD, run beside AutoAttack to be compared with; 0: none")
    pgd_restarts: int = Field(1, ge=1, description="of plain PGD")
    pgd_step_size: Annotated[float, BeforeValidator(parse_eps)] | None = Field(
        None, gt=0, description="of plain PGD; eps/4 by default (2/255 at 8/255)"
    )

    corruptions: list[str] = Field([], description="also measure under common corruptions: all, or names")
    corruptions_folder: Path | None = Field(
        None, description="folder of official files (CIFAR-10-C, CIFAR-100-C, ImageNet-C); else they are generated"
    )
    members: str | None = Field(
        None,
        description="part that the model was trained on (train): also measure how well its pictures are told from the "
        "evaluated ones by the model's answers",
    )
    shadows: int = Field(
        0,
        ge=0,
        multiple_of=2,
        description="with --members: repeat the model's training so many times on random halves of members and "
        "evaluated pictures, class by class, each picture in half of them, for the attacks lira and rmia; 4 or more "
        "tell something",
    )
    membership_pictures: int = Field(500, ge=2, description="of each side at most")

    examples: int = Field(8, ge=0, description="adversarial pictures to save for people to look at. Private!")
    level: float = Field(0.95, gt=0, lt=1, description="confidence level of all intervals")
    seed: int = Field(0, ge=0, description="of the attacks, the chosen pictures and generated corruptions")
    batch_size: int = Field(250, ge=1, description="pictures at a time; the attacks' random numbers depend on it")
    device: str | None = Field(None, description="cpu or cuda; picks cuda where there is one")
    precision: Literal["fp32", "tf32"] = Field(
        "fp32", description="tf32: faster attacks on recent GPUs, checked in fp32"
    )
    cache: Path | None = Field(None, description="folder for decoded pictures; OUTPUT/cache by default. Private!")
    resume: bool = Field(
        False, description="go on with the protocols in OUTPUT; a plain evaluation always goes on from what it finds"
    )
    overwrite: bool = Field(False, description="replace the evaluation of another model, or the protocols, in OUTPUT")

    @field_validator("eps", mode="before")
    @classmethod
    def _radii(cls, given: Any) -> Any:
        if given is None:
            return None
        values = given if isinstance(given, list | tuple) else [given]
        separate = [part for value in values for part in (value.split(",") if isinstance(value, str) else [value])]
        if not separate:
            raise ValueError("give at least one radius, such as 8/255")
        return sorted({parse_eps(value) for value in separate})

    @field_validator("corruptions", mode="before")
    @classmethod
    def _types(cls, given: Any) -> Any:
        if isinstance(given, bool):
            return [ALL] if given else []
        values = [given] if isinstance(given, str) else given
        if not isinstance(values, list | tuple):
            return values
        names = [name.strip() for value in values for name in str(value).split(",")]
        return list(dict.fromkeys(names))

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _ = self.threats
        if self.corruptions_folder is not None and not self.corruptions:
            raise LoricaError("--corruptions-folder without --corruptions", "Add --corruptions all.")
        if self.shadows and self.members is None:
            raise LoricaError("--shadows without --members", "Add --members train.")
        return self

    @property
    def threats(self) -> list[Threat]:
        """What is allowed to the attacker, weakest first."""
        return [Threat(eps, self.norm) for eps in self.eps or [CUSTOMARY[self.norm]]]

    @property
    def folder(self) -> Path:
        """Where results go."""
        if self.output is not None:
            return self.output
        run = Path(self.model.name)
        if not run.is_dir():
            run = Path("runs")
        elif self.protocol.names and run.name == ENCODER:
            run = run.parent
        return run / (PROTOCOLS if self.protocol.names else EVALUATION)
