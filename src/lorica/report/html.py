"""What all reports share: one HTML file with everything inside it, which a browser never lets reach the network."""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lorica.artefacts import write_text
from lorica.report import words

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(template: str, output: Path, **values: Any) -> Path:
    """Fill a template that extends layout.html.j2 and write it; an earlier page is replaced only when it is complete.

    Args:
        template: name of the file in templates/.
        output: the HTML file.
        values: what the template names; all text among it is escaped.

    Returns:
        `output`.

    Raises:
        LoricaError: the file cannot be written.
    """
    style, code = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "report.js"))
    scripts = [Markup(get_plotlyjs()), Markup(code)]
    page = (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),
            scripts=scripts,
            allowed=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
            **values,
        )
    )
    # Names may hold bytes that no encoding knows (surrogates); the page must not fail on them.
    write_text(output, page.encode("utf-8", "replace").decode("utf-8"))
    return output


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.number, "percent": words.percent, "listed": words.listed}
    return environment


def told_apart(labels: Sequence[str]) -> list[str]:
    """The labels, those that are equal numbered."""
    return [
        f"{label} ({labels[: index + 1].count(label)})" if labels.count(label) > 1 else label
        for index, label in enumerate(labels)
    ]


def shown(value: Any) -> str:
    """A fact in a table."""
    return "—" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def as_yaml(config: Any) -> str:
    """A configuration; nothing for an empty one."""
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True)) if config else ""


def inline_json(value: Any) -> Markup:
    """JSON that no text inside it can end early: `<`, `>` and `&` are written as escapes, which JSON reads back."""
    text = json.dumps(value, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _digest(script: str) -> str:
    """What a Content-Security-Policy calls a script: only those two run, whatever a caption may smuggle in."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
