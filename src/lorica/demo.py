"""`lorica demo`: the main job from end to end on the built-in private set, in minutes and without a network.

Draws a cohort of imaginary people, adapts the built-in model to the members with each objective for the same number
of steps, audits every LoRA and the base model, draws pictures with all of them and writes one report.
"""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lorica import adapt, audit, generate, report, shadows
from lorica.adapt import AdaptConfig
from lorica.artefacts import prepare_output, provenance, write_json
from lorica.audit import ATTACKS, AuditConfig
from lorica.config import Config, load
from lorica.data.cohort import write_cohort
from lorica.errors import LoricaError
from lorica.generate import GenerateConfig
from lorica.progress import console
from lorica.shadows import ShadowsConfig

DEMO_FILE = "demo.json"
# A proxy that learns within a few hundred steps, and a weight at which the LoRA listens to it (docs/results.md).
STRONG_PROXY = {"objective": "smp-lora", "lam": 1.0, "mi_gain": "full", "proxy.learning_rate": 1e-3}
STARTS = {"members": 0, "nonmembers": 1_000_000, "reference": 2_000_000}  # disjoint people of the same population


class DemoConfig(Config):
    """Adapt, audit and report on the built-in private set of imaginary people: see a LoRA betray its members."""

    output: Path = Field(Path("runs/demo"), description="folder for everything")
    members: int = Field(80, ge=8, description="people that the LoRAs are trained on")
    nonmembers: int = Field(80, ge=8, description="people of the same population that they are not trained on")
    methods: dict[str, dict[str, Any]] = Field(
        {
            "LoRA": {"objective": "lora"},
            # The defence that costs nothing: stop where the loss on auxiliary non-members turns.
            "LoRA (stopped early)": {"objective": "lora", "defences": {"early-stopping": {"patience": 2}}},
            "SMP-LoRA (paper)": {"objective": "smp-lora"},
            "SMP-LoRA (strong proxy)": STRONG_PROXY,
        },
        description="settings of `lorica adapt` for each method that is compared",
    )
    steps: int = Field(400, ge=1, description="optimiser steps of every method that sets none of its own")
    batch_size: int = Field(16, ge=1, description="pictures per step")
    learning_rate: float = Field(2e-3, gt=0, description="of the LoRA")
    rank: int = Field(16, ge=1, description="of the LoRA on all transformer blocks, with alpha equal to it")
    attacks: list[str] = Field(
        ["loss", "mc-loss", "calibrated-loss", "nn-loss"],
        min_length=1,
        description="which to run against every method; all of them take longer than everything else together",
    )
    shadows: int = Field(
        0,
        ge=0,
        description="shadow LoRAs of every method, each a training of its own, for the attacks that need them; these "
        "attacks then run too",
    )
    pictures: int = Field(64, ge=8, description="pictures drawn with every model")
    seed: int = Field(0, ge=0, description="of everything")
    device: str | None = Field(None, description="cpu or cuda; picks cuda where there is one")
    overwrite: bool = Field(False, description="start again; otherwise finished parts of OUTPUT are kept")


def run(config: DemoConfig) -> dict[str, Any]:
    """Run what is missing of the demo; the same as `lorica demo`.

    Returns:
        The contents of OUTPUT/demo.json: one row of figures per method, with provenance.

    Raises:
        LoricaError: an unknown attack, or settings of a method that `lorica adapt` refuses; before any work starts.
    """
    planned = plans(config)
    prepare_output(config.output, marker=DEMO_FILE, resume=True)
    for group, start in STARTS.items():
        count = config.members if group == "members" else config.nonmembers
        write_cohort(_people(config, group), count, config.seed, start)
    files = sorted(_people(config, "reference").glob("*.txt"))
    captions = [file.read_text(encoding="utf-8").strip() for file in files]
    runs = [_drawn_by_base(config, captions)]
    for label, plan in planned.items():
        console.rule(escape(label))
        runs.append(_method(config, label, *plan, captions))
    rows = [_row(found) for found in runs]
    result = provenance(config.model_dump(mode="json"), config.seed) | {"rows": rows}
    write_json(config.output / DEMO_FILE, result)
    page = report.build(
        runs,
        title="Private adaptation: what the LoRA gives away",
        command=_command(),
        output=config.output / "report.html",
    )
    _print(rows)
    if not config.shadows:
        console.print("No attacker had shadow LoRAs, which may find more; --shadows 4 trains them for every method.")
    console.print(f"Report: {escape(str(page))}")
    return result


def _people(config: DemoConfig, group: str) -> Path:
    return config.output / "people" / group


def plans(config: DemoConfig) -> dict[str, tuple[AdaptConfig, AuditConfig]]:
    """What each method trains and what attacks it: a slip in the last one is found before the first one starts.

    Raises:
        LoricaError: as `run`.
    """
    cache = config.output / "cache"
    attacks = [*config.attacks, *(name for name in ATTACKS if config.shadows and ATTACKS[name].needs_shadows)]
    planned: dict[str, tuple[AdaptConfig, AuditConfig]] = {}
    folders = dict.fromkeys(("base", "cache", "people"), "the demo's own")
    for label, settings in config.methods.items():
        name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        if not name:
            raise LoricaError(f"method {label!r} has no letter or digit to name its folder by", "Name it otherwise.")
        if name in folders:
            raise LoricaError(
                f"method {label!r} would share the folder {name} with {folders[name]!r}", "Name it otherwise."
            )
        folders[name] = label
        folder = config.output / name
        defaults = {
            "data": _people(config, "members"),
            "output": folder,
            "steps": config.steps,
            "batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "seed": config.seed,
            "device": config.device,
            "cache": cache,
            "lora.rank": config.rank,
            "lora.alpha": config.rank,
            "lora.targets": "transformer-blocks",
            "split.nonmembers": _people(config, "nonmembers"),
            "validate_every": max(1, config.steps // 10),
            "sample_every": config.steps,
            "keep_checkpoints": False,
            "resume": not config.overwrite,
            "overwrite": config.overwrite,
        }
        try:
            training = load(AdaptConfig, options=defaults | settings)
        except LoricaError as error:
            raise LoricaError(f"method {label!r}: {error.problem}", error.remedy) from error
        attacking = AuditConfig(
            output=folder / "audit",
            lora=folder,
            attacks=attacks,
            seed=config.seed,
            device=config.device,
            cache=cache,
            batch_size=64,
            overwrite=config.overwrite,
        )
        planned[label] = (training, attacking)
    return planned


def _method(
    config: DemoConfig, label: str, training: AdaptConfig, attacking: AuditConfig, captions: list[str]
) -> report.ReportRun:
    adapt.run(training)
    if config.shadows:
        shadows.run(ShadowsConfig(run=training.output, count=config.shadows))
    found = audit.run(attacking)
    console.print(escape(found["verdict"]["text"]))
    return _report_run(label, found, training.output, _draw(config, training.output, training.output, captions))


def _drawn_by_base(config: DemoConfig, captions: list[str]) -> report.ReportRun:
    folder = config.output / "base"
    return _report_run("Base model", {}, folder, _draw(config, None, folder, captions))


def _draw(config: DemoConfig, lora: Path | None, folder: Path, captions: list[str]) -> dict[str, Any]:
    """Pictures of people that no model was trained on: captions and FID/KID reference are fresh draws."""
    return generate.run(
        GenerateConfig(
            output=folder / "pictures",
            lora=lora,
            captions=captions[: config.pictures],
            seed=config.seed,
            steps=20,
            guidance=2.0,
            batch_size=32,
            reference=_people(config, "reference"),
            device=config.device,
            resume=not config.overwrite,
            overwrite=config.overwrite,
        )
    )


def _report_run(
    label: str, found: dict[str, Any], folder: Path, drawn: dict[str, Any], shown: int = 8
) -> report.ReportRun:
    metrics = folder / "metrics.jsonl"
    return report.ReportRun(
        label=label,
        audit=found,
        quality=drawn["quality"],
        metrics=[json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else [],
        samples=list(sorted((folder / "pictures" / "pictures").glob("*.png"))[:shown]),
        captions=drawn["request"]["captions"][:shown],
    )


def _row(found: report.ReportRun) -> dict[str, Any]:
    """The figures of one method: its strongest attack by AUC, quality and validation loss."""
    worst = found.worst
    attack = found.audit["attacks"][worst] if worst else None
    quality = found.quality or {}
    return {
        "method": found.label,
        "val_nonmember": found.validation_loss,
        "fid": quality.get("fid"),
        "kid": quality.get("kid"),
        "attack": worst,
        "auc": attack and attack["auc"],
        "asr": attack and attack["asr"],
        "tpr": attack and attack["tpr"],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("method", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in ("loss", "FID*", "KID*", "ASR", "AUC \\[95 %]", "TPR@5%"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        figures = ["-"] * 3
        if row["attack"]:
            auc = row["auc"]
            figures = [
                f"{row['asr']['value']:.3f}",
                f"{auc['value']:.3f} \\[{auc['low']:.3f}, {auc['high']:.3f}]",
                f"{row['tpr']['0.05']['value']:.3f}",
            ]
        loss = f"{row['val_nonmember']:.3f}" if row["val_nonmember"] is not None else "-"
        table.add_row(row["method"], loss, f"{row['fid']:.2f}", f"{row['kid']['value']:.3f}", *figures)
    console.print(table)
    attacks = ", ".join(f"{row['method']}: {row['attack']}" for row in rows if row["attack"])
    console.print(f"Privacy under the strongest of the attacks ({escape(attacks)}).")
    console.print("loss: validation loss on test non-members.")
    console.print("* over the built-in extractor; not comparable with published FID and KID.")


def _command() -> str:
    return shlex.join(["lorica", *sys.argv[1:]])
