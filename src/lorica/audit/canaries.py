"""What canaries prove: a lower bound on the epsilon of differential privacy, from one training run."""

from pathlib import Path
from typing import Any

import yaml

from lorica.artefacts import CONFIG_FILE
from lorica.audit.attacks import CalibratedLossAttack
from lorica.audit.config import AuditConfig
from lorica.audit.epsilon import one_run_audit
from lorica.audit.extract import extract
from lorica.audit.subjects import Models
from lorica.audit.target import find_run
from lorica.data.canaries import Canaries, load_canaries
from lorica.errors import LoricaError

LEVEL = 0.95


def canaries_of(lora: Path | None) -> tuple[Canaries | None, list[str]]:
    """The canaries of the run that a LoRA comes from, if it was trained with any; a warning where they are lost.

    The warning names no folder: it is written to audit.json.

    Raises:
        LoricaError: the run's configuration was changed by hand.
    """
    run = find_run(lora) if lora is not None else None
    if run is None:
        return None, []
    config = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8")) or {}
    count, seed = (config.get(key, 0) for key in ("canaries", "seed"))
    if not (isinstance(count, int) and isinstance(seed, int)):
        raise LoricaError(f"{run / CONFIG_FILE} was changed: canaries and seed are numbers", "Restore the file.")
    try:
        return load_canaries(run, count, seed) if count else None, []
    except LoricaError:
        return None, ["the canaries of this run are missing or damaged: nothing is said of epsilon"]


def canary_bound(config: AuditConfig, canaries: Canaries, models: Models, claimed: dict[str, Any]) -> dict[str, Any]:
    """The entry "canaries" of audit.json.

    The score of a canary is `calibrated-loss`, chosen beforehand; its coin is known to nobody but the run.

    Args:
        config: of the audit.
        canaries: pictures and coins.
        models: the base model and the LoRA under audit; their pictures are not looked at.
        claimed: "claimed_epsilon" and "claimed_delta", where the run was trained for differential privacy.
    """
    attack, pictures = CalibratedLossAttack(), canaries.pictures
    base = models.base(pictures, "the base model, about canaries")
    lora = models.lora(pictures, "the LoRA, about canaries")
    folder = (config.cache or config.output) / "features"
    on_lora, on_base = (
        extract({"it": attack}, subject, folder=folder, seed=config.seed, batch_size=config.batch_size)["it"]
        for subject in (lora, base)
    )
    scores = attack.statistic({"losses": on_lora["losses"], "base_losses": on_base["losses"]})
    delta = float(claimed.get("claimed_delta", 0.0))
    included = canaries.included
    bound = one_run_audit(scores, list(included), delta=delta, level=LEVEL, seed=config.seed)
    found = {
        "count": len(included),
        "included": sum(included),
        "attack": attack.name,
        "epsilon_lower_bound": bound,
        "delta": delta,
        "level": LEVEL,
        "claimed_epsilon": claimed.get("claimed_epsilon"),
    }
    return found | {"text": _sentence(found)}


def _sentence(found: dict[str, Any]) -> str:
    bound, claimed = found["epsilon_lower_bound"], found["claimed_epsilon"]
    start = f"Of {found['count']} canaries, coins put {found['included']} into training."
    terms = f"(delta {found['delta']:g}, one-sided {100 * found['level']:g} % confidence)"
    if not bound:
        return f"{start} The attack did not name enough of them to disprove any epsilon {terms}."
    about = f"{start} What the attack found of them proves an epsilon of at least {bound:.2f} {terms}"
    if claimed is None:
        return f"{about}."
    if bound > claimed:
        return f"{about}. That contradicts the epsilon of {claimed:.2f} that was claimed for this training."
    return f"{about}; {claimed:.2f} was claimed."
