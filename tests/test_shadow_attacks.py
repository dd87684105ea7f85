"""Attacks that compare with shadow LoRAs: LiRA, RMIA and GSA, against closed forms and naive versions."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from lorica.audit.attacks import GsaAttack, LiraAttack, RmiaAttack
from lorica.audit.attacks.base import Groups
from lorica.audit.attacks.gsa import GsaOptions
from lorica.audit.attacks.lira import LiraOptions
from lorica.audit.attacks.rmia import RmiaOptions
from lorica.audit.queries import Sitting, answer
from lorica.audit.score import MembershipScores
from lorica.diffusion import Encoded, LatentDiffusion, LoraConfig, add_lora
from lorica.errors import LoricaError

GROUPS = ("aux_members", "test_members", "aux_nonmembers", "test_nonmembers")
IN, OUT, WIDTH = 0.8, 1.0, 0.1  # losses of pictures that a model was and was not trained on, and their deviation


def gaussian_losses(count: int, shadows: int, seed: int = 0, draws: int = 2) -> Groups:
    """Groups of `count` pictures whose losses are Gaussian about a level of the picture's own plus IN or OUT."""
    rng = np.random.default_rng(seed)
    groups: Groups = {}
    for group in GROUPS:
        level = rng.normal(0, 1, count)
        inside = rng.random((count, shadows)) < 0.5
        inside[:, :2] = [True, False]
        losses = level + rng.normal(IN if group.endswith("_members") else OUT, WIDTH, count)
        among = level[:, None] + rng.normal(np.where(inside, IN, OUT), WIDTH)
        wiggle = np.linspace(-1, 1, draws)  # of the draws about their mean
        groups[group] = {
            "losses": losses[:, None] + wiggle,
            "shadow_losses": among[:, :, None] + wiggle,
            "shadow_in": inside,
        }
    return groups


def by_picture(groups: Groups, group: str, row: int) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """phi of the audited model, of the shadows with the picture and of those without."""
    features = groups[group]
    phi, among = -features["losses"][row].mean(), -features["shadow_losses"][row].mean(1)
    return phi, among[features["shadow_in"][row]], among[~features["shadow_in"][row]]


def pooled_deviations(groups: Groups, count: int) -> list[float]:
    """Of phi about its mean, among the shadows with and those without a picture."""
    squares, freedom = [0.0, 0.0], [0, 0]
    for group in ("aux_members", "aux_nonmembers"):
        for row in range(count):
            for kind, values in enumerate(by_picture(groups, group, row)[1:]):
                squares[kind] += sum((value - values.mean()) ** 2 for value in values)
                freedom[kind] += len(values) - 1
    return [np.sqrt(squares[kind] / freedom[kind]) for kind in (0, 1)]


# --- LiRA


@pytest.mark.parametrize("form", ["online", "offline"])
@pytest.mark.parametrize("shadows", [6, 60])  # deviations pooled, and of the picture's own
def test_lira_is_the_ratio_of_two_gaussian_likelihoods(form: str, shadows: int) -> None:
    groups = gaussian_losses(10, shadows)
    scores = LiraAttack(LiraOptions(form=form)).score(groups, 0)  # type: ignore[arg-type]
    pooled = pooled_deviations(groups, 10)
    for group in GROUPS:
        for row in range(10):
            phi, inside, outside = by_picture(groups, group, row)
            s_in, s_out = (
                np.std(values, ddof=1) if len(values) >= 16 else pooled[kind]
                for kind, values in enumerate((inside, outside))
            )
            expected = (phi - outside.mean()) / s_out
            if form == "online":
                expected = np.log(norm(inside.mean(), s_in).pdf(phi) / norm(outside.mean(), s_out).pdf(phi))
            assert scores[group][row] == pytest.approx(expected, rel=1e-9)


def test_lira_with_many_shadows_reaches_the_optimum_for_gaussian_losses() -> None:
    """log-ratio = ((loss - OUT)^2 - (loss - IN)^2) / 2 s^2, whose AUC is Phi(d / sqrt 2) with d = (OUT - IN) / s."""
    groups = gaussian_losses(400, 400, draws=1)
    scores = LiraAttack().score(groups, 0)
    found = MembershipScores(scores["test_members"], scores["test_nonmembers"])
    low, high = found.interval("auc")
    assert low <= norm.cdf((OUT - IN) / WIDTH / 2**0.5) <= high
    losses = -np.r_[groups["test_members"]["losses"], groups["test_nonmembers"]["losses"]][:, 0]
    assert MembershipScores(losses[:400], losses[400:]).auc < 0.65  # the levels of the pictures hide it
    single = by_picture(groups, "test_members", 0)
    level = -np.r_[single[1] + IN, single[2] + OUT].mean()
    loss = -single[0] - level
    ideal = ((loss - OUT) ** 2 - (loss - IN) ** 2) / 2 / WIDTH**2
    assert scores["test_members"][0] == pytest.approx(ideal, abs=0.6)


@pytest.mark.parametrize("form", ["online", "offline"])
def test_a_picture_without_shadows_of_one_kind_gets_their_mean_by_the_usual_distance(form: str) -> None:
    groups = gaussian_losses(30, 10)
    attack = LiraAttack(LiraOptions(form=form))  # type: ignore[arg-type]
    whole = attack.score(groups, 0)
    features = groups["test_members"]
    features["shadow_in"][0], features["shadow_in"][1] = True, False
    scores = attack.score(groups, 0)
    np.testing.assert_array_equal(scores["test_members"][2:], whole["test_members"][2:])
    gap = np.mean(
        [
            inside.mean() - outside.mean()
            for group in ("aux_members", "aux_nonmembers")
            for _, inside, outside in (by_picture(groups, group, row) for row in range(30))
        ]
    )
    assert gap == pytest.approx(OUT - IN, abs=0.05)
    s_in, s_out = pooled_deviations(groups, 30)
    for row in (0, 1):
        phi, inside, outside = by_picture(groups, "test_members", row)
        mu_in, mu_out = (inside.mean(), inside.mean() - gap) if row == 0 else (outside.mean() + gap, outside.mean())
        expected = (phi - mu_out) / s_out
        if form == "online":
            expected = norm(mu_in, s_in).logpdf(phi) - norm(mu_out, s_out).logpdf(phi)
        assert scores["test_members"][row] == pytest.approx(expected, rel=1e-9)


def test_lira_on_shadows_that_all_had_the_same_members_says_that_they_are_too_few() -> None:
    groups = gaussian_losses(4, 3)
    for features in groups.values():
        features["shadow_in"][:] = False
    with pytest.raises(LoricaError, match="too few shadows"):
        LiraAttack().score(groups, 0)
    assert np.isfinite(LiraAttack(LiraOptions(form="offline")).score(groups, 0)["test_members"]).all()


def test_lira_works_with_a_single_pair_and_with_shadows_that_learned_nothing() -> None:
    groups = gaussian_losses(200, 2)
    scores = LiraAttack().score(groups, 0)
    assert MembershipScores(scores["test_members"], scores["test_nonmembers"]).auc > 0.75
    for features in groups.values():
        features["shadow_losses"][:] = features["losses"][:, None]
    assert all((values == 0).all() for values in LiraAttack().score(groups, 0).values())


# --- RMIA


@pytest.mark.parametrize("gamma", [1.0, 1.7])
def test_rmia_counts_the_population_pictures_that_a_picture_beats(gamma: float) -> None:
    groups, scale = gaussian_losses(12, 6), 3.0
    scores = RmiaAttack(RmiaOptions(gamma=gamma, scale=scale)).score(groups, 0)

    def ratio(group: str, row: int) -> float:
        features = groups[group]
        return float(
            np.exp(-scale * features["losses"][row].mean())
            / np.mean([np.exp(-scale * shadow.mean()) for shadow in features["shadow_losses"][row]])
        )

    for group in GROUPS:
        for row in range(12):
            population = [z for z in range(12) if (group, row) != ("aux_nonmembers", z)]
            wins = [ratio(group, row) / ratio("aux_nonmembers", z) >= gamma for z in population]
            assert scores[group][row] == pytest.approx(np.mean(wins), abs=1e-12)


def test_rmia_measures_losses_in_deviations_between_shadows_and_survives_any_size() -> None:
    groups = gaussian_losses(100, 8)
    scores = RmiaAttack().score(groups, 0)
    assert MembershipScores(scores["test_members"], scores["test_nonmembers"]).auc > 0.85
    for features in groups.values():
        for name in ("losses", "shadow_losses"):
            features[name] = features[name] * 1e4
    for group, values in RmiaAttack().score(groups, 0).items():
        np.testing.assert_allclose(values, scores[group])
    for features in groups.values():
        features["shadow_losses"][:] = 1.0
    assert all(np.isfinite(values).all() for values in RmiaAttack().score(groups, 0).values())


# --- GSA


@pytest.mark.parametrize("form", ["gsa1", "gsa2"])
def test_gsa_takes_the_gradient_of_each_picture_alone(form: str, tiny_model: LatentDiffusion) -> None:
    """Against one backward pass after another over every picture, from the noisy latent on."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        weights = add_lora(tiny_model.pipeline, LoraConfig(rank=2))
        for weight in weights:
            weight.add_(0.1 * torch.randn_like(weight))
        latents, contexts = torch.randn(3, 4, 8, 8), tiny_model.encode_captions(["a", "b", "c"])
    tiny_model.unet.requires_grad_(False)
    sitting = Sitting(tiny_model, Encoded(latents, contexts, ("one", "two", "three")), seed=3)
    attack = GsaAttack(GsaOptions(draws=4, form=form))  # type: ignore[arg-type]
    norms = answer(sitting, {"it": attack.ask(sitting)})["it"]["norms"]
    assert norms.shape == (3, len(weights))
    assert not any(weight.requires_grad for weight in tiny_model.unet.parameters())
    assert all(weight.grad is None for weight in weights)
    queries = [sitting.draw(k) for k in range(4)]
    for weight in weights:
        weight.requires_grad_(True)
    for row in range(3):
        gradients: list[list[torch.Tensor]] = []
        for query in queries:
            tiny_model.unet.zero_grad()
            here = slice(row, row + 1)
            predicted = tiny_model.predict(query.noisy[here], query.t[here], contexts[here])
            (predicted - query.noise[here]).square().mean().backward()  # type: ignore[index]
            gradients.append([weight.grad.clone() for weight in weights])  # type: ignore[union-attr]
        by_tensor = [torch.stack(each) for each in zip(*gradients, strict=True)]
        if form == "gsa1":
            expected = [each.mean(0).norm().item() for each in by_tensor]
        else:
            expected = [each.flatten(1).norm(dim=1).mean().item() for each in by_tensor]
        np.testing.assert_allclose(norms[row], expected, rtol=1e-4)


def norms(count: int, shadows: int, shift: float) -> Groups:
    """Gradient norms of three tensors, of which members have smaller ones in the second."""
    rng = np.random.default_rng(0)

    def drawn(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.exp(rng.normal(0, 1, (*inside.shape, 3)) - shift * inside[..., None] * [0, 1, 0])

    groups: Groups = {}
    for group in GROUPS:
        inside = rng.random((count, shadows)) < 0.5
        target = drawn(np.full(count, group.endswith("_members")))
        groups[group] = {"norms": target, "shadow_norms": drawn(inside), "shadow_in": inside}
    return groups


def test_gsa_learns_from_shadows_alone_and_reaches_the_optimum() -> None:
    groups = norms(100, 16, shift=2.0)
    scores = GsaAttack().score(groups, 0)
    found = MembershipScores(scores["test_members"], scores["test_nonmembers"])
    assert found.auc == pytest.approx(norm.cdf(2 / 2**0.5), abs=0.06)
    auxiliary = MembershipScores(scores["aux_members"], scores["aux_nonmembers"])
    assert auxiliary.auc == pytest.approx(found.auc, abs=0.1)  # not better for having been in the training rows
    groups["aux_members"]["norms"], groups["aux_nonmembers"]["norms"] = (
        groups["aux_nonmembers"]["norms"],
        1 / (groups["aux_members"]["norms"]),
    )
    np.testing.assert_array_equal(GsaAttack().score(groups, 0)["test_members"], scores["test_members"])


def test_gsa_finds_nothing_where_shadows_show_nothing() -> None:
    scores = GsaAttack().score(norms(100, 8, shift=0.0), 0)
    for half in ("aux", "test"):
        low, high = MembershipScores(scores[f"{half}_members"], scores[f"{half}_nonmembers"]).interval("auc")
        assert low <= 0.5 <= high


def test_gsa_refuses_shadows_that_never_differ_in_their_members() -> None:
    groups = norms(4, 2, shift=0.0)
    for features in groups.values():
        features["shadow_in"][:] = True
    with pytest.raises(LoricaError, match="too few shadows"):
        GsaAttack().score(groups, 0)
