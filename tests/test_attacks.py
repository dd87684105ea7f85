"""Attacks, against closed forms and with positive and negative controls on a model whose optimum is known."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from analytic_model import AnalyticModel, gaussian_latents
from lorica.audit.attacks import (
    ATTACKS,
    CalibratedLossAttack,
    ClidAttack,
    ClidVecAttack,
    LossAttack,
    McLossAttack,
    NnLossAttack,
    PfamiAttack,
    ReconstructionAttack,
    SecmiAttack,
    SimaAttack,
)
from lorica.audit.attacks.base import Attack, Features, Groups
from lorica.audit.attacks.calibrated_loss import CalibratedLossOptions
from lorica.audit.attacks.clid import ClidOptions
from lorica.audit.attacks.loss import LossOptions
from lorica.audit.attacks.mc_loss import McLossOptions
from lorica.audit.attacks.nn_loss import NnLossOptions
from lorica.audit.attacks.pfami import PfamiOptions
from lorica.audit.attacks.pia import PianOptions, PiaOptions
from lorica.audit.attacks.reconstruction import ReconstructionOptions
from lorica.audit.attacks.secmi import SecmiOptions
from lorica.audit.attacks.sima import SimaOptions
from lorica.audit.queries import Sitting, answer, van_der_corput
from lorica.audit.score import MembershipScores
from lorica.config import Config
from lorica.diffusion import Encoded, keyed_noise
from lorica.diffusion.noise import keyed_uniform
from lorica.errors import LoricaError
from lorica.quality import EXTRACTORS

PER_GROUP = 32
GROUPS = ("aux_members", "test_members", "aux_nonmembers", "test_nonmembers")
SEED = 5


def encoded(count: int, seed: int = 0) -> Encoded:
    latents = gaussian_latents(count, seed)
    return Encoded(latents, torch.zeros(count, 1, 1), tuple(f"picture {seed}-{i}" for i in range(count)))


PICTURES = encoded(4 * PER_GROUP)
MEMORISED = AnalyticModel(PICTURES.latents[: 2 * PER_GROUP], PICTURES.ids[: 2 * PER_GROUP])
SHADOWS = 8  # in pairs of complementary halves, as `lorica shadows` trains them
_ORDERS = np.argsort(np.random.default_rng(0).random((SHADOWS // 2, 4 * PER_GROUP)), axis=1)
SHADOW_IN = np.stack([half for order in _ORDERS for half in (order < 2 * PER_GROUP, order >= 2 * PER_GROUP)], axis=1)


@cache
def attacked(name: str, model: AnalyticModel, options: Config | None = None) -> dict[str, NDArray[np.float64]]:
    """Scores of the four groups, as the audit computes them."""
    attack, seed = ATTACKS[name](options), SEED
    features = measured(attack, model, PICTURES, seed)
    if attack.needs_base:
        with model.base_only():
            base = measured(attack, model, PICTURES, seed)
        features |= {f"base_{name}": values for name, values in base.items()}
    if attack.needs_shadows:
        features |= shadow_features(name)
    return attack.score(grouped(features), seed)


def measured(attack: Attack, model: AnalyticModel, pictures: Encoded, seed: int) -> Features:
    """What one attack alone learns of the pictures."""
    captions = pictures.ids
    sitting = Sitting(model, pictures, seed, lambda: model.decode(pictures.latents), captions)  # type: ignore[arg-type]
    return answer(sitting, {"it": attack.ask(sitting)})["it"]


@cache
def shadow_features(name: str) -> Features:
    """What an attack learns of the pictures from models that learned random halves of them by heart."""
    attack = ATTACKS[name]()
    models = [AnalyticModel(PICTURES.latents[torch.from_numpy(inside)]) for inside in SHADOW_IN.T]
    answers = [measured(attack, model, PICTURES, SEED) for model in models]
    stacked = {f"shadow_{name}": np.stack([a[name] for a in answers], axis=1) for name in answers[0]}
    return stacked | {"shadow_in": SHADOW_IN}


def grouped(features: Features) -> Groups:
    size = PER_GROUP
    return {
        g: {name: values[i * size : (i + 1) * size] for name, values in features.items()} for i, g in enumerate(GROUPS)
    }


def test_scores(scores: dict[str, NDArray[np.float64]]) -> MembershipScores:
    return MembershipScores(scores["test_members"], scores["test_nonmembers"])


test_scores.__test__ = False  # type: ignore[attr-defined]


# --- every attack


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_finds_the_members_of_a_model_that_learned_them_by_heart(name: str) -> None:
    assert test_scores(attacked(name, MEMORISED)).auc > 0.9


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_finds_members_in_a_model_that_never_saw_them(name: str) -> None:
    faster = NnLossOptions(epochs=10, learning_rate=1e-4) if name == "nn-loss" else None
    low, high = test_scores(attacked(name, AnalyticModel(), faster)).interval("auc", level=0.99)
    assert low <= 0.5 <= high


@pytest.mark.parametrize("name", [name for name in ATTACKS if ATTACKS[name].needs_shadows])
def test_shadows_convict_no_model_of_having_learned_other_pictures(name: str) -> None:
    """It learned a half that has nothing to do with the groups, so that half of each group are members."""
    half = np.random.default_rng(7).permutation(len(PICTURES)) < len(PICTURES) // 2
    low, high = test_scores(attacked(name, AnalyticModel(PICTURES.latents[torch.from_numpy(half)]))).interval(
        "auc", level=0.99
    )
    assert low <= 0.5 <= high


@pytest.mark.parametrize("name", ATTACKS)
def test_the_threshold_from_auxiliary_scores_transfers_to_the_test_pictures(name: str) -> None:
    scores = attacked(name, MEMORISED)
    auxiliary = MembershipScores(scores["aux_members"], scores["aux_nonmembers"])
    assert test_scores(scores).asr(auxiliary.oracle_threshold()) > 0.8


@pytest.mark.parametrize("name", ATTACKS)
def test_features_depend_on_the_picture_and_not_on_its_batch_or_place(name: str) -> None:
    attack = ATTACKS[name]()
    together = measured(attack, MEMORISED, PICTURES, SEED)
    rows = [40, 3, 17]
    apart = measured(attack, MEMORISED, PICTURES.take(rows), SEED)
    for key, values in apart.items():
        assert len(values) == len(rows)
        np.testing.assert_allclose(values, together[key][rows], rtol=1e-6, atol=1e-9)


WITHOUT_NOISE = {"pia", "pian", "secmi", "sima"}  # they ask about the picture itself


@pytest.mark.parametrize("name", ATTACKS)
def test_another_seed_draws_other_noise(name: str) -> None:
    attack = ATTACKS[name]()
    first, second = (measured(attack, MEMORISED, PICTURES.take([0]), seed) for seed in (0, 1))
    assert all(np.array_equal(first[key], second[key]) == (name in WITHOUT_NOISE) for key in first)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_states_what_it_costs(name: str) -> None:
    attack, model = ATTACKS[name](), AnalyticModel()
    measured(attack, model, PICTURES.take([0, 1, 2]), SEED)
    models = 2 if attack.needs_base else 1
    assert attack.queries == models * sum(model.calls) / 3
    assert attack.name == name and attack.summary and attack.source


@pytest.mark.parametrize("name", ATTACKS)
def test_no_score_of_a_test_picture_depends_on_another_test_picture(name: str) -> None:
    """Whatever is fitted, scaled or selected uses auxiliary pictures only, or what was measured on shadows."""
    attack = ATTACKS[name]()
    if isinstance(attack, NnLossAttack):
        attack = NnLossAttack(NnLossOptions(input="normalised", epochs=2, learning_rate=1e-3))
    features = measured(attack, MEMORISED, PICTURES, SEED)
    if attack.needs_base:
        features |= {f"base_{key}": values + 1 for key, values in features.items()}
    if attack.needs_shadows:
        features |= shadow_features(name)
    whole = attack.score(grouped(features), SEED)
    groups = grouped(features)
    for group in ("test_members", "test_nonmembers"):
        if attack.needs_shadows:
            for key, values in groups[group].items():
                groups[group][key] = values if key.startswith("shadow_") else np.r_[values[:5], 2 * values[5:] + 1]
        else:
            groups[group] = {key: values[:5] for key, values in groups[group].items()}
    part = attack.score(groups, SEED)
    for group in groups:
        kept = 5 if group.startswith("test") else None
        np.testing.assert_allclose(part[group][:kept], whole[group][:kept], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_model_in_training_mode_is_not_measured(name: str, part: str) -> None:
    model = AnalyticModel()
    getattr(model, part).train()
    with pytest.raises(RuntimeError, match="training mode"):
        measured(ATTACKS[name](), model, PICTURES.take([0]), SEED)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_options_of_every_attack_are_described(name: str) -> None:
    options: type[Config] = ATTACKS[name].Options
    assert options.model_fields
    assert all(field.description for field in options.model_fields.values())


# --- closed forms


def loss_by_hand(t: torch.Tensor, purpose: str, draw: int, picture: int) -> float:
    """The adaptation loss of the optimal predictor sqrt(1 - a) z_t for Gaussian data, written out."""
    model = AnalyticModel()
    a = model.alphas_cumprod[t].item()
    x = PICTURES.latents[picture].numpy()
    eps = keyed_noise([PICTURES.ids[picture]], purpose, draw, model.latent_shape, SEED)[0].double().numpy()
    prediction = np.sqrt(1 - a) * (np.sqrt(a) * x + np.sqrt(1 - a) * eps)
    return float(np.mean((prediction - eps) ** 2))


def test_the_loss_attack_is_minus_the_loss_at_its_timestep() -> None:
    attack = LossAttack(LossOptions(timestep=0.37))
    scores = attack.statistic(measured(attack, AnalyticModel(), PICTURES, SEED))
    for picture in (0, 63):
        assert scores[picture] == pytest.approx(-loss_by_hand(torch.tensor(37), "loss", 0, picture), rel=1e-5)


def test_the_mc_loss_attack_is_minus_the_mean_loss_over_its_draws() -> None:
    attack = McLossAttack(McLossOptions(draws=4))
    scores = attack.statistic(measured(attack, AnalyticModel(), PICTURES, SEED))
    for picture in (1, 100):
        one = PICTURES.take([picture])
        first = keyed_uniform(one.ids, "stream.t", 0, SEED)[0].item()
        times = [int(100 * ((first + place) % 1)) for place in (0, 1 / 2, 1 / 4, 3 / 4)]
        expected = np.mean([loss_by_hand(torch.tensor(t), "stream.noise", k, picture) for k, t in enumerate(times)])
        assert scores[picture] == pytest.approx(-expected, rel=1e-5)


def test_the_mean_loss_of_fresh_gaussian_pictures_is_the_optimums_expectation() -> None:
    """E |sqrt(1-a) z_t - eps|^2 = a per element; over a uniform t it is the mean of a."""
    attack = McLossAttack(McLossOptions(draws=16))
    model, fresh = AnalyticModel(), encoded(200, seed=9)
    losses = measured(attack, model, fresh, SEED)["losses"]
    assert losses.mean() == pytest.approx(model.alphas_cumprod.mean().item(), abs=0.005)


@pytest.mark.parametrize(
    ("form", "score"),
    [
        ("log-ratio", lambda base, lora: np.log(base / lora).mean(1)),
        ("difference", lambda base, lora: (base - lora).mean(1)),
    ],
)
def test_the_calibrated_loss_compares_with_the_base_model_draw_by_draw(
    form: str, score: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    attack = CalibratedLossAttack(CalibratedLossOptions(form=form))  # type: ignore[arg-type]
    lora = measured(attack, MEMORISED, PICTURES, SEED)
    base = measured(attack, AnalyticModel(), PICTURES, SEED)
    found = attack.statistic({"losses": lora["losses"], "base_losses": base["losses"]})
    np.testing.assert_allclose(found, score(base["losses"], lora["losses"]), rtol=1e-9)
    assert found[:PER_GROUP].mean() > 0 > found[-PER_GROUP:].mean()


def test_the_calibrated_loss_survives_a_loss_of_exactly_zero() -> None:
    features = {"losses": np.zeros((2, 3)), "base_losses": np.ones((2, 3))}
    assert np.isfinite(CalibratedLossAttack().statistic(features)).all()


def test_sima_is_minus_the_norm_of_the_prediction_at_the_timestep_that_is_best_on_auxiliary_pictures() -> None:
    """The optimum for Gaussian data predicts sqrt(1 - a) z."""
    attack = SimaAttack(SimaOptions(timesteps=[0.1, 0.6], norm=3))
    norms = measured(attack, AnalyticModel(), PICTURES, SEED)["norm"]
    x = PICTURES.latents[7].numpy()
    for column, t in enumerate((10, 60)):
        size = np.mean(np.abs(np.sqrt(1 - AnalyticModel().alphas_cumprod[t].item()) * x) ** 3) ** (1 / 3)
        assert norms[7, column] == pytest.approx(size, rel=1e-6)
    rng = np.random.default_rng(0)
    groups = {g: {"norm": rng.normal(0, 1, (30, 2)) - [0, 3 * ("_members" in g)]} for g in GROUPS}
    groups["test_members"]["norm"][:, 0] -= 100  # what would be best on the test pictures is not looked at
    chosen = attack.score(groups, SEED)
    np.testing.assert_array_equal(chosen["test_members"], -groups["test_members"]["norm"][:, 1])


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("pia", PiaOptions(timestep=0.3, norm=4), None),
        ("pian", PianOptions(timestep=0.3, norm=4), np.sqrt(np.pi / 2)),
        ("pian", PianOptions(timestep=0.3, norm=4, scale="gaussian"), np.sqrt(2 / np.pi)),
    ],
)
def test_pia_is_the_distance_between_the_first_prediction_and_the_one_made_of_it(
    name: str, options: PiaOptions, size: float | None
) -> None:
    distance = measured(ATTACKS[name](options), AnalyticModel(), PICTURES, SEED)["distance"]
    start, a = (AnalyticModel().alphas_cumprod[t].item() for t in (0, 30))
    x = PICTURES.latents[11].numpy()
    first = np.sqrt(1 - start) * x
    if size is not None:
        first = first * size / np.abs(first).mean()
    again = np.sqrt(1 - a) * (np.sqrt(a) * x + np.sqrt(1 - a) * first)
    assert distance[11] == pytest.approx(np.mean((again - first) ** 4) ** 0.25, rel=1e-5)


def test_secmi_is_the_error_of_a_step_forward_and_back_at_the_end_of_the_deterministic_path() -> None:
    """For Gaussian data every step multiplies z by a number."""
    attack = SecmiAttack(SecmiOptions(timestep=0.2, steps=4))
    alphas = AnalyticModel().alphas_cumprod.numpy()

    def factor(t: int, to: int) -> float:
        clean = (1 - (1 - alphas[t])) / np.sqrt(alphas[t])
        return float(np.sqrt(alphas[to]) * clean + np.sqrt(1 - alphas[to]) * np.sqrt(1 - alphas[t]))

    reached = PICTURES.latents[3].numpy() * np.prod([factor(t, t + 5) for t in (0, 5, 10, 15)])
    back = reached * factor(20, 25) * factor(25, 20)
    error = measured(attack, AnalyticModel(), PICTURES, SEED)["t_error"][3]
    assert error == pytest.approx(np.mean((back - reached) ** 2), rel=1e-6)


def test_pfami_compares_the_losses_of_picture_and_crop_on_the_same_noise() -> None:
    model = AnalyticModel()
    attack = PfamiAttack(PfamiOptions(draws=2, highest=0.4, smallest=0.5))
    features = measured(attack, model, PICTURES, SEED)
    picture, ids = model.decode(PICTURES.latents[5:6])[0], PICTURES.ids[5:6]
    expected = []
    for k, t in enumerate((10, 30)):
        size, y, x = (keyed_uniform(ids, f"pfami.{what}", k, SEED).item() for what in ("size", "y", "x"))
        kept = round(8 * (0.5 + 0.5 * size))
        top, left = int(y * (9 - kept)), int(x * (9 - kept))
        crop = picture[:, top : top + kept, left : left + kept][None]
        crop = torch.nn.functional.interpolate(crop, size=(8, 8), mode="bilinear", antialias=True)
        a, eps = model.alphas_cumprod[t], keyed_noise(ids, "pfami", k, model.latent_shape, SEED).double()
        losses = []
        for z in (PICTURES.latents[5:6], model.encode_pictures(crop)):
            prediction = (1 - a).sqrt() * (a.sqrt() * z + (1 - a).sqrt() * eps)
            losses.append((prediction - eps).square().mean().item())
        expected.append(losses[1] / losses[0] - 1)
    assert attack.statistic(features)[5] == pytest.approx(np.mean(expected), rel=1e-5)


def test_reconstruction_compares_the_picture_with_what_is_drawn_from_its_caption() -> None:
    """By hand: the pictures as bytes, the extractor's features of each alone, cosine and distance."""
    attack, model = ReconstructionAttack(ReconstructionOptions(pictures=2, steps=3)), AnalyticModel()
    found = measured(attack, model, PICTURES.take([4, 90]), SEED)
    extractor = EXTRACTORS["builtin"]()
    for row, index in enumerate((4, 90)):
        one = PICTURES.take([index])
        levels = (255 * (model.decode(one.latents) + 1) / 2).round().clamp(0, 255).byte()
        own = extractor(levels)[0].double()
        for k in range(2):
            seed = int(keyed_uniform(one.ids, "reconstruction", k, SEED).item() * 2**53)
            drawn = np.asarray(model.sample(["anything"], seed=[seed], steps=3, guidance=2.0)[0])
            other = extractor(torch.from_numpy(drawn.transpose(2, 0, 1)[None].copy()))[0].double()
            cosine = (own @ other / (own @ own * (other @ other)).sqrt()).item()
            assert found["cosine"][row, k] == pytest.approx(cosine, abs=1e-5)
            assert found["distance"][row, k] == pytest.approx((own - other).norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("closeness", "over", "scores"),
    [
        ("cosine", "max", [0.9, 0.2]),
        ("cosine", "mean", [0.4, 0.1]),
        ("distance", "max", [-1, -4]),
        ("distance", "mean", [-2, -5]),
    ],
)
def test_the_score_of_a_reconstruction_is_the_closest_picture_or_the_mean(
    closeness: str, over: str, scores: list[float]
) -> None:
    attack = ReconstructionAttack(ReconstructionOptions(closeness=closeness, over=over))  # type: ignore[arg-type]
    features = {"cosine": np.array([[0.9, -0.1], [0.0, 0.2]]), "distance": np.array([[1.0, 3.0], [6.0, 4.0]])}
    np.testing.assert_allclose(attack.statistic(features), scores)
    assert attack.measurement == ReconstructionAttack().measurement  # only the score differs: nothing is drawn again


def test_an_extractor_that_cannot_be_had_is_missed_before_any_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoricaError, match="torch-fidelity"):
        ReconstructionAttack(ReconstructionOptions(extractor="inception-768"))
    with pytest.raises(LoricaError, match="inception-768"):
        ReconstructionOptions(extractor="inception-769")


class Listening(AnalyticModel):
    """Adds the caption's embedding to its prediction; the empty caption's is zero."""

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return super().predict(noisy, t, context) + context.mean(dim=(1, 2)).view(-1, 1, 1, 1)


def test_clid_measures_what_the_caption_does_to_the_loss_draw_by_draw() -> None:
    attack = ClidAttack(ClidOptions(draws=3))
    pictures = Encoded(PICTURES.latents, torch.full((len(PICTURES), 1, 1), 0.3), PICTURES.ids)
    features = measured(attack, Listening(), pictures, SEED)
    plain = measured(McLossAttack(McLossOptions(draws=3)), AnalyticModel(), PICTURES, SEED)["losses"]
    np.testing.assert_allclose(np.sort(features["losses_without"]), np.sort(plain), rtol=1e-5)
    # (p + c - eps)^2 - (p - eps)^2 = 2 c (p - eps) + c^2, whose mean over fresh Gaussian pictures is c^2
    assert (features["losses"] - features["losses_without"]).mean() == pytest.approx(0.09, abs=0.01)


def test_clid_weighs_its_two_parts_by_what_tells_the_auxiliary_pictures_apart() -> None:
    rng = np.random.default_rng(0)
    groups: Groups = {}
    for group in GROUPS:
        losses, gain = rng.normal(1, 0.1, (40, 1)), rng.normal(0.5, 0.1, (40, 1)) + 0.4 * ("_members" in group)
        groups[group] = {"losses": losses, "losses_without": losses + gain}
    scores = ClidAttack(ClidOptions(draws=1)).score(groups, SEED)
    assert test_scores(scores).auc > 0.97  # the mean of both parts alone would reach less
    assert test_scores(ClidVecAttack(ClidOptions(draws=1)).score(groups, SEED)).auc > 0.97


def test_calibration_removes_what_makes_a_picture_easy_for_any_model() -> None:
    """Losses with a picture-specific factor of wide spread, which members and non-members share in distribution."""
    rng = np.random.default_rng(0)
    hard = np.exp(rng.normal(0, 1, (400, 1)))
    base = hard * np.exp(rng.normal(0, 0.2, (400, 8)))
    lora = base * np.where(np.arange(400) < 200, 0.9, 1.0)[:, None] * np.exp(rng.normal(0, 0.02, (400, 8)))
    plain, calibrated = (
        MembershipScores(s[:200], s[200:])
        for s in (-lora.mean(1), CalibratedLossAttack().statistic({"losses": lora, "base_losses": base}))
    )
    assert plain.auc < 0.6 and calibrated.auc > 0.99


# --- draws


def test_the_sequence_of_places_fills_the_schedule_evenly_at_every_power_of_two() -> None:
    assert [van_der_corput(k) for k in range(8)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]


def test_draws_take_one_from_each_part_of_the_schedule_and_each_is_uniform() -> None:
    model = AnalyticModel()
    sitting = Sitting(model, encoded(2000), 0)  # type: ignore[arg-type]
    times = torch.stack([sitting.draw(k).t for k in range(8)], 1)
    gaps = times.sort(dim=1).values.diff(dim=1)
    assert gaps.min() >= 12 and gaps.max() <= 13  # 100 timesteps, 8 draws, rounded down
    for k in range(8):
        counts = torch.bincount(times[:, k] // 10, minlength=10)
        assert counts.min() > 150 and counts.max() < 250


def test_what_several_attacks_want_to_know_is_asked_once() -> None:
    model = AnalyticModel()
    sitting = Sitting(model, PICTURES.take([0, 1]), SEED)  # type: ignore[arg-type]
    asks = {name: ATTACKS[name]() for name in ("mc-loss", "calibrated-loss", "nn-loss")}
    together = answer(sitting, {name: attack.ask(sitting) for name, attack in asks.items()})
    assert len(model.calls) == 16  # 16 + 16 + 8 alone
    for name, attack in asks.items():
        alone = measured(attack, AnalyticModel(), PICTURES.take([0, 1]), SEED)
        for key, values in alone.items():
            np.testing.assert_array_equal(together[name][key], values)


def test_attacks_with_the_same_measurement_measure_the_same() -> None:
    mc, calibrated = McLossAttack(McLossOptions(draws=3)), CalibratedLossAttack(CalibratedLossOptions(draws=3))
    assert mc.measurement == calibrated.measurement
    model = AnalyticModel()
    first, second = (measured(a, model, PICTURES.take([2, 5]), SEED)["losses"] for a in (mc, calibrated))
    np.testing.assert_array_equal(first, second)


# --- the learning attack


def maps_with_a_signal(strength: float, seed: int = 0) -> Groups:
    """Error maps (30, 4, 20) whose first five elements are larger in members, at scales that differ by draw."""
    rng = np.random.default_rng(seed)
    groups: Groups = {}
    for group in GROUPS:
        maps = rng.chisquare(1, (30, 4, 20))
        if group.endswith("_members"):
            maps[..., :5] *= 1 + strength
        groups[group] = {"maps": (maps * np.array([8.0, 2.0, 1.0, 0.1])[:, None]).astype(np.float32)}
    return groups


def test_the_network_learns_a_pattern_that_the_mean_loss_hides() -> None:
    groups = maps_with_a_signal(1.5)
    for features in groups.values():  # the same total in every map: only the pattern is left
        features["maps"] /= features["maps"].sum(axis=2, keepdims=True)
    scores = NnLossAttack(NnLossOptions(input="normalised", learning_rate=1e-3, epochs=30)).score(groups, SEED)
    assert test_scores(scores).auc > 0.9


def test_normalised_maps_show_a_signal_that_raw_maps_drown() -> None:
    """Only the last draw tells members apart, and its maps are the smallest by far."""
    groups = maps_with_a_signal(0.0)
    for group in ("aux_members", "test_members"):
        groups[group]["maps"][:, 3] *= 4
    raw, normalised = (
        test_scores(NnLossAttack(NnLossOptions(input=form, learning_rate=3e-4, epochs=20)).score(groups, SEED))  # type: ignore[arg-type]
        for form in ("raw", "normalised")
    )
    assert raw.interval("auc")[0] < 0.5 < normalised.interval("auc")[0]


def test_auxiliary_pictures_are_scored_by_networks_that_did_not_see_them() -> None:
    """Without a signal an overfitted network separates what it was trained on, but not what it was not."""
    attack = NnLossAttack(NnLossOptions(input="normalised", learning_rate=1e-3, epochs=60))
    groups = maps_with_a_signal(0.0)
    scores = attack.score(groups, SEED)
    low, high = MembershipScores(scores["aux_members"], scores["aux_nonmembers"]).interval("auc")
    assert low <= 0.5 <= high
    groups["test_members"], groups["test_nonmembers"] = groups["aux_members"], groups["aux_nonmembers"]
    assert test_scores(attack.score(groups, SEED)).auc > 0.95


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_network_can_be_trained_on_the_smallest_auxiliary_groups(size: int) -> None:
    groups = {group: {"maps": features["maps"][:size]} for group, features in maps_with_a_signal(1.0).items()}
    scores = NnLossAttack(NnLossOptions(epochs=2)).score(groups, SEED)
    assert all(np.isfinite(values).all() and len(values) == size for values in scores.values())


def test_the_network_is_the_same_for_the_same_seed_and_leaves_the_global_generator_alone() -> None:
    groups = maps_with_a_signal(1.0)
    attack = NnLossAttack(NnLossOptions(epochs=2, learning_rate=1e-3))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = attack.score(groups, 3)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    second, other = attack.score(groups, 3), attack.score(groups, 4)
    np.testing.assert_array_equal(first["test_members"], second["test_members"])
    assert not np.array_equal(first["test_members"], other["test_members"])


def test_the_network_sees_as_many_members_as_nonmembers_when_the_groups_are_unequal() -> None:
    """On maps that are all alike it can learn nothing but how often it saw each label: log-odds of 0, not of log 6."""
    groups = {group: {"maps": np.ones((30, 4, 20), np.float32)} for group in GROUPS}
    groups["aux_nonmembers"] = {"maps": groups["aux_nonmembers"]["maps"][:5]}
    scores = NnLossAttack(NnLossOptions(epochs=30, learning_rate=1e-3)).score(groups, SEED)
    assert abs(scores["test_members"]).max() < 0.3
