"""Strict typed configuration: one class behind Python, YAML (`--config`), `--set key=value` and the CLI options."""

import copy
import difflib
import reprlib
from collections.abc import Collection, Hashable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from lorica.errors import LoricaError


class Config(BaseModel):
    """Base of every configuration: unknown keys are errors, values are checked, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; `load` reads it back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


C = TypeVar("C", bound=Config)


def plain_types(annotation: Any) -> list[Any]:
    """The types of an annotation: unions opened, None left out, generics reduced to their origin."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in plain_types(part)]
    return [] if annotation is type(None) else [get_origin(annotation) or annotation]


def section_type(field: FieldInfo) -> type[Config] | None:
    """The configuration class of a nested section, or None for a plain value."""
    kinds = plain_types(field.annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)), None)


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

    In all three a key may be dotted, and sections are merged key by key.

    Args:
        cls: the configuration class.
        file: YAML file with (some of) its keys.
        assignments: "section.key=value" strings, the value in YAML syntax.
        options: {"section.key": value}. Text for a key that holds several values is split or read as YAML: options
            come from a command line.

    Raises:
        LoricaError: an unknown key (with its path and the nearest known one) or a value out of range.
    """
    values: dict[str, Any] = {}
    leaves = dict(walk(cls))
    for key, value in (_read_yaml(file) if file is not None else {}).items():
        _assign(values, str(key), value, leaves)
    for assignment in assignments or []:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise LoricaError(f"--set {assignment!r} is not key=value", "For example: --set lora.rank=16")
        _assign(values, key.strip(), _parse(f"--set {key.strip()}", text), leaves)
    for key, value in (options or {}).items():
        _assign(values, key, _from_command_line(key, value, leaves.get(key)), leaves)
    try:
        return cls.model_validate(_without_empty_sections(cls, values))
    except ValidationError as error:
        raise LoricaError(_explain(cls, error), "`--help` and `--print-config` show every key.") from error


def load_options(cls: type[C], method: str, options: Mapping[str, Any]) -> C:
    """The options of a method; `method` is its name, for messages.

    Raises:
        LoricaError: an unknown option, or a value out of range.
    """
    if options and not cls.model_fields:
        raise LoricaError(f"method {method} has no options, not {', '.join(options)}", "Leave them out.")
    try:
        return load(cls, options=options)
    except LoricaError as error:
        raise LoricaError(f"options of method {method}: {error.problem}", error.remedy) from error


def differences(before: C, now: C, *, ignore: Collection[str]) -> list[str]:
    """The keys in which two configurations of a class differ, with both values: ["lora.rank (was 4, now 8)"]."""
    return [
        f"{key} (was {_leaf(before, key)}, now {_leaf(now, key)})"
        for key, _ in walk(type(now))
        if key not in ignore and _leaf(before, key) != _leaf(now, key)
    ]


def _leaf(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


# PyYAML raises ValueError for text that is almost a date, and knows no depth limit but Python's own.
_UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML readers silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = [key for index, key in enumerate(keys) if key in keys[:index]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _parse(what: str, text: str) -> Any:
    try:
        return _yaml(text)
    except _UNREADABLE as error:
        raise LoricaError(f"{what}: {text!r} is not a YAML value", "Quote it.") from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = _yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoricaError(f"configuration file not found: {file}", "Check the path given to --config.") from error
    except _UNREADABLE as error:
        raise LoricaError(
            f"configuration file cannot be read: {file}: {error}", "It must be a YAML mapping."
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise LoricaError(f"configuration file {file} is not a mapping of keys to values", "See --print-config.")
    return values


def _from_command_line(key: str, value: Any, field: FieldInfo | None) -> Any:
    """A command line has text only: "1,2" for a tuple, "{a: {b: 1}}" for a mapping, which "a" or "a,b" names the keys
    of; pydantic converts single values."""
    kinds = plain_types(field.annotation) if field is not None else []
    if isinstance(value, str) and tuple in kinds:
        return value.strip("()[] ").split(",")
    if isinstance(value, str) and dict in kinds:
        parsed = _parse(key, value)
        return {name.strip(): {} for name in parsed.split(",")} if isinstance(parsed, str) else parsed
    return value


def _assign(values: dict[str, Any], key: str, value: Any, leaves: Collection[str]) -> None:
    """Put a value at a dotted key; a mapping is merged into what is there.

    Dots in the keys of a section part its keys; in those of a mapping that is itself a value, they are letters.
    """
    if isinstance(value, dict) and key not in leaves:
        for inner, inner_value in value.items():
            _assign(values, f"{key}.{inner}", inner_value, leaves)
        return
    *path, leaf = key.split(".")
    for part in path:
        if values.get(part) is None:
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise LoricaError(f"{key}: {part!r} holds a value, not a section", "See --print-config.")
    values[leaf] = _merged(values.get(leaf), value)


def _merged(before: Any, value: Any) -> Any:
    if not (isinstance(before, dict) and isinstance(value, dict)):
        return copy.deepcopy(value)
    return before | {key: _merged(before.get(key), inner) for key, inner in value.items()}


def _without_empty_sections(cls: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """A section with nothing in it, in YAML None, means the defaults."""
    kept = {}
    for name, value in values.items():
        section = section_type(cls.model_fields[name]) if name in cls.model_fields else None
        if section is not None and isinstance(value, dict):
            kept[name] = _without_empty_sections(section, value)
        elif section is None or value is not None:
            kept[name] = value
    return kept


def _explain(cls: type[Config], error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key `{key}`: the nearest is `{_nearest(cls, key)}`")
        elif item["type"] == "missing":
            lines.append(f"`{key}` is required")
        else:
            said = item["msg"].removeprefix("Value error, ")
            lines.append(f"`{key}` = {reprlib.repr(item['input'])}: {said[:1].lower()}{said[1:]}")
    return "\n".join(lines)


def _nearest(cls: type[Config], key: str) -> str:
    """The known key (or section) most like an unknown one; the same name in another section is nearest of all."""
    leaves = [known for known, _ in walk(cls)]
    sections = {known.rpartition(".")[0] for known in leaves} - {""}
    moved = [known for known in leaves if known.rpartition(".")[2] == key.rpartition(".")[2]]
    return (moved or difflib.get_close_matches(key, [*leaves, *sorted(sections)], n=1, cutoff=0))[0]
