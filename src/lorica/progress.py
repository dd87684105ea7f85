"""One look for every long piece of work."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True, highlight=False)


def bar(*, transient: bool = False, columns: tuple[str, ...] = ()) -> Progress:
    """A progress bar on stderr, silent where stderr is not a terminal. `columns` are extra text fields."""
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
        disable=not sys.stderr.isatty(),
    )


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate with a progress bar."""
    with bar() as progress:
        yield from progress.track(items, description=description, total=total)
