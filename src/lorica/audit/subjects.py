"""What an audit looks at: which pictures are members, and the models that are asked about them."""

from typing import Any

from lorica.artefacts import SPLIT_FILE
from lorica.audit.captions import captioned
from lorica.audit.config import AuditConfig
from lorica.audit.extract import BASE, Subject, as_seen_by_lora
from lorica.audit.target import find_run, training_facts
from lorica.data import GROUPS, Split, make_split, read_folder
from lorica.diffusion import LatentDiffusion, encode
from lorica.errors import LoricaError


def split_of(config: AuditConfig) -> Split:
    """The given split, the one beside the LoRA, or one made from two folders, with the captions asked for."""
    if config.members is not None and config.nonmembers is not None:
        sides = (read_folder(folder, captions_required=False) for folder in (config.members, config.nonmembers))
        return captioned(make_split(*sides, seed=config.seed), config.captions)
    beside = find_run(config.lora) if config.lora is not None else None
    file = config.split or (beside / SPLIT_FILE if beside is not None else None)
    if file is None:
        raise LoricaError("nothing says which pictures are members", "Give --split, or --members and --nonmembers.")
    split = Split.load(file, data=config.data, nonmember_data=config.nonmember_data, captions_required=False)
    return captioned(split, config.captions)


def subjects_of(config: AuditConfig, split: Split) -> tuple[dict[str, Subject], dict[str, Any], list[str]]:
    """The base model and, where there is a LoRA, the target; what the report says of the target; warnings."""
    pictures = [picture for group in GROUPS for picture in split.groups[group]]
    model = LatentDiffusion.load(config.base, device=config.device, config=config.base_config)
    # Before the pictures are encoded, which takes long: a LoRA that cannot be used should be known by then.
    file = model.load_lora(config.lora) if config.lora is not None else None
    encoded = encode(model, pictures, config.cache or config.output / "cache")
    warnings = model.caption_notes([picture.caption for picture in pictures])
    target: dict[str, Any] = {"base": model.name, "base_fingerprint": model.fingerprint}
    base = Subject(model, BASE, encoded, tuple(pictures), model.base_only, "the base model")
    if config.lora is None or file is None:
        return {"target": base}, target | {"lora": None, "lora_sha256": None}, warnings
    facts = training_facts(config.lora)
    trained_on = {file["base"], facts.pop("base_fingerprint", None)} - {None}
    target |= {
        "lora": file["file"],
        "lora_sha256": file["sha256"],
        "rank": file["rank"],
        "alpha": file["alpha"],
    } | facts
    lora = Subject(model, file["sha256"], as_seen_by_lora(model, encoded, pictures), tuple(pictures))
    target["base_matches"] = model.fingerprint in trained_on if trained_on else None
    if "steps_per_picture" not in target:
        warnings.append(
            "steps per picture are unknown: leakage grows with them, and the result holds for this LoRA only"
        )
    return {"target": lora, "base": base}, target, warnings
