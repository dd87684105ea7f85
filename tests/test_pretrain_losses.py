"""Objectives of pre-training against naive references, pair by pair in float64; schedules against the tables."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import lorica.pretrain
from lorica.pretrain.losses import adversarial_invariance, nt_xent, standard_invariance
from lorica.pretrain.schedule import Emphasis, annealed, learning_rate

T = 0.3


def embeddings(count: int, seed: int = 0, n: int = 7, d: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(count)]


def sim(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def softmax(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def mistaken(p: list[float], q: list[float]) -> float:
    """torch's kl_div(p, log q, log_target=True) with probabilities where it expects logarithms."""
    return sum(math.exp(math.log(b)) * (math.log(b) - a) for a, b in zip(p, q, strict=True))


def test_nt_xent_is_the_mean_over_views_of_the_cross_entropy_of_the_partner():
    z_i, z_j = embeddings(2)
    views = [*z_i, *z_j]
    total = 0.0
    for u, view in enumerate(views):
        partner = views[(u + len(z_i)) % len(views)]
        others = sum(math.exp(sim(view, other) / T) for v, other in enumerate(views) if v != u)
        total -= math.log(math.exp(sim(view, partner) / T) / others)
    assert float(nt_xent(z_i, z_j, T)) == pytest.approx(total / len(views), abs=1e-12)


def test_nt_xent_of_views_that_are_all_alike_is_that_of_guessing():
    """Rows that are all alike are told apart by chance: log(2N - 1) at any temperature."""
    z = torch.ones(4, 3, dtype=torch.float64)
    assert float(nt_xent(z, z)) == pytest.approx(math.log(7))


def test_the_standard_invariance_of_the_paper_is_a_kl_over_matched_pairs():
    z_i, z_j, o = embeddings(3)
    a = softmax([sim(x, y) / T for x, y in zip(z_i, o, strict=True)])
    b = softmax([sim(x, y) / T for x, y in zip(z_j, o, strict=True)])
    assert float(standard_invariance(z_i, z_j, o, T)) == pytest.approx(kl(a, b), abs=1e-12)
    assert float(standard_invariance(z_i, z_j, o, T, "authors")) == pytest.approx(mistaken(a, b), abs=1e-12)


def test_the_adversarial_invariance_of_the_paper_is_a_kl_of_products_that_are_not_normalised():
    z_i, z_j, i_adv, j_adv, o = embeddings(5)

    def product(z, adv):
        first = softmax([sim(x, y) / T for x, y in zip(adv, o, strict=True)])
        second = softmax([sim(x, y) / T for x, y in zip(adv, z, strict=True)])
        return [x * y for x, y in zip(first, second, strict=True)]

    p, q = product(z_i, i_adv), product(z_j, j_adv)
    assert sum(p) < 0.5
    found = adversarial_invariance(z_i, z_j, i_adv, j_adv, o, T)
    assert float(found) == pytest.approx(kl(p, q), abs=1e-12)
    found = adversarial_invariance(z_i, z_j, i_adv, j_adv, o, T, "authors")
    assert float(found) == pytest.approx(mistaken(p, q), abs=1e-12)


def test_the_anchored_forms_are_means_over_pictures_of_kls_over_the_batch():
    z_i, z_j, i_adv, j_adv, o = embeddings(5)
    n = len(o)
    standard = sum(
        kl(softmax([sim(o[k], z_i[m]) / T for m in range(n)]), softmax([sim(o[k], z_j[m]) / T for m in range(n)]))
        for k in range(n)
    )
    assert float(standard_invariance(z_i, z_j, o, T, "anchored")) == pytest.approx(standard / n, abs=1e-12)

    def chain(k, z, adv):
        first = softmax([sim(o[k], adv[m]) / T for m in range(n)])
        second = softmax([sim(z[k], adv[m]) / T for m in range(n)])
        products = [x * y for x, y in zip(first, second, strict=True)]
        return [x / sum(products) for x in products]

    adversarial = sum(kl(chain(k, z_i, i_adv), chain(k, z_j, j_adv)) for k in range(n))
    found = adversarial_invariance(z_i, z_j, i_adv, j_adv, o, T, "anchored")
    assert float(found) == pytest.approx(adversarial / n, abs=1e-12)


@pytest.mark.parametrize("form", ["paper", "authors", "anchored"])
def test_gradients_flow_into_every_argument_and_are_those_of_finite_differences(form):
    first, second = ([z.requires_grad_() for z in embeddings(count, n=4, d=3)] for count in (3, 5))
    assert torch.autograd.gradcheck(lambda *z: standard_invariance(*z, T, form), first)
    assert torch.autograd.gradcheck(lambda *z: adversarial_invariance(*z, T, form), second)
    assert torch.autograd.gradcheck(lambda *z: nt_xent(*z, T), first[:2])
    for name, z in (("standard", first), ("adversarial", second)):
        function = {"standard": standard_invariance, "adversarial": adversarial_invariance}[name]
        gradients = torch.autograd.grad(function(*z, T, form), z)
        assert all(float(gradient.abs().max()) > 1e-4 for gradient in gradients), name


@pytest.mark.parametrize("form", ["paper", "anchored"])
def test_a_true_divergence_is_zero_for_equal_views_and_positive_otherwise(form):
    z_i, z_j, i_adv, o = embeddings(4)
    assert float(standard_invariance(z_i, z_i, o, T, form)) == pytest.approx(0, abs=1e-12)
    assert float(adversarial_invariance(z_i, z_i, i_adv, i_adv, o, T, form)) == pytest.approx(0, abs=1e-12)
    assert float(standard_invariance(z_i, z_j, o, T, form)) > 0.01


def test_the_authors_form_is_negative_and_its_gradient_is_that_of_evening_out_view_j():
    z_i, z_j, o = embeddings(3, n=512, d=64)
    z_j.requires_grad_()
    found = standard_invariance(z_i, z_j, o, 0.5, "authors")
    assert float(found.detach()) == pytest.approx(-math.log(512), rel=0.01)
    b = (torch.nn.functional.cosine_similarity(z_j, o) / 0.5).log_softmax(0)
    given = torch.autograd.grad(found, z_j)[0].flatten()
    evening = torch.autograd.grad((b.exp() * b).sum(), z_j)[0].flatten()
    assert float(torch.nn.functional.cosine_similarity(given, evening, dim=0)) > 0.9999


def test_the_true_kl_shrinks_with_the_batch_and_the_anchored_one_does_not():
    sizes = (64, 256, 1024)
    given = [embeddings(5, n=n, d=512) for n in sizes]
    paper = [n * float(adversarial_invariance(*z)) for n, z in zip(sizes, given, strict=True)]
    assert max(paper) < 1.5 * min(paper)  # of the order of 1/N: not of 1, nor of 1/N^2
    anchored = [float(adversarial_invariance(*z, form="anchored")) for z in given]
    assert max(anchored) < 1.5 * min(anchored) and min(anchored) > 1e-3


def test_losses_are_finite_in_float32_for_views_that_are_all_alike_and_for_zeros():
    for z in (torch.ones(4, 3), torch.zeros(4, 3)):
        z = z.clone().requires_grad_()
        terms = [nt_xent(z, z)]
        for form in ("paper", "authors", "anchored"):
            terms += [standard_invariance(z, z, z, form=form), adversarial_invariance(z, z, z, z, z, form=form)]
        (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), z)
        assert torch.stack(terms).isfinite().all() and gradient.isfinite().all()


def test_an_unknown_form_is_refused_by_name():
    with pytest.raises(ValueError, match="'relic'"):
        standard_invariance(*embeddings(3), form="relic")


def test_the_public_functions_are_those_of_the_package():
    assert lorica.pretrain.nt_xent is nt_xent
    assert lorica.pretrain.standard_invariance is standard_invariance
    assert lorica.pretrain.adversarial_invariance is adversarial_invariance


@pytest.mark.parametrize(
    ("epoch", "strength"),
    [(1, 1.0), (50, 1.0), (51, 0.95), (100, 0.95), (101, 0.9), (950, 0.1), (951, 0.05), (1000, 0.05)],
)
def test_dynacl_follows_the_table_of_its_thousand_epochs(epoch, strength):
    found = annealed(epoch, epochs=1000, every=50)
    w = 2 / 3 * (1 - strength)
    assert found == pytest.approx(Emphasis(strength, 1 - w, 1 + w))


def test_dynacl_ends_at_the_weights_of_the_paper():
    assert annealed(1000, epochs=1000, every=50).adversarial == pytest.approx(1.6333, abs=1e-4)


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    settings = {"steps": 1000, "warmup": 10, "peak": 5.0}
    assert [learning_rate(k, **settings) for k in (1, 5, 10)] == pytest.approx([0.5, 2.5, 5.0])
    assert learning_rate(505, **settings) == pytest.approx((5.0 + 1e-6) / 2)
    assert learning_rate(1000, **settings) == pytest.approx(1e-6)
    assert learning_rate(1, steps=3, warmup=0, peak=1.0) < 1.0
    rates = [learning_rate(k, **settings) for k in range(10, 1001)]
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_the_optimiser_scales_each_parameter_by_its_norm_and_takes_the_whole_rate_from_zero():
    """LARS as in the authors' code, over two steps: eta |w| / (|g| + wd |w|), or 1 where either norm is 0."""
    from pretrain_runs import random_pictures, tiny_config, tiny_trainer

    trainer = tiny_trainer(tiny_config(weight_decay=0.01, momentum=0.5, learning_rate=2.0), random_pictures(4))
    parameters = [p for p in trainer.method.parameters() if p.requires_grad]
    assert any(float(p.detach().norm()) == 0 for p in parameters)  # biases of batch norms
    expected, momentum = [p.detach().clone() for p in parameters], [torch.zeros_like(p) for p in parameters]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for p, w, v in zip(parameters, expected, momentum, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            size, slope = w.norm(), p.grad.norm()
            ratio = 0.001 * size / (slope + 0.01 * size) if size > 0 else 1.0
            v.mul_(0.5).add_(ratio * (p.grad + 0.01 * w))
            w.sub_(2.0 * v)
        trainer.optimiser.step()
    for p, w in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-4, atol=1e-6)
