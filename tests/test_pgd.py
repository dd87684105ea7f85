"""Attacks against closed forms: on a linear model the worst picture of a threat model is known."""

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from lorica.errors import LoricaError
from lorica.robustness.pgd import crafting, cross_entropy, divergence, n_fgsm, pgd, worst_of
from lorica.robustness.threat import Threat, parse_eps

SHAPE = (3, 4, 4)
LINF, L2 = Threat(8 / 255), Threat(0.5, "l2")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, *, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand((count, *SHAPE), generator=seeded(seed))


class Linear(nn.Module):
    """Logits (0, w·x + b): class 1 where w·x + b > 0."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(SHAPE, generator=seeded(seed)))
        self.b = nn.Parameter(-self.w.detach().sum() / 2)

    def forward(self, pixels: Tensor) -> Tensor:
        score = (pixels * self.w).flatten(1).sum(1) + self.b
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Small(nn.Module):
    """Convolution, batch norm, linear: all that an attack must leave as it is."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(pixels)).relu().flatten(1))


# ----- PGD against the optimum -----------------------------------------------------------------------------------
def towards_error(model: Linear, labels: Tensor) -> Tensor:
    """The sign of w·x that raises the loss: up for label 0, down for label 1; (N, 3, 4, 4)."""
    return (1 - 2 * labels).view(-1, 1, 1, 1) * model.w.detach()


def test_pgd_reaches_the_worst_linf_picture_of_a_linear_model_also_at_the_edge_of_the_box():
    model, x, labels = Linear(), pictures(8), torch.arange(8) % 2
    worst = (x + LINF.eps * towards_error(model, labels).sign()).clamp(0, 1)
    assert ((worst == 0) | (worst == 1)).any()
    found = pgd(model, x, cross_entropy(labels), LINF, steps=5, step_size=LINF.eps / 4)
    torch.testing.assert_close(found, worst, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [None, 3])
def test_pgd_reaches_the_worst_l2_picture_of_a_linear_model_from_any_start(seed):
    model, x, labels = Linear(), pictures(8, low=0.4, high=0.6), torch.arange(8) % 2
    start = None if seed is None else L2.random(x, seeded(seed))
    found = pgd(model, x, cross_entropy(labels), L2, steps=300, step_size=0.1, start=start)
    worst = x + L2.eps * towards_error(model, labels) / model.w.detach().norm()
    assert worst.min() > 0 and worst.max() < 1  # the box does not bind
    torch.testing.assert_close(found, worst, rtol=0, atol=1e-4)


def test_one_step_of_pgd_of_full_length_from_the_picture_is_fgsm():
    model, x, labels = Linear(), pictures(4), torch.zeros(4, dtype=torch.int64)
    found = pgd(model, x, cross_entropy(labels), LINF, steps=1, step_size=LINF.eps)
    torch.testing.assert_close(found, (x + LINF.eps * model.w.detach().sign()).clamp(0, 1))


def test_an_l2_step_has_its_length_whatever_the_size_of_the_gradient():
    model, x = Linear(), pictures(4, low=0.4, high=0.6)
    for scale in (1e-4, 1e4):
        found = pgd(model, x, lambda logits, s=scale: s * logits[:, 1].sum(), L2, steps=1, step_size=0.2)
        torch.testing.assert_close(L2.distance(found, x), torch.full((4,), 0.2), rtol=1e-4, atol=0)


def test_a_picture_without_gradient_stays_where_it_is():
    x = pictures(2)
    for threat in (LINF, L2):
        found = pgd(lambda pixels: 0 * pixels.flatten(1)[:, :2], x, lambda logits: logits.sum(), threat, steps=2,
                    step_size=0.1)  # fmt: skip
        assert torch.equal(found, x)


def test_the_divergence_attack_leaves_the_picture_in_the_direction_of_its_start_as_far_as_allowed():
    model, x = Linear(), pictures(4, low=0.4, high=0.6)
    with torch.no_grad():
        loss = divergence(model(x))
    beside = x + 0.1 * LINF.eps * model.w.detach().sign()
    found = pgd(model, x, loss, LINF, steps=8, step_size=LINF.eps / 4, start=beside)
    torch.testing.assert_close(found, x + LINF.eps * model.w.detach().sign(), rtol=0, atol=1e-6)


def test_no_steps_return_the_start_and_no_caller_is_given_a_graph():
    model, x, labels = Linear(), pictures(2).requires_grad_(True), torch.zeros(2, dtype=torch.int64)
    start = LINF.random(x, seeded())
    assert torch.equal(pgd(model, x, cross_entropy(labels), LINF, steps=0, step_size=0.01, start=start), start)
    with torch.no_grad():
        found = pgd(model, x, cross_entropy(labels), LINF, steps=2, step_size=0.01)
    assert not found.requires_grad and x.grad is None and x.requires_grad


@pytest.mark.parametrize("steps", [1, 4])
def test_pgd_costs_exactly_one_forward_and_one_backward_pass_per_step(steps):
    model, x, labels, passes = Small(), pictures(3), torch.tensor([0, 1, 2]), {"forward": 0, "backward": 0}

    def count(which):
        def hook(*_):
            passes[which] += 1

        return hook

    model.register_forward_hook(count("forward"))
    model.conv.register_full_backward_hook(count("backward"))
    with crafting(model):
        pgd(model, x, cross_entropy(labels), LINF, steps=steps, step_size=0.01)
    assert passes == {"forward": steps, "backward": steps}
    with crafting(model):
        n_fgsm(model, x, cross_entropy(labels), LINF)
    assert passes == {"forward": steps + 1, "backward": steps + 1}


# ----- losses ----------------------------------------------------------------------------------------------------
def test_the_divergence_is_kl_of_natural_from_adversarial_summed_over_pictures():
    natural, adversarial = torch.randn(6, 4, generator=seeded()), torch.randn(6, 4, generator=seeded(1))
    p, q = natural.double().softmax(1), adversarial.double().softmax(1)
    naive = sum(float(p[i, k] * (p[i, k] / q[i, k]).log()) for i in range(6) for k in range(4))
    assert float(divergence(natural)(adversarial)) == pytest.approx(naive, rel=1e-5)


def test_the_natural_logits_receive_no_gradient_from_the_divergence():
    natural, adversarial = (torch.randn(2, 3, generator=seeded(i)).requires_grad_(True) for i in (0, 1))
    divergence(natural)(adversarial).backward()
    assert natural.grad is None and adversarial.grad.abs().sum() > 0


def test_cross_entropy_is_summed_so_that_a_picture_is_attacked_the_same_in_every_batch():
    model, x, labels = Small().eval(), pictures(4), torch.tensor([0, 1, 2, 3])
    whole = pgd(model, x, cross_entropy(labels), L2, steps=3, step_size=0.2)
    alone = [pgd(model, x[i : i + 1], cross_entropy(labels[i : i + 1]), L2, steps=3, step_size=0.2) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=0, atol=1e-5)
    assert float(cross_entropy(labels)(torch.zeros(4, 5))) == pytest.approx(4 * math.log(5), rel=1e-6)


# ----- what crafting leaves as it was ----------------------------------------------------------------------------
def test_crafting_leaves_modes_gradients_and_batch_statistics_as_they_were():
    model = Small().train()
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with crafting(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        pgd(model, pictures(4), cross_entropy(torch.zeros(4, dtype=torch.int64)), LINF, steps=2, step_size=0.01)
    assert model.training and model.conv.training and model.head.training and not model.norm.training
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"head.bias"}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())


def test_crafting_leaves_everything_as_it_was_after_an_exception_too():
    model = Small().train()
    model.conv.weight.requires_grad_(False)
    with pytest.raises(KeyboardInterrupt), crafting(model):
        raise KeyboardInterrupt
    assert all(module.training for module in model.modules())
    assert [n for n, parameter in model.named_parameters() if not parameter.requires_grad] == ["conv.weight"]


def test_pgd_asks_for_no_gradient_of_the_weights_even_outside_of_crafting():
    model = Small().eval()
    pgd(model, pictures(2), cross_entropy(torch.tensor([0, 1])), LINF, steps=2, step_size=0.01)
    assert all(parameter.grad is None for parameter in model.parameters())


# ----- N-FGSM ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_n_fgsm_is_noise_plus_one_step_in_the_box_and_not_projected_back(noise):
    model, x, labels = Linear(), pictures(6), torch.arange(6) % 2
    found = n_fgsm(model, x, cross_entropy(labels), LINF, generator=seeded(5), noise=noise)
    eta = noise * LINF.eps * (2 * torch.rand(x.shape, generator=seeded(5)) - 1)
    step = LINF.eps * towards_error(model, labels).sign()
    torch.testing.assert_close(found, (x + eta + step).clamp(0, 1), rtol=0, atol=1e-6)
    assert (found - x).abs().max() > 1.5 * LINF.eps
    assert not found.requires_grad


def test_n_fgsm_is_refused_for_l2():
    with pytest.raises(ValueError, match="L-inf"):
        n_fgsm(Linear(), pictures(1), cross_entropy(torch.tensor([0])), L2)


# ----- restarts --------------------------------------------------------------------------------------------------
def stepped(pixels: Tensor) -> Tensor:
    """Class 1 where the first pixel is above 1/2, with no gradient: an attack stays at its start."""
    above = (pixels[:, 0, 0, 0] > 0.5).float() + 0 * pixels.flatten(1).sum(1)
    return torch.stack([0.5 - above, above - 0.5], dim=1)


def test_of_several_restarts_each_picture_keeps_one_that_fooled_the_model_where_one_did():
    x, labels = pictures(64, low=0.49, high=0.495), torch.zeros(64, dtype=torch.int64)
    threat, options = Threat(0.02), {"steps": 1, "step_size": 0.01}
    generator = seeded(2)
    tries = [stepped(threat.random(x, generator)).argmax(1) != labels for _ in range(3)]
    somewhere = torch.stack(tries).any(0)
    assert tries[0].sum() < somewhere.sum() < 64
    worst = worst_of(stepped, x, labels, threat, restarts=3, generator=seeded(2), **options)
    assert torch.equal(stepped(worst).argmax(1) != labels, somewhere)
    first = threat.random(x, seeded(2))
    assert torch.equal(worst[~somewhere], first[~somewhere])  # a failed attack still returns an attempt
    assert torch.equal(worst[tries[0]], first[tries[0]])


def test_a_picture_that_the_model_gets_wrong_already_is_returned_untouched():
    model, x = Linear(), pictures(16)
    right = model(x).argmax(1)
    labels = torch.where(torch.arange(16) < 8, right, 1 - right)
    worst = worst_of(model, x, labels, LINF, steps=2, step_size=0.01, restarts=2, generator=seeded())
    assert torch.equal(worst[8:], x[8:])
    assert (worst[:8] != x[:8]).flatten(1).any(1).all()


def test_without_a_random_start_there_is_one_attempt_from_the_picture():
    model, x = Linear(), pictures(4)
    labels = model(x).argmax(1)
    options = {"steps": 2, "step_size": 0.01}
    once = pgd(model, x, cross_entropy(labels), LINF, **options)
    assert torch.equal(worst_of(model, x, labels, LINF, restarts=5, random_start=False, **options), once)


# ----- threat models ---------------------------------------------------------------------------------------------
THREATS = pytest.mark.parametrize("threat", [LINF, L2, Threat(3.0, "l2"), Threat(0.3)], ids=str)


@THREATS
def test_a_projected_picture_is_allowed_and_an_allowed_one_is_not_moved(threat):
    x = pictures(16)
    wild = x + torch.randn(x.shape, generator=seeded(9))
    found = threat.project(wild, x)
    assert found.min() >= 0 and found.max() <= 1
    assert (threat.distance(found, x) <= threat.eps + 1e-6).all()
    torch.testing.assert_close(threat.project(found, x), found, rtol=0, atol=1e-6)


def test_the_linf_projection_is_the_nearest_allowed_picture():
    x = pictures(8)
    wild = x + 0.1 * torch.randn(x.shape, generator=seeded(9))
    found = LINF.project(wild, x)
    for seed in range(20):
        other = LINF.random(x, seeded(seed))
        assert ((found - wild).flatten(1).norm(dim=1) <= (other - wild).flatten(1).norm(dim=1)).all()


def test_the_l2_projection_shortens_the_way_and_keeps_its_direction():
    x = pictures(8, low=0.4, high=0.6)
    way = torch.randn(x.shape, generator=seeded(9))
    unit = way / way.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(L2.project(x + way, x), x + 0.5 * unit, rtol=0, atol=1e-6)
    torch.testing.assert_close(L2.project(x + 0.25 * unit, x), x + 0.25 * unit, rtol=0, atol=1e-7)


@THREATS
def test_a_random_start_is_allowed_and_follows_its_generator(threat):
    x = pictures(64)
    start = threat.random(x, seeded(4))
    assert start.min() >= 0 and start.max() <= 1 and (threat.distance(start, x) <= threat.eps + 1e-6).all()
    assert torch.equal(start, threat.random(x, seeded(4))) and not torch.equal(start, threat.random(x, seeded(5)))


def test_a_random_linf_start_is_uniform_in_the_ball():
    x = torch.full((200, *SHAPE), 0.5)
    noise = (LINF.random(x, seeded()) - x).flatten() / LINF.eps
    assert kstest(noise.double().numpy(), "uniform", args=(-1, 2)).pvalue > 0.01


def test_a_random_l2_start_has_a_uniform_length_in_no_preferred_direction():
    x = torch.full((4000, *SHAPE), 0.5)
    noise = (L2.random(x, seeded()) - x).flatten(1)
    lengths = noise.norm(dim=1, keepdim=True)
    assert kstest((lengths / L2.eps).flatten().double().numpy(), "uniform").pvalue > 0.01
    # Coordinates of a uniform direction in d dimensions have mean 0 and variance 1/d.
    directions, d = noise / lengths, math.prod(SHAPE)
    assert (directions.mean(0).abs() < 5 / (d * 4000) ** 0.5).all()
    assert ((directions.square().mean(0) * d - 1).abs() < 5 * (2 / 4000) ** 0.5).all()


def test_distances_are_those_of_the_norm():
    x = torch.zeros(2, *SHAPE)
    moved = x.clone()
    moved[0, 0, 0, 0], moved[0, 1, 1, 1], moved[1, 2, 3, 3] = 0.3, -0.4, 0.1
    assert LINF.distance(moved, x).tolist() == pytest.approx([0.4, 0.1])
    assert L2.distance(moved, x).tolist() == pytest.approx([0.5, 0.1])


@pytest.mark.parametrize(
    ("written", "value"), [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.03", 0.03), (0.03, 0.03), (1, 1.0)]
)
def test_a_radius_is_read_as_people_write_it(written, value):
    assert parse_eps(written) == pytest.approx(value)


@pytest.mark.parametrize("written", ["eight", "8/0", "/255", "1/2/3", "", True, None])
def test_what_is_no_radius_is_refused(written):
    with pytest.raises(ValueError, match="write 8/255"):
        parse_eps(written)


def test_a_radius_in_levels_of_255_is_an_error_that_says_how_to_write_it():
    with pytest.raises(LoricaError) as caught:
        Threat(8)
    assert "[0, 1]" in caught.value.problem and "8/255" in caught.value.remedy


@pytest.mark.parametrize("eps", [8, 64, 128, 765])
def test_an_l2_radius_in_levels_of_255_is_an_error_that_names_the_unit(eps):
    with pytest.raises(LoricaError) as caught:
        Threat(eps, "l2")
    assert "[0, 1]" in caught.value.problem and f"{eps}/255" in caught.value.remedy and "0.5" in caught.value.remedy


@pytest.mark.parametrize("eps", ["0.25", "128/255", "1", "3.0", "5"])
def test_customary_l2_radii_are_taken(eps):
    assert Threat(parse_eps(eps), "l2").eps == parse_eps(eps)


@pytest.mark.parametrize("eps", [0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_radius_that_is_not_positive_and_finite_is_refused(eps, norm):
    with pytest.raises(LoricaError, match="above 0"):
        Threat(eps, norm)


def test_a_threat_model_is_written_as_in_papers():
    assert str(LINF) == "L-inf 8/255" and str(Threat(4.5 / 255)) == "L-inf 4.5/255" and str(L2) == "L2 0.5"


def test_no_restart_is_no_attack() -> None:
    with pytest.raises(ValueError, match="0 restarts"):
        worst_of(
            torch.nn.Flatten(),
            torch.rand(1, 3, 1, 1),
            torch.tensor([0]),
            Threat(0.1),
            steps=1,
            step_size=0.1,
            restarts=0,
        )


def test_half_a_fraction_is_no_radius() -> None:
    with pytest.raises(ValueError, match="8/255"):
        parse_eps("8/")
