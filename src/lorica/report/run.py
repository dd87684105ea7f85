"""What a report is made of: one audited LoRA (or the base model) with its training log, quality and pictures."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lorica.artefacts import THUMBNAIL, THUMBNAILS, read_json
from lorica.errors import LoricaError

SCHEMA = 1


def finite(value: Any) -> float | None:
    """`value` as a float; None when it is missing, NaN, infinite or no number at all."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def section(node: Any, *path: str) -> dict[str, Any]:
    """What lies in nested JSON under the keys of `path`; empty where there is no object."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


@dataclass(frozen=True)
class Estimate:
    """A measured value with its interval; any of the three may be unknown."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, raw: Any) -> "Estimate":
        """Read `{"value", "low", "high"}`, `{"value", "std"}` (one deviation either side) or a bare number."""
        if not isinstance(raw, dict):
            return cls(finite(raw))
        value, spread = finite(raw.get("value")), finite(raw.get("std"))
        low, high = finite(raw.get("low")), finite(raw.get("high"))
        if value is not None and spread is not None and low is None and high is None:
            low, high = value - spread, value + spread
        return cls(value, low, high)


@dataclass(frozen=True)
class Rate:
    """A TPR at one false-alarm rate, as a table cell."""

    estimate: Estimate
    reliable: bool
    note: str

    @classmethod
    def of(cls, raw: Any) -> "Rate | None":
        if not isinstance(raw, dict):
            return None
        return cls(Estimate.of(raw), raw.get("reliable") is not False, str(raw.get("note") or ""))


@dataclass(frozen=True)
class ReportRun:
    """One column of the report.

    Attributes:
        label: the name shown to the reader, for example "SMP-LoRA".
        audit: the contents of `audit.json`; empty for a model that was not audited on its own, such as the base
            model, whose AUC is then taken from the negative control of the other runs.
        metrics: the lines of `metrics.jsonl`; those with `val_member` and `val_nonmember` are plotted.
        quality: `{"kid": {"value", "std"}, "fid": {"value"}, "extractor": str, "comparable": bool,
            "validation_loss": float}`, each optional; the loss is the one on test non-members.
        samples: generated pictures, as files or in memory.
        captions: one per picture. Pictures of several runs with the same caption are shown side by side.
        thumbnails: small copies of exposed members, by their place among the test members.
    """

    label: str
    audit: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    quality: dict[str, Any] | None = None
    samples: list[Path | Image.Image] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    thumbnails: dict[int, Path] = field(default_factory=dict)

    def part(self, *path: str) -> dict[str, Any]:
        """A section of the audit, empty where it is absent."""
        return section(self.audit, *path)

    @property
    def objective(self) -> str:
        """What decides the look of the run: the objective of its training, "base" without a LoRA, or its label."""
        target = self.part("target")
        return str(target.get("objective") or (self.label.lower() if target.get("lora") else "base"))

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks, strongest first. An inverted ranking (AUC far below 0.5) is strong as well."""
        return sorted(self.part("attacks"), key=lambda name: -(self.strength(name) or 0.0))

    def auc(self, attack: str) -> Estimate:
        return Estimate.of(self.part("attacks", attack).get("auc"))

    def strength(self, attack: str) -> float | None:
        """Distance of the attack's AUC from chance, in [0, 0.5]."""
        value = self.auc(attack).value
        return None if value is None else abs(value - 0.5)

    @property
    def worst(self) -> str | None:
        """The attack on which the verdict rests."""
        named = self.part("verdict").get("worst_attack")
        if named in self.part("attacks"):
            return str(named)
        return next(iter(self.attacks), None)

    @property
    def leaks(self) -> bool | None:
        """The audit's own verdict; None where it gave none. The report never judges by itself."""
        leaks = self.part("verdict").get("leaks")
        return leaks if isinstance(leaks, bool) else None

    @property
    def validated(self) -> list[dict[str, float]]:
        """Steps at which both validation losses were measured: `step`, `val_member`, `val_nonmember`."""
        keys = ("step", "val_member", "val_nonmember")
        rows = [{key: finite(row.get(key)) for key in keys} for row in self.metrics]
        return [{k: v for k, v in row.items() if v is not None} for row in rows if None not in row.values()]

    @property
    def validation_loss(self) -> float | None:
        """Adaptation loss on pictures never trained on: from `quality`, or else the last one logged in training.

        Not later than the step of the audited weights: early stopping keeps those of an earlier one.
        """
        given = finite((self.quality or {}).get("validation_loss"))
        steps = finite(self.part("target").get("steps")) or math.inf
        logged = [row["val_nonmember"] for row in self.validated if row["step"] <= steps]
        return logged[-1] if given is None and logged else given


def load_run(audit_folder: Path, run_folder: Path | None = None) -> ReportRun:
    """Read what `lorica audit` and `lorica adapt` wrote.

    Args:
        audit_folder: holds `audit.json`, and `quality.json` where quality was measured.
        run_folder: holds `metrics.jsonl`, and the picture grids drawn in training, of which the last is shown.

    Raises:
        LoricaError: there is no audit in the folder, or a file is damaged or of a newer schema.
    """
    audit = read_result(audit_folder / "audit.json", "audit result", SCHEMA)
    folders = [audit_folder] + ([run_folder] if run_folder is not None else [])
    quality = next((folder / "quality.json" for folder in folders if (folder / "quality.json").is_file()), None)
    grids = sorted((run_folder / "samples").glob("step_*.png"))[-1:] if run_folder is not None else []
    target = audit.get("target")
    return ReportRun(
        label=_name(target if isinstance(target, dict) else {}) or audit_folder.name,
        audit=audit,
        metrics=read_lines(run_folder / "metrics.jsonl") if run_folder is not None else [],
        quality=read_json(quality, "quality result") if quality is not None else None,
        samples=list(grids),
        captions=[f"drawn in training, {_step(grid)}" for grid in grids],
        thumbnails=_thumbnails(audit_folder),
    )


def _name(target: dict[str, Any]) -> str | None:
    """What to call the audited model: its training (SMP-LoRA + augment) or its file; None if both say nothing."""
    if objective := target.get("objective"):
        name = "-".join("LoRA" if part == "lora" else part.upper() for part in str(objective).split("-"))
        return f"{name} + {target['defences']}" if target.get("defences") else name
    if "lora" in target and target["lora"] is None:
        return "Base model"
    stem = Path(str(target.get("lora") or "")).stem
    return stem if stem != "pytorch_lora_weights" else None


def _thumbnails(audit_folder: Path) -> dict[int, Path]:
    files = sorted((audit_folder / THUMBNAILS).glob(f"{THUMBNAIL}*.png"))
    places = [file.stem.removeprefix(THUMBNAIL) for file in files]
    return {int(place): file for place, file in zip(places, files, strict=True) if place.isdecimal()}


def _step(grid: Path) -> str:
    digits = grid.stem.removeprefix("step_").lstrip("0")
    return f"step {digits or '0'}"


def read_result(file: Path, what: str, schema: int) -> dict[str, Any]:
    """Read a result of a known schema.

    Raises:
        LoricaError: it is absent, damaged, or of another schema.
    """
    result = read_json(file, what)
    if not isinstance(result, dict) or result.get("schema") != schema:
        found = result.get("schema") if isinstance(result, dict) else type(result).__name__
        raise LoricaError(
            f"{file} has schema {found!r}, this version reads {schema}",
            "Measure again with this version of lorica, or report with the version that measured.",
        )
    return result


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none where there is no file. A last line cut off by a kill is skipped."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise LoricaError(f"{path}, line {number} is not JSON: {error}", "Is it the right file?") from error
    return [row for row in rows if isinstance(row, dict)]
