"""`lorica audit`: model and split -> features -> scores -> audit.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorica.artefacts import prepare_output, provenance, read_json, write_json
from lorica.audit.attacks.base import Attack, Features, Groups, StatisticAttack
from lorica.audit.canaries import canaries_of, canary_bound
from lorica.audit.captions import FILE, described
from lorica.audit.collection import Halves, collection_test
from lorica.audit.config import AuditConfig
from lorica.audit.controls import METHOD, blind_scores, control, estimate
from lorica.audit.exposure import most_exposed, write_thumbnails
from lorica.audit.extract import BASE, extract
from lorica.audit.gate import Gate
from lorica.audit.score import MembershipScores
from lorica.audit.shadows import of_this_base, shadow_features, shadows_of
from lorica.audit.subjects import Models, split_of, subjects_of
from lorica.audit.verdict import judge
from lorica.data import GROUPS, Split
from lorica.errors import LoricaError
from lorica.shadows import Shadow

SCHEMA = 1
AUDIT_FILE = "audit.json"


def run(config: AuditConfig) -> dict[str, Any]:
    """Audit a LoRA, or a base model; the same as `lorica audit`.

    Returns:
        The contents of OUTPUT/audit.json. Where `["gate"]["failed"]` is true the command exits with code 3.

    Raises:
        LoricaError: bad input, before any model runs; or no attack could be run. Features stay on disk.
    """
    prepare_output(config.output, marker=AUDIT_FILE, resume=True)
    split = split_of(config)
    attacks = {name: config.attack(name) for name in config.attacks}
    shadows, why_none = shadows_of(config, split)
    attacks, skipped = _possible(attacks, config, None if shadows else why_none)
    canaries, unread = canaries_of(config.lora)
    models, target, warnings = subjects_of(config, split)
    _refuse_other_audit(config, target)
    if shadows:
        shadows, why_none = of_this_base(shadows, target["base_fingerprint"])
        attacks, foreign = _possible(attacks, config, None if shadows else why_none)
        skipped += foreign
    warnings = [*split.notes, *_balance(split, config), *warnings, *skipped, *unread]
    target |= {"shadows": len(shadows)}

    features = _extract(config, attacks, models, shadows)
    results: dict[str, dict[str, Any]] = {}
    scores: dict[str, MembershipScores] = {}
    on_base: dict[str, MembershipScores] = {}
    halves: dict[str, dict[str, tuple[MembershipScores, MembershipScores]]] = {"target": {}, "base": {}}
    for name, attack in attacks.items():
        try:
            auxiliary, scores[name] = halves["target"][name] = _score(attack, features["target", name], split, config)
            results[name] = _result(attack, auxiliary, scores[name], config)
            if ("base", name) in features and not attack.needs_base:
                _, on_base[name] = halves["base"][name] = _score(attack, features["base", name], split, config)
        except LoricaError as error:
            for found in (scores, results, on_base, *halves.values()):
                found.pop(name, None)  # type: ignore[attr-defined]
            warnings.append(f"{name} was not run: {error.problem}")
    if not results:
        raise LoricaError("no attack could be run", "\n".join(warnings))

    blind = control({"blind": blind_scores(split.groups)}, config.level, "fair")["blind"] | {"method": METHOD}
    base_control = control(on_base, config.level, "covers_chance")
    objections = _objections(target, blind, base_control)
    exposed = {name: most_exposed(found) for name, found in scores.items()}
    write_thumbnails(config.output, exposed, split.groups["test_members"], config.thumbnails)
    thresholds = {name: results[name]["asr"]["threshold"] for name in results}
    audit = {
        "schema": SCHEMA,
        "provenance": provenance(config.model_dump(mode="json"), config.seed),
        "target": target,
        "captions": described(config.captions),
        "counts": {group: len(split.groups[group]) for group in GROUPS},
        "attacks": results,
        "exposed": exposed,
        "collection": _collection(attacks, halves, config.seed, fair=not objections),
        "canaries": canaries and canary_bound(config, canaries, models, target),
        "controls": {"base": base_control, "blind": blind},
        "verdict": judge(
            scores, {name: attacks[name] for name in scores}, level=config.level, fprs=config.fprs,
            subject="The base model" if config.lora is None else "The LoRA", objections=objections,
            shadows=None if config.lora is None else len(shadows),
        ),
        "warnings": list(dict.fromkeys([*warnings, *objections])),
        "gate": None if config.fail_if is None else Gate.parse(config.fail_if).check(scores, thresholds, config.level),
    }  # fmt: skip
    write_json(config.output / AUDIT_FILE, audit)
    return audit


def _possible(
    attacks: Mapping[str, Attack], config: AuditConfig, no_shadows: str | None
) -> tuple[dict[str, Attack], list[str]]:
    """The attacks that have what they need, and why the others have not.

    Raises:
        LoricaError: none has.
    """
    lacking: dict[str | None, list[str]] = {}
    for name, attack in attacks.items():
        lacking.setdefault(_lack(attack, config, no_shadows), []).append(name)
    possible = {name: attacks[name] for name in lacking.pop(None, [])}
    left_out = [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} not run: {reason}"
        for reason, names in lacking.items()
    ]
    if not possible:
        raise LoricaError("no attack could be run", "\n".join(left_out))
    return possible, left_out


def _lack(attack: Attack, config: AuditConfig, no_shadows: str | None) -> str | None:
    if attack.needs_base and config.lora is None:
        return "there is no LoRA to compare with its base"
    if attack.needs_lora and config.lora is None:
        return "there is no LoRA whose weights could be looked at"
    if attack.needs_shadows and no_shadows:
        return no_shadows
    if attack.needs_caption and config.captions != FILE:
        return "each picture's own caption is needed (--captions file)"
    return None


def _refuse_other_audit(config: AuditConfig, target: Mapping[str, Any]) -> None:
    file = config.output / AUDIT_FILE
    if config.overwrite or not file.exists():
        return
    before = read_json(file, "earlier audit").get("target", {})
    if any(before.get(key) != target[key] for key in ("base_fingerprint", "lora_sha256")):
        raise LoricaError(
            f"{config.output} holds the audit of another model ({before.get('lora') or before.get('base')})",
            "Give another --output, or --overwrite to replace it.",
        )


# ----- features -----------------------------------------------------------------------------------------------------
def _extract(
    config: AuditConfig, attacks: Mapping[str, Attack], models: Models, shadows: Sequence[Shadow] = ()
) -> dict[tuple[str, str], Features]:
    """Features by (subject, attack). The base model is asked for the negative control, or for comparison."""
    folder = (config.cache or config.output) / "features"
    features: dict[tuple[str, str], Features] = {}
    base = models.base()
    subjects = {"target": base} if config.lora is None else {"target": models.lora(), "base": base}
    for who, subject in subjects.items():
        asked = {name: a for name, a in attacks.items() if not (a.needs_lora and subject.state == BASE)}
        answers = extract(asked, subject, folder=folder, seed=config.seed, batch_size=config.batch_size)
        features |= {(who, name): found for name, found in answers.items()}
    needy = {name: attack for name, attack in attacks.items() if attack.needs_shadows}
    for name, found in shadow_features(config, needy, models, shadows, folder).items():
        for who in subjects:
            if (who, name) in features:
                features[who, name] |= found
    for name, attack in attacks.items():
        if attack.needs_base:
            features["target", name] |= {f"base_{key}": value for key, value in features["base", name].items()}
    return features


# ----- scores -------------------------------------------------------------------------------------------------------
def _score(
    attack: Attack, features: Features, split: Split, config: AuditConfig
) -> tuple[MembershipScores, MembershipScores]:
    """(auxiliary scores, test scores)."""
    groups: Groups = {}
    start = 0
    for group in GROUPS:
        stop = start + len(split.groups[group])
        groups[group] = {name: values[start:stop] for name, values in features.items()}
        start = stop
    scores = attack.score(groups, config.seed)
    try:
        halves = [
            MembershipScores(scores[f"{half}_members"], scores[f"{half}_nonmembers"]) for half in ("aux", "test")
        ]
    except ValueError as error:
        raise LoricaError(f"its scores are unusable: {error}", "Is the model damaged?") from error
    return halves[0], halves[1]


def _result(
    attack: Attack, auxiliary: MembershipScores, scores: MembershipScores, config: AuditConfig
) -> dict[str, Any]:
    """One attack's entry in audit.json. The ASR's threshold is from auxiliary scores, only the oracle's from these."""
    level = config.level
    threshold = auxiliary.oracle_threshold()
    return {
        "threat_model": attack.threat_model,
        "needs_caption": attack.needs_caption,
        "queries": attack.queries,
        "trials": attack.trials,
        "source": attack.source,
        "options": attack.options.model_dump(mode="json"),
        "auc": estimate(scores.auc, scores.interval("auc", level=level)) | {"level": level},
        "auc_distance": scores.auc_distance,
        "asr": estimate(scores.asr(threshold), scores.interval("asr", threshold=threshold, level=level))
        | {"threshold": threshold, "constant_answer": scores.constant_asr},
        "oracle_asr": estimate(scores.oracle_asr(), scores.interval("oracle_asr", level=level))
        | {"threshold": scores.oracle_threshold()},
        "tpr": {
            f"{fpr:g}": estimate(scores.tpr_at(fpr), scores.interval("tpr", fpr=fpr, level=level))
            | {"attained_fpr": scores.attained_fpr(fpr), "reliable": scores.reliable(fpr), "note": scores.note(fpr)}
            for fpr in config.fprs
        },
        "scores": {"members": scores.members.tolist(), "nonmembers": scores.nonmembers.tolist()},
    }


def _collection(
    attacks: Mapping[str, Attack], halves: Mapping[str, Halves], seed: int, *, fair: bool
) -> dict[str, Any] | None:
    """The test of the members as one collection, over the attacks whose scores are fixed; None where there is none."""
    target, base = (
        {name: pair for name, pair in halves[who].items() if isinstance(attacks[name], StatisticAttack)}
        for who in ("target", "base")
    )
    return collection_test(target, base, seed=seed, fair=fair) if target else None


def _objections(target: Mapping[str, Any], blind: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Why the result is not to be trusted."""
    found = []
    if target.get("base_matches") is False:
        found.append(
            "the LoRA was trained on another base model than the one it is audited on, where a leak may not show"
        )
    if not blind["fair"]:
        found.append(
            "members and non-members can be told apart without the model "
            f"(blind baseline AUC {blind['auc']['value']:.2f}), so the split is unfair"
        )
    off = [name for name, control in base.items() if not control["covers_chance"]]
    if off:
        found.append(
            f"on the base model, which saw no member, {', '.join(off)} {'is' if len(off) == 1 else 'are'} away from "
            f"chance, beyond what {len(base)} fair controls show by accident"
        )
    return found


def _balance(split: Split, config: AuditConfig) -> list[str]:
    """Warnings about the sizes of the test groups."""
    members, nonmembers = (len(split.groups[group]) for group in ("test_members", "test_nonmembers"))
    found = []
    poor = [f for f in config.fprs if nonmembers * f < 10 * (1 - 1e-9)]
    if poor:
        rates = ", ".join(f"{100 * f:g} %" for f in poor)
        found.append(
            f"{nonmembers} test non-members are too few for a TPR at {rates} FPR (10 / FPR are wanted): it is shown, "
            "not to be relied on"
        )
    if members != nonmembers:
        constant = max(members, nonmembers) / (members + nonmembers)
        found.append(f"the test groups differ in size: a constant answer has an ASR of {constant:.3f}")
    return found
