"""A training step against a naive transcription of the paper's algorithms, and what it may and may not touch."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorica.adapt import AdaptConfig, Proxy, ProxyConfig
from lorica.adapt.draws import places, rows, timesteps_and_noise
from lorica.adapt.pools import Pool, Pools
from lorica.adapt.step import Step
from lorica.diffusion import LatentDiffusion, add_lora

SIZES = {"train": 5, "aux members": 3, "aux non-members": 4}
BATCH = 2
STEP = 3  # past the first epoch of the smaller pools
VARIANTS = [
    (gain, draws, order)
    for gain in ("paper", "authors", "full")
    for draws in ("shared", "independent")
    for order in ("paper", "authors")
]


class RecordingSGD(torch.optim.SGD):
    """Keeps the gradients that it was given, as a step leaves none behind."""

    seen: list[Tensor]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        super().step()


@dataclass
class Setup:
    model: LatentDiffusion
    pools: Pools
    parameters: list[nn.Parameter]
    optimiser: RecordingSGD
    proxy: Proxy | None
    config: AdaptConfig
    step: Step


def configured(objective: str, **options: Any) -> AdaptConfig:
    """Without clipping, and without dropout in the attacker, so that a step is a formula."""
    settings = {
        "batch_size": BATCH, "lam": 0.7, "max_grad_norm": 1e9, "learning_rate": 1e-2,
        "lora": {"rank": 2, "alpha": 4.0}, "proxy": {"dropout": 0.0, "learning_rate": 0.1},
    }  # fmt: skip
    return AdaptConfig(data=Path("data"), output=Path("run"), objective=objective, **(settings | options))


def setup(model: LatentDiffusion, objective: str = "smp-lora", **options: Any) -> Setup:
    config = configured(objective, **options)
    torch.manual_seed(0)
    parameters = add_lora(model.pipeline, config.lora)
    with torch.no_grad():
        for parameter in parameters:  # past the start, where B = 0 hides half of the gradient
            parameter.normal_(std=0.3)

    def pool(name: str) -> Pool:
        captions = tuple(f"{name} {i}" for i in range(SIZES[name]))
        with torch.no_grad():
            contexts = None if config.lora.text_encoder else model.encode_captions(captions)
        return Pool(name, torch.randn(SIZES[name], *model.latent_shape), contexts, captions)

    pools = Pools(pool("train"), pool("aux members"), pool("aux non-members"))
    optimiser = RecordingSGD(parameters, lr=config.learning_rate)
    proxy = None if objective == "lora" else Proxy(model.latent_shape, config.proxy, torch.ones(1000))
    # SGD: the first step of Adam is the sign of the gradient, in which rounding errors of tiny gradients show.
    sgd = torch.optim.SGD(proxy.parameters(), lr=config.proxy.learning_rate) if proxy is not None else None
    step = Step(model, pools, parameters, optimiser, proxy, sgd, config, Accelerator(cpu=True))
    return Setup(model, pools, parameters, optimiser, proxy, config, step)


# ----- the equations, one picture at a time -------------------------------------------------------------------------
def error_map(model: LatentDiffusion, latent: Tensor, caption: str, t: Tensor, noise: Tensor) -> Tensor:
    """(eps_hat - eps)^2 of equation (1) for one picture, through diffusers' own scheduler."""
    noisy = model.pipeline.scheduler.add_noise(latent[None], noise[None], t[None])
    return (model.unet(noisy, t[None], model.encode_captions([caption])).sample[0] - noise).square()


def maps_of(s: Setup, pool: Pool, index: int, rows_of: str, noise_of: str) -> list[tuple[Tensor, Tensor]]:
    """(map, t) of each picture in batch `index` of a stream."""
    where = range(BATCH * index, BATCH * (index + 1))
    chosen = rows(where, len(pool), f"{rows_of}: {pool.name}", s.config.seed).tolist()
    ts, noises = timesteps_and_noise(where, s.model.latent_shape, 1000, f"{noise_of}: {pool.name}", s.config.seed)
    return [
        (error_map(s.model, pool.latents[row], pool.captions[row], t, noise), t)
        for row, t, noise in zip(chosen, ts, noises, strict=True)
    ]


def log_h(proxy: nn.Module, maps: list[tuple[Tensor, Tensor]], member: bool) -> Tensor:
    """Mean of log h, or of log(1 - h), where h is the softmax probability of class 1."""
    return torch.stack([proxy(m[None], t[None]).softmax(1)[0, int(member)].log() for m, t in maps]).mean()


def naive_proxy_step(s: Setup, proxy: nn.Module) -> Tensor:
    """omega += eta_1 grad G(h_omega, S_aux^m u S_aux^nm, f) on equation (5)."""
    with torch.no_grad():
        members = maps_of(s, s.pools.aux_members, STEP, "proxy", "proxy")
        nonmembers = maps_of(s, s.pools.aux_nonmembers, STEP, "proxy", "proxy")
    gain = 0.5 * log_h(proxy, members, True) + 0.5 * log_h(proxy, nonmembers, False)
    weights = list(proxy.parameters())
    for weight, gradient in zip(weights, torch.autograd.grad(gain, weights), strict=True):
        weight.data += s.config.proxy.learning_rate * gradient
    return gain.detach()


def naive_lora_loss(s: Setup, proxy: nn.Module | None) -> dict[str, Tensor]:
    """Equations (3), (6) and (10)."""
    config = s.config
    first = maps_of(s, s.pools.train, STEP, "train", "train")
    adaptation_loss = torch.stack([m.mean() for m, _ in first]).mean()
    if proxy is None:
        return {"loss": adaptation_loss, "adaptation_loss": adaptation_loss}
    seen = first if config.draws == "shared" else maps_of(s, s.pools.train, STEP, "train", "second draw")
    gain = log_h(proxy, seen, True)
    if config.mi_gain in ("paper", "full"):
        gain = 0.5 * gain
    if config.mi_gain == "full":
        other = maps_of(s, s.pools.aux_nonmembers, STEP, "full gain", "full gain")
        gain = gain + 0.5 * log_h(proxy, other, False)
    if config.objective == "mp-lora":
        loss = adaptation_loss + config.lam * gain
    else:
        loss = adaptation_loss / (1 - config.lam * gain + config.delta)
    return {"loss": loss, "adaptation_loss": adaptation_loss, "gain": gain}


def naive_step(s: Setup) -> tuple[dict[str, Tensor], list[Tensor], nn.Module | None]:
    """Values, LoRA gradients and the attacker after one step; the setup itself stays as it is."""
    proxy = copy.deepcopy(s.proxy)
    values: dict[str, Tensor] = {}
    if proxy is not None and s.config.order == "paper":
        values["proxy_gain"] = naive_proxy_step(s, proxy)
    values |= naive_lora_loss(s, proxy)
    gradients = list(torch.autograd.grad(values["loss"], s.parameters))
    if proxy is not None and s.config.order == "authors":
        with lora_moved(s, gradients):
            values["proxy_gain"] = naive_proxy_step(s, proxy)
    return values, gradients, proxy


@contextmanager
def lora_moved(s: Setup, gradients: list[Tensor]) -> Iterator[None]:
    kept = [p.detach().clone() for p in s.parameters]
    with torch.no_grad():
        for p, gradient in zip(s.parameters, gradients, strict=True):
            p -= s.config.learning_rate * gradient
    yield
    with torch.no_grad():
        for p, before in zip(s.parameters, kept, strict=True):
            p.copy_(before)


def check_against_the_equations(s: Setup) -> None:
    values, gradients, proxy = naive_step(s)
    found = s.step(STEP)
    assert set(found) == set(values) | {"grad_norm"}
    for name, value in values.items():
        assert found[name].item() == pytest.approx(value.item(), rel=2e-4), name
    for ours, theirs in zip(s.optimiser.seen, gradients, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    if proxy is not None:
        for (name, ours), theirs in zip(s.proxy.named_parameters(), proxy.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("gain", "draws", "order"), VARIANTS)
def test_smp_lora_takes_the_steps_of_algorithm_1(
    tiny_model: LatentDiffusion, gain: str, draws: str, order: str
) -> None:
    check_against_the_equations(setup(tiny_model, "smp-lora", mi_gain=gain, draws=draws, order=order))


@pytest.mark.parametrize("positions", [0, BATCH * 8 * 8])
@pytest.mark.parametrize(("gain", "draws"), [("paper", "shared"), ("full", "independent")])
def test_one_call_and_two_take_the_same_steps(
    tiny_model: LatentDiffusion, gain: str, draws: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorica.adapt.step.ONE_CALL_POSITIONS", positions)
    check_against_the_equations(setup(tiny_model, "smp-lora", mi_gain=gain, draws=draws))


@pytest.mark.parametrize(
    "options", [{"order": "authors"}, {"proxy": {"steps": 2}}, {"gradient_accumulation": 2}, {"batch_size": 3},
                {"lora": {"rank": 2, "alpha": 4.0, "dropout": 0.1}}]
)  # fmt: skip
def test_players_that_do_not_see_the_same_lora_never_share_a_call(
    tiny_model: LatentDiffusion, options: dict[str, Any]
) -> None:
    s = setup(tiny_model, "smp-lora", **options)
    graphs: list[bool] = []
    tiny_model.unet.register_forward_hook(lambda m, i, o: graphs.append(o.sample.requires_grad))
    s.step(STEP)
    assert set(graphs) == {True, False}


@pytest.mark.parametrize("gain", ["paper", "full"])
def test_mp_lora_takes_the_steps_of_algorithm_2(tiny_model: LatentDiffusion, gain: str) -> None:
    check_against_the_equations(setup(tiny_model, "mp-lora", mi_gain=gain))


def test_plain_lora_descends_the_adaptation_loss(tiny_model: LatentDiffusion) -> None:
    check_against_the_equations(setup(tiny_model, "lora"))


def test_a_trained_text_encoder_gets_the_gradient_of_the_same_equations(tiny_model: LatentDiffusion) -> None:
    lora = {"rank": 2, "alpha": 4.0, "text_encoder": True}
    s = setup(tiny_model, "smp-lora", mi_gain="full", draws="independent", lora=lora)
    assert any(p is q for p in s.parameters for q in tiny_model.text_encoder.parameters())
    check_against_the_equations(s)


# ----- what a step touches ------------------------------------------------------------------------------------------
def test_the_lora_step_leaves_the_attacker_without_gradient_and_unchanged(tiny_model: LatentDiffusion) -> None:
    s = setup(tiny_model, mi_gain="full")
    assert s.proxy is not None
    before = copy.deepcopy(s.proxy.state_dict())
    s.step.proxy_step(0)  # which must not leave the attacker trainable
    after = copy.deepcopy(s.proxy.state_dict())
    assert any(not torch.equal(after[name], before[name]) for name in before)
    s.step.lora_step(0)
    assert all(p.grad is None for p in s.proxy.parameters())
    assert all(torch.equal(tensor, after[name]) for name, tensor in s.proxy.state_dict().items())


def test_the_proxy_step_leaves_the_lora_without_gradient_and_unchanged(tiny_model: LatentDiffusion) -> None:
    s = setup(tiny_model)
    before = [p.detach().clone() for p in s.parameters]
    s.step.proxy_step(0)
    assert all(p.grad is None for p in tiny_model.unet.parameters())
    assert all(torch.equal(p, b) for p, b in zip(s.parameters, before, strict=True))


def test_base_weights_get_no_gradient(tiny_model: LatentDiffusion) -> None:
    s = setup(tiny_model, lora={"rank": 2, "text_encoder": True})
    trained = {id(p) for p in s.parameters}
    base = [p for m in (tiny_model.unet, tiny_model.text_encoder) for p in m.parameters() if id(p) not in trained]
    before = [p.detach().clone() for p in base]
    s.step(0)
    assert all(p.grad is None and not p.requires_grad for p in base)
    assert all(torch.equal(p, b) for p, b in zip(base, before, strict=True))


def test_the_proxy_step_ascends_the_gain_on_its_pictures(tiny_model: LatentDiffusion) -> None:
    s = setup(tiny_model, proxy={"dropout": 0.0, "learning_rate": 1e-4})
    gains = [s.step.proxy_step(0)["proxy_gain"].item() for _ in range(4)]  # the same pictures each time
    assert gains == sorted(gains) and gains[0] < gains[-1]


def test_several_proxy_steps_see_different_pictures(
    tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = setup(tiny_model, proxy={"dropout": 0.0, "steps": 3})
    seen = watch_rows(s, monkeypatch)
    s.step.proxy_step(0)
    s.step.proxy_step(1)
    members = [row for name, some in seen if name == "aux members" for row in some]
    assert len(members) == 2 * 3 * BATCH
    assert sorted(members) == sorted(4 * list(range(SIZES["aux members"])))


def test_gradients_are_clipped_to_the_threshold(tiny_model: LatentDiffusion) -> None:
    s = setup(tiny_model, "lora", max_grad_norm=1e-3)
    norm = s.step(0)["grad_norm"].item()
    assert norm > 1e-2  # before clipping
    assert torch.cat([g.flatten() for g in s.optimiser.seen]).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_fp16_has_the_gradients_of_fp32_and_skips_an_overflow(tiny_pipeline_folder: Path) -> None:
    """On the CPU, which `run` refuses as it is slow: the scaling is the same everywhere."""
    gradients = []
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        s = setup(LatentDiffusion.load(str(tiny_pipeline_folder), device="cpu", dtype=dtype), precision=precision)
        s.step(0)
        gradients.append(torch.cat([g.flatten() for g in s.optimiser.seen]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
    assert gradients[1].norm().item() == pytest.approx(gradients[0].norm().item(), rel=0.02)

    s.step.scaler.update(new_scale=1e30)
    before = [p.detach().clone() for p in s.parameters]
    s.step.lora_step(1)
    assert all(torch.equal(p, b) for p, b in zip(s.parameters, before, strict=True))
    assert s.step.scaler.get_scale() < 1e30
    assert s.step.finite  # no divergence: what the scaler is for


def test_a_step_depends_on_the_weights_and_its_number_only(tiny_model: LatentDiffusion) -> None:
    """With dropout in the attacker and on the LoRA: after any other use of the random generators, the same step."""
    s = setup(tiny_model, proxy={"dropout": 0.5}, lora={"rank": 2, "dropout": 0.5}, learning_rate=1e-30)
    assert s.proxy is not None
    start = copy.deepcopy(s.proxy.state_dict())
    first = s.step(7)
    torch.manual_seed(12345)
    s.proxy.load_state_dict(start)
    again = s.step(7)
    assert {name: value.item() for name, value in first.items()} == {n: v.item() for n, v in again.items()}
    assert first["loss"] != s.step(8)["loss"]


def test_lora_dropout_acts_in_the_lora_step_alone(
    tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = setup(tiny_model, lora={"rank": 2, "dropout": 0.5})
    layers = [m for name, m in tiny_model.unet.named_modules() if "lora_dropout" in name and isinstance(m, nn.Dropout)]
    original, active = tiny_model.error_map, []

    def spy(*args: Tensor) -> Tensor:
        active.append((torch.is_grad_enabled(), {layer.training for layer in layers}))
        return original(*args)

    monkeypatch.setattr(tiny_model, "error_map", spy)
    s.step(0)
    assert layers and active == [(False, {False}), (True, {True})]
    assert not any(m.training for m in tiny_model.unet.modules())


def test_a_step_reads_no_number_back_from_the_device(
    tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = setup(tiny_model, draws="independent", mi_gain="full")
    s.step.optimiser = torch.optim.AdamW(s.parameters, lr=1e-4, fused=True)
    assert s.proxy is not None
    s.step.proxy_optimiser = torch.optim.Adam(s.proxy.parameters(), fused=True)
    s.step(0)

    def refuse(*args: Any) -> Any:
        raise AssertionError("a GPU would be waited for")

    with monkeypatch.context() as patch:
        for method in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, method, refuse)
        values = s.step(1)
    assert values["loss"].item() > 0


# ----- passes -------------------------------------------------------------------------------------------------------
def count_passes(s: Setup) -> Counter[str]:
    """Of one step, in units of one batch, as in the table of `lorica.adapt.step`."""
    counts: Counter[str] = Counter()

    def passed(module: nn.Module, inputs: Any, output: Any) -> None:
        with_graph = output.sample.requires_grad
        counts["calls"] += 1
        counts["F" if with_graph else "F without graph"] += len(output.sample)
        if with_graph:
            output.sample.register_hook(lambda gradient: counts.update(B=len(gradient)))

    def encoded(module: nn.Module, inputs: Any, output: Any) -> None:
        counts["captions"] += len(output[0])

    handles = [s.model.unet.register_forward_hook(passed), s.model.text_encoder.register_forward_hook(encoded)]
    s.step(STEP)
    for handle in handles:
        handle.remove()
    return Counter({name: count if name == "calls" else count // BATCH for name, count in counts.items()})


@pytest.mark.parametrize(
    ("objective", "options", "expected"),
    [
        ("lora", {}, {"calls": 1, "F": 1, "B": 1}),
        ("smp-lora", {}, {"calls": 2, "F": 1, "B": 1, "F without graph": 2}),
        ("smp-lora", {"draws": "independent"}, {"calls": 2, "F": 2, "B": 2, "F without graph": 2}),
        ("smp-lora", {"mi_gain": "full"}, {"calls": 2, "F": 2, "B": 2, "F without graph": 2}),
        (
            "smp-lora",
            {"mi_gain": "full", "draws": "independent"},
            {"calls": 2, "F": 3, "B": 3, "F without graph": 2},
        ),
        ("mp-lora", {}, {"calls": 2, "F": 1, "B": 1, "F without graph": 2}),
    ],
)
def test_a_step_makes_the_passes_of_its_table(
    tiny_model: LatentDiffusion,
    objective: str,
    options: dict[str, str],
    expected: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lorica.adapt.step.ONE_CALL_POSITIONS", 0)
    assert count_passes(setup(tiny_model, objective, **options)) == expected  # no caption is encoded: all are cached


def test_a_tiny_batch_goes_through_the_unet_once(tiny_model: LatentDiffusion) -> None:
    assert count_passes(setup(tiny_model, "smp-lora", draws="independent")) == {"calls": 1, "F": 4, "B": 4}


def test_a_trained_text_encoder_encodes_each_caption_once_per_call(tiny_model: LatentDiffusion) -> None:
    s = setup(tiny_model, draws="independent", lora={"rank": 2, "text_encoder": True})
    assert count_passes(s)["captions"] == 1 + 2  # the training batch for both draws, and the attacker's two


# ----- draws --------------------------------------------------------------------------------------------------------
def watch_rows(s: Setup, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """(pool, rows) of every picture that goes through the UNet, recognised by its latent; the UNet is left out."""
    owner = {
        tuple(latent.flatten().tolist()): (pool.name, row)
        for pool in (s.pools.train, s.pools.aux_members, s.pools.aux_nonmembers)
        for row, latent in enumerate(pool.latents)
    }
    seen: list[tuple[str, list[int]]] = []

    def stub(latents: Tensor, t: Tensor, noise: Tensor, context: Tensor) -> Tensor:
        for latent in latents:
            name, row = owner[tuple(latent.flatten().tolist())]
            seen.append((name if not torch.is_grad_enabled() else f"with gradient: {name}", [row]))
        return latents.square() * sum(p.mean() for p in s.parameters)

    monkeypatch.setattr(s.model, "error_map", stub)
    return seen


@pytest.mark.parametrize("draws", ["shared", "independent"])
def test_gradients_come_from_members_only_and_from_each_once_per_epoch(
    tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, draws: str
) -> None:
    s = setup(tiny_model, draws=draws, learning_rate=1e-9)
    seen = watch_rows(s, monkeypatch)
    epochs = 20
    for step in range(epochs * SIZES["train"] // BATCH):
        s.step.lora_step(step)
    assert {name for name, _ in seen} == {"with gradient: train"}
    visits = [row for _, some in seen for row in some]
    if draws == "independent":  # the batch, then its second copy
        batches = [visits[i : i + 2 * BATCH] for i in range(0, len(visits), 2 * BATCH)]
        assert all(batch[:BATCH] == batch[BATCH:] for batch in batches)
        visits = [row for batch in batches for row in batch[:BATCH]]
    orders = [tuple(visits[i : i + SIZES["train"]]) for i in range(0, len(visits), SIZES["train"])]
    assert len(orders) == epochs
    assert all(sorted(order) == list(range(SIZES["train"])) for order in orders)
    assert len(set(orders)) > epochs // 2  # shuffled anew


def test_the_attacker_sees_the_auxiliary_halves_only(
    tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = setup(tiny_model)
    seen = watch_rows(s, monkeypatch)
    for step in range(12):
        s.step.proxy_step(step)
    counts = Counter((name, row) for name, some in seen for row in some)
    assert counts == {("aux members", row): 8 for row in range(3)} | {("aux non-members", row): 6 for row in range(4)}


def test_two_processes_share_out_every_epoch(tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    s = setup(tiny_model, "lora", learning_rate=1e-9)
    visits: list[list[int]] = []
    for rank in (0, 1):
        world: Any = SimpleNamespace(process_index=rank, num_processes=2, reduce=lambda tensor, how: tensor)
        s.step.accelerator = world
        with monkeypatch.context() as patch:
            seen = watch_rows(s, patch)
            for step in range(SIZES["train"]):  # two processes x BATCH x 5 steps: four epochs of 5
                s.step.lora_step(step)
        visits.append([row for _, some in seen for row in some])
    together = [
        row for i in range(0, len(visits[0]), BATCH) for row in visits[0][i : i + BATCH] + visits[1][i : i + BATCH]
    ]
    epochs = [together[i : i + 5] for i in range(0, len(together), 5)]
    assert len(epochs) == 4 and all(sorted(epoch) == list(range(5)) for epoch in epochs)


def test_accumulated_batches_are_one_large_batch_of_plain_lora(tiny_model: LatentDiffusion) -> None:
    s = setup(tiny_model, "lora", batch_size=4, learning_rate=1e-9)
    whole = s.step(STEP)
    expected = s.optimiser.seen
    s.step.config = s.config.model_copy(update={"batch_size": 2, "gradient_accumulation": 2})
    parts = s.step(STEP)
    for ours, theirs in zip(s.optimiser.seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
    assert parts["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-5)


def test_samples_do_not_depend_on_how_the_stream_is_cut_into_batches() -> None:
    whole = timesteps_and_noise(range(8, 16), (4, 8, 8), 1000, "train", seed=1)
    halves = [timesteps_and_noise(places(4, 2, rank, 1), (4, 8, 8), 1000, "train", seed=1) for rank in (0,)]
    halves += [timesteps_and_noise(places(4, 1, 1, 2), (4, 8, 8), 1000, "train", seed=1)]
    for both, part in zip(whole, halves[0], strict=True):
        assert torch.equal(both[:4], part)
    for both, part in zip(whole, halves[1], strict=True):
        assert torch.equal(both[4:], part)
    assert torch.equal(rows(range(8, 16), 5, "train", 1)[4:], rows(range(12, 16), 5, "train", 1))


def test_streams_and_seeds_draw_independently() -> None:
    drawn = [timesteps_and_noise(range(4), (4, 8, 8), 10**9, stream, seed) for stream in ("a", "b") for seed in (0, 1)]
    assert len({tuple(t.tolist()) for t, _ in drawn}) == 4
    for i, (_, noise) in enumerate(drawn):
        for _, other in drawn[:i]:
            assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]) < 0.15


def test_timesteps_are_uniform_and_noise_is_standard_normal() -> None:
    t, noise = timesteps_and_noise(range(4000), (1, 2, 2), 10, "train", seed=0)
    shares = torch.bincount(t, minlength=10) / len(t)
    assert shares.sum() == pytest.approx(1) and (shares - 0.1).abs().max() < 0.025
    flat = noise.flatten()
    assert abs(flat.mean()) < 0.03 and abs(flat.std() - 1) < 0.03 and abs((flat**4).mean() - 3) < 0.2


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_batch_may_span_epochs_of_any_size(size: int) -> None:
    drawn = torch.cat([rows(places(5, index), size, "train", 0) for index in range(-(-3 * size // 5))])
    for epoch in range(3):
        assert sorted(drawn[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


# ----- the attacker -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["error-map", "calibrated"])
@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 6, 10), (16, 3, 1)])
@pytest.mark.parametrize("count", [1, 3])
def test_the_attacker_takes_any_latent_shape_and_batch_size(
    kind: str, shape: tuple[int, int, int], count: int
) -> None:
    proxy = Proxy(shape, ProxyConfig(input=kind), torch.full((1000,), 0.1))
    logits = proxy(torch.rand(count, *shape), torch.randint(1000, (count,)))
    assert logits.shape == (count, 2) and logits.dtype == torch.float32


def test_the_attacker_has_the_papers_layers_and_the_released_dropout() -> None:
    proxy = Proxy((4, 8, 8), ProxyConfig(), torch.ones(1000))
    linear = [m for m in proxy.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(256, 512), (512, 256), (256, 2)]
    assert [m.p for m in proxy.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert proxy.training


def test_the_calibrated_input_divides_out_what_t_explains() -> None:
    expected = torch.linspace(1.0, 0.01, 1000)
    proxy = Proxy((4, 8, 8), ProxyConfig(input="calibrated", dropout=0), expected)
    first = proxy.layers[0]
    with torch.no_grad():
        first.weight[:, -1] = 0  # the timestep itself
    maps, early, late = torch.rand(3, 4, 8, 8), torch.tensor([5, 10, 20]), torch.tensor([900, 950, 999])
    scaled = [proxy(maps * expected[t].view(-1, 1, 1, 1), t) for t in (early, late)]
    torch.testing.assert_close(*scaled)
    raw = [proxy(maps, t) for t in (early, late)]
    assert (raw[0] - raw[1]).abs().max() > 0.01


def test_the_calibrated_attacker_is_finite_for_a_perfect_prediction() -> None:
    proxy = Proxy((4, 8, 8), ProxyConfig(input="calibrated"), torch.zeros(1000))
    maps = torch.zeros(2, 4, 8, 8, requires_grad=True)
    logits = proxy(maps, torch.tensor([0, 999]))
    logits.sum().backward()
    assert logits.isfinite().all() and maps.grad is not None and maps.grad.isfinite().all()
