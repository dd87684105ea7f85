"""The model card beside an exported classifier: what it withstands, how that was measured, what it does not say."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

Facts = Mapping[str, Any]

_UNMEASURED, _UNSTATED = "not measured", "not stated"
_LONGEST, _LISTED = 200, 20  # characters of a value, class names in full
_WEIGHTS = {"ema": "averaged over training (EMA)", "raw": "raw, not averaged"}
_STANDARD = "standard"


def model_card(facts: Facts) -> str:
    """Markdown with the front matter that the Hugging Face hub reads.

    Args:
        facts: all optional, and from anywhere: text in them is shown as it is and never becomes markup, and of a path
            only the last part is shown. The record of a finetune run (run.json) may be given as it is; otherwise
            name; license (identifier of the hub); architecture; size (H, W); classes, a list of names; method;
            pretrained, what training began with; data; counts, pictures by part; weights, "ema" or "raw"; seed or
            seeds; threat, e.g. "L-inf 8/255"; natural and robust, accuracies on the test pictures as
            {"value", "low", "high", "level", "n"} or a number in [0, 1]; attack and attack_version, e.g. "AutoAttack"
            and "standard"; val_natural and val_robust, of the pictures on which the weights were chosen; precision of
            training, e.g. "fp32"; hardware and versions, mappings; caveats, a list of sentences.
    """
    facts = _settled(facts)
    sections = [
        f"# {_code(facts.get('name') or facts.get('architecture') or 'classifier')}",
        "An image classifier fine-tuned with Lorica. It takes pixels in [0, 1] and returns logits.",
        _rows(_model(facts)),
        "## Robustness",
        _rows(_robustness(facts)),
        "## Training",
        _rows(_training(facts)),
        "## How to load it",
        _loading(facts),
        "## Caveats",
        "\n".join(f"- {line}" for line in _caveats(facts)),
    ]
    return _front_matter(facts) + "\n\n".join(sections) + "\n"


def encoder_card(facts: Facts) -> str:
    """Markdown for an encoder without a head.

    Args:
        facts: the record of a pre-training run (run.json); all optional, and shown as in `model_card`.
    """
    facts = _settled(facts)
    ours = str(facts.get("architecture", "")).startswith("cifar_")
    sections = [
        f"# {_code(facts.get('name') or facts.get('architecture') or 'encoder')}",
        "An image encoder pre-trained without labels with Lorica. It takes pixels in [0, 1] and returns features.",
        _rows(_pretraining(facts)),
        "## How to use it",
        f"""\
```
lorica evaluate FOLDER --data LABELLED --protocol slf,alf,aff
lorica finetune --data LABELLED --model FOLDER
```

or, for pixels normalised with the mean and std in config.json:

```python
import timm{", lorica.vision.cifar_resnet" if ours else ""}
features = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
```""",
        "## Caveats",
        "- No robust accuracy is stated: an encoder has none of its own. Fine-tune it and measure with AutoAttack.\n"
        "- An encoder can leak which pictures it has seen. Think before you publish one of private pictures.",
    ]
    return _front_matter(facts, "image-feature-extraction") + "\n\n".join(sections) + "\n"


def _pretraining(facts: Facts) -> Iterator[tuple[str, str]]:
    size = facts.get("size")
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) for side in size):
        yield "Pictures", f"{size[0]} x {size[1]}"
    yield "Architecture", _named(facts.get("architecture"))
    yield "Method", _text(facts.get("method"))
    added = facts.get("invariance")
    yield "Invariance", "none" if added == "none" else f"{_text(added)}, form {_text(facts.get('form'))}"
    if isinstance(facts.get("plus_plus"), Mapping):
        yield "Afterwards", f"DynACL++ on {_text(facts['plus_plus'].get('clusters'))} clusters"
    yield "Threat model", _text(facts.get("threat")) if facts.get("adversarial", True) else "none: no attacker was met"
    yield "Batch norms", f"{_text(facts.get('route'))} route"
    yield "Data", f"{_named(facts.get('data'), last=True)}, {_text(facts.get('pictures'))} pictures"
    yield "Epochs", _text(facts.get("epochs"))
    yield "Seeds", _text(facts.get("seed"))
    yield "Precision", _text(facts.get("precision"))
    yield "Hardware", _pairs(facts.get("hardware"))
    yield "Versions", _pairs(facts.get("versions"))


def _settled(facts: Facts) -> dict[str, Any]:
    """What a run's configuration says, where the facts themselves do not."""
    config = facts.get("config")
    config = config if isinstance(config, Mapping) else {}
    model = config.get("model")
    model = model if isinstance(model, Mapping) else {}
    found = {"data": config.get("data"), "pretrained": model.get("checkpoint") or model.get("name")}
    return {key: value for key, value in (found | dict(facts)).items() if value is not None}


def _front_matter(facts: Facts, task: str = "image-classification") -> str:
    head = {
        "license": _line(facts["license"]) if "license" in facts else "unknown",
        "library_name": "timm",
        "pipeline_tag": task,
        "tags": [task, "timm", "lorica", "adversarial-robustness"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False, width=math.inf)}---\n\n"


def _model(facts: Facts) -> Iterator[tuple[str, str]]:
    size = facts.get("size")
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) for side in size):
        yield "Pictures", f"{size[0]} x {size[1]}"
    yield "Architecture", _named(facts.get("architecture"))
    yield "Classes", _listing(facts.get("classes"))
    yield "Weights", _WEIGHTS.get(str(facts.get("weights")), _UNSTATED)
    yield (
        "Licence",
        _text(facts.get("license"), "not stated: the pre-trained weights and the data decide which is allowed"),
    )


def _robustness(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "Threat model", _text(facts.get("threat"))
    yield "Natural accuracy", _accuracy(facts.get("natural"))
    yield "Robust accuracy", _accuracy(facts.get("robust"))
    version = facts.get("attack_version")
    yield "Attack", _text(facts.get("attack")) + (f", version {_code(version)}" if version is not None else "")
    for key, what in (("val_natural", "natural"), ("val_robust", "under the attack of training")):
        if key in facts:
            yield f"Validation accuracy, {what}", f"{_accuracy(facts[key])}; the weights were chosen on these pictures"


def _training(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "Method", _text(facts.get("method"))
    yield "Began with", _named(facts.get("pretrained"))
    yield "Data", _named(facts.get("data"), last=True)
    if isinstance(facts.get("counts"), Mapping):
        yield "Pictures", _pairs(facts["counts"])
    seeds = facts.get("seeds", facts.get("seed"))
    yield "Seeds", _listing(seeds if isinstance(seeds, list | tuple) else None if seeds is None else [seeds])
    yield "Precision", _text(facts.get("precision"))
    yield "Hardware", _pairs(facts.get("hardware"))
    yield "Versions", _pairs(facts.get("versions"))


def _loading(facts: Facts) -> str:
    ours = str(facts.get("architecture", "")).startswith("cifar_")
    return f"""\
```python
from lorica.vision import ModelConfig, load_classifier
classifier, _ = load_classifier(ModelConfig(name="FOLDER"))
logits = classifier(pixels)  # (N, 3, H, W) in [0, 1]: the normalisation is inside
```

or, without it inside:

```python
import timm{", lorica.vision.cifar_resnet" if ours else ""}
backbone = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
logits = backbone((pixels - mean) / std)  # of pretrained_cfg in config.json
```"""


def _caveats(facts: Facts) -> Iterator[str]:
    if _share(_value(facts.get("robust"))) is None:
        yield "Robust accuracy was not measured on test pictures: nothing here shows that this model is robust."
    elif facts.get("attack_version") != _STANDARD or "autoattack" not in str(facts.get("attack", "")).lower():
        yield "The robust accuracy is an upper bound: it was not measured with standard AutoAttack, which finds more."
    else:
        yield "The robust accuracy is what AutoAttack left; an attack made for this model may leave less."
    yield "Only the stated threat model is covered: no other norm, larger radius or other change of a picture."
    if facts.get("fast_mode") is True:
        yield "It was trained with one-step attacks, a fast mode that gives less robustness than PGD."
    yield (
        "Adversarial training can make a model leak more about its training pictures (Song et al., CCS 2019, arXiv "
        "1905.10291). Audit it before you publish a model of private ones."
    )
    caveats = facts.get("caveats")
    yield from map(_code, caveats if isinstance(caveats, list | tuple) else [])


# ----- hostile text -------------------------------------------------------------------------------------------------
def _line(value: object) -> str:
    """One line of printable text: no control characters, no marks that turn the direction of reading."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _code(value: object) -> str:
    """A code span, in which Markdown knows neither links nor HTML; only a backtick could end it."""
    return f"`{_line(value).replace('`', chr(39)) or ' '}`"


def _text(value: object, absent: str = _UNSTATED) -> str:
    return absent if value is None else _code(value)


def _named(value: object, *, last: bool = False) -> str:
    """A name, or the last part of a path; hub ids (owner/name) are kept whole unless `last`."""
    if value is None:
        return _UNSTATED
    text = str(value)
    hub = text.count("/") == 1 and not text.startswith(("/", ".", "~")) and "\\" not in text
    return _code(text if hub and not last else PureWindowsPath(PurePosixPath(text).name).name or text)


def _listing(values: object) -> str:
    if not isinstance(values, list | tuple) or not values:
        return _UNSTATED
    more = f" and {len(values) - _LISTED} more" if len(values) > _LISTED else ""
    return ", ".join(map(_code, values[:_LISTED])) + more


def _pairs(values: object) -> str:
    if not isinstance(values, Mapping) or not values:
        return _text(values or None)
    return ", ".join(f"{_code(key)} {_code(value)}" for key, value in values.items())


def _rows(rows: Iterator[tuple[str, str]]) -> str:
    return "\n".join(f"- **{name}:** {value}" for name, value in rows)


# ----- numbers ------------------------------------------------------------------------------------------------------
def _value(raw: object) -> object:
    return raw.get("value") if isinstance(raw, Mapping) else raw


def _share(raw: object) -> float | None:
    """A number in [0, 1], or None."""
    number = isinstance(raw, int | float) and not isinstance(raw, bool)
    return float(raw) if number and 0 <= raw <= 1 else None  # type: ignore[operator, arg-type]


def _accuracy(raw: object) -> str:
    value = _share(_value(raw))
    if value is None:
        return _UNMEASURED
    shown = f"{value:.1%}"
    if not isinstance(raw, Mapping):
        return shown
    low, high, level, n = (raw.get(key) for key in ("low", "high", "level", "n"))
    low, high = _share(low), _share(high)
    if low is not None and high is not None:
        shown += f" ({_share(level) or 0.95:.0%} interval {low:.1%} to {high:.1%})"
    return shown + (f" of {n:,} pictures" if isinstance(n, int) else "")
