"""A few adversarial pictures for people to look at: before, after, and what was changed."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lorica.artefacts import write_with
from lorica.data.subsets import balanced
from lorica.evaluate.attacks import Attacked
from lorica.evaluate.config import EvaluateConfig
from lorica.evaluate.subject import Subject
from lorica.robustness.attacked import Counted, as_floats

FOLDER = "examples"
MAGNIFIED = 16
"""Factor on the difference, which is shown around grey."""
_LARGEST_SIDE = 256  # of a file: smaller pictures are enlarged pixel by pixel, by whole numbers


def write_examples(
    model: Counted, subject: Subject, attacked: Attacked, natural: Tensor, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Save natural picture, adversarial picture and their difference as OUTPUT/examples/NNNNN_*.png.

    Args:
        model: in `model.attacked()`.
        subject: with the pictures.
        attacked: the radius that they are taken from.
        natural: (N,) int64, predictions for the natural pictures.
        config: of the evaluation; its number of examples, of different classes where there are.

    Returns:
        One entry per example: {"index", "name", "class", "natural", "adversarial", "attack", "eps", "distance",
        "fools_as_8_bit", "files"}. Files hold levels of 0 to 255, an attack does not: whether the rounded picture
        still fools the model is said.
    """
    folder = config.folder / FOLDER
    for old in folder.glob("[0-9]*_*.png"):
        old.unlink()
    rows = attacked.found.nonzero().flatten()
    wanted = set(rows[balanced(subject.labels[rows], config.examples, config.seed)].tolist() if len(rows) else [])
    entries: dict[int, dict[str, Any]] = {}
    for attack, batch in attacked.named_batches() if wanted else ():
        for row, adversarial in zip(batch.rows[batch.broken].tolist(), batch.adversarial, strict=True):
            if row in wanted - entries.keys():
                entries[row] = _entry(row, attack, adversarial, model, subject, attacked, natural, config)
    return [entries[row] for row in sorted(entries)]


def _entry(
    row: int, attack: str, adversarial: Tensor, model: Counted, subject: Subject, attacked: Attacked, natural: Tensor,
    config: EvaluateConfig,
) -> dict[str, Any]:  # fmt: skip
    original = as_floats(subject.pictures.pixels[row])
    shown = {
        "natural": original,
        "adversarial": adversarial,
        "difference": 0.5 + MAGNIFIED * (adversarial - original),
    }
    levels = {name: (picture.clamp(0, 1) * 255).round().to(torch.uint8) for name, picture in shown.items()}
    files = {}
    for name, picture in levels.items():
        files[name] = f"{FOLDER}/{row:05d}_{name}.png"
        write_with(config.folder / files[name], lambda path, picture=picture: _save(picture, path))  # type: ignore[misc]
    rounded = int(model(as_floats(levels["adversarial"][None], model.device)).argmax())
    classes = subject.classes
    return {
        "index": row,
        "name": subject.pictures.names[row],
        "class": classes[int(subject.labels[row])],
        "natural": classes[int(natural[row])],
        "adversarial": classes[int(attacked.predictions[row])],
        "attack": attack,
        "eps": attacked.threat.eps,
        "distance": float(attacked.threat.distance(adversarial[None].double(), original[None].double())),
        "fools_as_8_bit": rounded != int(subject.labels[row]),
        "files": files,
    }


def _save(levels: Tensor, path: Any) -> None:
    image = Image.fromarray(levels.permute(1, 2, 0).numpy())
    factor = max(1, _LARGEST_SIDE // max(image.size))
    enlarged = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    enlarged.save(path, format="PNG")
