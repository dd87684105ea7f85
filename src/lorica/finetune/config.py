"""The configuration of `lorica finetune`."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lorica.config import Config, load_options
from lorica.epochs import PRECISION, Precision
from lorica.errors import LoricaError
from lorica.finetune.methods import METHODS
from lorica.robustness.config import PgdConfig
from lorica.robustness.threat import Norm, Threat
from lorica.vision import ModelConfig

FEW_PICTURES = 2500
"""Validation pictures below which judged_by=auto is the loss: with 50 of CIFAR-10's better, with 1,000 no worse under
attack and better without (measured in docs/robustness.md). The paper had 2,500 of them."""

LOW_RESOLUTION = 96
"""Pixels a side: the largest pictures of AutoLoRa's code for low resolutions are STL-10's."""


class AttackConfig(PgdConfig):
    """The attack that adversarial pictures of training and validation come from."""

    kind: Literal["pgd", "n-fgsm"] = Field(
        "pgd", description="n-fgsm: one step, a fast mode of a quarter to a third of the passes, and less robust"
    )
    norm: Norm = Field("linf", description="linf or l2")
    steps: int = Field(10, ge=1, description="of PGD, in training and validation (paper: 10)")
    start: Literal["uniform", "gaussian", "none"] = Field(
        "uniform",
        description="of PGD in training: uniform in the ball (authors, high resolution), 0.001 times a Gaussian "
        "(authors, low resolution), or the picture itself",
    )

    @property
    def threat(self) -> Threat:
        """The allowed pictures."""
        return Threat(self.eps, self.norm)

    @model_validator(mode="after")
    def _offered(self) -> Self:
        if self.kind == "n-fgsm" and self.norm != "linf":
            raise LoricaError("n-fgsm is defined for linf", "Use pgd for l2.")
        return self


class FinetuneConfig(Config):
    """Make a pre-trained image classifier or encoder adversarially robust on labelled pictures."""

    data: Path = Field(
        description="folder with a folder of pictures per class (or train/, val/, test/ with these in each), a CSV or "
        "Parquet file with path,label[,split], or CIFAR's binary files"
    )
    output: Path = Field(Path("runs/finetune"), description="folder for the model, its report, logs and checkpoints")
    model: ModelConfig = ModelConfig()
    method: str = Field("autolora", description=f"what a step minimises: {', '.join(METHODS)}")
    options: dict[str, Any] = Field({}, description="of the method, e.g. --set options.rank=16")
    attack: AttackConfig = AttackConfig()

    epochs: int = Field(60, ge=1, description="in all (paper: 60)")
    epoch_steps: int = Field(
        20,
        ge=1,
        description="an epoch is as many passes over the training pictures as make at least this many steps: the "
        "schedules look at epochs, and the paper's smallest set has 29 steps in one",
    )
    batch_size: int = Field(128, ge=2, description="pictures per step, over all processes (paper: 128)")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description=f"of SGD at the start; by default 0.1 for pictures of at most {LOW_RESOLUTION} pixels a side and "
        "0.01 for larger ones, as in the authors' code for low and for high resolutions (paper: 0.01)",
    )
    schedule: Literal["auto", "step", "constant"] | None = Field(
        None,
        description="auto: halved when robust validation accuracy stops rising (AutoLoRa's); step: divided by 10 "
        "after 1/2 and 5/6 of the epochs; by default auto for autolora, step for the others",
    )
    milestones: list[int] | None = Field(
        None, description="epochs after which schedule=step divides the rate, instead of 1/2 and 5/6, e.g. 15,20"
    )
    schedule_every: int = Field(4, ge=1, description="epochs between checkpoints of the automatic schedule (paper: 4)")
    judged_by: Literal["auto", "accuracy", "loss"] = Field(
        "auto",
        description="what the automatic learning rate follows and weights are chosen by, on validation pictures under "
        "attack. accuracy (paper); loss: for few pictures, on which accuracies move in steps or not at all (ours); "
        f"auto: loss on fewer than {FEW_PICTURES}",
    )
    head: Literal["random", "zeros"] = Field(
        "random",
        description="random: a new head begins at random, one of the same classes is kept; zeros: all weights of the "
        "head begin at 0",
    )
    select: Literal["best", "last"] = Field(
        "best",
        description="weights that are delivered. best: of the epoch of the highest robust validation accuracy; last: "
        "of the last epoch, which every run then reaches, averaged where --ema is not 0",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="of SGD (paper: 1e-4)")
    ema: float = Field(
        0.995, ge=0, lt=1, description="decay per step of the averaged weights (Gowal et al., 2010.03593); 0: none"
    )
    natural_accuracy: Literal["exact", "running"] = Field(
        "exact",
        description="SA of the loss weights' schedule. exact: a pass over the training set in eval mode before each "
        "epoch (paper); running: what the last epoch's own batches showed, which costs nothing and lags",
    )

    val_share: float = Field(0.05, gt=0, lt=0.5, description="of the training pictures, for validation (paper: 0.05)")
    test_share: float = Field(0.2, gt=0, lt=0.9, description="of all pictures, where DATA declares no test part")
    split: Path | None = Field(None, description="use this split.json of an earlier run")
    labels: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of each class's training pictures whose labels are used, at least one; the others are left "
        "out, or learned from without labels by method distill",
    )
    augment: bool = Field(True, description="random crops (padded by an eighth) and horizontal flips")

    evaluate: Literal["none", "quick", "lite", "standard"] = Field(
        "quick",
        description="attack on the test pictures at the end, once: quick (APGD-CE) and lite (APGD-CE, APGD-T) are "
        "upper bounds, standard is AutoAttack",
    )
    export: list[Literal["onnx", "program"]] = Field(
        [],
        description="besides the folder that timm loads: onnx (ONNX graph), program (torch.export); each is checked",
    )
    similarity_batches: int = Field(
        4, ge=0, description="batches per epoch in which the gradients of natural and adversarial terms are compared"
    )
    seed: int = Field(0, ge=0, description="of the split, new weights and every draw")
    device: str | None = Field(None, description="cpu or cuda; picks cuda where there is one")
    precision: Precision = Field("auto", description=PRECISION)
    channels_last: bool = Field(True, description="memory layout of convolutional networks")
    compile: bool = Field(False, description="torch.compile the network")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints within an epoch")
    cache: Path | None = Field(None, description="folder for decoded pictures; OUTPUT/cache by default")
    resume: bool = Field(False, description="go on with the run in OUTPUT")
    overwrite: bool = Field(False, description="replace the run in OUTPUT")

    @field_validator("export", "milestones", mode="before")
    @classmethod
    def _separate(cls, given: Any) -> Any:
        if given is None:
            return None
        values = given if isinstance(given, list | tuple) else [given]
        return [name.strip() for value in values for name in str(value).split(",")]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        options = load_options(METHODS[self.method].Options, self.method, self.options)
        self._check_schedule()
        blind = self.attack.kind == "pgd" and self.attack.start == "none"
        if blind and getattr(options, "attack_loss", None) == "kl":
            raise LoricaError(
                "attack_loss=kl has no gradient at the picture itself, where start=none begins",
                "Use start=uniform or gaussian, or attack_loss=ce.",
            )
        return self

    def _check_schedule(self) -> None:
        milestones = self.milestones or []
        if self.milestones is not None and self.automatic != "step":
            raise LoricaError(
                f"milestones are of schedule=step, not of {self.automatic}", "Give --schedule step, or leave them out."
            )
        if milestones != sorted(set(milestones)) or not all(0 < epoch < self.epochs for epoch in milestones):
            raise LoricaError(
                f"milestones = {milestones} are not rising epochs between 1 and {self.epochs - 1}",
                "Name epochs in order, after each of which training goes on.",
            )
        if self.select == "last" and self.automatic == "auto":
            raise LoricaError(
                "select=last contradicts schedule=auto, which goes back to the best weights",
                "Give --schedule step or constant, or --select best.",
            )

    @property
    def automatic(self) -> Literal["auto", "step", "constant"]:
        """The learning rate's schedule."""
        return self.schedule or ("auto" if METHODS[self.method].automatic else "step")

    def initial_rate(self, size: tuple[int, int]) -> float:
        """Learning rate at the start, for pictures of `size` = (H, W)."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.1 if max(size) <= LOW_RESOLUTION else 0.01
