"""The configuration of `lorica audit`."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from lorica.audit.attacks import ATTACKS, Attack
from lorica.audit.captions import FILE
from lorica.audit.gate import Gate
from lorica.config import Config, load
from lorica.errors import LoricaError


class AuditConfig(Config):
    """Measure how well membership attacks tell the pictures a LoRA was trained on from others of the same kind."""

    output: Path = Field(description="folder for audit.json, report, features and encoded pictures. Private!")
    base: str = Field("builtin", description="'builtin', a hub id, a diffusers folder or a .safetensors checkpoint")
    base_config: str | None = Field(
        None, description="for a single-file base: folder or hub id in the diffusers layout that describes it"
    )
    lora: Path | None = Field(
        None, description="LoRA file or folder of an adapt run; without it the base model itself is audited"
    )
    split: Path | None = Field(
        None, description="split.json of the adapt run; by default the one beside the LoRA, if there is one"
    )
    data: Path | None = Field(None, description="where the split's pictures are now, if their folder was moved")
    nonmember_data: Path | None = Field(None, description="the same for its non-members, if they had their own folder")
    members: Path | None = Field(None, description="folder of training pictures, in place of a split")
    nonmembers: Path | None = Field(
        None, description="folder of pictures from the same source that were not trained on"
    )
    captions: str = Field(
        FILE,
        description="what the model is asked with: file (each picture's own caption), none (the empty caption), or a "
        "text for all, such as a trigger word. Attacks on the caption itself only run with file",
    )

    shadows: Path | None = Field(
        None,
        description="folder of shadow LoRAs (lorica shadows); RUN/shadows of the LoRA's run where it exists",
    )
    attacks: list[str] = Field(
        list(ATTACKS), min_length=1, description=f"which to run: all, or a,b,... of {', '.join(ATTACKS)}"
    )
    settings: dict[str, dict[str, Any]] = Field({}, description="options of attacks, e.g. settings.mc-loss.draws=32")
    seed: int = Field(0, ge=0, description="of the noise, of what attacks fit, and of the split into halves")
    batch_size: int = Field(16, ge=1, description="pictures per UNet call")
    device: str | None = Field(None, description="cpu or cuda; picks cuda where there is one")
    cache: Path | None = Field(
        None,
        description="folder for encoded pictures and models' answers, which audits may share; OUTPUT/cache and "
        "OUTPUT/features by default. Private!",
    )

    level: float = Field(0.95, gt=0, lt=1, description="confidence level of all intervals and of the verdict")
    fprs: list[float] = Field([0.001, 0.01, 0.05], min_length=1, description="false-positive rates to report TPRs at")
    fail_if: str | None = Field(
        None,
        description='release gate, exit code 3 when it holds for any attack: "auc>0.6" (point value, of the better '
        'direction), "upper(auc)>0.6" (upper end of the interval); also auc_distance, asr, oracle_asr, tpr@0.01',
    )
    thumbnails: bool = Field(
        False, description="put small copies of the most exposed members into OUTPUT and the report. Private!"
    )
    overwrite: bool = Field(False, description="replace the audit of another model in OUTPUT")

    @field_validator("attacks")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        separate = [name.strip() for given in names for name in given.split(",")]
        chosen = [name for given in separate for name in (ATTACKS if given == "all" else [given])]
        for name in chosen:
            ATTACKS[name]
        return list(dict.fromkeys(chosen))

    @field_validator("captions")
    @classmethod
    def _text(cls, captions: str) -> str:
        text = " ".join(captions.split())
        if not text:
            raise ValueError("for the empty caption, say none")
        return text

    @field_validator("fprs")
    @classmethod
    def _rates(cls, rates: list[float]) -> list[float]:
        if not all(0 < rate < 1 for rate in rates):
            raise ValueError("false-positive rates are between 0 and 1: write 0.01, not 1")
        return sorted(set(rates))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.members is None) != (self.nonmembers is None):
            raise LoricaError("--members and --nonmembers go together", "Give both folders, or a --split.")
        if self.members is not None and self.split is not None:
            raise LoricaError("both a --split and folders of members and non-members", "Give one or the other.")
        if self.members is None and self.split is None and self.lora is None:
            raise LoricaError(
                "nothing says which pictures are members", "Give --split, or --members and --nonmembers."
            )
        if self.captions != FILE and all(ATTACKS[name].needs_caption for name in self.attacks):
            raise LoricaError(
                f"{', '.join(self.attacks)}: nothing to run without each picture's own caption",
                "Give --captions file, or other --attacks.",
            )
        for name in self.settings:
            self.attack(name)
        if self.fail_if is not None:
            Gate.parse(self.fail_if)
        return self

    def attack(self, name: str) -> Attack:
        """The attack of this name with its settings.

        Raises:
            LoricaError: no such attack, or no such option of it.
        """
        attack = ATTACKS[name]
        try:
            return attack(load(attack.Options, options=self.settings.get(name)))
        except LoricaError as error:
            raise LoricaError(f"settings of attack {name}: {error.problem}", error.remedy) from error
