"""What a pre-training report is made of: the record and the log of one run, and the sheet of its views."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lorica.artefacts import CONFIG_FILE, RUN_FILE, read_json
from lorica.errors import LoricaError
from lorica.report.run import Estimate, finite, read_lines, section

KIND = "pretraining"
METRICS_FILE, VIEWS_FILE = "metrics.jsonl", "views.png"

METHODS = {"acl": "ACL", "dynacl": "DynACL", "scl": "SCL"}
"""Methods of `lorica pretrain` as papers call them."""
INVARIANCES = {"none": "", "sir": "SIR", "air": "AIR", "both": "SIR + AIR"}
"""What is added to a method's own loss."""
PROBES = {"linear": "Linear probe", "knn": "k-NN"}
"""How labelled pictures were classified on the frozen encoder, by the first part of the names of its accuracies."""


@dataclass(frozen=True)
class PretrainingRun:
    """One column of the report.

    Attributes:
        label: the name shown to the reader.
        record: the contents of run.json.
        metrics: the lines of metrics.jsonl.
        views: the sheet of pictures and their views; None where there is none.
    """

    label: str
    record: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    views: Path | None = None

    @property
    def objective(self) -> str:
        """What decides the look of the run: its method."""
        return str(self.record.get("method") or "")

    @property
    def method(self) -> str | None:
        """Method and invariance, such as "DynACL + AIR"; None where the record does not say."""
        if not self.objective:
            return None
        added = str(self.record.get("invariance") or "none")
        parts = [METHODS.get(self.objective, self.objective), INVARIANCES.get(added, added)]
        return " + ".join(part for part in parts if part)

    @property
    def adversarial(self) -> bool:
        """Whether it learned from adversarial pictures at all."""
        return bool(self.record.get("adversarial", self.objective != "scl"))

    @property
    def form(self) -> str:
        """In which form SIR and AIR were computed."""
        return str(self.record.get("form") or "")

    @property
    def pictures(self) -> float | None:
        """How many it learned from."""
        return finite(self.record.get("pictures"))

    @property
    def probe(self) -> dict[str, Any]:
        """What the probes of the encoder found; empty where no labelled pictures were given."""
        return section(self.record, "probe")

    def accuracy(self, probe: str, kind: str) -> Estimate:
        """Of the last probe: "linear" or "knn", on "natural" or "robust" (attacked) pictures."""
        return Estimate.of(self.probe.get(f"{probe}_{kind}"))

    @property
    def classes(self) -> int:
        """Number of classes of the probe's pictures; 0 where it is not known."""
        names = self.probe.get("classes")
        return len(names) if isinstance(names, list) else 0

    @property
    def epochs(self) -> list[dict[str, float]]:
        """What was logged at the end of each epoch, by rising epoch; all values are finite."""
        rows = [{str(k): v for k, v in ((k, finite(v)) for k, v in row.items()) if v is not None}
                for row in self.metrics]  # fmt: skip
        return sorted((row for row in rows if "epoch" in row), key=lambda row: row["epoch"])


def load_pretraining(folder: Path) -> PretrainingRun:
    """Read what `lorica pretrain` wrote.

    Args:
        folder: of the run; holds run.json, or config.yaml of one that has not ended, and may hold metrics.jsonl and
            views.png.

    Raises:
        LoricaError: there is no record of a pre-training run in the folder, or a file is damaged.
    """
    if not (folder / RUN_FILE).is_file() and is_begun(folder):
        record: Any = _so_far(folder)
    else:
        record = read_json(folder / RUN_FILE, "record of the pre-training run")
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind != KIND:
        raise LoricaError(
            f"{folder / RUN_FILE} is not the record of a pre-training run: its kind is {kind!r}",
            "Give a folder that `lorica pretrain` wrote.",
        )
    try:
        metrics = read_lines(folder / METRICS_FILE)
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, or nested without end
        raise LoricaError(f"{folder / METRICS_FILE} cannot be read: {error}", "Is it the right file?") from error
    run = PretrainingRun(label="", record=record, metrics=metrics, views=_views(folder))
    return replace(run, label=run.method or folder.absolute().name)


def is_begun(folder: Path) -> bool:
    """Whether a pre-training run has begun there, by its configuration."""
    return "invariance" in _configuration(folder)


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _so_far(folder: Path) -> dict[str, Any]:
    """What stands for the record of a run that has none yet."""
    config = _configuration(folder)
    stated = {key: config.get(key) for key in ("method", "invariance", "form", "seed")}
    return stated | {
        "kind": KIND,
        "config": config,
        "notes": ["training has not ended: these are the epochs so far, and no encoder is there yet"],
    }


def _views(folder: Path) -> Path | None:
    """The sheet, unless it is a link that leads out of the folder."""
    file = folder / VIEWS_FILE
    return file if file.is_file() and file.resolve().is_relative_to(folder.resolve()) else None
