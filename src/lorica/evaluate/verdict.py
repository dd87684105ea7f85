"""The evaluation in plain words: how much is left, of how many, how sure, and what it may not be taken for."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorica.robustness.flags import Flag


def judge(
    natural: Mapping[str, Any],
    threats: Sequence[Mapping[str, Any]],
    *,
    tier: str,
    part: str,
    flags: Sequence[tuple[str | None, Flag]],
    corruptions: Mapping[str, Any] | None,
    membership: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Say it.

    Args:
        natural: the rate without an attacker.
        threats: entries of robustness.json, weakest first.
        tier: of AutoAttack.
        part: of the data.
        flags: with the radius that each is about, if any.
        corruptions: the table, or None.
        membership: its result, or None.

    Returns:
        {"upper_bound": bool, "trusted": bool, "text": sentences}. Trusted, unless a flag is raised that makes the
        robust accuracy doubtful.
    """
    worst = threats[-1]
    of = f"{worst['robust']['n']:,} {f'{part} pictures' if part != 'all' else 'pictures'}"
    by, rate = _attackers(worst, tier, flags), percent(worst["robust"])
    if tier == "standard":
        left = f"{by[:1].upper()}{by[1:]} within {worst['text']} left {rate} of {of} rightly classified"
    else:
        left = (
            f"Within {worst['text']} at most {rate} of {of} stay rightly classified: an upper bound, as only {by} "
            "ran, and standard AutoAttack usually finds more"
        )
    sentences = [f"{left}; without an attacker {percent(natural)}."]
    for entry in threats[:-1]:
        sentences.append(f"Within {entry['text']}: {'at most ' * (tier != 'standard')}{percent(entry['robust'])}.")
    if corruptions is not None:
        files = "official files" if corruptions["source"] == "official" else "corruptions generated here"
        mean = percent(corruptions["mean"])
        sentences.append(
            f"Under {len(corruptions['types'])} common corruptions ({files}) it is right {mean} of the time."
        )
    if membership is not None:
        sentences += _membership(membership, worst)
    doubts = [(where, flag) for where, flag in flags if flag.raised and flag.doubt]
    if doubts:
        said = dict.fromkeys(flag.problem for _, flag in doubts)
        sentences.append(f"But the true robust accuracy may be lower: {'; '.join(said)}.")
    return {"upper_bound": tier != "standard", "trusted": not doubts, "text": " ".join(sentences)}


def _attackers(worst: Mapping[str, Any], tier: str, flags: Sequence[tuple[str | None, Flag]]) -> str:
    names = [attack["name"].upper() for attack in worst["autoattack"]["attacks"]]
    if tier == "standard":
        changed = any(flag.raised and flag.name in ("few_classes", "square_padded") for _, flag in flags)
        names = ["AutoAttack, changed where it does not fit this model," if changed else "standard AutoAttack"]
    if worst["broken_by_pgd_only"] or (worst["pgd"] and tier != "standard"):
        names.append("plain PGD")
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _membership(membership: Mapping[str, Any], worst: Mapping[str, Any]) -> list[str]:
    name = membership["worst_attack"]
    auc = membership["attacks"][name]["auc"]
    told = (
        "It leaks which pictures it was trained on"
        if membership["leaks"]
        else "No leak of its training pictures was found"
    )
    return [
        f"{told}: by {name}, members are told from others with an AUC of {auc['value']:.3f} [{auc['low']:.3f}, "
        f"{auc['high']:.3f}], where 0.5 is chance ({membership['members']} of each).",
        f"Side by side: robust accuracy {100 * worst['robust']['value']:.1f} %, membership AUC {auc['value']:.3f}.",
    ]


def percent(rate: Mapping[str, Any]) -> str:
    """ "41.2 % [39.1, 43.3]"."""
    return f"{100 * rate['value']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
