"""Membership attacks on classifiers: formulas against naive versions, and controls on models whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from lorica.audit.score import MembershipScores
from lorica.data.labelled import LabelledSet
from lorica.data.subsets import matched
from lorica.evaluate import EvaluateConfig
from lorica.evaluate.membership import lira, membership, rmia, scaled_confidence
from lorica.evaluate.shadow_classifiers import Shadows
from lorica.evaluate.subject import Subject
from lorica.robustness.attacked import Counted

RNG = np.random.default_rng(0)
N, S = 40, 12


def halves(shadows: int = S, count: int = N) -> np.ndarray:
    """(S, N) bool: every picture in exactly half of the shadows."""
    return np.argsort(RNG.random((shadows, count)), axis=0) < shadows // 2


# On arrays


def test_the_scaled_confidence_is_the_logit_of_the_right_classs_probability():
    logits, labels = RNG.normal(size=(N, 5)), RNG.integers(0, 5, N)
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[np.arange(N), labels]
    assert np.allclose(scaled_confidence(logits, labels), np.log(p) - np.log(1 - p))
    assert scaled_confidence(np.stack([logits, 2 * logits]), labels).shape == (2, N)
    assert scaled_confidence([[800.0, -800.0], [-800.0, 800.0]], [0, 0]).tolist() == [1600.0, -1600.0]


@pytest.mark.parametrize("form", ["online", "offline"])
@pytest.mark.parametrize("own_deviation", [2, 99])
def test_lira_is_the_gaussian_likelihood_ratio(form, own_deviation):
    phi, shadows, inside = RNG.normal(size=N), RNG.normal(size=(S, N)), halves()
    rows = {kind: [shadows[inside[:, i] == kind, i] for i in range(N)] for kind in (True, False)}
    expected = np.empty(N)
    for i in range(N):
        found = {}
        for kind in (True, False):
            pooled = np.sqrt(np.mean([np.var(row, ddof=1) for row in rows[kind]]))
            found[kind] = rows[kind][i].mean(), np.std(rows[kind][i], ddof=1) if own_deviation == 2 else pooled
        outside = norm.logpdf(phi[i], *found[False])
        expected[i] = (
            norm.logpdf(phi[i], *found[True]) - outside
            if form == "online"
            else (phi[i] - found[False][0]) / found[False][1]
        )
    assert np.allclose(lira(phi, shadows, inside, form=form, own_deviation=own_deviation), expected)


def test_lira_reaches_the_best_possible_auc_where_the_gaussians_are_known():
    gap, count = 1.5, 4000
    difficulty = RNG.normal(0, 5, count)  # without shadows, it would drown the gap
    inside, member = halves(64, count), np.arange(count) < count // 2
    shadows = difficulty + gap * inside + RNG.normal(size=(64, count))
    phi = difficulty + gap * member + RNG.normal(size=count)
    best = norm.cdf(gap / np.sqrt(2))
    for form in ("online", "offline"):
        scores = lira(phi, shadows, inside, form=form)
        assert MembershipScores(scores[member], scores[~member]).auc == pytest.approx(best, abs=0.03)
    assert MembershipScores(phi[member], phi[~member]).auc < best - 0.15


@pytest.mark.parametrize("offline", [None, 0.3])
@pytest.mark.parametrize("gamma", [1.0, 1.4])
def test_rmia_is_the_share_of_population_pictures_that_are_beaten(offline, gamma):
    confidence, shadows, inside = RNG.uniform(0.1, 1, N), RNG.uniform(0.1, 1, (S, N)), halves()
    population = np.arange(N - 15, N)
    expected = np.empty(N)
    prior = np.empty(N)
    for i in range(N):
        without, having = shadows[~inside[:, i], i].mean(), shadows[inside[:, i], i].mean()
        prior[i] = (without + having) / 2 if offline is None else ((1 + offline) * without + 1 - offline) / 2
    for i in range(N):
        others = [z for z in population if z != i]
        wins = [confidence[i] / prior[i] >= gamma * confidence[z] / prior[z] for z in others]
        expected[i] = sum(wins) / len(others)
    found = rmia(confidence, shadows, inside, population, gamma=gamma, offline=offline)
    assert np.allclose(found, expected) and 0 < found.mean() < 1


def test_offline_forms_need_no_shadow_that_saw_a_picture():
    phi, shadows, nobody = RNG.normal(size=N), RNG.normal(size=(S, N)), np.zeros((S, N), dtype=bool)
    assert np.isfinite(lira(phi, shadows, nobody, form="offline")).all()
    assert np.isfinite(rmia(np.exp(-abs(phi)), np.exp(-abs(shadows)), nobody, [0, 1], offline=0.3)).all()
    for attack in (lira, lambda *arrays: rmia(*arrays, [0, 1])):
        with pytest.raises(ValueError, match="no shadow with it"):
            attack(np.exp(-abs(phi)), np.exp(-abs(shadows)), nobody)


@pytest.mark.parametrize(
    ("phi", "shadows", "inside"),
    [
        (np.zeros((2, N)), np.zeros((S, N)), halves()),
        (np.zeros(N), np.zeros((S, N)).T, halves()),
        (np.zeros(N), np.zeros((S, N)), halves().astype(int)),
    ],
)
def test_arrays_that_do_not_match_are_refused(phi, shadows, inside):
    with pytest.raises(ValueError, match="are wanted"):
        lira(phi, shadows, inside)


# On a model


def labelled(pixels: torch.Tensor, labels: torch.Tensor, classes: int) -> LabelledSet:
    names = tuple(f"{i}.png" for i in range(len(labels)))
    return LabelledSet(pixels, labels, tuple(map(str, range(classes))), names, names)


def subject(model: nn.Module, classes: int, count: int = 150) -> Subject:
    """Members and others of one kind: noise away from black and white, with labels by chance."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(60, 190, (2 * count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classes, (2 * count,), generator=generator)
    members, others = (labelled(pixels[half], labels[half], classes) for half in (slice(count), slice(count, None)))
    return Subject(model, others, others.labels, members, others.classes, torch.arange(classes), {}, {}, [])


def audited(model: nn.Module, about: Subject, shadows: Shadows | None = None, **options) -> dict:
    config = EvaluateConfig(**({"data": "x", "members": "train", "batch_size": 64, "pgd_steps": 4} | options))
    counted = Counted(model)
    with counted.attacked():
        return membership(counted, counted, about, config, shadows)


class Memory(nn.Module):
    """Sure of what it has stored, the more so the nearer a picture is to it."""

    def forward(self, x):
        distances = torch.cdist(x.flatten(1), self.stored)
        nearest = distances.min(dim=1)
        return 3 * torch.exp(-nearest.values)[:, None] * nn.functional.one_hot(self.labels[nearest.indices], 3)


def test_a_model_that_memorised_its_pictures_is_caught_by_every_attack():
    model = Memory()
    about = subject(model, 3)
    model.stored, model.labels = about.members.pixels.flatten(1) / 255, about.members.labels
    found = audited(model, about)
    assert found["leaks"] and all(entry["leaks"] for entry in found["attacks"].values())
    loss = found["attacks"]["loss"]
    assert loss["auc"]["value"] > 0.95 and loss["asr"]["value"] > 0.9
    assert loss["tpr"]["0.05"]["value"] > 0.7


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 2)

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_a_model_that_never_saw_the_members_is_not_accused():
    torch.manual_seed(0)
    model = Linear()
    found = audited(model, subject(model, 2))
    assert not found["leaks"] and 120 < found["members"] == found["nonmembers"] <= 150
    assert all(entry["auc"]["low"] < 0.5 < entry["auc"]["high"] for entry in found["attacks"].values())


def test_the_adversarial_loss_is_that_of_the_worst_picture_in_the_ball(monkeypatch):
    from lorica.evaluate import membership as module

    torch.manual_seed(0)
    model = Linear()
    about = subject(model, 2, count=20)
    seen = {}

    def measured(scores, level):
        seen[len(seen)] = scores
        return {"auc": {"value": 0.5}}

    monkeypatch.setattr(module, "_measured", measured)
    audited(model, about, eps="2/255,4/255", pgd_steps=12)
    with torch.no_grad():
        weight = model.layer.weight[1] - model.layer.weight[0]
    # Of two linear logits the worst picture in the larger ball lies in a corner: phi falls by eps |w|_1.
    fall = float(weight.abs().sum()) * 4 / 255
    assert np.allclose(seen[1].members, seen[0].members - fall, atol=1e-5)
    assert np.allclose(seen[1].nonmembers, seen[0].nonmembers - fall, atol=1e-5)


def test_no_more_pictures_are_asked_than_wanted():
    torch.manual_seed(0)
    model = Linear()
    found = audited(model, subject(model, 2), membership_pictures=30)
    assert (found["members"], found["nonmembers"]) == (30, 30)


class EasyClass(nn.Module):
    """Right and sure about class 0, at a loss about class 1; it has learned no picture."""

    def forward(self, x):
        noise = x.flatten(1)[:, 0] / 10
        return torch.stack([3 + noise, noise * 0], dim=1)


def test_a_model_that_finds_one_class_easy_is_not_accused_where_members_have_another_mix_of_classes():
    model = EasyClass()
    about = subject(model, 2, count=200)
    members, others = (torch.zeros(200, dtype=torch.long) for _ in range(2))
    members[:100], others[:20] = 1, 1
    mixed = replace(
        about, members=replace(about.members, labels=members), pictures=replace(about.pictures, labels=others),
        labels=others,
    )  # fmt: skip
    found = audited(model, mixed)
    assert not found["leaks"]
    assert found["members"] == found["nonmembers"] == 120


@pytest.mark.parametrize("form", ["online", "offline"])
def test_the_result_says_in_which_form_shadows_were_used(form):
    torch.manual_seed(0)
    model = Linear()
    about = subject(model, 2)
    unseen = tuple(f"other {value}" for value in about.pictures.sha256)
    about = replace(about, pictures=replace(about.pictures, sha256=unseen))
    asked = audited(model, about)
    count = asked["members"] + asked["nonmembers"]
    inside = halves(4, count)
    inside[:, 7] &= form == "online"  # one picture without a shadow that was trained on it
    found = audited(model, about, Shadows(RNG.normal(size=(4, count, 2)), inside))
    assert {name: entry.get("form") for name, entry in found["attacks"].items()} == {
        "loss": None, "adversarial-loss": None, "lira": form, "rmia": form,
    }  # fmt: skip


@pytest.mark.parametrize("count", [1, 7, 60, 1000])
def test_matched_rows_have_as_many_of_each_class_on_both_sides(count):
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 4, (80,), generator=generator)
    second = torch.randint(0, 3, (50,), generator=generator)
    a, b = matched(first, second, count, 3)
    assert len(a) == len(b) <= count and a == sorted(set(a)) and b == sorted(set(b))
    assert torch.equal(first[a].bincount(minlength=4), second[b].bincount(minlength=4))
    possible = torch.minimum(first.bincount(minlength=4), second.bincount(minlength=4))
    assert len(a) == min(count, int(possible.sum()))
    assert (a, b) == matched(first, second, count, 3)
