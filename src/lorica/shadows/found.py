"""The shadows of a run as an audit finds them: LoRA files, and who was a member of each."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorica.adapt.folder import FREE_ON_RESUME
from lorica.artefacts import CONFIG_FILE, RUN_FILE, SPLIT_FILE, read_json
from lorica.config import differences
from lorica.data import Picture
from lorica.data.split_file import GROUPS, parse
from lorica.diffusion.lora import PEFT_FILE
from lorica.errors import LoricaError
from lorica.shadows.plan import recipe

# What shadows of one run may differ in. Not in their steps, which a resumed run may change.
_OWN = (FREE_ON_RESUME - {"steps"}) | {"seed", "split.file", "split.holdout", "split.aux", "split.counts", "canaries"}


class ForeignShadow(LoricaError):
    """A shadow, but of another LoRA than the audited one: it says nothing of it."""


@dataclass(frozen=True)
class Shadow:
    """A LoRA that was trained on known ones of the pictures.

    Attributes:
        name: of its folder.
        lora: its file.
        members: SHA-256 of the pictures that it was trained on.
        base: fingerprint of the model that it was trained on.
    """

    name: str
    lora: Path
    members: frozenset[str]
    base: str


def find_shadows(
    folder: Path, pictures: Iterable[Picture], *, run: Path | None = None, part: Path = Path()
) -> list[Shadow]:
    """The finished shadows in a folder, in the order of their names.

    Args:
        folder: of the shadows.
        pictures: that are audited.
        run: the audited run, whose recipe they must have been trained by.
        part: path inside a run's folder to the LoRA that is audited, e.g. of a checkpoint; shadows without it are
            left out.

    Raises:
        LoricaError: no such folder.
        ForeignShadow: a shadow of another recipe than `run`'s, or that does not know of a picture.
    """
    if not folder.is_dir():
        raise LoricaError(f"folder of shadows not found: {folder}", "Train them: lorica shadows RUN")
    audited = recipe(run) if run is not None else None
    wanted = {picture.sha256 for picture in pictures}
    shadows = []
    for each in sorted(path for path in folder.iterdir() if (path / CONFIG_FILE).is_file()):
        lora = each / part
        if not (each / RUN_FILE).is_file() or not (lora.is_file() or (lora / PEFT_FILE).is_file()):
            continue
        different = differences(audited, recipe(each), ignore=_OWN) if audited is not None else []
        split = parse(each / SPLIT_FILE)
        if missing := wanted - set(split.hashes(*GROUPS)):
            different.append(f"{len(missing)} of the audited pictures are not in its split")
        if different:
            raise ForeignShadow(
                f"shadow {each.name} is not one of the audited LoRA: {', '.join(different)}",
                "Train shadows of this very run: lorica shadows RUN; or remove those of another.",
            )
        members = frozenset(split.hashes("aux_members", "test_members"))
        base = read_json(each / RUN_FILE, "adapt run")["base_fingerprint"]
        shadows.append(Shadow(each.name, lora, members, base))
    return shadows
