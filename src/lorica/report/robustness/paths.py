"""A page that is passed on says nothing of the folders of the machine that it was made on."""

import re
from typing import Any

_ABSOLUTE = re.compile(r"""(?:~\w*|[A-Za-z]:)?[/\\]""")
_QUOTED = re.compile(r"""(?P<quote>['"])(?P<path>(?:~\w*|[A-Za-z]:)?[/\\][^'"]*[/\\][^'"]*)(?P=quote)""")
_BARE = re.compile(r"""(?<![\w.…)\]:/\\~-])(?:~\w*|[A-Za-z]:)?[/\\]+(?:[^\s'"/\\<>|:,;()]+[/\\]+)+""")
_AFTER_COLON = re.compile(r"""(?<=\w:)/+(?:[^\s'"/\\<>|:,;()]+/+)+""")


def without_folders(value: Any) -> Any:
    """The same JSON with every absolute path in its texts cut down to its last part: /home/me/x.json is …/x.json.

    A text that is a path as a whole may hold spaces, as may one in quotes; within a sentence others end at a space.
    """
    if isinstance(value, dict):
        return {without_folders(key): without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return _cut(value) if isinstance(value, str) else value


def _cut(text: str) -> str:
    if _ABSOLUTE.match(text) and "\n" not in text and not _spoken(text):
        return _last(text)
    quoted = _QUOTED.sub(lambda found: f"{found['quote']}{_last(found['path'])}{found['quote']}", text)
    return _BARE.sub("…/", quoted)
