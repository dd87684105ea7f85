"""What a robustness report is made of: one evaluated model, with the record and the log of its training."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorica.artefacts import RUN_FILE, read_json
from lorica.report.run import Estimate, finite, read_lines, read_result, section

SCHEMA = 1
ROBUSTNESS_FILE = "robustness.json"
METRICS_FILE = "metrics.jsonl"

METHODS = {
    "autolora": "AutoLoRa", "twins": "TWINS", "vanilla": "Vanilla (TRADES)", "at": "AT", "linear": "Linear head"
}  # fmt: skip
"""Methods of `lorica finetune` as papers call them."""


@dataclass(frozen=True)
class RobustnessRun:
    """One column of the report.

    Attributes:
        label: the name shown to the reader.
        evaluation: the contents of robustness.json.
        record: the contents of the training's run.json; empty for a model from elsewhere.
        metrics: the lines of the training's metrics.jsonl.
        pictures: files of the examples, by the name under which the evaluation lists them.
    """

    label: str
    evaluation: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)

    def part(self, *path: str) -> dict[str, Any]:
        """A section of the evaluation, empty where it is absent."""
        return section(self.evaluation, *path)

    @property
    def objective(self) -> str:
        """What decides the look of the run: the method of its training."""
        known = [self.part("model").get("method"), self.record.get("method")]
        return next((str(method) for method in known if method not in (None, "", "unknown")), "")

    @property
    def method(self) -> str | None:
        """How it was trained, where that is known."""
        if self.objective == "linear" and self.record:
            adversarial = section(self.record, "config", "options").get("adversarial") is True
            return f"{'ALF' if adversarial else 'SLF'} (linear head)"
        return METHODS.get(self.objective, self.objective or None)

    @property
    def weights(self) -> str | None:
        """Which were evaluated, "ema" or "raw".

        An evaluation that ends a training is older than its record, and cannot say so itself.
        """
        known = [self.part("model").get("weights"), self.record.get("weights")]
        return next((str(weights) for weights in known if weights in ("ema", "raw")), None)

    @property
    def classes(self) -> list[str]:
        """Names of the model's outputs."""
        names = self.part("model").get("classes")
        return [str(name) for name in names] if isinstance(names, list) else []

    @property
    def natural(self) -> Estimate:
        """Accuracy without an attacker."""
        return Estimate.of(self.part("natural"))

    @property
    def threats(self) -> list[dict[str, Any]]:
        """One entry per radius, weakest first."""
        return objects(self.evaluation.get("threats"))

    @property
    def worst(self) -> dict[str, Any]:
        """The entry of the largest radius."""
        return self.threats[-1] if self.threats else {}

    def at(self, radius: str | None) -> dict[str, Any]:
        """The entry of a radius, by its text, or of the largest one; empty where there is none."""
        if radius is None:
            return self.worst
        return next((entry for entry in self.threats if str(entry.get("text")) == radius), {})

    def robust(self, radius: str | None = None) -> Estimate:
        """Accuracy in the worst case at a radius, or at the largest one."""
        return Estimate.of(self.at(radius).get("robust"))

    @property
    def upper_bound(self) -> bool | None:
        """The evaluation's own word; None where it gave none. The report never judges by itself."""
        return _flag(self.part("verdict").get("upper_bound"))

    @property
    def trusted(self) -> bool | None:
        """Likewise."""
        return _flag(self.part("verdict").get("trusted"))

    @property
    def flags(self) -> list[dict[str, Any]]:
        """Reasons for care, raised or not."""
        return objects(self.evaluation.get("flags"))

    @property
    def membership(self) -> Estimate:
        """AUC of the strongest membership attack."""
        worst = self.part("membership").get("worst_attack")
        return Estimate.of(self.part("membership", "attacks", str(worst)).get("auc"))

    @property
    def epochs(self) -> list[dict[str, float]]:
        """What was logged at the end of each epoch, by rising epoch; all values are finite."""
        rows = [{str(k): v for k, v in ((k, finite(v)) for k, v in row.items()) if v is not None}
                for row in self.metrics]  # fmt: skip
        return sorted((row for row in rows if "epoch" in row), key=lambda row: row["epoch"])


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a JSON array; none where there is no array."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def radii(runs: Iterable[RobustnessRun]) -> list[str]:
    """What was allowed to the attackers, weakest first within each norm."""
    found: dict[str, tuple[str, float]] = {}
    for run in runs:
        for entry in run.threats:
            found.setdefault(str(entry.get("text")), (str(entry.get("norm")), finite(entry.get("eps")) or 0.0))
    norms = list(dict.fromkeys(norm for norm, _ in found.values()))
    return sorted(found, key=lambda text: (norms.index(found[text][0]), found[text][1]))


def shared_radius(runs: Iterable[RobustnessRun]) -> str | None:
    """The largest radius at which all runs were attacked that were attacked at all: there they can be compared."""
    attacked = [run for run in runs if run.threats]
    shared = [text for text in radii(attacked) if all(run.at(text) for run in attacked)]
    return shared[-1] if shared else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def load_robustness(evaluation_folder: Path, run_folder: Path | None = None) -> RobustnessRun:
    """Read what `lorica evaluate` and `lorica finetune` wrote.

    Args:
        evaluation_folder: holds robustness.json, and the pictures that it lists as examples.
        run_folder: holds run.json and metrics.jsonl of the training, either of which may be absent.

    Raises:
        LoricaError: there is no evaluation in the folder, or a file is damaged or of another schema.
    """
    evaluation = read_result(evaluation_folder / ROBUSTNESS_FILE, "robustness evaluation", SCHEMA)
    record: Any = None
    if run_folder is not None and (run_folder / RUN_FILE).is_file():
        record = read_json(run_folder / RUN_FILE, "record of the run")
    run = RobustnessRun(
        label="",
        evaluation=evaluation,
        record=record if isinstance(record, dict) else {},
        metrics=read_lines(run_folder / METRICS_FILE) if run_folder is not None else [],
        pictures=_pictures(evaluation_folder, evaluation),
    )
    return replace(run, label=_name(run, evaluation_folder, run_folder))


def _name(run: RobustnessRun, evaluation_folder: Path, run_folder: Path | None) -> str:
    """What to call the model: its training, else its name; an exported model's folder is always called the same."""
    name = str(run.part("model").get("name") or "")
    return run.method or (name if name != "model" else "") or (run_folder or evaluation_folder.absolute()).name


def _pictures(folder: Path, evaluation: dict[str, Any]) -> dict[str, Path]:
    """Only files that are there and within the folder: the names in the JSON may come from anyone."""
    names = {
        name
        for example in objects(evaluation.get("examples"))
        for name in section(example, "files").values()
        if isinstance(name, str)
    }
    files = {name: _within(folder.resolve(), name) for name in sorted(names)}
    return {name: file for name, file in files.items() if file is not None}


def _within(folder: Path, name: str) -> Path | None:
    try:
        file = (folder / name).resolve()
        return file if file.is_relative_to(folder) and file.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None
