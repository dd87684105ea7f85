"""Loss weights and learning rate that follow the training: closed forms, and a literal reading of the paper's rule."""

import json
import math
import random
from collections.abc import Iterable
from typing import Any

import pytest

from lorica.finetune import RobustAccuracyLR, StepLR, loss_weights


# ----- loss weights -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("largest", [0.0, 6.0])
def test_the_loss_weights_are_equations_7_to_9(alpha: float, largest: float) -> None:
    for step in range(11):
        accuracy = step / 10
        lambda1, lambda2 = loss_weights(accuracy, alpha, largest)
        learned = math.exp(alpha * math.log(accuracy)) if accuracy else 0.0
        assert lambda1 == pytest.approx(1 - learned) and lambda2 == pytest.approx(largest * learned)
        assert 0 <= lambda1 <= 1 and 0 <= lambda2 <= largest


def test_by_default_the_loss_weights_are_the_papers() -> None:
    assert loss_weights(0.0) == (1.0, 0.0)
    assert loss_weights(1.0) == (0.0, 6.0)
    assert loss_weights(0.75) == (0.25, 4.5)


@pytest.mark.parametrize(
    "values",
    [(-0.01,), (1.01,), (45.0,), (math.nan,), (0.5, 0.0), (0.5, -1.0), (0.5, math.nan), (0.5, 1.0, -0.1)],
)
def test_numbers_that_are_no_accuracy_or_no_weight_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"accuracy is in \[0, 1\]|must be positive"):
        loss_weights(*values)


# ----- learning rate by robust accuracy -----------------------------------------------------------------------------
def literal(accuracies: list[float], *, eta: float, every: int, rho: float, divide: float) -> list[tuple[float, bool]]:
    """(rate of the next epoch, whether the best weights are reloaded) after each epoch, from the rule as written.

    W = {0, every, 2 every, ...} counts epochs from 0; eta_at[e] is the rate that epoch e was trained with.
    """
    eta_at, decided = [eta], []
    for now in range(len(accuracies)):
        fires = now > 0 and now % every == 0
        if fires:
            last = now - every
            rises = [j for j in range(last, now) if accuracies[j + 1] > accuracies[j]]
            condition1 = len(rises) < rho * (now - last)
            condition2 = eta_at[last] == eta_at[now] and max(accuracies[: last + 1]) == max(accuracies[: now + 1])
            fires = condition1 or condition2
        eta_at.append(eta_at[-1] / divide if fires else eta_at[-1])
        decided.append((eta_at[-1], fires))
    return decided


def sequences(count: int) -> Iterable[tuple[list[float], dict[str, Any]]]:
    """Accuracies that rise, fall and repeat themselves, with settings to follow them by."""
    draw = random.Random(0)
    for _ in range(count):
        accuracy, sequence, rising = draw.randint(0, 5), [], draw.random()
        for _ in range(draw.randint(1, 30)):
            accuracy += draw.choice([1, 2]) if draw.random() < rising else draw.choice([0, -1, -2])
            accuracy = min(20, max(0, accuracy))
            sequence.append(accuracy / 20)
        yield sequence, {
            "every": draw.choice([1, 2, 3, 4, 4, 7]), "rho": draw.choice([0.5, 0.75, 0.75, 1.0]),
            "divide": draw.choice([2.0, 2.0, 10.0]),
        }  # fmt: skip


def test_the_learning_rate_follows_the_two_conditions_as_they_are_written() -> None:
    fired = conditions = 0
    for accuracies, settings in sequences(500):
        schedule, best = RobustAccuracyLR(0.01, smallest=0.0, **settings), -1.0
        for accuracy, (rate, reload) in zip(accuracies, literal(accuracies, eta=0.01, **settings), strict=True):
            decision = schedule.step(accuracy)
            assert (decision.learning_rate, decision.reload, decision.stop) == (rate, reload, False)
            assert decision.best is (accuracy > best)
            best, fired, conditions = max(best, accuracy), fired + reload, conditions + 1
    assert 300 < fired < conditions - 300  # both outcomes have been seen


def follow(schedule: Any, accuracies: Iterable[float]) -> list[Any]:
    return [schedule.step(accuracy) for accuracy in accuracies]


def test_after_epochs_5_9_13_the_rate_of_a_falling_run_is_halved_and_the_best_weights_come_back() -> None:
    decisions = follow(RobustAccuracyLR(0.01), [0.5 - epoch / 100 for epoch in range(14)])
    assert [epoch + 1 for epoch, decision in enumerate(decisions) if decision.reload] == [5, 9, 13]
    assert [decisions[i].learning_rate for i in (3, 4, 7, 8, 12)] == [0.01, 0.005, 0.005, 0.0025, 0.00125]
    assert [decision.best for decision in decisions] == [True] + 13 * [False]


def test_three_rises_of_four_are_enough_and_two_are_not() -> None:
    enough, short = [0.1, 0.2, 0.3, 0.4, 0.3], [0.1, 0.2, 0.3, 0.3, 0.3]
    assert not follow(RobustAccuracyLR(0.01), enough)[-1].reload
    assert follow(RobustAccuracyLR(0.01), short)[-1].reload


def test_a_best_accuracy_that_stands_still_halves_once_and_only_then_waits() -> None:
    """Condition 2 alone: the accuracy rises in three of four epochs, but never above the best of long ago."""
    wave = [0.1, 0.2, 0.3, 0.4]
    decisions = follow(RobustAccuracyLR(0.01), [0.9, *(4 * wave)])
    # At the first checkpoint the best is still that of epoch 0; at the next the rate is another one; and so on.
    assert [epoch for epoch, decision in enumerate(decisions) if decision.reload] == [4, 12]


def test_training_stops_when_the_rate_falls_below_the_smallest() -> None:
    decisions = follow(RobustAccuracyLR(0.01, every=1), [0.1] * 12)
    assert [epoch for epoch, decision in enumerate(decisions) if decision.stop] == [10, 11]  # 0.01 / 2**10 < 1e-5
    assert decisions[9].learning_rate == 0.01 / 2**9
    exactly = follow(RobustAccuracyLR(1.0, every=1, smallest=0.25), [0.1] * 4)
    assert [decision.stop for decision in exactly] == [False, False, False, True]  # 0.25 itself still trains


def test_a_schedule_restored_at_any_epoch_decides_the_same() -> None:
    for accuracies, settings in sequences(40):
        whole = follow(RobustAccuracyLR(0.01, **settings), accuracies)
        schedule = RobustAccuracyLR(0.01, **settings)
        again = []
        for accuracy in accuracies:
            schedule = RobustAccuracyLR.restored(json.loads(json.dumps(schedule.state())))
            again.append(schedule.step(accuracy))
        assert again == whole


# ----- fixed steps --------------------------------------------------------------------------------------------------
def test_the_fixed_schedule_divides_by_ten_after_30_and_50_of_60_epochs() -> None:
    rates = [decision.learning_rate for decision in follow(StepLR(0.01, 60), [0.5] * 60)]
    assert rates[:29] == [0.01] * 29
    assert rates[29:49] == pytest.approx([0.001] * 20) and rates[49:] == pytest.approx([0.0001] * 11)


def test_the_fixed_schedule_keeps_the_best_weights_and_never_goes_back() -> None:
    decisions = follow(StepLR(0.01, 5), [0.3, 0.2, 0.3, 0.4, 0.1])
    assert [decision.best for decision in decisions] == [True, False, False, True, False]
    assert not any(decision.reload or decision.stop for decision in decisions)


@pytest.mark.parametrize("at", [(0.5, 5 / 6), ()])
def test_a_fixed_schedule_restored_at_any_epoch_decides_the_same(at: tuple[float, ...]) -> None:
    accuracies = [0.1, 0.3, 0.2, 0.4, 0.4, 0.1]
    whole = follow(StepLR(0.1, 6, at), accuracies)
    assert [decision.learning_rate == 0.1 for decision in whole] == ([True] * 2 + [False] * 4 if at else [True] * 6)
    schedule, again = StepLR(0.1, 6, at), []
    for accuracy in accuracies:
        schedule = StepLR.restored(json.loads(json.dumps(schedule.state())))
        again.append(schedule.step(accuracy))
    assert again == whole
