"""The configuration of `lorica pretrain`."""

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lorica.config import Config, load_options
from lorica.epochs import PRECISION, Precision
from lorica.errors import LoricaError
from lorica.pretrain.losses import Form
from lorica.pretrain.methods import METHODS
from lorica.robustness.config import PgdConfig
from lorica.vision import ModelConfig


class EncoderConfig(ModelConfig):
    """Which network, from random weights unless told otherwise."""

    name: str = Field(
        "cifar_resnet18",
        description="timm architecture (cifar_resnet18 and its family: for pictures of 32 pixels), hub id or folder",
        json_schema_extra={"flag": "--model"},
    )
    pretrained: bool = Field(False, description="begin at the architecture's published weights instead of random ones")


class AttackConfig(PgdConfig):
    """The attack that adversarial views come from: PGD on NT-Xent, in L-inf."""

    steps: int = Field(5, ge=1, description="of PGD (paper: 5)")


class PretrainConfig(Config):
    """Learn a robust image encoder from pictures without labels."""

    data: Path = Field(
        description="folder of pictures, in any folders and of any size, or CIFAR's binary files; of train, val and "
        "test folders only train is read"
    )
    output: Path = Field(Path("runs/pretrain"), description="folder for the encoder, its report, logs and checkpoints")
    model: EncoderConfig = EncoderConfig()
    method: str = Field("dynacl", description=f"what a step learns from: {', '.join(METHODS)}")
    options: dict[str, Any] = Field({}, description="of the method, e.g. --set options.flavour=original")
    invariance: Literal["none", "sir", "air", "both"] = Field(
        "both",
        description="regularisers: standard invariance (sir), adversarial invariance (air), both (paper), none (the "
        "default of scl, which then crafts no adversarial views)",
    )
    form: Form = Field(
        "paper",
        description="of the regularisers. paper: the KL of its definition; authors: what their code computes instead; "
        "anchored: each picture's own distribution over the batch (ours, after ReLIC)",
    )
    lambda1: float = Field(0.5, ge=0, description="weight of SIR (paper: 0.5)")
    lambda2: float = Field(0.5, ge=0, description="weight of AIR (paper: 0.5)")
    temperature: float = Field(0.5, gt=0, description="t of all similarities (paper: 0.5)")
    attack: AttackConfig = AttackConfig()
    projector_layers: Literal[2, 3] = Field(3, description="of the projector, which is dropped afterwards (paper: 3)")
    plus_plus: int | None = Field(
        None,
        ge=2,
        description="DynACL++: afterwards find so many clusters of features, and train on them as if they were labels",
    )
    plus_plus_epochs: int = Field(
        25, ge=1, description="of its fine-tuning of all weights (paper: 25); that of the head before has two fifths"
    )

    epochs: int = Field(200, ge=1, description="in all (paper: 1000)")
    batch_size: int | None = Field(
        None,
        ge=4,
        description="pictures per step, over all processes; 512 (paper) by default, or of fewer than 4096 pictures as "
        "many as make 8 steps in an epoch",
    )
    learning_rate: float = Field(5.0, gt=0, description="of LARS at its peak (paper: 5)")
    warmup_epochs: float | None = Field(
        None,
        ge=0,
        description="of linear warm-up before the cosine; 10 (paper) by default, at most a tenth of all, but 100 "
        "steps or half of the run",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of LARS")
    weight_decay: float = Field(1e-6, ge=0, description="of LARS (paper: 1e-6)")

    probe: Path | None = Field(
        None,
        description="labelled pictures by which the encoder is watched: a folder per class, or whatever "
        "`lorica finetune` reads. Their test part is not looked at",
    )
    probe_every: int = Field(10, ge=1, description="epochs between two probes; the last epoch always has one")
    probe_pictures: int = Field(2000, ge=2, description="labelled pictures to learn from, at most; a fourth to try on")

    seed: int = Field(0, ge=0, description="of the weights and every draw")
    device: str | None = Field(None, description="cpu or cuda; picks cuda where there is one")
    precision: Precision = Field("auto", description=PRECISION)
    channels_last: bool = Field(True, description="memory layout of convolutional networks")
    compile: bool = Field(False, description="torch.compile the encoder")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints within an epoch")
    cache: Path | None = Field(None, description="folder for decoded pictures; OUTPUT/cache by default")
    resume: bool = Field(False, description="go on with the run in OUTPUT")
    overwrite: bool = Field(False, description="replace the run in OUTPUT")

    @model_validator(mode="before")
    @classmethod
    def _baseline(cls, given: Any) -> Any:
        """SCL is SimCLR unless something is added to it."""
        scl = isinstance(given, dict) and given.get("method") == "scl"
        return {"invariance": "none"} | given if scl else given

    @model_validator(mode="after")
    def _sound(self) -> Self:
        load_options(METHODS[self.method].Options, self.method, self.options)
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise LoricaError(
                f"warmup_epochs = {self.warmup_epochs:g} of {self.epochs} epochs leave no time to learn",
                "Leave it out for a tenth.",
            )
        return self

    def batch_of(self, pictures: int) -> int:
        """Pictures per step, of so many: the default is a power of two from 32 to 512."""
        if self.batch_size is not None:
            return self.batch_size
        return min(512, max(32, 2 ** int(math.log2(max(1, pictures / 8)))))

    def warmup_steps(self, per_epoch: int) -> int:
        """Of warm-up, in epochs of so many steps.

        Where weights begin at zero, as the biases of batch norms do, LARS takes the whole rate: a first step at a
        large one can send all pictures to one point.
        """
        if self.warmup_epochs is not None:
            return round(self.warmup_epochs * per_epoch)
        return max(round(min(10.0, self.epochs / 10) * per_epoch), min(100, self.epochs * per_epoch // 2))

    @property
    def sir(self) -> bool:
        """Whether the standard invariance is asked for."""
        return self.invariance in ("sir", "both")

    @property
    def air(self) -> bool:
        """Whether the adversarial invariance is asked for."""
        return self.invariance in ("air", "both")

    @property
    def adversarial(self) -> bool:
        """Whether adversarial views are crafted."""
        return METHODS[self.method].robust or self.air
