"""Strict typed configuration: one class behind Python, YAML (`--config`), `--set key=value` and the CLI options."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from lorica.errors import LoricaError


class Config(BaseModel):
    """Base of every configuration: unknown keys are errors, values are checked, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


C = TypeVar("C", bound=Config)


def section_type(field: FieldInfo) -> type[Config] | None:
    """The configuration class of a nested section, or None for a plain value."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None


def walk(cls: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf of a configuration as ("section.key", field)."""
    for name, field in cls.model_fields.items():
        section = section_type(field)
        if section is None:
            yield f"{prefix}{name}", field
        else:
            yield from walk(section, f"{prefix}{name}.")


def load(
    cls: type[C],
    *,
    file: Path | None = None,
    assignments: list[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> C:
    """Resolve a configuration; later sources win: defaults, YAML file, `key=value` assignments, options.

    Args:
        cls: the configuration class.
        file: YAML file with (some of) its keys.
        assignments: "section.key=value" strings, the value in YAML syntax.
        options: {"section.key": value}.

    Raises:
        LoricaError: an unknown key (with its path and the nearest known one) or a value out of range.
    """
    values: dict[str, Any] = _read_yaml(file) if file is not None else {}
    for assignment in assignments or []:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise LoricaError(f"--set {assignment!r} is not key=value", "For example: --set lora.rank=16")
        _assign(values, key.strip(), _parse(key, text))
    for key, value in (options or {}).items():
        _assign(values, key, value)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise LoricaError(_explain(cls, error), "`--help` and `--print-config` show every key.") from error


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LoricaError(f"--set {key}: {text!r} is not a YAML value", "Quote it.") from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoricaError(f"configuration file not found: {file}", "Check the path given to --config.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LoricaError(f"configuration file cannot be read: {file}: {error}", "It must be a YAML mapping.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise LoricaError(f"configuration file {file} is not a mapping of keys to values", "See --print-config.")
    return values


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    node = values
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise LoricaError(f"{key}: {part!r} holds a value, not a section", "See --print-config.")
    node[leaf] = value


def _explain(cls: type[Config], error: ValidationError) -> str:
    known = [key for key, _ in walk(cls)]
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            leaf = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
            nearest = (leaf or near or known)[0]
            lines.append(f"unknown key `{key}`: the nearest is `{nearest}`")
        elif item["type"] == "missing":
            lines.append(f"`{key}` is required")
        else:
            lines.append(f"`{key}` = {item['input']!r}: {item['msg'][:1].lower()}{item['msg'][1:]}")
    return "\n".join(lines)
