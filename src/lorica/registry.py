"""Named implementations: objectives, attacks, extractors. One file and one `@register` each."""

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lorica.errors import LoricaError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps the name used in YAML, on the command line and in reports to the class that implements it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        def add(cls: type[T]) -> type[T]:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise LoricaError(f"unknown {self.kind} {name!r}", f"{hint}Known: {', '.join(self)}.")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
