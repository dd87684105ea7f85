"""One look for every long piece of work."""

import re
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

T = TypeVar("T")

# C0 but for tab and newline, DEL, C1, and what turns the direction of text. Joiners stay: scripts and emoji need them.
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def inert(text: str) -> str:
    """Text that a terminal only shows: names come from files, hence from anyone, and may hold commands to it."""
    return _COMMANDS.sub("\N{REPLACEMENT CHARACTER}", text)


class SafeConsole(Console):
    """A console on which no text commands the terminal.

    `escape` of rich keeps markup out and lets control characters through. Whatever is printed, as text, in a table, a
    rule or a bar, passes `render` as segments, in which rich keeps its own commands apart (`control`) and has not yet
    put its colours: so here is the one place that no caller, present or future, goes around. Widths are settled
    before; so that nothing is cut, plain text, which is nearly all, is made inert when it becomes rich's.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Rich's text of a plain one."""
        return super().render_str(inert(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of an object, its text made inert."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=inert(segment.text))


console = SafeConsole(stderr=True, highlight=False)


LINE_EVERY = 60.0
"""Seconds between two lines of a log."""


def bar(*, transient: bool = False, columns: tuple[str, ...] = ()) -> Progress:
    """A progress bar on stderr; a line a minute where that is not a terminal. `columns` are extra text fields."""
    if not sys.stderr.isatty():
        return _Lines(columns)
    extra = [TextColumn("{task.fields[" + name + "]}") for name in columns]
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *extra,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


class _Lines(Progress):
    """For logs, in which a bar could not move: what it would show, now and then. Short work says nothing."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        super().__init__(disable=True, speed_estimate_period=10 * LINE_EVERY)
        self._columns, self._said = columns, time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        task = next(task for task in self.tasks if task.id == task_id)
        if not task.visible or time.monotonic() - self._said < LINE_EVERY:
            return
        self._said = time.monotonic()
        total = "" if task.total is None else f"/{task.total:.0f}"
        parts = [f"{task.completed:.0f}{total}", *(str(task.fields.get(name, "")) for name in self._columns)]
        parts.append(f"{_clock(task.elapsed)} passed")
        if task.time_remaining is not None:
            parts.append(f"about {_clock(task.time_remaining)} left")
        print(inert(f"{task.description}: {', '.join(filter(None, parts))}"), file=sys.stderr, flush=True)


def _clock(seconds: float | None) -> str:
    return str(timedelta(seconds=round(seconds or 0)))


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate with a progress bar."""
    with bar() as progress:
        yield from progress.track(items, description=description, total=total)
