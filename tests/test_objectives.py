"""The MI gain and the objectives against their equations (arXiv 2402.11989)."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lorica.adapt import OBJECTIVES, mi_gain, mp_loss, smp_loss

LOG_2 = math.log(2)


def gain_by_equation_5(members: list[float], nonmembers: list[float]) -> float:
    """1/(2 n) sum log h + 1/(2 m) sum log(1 - h), from probabilities, in plain Python."""
    return sum(map(math.log, members)) / (2 * len(members)) + sum(
        math.log(1 - probability) for probability in nonmembers
    ) / (2 * len(nonmembers))


@pytest.fixture
def logits() -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda count: 3 * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def test_mi_gain_of_two_logits_is_equation_5(logits: Callable[[int], Tensor]) -> None:
    members, nonmembers = logits(5), logits(3)
    by_hand = gain_by_equation_5(members.softmax(1)[:, 1].tolist(), nonmembers.softmax(1)[:, 1].tolist())
    assert mi_gain(members, nonmembers).item() == pytest.approx(by_hand, rel=1e-12)


def test_mi_gain_of_one_logit_is_equation_5(logits: Callable[[int], Tensor]) -> None:
    members, nonmembers = logits(5)[:, 0], logits(3)[:, 0]
    by_hand = gain_by_equation_5(members.sigmoid().tolist(), nonmembers.sigmoid().tolist())
    assert mi_gain(members, nonmembers).item() == pytest.approx(by_hand, rel=1e-12)


def test_one_logit_is_the_difference_of_two(logits: Callable[[int], Tensor]) -> None:
    members, nonmembers = logits(5), logits(3)
    assert mi_gain(members[:, 1] - members[:, 0], nonmembers[:, 1] - nonmembers[:, 0]).item() == pytest.approx(
        mi_gain(members, nonmembers).item(), rel=1e-12
    )


@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_an_attacker_that_knows_nothing_has_a_gain_of_minus_log_2(shape: tuple[int, ...]) -> None:
    assert mi_gain(torch.zeros(shape), torch.zeros(shape)).item() == pytest.approx(-LOG_2)


def test_a_perfect_attacker_has_gain_0_and_one_that_is_always_wrong_a_very_negative_one() -> None:
    sure = torch.tensor([[-500.0, 500.0]])
    assert mi_gain(sure, sure.flip(1)).item() == 0
    assert mi_gain(sure.flip(1), sure).item() == pytest.approx(-1000)


def test_without_non_members_the_gain_is_half_of_the_member_term(logits: Callable[[int], Tensor]) -> None:
    members = logits(5)
    assert mi_gain(members, None).item() == pytest.approx(0.5 * members.log_softmax(1)[:, 1].mean().item())


def test_the_gain_weighs_both_sides_equally_whatever_their_sizes(logits: Callable[[int], Tensor]) -> None:
    members, nonmembers = logits(2), logits(2)
    assert mi_gain(members, nonmembers.repeat(50, 1)).item() == pytest.approx(mi_gain(members, nonmembers).item())


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(0), torch.zeros(0, 2), torch.zeros(3, 3), torch.zeros(3, 1), torch.zeros(2, 2, 2), torch.zeros(())],
    ids=lambda x: str(tuple(x.shape)),
)
def test_logits_of_no_sample_or_another_shape_are_refused_on_either_side(bad: Tensor) -> None:
    fine = torch.zeros(3, 2)
    for members, nonmembers in ((bad, fine), (fine, bad), (bad, None)):
        with pytest.raises(ValueError, match="attacker logits must be"):
            mi_gain(members, nonmembers)


def test_mp_loss_is_equation_6() -> None:
    assert mp_loss(torch.tensor(0.5), torch.tensor(-2.0), lam=0.05).item() == pytest.approx(0.4)
    assert mp_loss(torch.tensor(0.5), torch.tensor(-2.0), lam=0.0).item() == 0.5


def test_smp_loss_is_equation_10() -> None:
    loss, gain = torch.tensor(0.5, dtype=torch.float64), torch.tensor(-20.0, dtype=torch.float64)
    assert smp_loss(loss, gain, lam=0.05).item() == pytest.approx(0.5 / 2.00001, rel=1e-12)
    assert smp_loss(loss, gain, lam=0.05, delta=0).item() == 0.25
    assert smp_loss(loss, gain, lam=0.0, delta=0).item() == 0.5


def test_smp_loss_lies_between_0_and_the_adaptation_loss_for_every_gain() -> None:
    loss = torch.tensor(0.5, dtype=torch.float64)
    values = [smp_loss(loss, torch.tensor(-gain, dtype=torch.float64), lam=1).item() for gain in (0, 0.7, 10, 1e8)]
    assert values == sorted(values, reverse=True)
    assert min(values) > 0 and max(values) < 0.5


def game(weights: Tensor) -> tuple[Tensor, Tensor]:
    """An adaptation loss and a gain that both depend on the same weights."""
    return weights.square().mean() + 0.3, mi_gain(weights.outer(weights)[:, :2], weights.cos())


def test_the_gradient_of_smp_loss_is_that_of_appendix_b() -> None:
    """grad L_SPL = mu / (1 - lambda G + delta) + L_ada nu / (1 - lambda G + delta)^2, nu = lambda grad G."""
    weights = torch.tensor([0.4, -1.2, 2.0, 0.7], dtype=torch.float64, requires_grad=True)
    lam, delta = 0.7, 1e-5
    loss, gain = game(weights)
    mu = torch.autograd.grad(loss, weights, retain_graph=True)[0]
    nu = lam * torch.autograd.grad(gain, weights, retain_graph=True)[0]
    denominator = 1 - lam * gain.item() + delta
    expected = mu / denominator + loss.item() * nu / denominator**2
    assert nu.abs().max() > 0.1  # the second term counts
    found = torch.autograd.grad(smp_loss(loss, gain, lam, delta), weights)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_gradient_of_mp_loss_is_the_sum_of_its_parts() -> None:
    weights = torch.tensor([0.4, -1.2, 2.0, 0.7], dtype=torch.float64, requires_grad=True)
    loss, gain = game(weights)
    mu = torch.autograd.grad(loss, weights, retain_graph=True)[0]
    nu = 0.7 * torch.autograd.grad(gain, weights, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(mp_loss(loss, gain, 0.7), weights)[0], mu + nu, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES[name].needs_proxy])
@pytest.mark.parametrize("extreme", [1e4, -1e4])
@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_values_and_gradients_stay_finite_at_an_extreme_attacker(
    name: str, extreme: float, shape: tuple[int, ...]
) -> None:
    """In float32: the naive log(sigmoid(-1e4)) is -inf, and its gradient NaN."""
    sign = torch.tensor([-1.0, 1.0]) if len(shape) == 2 else torch.tensor(1.0)
    members = (extreme * sign).expand(shape).clone().requires_grad_()
    nonmembers = (extreme * sign).expand(shape).clone().requires_grad_()
    adaptation_loss = torch.tensor(0.5, requires_grad=True)
    for other in (nonmembers, None):
        value = OBJECTIVES[name](1.0, 1e-5).loss(adaptation_loss, mi_gain(members, other))
        assert value.isfinite()
        value.backward()
    for leaf in (members, nonmembers, adaptation_loss):
        assert leaf.grad is not None and leaf.grad.isfinite().all()
    # The side on which the attacker is badly wrong is where the gradient must not vanish.
    assert ((members if extreme < 0 else nonmembers).grad != 0).any()


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_says_what_it_is_and_falls_with_the_adaptation_loss(name: str) -> None:
    cls = OBJECTIVES[name]
    assert cls.summary and "arXiv" in cls.source
    gain = torch.tensor(-0.7, dtype=torch.float64) if cls.needs_proxy else None
    low, high = (cls(0.05, 1e-5).loss(torch.tensor(x, dtype=torch.float64), gain) for x in (0.2, 0.4))
    assert low.dim() == 0 and low < high


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES[name].needs_proxy])
def test_every_private_objective_rewards_a_fooled_attacker(name: str) -> None:
    """It falls with the gain, at given adaptation loss, and the more so the larger lambda is."""
    loss, knowing, fooled = torch.tensor([0.5, -0.1, -3.0], dtype=torch.float64)
    drops = [
        (OBJECTIVES[name](lam, 1e-5).loss(loss, knowing) - OBJECTIVES[name](lam, 1e-5).loss(loss, fooled)).item()
        for lam in (0.0, 0.05, 0.1)
    ]
    assert drops == sorted(drops)
    assert drops[0] == 0 and drops[1] > 0


def test_plain_lora_is_the_adaptation_loss_itself() -> None:
    loss = torch.tensor(0.5)
    assert OBJECTIVES["lora"](0.05, 1e-5).loss(loss, None) is loss
