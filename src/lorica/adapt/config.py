"""The configuration of `lorica adapt`."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lorica.adapt.defences import DEFENCES, chosen, explained
from lorica.adapt.objectives import OBJECTIVES
from lorica.adapt.proxy import ProxyConfig
from lorica.config import Config
from lorica.diffusion.lora import LoraConfig


class SplitConfig(Config):
    """How pictures are divided into members, non-members and their auxiliary and test halves."""

    file: Path | None = Field(None, description="use this split.json of an earlier run instead of making one")
    nonmembers: Path | None = Field(
        None, description="folder of non-member pictures from the same source; without it part of DATA is held out"
    )
    holdout: float = Field(0.5, gt=0, lt=1, description="share of DATA held out as non-members when none are given")
    aux: float = Field(0.5, gt=0, lt=1, description="share of members and of non-members that is auxiliary")
    counts: tuple[int, int, int, int] | None = Field(
        None, description="exact sizes: auxiliary members, test members, auxiliary non-members, test non-members"
    )


class AdaptConfig(Config):
    """Adapt a latent diffusion model to a folder of private pictures with LoRA."""

    data: Path = Field(description="folder of pictures with captions: name.png + name.txt, or metadata.jsonl")
    output: Path = Field(description="folder for weights, logs, samples, split and checkpoints")
    base: str = Field("builtin", description="'builtin', a hub id, a diffusers folder or a .safetensors checkpoint")
    base_config: str | None = Field(
        None, description="for a single-file base: folder or hub id in the diffusers layout that describes it"
    )
    objective: str = Field("smp-lora", description=f"what a step minimises: {', '.join(OBJECTIVES)}")
    steps: int = Field(2000, ge=1, description="optimiser steps in all")
    seed: int = Field(0, ge=0, description="of the split, the initial weights and every draw")

    lam: float = Field(0.05, ge=0, description="lambda, weight of the MI gain (paper: 0.05)")
    delta: float = Field(1e-5, ge=0, description="stabiliser of the SMP-LoRA denominator (paper: 1e-5)")
    mi_gain: Literal["paper", "authors", "full"] = Field(
        "paper",
        description="MI gain in the LoRA step. paper: equation (10), on D_tr, i.e. 1/2 of the member term; authors: "
        "the member term without the 1/2; full: both terms of (5), auxiliary non-members carrying gradient too",
    )
    draws: Literal["shared", "independent"] = Field(
        "shared",
        description="shared: one (t, eps) for adaptation loss and MI gain (paper's notation); independent: two "
        "(authors' code)",
    )
    order: Literal["paper", "authors"] = Field(
        "paper", description="paper: proxy step, then LoRA step (algorithms 1 and 2); authors: the reverse"
    )

    defences: dict[str, dict[str, Any]] = Field(
        {},
        description="names, e.g. augment,caption-dropout; options with --set, e.g. defences.caption-dropout.rate=0.2. "
        f"Known, with their options: {explained()}",
    )

    batch_size: int = Field(8, ge=1, description="pictures per step and process (paper: 1)")
    gradient_accumulation: int = Field(1, ge=1, description="batches summed up before an optimiser step")
    learning_rate: float = Field(1e-4, gt=0, description="eta_2 of AdamW on the LoRA (paper: 1e-4)")
    text_encoder_learning_rate: float = Field(1e-5, gt=0, description="of the text encoder's LoRA (authors: 1e-5)")
    weight_decay: float = Field(1e-2, ge=0, description="of AdamW on the LoRA")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping threshold (paper, Appendix F: clipped)")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of forward and backward passes")
    gradient_checkpointing: bool = Field(False, description="save memory, recompute activations in backward")
    device: str | None = Field(None, description="cpu or cuda; picks cuda where there is one")

    canaries: int = Field(
        0,
        ge=0,
        description="pictures like no others, drawn for the run and trained on by the toss of a coin each: an audit "
        "then bounds the epsilon of differential privacy from below. A hundred and more are worth it",
    )

    lora: LoraConfig = LoraConfig()
    proxy: ProxyConfig = ProxyConfig()
    split: SplitConfig = SplitConfig()

    log_every: int = Field(10, ge=1, description="steps between log lines")
    validate_every: int = Field(200, ge=1, description="steps between validation losses")
    validation_pictures: int = Field(32, ge=1, description="pictures per group in the validation loss")
    sample_every: int = Field(500, ge=0, description="steps between sample grids; 0 draws none")
    sample_captions: list[str] = Field([], description="captions of the sample grid; members' captions by default")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints (a resumed run repeats fewer)")
    keep_checkpoints: bool = Field(True, description="keep the LoRA file of every checkpoint, for audits over time")
    cache: Path | None = Field(None, description="folder for encoded pictures; OUTPUT/cache by default. Private!")
    resume: bool = Field(False, description="go on with the run in OUTPUT")
    overwrite: bool = Field(False, description="replace the run in OUTPUT")

    @field_validator("objective")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in list(OBJECTIVES):
            raise ValueError(f"known objectives: {', '.join(OBJECTIVES)}")
        return value

    @field_validator("defences", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Names alone stand for the defaults: "a,b", [a, b] or {a: , b: }."""
        names = given.split(",") if isinstance(given, str) else given
        if isinstance(names, list):
            return {str(name).strip(): {} for name in names}
        return {name: options or {} for name, options in names.items()} if isinstance(names, dict) else names

    @field_validator("defences")
    @classmethod
    def _known_defences(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return chosen(given)

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        for name, options in self.defences.items():
            defence = DEFENCES[name]
            defence.check(defence.Options(**options), self)
        return self
