"""`lorica evaluate`: model and pictures -> natural accuracy -> attacks, corruptions, membership -> robustness.json.

The file, schema 1; a *rate* is {"value", "low", "high", "correct", "n", "level"} with a Clopper-Pearson interval:

- "schema"; "provenance": configuration, versions, seed, hardware
- "model": name, architecture, arguments, size, classes, mean, std, parameters, "method" of its training (or unknown),
  "weights" (ema, raw or unknown), sha256
- "data": source (a name, no path), part, pictures, counts by class, sha256 of pictures and labels, whether of a split
- "natural": rate, with "per_class" {class: rate}, "confusion" [true][predicted] (null beyond 100 classes), "confused"
- "threats": one entry per radius, weakest first:
    - "eps", "norm", "text"
    - "pgd": steps, restarts, step_size, "accuracy" rate, forwards, backwards, seconds; or null
    - "autoattack": tier, settings, "accuracy" rate, and "attacks": in order, with name, attacked, broken, "accuracy"
      rate after it, forwards, backwards, seconds
    - "robust": rate in the worst case over AutoAttack, PGD and smaller radii; "upper_bound": whether of a weaker tier
    - "broken_by_pgd_only", "carried_from_smaller_eps"
    - "recheck" of all adversarial pictures: checked, refused, too_far, outside, not_finite, unconfirmed
    - "per_class", "confusion", "confused" in the worst case
- "curve": rates with "eps", from 0 on
- "corruptions": see `corrupted.Corruptions.table`; "membership": see `membership.membership`; each may be null
- "flags": [{"threat", "name", "raised", "value", "problem", "advice", "doubt"}], see `lorica.robustness.flags`
- "cost": {"forwards", "backwards", "seconds"} of the attacks and of the rest, in pictures that passed the model
- "examples": see `examples.write_examples`
- "verdict": {"upper_bound", "trusted", "text"}; "warnings": sentences

OUTPUT/attacks and OUTPUT/corrupted hold what was measured, under hashes of all that it depends on: the same command
goes on where it was stopped, and another one takes from them what it can.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter
from typing import Any

from torch import Tensor

from lorica.artefacts import EVALUATION, prepare_output, provenance, read_json, sole_writer, write_json
from lorica.devices import exactly, pick_device
from lorica.errors import LoricaError
from lorica.evaluate.attacks import FOLDER as ATTACKS
from lorica.evaluate.attacks import Attacked, attack_at, confusions
from lorica.evaluate.config import EvaluateConfig
from lorica.evaluate.corrupted import FOLDER as CORRUPTED
from lorica.evaluate.corrupted import Corruptions, corruptions_of
from lorica.evaluate.examples import FOLDER as EXAMPLES
from lorica.evaluate.examples import write_examples
from lorica.evaluate.membership import membership, shadows_of
from lorica.evaluate.shadow_classifiers import FOLDER as SHADOWS
from lorica.evaluate.shadow_classifiers import recipe_file
from lorica.evaluate.subject import Subject, subject_of
from lorica.evaluate.verdict import judge
from lorica.robustness.accuracy import per_class, rate
from lorica.robustness.attacked import Counted, as_floats, predict
from lorica.robustness.autoattack import TIERS, original
from lorica.robustness.flags import Flag, probe, unanswered
from lorica.robustness.folding import quick

SCHEMA = 1
ROBUSTNESS_FILE = "robustness.json"


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a classifier, or an encoder by protocols; the same as `lorica evaluate`.

    Returns:
        The contents of OUTPUT/robustness.json, or of OUTPUT/protocols.json where protocols are asked for.

    Raises:
        LoricaError: bad input, before any work starts.
        KeyboardInterrupt: after Ctrl-C; what was attacked is kept.
    """
    if config.protocol.names:
        from lorica.evaluate import protocols  # which fine-tunes, and then comes back here for each result

        return protocols.run(config)
    prepare_output(config.folder, marker=ROBUSTNESS_FILE, resume=True)
    original()
    device = pick_device(config.device)
    subject = subject_of(config)
    if config.shadows and subject.members is not None:
        recipe_file(subject.run)
    corrupted = corruptions_of(config, subject)
    with sole_writer(config.folder), _interruptible(), exactly(config.precision):
        earlier = _make_room(config, subject)
        subject.model.to(device)
        result = _evaluated(config, subject, corrupted, earlier)
        write_json(config.folder / ROBUSTNESS_FILE, result)
        if subject.run is not None and config.folder.absolute() == (subject.run / EVALUATION).absolute():
            from lorica.finetune.deliver import record_evaluation  # which imports this package

            record_evaluation(subject.run, result)
    return result


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("what was attacked is kept; the same command goes on from there") from interrupt


def _make_room(config: EvaluateConfig, subject: Subject) -> dict[str, Any]:
    """Make sure that no result is replaced unasked; returns what was found before and is not looked for again."""
    file = config.folder / ROBUSTNESS_FILE
    if not file.exists():
        return {}
    before = read_json(file, "earlier evaluation")
    if not isinstance(before, dict) or before.get("schema") != SCHEMA:
        before = {"model": {}, "data": {}}
    now = {"model": subject.about, "data": subject.data}
    same = {what: before[what].get("sha256") == known["sha256"] for what, known in now.items()}
    if all(same.values()):
        _require_as_thorough(config, before)
        asked = {"membership": subject.members is not None, "corruptions": bool(config.corruptions)}
        return {name: before[name] for name, again in asked.items() if before[name] and not again}
    if not config.overwrite:
        other = f"another model ({before['model'].get('name')})"
        if same["model"]:
            other = f"the same model on {before['data']['pictures']} other pictures (part {before['data']['part']})"
        raise LoricaError(
            f"{config.folder} holds the evaluation of {other}", "Give another --output, or --overwrite to replace it."
        )
    if same["model"]:
        return {}
    for name in (ATTACKS, CORRUPTED, EXAMPLES, SHADOWS):
        shutil.rmtree(config.folder / name, ignore_errors=True)
    file.unlink()
    return {}


def _require_as_thorough(config: EvaluateConfig, before: Mapping[str, Any]) -> None:
    """Refuse to put an upper bound in the place of a better one."""
    tiers, now = list(TIERS), {(threat.eps, threat.norm) for threat in config.threats}
    for threat in before["threats"]:
        tier = threat["autoattack"]["tier"]
        better = (threat["eps"], threat["norm"]) in now and tiers.index(tier) > tiers.index(config.tier)
        if better and not config.overwrite:
            raise LoricaError(
                f"{config.folder} holds the evaluation of tier {tier}, which says more than one of tier {config.tier}",
                "Give another --output, or --overwrite to replace it.",
            )


def _evaluated(
    config: EvaluateConfig, subject: Subject, corrupted: Corruptions | None, earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is measured now, with what was measured `earlier` of the same model and pictures."""
    model, began = Counted(subject.model), perf_counter()
    pixels, labels, classes = subject.pictures.pixels, subject.labels, subject.classes
    shadows = shadows_of(subject, config)
    with model.attacked():
        logits = predict(model, pixels, batch_size=config.batch_size)
        _require_finite(logits)
        flags: list[tuple[str | None, Flag]] = [
            (None, flag) for flag in probe(model, pixels, labels, batch_size=config.batch_size)
        ]
        flags.append((None, unanswered(logits.argmax(dim=1), labels, classes)))
        attacked: list[Attacked] = []
        with exactly():
            copied = Counted(quick(subject.model, as_floats(pixels[: config.batch_size], model.device)))
        for threat in config.threats:
            weaker = attacked[-1] if attacked else None
            attacked.append(attack_at(threat, model, copied, subject, config, logits, weaker))
            flags += [(str(threat), flag) for flag in attacked[-1].flags]
        corruptions = earlier.get("corruptions") if corrupted is None else corrupted.table(model)
        members = earlier.get("membership")
        if subject.members is not None:
            members = membership(model, copied, subject, config, shadows)
        said = logits.argmax(dim=1)
        examples = write_examples(model, subject, attacked[-1], said, config)
    right = said == labels
    natural = rate(right, config.level)
    threats = [found.entry for found in attacked]
    return {
        "schema": SCHEMA,
        "provenance": provenance(config.model_dump(mode="json"), config.seed),
        "model": subject.about,
        "data": subject.data,
        "natural": natural
        | {"per_class": per_class(right, labels, classes, config.level), **confusions(labels, said, classes)},
        "threats": threats,
        "curve": [{"eps": 0.0, **natural}, *({"eps": entry["eps"], **entry["robust"]} for entry in threats)],
        "corruptions": corruptions,
        "membership": members,
        "flags": [{"threat": where, **asdict(flag)} for where, flag in flags],
        "cost": _cost(threats, (model, copied), perf_counter() - began),
        "examples": examples,
        "verdict": judge(
            natural, threats, tier=config.tier, part=subject.data["part"], flags=flags, corruptions=corruptions,
            membership=members,
        ),
        "warnings": list(dict.fromkeys([*subject.notes, *(f"{name}: of an earlier call" for name in earlier)])),
    }  # fmt: skip


def _require_finite(logits: Tensor) -> None:
    bad = int((~logits.isfinite()).any(dim=1).sum())
    if bad:
        raise LoricaError(f"the model's logits are not finite for {bad} of {len(logits)} pictures", "Is it damaged?")


def _cost(threats: list[dict[str, Any]], models: Sequence[Counted], seconds: float) -> dict[str, Any]:
    """Of the attacks, whenever they ran; and of this call of the command as a whole."""
    parts: list[Mapping[str, Any]] = []
    for entry in threats:
        parts += [entry["pgd"]] if entry["pgd"] else []
        parts += entry["autoattack"]["attacks"]
    attacks = {key: sum(part[key] for part in parts) for key in ("forwards", "backwards", "seconds")}
    this = {key: sum(getattr(model, key) for model in models) for key in ("forwards", "backwards")}
    return {"attacks": attacks, "this_call": this | {"seconds": seconds}}
