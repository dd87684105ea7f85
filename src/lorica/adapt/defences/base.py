"""The interface of a defence: the places of the one training loop where it may act."""

from abc import ABC
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from lorica.adapt.pools import Batch, Draw, Pool
from lorica.config import Config, load
from lorica.data.pictures import Picture
from lorica.diffusion import LatentDiffusion
from lorica.errors import LoricaError
from lorica.registry import Registry

if TYPE_CHECKING:
    from lorica.adapt.config import AdaptConfig

ConfigT = TypeVar("ConfigT", bound=Config)


class Defence(ABC, Generic[ConfigT]):
    """Takes part in a run beside its objective. Every method here does nothing; a defence overrides what it needs.

    What it does in a step is a function of the weights, its own state, the step number and the keys of a draw: a
    resumed run repeats it. It never waits for the device within a step.

    Args:
        options: an instance of the class's `Options`.
        config: of the run.
        members: number of pictures in D_tr.

    Raises:
        LoricaError: it cannot work with so many pictures, or something that it needs is not installed.
    """

    summary: ClassVar[str]
    """One line for the documentation."""
    source: ClassVar[str]
    """Paper and place in it."""
    Options: ClassVar[type[Config]]
    """The configuration class."""
    alone: ClassVar[bool] = False
    """Whether it needs the run to be a single process, as it keeps a state that several would not share."""
    settles: ClassVar[frozenset[str]] = frozenset()
    """Keys of the run's configuration that a resumed run may change, but not with this defence."""
    watches_aux: bool = False
    """Whether `validated` needs the losses of the auxiliary groups."""
    augmentation: str = ""
    """How pictures were changed, for the record."""

    def __init__(self, options: ConfigT, config: "AdaptConfig", members: int) -> None:
        self.options = options
        self.seed = config.seed

    @classmethod
    def check(cls, options: Any, config: "AdaptConfig") -> None:
        """Raises: LoricaError, if the rest of the configuration does not go with it."""

    # ----- before the first step --------------------------------------------------------------------------------
    def pool(self, pool: Pool, pictures: Sequence[Picture], model: LatentDiffusion, cache: Path) -> Pool:
        """The pool with what `batch` chooses from appended (see `Pool`)."""
        return pool

    def attach(self, model: LatentDiffusion, parameters: list[nn.Parameter]) -> None:
        """The model, with its LoRA, and the LoRA's parameters."""

    # ----- in a step --------------------------------------------------------------------------------------------
    def draw(self, pool: Pool, index: int) -> Draw | None:
        """Which pictures batch `index` of a pool holds; None leaves it to the run."""
        return None

    def batch(self, batch: Batch) -> Batch:
        """The batch with other rows of the pool: other views, other captions.

        Called for all batches, those of the proxy attacker too, which must compare like with like.
        """
        return batch

    def losses(self, losses: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-sample adaptation losses (N,) at timesteps t (N,), weighted; and scalars on the device for the log."""
        return losses, {}

    def gradients(self, step: int) -> AbstractContextManager[None]:
        """Surrounds forward and backward pass of step `step` on the LoRA; afterwards it may replace the gradients."""
        return nullcontext()

    # ----- between steps ----------------------------------------------------------------------------------------
    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """Validation losses after `step` completed steps: val_member, val_nonmember and, if watched, aux_..."""

    @property
    def stopped(self) -> str | None:
        """Why the run should end, if it should."""
        return None

    def finish(self, steps: int) -> int:
        """Put the weights in place that are to be saved; returns how many steps they have taken (`steps` so far)."""
        return steps

    def facts(self, steps: int) -> dict[str, Any]:
        """What run.json says of it besides its options, for weights that have taken `steps` steps."""
        return {}

    # ----- its own state ----------------------------------------------------------------------------------------
    def state(self) -> dict[str, Tensor]:
        """All that changes during a run; goes into the checkpoint."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""


DEFENCES: Registry[Defence] = Registry("defence")


def chosen(given: Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """The named defences with all their options, in the order of the registry.

    Raises:
        LoricaError: no such defence, or no such option of it.
    """
    settled = {}
    for name, options in given.items():
        try:
            settled[name] = load(DEFENCES[name].Options, options=options or {}).model_dump(mode="json")
        except LoricaError as error:
            raise LoricaError(f"defence {name}: {error.problem}", error.remedy) from error
    return {name: settled[name] for name in DEFENCES if name in settled}


def explained() -> str:
    """Names and options of all defences, for `--help`."""
    return "; ".join(f"{name} ({', '.join(DEFENCES[name].Options.model_fields)})" for name in DEFENCES)
