"""The output folder of a run: what lies where, whether a run may start there, and what a resumed run may change."""

import shutil
from pathlib import Path
from typing import Any

from lorica.adapt.config import AdaptConfig
from lorica.adapt.defences import DEFENCES
from lorica.adapt.state import completed_steps
from lorica.artefacts import (
    CONFIG_FILE,
    RUN_FILE,
    SHADOWS,
    SPLIT_FILE,
    read_json,
    write_text,
)
from lorica.data.canaries import FOLDER as CANARIES
from lorica.data.canaries import folder_of
from lorica.data.split import Split
from lorica.diffusion.lora import KOHYA_FILE, PEFT_FILE
from lorica.errors import LoricaError
from lorica.monitor import METRICS_FILE
from lorica.resume import require_startable, settled

RESUME_FILE = Path("checkpoints") / "resume.safetensors"
# What a resumed run may change: how it is watched and how long it is; and where its inputs lie, as those are
# recognised by content. Never what a step computes.
FREE_ON_RESUME = {
    "resume", "overwrite", "steps", "output", "device", "cache", "log_every", "validate_every", "validation_pictures",
    "sample_every", "sample_captions", "checkpoint_every", "keep_checkpoints", "data", "base", "base_config",
    "split.nonmembers",
}  # fmt: skip


def check_output(config: AdaptConfig) -> None:
    """Prove that a run may start in its output folder; changes nothing there.

    Raises:
        LoricaError: the folder holds a run and neither --resume nor --overwrite is given, cannot be written, holds a
            run of another configuration than the one to resume, or another process is at work in it.
    """
    free = FREE_ON_RESUME.difference(*(DEFENCES[name].settles for name in config.defences))
    require_startable(config, config.output, resume=config.resume, overwrite=config.overwrite, free=free)
    if not (config.resume and (config.output / CONFIG_FILE).exists()):
        return
    done = completed_steps(config.output / RESUME_FILE)
    if done > config.steps:
        raise LoricaError(
            f"the run in {config.output} has already taken {done} steps, more than --steps {config.steps}",
            "Give at least as many steps; checkpoints/ may hold the weights after fewer.",
        )


def finished(config: AdaptConfig) -> dict[str, Any] | None:
    """The record of the run to resume, when nothing is left of it to do."""
    if not config.resume or not all((config.output / name).is_file() for name in (RUN_FILE, PEFT_FILE, KOHYA_FILE)):
        return None
    done = completed_steps(config.output / RESUME_FILE)
    record: dict[str, Any] = read_json(config.output / RUN_FILE, "record of the run")
    if stopped := record.get("stopped"):  # by a defence, and more steps change nothing
        return record if done == stopped["step"] else None
    return record if done == config.steps == record["config"]["steps"] else None


def begin(config: AdaptConfig, split: Split) -> None:
    """Write configuration and split, in place of an earlier run where the user said so.

    Called last before training, when all inputs have proved good: a mistyped path loses nothing.
    """
    if not config.resume:
        if (config.output / CONFIG_FILE).exists():
            _clear(config)
        (config.output / RESUME_FILE).unlink(missing_ok=True)
    write_text(config.output / CONFIG_FILE, settled(config).to_yaml())
    if not (config.resume and (config.output / SPLIT_FILE).exists()):
        split.save(config.output / SPLIT_FILE)


def _clear(config: AdaptConfig) -> None:
    output = config.output
    # An audit of the LoRA that goes would vouch for the one that comes, and its shadows would stand in for it.
    audits = {file.parent.name for file in output.glob("*/audit.json")}
    canaries = {path.name for path in output.glob(f"{CANARIES}_*")}
    canaries -= {folder_of(output, config.canaries, config.seed).name}  # the new run's own
    for name in ("checkpoints", "samples", "tensorboard", SHADOWS, *audits, *canaries):
        shutil.rmtree(output / name, ignore_errors=True)
    # The configuration goes last: as long as it is there, the folder counts as a run.
    for name in (RUN_FILE, PEFT_FILE, KOHYA_FILE, METRICS_FILE, SPLIT_FILE, CONFIG_FILE):
        (output / name).unlink(missing_ok=True)
