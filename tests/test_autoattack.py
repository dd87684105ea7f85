"""AutoAttack's adapter against the original package, and what surrounds it: resuming, counting, checking, flags."""

import logging
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lorica.errors import LoricaError
from lorica.robustness.accuracy import confused, confusion, per_class, rate
from lorica.robustness.attacked import AttackedBatch, Counted, Kept
from lorica.robustness.autoattack import TIERS, AutoAttackSettings, autoattack, fitted, tiles_fit
from lorica.robustness.flags import probe
from lorica.robustness.recheck import recheck
from lorica.robustness.threat import Threat

pyautoattack = pytest.importorskip("pyautoattack")

SEED, BATCH = 3, 10
SMALL = AutoAttackSettings(iterations=6, targets=4, queries=120)
THREATS = [Threat(0.01, "linf"), Threat(0.1, "l2")]


def net(classes: int = 6) -> nn.Module:
    """Differentiable in all its pixels, and neither robust nor helpless at the radii above."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.Softplus(4),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(72, classes),
        ]
        made = nn.Sequential(*layers)
        with torch.no_grad():
            made[-1].weight *= 6
            made[-1].bias -= made(torch.rand(200, 3, 10, 10)).mean(dim=0)  # so that it takes nothing for one class
    return made.eval()


def pictures(
    count: int = 37, height: int = 10, width: int = 10, classes: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uint8 pictures that `net` is right about, but for every seventh."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        labels = net(classes)(pixels / 255).argmax(dim=1)
    return pixels, torch.where(torch.arange(count) % 7 == 3, (labels + 1) % classes, labels)


def theirs(model: nn.Module, threat: Threat, settings: AutoAttackSettings) -> "pyautoattack.AutoAttack":
    """The package's own evaluation, with attacks made smaller but otherwise as its version "standard" has them."""
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    whole = pyautoattack.AutoAttack(model, eps=threat.eps, norm=norm, seed=SEED, version="standard")
    for attack in (whole.apgd, whole.apgd_targeted):
        attack.n_iter, attack.n_iter_orig = settings.iterations, settings.iterations
        attack.n_iter_2 = max(int(0.22 * settings.iterations), 1)
        attack.n_iter_min = max(int(0.06 * settings.iterations), 1)
        attack.size_decr = max(int(0.03 * settings.iterations), 1)
    whole.apgd_targeted.n_target_classes = whole.fab.n_target_classes = settings.targets
    whole.fab.n_iter, whole.square.n_queries = settings.iterations, settings.queries
    return whole


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("order", [TIERS["standard"], TIERS["standard"][::-1]], ids=["standard", "reversed"])
def test_the_same_pictures_are_broken_as_by_the_original_package(threat, order):
    model, (pixels, labels) = net(), pictures()
    whole = theirs(model, threat, SMALL)
    whole.attacks_to_run = list(order)
    adversarial, _ = whole.run_standard_evaluation(pixels / 255, labels, batch_size=BATCH)
    with torch.no_grad():
        robust = model(adversarial).argmax(dim=1) == labels

    settings = replace(SMALL, attacks=order)
    ours = autoattack(model, pixels, labels, threat, settings=settings, seed=SEED, batch_size=BATCH)
    assert torch.equal(ours.robust, robust) and robust.any()
    found = pixels / 255
    for batch in ours.batches():
        found[batch.rows[batch.broken]] = batch.adversarial
    assert torch.equal(found, adversarial)
    assert ours.outcomes[order[0]].broken.any() and ours.outcomes[order[1]].broken.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_default_settings_are_those_of_the_version_standard(norm):
    from lorica.robustness._original import attackers

    model, threat = Counted(net(10)), Threat(0.1, norm)
    whole = pyautoattack.AutoAttack(
        model, eps=0.1, norm={"linf": "Linf", "l2": "L2"}[norm], seed=SEED, version="standard"
    )
    assert TIERS["standard"] == tuple(whole.attacks_to_run)
    whole.apgd.loss, whole.fab.targeted = "ce", True  # as run_standard_evaluation sets them before each batch
    made = attackers(model, threat, AutoAttackSettings(), padded=False, seed=SEED)
    original = {"apgd-ce": whole.apgd, "apgd-t": whole.apgd_targeted, "fab-t": whole.fab, "square": whole.square}
    for name, attack in original.items():
        settings = {key: value for key, value in vars(attack).items() if not isinstance(value, logging.Logger)}
        assert type(made[name]) is type(attack)
        assert settings | {"device": "cpu"} == {
            key: value for key, value in vars(made[name]).items() if not isinstance(value, logging.Logger)
        } | {"device": "cpu"}


def test_a_run_that_dies_in_any_batch_goes_on_to_the_same_result(tmp_path):
    model, (pixels, labels) = net(), pictures()
    run = {"settings": SMALL, "seed": SEED, "batch_size": BATCH}
    whole = autoattack(model, pixels, labels, THREATS[0], **run, kept=Kept(tmp_path / "whole"))
    files = sorted(file.name for file in (tmp_path / "whole").iterdir())
    for deaths in range(1, len(files)):
        kept, alive = Kept(tmp_path / str(deaths)), iter(range(deaths))

        def die(attack: str, done: int, total: int, alive=alive) -> None:
            if done and next(alive, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            autoattack(model, pixels, labels, THREATS[0], **run, kept=kept, advance=die)
        before = {file.name: file.stat().st_mtime_ns for file in kept.folder.iterdir()}
        resumed = autoattack(model, pixels, labels, THREATS[0], **run, kept=kept)
        assert len(before) == deaths + 1
        assert all((kept.folder / name).stat().st_mtime_ns == time for name, time in before.items())
        assert torch.equal(resumed.robust, whole.robust)
        for ours, other in zip(resumed.batches(), whole.batches(), strict=True):
            assert torch.equal(ours.adversarial, other.adversarial) and torch.equal(ours.rows, other.rows)
            assert (ours.forwards, ours.backwards) == (other.forwards, other.backwards)


def test_a_damaged_file_is_attacked_again(tmp_path):
    model, (pixels, labels) = net(), pictures()
    kept = Kept(tmp_path)
    settings = AutoAttackSettings(attacks=TIERS["quick"], iterations=3)
    first = autoattack(model, pixels, labels, THREATS[0], settings=settings, kept=kept, batch_size=BATCH)
    file = tmp_path / "apgd-ce-00001.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    again = autoattack(model, pixels, labels, THREATS[0], settings=settings, kept=kept, batch_size=BATCH)
    assert torch.equal(again.robust, first.robust) and len(file.read_bytes()) == len(content)


def test_passes_are_counted_as_the_attacks_settings_say():
    model = Counted(net())
    pixels, labels = pictures(9)
    result = autoattack(model, pixels, labels, Threat(1e-4), settings=SMALL, batch_size=4)
    right, n = int(result.robust.sum()), SMALL.iterations
    assert 0 < right == int(result.after["apgd-ce"].sum())  # so small a radius breaks nothing: nobody drops out
    spent = {name: (outcome.forwards, outcome.backwards) for name, outcome in result.outcomes.items()}
    asked = 2  # once by the attack before it begins, once by us when it is done
    assert spent["apgd-ce"] == ((n + 1 + asked) * right, (n + 1) * right)
    # per target: the sorted logits, then the attack
    assert spent["apgd-t"] == ((SMALL.targets * (n + 2) + asked) * right, SMALL.targets * (n + 1) * right)
    assert spent["fab-t"][1] == SMALL.targets * n * right
    # the start, the queries, and a last look
    assert spent["square"] == ((1 + SMALL.queries + 1 + asked) * right, 0)
    assert model.forwards == sum(forwards for forwards, _ in spent.values()) + len(labels)


def test_the_model_and_the_callers_random_state_are_left_as_they_were():
    model, (pixels, labels) = net().train(), pictures(8)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    autoattack(model, pixels, labels, THREATS[0], settings=SMALL)
    assert torch.equal(torch.rand(3), expected)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_memory_layout_changes_nothing(threat):
    pixels, labels = pictures(12)
    expected = autoattack(net(), pixels, labels, threat, settings=SMALL)
    layout = {"memory_format": torch.channels_last}
    found = autoattack(net().to(**layout), pixels.contiguous(**layout), labels, threat, settings=SMALL)
    assert torch.equal(found.robust, expected.robust)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (2, ("apgd-ce", "fab-t", "square")),
        (3, ("apgd-ce", "apgd-dlr", "fab-t", "square")),
        (4, TIERS["standard"]),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_few_classes_get_the_attacks_that_exist_for_them(classes, expected, norm):
    model, (pixels, labels) = net(classes), pictures(12, classes=classes)
    result = autoattack(model, pixels, labels, Threat(0.1 if norm == "linf" else 2, norm), settings=SMALL)
    assert tuple(result.outcomes) == expected
    assert [flag.name for flag in result.flags if flag.raised] == (["few_classes"] if classes < 4 else [])
    assert result.settings.restarts == (5 if classes < 4 else 1) and result.settings.targets == classes - 1
    assert result.robust.float().mean() < 0.5


def test_a_model_that_is_never_right_has_nothing_to_lose():
    pixels, _ = pictures(6)
    with torch.no_grad():
        wrong = (net()(pixels / 255).argmax(dim=1) + 1) % 6
    result = autoattack(net(), pixels, wrong, THREATS[0], settings=SMALL)
    assert not result.robust.any() and all(outcome.forwards == 0 for outcome in result.outcomes.values())


def test_a_single_class_is_refused():
    with pytest.raises(LoricaError, match="single class"):
        fitted(AutoAttackSettings(), 1, (8, 8), THREATS[0])


@pytest.mark.parametrize("size", [(12, 8), (8, 12), (40, 7), (7, 40), (12, 12), (4, 4), (3, 9)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pictures_of_any_shape_are_attacked_within_the_ball(size, norm):
    model, (pixels, labels) = net(), pictures(8, *size)
    threat = Threat(0.05 if norm == "linf" else 0.05 * (3 * size[0] * size[1]) ** 0.5, norm)
    settings = AutoAttackSettings(attacks=("square",), queries=300)
    result = autoattack(model, pixels, labels, threat, settings=settings)
    counted = Counted(model)
    with counted.attacked():
        checked = recheck(counted, pixels, labels, threat, result.batches())
    assert checked.checked == result.outcomes["square"].broken.sum() > 0
    assert checked.refused == checked.unconfirmed == 0
    padded = norm == "l2" and not tiles_fit(*size)
    assert [flag.name for flag in result.flags if not flag.doubt] == (["square_padded"] if padded else [])


def test_where_the_grid_of_tiles_fits_is_where_the_original_square_starts():
    from pyautoattack.square import SquareAttack

    def starts(height: int, width: int) -> bool:
        attack = SquareAttack(lambda x: x.flatten(1)[:, :2], norm="L2", n_queries=0, eps=0.01, device="cpu")
        try:
            attack.perturb(torch.full((1, 1, height, width), 0.5), torch.tensor([0]))
        except (RuntimeError, ZeroDivisionError):
            return False
        return True

    sizes = [(height, width) for height in range(2, 27) for width in (5, 12, 17, height)]
    assert {size for size in sizes if tiles_fit(*size)} == {size for size in sizes if starts(*size)}


def test_on_a_canvas_the_whole_length_of_an_l2_perturbation_is_spent_inside_the_picture():
    from lorica.robustness._original import PaddedSquare

    pixels = torch.full((2, 3, 12, 8), 0.5)
    seen = []

    def judge(x):
        seen.append(x)
        return torch.stack([torch.ones(len(x)), torch.zeros(len(x))], dim=1)

    PaddedSquare(judge, norm="L2", n_queries=30, eps=0.5, device="cpu", resc_schedule=False).perturb(
        pixels, torch.zeros(2, dtype=torch.long)
    )
    lengths = torch.stack([(x - pixels).flatten(1).norm(dim=1) for x in seen[1:-1]])
    assert all(x.shape == pixels.shape for x in seen)
    assert torch.allclose(lengths, torch.full_like(lengths, 0.5), atol=1e-5)


def test_pictures_that_an_attacker_may_not_show_do_not_count():
    threat = Threat(0.1)
    original = torch.full((6, 3, 2, 2), 0.95)
    found = original - 0.1
    found[1] = original[1] - 0.11  # too far
    found[2] = original[2] + 0.06  # brighter than white
    found[3, 0, 0, 0] = float("nan")
    found[4] = original[4]  # allowed, and the model is right about it

    class Bright(nn.Module):
        def forward(self, x):
            return F.one_hot((x.flatten(1).mean(dim=1) < 0.9).long(), 2)

    counted = Counted(Bright())
    rows = torch.tensor([5, 0, 1, 2, 3])
    batch = AttackedBatch(rows, torch.ones(5, dtype=torch.bool), found[:5])
    checked = recheck(counted, original, torch.zeros(6, dtype=torch.long), threat, [batch])
    assert (checked.checked, checked.too_far, checked.outside, checked.not_finite, checked.refused) == (5, 1, 1, 1, 3)
    assert checked.unconfirmed == 1
    assert checked.broken.tolist() == [False, False, False, True, False, True]
    assert checked.predictions.tolist() == [-1, -1, -1, 0, -1, 1]


def test_without_the_original_package_the_remedy_is_named(monkeypatch):
    import lorica.robustness

    monkeypatch.setitem(sys.modules, "pyautoattack.autopgd_base", None)
    monkeypatch.delitem(sys.modules, "lorica.robustness._original", raising=False)
    monkeypatch.delattr(lorica.robustness, "_original", raising=False)
    with pytest.raises(LoricaError, match="pyautoattack") as caught:
        autoattack(net(), *pictures(4), THREATS[0], settings=SMALL)
    assert "lorica[vision]" in caught.value.remedy


# Flags


def raised(model: nn.Module) -> dict[str, bool]:
    pixels, labels = pictures(12)
    counted = Counted(model)
    with counted.attacked():
        return {flag.name: flag.raised for flag in probe(counted, pixels, labels, batch_size=5)}


class Wrapped(nn.Module):
    """The tiny net with something done to its input or output."""

    def __init__(self, change) -> None:
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, x):
        return self.change(self.net, x)


def purified(model, x):
    """Takes a gradient step before it answers."""
    with torch.enable_grad():
        moved = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(moved).sum(), moved)
    return model(x + 0.01 * gradient.sign())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("randomised", lambda model, x: model(x + 0.05 * torch.rand_like(x))),
        ("probabilities", lambda model, x: model(x).softmax(dim=1)),
        ("zero_gradient", lambda model, x: model((x * 8).round() / 8)),
        ("gradients_at_test_time", purified),
    ],
)
def test_a_defence_that_misleads_attacks_raises_its_flag_and_no_other(name, change):
    assert [key for key, value in raised(Wrapped(change)).items() if value] == [name]


def test_an_ordinary_network_raises_no_flag():
    assert raised(net()) == dict.fromkeys(
        ("randomised", "probabilities", "gradients_at_test_time", "zero_gradient"), False
    )


def test_square_beating_the_attacks_by_gradient_is_suspicious():
    pixels, labels = pictures(30)
    threat = Threat(0.08)
    blind = Wrapped(lambda model, x: model((x * 64).round() / 64))
    with torch.no_grad():
        labels = blind(pixels / 255).argmax(dim=1)
    settings = AutoAttackSettings(attacks=("apgd-ce", "square"), iterations=2, queries=200)
    for model, suspicious in ((blind, True), (net(), False)):
        result = autoattack(model, pixels, labels, threat, settings=settings)
        (flag,) = result.flags
        assert flag.name == "square_beats_white_box" and flag.raised is suspicious
        lost = int(result.after["apgd-ce"].sum()) - int(result.robust.sum())
        assert flag.value == pytest.approx(lost / len(labels)) and ("Square" in flag.problem)


# Accuracies


def test_a_rate_has_counts_and_the_exact_interval():
    found = rate(torch.tensor([True] * 5 + [False] * 5))
    assert {key: found[key] for key in ("value", "correct", "n", "level")} == {
        "value": 0.5, "correct": 5, "n": 10, "level": 0.95,
    }  # fmt: skip
    assert (found["low"], found["high"]) == pytest.approx((0.1871, 0.8129), abs=1e-4)  # Clopper and Pearson's table
    with pytest.raises(ValueError, match="no pictures"):
        rate(torch.tensor([], dtype=torch.bool))


def test_classes_are_rated_apart_and_absent_ones_are_left_out():
    labels, right = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([True, False, True, True, True])
    found = per_class(right, labels, ("cat", "dog", "owl"))
    assert {name: (entry["correct"], entry["n"]) for name, entry in found.items()} == {"cat": (1, 2), "owl": (3, 3)}


def test_confusions_are_counted_by_true_and_predicted_class():
    labels, said = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 2])
    assert confusion(labels, said, 3) == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    assert confused(labels, said, ("cat", "dog", "owl")) == [
        {"class": "cat", "taken_for": "dog", "count": 2},
        {"class": "dog", "taken_for": "cat", "count": 1},
    ]
