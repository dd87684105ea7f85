"""A page that is passed on says nothing of the folders of the machine that it was made on."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_ALONE = r"(?<![\w.…)\]/\\~-])"  # not within a word, a fraction, an address, or what is cut already
_FOLDERS = re.compile(_ALONE + r"""(?:file://)?(?:~\w*|[A-Za-z]:)?(?:/(?!/)|\\+)(?:[^\s'"/\\<>|:,;()]+[/\\]+)+""")
_QUOTED = re.compile(r"""(?<=['"])(?:~\w*|[A-Za-z]:)?(?:/(?!/)|\\+)[^'"\n]*[/\\](?=[^'"\n/\\]*['"])""")


def absolute_paths(config: Any) -> Iterator[str]:
    """Texts in JSON that are absolute paths as a whole, with spaces or without."""
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, list):
        for entry in config:
            yield from absolute_paths(entry)
    elif isinstance(config, str) and "\n" not in config and _is_absolute(config):
        yield config


def without_folders(value: Any, known: Iterable[str] = ()) -> Any:
    """The same JSON with every absolute path in its texts cut down to its last part: /home/me/x.json is …/x.json.

    Args:
        value: JSON, keys included.
        known: absolute paths, as from `absolute_paths`. Others are found where they stand in quotes or hold no space.
    """
    longest_first = sorted({path for path in known if _name(path)}, key=lambda path: (-len(path), path))
    rules = [(re.compile(f"{_ALONE}{re.escape(path)}(?![\\w-])"), f"…/{_name(path)}") for path in longest_first]
    return _cut(value, [*rules, (_QUOTED, "…/"), (_FOLDERS, "…/")])


def _cut(value: Any, rules: list[tuple[re.Pattern[str], str]]) -> Any:
    if isinstance(value, dict):
        return {_cut(key, rules): _cut(entry, rules) for key, entry in value.items()}
    if isinstance(value, list):
        return [_cut(entry, rules) for entry in value]
    if not isinstance(value, str):
        return value
    for pattern, shorter in rules:
        value = pattern.sub(shorter.replace("\\", r"\\"), value)
    return value


def _is_absolute(text: str) -> bool:
    return (
        PurePosixPath(text).is_absolute()
        or PureWindowsPath(text).is_absolute()
        or re.match(r"~\w*[/\\]", text) is not None
    )


def _name(path: str) -> str:
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
