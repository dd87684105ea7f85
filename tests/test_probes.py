"""Probes of an encoder: against naive loops, and against what an attack on a linear encoder must achieve."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorica.data.labelled import LabelledSet
from lorica.errors import LoricaError
from lorica.pretrain.probes import Linear, NearestNeighbours, Probe, fit_linear
from lorica.robustness.threat import Threat

SHAPE = (3, 4, 4)
THREAT = Threat(8 / 255)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grey(count: int, seed: int, spread: int = 40) -> Tensor:
    """Pictures so far from black and white that an attack never meets the edge of the box."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(127 - spread, 127 + spread, (count, *SHAPE), generator=generator, dtype=torch.uint8)


def pictures(pixels: Tensor, labels: Tensor, classes=("a", "b")) -> LabelledSet:
    names = tuple(map(str, range(len(pixels))))
    return LabelledSet(pixels, labels, tuple(classes), names, names)


# ----- nearest neighbours ----------------------------------------------------------------------------------------
def naive_votes(feature, bank, labels, classes, neighbours, temperature):
    similar = [float(feature @ other / (feature.norm() * other.norm())) for other in bank]
    nearest = sorted(range(len(bank)), key=lambda place: -similar[place])[:neighbours]
    votes = [0.0] * classes
    for place in nearest:
        votes[int(labels[place])] += math.exp(similar[place] / temperature)
    return votes


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("neighbours", [1, 5, 12])
def test_the_nearest_neighbours_vote_as_in_a_loop(neighbours, temperature):
    bank, labels, x = random(12, 6, seed=1), torch.arange(12) % 3, random(7, 6, seed=2)
    logits = NearestNeighbours(bank, labels, 3, neighbours, temperature)(x)
    for row, feature in zip(logits, x, strict=True):
        votes = naive_votes(feature, bank, labels, 3, neighbours, temperature)
        for logit, vote in zip(row.tolist(), votes, strict=True):
            if vote:
                assert logit == pytest.approx(math.log(vote), abs=1e-4)
            else:
                assert logit < math.log(max(votes)) - 40


def test_fewer_pictures_than_neighbours_all_vote():
    bank, labels, x = random(5, 6, seed=1), torch.tensor([0, 1, 0, 1, 1]), random(4, 6)
    few, exact = NearestNeighbours(bank, labels, 2, 20), NearestNeighbours(bank, labels, 2, 5)
    assert torch.equal(few(x), exact(x))


@pytest.mark.parametrize("temperature", [0.001, 0.1])
def test_classes_without_votes_have_finite_logits_and_gradients(temperature):
    probe = NearestNeighbours(random(6, 4), torch.zeros(6, dtype=torch.int64), 3, 2, temperature)
    x = random(2, 4, seed=3).requires_grad_(True)
    logits = probe(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([1, 0])), x)
    assert logits.isfinite().all() and gradient.isfinite().all()
    assert (logits.argmax(1) == 0).all()


def test_the_attacked_votes_are_those_of_the_whole_bank():
    bank, labels, x = random(12, 6, seed=1), torch.arange(12) % 3, random(7, 6)
    whole = NearestNeighbours(bank, labels, 3, 12)
    assert torch.equal(NearestNeighbours(bank, labels, 3, 2).attacked(x), whole(x))


# ----- logistic regression ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_probe_is_where_the_gradient_of_its_objective_vanishes(classes):
    x, labels = 3 + 2 * random(60, 4), torch.arange(60) % classes
    fitted = fit_linear(x.double(), labels, classes)
    z = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    weight, bias = fitted.weight.clone().requires_grad_(True), fitted.bias.clone().requires_grad_(True)
    objective = F.cross_entropy(z @ weight.T + bias, labels, reduction="sum") + weight.square().sum() / 2
    gradients = torch.autograd.grad(objective, (weight, bias))
    free = slice(1, None) if classes == 2 else slice(None)  # of two classes the first is held at zero
    assert all(gradient[free].abs().max() < 1e-2 for gradient in gradients)
    torch.testing.assert_close(fitted(x.double()), z @ fitted.weight.T + fitted.bias)


def test_the_linear_probe_is_a_pure_function_and_ignores_dead_features():
    x, labels = torch.cat([random(40, 3), torch.full((40, 1), 7.0)], 1), torch.arange(40) % 4
    once, again = fit_linear(x, labels, 4), fit_linear(x, labels, 4)
    assert torch.equal(once.weight, again.weight) and torch.equal(once.bias, again.bias)
    assert once(x).isfinite().all() and once.weight.dtype == torch.float32


@pytest.mark.parametrize("taught", [(0, 3), (1, 2, 3)])
def test_no_probe_predicts_a_class_that_it_has_no_picture_of(taught):
    labels = torch.tensor(taught).repeat(20)
    x = random(len(labels), 4)
    for probe in (fit_linear(x, labels, 5), NearestNeighbours(x, labels, 5)):
        logits = probe(random(50, 4, seed=1))
        assert logits.shape == (50, 5) and logits.isfinite().all()
        assert set(logits.argmax(1).tolist()) == set(taught)


# ----- under attack ----------------------------------------------------------------------------------------------
def halves(pixels: Tensor) -> Tensor:
    """Two features: the mean of the upper and of the lower half of a picture."""
    return torch.stack([pixels[:, :, :2].mean((1, 2, 3)), pixels[:, :, 2:].mean((1, 2, 3))], dim=1)


def uneven(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures whose upper half is brighter by 30 levels at most, or darker; labels 0 and 1 say which."""
    pixels = grey(count, seed, spread=20)
    shift = torch.linspace(-30, 30, count).round().to(torch.int16).view(-1, 1, 1, 1)
    pixels = torch.cat([(pixels[:, :, :2] + shift), pixels[:, :, 2:].to(torch.int16)], dim=2).to(torch.uint8)
    difference = halves(pixels.float())
    return pixels, (difference[:, 0] < difference[:, 1]).long()


def test_an_attack_on_the_linear_probe_breaks_what_the_closed_form_says():
    pixels, labels = uneven(120, 1)
    known, tried = pictures(pixels[::2], labels[::2]), pictures(pixels[1::2], labels[1::2])

    def features(x: Tensor) -> Tensor:
        return x.flatten(1)

    right = Probe(known, tried, threat=THREAT).right(features)
    linear = fit_linear(features(known.pixels.float() / 255), known.labels, 2)
    slope = (linear.weight[1] - linear.weight[0]) / linear.std
    logits = linear(features(tried.pixels.float() / 255))
    margin = (logits[:, 1] - logits[:, 0]) * (2 * tried.labels - 1)
    assert torch.equal(right["linear_natural"], margin > 0)
    clear = (margin - THREAT.eps * slope.abs().sum()).abs() > 1e-3
    assert clear.sum() > 55
    assert torch.equal(right["linear_robust"][clear], (margin > THREAT.eps * slope.abs().sum())[clear])
    assert 0 < right["linear_robust"].sum() < right["linear_natural"].sum()


def test_an_attack_on_the_single_nearest_neighbour_breaks_what_the_closed_form_says():
    pixels, labels = uneven(60, 2)
    known = torch.full((2, *SHAPE), 100, dtype=torch.uint8)
    known[0, :, :2] = known[1, :, 2:] = 150  # mirror images: the border is where both halves are alike
    known_set, tried = pictures(known, torch.tensor([0, 1])), pictures(pixels, labels)

    single = NearestNeighbours(halves(known / 255), torch.tensor([0, 1]), 2, 1)
    x = (pixels / 255).requires_grad_(True)
    (own,) = torch.autograd.grad(F.cross_entropy(single(halves(x)), labels, reduction="sum"), x)
    assert not own.any()  # an attack on the vote itself would find nothing

    right = Probe(known_set, tried, threat=THREAT, neighbours=1).right(halves)
    means = halves(pixels / 255)
    margin = (means[:, 0] - means[:, 1]).abs() - 2 * THREAT.eps  # both halves move by eps
    clear = margin.abs() > 1e-4
    assert clear.sum() > 55
    assert right["knn_natural"].all()
    assert torch.equal(right["knn_robust"][clear], margin[clear] > 0)
    assert 0 < right["knn_robust"].sum() < 60


def test_a_small_enough_attack_breaks_nothing_and_a_large_one_everything_of_a_linear_encoder():
    pixels, labels = uneven(60, 3)
    apart = halves(pixels.float()).diff(dim=1).abs().flatten() > 6
    both = pictures(pixels[apart], labels[apart])
    for eps, accuracy in ((0.1 / 255, 1.0), (60 / 255, 0.0)):
        measured = Probe(both, both, threat=Threat(eps), neighbours=1).measure(halves)
        assert measured["knn_natural"] == 1.0
        assert measured["knn_robust"] == accuracy


# ----- the probe -------------------------------------------------------------------------------------------------
def coarse(pixels: Tensor) -> Tensor:
    return torch.cat([pixels.mean((2, 3)), pixels.square().mean((2, 3))], dim=1)


def separable(count: int, seed: int) -> LabelledSet:
    """Three classes, each with one bright channel."""
    pixels, labels = grey(count, seed), torch.arange(count) % 3
    pixels[torch.arange(count), labels] += 60
    return pictures(pixels, labels, ("r", "g", "b"))


def test_separable_classes_are_recognised_and_the_intervals_belong_to_the_accuracies():
    probe = Probe(separable(60, 1), separable(41, 2), threat=THREAT, batch_size=16)
    measured, rates = probe.measure(coarse), probe.measure_rates(coarse, level=0.9)
    assert measured.keys() == rates.keys() == {"knn_natural", "knn_robust", "linear_natural", "linear_robust"}
    assert measured["knn_natural"] == measured["linear_natural"] == 1.0
    for name, value in measured.items():
        found = rates[name]
        assert found["value"] == value and found["n"] == 41 and found["level"] == 0.9
        assert found["low"] <= value <= found["high"] and found["low"] < found["high"]


def test_without_steps_there_is_no_attack():
    assert set(Probe(separable(30, 1), separable(30, 2), threat=THREAT, steps=0).measure(coarse)) == {
        "knn_natural", "linear_natural",
    }  # fmt: skip


def noisy(count: int, seed: int) -> LabelledSet:
    return pictures(grey(count, seed), torch.arange(count) % 2)


def test_a_picture_that_is_wrong_already_is_broken():
    right = Probe(noisy(40, 1), noisy(40, 2), threat=THREAT, neighbours=3).right(coarse)
    for name in ("knn", "linear"):
        assert 0 < right[f"{name}_natural"].sum() < 40
        assert not (right[f"{name}_robust"] & ~right[f"{name}_natural"]).any()


def test_a_measurement_is_the_same_again_and_leaves_the_random_state_alone():
    probe = Probe(noisy(40, 1), noisy(40, 2), threat=Threat(2 / 255), steps=2, batch_size=16)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with torch.no_grad():
        first = probe.right(coarse)
    assert torch.equal(torch.rand(1), expected)
    second = probe.right(coarse)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_features_of_half_precision_are_taken():
    probe = Probe(separable(30, 1), separable(12, 2), threat=THREAT, steps=2)
    assert probe.measure(lambda x: coarse(x).bfloat16())["knn_natural"] == 1.0


@pytest.mark.parametrize(
    "wrong",
    [{"steps": -1}, {"step_size": 0.0}, {"neighbours": 0}, {"temperature": 0.0}, {"temperature": math.nan},
     {"batch_size": 0}],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(LoricaError, match=next(iter(wrong))) as caught:
        Probe(separable(9, 1), separable(9, 2), threat=THREAT, **wrong)
    assert caught.value.remedy


def test_pictures_that_no_probe_can_learn_from_are_refused():
    one = pictures(grey(4, 1), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(LoricaError, match=r"1 class\(es\) to learn from"):
        Probe(one, noisy(4, 1), threat=THREAT)
    with pytest.raises(LoricaError, match="0 to try on"):
        Probe(noisy(4, 1), noisy(4, 1).take([]), threat=THREAT)
    with pytest.raises(LoricaError, match="other classes"):
        Probe(noisy(4, 1), separable(6, 1), threat=THREAT)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(LoricaError, match="not finite"):
        Probe(noisy(8, 1), noisy(8, 2), threat=THREAT).measure(lambda x: coarse(x) / 0)


def test_what_is_attacked_of_the_linear_probe_is_the_probe():
    probe = Linear(random(3, 4), random(3), random(4), random(4).abs() + 1)
    assert torch.equal(probe(random(5, 4, seed=2)), probe.attacked(random(5, 4, seed=2)))
