"""An exponential average of the weights, which generalises better under attack than the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averages parameters and batch-norm statistics of a module (Gowal et al., 2020, arXiv 2010.03593, section 4.4).

    Args:
        module: is followed, not changed.
        decay: per step; the first steps weigh more, min(decay, (1 + n) / (10 + n)), so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values: dict[str, Tensor] = {key: value.clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step's weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        state = module.state_dict()
        floats = [key for key, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[key] for key in floats], [state[key] for key in floats], 1 - decay)
        for key in state.keys() - set(floats):
            self.values[key].copy_(state[key])

    @contextmanager
    def within(self, module: nn.Module) -> Iterator[None]:
        """Inside the block the module has the averaged weights; its own come back at the end."""
        own = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.values)
        try:
            yield
        finally:
            module.load_state_dict(own)
