"""What is being audited: the LoRA file, and what is known of how it was trained."""

import re
from pathlib import Path
from typing import Any

import yaml

from lorica.artefacts import CONFIG_FILE, RUN_FILE, read_json


def find_run(lora: Path) -> Path | None:
    """The folder of the adapt run that a LoRA lies in, also when it is one of the run's checkpoints."""
    start = lora.resolve() if lora.is_dir() else lora.resolve().parent
    return next((folder for folder in (start, *list(start.parents)[:2]) if (folder / CONFIG_FILE).is_file()), None)


def training_facts(lora: Path) -> dict[str, Any]:
    """What the adapt run beside a LoRA says about its training; empty for a LoRA from elsewhere.

    Leakage grows with steps per picture, rank and learning rate and falls with augmentation, so that a privacy number
    without them says little.

    Returns:
        Some of {"objective", "lam", "steps", "steps_per_picture", "augmentation", "defences",
        "claimed_epsilon", "claimed_delta", "base_fingerprint"}; epsilon and delta of differential privacy.
    """
    folder = find_run(lora)
    if folder is None:
        return {}
    record = read_json(folder / RUN_FILE, "adapt run") if (folder / RUN_FILE).is_file() else {}
    config = record.get("config") or yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8")) or {}
    facts = {key: config.get(key) for key in ("objective", "lam", "steps")}
    facts |= {key: record.get(key) for key in ("steps_per_picture", "augmentation", "base_fingerprint")}
    facts["steps"] = record.get("steps", facts["steps"])  # a defence may have ended the run before its time
    facts["defences"] = ", ".join(config.get("defences") or {}) or None
    for told in (record.get("defences") or {}).values():
        facts |= {f"claimed_{key}": told[key] for key in ("epsilon", "delta") if "epsilon" in told}
    done = _checkpoint_step(lora, folder)
    if done is not None and facts["steps"]:
        if facts["steps_per_picture"] is not None:
            facts["steps_per_picture"] *= done / facts["steps"]
        facts["steps"] = done
    return {key: value for key, value in facts.items() if value is not None}


def _checkpoint_step(lora: Path, run: Path) -> int | None:
    """Steps of a checkpoint in `run`/checkpoints/step_000500/; None for the final weights."""
    names = lora.resolve().relative_to(run).parts
    steps = [int(match[1]) for name in names if (match := re.match(r"step_(\d+)", name))]
    return steps[-1] if steps else None
