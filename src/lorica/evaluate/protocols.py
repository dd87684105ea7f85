"""`lorica evaluate ENCODER --protocol slf,alf,aff`: encoder -> fine-tuning by recipe -> evaluation -> protocols.json.

OUTPUT/<protocol> is a run of `lorica finetune`, with its evaluation in OUTPUT/<protocol>/evaluation, which touches the
test set once; the teacher of `semi` is made by another run, in OUTPUT/semi-teacher. protocols.json, schema 1:

- "schema"; "provenance": configuration, versions, seed, hardware
- "protocols": by name, in the order slf, alf, aff, semi:
    - "natural", "pgd20" (by the number of its steps; absent with none), "robust": rates as in robustness.json, at
      "threat", the largest radius; "upper_bound": whether a weaker tier than AutoAttack ran
    - "corruptions": mean rate or null
    - "seconds" of training, "attack_seconds"
    - "recipe": the fields of FinetuneConfig that the protocol sets; "preset" or null; "labels": share; "counts"
    - "data": source, part, pictures, sha256 of the evaluated pictures; "encoder_sha256"; "notes"
"""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lorica.artefacts import (
    CONFIG_FILE,
    EVALUATION,
    RUN_FILE,
    prepare_output,
    provenance,
    read_json,
    sole_writer,
    write_json,
)
from lorica.data.labelled import read_labelled
from lorica.errors import LoricaError
from lorica.evaluate.config import ENCODER, EvaluateConfig
from lorica.evaluate.runner import ROBUSTNESS_FILE
from lorica.evaluate.runner import run as evaluate
from lorica.evaluate.verdict import percent
from lorica.finetune import FinetuneConfig
from lorica.finetune import run as finetune
from lorica.finetune.recipes import TITLES, Recipe, changes
from lorica.fingerprint import weights_digest
from lorica.progress import console
from lorica.resume import settled
from lorica.vision import Classifier, ModelConfig, load_classifier
from lorica.vision.batch_norm import split_routes
from lorica.vision.loading import DESCRIPTION_FILE

SCHEMA = 1
PROTOCOLS_FILE = "protocols.json"
TEACHER_FOLDER = "semi-teacher"
_RATE = ("value", "low", "high", "correct", "n", "level")


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Fine-tune and evaluate an encoder by each protocol of the configuration.

    Args:
        config: of the evaluation; `config.protocol.names` is not empty.

    Returns:
        The contents of OUTPUT/protocols.json, with the protocols of earlier calls where `resume` is set.

    Raises:
        LoricaError: bad input, before any work starts.
        KeyboardInterrupt: after Ctrl-C; what was done is kept.
    """
    if not config.protocol.names:
        raise LoricaError("no protocol is asked for", "Say which: --protocol slf,alf,aff.")
    if config.resume and config.overwrite:
        raise LoricaError("--resume and --overwrite contradict each other", "Give one of them.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LoricaError("protocols run in a single process", "Start them without torchrun or accelerate.")
    model = config.model.model_copy(update={"name": encoder_folder(config.model.name)})
    prepare_output(config.folder, marker=PROTOCOLS_FILE, resume=config.resume, overwrite=config.overwrite)
    encoder, _ = load_classifier(model)
    names: list[str] = [name for name in TITLES if name in config.protocol.names]
    digest = weights_digest(encoder)
    starts = dict.fromkeys(names, digest)
    if "semi" in names:
        taught = _teachers(model, encoder)
        starts[TEACHER_FOLDER] = weights_digest(load_classifier(taught)[0])
    recipes = {name: _fitting(config.protocol.recipe(name), encoder) for name in names}
    runs = {name: _finetune_config(config, model, name, recipe) for name, recipe in recipes.items()}
    read_labelled(config.data, size=encoder.architecture.size, cache=_cache(config))
    with sole_writer(config.folder):
        earlier = _earlier(config, digest, starts)
        try:
            for name in names:
                console.print(f"[bold]{name.upper()}[/], {TITLES[name]}")
                if name == "semi":
                    finetune(_finetune_config(config, taught, TEACHER_FOLDER, config.protocol.teacher()))
                record = finetune(runs[name])
                found = _evaluated(_evaluate_config(config, name))
                earlier[name] = _entry(record, found, recipes[name], config, encoder)
                result = _result(config, earlier)
                write_json(config.folder / PROTOCOLS_FILE, result)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("what was done is kept; go on with --resume") from interrupt
    return result


def print_protocols(result: dict[str, Any]) -> None:
    """One line per protocol, and what to know of them."""
    found = result["protocols"]
    table = Table("accuracy, %", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    plain = {key: f"PGD-{key[3:]}" for entry in found.values() for key in entry if key.startswith("pgd")}
    columns = {"natural": "natural"} | plain | {"robust": "worst case", "corruptions": "corrupted"}
    columns = {key: shown for key, shown in columns.items() if any(entry.get(key) for entry in found.values())}
    for shown in columns.values():
        table.add_column(shown, justify="right", no_wrap=True)
    for name, entry in found.items():
        rates = [entry.get(key) for key in columns]
        table.add_row(name.upper(), *(escape(percent(rate)) if rate else "" for rate in rates))
    console.print(table)
    for text in dict.fromkeys(f"{entry['threat']}, AutoAttack tier {entry['tier']}" for entry in found.values()):
        console.print(f"Worst case within {escape(text)}.")
    for note in dict.fromkeys(note for entry in found.values() for note in entry["notes"]):
        console.print(f"[yellow]note:[/] {escape(note)}")


def encoder_folder(name: str) -> str:
    """What to load: of a pre-training run its encoder; other names are as they are.

    Raises:
        LoricaError: there is no such folder, or no model in it.
    """
    folder = Path(name)
    if folder.is_dir():
        places = (folder, folder / ENCODER)
        found = next((place for place in places if (place / DESCRIPTION_FILE).is_file()), None)
        if found is None:
            raise LoricaError(
                f"{folder} holds no encoder ({ENCODER}/{DESCRIPTION_FILE})",
                "Give the folder of a finished `lorica pretrain`, or one that timm can load.",
            )
        return str(found)
    # A hub id has one slash, and its owner is no folder here.
    if "/" in name and (name.count("/") > 1 or folder.parent.is_dir()):
        raise LoricaError(f"encoder folder not found: {name}", "Check the path.")
    return name


# ----- what is to be done -------------------------------------------------------------------------------------------
def _fitting(recipe: Recipe, encoder: Classifier) -> Recipe:
    """The recipe without two sets of batch norms, for a network that has none."""
    if recipe.get("options", {}).get("batch_norm") == "dual" and not _batch_norms(encoder):
        recipe["options"]["batch_norm"] = "shared"
    return recipe


def _batch_norms(encoder: Classifier) -> int:
    return split_routes(copy.deepcopy(encoder), ("natural", "adversarial"))


def _teachers(model: ModelConfig, encoder: Classifier) -> ModelConfig:
    """What the teacher of `semi` begins with: the encoder along its natural batch norms, where it brings them."""
    return model if encoder.natural_norms is None else model.model_copy(update={"route": "natural"})


def _finetune_config(config: EvaluateConfig, model: ModelConfig, name: str, recipe: Recipe) -> FinetuneConfig:
    if name == "semi":
        teacher = config.folder / TEACHER_FOLDER / "model"
        recipe = recipe | {"options": recipe["options"] | {"teacher": str(teacher)}}
    return FinetuneConfig(
        **recipe,
        data=config.data,
        output=config.folder / name,
        model=model,
        split=config.split,
        evaluate="none",
        seed=config.seed,
        device=config.device,
        cache=_cache(config),
        resume=config.resume,
        overwrite=config.overwrite,
    )


def _evaluate_config(config: EvaluateConfig, name: str) -> EvaluateConfig:
    folder = config.folder / name
    return EvaluateConfig(
        **config.model_dump(exclude={"model", "protocol", "output", "split", "cache", "resume", "overwrite"}),
        model=ModelConfig(name=str(folder / "model")),
        output=folder / EVALUATION,
        split=folder / "split.json",
        cache=_cache(config),
        overwrite=True,
    )


def _cache(config: EvaluateConfig) -> Path:
    return config.cache or config.folder / "cache"


# ----- what was done before -----------------------------------------------------------------------------------------
def _earlier(config: EvaluateConfig, digest: str, starts: dict[str, str]) -> dict[str, Any]:
    """Results of earlier calls, where they are welcome; what is to be replaced is removed.

    Args:
        config: of the evaluation.
        digest: of the encoder.
        starts: by folder of a training run, the digest of the weights that it begins with.

    Raises:
        LoricaError: they are of another encoder.
    """
    file = config.folder / PROTOCOLS_FILE
    if config.overwrite:
        for name in starts:
            if (config.folder / name / CONFIG_FILE).is_file():
                shutil.rmtree(config.folder / name)
        file.unlink(missing_ok=True)
    found = read_json(file, "earlier protocols") if file.is_file() else {}
    found = found.get("protocols") if isinstance(found, dict) else None
    found = found if isinstance(found, dict) else {}
    begun = {name: config.folder / name / RUN_FILE for name in starts}
    records = {name: read_json(place, "record of the run") for name, place in begun.items() if place.is_file()}
    known = [(entry.get("encoder_sha256") if isinstance(entry, dict) else None, digest) for entry in found.values()]
    known += [(record.get("start") if isinstance(record, dict) else None, starts[n]) for n, record in records.items()]
    if any(there != here for there, here in known):
        raise LoricaError(
            f"{config.folder} holds protocols of another encoder", "Give another --output, or --overwrite to replace."
        )
    return found


def _evaluated(config: EvaluateConfig) -> dict[str, Any]:
    """The evaluation; the earlier one where the very same was asked for."""
    file = config.folder / ROBUSTNESS_FILE
    if file.is_file():
        found: dict[str, Any] = read_json(file, "earlier evaluation")
        if found["provenance"]["config"] == config.model_dump(mode="json"):
            return found
    return evaluate(config)


# ----- what came out ------------------------------------------------------------------------------------------------
def _entry(
    record: dict[str, Any], found: dict[str, Any], recipe: Recipe, config: EvaluateConfig, encoder: Classifier
) -> dict[str, Any]:
    preset, worst = config.protocol.preset, found["threats"][-1]
    plain = worst["pgd"]
    corruptions = found["corruptions"]
    notes = [*record["notes"], *found["warnings"]]
    dual = recipe.get("options", {}).get("batch_norm") == "dual"
    if dual and encoder.natural_norms is None:
        notes.append("The encoder brings no batch norms for natural pictures: in AFF they began as its only ones.")
    if preset is not None:
        notes.append(f"Preset {preset}, tuned by its authors for their encoder, changes {changes(preset)}.")
    return {
        "natural": _rate(found["natural"]),
        **({f"pgd{plain['steps']}": _rate(plain["accuracy"])} if plain else {}),
        "robust": _rate(worst["robust"]),
        "threat": worst["text"],
        "tier": worst["autoattack"]["tier"],
        "upper_bound": worst["upper_bound"],
        "corruptions": None if corruptions is None else _rate(corruptions["mean"]),
        "seconds": record["seconds"],
        "attack_seconds": found["cost"]["attacks"]["seconds"],
        "recipe": recipe,
        "preset": preset,
        "labels": config.protocol.labels,
        "counts": record["counts"],
        "data": {key: found["data"][key] for key in ("source", "part", "pictures", "sha256")},
        "encoder_sha256": record["start"],
        "notes": list(dict.fromkeys(notes)),
    }


def _rate(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in _RATE if key in found}


def _result(config: EvaluateConfig, entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "provenance": provenance(settled(config).model_dump(mode="json"), config.seed),
        "protocols": {name: entries[name] for name in TITLES if name in entries},
    }
