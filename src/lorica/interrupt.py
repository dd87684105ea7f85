"""Ctrl-C and SIGTERM become a request to stop after the current step, so that the state can be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator


@contextmanager
def interruptible(accelerator: Accelerator) -> Iterator[Callable[[bool], bool]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second Ctrl-C kills.

    Gives `interrupted(meet)`: whether to stop now. Several processes must stop at the same step, so that they answer
    False unless `meet`, when they ask one another; all must then call with `meet` at the same step.
    """
    alone, seen = accelerator.num_processes == 1, False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        # torchrun forwards a Ctrl-C that the terminal has sent already, and kills after a while by itself.
        if seen and alone:
            raise KeyboardInterrupt
        seen = True

    def interrupted(meet: bool) -> bool:
        if alone or not meet:
            return alone and seen
        flag = torch.tensor(float(seen), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item())

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        previous = {}
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
