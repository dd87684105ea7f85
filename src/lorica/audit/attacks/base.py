"""The interface of a membership attack, in two stages: questions to the model, then arithmetic on the answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lorica.config import Config
from lorica.registry import Registry

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting

Features = dict[str, NDArray[Any]]
"""Arrays by name, the first dimension counting pictures."""
Groups = dict[str, Features]
"""Features of `aux_members`, `test_members`, `aux_nonmembers` and `test_nonmembers`."""

ConfigT = TypeVar("ConfigT", bound=Config)


class Attack(ABC, Generic[ConfigT]):
    """Scores pictures by how much the model betrays that it was trained on them.

    Args:
        options: an instance of the class's `Options`; the defaults where omitted.
    """

    name: ClassVar[str]
    """As in the registry."""
    summary: ClassVar[str]
    """One line for `--help` and the documentation."""
    source: ClassVar[str]
    """Paper and place in it."""
    threat_model: ClassVar[Literal["black", "gray", "white"]]
    """black: sees generated pictures; gray: may query the UNet; white: reads the weights or their gradients."""
    needs_caption: ClassVar[bool] = False
    """Whether it is pointless without the caption that the picture was trained with."""
    needs_base: ClassVar[bool] = False
    """Whether it compares with the base model. Its features then come twice, the base model's as `base_<name>`."""
    needs_shadows: ClassVar[bool] = False
    """Whether it compares with shadow LoRAs (`lorica.shadows`). Their features then come as `shadow_<name>`
    (N, S, ...), and as `shadow_in` (N, S) whether a picture was a member of a shadow."""
    needs_lora: ClassVar[bool] = False
    """Whether it looks at the LoRA's own weights: the base model cannot be asked then, not as a control either."""
    Options: ClassVar[type[Config]]
    """The configuration class."""

    options: ConfigT

    def __init__(self, options: ConfigT | None = None) -> None:
        self.options = options if options is not None else self.Options()  # type: ignore[assignment]

    @property
    @abstractmethod
    def queries(self) -> int:
        """UNet calls per picture that the attacker pays, those to the base model included; those to shadows, which are
        the attacker's own, are not."""

    @property
    def trials(self) -> int:
        """How many variants of itself it compares on the auxiliary pictures before it settles on one."""
        return 1

    @property
    @abstractmethod
    def measurement(self) -> dict[str, Any]:
        """What `ask` measures: its "kind", and every option on which its result depends.

        Attacks with equal measurements share their features; options that matter only in `score` are left out, so
        that changing them asks the model nothing again.
        """

    @abstractmethod
    def ask(self, sitting: "Sitting") -> "Ask":
        """Ask the model about a batch of pictures, in rounds of queries (`lorica.audit.queries`).

        A picture's row of the returned features depends on nothing but itself, model and seed. An attack that needs
        more than predictions (gradients, drawn pictures) takes it from `sitting.model` and yields no query.
        """

    @abstractmethod
    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        """One score per picture of each group, higher = more member-like.

        Whatever is fitted is fitted on `aux_members` and `aux_nonmembers` alone, or on shadows, whose members the
        attacker has chosen. What the audited model says of one test picture never matters to another. The scores of
        the auxiliary groups set the threshold of the attack, so they must come about as the test scores do: not by
        something fitted to the very picture.
        """


class StatisticAttack(Attack[ConfigT]):
    """An attack whose score is a fixed function of a picture's own features: nothing is fitted."""

    @abstractmethod
    def statistic(self, features: Features) -> NDArray[np.float64]:
        """(N,) scores from the features of N pictures."""

    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        return {group: self.statistic(features) for group, features in groups.items()}


FOLDS = 3
Scorer = Callable[[NDArray[Any]], NDArray[np.float64]]
"""Scores (N,) of inputs (N, ...)."""


def cross_fitted(
    inputs: dict[str, NDArray[Any]], fit: Callable[[NDArray[Any], NDArray[Any]], Scorer]
) -> dict[str, NDArray[np.float64]]:
    """Scores of all groups by something fitted to the auxiliary ones.

    An auxiliary picture is scored by one that was fitted without it: on what it was fitted to a
    classifier is nearly always right, and a threshold set there would not transfer.

    Args:
        inputs: arrays by group, the first dimension counting pictures.
        fit: makes a scorer from the inputs of auxiliary members and non-members.
    """
    auxiliary = ("aux_members", "aux_nonmembers")
    scorer = fit(*(inputs[group] for group in auxiliary))
    scores = {group: scorer(values) for group, values in inputs.items()}
    folds = min(FOLDS, *(len(inputs[group]) for group in auxiliary))
    for fold in range(folds):
        held = {group: np.arange(len(inputs[group])) % folds == fold for group in auxiliary}
        scorer = fit(*(inputs[group][~held[group]] for group in auxiliary))
        for group in auxiliary:
            scores[group][held[group]] = scorer(inputs[group][held[group]])
    return scores


ATTACKS: Registry[Attack] = Registry("attack")

A = TypeVar("A", bound=type[Attack])


def register(name: str) -> Callable[[A], A]:
    """Put an attack into `ATTACKS` under the name used in YAML, on the command line and in reports."""

    def add(cls: A) -> A:
        cls.name = name
        ATTACKS.register(name)(cls)
        return cls

    return add
