"""What an audit looks at: which pictures are members, and the models that are asked about them."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lorica.artefacts import SPLIT_FILE, read_json, write_json
from lorica.audit.captions import captioned
from lorica.audit.config import AuditConfig
from lorica.audit.extract import BASE, Opened, Subject, as_seen_by_lora
from lorica.audit.target import find_run, training_facts
from lorica.data import GROUPS, Picture, Split, make_split, read_folder
from lorica.diffusion import LatentDiffusion, encode
from lorica.diffusion.loading import model_name, stored_files
from lorica.diffusion.lora_reading import lora_digest
from lorica.errors import LoricaError
from lorica.fingerprint import sha256
from lorica.shadows import Shadow


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


class Models:
    """The audited base model with and without LoRAs. Read from disk only when it is asked something.

    What a report says of it (`facts`) is kept beside the features, under a hash over how the model's files look, so
    that an audit whose features are all there already, scored once more, never loads it.

    Args:
        config: of the audit.
        pictures: those of the split, in its order.

    Raises:
        LoricaError: no base model, or no LoRA for it.
    """

    def __init__(self, config: AuditConfig, pictures: Sequence[Picture]) -> None:
        self.config, self.pictures = config, tuple(pictures)
        self._lora = lora_digest(config.lora) if config.lora is not None else None
        self.facts: dict[str, Any] = self._facts()

    @property
    def fingerprint(self) -> str:
        """Of the base model."""
        return str(self.facts["base_fingerprint"])

    def base(self, pictures: Sequence[Picture] | None = None, name: str = "the base model") -> Subject:
        """The base model, about the split's pictures or others."""

        @contextmanager
        def enter(seen: Sequence[Picture]) -> Iterator[Opened]:
            encoded = self._encode(seen)
            with self._model.base_only():
                yield self._model, encoded

        return self._subject(BASE, enter, pictures, name)

    def lora(self, pictures: Sequence[Picture] | None = None, name: str = "the LoRA") -> Subject:
        """The same with the LoRA on."""
        assert self._lora is not None, "there is no LoRA"

        @contextmanager
        def enter(seen: Sequence[Picture]) -> Iterator[Opened]:
            yield self._model, as_seen_by_lora(self._model, self._encode(seen), seen)

        return self._subject(self._lora, enter, pictures, name)

    def shadow(self, shadow: Shadow) -> Subject:
        """The base model with a shadow LoRA in the LoRA's place."""

        @contextmanager
        def enter(seen: Sequence[Picture]) -> Iterator[Opened]:
            encoded = self._encode(seen)
            with self._model.wearing(shadow.lora):
                yield self._model, as_seen_by_lora(self._model, encoded, seen)

        return self._subject(lora_digest(shadow.lora), enter, None, f"shadow {shadow.name}")

    def _subject(
        self, state: str, enter: Callable[[Sequence[Picture]], Any], pictures: Sequence[Picture] | None, name: str
    ) -> Subject:
        return Subject(self.fingerprint, state, self.pictures if pictures is None else tuple(pictures), enter, name)

    def _encode(self, pictures: Sequence[Picture]) -> Any:
        return encode(self._model, pictures, self.config.cache or self.config.output / "cache")

    @cached_property
    def _loaded(self) -> tuple[LatentDiffusion, dict[str, Any] | None]:
        config = self.config
        model = LatentDiffusion.load(config.base, device=config.device, config=config.base_config)
        # Before pictures are encoded, which takes long: a LoRA that cannot be used should be known by then.
        return model, model.load_lora(config.lora) if config.lora is not None else None

    @property
    def _model(self) -> LatentDiffusion:
        return self._loaded[0]

    def _facts(self) -> dict[str, Any]:
        """{"base", "base_fingerprint", "lora", "caption_notes"}; "lora" as `LatentDiffusion.load_lora`, or null."""
        config, captions = self.config, [picture.caption for picture in self.pictures]
        looks = stored_files(config.base, config.base_config)
        file = None
        if looks is not None:
            key = sha256(looks, str(self._lora), config.lora.name if config.lora else "", json.dumps(captions))
            file = (config.cache or config.output) / "features" / f"model-{key[:16]}.json"
            if (known := _remembered(file)) is not None:
                return known
        model, lora = self._loaded
        facts = {
            "base": model_name(config.base),
            "base_fingerprint": model.fingerprint,
            "lora": lora,
            "caption_notes": model.caption_notes(captions),
        }
        if file is not None:
            write_json(file, facts)
        return facts


def _remembered(file: Path) -> dict[str, Any] | None:
    try:
        known = read_json(file, "notes on the model")
    except LoricaError:
        return None  # absent, or damaged from outside: the model is looked at again
    complete = isinstance(known, dict) and {"base", "base_fingerprint", "lora", "caption_notes"} <= known.keys()
    return known if complete else None


def subjects_of(config: AuditConfig, split: Split) -> tuple[Models, dict[str, Any], list[str]]:
    """The models that are audited; what the report says of the target; warnings."""
    models = Models(config, [picture for group in GROUPS for picture in split.groups[group]])
    warnings = list(models.facts["caption_notes"])
    target: dict[str, Any] = {key: models.facts[key] for key in ("base", "base_fingerprint")}
    file = models.facts["lora"]
    if config.lora is None:
        return models, target | {"lora": None, "lora_sha256": None}, warnings
    facts = training_facts(config.lora)
    trained_on = {file["base"], facts.pop("base_fingerprint", None)} - {None}
    target |= {
        "lora": file["file"],
        "lora_sha256": file["sha256"],
        "rank": file["rank"],
        "alpha": file["alpha"],
    } | facts
    target["base_matches"] = models.fingerprint in trained_on if trained_on else None
    if "steps_per_picture" not in target:
        warnings.append(
            "steps per picture are unknown: leakage grows with them, and the result holds for this LoRA only"
        )
    return models, target, warnings
