"""Defences: their mathematics against naive versions, what they refuse, and each of them end to end."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapt_runs import WEIGHTS, numbers, press_ctrl_c, weights
from lorica.adapt import DEFENCES, AdaptConfig, run
from lorica.adapt.defences import DpLora, EarlyStopping
from lorica.adapt.pools import Batch, Draw, Pool
from lorica.audit.target import training_facts
from lorica.data.pictures import pixels, read_folder
from lorica.data.views import View
from lorica.diffusion import LatentDiffusion, LoraConfig, add_lora, encode
from lorica.diffusion.per_sample import PerSampleGradients, clipped_sum
from lorica.errors import LoricaError
from test_adapt_step import setup

Adapt = Callable[..., dict[str, Any]]

# Options with which a short run shows what a defence does; for dp-lora, some must be given.
OPTIONS: dict[str, dict[str, Any]] = {
    "augment": {"views": 3},
    "caption-dropout": {"rate": 0.5},
    "dp-lora": {"sigma": 0.5, "deterministic": True},
    "early-stopping": {"patience": 1, "watch": "gap"},
    "skip-low-loss": {"levels": 1, "decay": 0, "ratio": 0.9},
}
ALL = [pytest.param(name, id=name) for name in DEFENCES]


def needs(name: str) -> None:
    if name == "dp-lora":
        pytest.importorskip("opacus")


def config(**options: Any) -> AdaptConfig:
    return AdaptConfig(data=Path("data"), output=Path("run"), **options)


def make(name: str, members: int = 10, **options: Any) -> Any:
    given = config(objective="lora", defences={name: options})
    return DEFENCES[name](DEFENCES[name].Options(**given.defences[name]), given, members)


def batch(count: int = 400, size: int = 5) -> Batch:
    draw = Draw("train: train", range(count), torch.arange(count) % size)
    pool = Pool("train", torch.zeros(size, 1), torch.zeros(size, 1), tuple(f"caption {i}" for i in range(size)))
    return Batch(pool, draw, draw.rows, draw.rows, torch.zeros(count), torch.zeros(count, 1))


# ----- every defence ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ALL)
def test_every_defence_runs_from_the_command_line_to_lora_files(
    name: str, people: Path, tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(name)
    from lorica.cli import main

    given = [f"--set=defences.{name}.{key}={json.dumps(value)}" for key, value in OPTIONS[name].items()]
    command = ["adapt", people, "--base", tiny_pipeline_folder, "--output", tmp_path / "run", "--device", "cpu",
               "--objective", "lora", "--steps", 3, "--batch-size", 2, "--lora-rank", 2, "--validate-every", 1,
               "--validation-pictures", 2, "--log-every", 1, "--sample-every", 0,
               "--defences", name, *given]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lorica", *map(str, command)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(record["defences"]) == {name}
    assert OPTIONS[name].items() <= record["defences"][name].items()
    assert (tmp_path / "run" / WEIGHTS).is_file()
    facts = training_facts(tmp_path / "run")
    assert facts["defences"] == name and ("claimed_delta" in facts) == (name == "dp-lora")


@pytest.fixture(scope="module")
def plain(adapt_config: Callable[..., AdaptConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without defence. Read only."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run(adapt_config(output=folder, objective="lora"))
    return folder


@pytest.mark.parametrize("name", ALL)
def test_every_defence_changes_what_is_learnt_and_a_run_that_dies_and_is_resumed_ends_in_the_same_bits(
    name: str, adapt: Adapt, tmp_path: Path, before_step: Callable[..., None], plain: Path
) -> None:
    """It dies between two checkpoints, so that a step is taken twice. Early stopping comes with the weights of step 2,
    which only the checkpoint remembers."""
    needs(name)
    given = {"objective": "lora", "defences": {name: OPTIONS[name]}}
    adapt(output=tmp_path / "undisturbed", **given)
    assert weights(tmp_path / "undisturbed") != weights(plain)

    def die(step: Any) -> None:
        press_ctrl_c(step)
        press_ctrl_c(step)

    before_step(3, die)
    with pytest.raises(KeyboardInterrupt):
        adapt(**given)
    adapt(resume=True, **given)
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "undisturbed")


@pytest.mark.parametrize("name", ALL)
def test_no_defence_reads_a_number_back_from_the_device(
    name: str, tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(name)
    s = setup(tiny_model, "lora", defences={name: OPTIONS[name]})
    defence = DEFENCES[name](DEFENCES[name].Options(**s.config.defences[name]), s.config, len(s.pools.train))
    defence.attach(tiny_model, s.parameters)
    s.step.defences = [defence]
    train = s.pools.train  # with as many views as there may be, and a caption more
    latents, contexts = train.latents.repeat(9, 1, 1, 1), torch.cat([train.contexts, train.contexts[:1]])
    s.step.pools = replace(s.pools, train=replace(train, latents=latents, contexts=contexts))
    s.step.optimiser = torch.optim.AdamW(s.parameters, lr=1e-4, fused=True)
    s.step(0)

    def refuse(*args: Any) -> Any:
        raise AssertionError("a GPU would be waited for")

    with monkeypatch.context() as patch:
        for method in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, method, refuse)
        values = s.step(1)
    assert values["loss"].item() >= 0


def test_defences_go_together_and_with_the_min_max_objectives_and_a_trained_text_encoder(
    adapt: Adapt, tmp_path: Path
) -> None:
    defences = {name: OPTIONS[name] for name in DEFENCES if name != "dp-lora"}
    lora = {"rank": 2, "text_encoder": True}
    record = adapt(defences=defences, lora=lora, mi_gain="full", draws="independent", steps=3)
    assert list(record["defences"]) == sorted(defences)
    assert {"skipped", "gain", "aux_gap"} <= {name for row in numbers(tmp_path / "run") for name in row}


# ----- configuration ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "given", ["augment, caption-dropout", ["caption-dropout", "augment"], {"augment": None, "caption-dropout": {}}]
)
def test_a_name_alone_stands_for_the_defaults(given: Any) -> None:
    assert config(defences=given).defences == {
        "augment": {"flip": True, "crop": 0.8, "views": 8}, "caption-dropout": {"rate": 0.1}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"defences": "augmint"}, "Did you mean 'augment'"),
        ({"defences": {"augment": {"view": 3}}}, "the nearest is `views`"),
        ({"defences": {"caption-dropout": {"rate": 2}}}, "less than or equal to 1"),
        ({"defences": {"augment": {"flip": False, "crop": 1}}}, "neither flips nor crops"),
        ({"defences": "dp-lora", "objective": "lora"}, "either epsilon or sigma"),
        ({"defences": {"dp-lora": {"sigma": 1, "epsilon": 1}}, "objective": "lora"}, "either epsilon or sigma"),
        ({"defences": {"dp-lora": {"sigma": 1}}}, "does not go with: objective smp-lora"),
        ({"defences": {"dp-lora": {"sigma": 1}}, "gradient_accumulation": 2, "objective": "lora"}, "accumulation"),
        ({"defences": {"dp-lora": {"sigma": 1}, "early-stopping": {}}, "objective": "lora"}, "early-stopping, which"),
        ({"defences": {"dp-lora": {"sigma": 1}, "skip-low-loss": {}}, "objective": "lora"}, "skip-low-loss, which"),
        ({"defences": {"dp-lora": {"sigma": 1}}, "lora": {"text_encoder": True}, "objective": "lora"}, "text_encoder"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LoricaError) as refused:
        config(**options)
    assert said in f"{refused.value.problem} {refused.value.remedy}"


@pytest.mark.parametrize(
    ("name", "options", "changed"),
    [("early-stopping", {"patience": 9}, "validate_every"), ("augment", {}, "defences")],
)
def test_what_a_defence_rests_on_cannot_change_on_resume(
    name: str, options: dict[str, Any], changed: str, adapt: Adapt
) -> None:
    adapt(steps=2, defences={name: options})
    other = {"validate_every": 1} if changed == "validate_every" else {"defences": {name: {"views": 4}}}
    with pytest.raises(LoricaError, match=f"another configuration.*: {changed} "):
        adapt(resume=True, **({"defences": {name: options}} | other))


# ----- caption dropout ----------------------------------------------------------------------------------------------
def test_captions_are_dropped_at_their_rate_and_the_pictures_stay() -> None:
    before = batch()
    after = make("caption-dropout", rate=0.25).batch(before)
    dropped = after.captions == len(before.pool)
    assert 60 < dropped.sum() < 140
    assert torch.equal(after.captions[~dropped], before.captions[~dropped])
    assert torch.equal(after.rows, before.rows)
    assert {after.pool.caption(row) for row in after.captions[dropped].tolist()} == {""}
    assert make("caption-dropout", rate=1.0).batch(before).captions.unique().tolist() == [5]


def test_a_dropped_caption_is_the_embedding_of_the_empty_one(tiny_model: LatentDiffusion, tmp_path: Path) -> None:
    contexts = tiny_model.encode_captions(["one", "two"]).detach()
    plain = Pool("train", torch.zeros(2, 1), contexts, ("one", "two"))
    pool = make("caption-dropout").pool(plain, [], tiny_model, tmp_path)
    assert len(pool) == 2 and torch.equal(pool.contexts[:2], contexts)
    torch.testing.assert_close(pool.contexts[2], tiny_model.encode_captions([""])[0])
    assert make("caption-dropout").pool(replace(plain, contexts=None), [], tiny_model, tmp_path).contexts is None


@pytest.mark.parametrize(("name", "what"), [("caption-dropout", "captions"), ("augment", "rows")])
def test_a_draw_does_not_depend_on_how_the_stream_is_cut_into_batches(name: str, what: str) -> None:
    whole, defence = batch(64), make(name, **OPTIONS[name])
    parts = [
        replace(whole, draw=Draw(whole.draw.stream, range(a, a + 32), rows), rows=rows, captions=rows)
        for a in (0, 32)
        for rows in [whole.rows[a : a + 32]]
    ]
    found = torch.cat([getattr(defence.batch(part), what) for part in parts])
    assert torch.equal(found, getattr(defence.batch(whole), what))


# ----- augmentation -------------------------------------------------------------------------------------------------
def test_a_view_is_the_picture_mirrored_or_a_part_of_it_enlarged() -> None:
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(View()(x), x) and View().key == ""
    assert torch.equal(View(flip=True)(x), x.flip(3))
    smooth = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)  # brighter to the right
    part = View(crop=(8, 2, 8))(smooth)
    assert part.shape == smooth.shape and part.abs().max() <= 1
    torch.testing.assert_close(part[..., 8], smooth[..., 12], atol=0.07, rtol=0)
    assert View(flip=True, crop=(8, 2, 8))(smooth)[0, 0, 0, 0] > View(flip=True, crop=(8, 2, 8))(smooth)[0, 0, 0, -1]


def test_views_lie_inside_the_picture_and_are_the_same_in_every_run(people: Path) -> None:
    picture = read_folder(people)[0]
    some = [make("augment", crop=0.5, views=50).view(picture, number, 64) for number in range(50)]
    assert some == [make("augment", crop=0.5, views=99).view(picture, number, 64) for number in range(50)]
    assert some[0] == View() and {view.flip for view in some[1::2]} == {True} and not any(v.flip for v in some[::2])
    for view in some[1:]:
        left, top, side = view.crop or (0, 0, 64)
        assert 32 <= side <= 64 and left + side <= 64 and top + side <= 64 and min(left, top) >= 0
    assert len({view.key for view in some}) > 45


def test_the_pool_holds_every_view_and_a_draw_takes_any_of_its_own_picture(
    people: Path, tiny_model: LatentDiffusion, tmp_path: Path
) -> None:
    pictures = read_folder(people)[:5]
    encoded = encode(tiny_model, pictures, tmp_path)
    plain = Pool("train", encoded.latents, encoded.contexts, tuple(p.caption for p in pictures))
    defence = make("augment", views=4, crop=1.0)
    pool = defence.pool(plain, pictures, tiny_model, tmp_path)
    assert len(pool) == 5 and torch.equal(pool.latents[:5], encoded.latents)
    flipped = tiny_model.encode_pictures(pixels([pictures[2]], 64).flip(3))[0]
    torch.testing.assert_close(pool.latents[5 + 2], flipped)
    drawn = replace(batch(), pool=pool)
    after = defence.batch(drawn)
    assert torch.equal(after.rows % 5, drawn.rows) and torch.equal(after.captions, drawn.captions)
    assert after.rows.unique().tolist() == list(range(20))
    assert torch.equal(after.rows, make("augment", views=4, crop=1.0).batch(drawn).rows)


def test_the_record_says_how_pictures_were_changed(adapt: Adapt) -> None:
    assert adapt(steps=1)["augmentation"] == "none"
    record = adapt(steps=1, overwrite=True, defences={"augment": {"views": 2}})
    assert record["augmentation"] == "horizontal flips, crops down to 0.8 of a side (2 views per picture)"


# ----- skipping low losses ------------------------------------------------------------------------------------------
def test_low_losses_are_skipped_as_in_the_authors_loop(tiny_model: LatentDiffusion) -> None:
    defence = make("skip-low-loss", ratio=0.5, decay=0.8)
    defence.attach(tiny_model, [])
    bank, generator, skipped = [0.0] * 1000, torch.Generator().manual_seed(0), 0
    for _ in range(60):
        t = torch.randint(0, 4, (6,), generator=generator)
        losses = torch.rand(6, generator=generator)
        kept = [float(loss * 2 >= bank[i]) for loss, i in zip(losses.tolist(), t.tolist(), strict=True)]
        expected = sum(k * loss for k, loss in zip(kept, losses.tolist(), strict=True)) / max(1, sum(kept))
        for loss, i in zip(losses.tolist(), t.tolist(), strict=True):
            bank[i] = 0.8 * bank[i] + 0.2 * loss
        weighted, said = defence.losses(losses, t)
        assert weighted.mean().item() == pytest.approx(expected, rel=1e-5)
        assert said["skipped"].item() == pytest.approx(1 - sum(kept) / 6, abs=1e-6)
        skipped += sum(kept) < 6
    assert skipped > 10
    torch.testing.assert_close(defence.means, torch.tensor(bank))


def test_timesteps_may_share_a_mean_and_a_loss_without_end_spoils_none(tiny_model: LatentDiffusion) -> None:
    defence = make("skip-low-loss", levels=2, decay=0.0)
    defence.attach(tiny_model, [])
    defence.losses(torch.tensor([1.0, 3.0]), torch.tensor([499, 500]))
    assert defence.means.tolist() == [1.0, 3.0]
    defence.losses(torch.tensor([float("inf")]), torch.tensor([0]))
    assert defence.means.tolist() == [1.0, 3.0]
    weighted, _ = defence.losses(torch.tensor([0.1, 0.1]), torch.tensor([0, 999]))
    assert weighted.tolist() == [0, 0]


# ----- early stopping -----------------------------------------------------------------------------------------------
def watched(losses: list[float], **options: Any) -> tuple[EarlyStopping, nn.Parameter, list[bool]]:
    defence = make("early-stopping", **options)
    weight = nn.Parameter(torch.zeros(2))
    defence.attach(None, [weight])
    ended = []
    for step, loss in enumerate(losses):
        weight.data.fill_(step)
        defence.validated(step, {"aux_nonmember": loss, "aux_gap": -loss, "val_nonmember": 0.0})
        ended.append(defence.stopped is not None)
    return defence, weight, ended


def test_a_run_ends_after_so_many_validations_without_improvement() -> None:
    defence, weight, ended = watched([0.0, 5.0, 4.0, 4.5, 4.0, 3.9], patience=2)  # step 0, the base, does not count
    assert ended == [False, False, False, False, True, False]
    assert defence.stopped is None and defence.finish(5) == 5
    defence, weight, ended = watched([0.0, 5.0, 4.0, 4.5, 4.0], patience=2)
    assert defence.stopped == "aux_nonmember has not improved since step 2"
    assert defence.finish(4) == 2 and weight.tolist() == [2, 2]
    defence, weight, ended = watched([0.0, 5.0, 4.0, 4.5, 4.0], patience=2, keep="last")
    assert defence.finish(4) == 4 and weight.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "aux_nonmember"), ({"watch": "gap"}, "aux_gap"), ({"on": "test"}, "val_nonmember"),
     ({"on": "test", "watch": "gap"}, "val_gap")],
)  # fmt: skip
def test_what_is_watched(options: dict[str, Any], name: str) -> None:
    assert make("early-stopping", **options).watched == name


def test_a_stopped_run_is_complete_and_keeps_its_best_weights(
    adapt: Adapt, tmp_path: Path, before_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gap grows from the first step on: best at step 1, over at 3, which is no step of a checkpoint."""
    original = EarlyStopping.validated

    def growing(self: EarlyStopping, step: int, values: dict[str, float]) -> None:
        original(self, step, values | {"aux_gap": float(step)})

    monkeypatch.setattr(EarlyStopping, "validated", growing)
    given = {
        "defences": {"early-stopping": {"watch": "gap", "patience": 2}},
        "validate_every": 1,
        "checkpoint_every": 2,
    }
    record = adapt(**given)
    output = tmp_path / "run"
    assert record["stopped"] == {"step": 3, "why": "aux_gap has not improved since step 1"}
    assert record["steps"] == 1 and record["steps_per_picture"] == 2 / 12
    assert numbers(output)[-1]["step"] == 3
    assert record["val_member"] == numbers(output)[1]["val_member"]
    adapt(output=tmp_path / "one", steps=1)
    assert weights(output) == weights(tmp_path / "one")
    assert weights(output / "checkpoints" / "step_000003") != weights(output)
    facts = training_facts(output)
    assert facts["steps"] == 1 and facts["steps_per_picture"] == 2 / 12
    before = weights(output)
    assert adapt(resume=True, **given) == record
    assert adapt(resume=True, steps=9, **given) == record
    (output / "run.json").unlink()  # as if it had died just before
    assert adapt(resume=True, **given)["stopped"] == record["stopped"]
    assert weights(output) == before


# ----- differential privacy -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 1, "alpha": 1.0},
        {"rank": 2, "alpha": 8.0},
        {"rank": 4, "alpha": 2.0, "targets": "transformer-blocks"},  # convolutions too
    ],
)
def test_gradients_per_sample_are_those_of_a_loop(tiny_model: LatentDiffusion, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    parameters = add_lora(tiny_model.pipeline, LoraConfig(**options))
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.1)
    recorder = PerSampleGradients(tiny_model.unet)
    if "targets" in options:
        assert any(isinstance(module, nn.Conv2d) for module in recorder.modules)
    assert {id(p) for p in recorder.parameters} == {id(p) for p in parameters}
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    t, contexts = torch.tensor([1, 300, 999]), tiny_model.encode_captions(["a", "b", "c d"]).detach()
    with recorder as recorded:
        tiny_model.error_map(latents, t, noise, contexts).flatten(1).mean(1).sum().backward()
    found = recorded.gradients()
    for i in range(3):
        alone = tiny_model.error_map(latents[i, None], t[i, None], noise[i, None], contexts[i, None]).mean()
        for ours, theirs in zip(found, torch.autograd.grad(alone, recorder.parameters), strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours[i], theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    for ours, parameter in zip(found, recorder.parameters, strict=True):
        torch.testing.assert_close(ours.sum(0), parameter.grad, rtol=1e-3, atol=1e-4)
    assert not any(module._forward_hooks for module in recorder.modules)


def test_each_sample_is_clipped_over_all_parameters_together() -> None:
    first, second = torch.randn(3, 2, 5), torch.randn(3, 4)
    first[1], second[1] = 0, 0
    sums = clipped_sum([first, second], max_norm=1.5)
    for whole, ours in zip((first, second), sums, strict=True):
        expected = torch.zeros_like(whole[0])
        for i in range(3):
            norm = torch.cat([first[i].flatten(), second[i].flatten()]).norm().item()
            expected += whole[i] * min(1.0, 1.5 / norm if norm else 1.0)
        torch.testing.assert_close(ours, expected)


class TestDpLora:
    """What needs Opacus."""

    @pytest.fixture(autouse=True)
    def opacus(self) -> None:
        pytest.importorskip("opacus")

    def step(self, model: LatentDiffusion, **options: Any) -> Any:
        s = setup(model, "lora", defences={"dp-lora": {"deterministic": True} | options}, max_grad_norm=1e9)
        defence = DpLora(DpLora.Options(**s.config.defences["dp-lora"]), s.config, len(s.pools.train))
        defence.attach(model, s.parameters)
        s.step.defences = [defence]
        return s, defence

    def test_a_step_is_the_naive_sum_of_clipped_gradients_and_noise(self, tiny_model: LatentDiffusion) -> None:
        s, defence = self.step(tiny_model, sigma=1e-12, max_norm=0.01)
        taken = next(i for i in range(99) if len(defence.draw(s.pools.train, i).rows) == 3)
        train = s.step._batch(s.pools.train, taken, "train")
        total = [torch.zeros_like(p) for p in s.parameters]
        for row, t, noise in zip(train.rows, train.t, train.noise, strict=True):
            context = s.pools.train.contexts[row, None]
            loss = tiny_model.error_map(s.pools.train.latents[row, None], t[None], noise[None], context).mean()
            own = torch.autograd.grad(loss, s.parameters)
            norm = torch.cat([g.flatten() for g in own]).norm()
            assert norm > 0.01
            for sum_, g in zip(total, own, strict=True):
                sum_ += g * 0.01 / norm
        s.step(taken)
        for ours, sum_ in zip(s.optimiser.seen, total, strict=True):
            torch.testing.assert_close(ours, sum_ / s.config.batch_size, rtol=1e-3, atol=1e-6)

    def test_the_noise_has_its_size_and_is_new_in_each_step(self, tiny_model: LatentDiffusion) -> None:
        s, _ = self.step(tiny_model, sigma=1e4, max_norm=0.5)
        seen, start = [], [p.detach().clone() for p in s.parameters]
        for step in (0, 1, 0):
            with torch.no_grad():  # weights with such noise in them may give losses that are not finite
                for p, value in zip(s.parameters, start, strict=True):
                    p.copy_(value)
            s.step(step)
            seen.append(torch.cat([g.flatten() for g in s.optimiser.seen]))
        assert seen[0].std().item() == pytest.approx(1e4 * 0.5 / s.config.batch_size, rel=0.05)
        assert abs(torch.corrcoef(torch.stack(seen[:2]))[0, 1]) < 0.1

    def test_an_empty_batch_is_noise_alone(self, tiny_model: LatentDiffusion) -> None:
        s, defence = self.step(tiny_model, sigma=1e-9, max_norm=0.5)
        empty = next(i for i in range(999) if (defence.draw(s.pools.train, i), defence.count)[1] == 0)
        values = s.step(empty)
        assert values["pictures"] == 0 and values["loss"] == 0 and bool(s.step.finite)
        assert 0 < max(g.abs().max() for g in s.optimiser.seen) < 1e-8

    def test_each_picture_is_in_a_batch_with_the_same_probability_whatever_the_others_are(self) -> None:
        defence = make("dp-lora", members=20, sigma=1.0, deterministic=True)  # batches of 8
        pool = Pool("train", torch.zeros(20, 1), None, ("",) * 20)
        drawn = torch.zeros(2000, 20)
        for i in range(2000):
            draw = defence.draw(pool, i)
            if defence.count:
                drawn[i, draw.rows] = 1
        assert (drawn.mean(0) - 0.4).abs().max() < 0.05
        covariance = torch.cov(drawn.T)
        assert (covariance - torch.diag(covariance.diag())).abs().max() < 0.025
        assert drawn.sum(1).var() == pytest.approx(20 * 0.4 * 0.6, rel=0.15)

    @pytest.mark.parametrize("accountant", ["rdp", "prv"])
    def test_epsilon_and_sigma_are_each_others_inverse(self, accountant: str) -> None:
        private = make("dp-lora", members=100, epsilon=4.0, accountant=accountant)
        assert 3.9 < private.facts(2000)["epsilon"] <= 4
        assert private.facts(1000)["epsilon"] < 3.5
        again = make("dp-lora", members=100, sigma=private.sigma, accountant=accountant)
        assert again.facts(2000)["epsilon"] == private.facts(2000)["epsilon"]

    def test_without_subsampling_epsilon_is_that_of_the_gaussian_mechanism(self) -> None:
        """Dong, Roth, Su 2019: delta = Phi(-e/m + m/2) - exp(e) Phi(-e/m - m/2) with m = sqrt(steps) / sigma."""
        from scipy.optimize import brentq
        from scipy.stats import norm

        m = 2000**0.5 / 100
        exact = brentq(lambda e: norm.cdf(-e / m + m / 2) - 2.718281828**e * norm.cdf(-e / m - m / 2) - 1e-5, 0, 50)
        for accountant, slack in (("prv", 1.01), ("rdp", 1.25)):
            found = make("dp-lora", members=8, sigma=100.0, accountant=accountant).facts(2000)["epsilon"]
            assert exact * 0.999 < found < exact * slack

    def test_a_seeded_run_claims_no_epsilon(self) -> None:
        facts = make("dp-lora", sigma=1.0, deterministic=True).facts(10)
        assert facts["epsilon"] is None and facts["epsilon_if_the_seed_were_secret"] > 0

    @pytest.mark.parametrize(("options", "said"), [({"delta": 0.2}, "delta 0.2"), ({"epsilon": 1e-9}, "computed")])
    def test_a_guarantee_that_is_none_is_refused(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(LoricaError, match=said):
            make("dp-lora", **({"sigma": 1.0} if "epsilon" not in options else {}), **options)

    def test_a_secret_key_makes_two_runs_differ_and_a_resumed_one_the_same(
        self, adapt: Adapt, tmp_path: Path, before_step: Callable[..., None]
    ) -> None:
        import shutil

        given = {"objective": "lora", "defences": {"dp-lora": {"sigma": 1.0}}}
        before_step(3, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            adapt(**given)
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        records = [adapt(resume=True, output=tmp_path / name, **given) for name in ("run", "copy")]
        assert weights(tmp_path / "run") == weights(tmp_path / "copy")
        assert records[0]["defences"]["dp-lora"]["epsilon"] > 0
        adapt(output=tmp_path / "other", **given)
        assert weights(tmp_path / "other") != weights(tmp_path / "run")

    def test_it_goes_with_what_treats_each_picture_alone_also_in_bf16(self, adapt: Adapt, tmp_path: Path) -> None:
        others = {name: OPTIONS[name] for name in ("augment", "caption-dropout")}
        lora = {"rank": 2, "targets": "transformer-blocks"}
        adapt(objective="lora", precision="bf16", lora=lora, steps=3, defences=others | {"dp-lora": {"sigma": 0.1}})
        assert all(row["loss"] >= 0 and row["grad_norm"] > 0 for row in numbers(tmp_path / "run")[1:])

    def test_nothing_of_it_is_in_the_weights_file(self, adapt: Adapt, tmp_path: Path, plain: Path) -> None:
        adapt(objective="lora", steps=1, defences={"dp-lora": {"sigma": 1.0}})
        files = [weights(tmp_path / "run"), weights(plain)]
        headers = [content[: 8 + int.from_bytes(content[:8], "little")] for content in files]
        assert headers[0] == headers[1]

    def test_more_steps_than_were_accounted_for_are_refused(self, adapt: Adapt) -> None:
        given = {"objective": "lora", "defences": {"dp-lora": {"sigma": 1.0}}}
        adapt(steps=2, **given)
        with pytest.raises(LoricaError, match=r"steps \(was 2, now 4\)"):
            adapt(steps=4, resume=True, **given)


def test_without_opacus_the_error_says_how_to_install_it(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(LoricaError) as refused:
        adapt(objective="lora", defences={"dp-lora": {"sigma": 1.0}})
    assert "pip install 'lorica[dp]'" in refused.value.remedy
