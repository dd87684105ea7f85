"""`lorica finetune` end to end on tiny networks: every method; what is attacked, kept, logged and refused."""

import copy
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_runs import (
    NETWORK,
    RUN,
    STEPS,
    TRAINER,
    Epoch,
    around_step,
    configured,
    exported,
    record,
    same,
    watch_epochs,
    write_pictures,
)
from lorica.checkpoint import load_state
from lorica.config import load
from lorica.data.batches import ordered
from lorica.data.label_split import LabelledSplit
from lorica.data.labelled import LabelledSet
from lorica.epochs import CHECKPOINTS, resolve_precision
from lorica.errors import LoricaError
from lorica.finetune import METHODS, AttackConfig, Diverged, FinetuneConfig, gradient_similarity, run
from lorica.finetune.ema import Average
from lorica.finetune.methods import AutoLora
from lorica.finetune.trainer import BEST, LAYER, Trainer
from lorica.monitor import read_metrics
from lorica.robustness.pgd import crafting
from lorica.vision import ModelConfig, load_classifier

Finetune = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "colours")


@pytest.fixture
def finetune(pictures: Path, tmp_path: Path) -> Finetune:
    """Runs in tmp_path/run unless told otherwise."""
    return lambda **options: run(configured(**({"pictures": pictures, "output": tmp_path / "run"} | options)))


VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    "n-fgsm": {"attack": {"kind": "n-fgsm", "eps": "4/255", "steps": 1}},
    "l2": {"attack": {"norm": "l2", "eps": 0.5, "steps": 1}, "method": "vanilla", "ema": 0, "schedule": "auto"},
    "dual": {"method": "vanilla", "options": {"batch_norm": "dual", "attack_loss": "kl"}, "schedule": "constant"},
    "running": {"natural_accuracy": "running", "attack": {"steps": 1, "start": "gaussian"}, "channels_last": False},
}


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of each variant, made when it is first wanted. Read only."""
    root = tmp_path_factory.mktemp("runs")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            run(configured(pictures, root / name, **VARIANTS[name]))
        return root / name

    return folder


# ----- every method -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_method_runs_from_pictures_to_a_model_and_its_record(
    runs: Callable[[str], Path], pictures: Path, variant: str
) -> None:
    output = runs(variant)
    found, rows = json.loads((output / "run.json").read_text()), read_metrics(output)
    settings = configured(pictures, output, **VARIANTS[variant])
    assert found["config"] == settings.model_dump(mode="json")
    assert (found["method"], found["seed"], found["processes"]) == (settings.method, 0, 1)
    assert found["counts"] == {"train": 24, "val": 9, "test": 9} and found["classes"] == ["blue", "green", "red"]
    assert found["fast_mode"] is (variant == "n-fgsm")
    assert found["threat"] == ("L2 0.5" if variant == "l2" else f"L-inf {255 * settings.attack.eps:.0f}/255")
    assert found["epochs"] == 2 and found["stopped"] is None and 0 < found["seconds"] < 600

    assert [(row["epoch"], row["step"]) for row in rows] == [(1, STEPS), (2, 2 * STEPS)]
    terms = {key.removeprefix("weight_") for key in rows[0] if key.startswith("weight_")}
    for row in rows:
        assert all(math.isfinite(row[term]) and row[term] >= 0 for term in terms)
        weighted = sum(row[f"weight_{term}"] * row[term] for term in terms)
        assert row["loss"] == pytest.approx(weighted, rel=1e-5)
        assert ("val_average_robust" in row) == ("val_average_natural" in row) == (settings.ema > 0)
        assert ("natural_accuracy" in row) == METHODS[settings.method].needs_natural_accuracy
        shares = [value for key, value in row.items() if key.startswith("val_") and not key.endswith("_loss")]
        shares += [value for key, value in row.items() if "_correct" in key]
        assert len(shares) > 3 and all(0 <= value <= 1 for value in shares)
        assert all(0 <= row[key] <= 1 and round(9 * row[key], 6) % 1 == 0 for key in ("val_natural", "val_robust"))
    prefix = "val_average_" if found["weights"] == "ema" else "val_"
    best = rows[found["best_epoch"] - 1]
    assert (found["val_natural"], found["val_robust"]) == (best[f"{prefix}natural"], best[f"{prefix}robust"])
    highest = max(row[key] for row in rows for key in ("val_robust", "val_average_robust") if key in row)
    assert found["val_robust"] == highest

    model, _ = load_classifier(ModelConfig(name=str(output / "model")))
    start, _ = load_classifier(settings.model, found["classes"])
    assert model.state_dict().keys() == start.state_dict().keys() and model.classes == start.classes
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not same(dict(model.named_parameters()), dict(start.named_parameters()))
    assert any((output / "tensorboard").iterdir()) and (output / "model" / "README.md").is_file()


def test_fine_tuning_learns_colours_under_attack(finetune: Finetune) -> None:
    found = finetune(epochs=8, schedule="constant", attack={"eps": "8/255", "steps": 3})
    assert found["val_natural"] == found["val_robust"] == 1.0


def test_the_same_configuration_gives_the_same_bits_and_another_seed_others(
    finetune: Finetune, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    finetune()
    assert record(tmp_path / "run") == record(runs("autolora"))
    assert same(exported(tmp_path / "run"), exported(runs("autolora")))
    assert read_metrics(tmp_path / "run") == read_metrics(runs("autolora"))
    other = finetune(output=tmp_path / "other", seed=1)
    assert other["weights_sha256"] != record(runs("autolora"))["weights_sha256"]


@pytest.mark.parametrize(
    ("device", "able", "expected"),
    [
        ("cuda", {}, "bf16"),
        ("cpu", {"amx_bf16": True}, "bf16"),
        ("cpu", {"amx_bf16": False, "avx512_bf16": True}, "bf16"),
        ("cpu", {"avx512_f": True}, "fp32"),
        ("cpu", {}, "fp32"),
        ("mps", {"amx_bf16": True}, "fp32"),
    ],
)
def test_precision_is_bf16_where_the_device_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, device: str, able: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert resolve_precision("auto", torch.device(device)) == expected
    assert resolve_precision("fp32", torch.device(device)) == "fp32"
    assert resolve_precision("bf16", torch.device(device)) == "bf16"


def test_training_begins_at_the_authors_rate_for_pictures_of_that_size(
    finetune: Finetune, pictures: Path, tmp_path: Path
) -> None:
    small = configured(pictures, tmp_path / "run", learning_rate=None)
    assert [small.initial_rate(size) for size in ((32, 32), (96, 96), (97, 32), (224, 224))] == [0.1, 0.1, 0.01, 0.01]
    assert configured(pictures, tmp_path, learning_rate=0.3).initial_rate((224, 224)) == 0.3
    assert finetune(learning_rate=None)["learning_rate"] == 0.1
    assert read_metrics(tmp_path / "run")[0]["learning_rate"] == 0.1


def test_bf16_trains_float32_weights(finetune: Finetune, runs: Callable[[str], Path], tmp_path: Path) -> None:
    assert finetune(precision="bf16")["precision"] == "bf16" and record(runs("autolora"))["precision"] == "fp32"
    half, full = read_metrics(tmp_path / "run"), read_metrics(runs("autolora"))
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.05) and half[0]["loss"] != full[0]["loss"]
    groups, _ = load_state(tmp_path / "run" / CHECKPOINTS / BEST)
    kinds = {value.dtype for group in groups.values() for value in group.values()}
    assert kinds == {torch.float32, torch.int64}
    assert all(math.isfinite(value) for row in half for value in row.values())


def test_a_compiled_network_trains_the_same_and_its_gradients_can_be_compared(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, compiled = nn.Module.compile, []

    def compile_quickly(self: nn.Module) -> None:  # the same graphs, without a C++ compiler's time
        compiled.append(self)
        original(self, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    settings = {"epochs": 1, "model": NETWORK | {"arguments": {"width": 4, "depths": [1]}}}
    finetune(output=tmp_path / "plain", **settings)
    assert not compiled
    finetune(compile=True, **settings)
    assert len(compiled) == 2
    (plain,), (row,) = read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "run")
    assert row == pytest.approx(plain, rel=1e-4, abs=1e-4)
    weights = exported(tmp_path / "plain")
    assert all(torch.allclose(value, weights[key], atol=1e-5) for key, value in exported(tmp_path / "run").items())


def test_the_statistics_of_several_processes_become_one_in_the_average_too(
    finetune: Finetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, of which the other one has zeros everywhere."""
    seen: list[tuple[Any, ...]] = []

    class Two:
        def reduce(self, values: Tensor, how: str) -> Tensor:
            assert how == "mean"
            return values / 2

    def together(trainer: Trainer) -> None:
        before, average = copy.deepcopy(trainer.method.state_dict()), copy.deepcopy(trainer.average.values)
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "world", 2)
            patch.setattr(trainer, "accelerator", Two())
            trainer._share_statistics()
        seen.append(
            (before, copy.deepcopy(trainer.method.state_dict()), average, copy.deepcopy(trainer.average.values))
        )

    around_step(monkeypatch, 0, together, after=True)
    finetune(epochs=1)
    before, after, average, averaged = seen[0]
    for old, new in ((before, after), (average, averaged)):
        running = [key for key in old if "running" in key]
        assert running and all(torch.equal(new[key], old[key] / 2) for key in running)
    assert torch.equal(before["classifier.backbone.conv1.weight"], after["classifier.backbone.conv1.weight"])


# ----- adversarial pictures -----------------------------------------------------------------------------------------
def test_the_attack_is_on_the_network_in_eval_mode_and_never_on_the_branch(
    finetune: Finetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step from the pictures themselves, so that it can be redone by hand."""
    original, seen = AutoLora.forward, []

    def forward(self: AutoLora, natural: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        assert self.training and self.classifier.training
        with crafting(self), torch.enable_grad():
            pixels = natural.clone().requires_grad_()
            logits = self.classifier(pixels)
        seen.append((natural, adversarial, torch.stack([torch.autograd.grad(part.sum(), pixels, retain_graph=True)[0]
                     for part in logits.log_softmax(1).unbind(1)])))  # fmt: skip
        return original(self, natural, adversarial)

    labels: list[Tensor] = []
    monkeypatch.setattr(AutoLora, "forward", forward)
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, x, y: (labels.append(y), step(self, x, y))[1])
    finetune(attack={"steps": 1, "start": "none", "eps": "4/255", "step_size": "3/255"}, epochs=2)
    assert len(seen) == len(labels) == 2 * STEPS
    for (natural, adversarial, gradients), truth in zip(seen, labels, strict=True):
        rising = -gradients[truth, torch.arange(len(truth))].sign()
        assert torch.allclose(adversarial, (natural + 3 / 255 * rising).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize(("start", "spread"), [("uniform", 4 / 255 / 3**0.5), ("gaussian", 0.001)])
def test_attacks_start_as_they_are_told_to_at_random_and_anew_for_each_step(
    finetune: Finetune, monkeypatch: pytest.MonkeyPatch, start: str, spread: float
) -> None:
    """With steps so short that nothing but the start is seen."""
    original, seen = AutoLora.forward, []

    def forward(self: AutoLora, natural: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((natural, adversarial))
        return original(self, natural, adversarial)

    monkeypatch.setattr(AutoLora, "forward", forward)
    finetune(attack={"steps": 1, "start": start, "eps": "4/255", "step_size": 1e-7}, augment=False)
    moves = [adversarial - natural for natural, adversarial in seen]
    assert all(0 < move.abs().max() <= 4 / 255 + 1e-6 for move in moves)
    assert all(adversarial.min() >= 0 and adversarial.max() <= 1 for _, adversarial in seen)
    assert all(move.std() == pytest.approx(spread, rel=0.05) for move in moves)
    assert all((a - b).abs().median() > spread / 2 for i, a in enumerate(moves) for b in moves[:i])


def naive_accuracies(network: nn.Module, pixels: Tensor, labels: Tensor, eps: float, steps: int) -> tuple[float, ...]:
    """Natural, and under PGD from the pictures themselves with steps of eps/4."""
    network.eval()
    x = pixels.clone()
    for _ in range(steps):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), labels), x)
        moved = (x.detach() + eps / 4 * gradient.sign() - pixels).clamp(-eps, eps)
        x = (pixels + moved).clamp(0, 1)
    with torch.no_grad():
        return tuple(float((network(seen).argmax(1) == labels).float().mean()) for seen in (pixels, x))


def test_validation_attacks_the_network_and_the_average_from_the_pictures_themselves(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs, splits = watch_epochs(monkeypatch), keep_splits(monkeypatch)
    finetune(epochs=4, schedule="constant", attack={"steps": 3, "eps": "24/255"})
    val, different = splits[0].val, 0
    for row, epoch in zip(read_metrics(tmp_path / "run"), epochs, strict=True):
        for prefix in ("val_", "val_average_"):
            network = copy.deepcopy(epoch.method.classifier)
            if prefix == "val_average_":
                network.load_state_dict(epoch.average)
            natural, robust = naive_accuracies(network, val.pixels.float() / 255, val.labels, 24 / 255, 3)
            assert (row[f"{prefix}natural"], row[f"{prefix}robust"]) == pytest.approx((natural, robust))
            different += natural != robust
    assert different > 2


# ----- epochs -------------------------------------------------------------------------------------------------------
def test_an_epoch_of_few_pictures_is_several_passes_over_them(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    step, splits = Trainer.step, keep_splits(monkeypatch)
    monkeypatch.setattr(Trainer, "step", lambda self, x, y: (seen.append(x), step(self, x, y))[1])
    finetune(epoch_steps=STEPS + 1, augment=False, attack={"steps": 1, "eps": "4/255"})
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [2 * STEPS, 4 * STEPS]
    known = [picture.float() / 255 for picture in splits[0].train.pixels]
    order = [next(i for i, other in enumerate(known) if torch.equal(other, x)) for batch in seen for x in batch]
    passes = [order[i : i + len(known)] for i in range(0, len(order), len(known))]
    assert all(sorted(one) == list(range(len(known))) for one in passes)  # every picture once in each
    assert len(passes) == 4 and len({tuple(one) for one in passes}) == 4


# ----- loss weights -------------------------------------------------------------------------------------------------
def accuracy_of(epoch: Epoch, data: LabelledSet) -> float:
    """Of the branch on pictures as they are."""
    method = epoch.method.eval()
    with torch.no_grad():
        hits = [
            (method.natural_logits(pixels).argmax(1) == labels).float() for pixels, labels in ordered(data, 5, "cpu")
        ]
    return float(torch.cat(hits).mean())


def keep_splits(
    patch: pytest.MonkeyPatch, change: Callable[[LabelledSplit], LabelledSplit] = lambda split: split
) -> list[LabelledSplit]:
    original, kept = RUN.split_labelled, []

    def split_labelled(*args: Any, **kwargs: Any) -> LabelledSplit:
        kept.append(change(original(*args, **kwargs)))
        return kept[-1]

    patch.setattr(RUN, "split_labelled", split_labelled)
    return kept


def test_the_loss_weights_follow_the_branchs_accuracy_on_the_training_pictures(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs, splits = watch_epochs(monkeypatch), keep_splits(monkeypatch)
    finetune(epochs=6, options={"alpha": 2.0, "lambda2_max": 5.0}, learning_rate=0.2)
    rows = read_metrics(tmp_path / "run")
    for row, epoch in zip(rows[1:], epochs[:-1], strict=True):
        assert row["natural_accuracy"] == pytest.approx(accuracy_of(epoch, splits[0].train))
    assert any(accuracy_of(epoch, splits[0].train) != accuracy_of(epoch, splits[0].val) for epoch in epochs[:-1])
    assert len({row["natural_accuracy"] for row in rows}) > 2
    for row in rows:
        learned = row["natural_accuracy"] ** 2
        assert (row["weight_natural"], row["weight_adversarial"]) == pytest.approx((1 - learned, learned))
        assert row["weight_kl"] == pytest.approx(5 * learned)


def test_the_running_accuracy_is_that_of_the_last_epochs_own_batches(runs: Callable[[str], Path]) -> None:
    first, second = read_metrics(runs("running"))
    assert second["natural_accuracy"] == first["natural_correct"] > 0
    assert second["weight_kl"] == pytest.approx(6 * first["natural_correct"])


# ----- schedule, selection, averages --------------------------------------------------------------------------------
def test_the_best_weights_come_back_when_the_schedule_says_so(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = watch_epochs(monkeypatch, robust=[0.5, 0.6, 0.55, 0.52, 0.51])
    found = finetune(epochs=5)
    first, second, third, *_ = epochs
    assert [epoch.decision.reload for epoch in epochs] == [False, False, True, False, True]
    assert [epoch.decision.best for epoch in epochs] == [True, True, False, False, False]
    assert same(first.before, first.after) and same(second.before, second.after)
    assert same(third.after, second.before) and not same(third.before, third.after)
    assert any(key.startswith("branch.") for key in third.after)
    assert any("running_mean" in key for key in third.after)
    assert same(third.average, second.average)  # the average goes back too
    assert all(torch.equal(a, b) for a, b in zip(*third.momenta, strict=True))  # the momentum does not
    assert any(buffer.any() for buffer in third.momenta[1])
    rows = read_metrics(tmp_path / "run")
    assert [row["learning_rate"] for row in rows] == [0.05, 0.05, 0.05, 0.025, 0.025]
    assert [row["reloaded"] for row in rows] == [0, 0, 1, 0, 1]
    assert (found["weights"], found["best_epoch"], found["val_robust"]) == ("raw", 2, 0.6)
    backbone = {key.removeprefix("classifier.backbone."): value for key, value in second.before.items()}
    assert same(exported(tmp_path / "run"), {k: v for k, v in backbone.items() if not k.startswith("branch")})


def test_catastrophic_overfitting_ends_the_run_which_keeps_its_best_weights(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = watch_epochs(monkeypatch, robust=[0.4, 0.6, 0.28, 0.29, 0.9])
    found = finetune(epochs=5, schedule="constant", attack={"kind": "n-fgsm", "eps": "4/255", "steps": 1})
    assert found["stopped"].startswith("catastrophic overfitting in epoch 4") and "0.600 to 0.290" in found["stopped"]
    assert (found["epochs"], found["best_epoch"], found["weights"]) == (4, 2, "raw") and len(epochs) == 4
    fc = epochs[1].before["classifier.backbone.fc.weight"]
    assert torch.equal(exported(tmp_path / "run")["fc.weight"], fc)


@pytest.mark.parametrize(
    ("robust", "average"),
    [([0.6, 0.31, 0.32, 0.6], 0.0), ([0.15, 0.06, 0.06, 0.1], 0.0), ([0.6, 0.1, 0.6, 0.1, 0.6], 0.0),
     ([0.6, 0.1, 0.1, 0.6], 0.5)],
    ids=["above half", "of nearly nothing", "for one epoch", "of the weights and not of their average"],
)  # fmt: skip
def test_a_smaller_fall_is_no_collapse(
    finetune: Finetune, monkeypatch: pytest.MonkeyPatch, robust: list[float], average: float
) -> None:
    """The last epoch of a run is not judged: there is nothing left to stop."""
    watch_epochs(monkeypatch, robust, average)
    found = finetune(epochs=len(robust), schedule="constant")
    assert found["stopped"] is None and found["epochs"] == len(robust)


def test_a_run_ends_when_its_learning_rate_is_spent(finetune: Finetune, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_epochs(monkeypatch, robust=[0.5] * 9)
    found = finetune(epochs=9, schedule_every=1, learning_rate=3e-5)
    assert found["epochs"] == 3 and found["stopped"] == "the learning rate was spent after epoch 3"


def test_the_average_that_is_better_on_the_validation_pictures_is_exported(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter([(0.5, 0.3), (0.4, 0.7), (0.6, 0.65)])

    def validate(self: Trainer) -> dict[str, float]:
        raw, average = next(numbers)
        return {"val_natural": 0.9, "val_robust": raw, "val_average_natural": 0.8, "val_average_robust": average}

    epochs = watch_epochs(monkeypatch)
    monkeypatch.setattr(Trainer, "validate", validate)
    found = finetune(epochs=3)
    assert (found["weights"], found["best_epoch"]) == ("ema", 2)
    assert (found["val_natural"], found["val_robust"]) == (0.8, 0.7)
    average = {key.removeprefix("backbone."): value for key, value in epochs[1].average.items()}
    assert same(exported(tmp_path / "run"), average)


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("mean", torch.tensor(10.0, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))


def test_the_average_is_its_closed_form_with_a_warm_up() -> None:
    module, decay = Scalar(), 0.6
    average = Average(module, decay)
    history = [1.0]
    for step in range(1, 21):
        with torch.no_grad():
            module.weight.fill_(float(step**2))
            module.mean.fill_(10.0 * step**2)
            module.count.fill_(step)
        average.update(module)
        history.append(float(step**2))
        decays = [min(decay, (1 + n) / (10 + n)) for n in range(1, step + 1)]
        shares = [math.prod(decays)] + [(1 - decays[n]) * math.prod(decays[n + 1 :]) for n in range(step)]
        expected = sum(share * value for share, value in zip(shares, history, strict=True))
        assert float(average.values["weight"]) == pytest.approx(expected)
        if step > 1:
            assert float(average.values["count"]) == step
    assert min(decays) == 2 / 11 and max(decays) == decay  # both sides of the minimum were seen
    assert float(module.weight.detach()) == 400.0


# ----- gradient similarity ------------------------------------------------------------------------------------------
def test_gradient_similarity_is_the_cosine_by_hand() -> None:
    a = nn.Parameter(torch.tensor([1.0, -2.0]))
    b = nn.Parameter(torch.tensor([[0.5]]))
    c = nn.Parameter(torch.tensor([3.0]))
    first = 3 * a[0] + 4 * a[1] + 2 * b.sum()
    second = 4 * a[0] - 3 * a[1] - 5 * b.sum() + c.sum()
    whole, single = gradient_similarity(first, second, [("a", a), ("b", b), ("c", c)])
    assert float(whole) == pytest.approx((12 - 12 - 10) / math.sqrt((9 + 16 + 4) * (16 + 9 + 25 + 1)))
    assert float(single["a"]) == pytest.approx(0, abs=1e-7) and float(single["b"]) == pytest.approx(-1)
    assert single["c"].isnan()  # the first loss does not reach it
    first.backward()  # the graph is still there, and no gradient was left behind
    assert a.grad is not None and a.grad.tolist() == [3, 4] and c.grad is None


def test_parallel_gradients_are_no_more_than_alike() -> None:
    torch.manual_seed(0)
    for _ in range(50):
        weights = nn.Parameter(torch.randn(7))
        loss = (weights * torch.randn(7)).sum()
        whole, single = gradient_similarity(loss, 3 * loss, [("weights", weights)])
        assert 1 - 1e-6 < whole <= 1 and 1 - 1e-6 < single["weights"] <= 1


@pytest.mark.parametrize(
    ("variant", "logged"), [("autolora", True), ("vanilla", True), ("twins", True), ("at", False)]
)
def test_similarity_is_logged_for_methods_of_two_objectives(
    runs: Callable[[str], Path], variant: str, logged: bool
) -> None:
    last = read_metrics(runs(variant))[-1]
    assert ("similarity" in last) is logged
    layers = {key.removeprefix(LAYER): value for key, value in last.items() if key.startswith(LAYER)}
    assert any("layer2.0.conv1.weight" in key for key in layers) is logged
    assert not any("fc." in key or "branch" in key for key in layers)  # the feature extractor's alone
    assert all(-1 <= value <= 1 for value in layers.values())


def test_the_logged_similarity_is_the_mean_over_the_compared_batches(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    original = Trainer._compare

    def compare(self: Trainer, terms: dict[str, Tensor]) -> None:
        parameters = [p for n, p in self.method.classifier.named_parameters() if ".fc." not in n]
        vectors = [
            torch.cat([g.flatten() for g in torch.autograd.grad(terms[name], parameters, retain_graph=True)])
            for name in ("natural", "kl")
        ]
        seen.append(float(F.cosine_similarity(*vectors, dim=0)))
        original(self, terms)

    monkeypatch.setattr(Trainer, "_compare", compare)
    finetune(method="vanilla", similarity_batches=2, epochs=1)
    assert len(seen) == 2 and seen[0] != seen[1]
    assert read_metrics(tmp_path / "run")[0]["similarity"] == pytest.approx(sum(seen) / 2, abs=1e-3)


# ----- the test set -------------------------------------------------------------------------------------------------
class Untouchable:
    """The test pictures: they may be named and counted, not looked at."""

    def __init__(self, data: Any) -> None:
        self.names, self.sha256, self.labels, self.classes = data.names, data.sha256, data.labels, data.classes

    def __len__(self) -> int:
        return len(self.names)

    @property
    def pixels(self) -> Tensor:
        raise AssertionError("somebody looks at the test pictures")

    def take(self, rows: Any) -> Any:
        raise AssertionError("somebody takes test pictures")


def test_training_never_looks_at_the_test_pictures(
    finetune: Finetune, runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = keep_splits(
        monkeypatch, lambda split: dataclasses.replace(split, test=Untouchable(split.test))  # type: ignore[arg-type]
    )  # fmt: skip
    finetune()
    with pytest.raises(AssertionError):
        splits[0].test.take([0])
    assert same(exported(tmp_path / "run"), exported(runs("autolora")))
    assert record(tmp_path / "run") == record(runs("autolora"))


# ----- numbers that are not finite ----------------------------------------------------------------------------------
def test_a_diverging_run_stops_and_names_its_epoch(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.method.classifier.backbone.fc.weight.fill_(float("nan"))

    around_step(monkeypatch, STEPS + 1, spoil)
    with pytest.raises(Diverged, match="of epoch 2 are") as raised:
        finetune()
    assert "--learning-rate" in raised.value.remedy
    output = tmp_path / "run"
    assert not (output / "run.json").exists() and not (output / "model").exists()
    _, header = load_state(output / CHECKPOINTS / "resume.safetensors")
    assert (header["epoch"], header["step_in_epoch"]) == (1, 0)


def test_weights_that_the_last_step_of_an_epoch_spoils_are_not_kept(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.method.classifier.backbone.conv1.weight[0, 0, 0, 0] = float("inf")

    around_step(monkeypatch, STEPS - 1, spoil, after=True)
    with pytest.raises(Diverged, match="epoch 1"):
        finetune(epochs=1)
    assert not any((tmp_path / "run" / CHECKPOINTS).glob("*"))


# ----- what is refused ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "autolra"}, r"unknown method 'autolra'.*Did you mean 'autolora'"),
        ({"options": {"rnak": 4}}, r"method autolora.*`rnak`.*`rank`"),
        ({"options": {"rank": 0}}, r"method autolora.*`rank` = 0"),
        ({"method": "at", "options": {"beta": 6}}, r"method at.*beta"),
        ({"method": "twins", "options": {"rank": 8}}, r"method twins.*`rank`"),
        ({"attack": {"eps": 8}}, r"eps = 8.*8/255"),
        ({"attack": {"eps": 128, "norm": "l2"}}, r"eps = 128.*128/255"),
        ({"attack": {"eps": 0}}, r"eps = 0"),
        ({"attack": {"kind": "n-fgsm", "norm": "l2", "eps": 0.5}}, r"n-fgsm is defined for linf.*pgd"),
        ({"attack": {"step_size": 2}}, r"step_size = 2.*2/255"),
        ({"attack": {"step_size": 0}}, r"step_size = 0"),
        ({"attack": {"step_size": -0.01}}, r"step_size = -0.01"),
        ({"method": "vanilla", "options": {"attack_loss": "kl"}, "attack": {"start": "none"}}, r"kl.*start"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(pictures: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(LoricaError, match=f"(?s){said}"):
        load(FinetuneConfig, options={"data": pictures} | options)


def test_a_step_of_an_attack_is_a_quarter_of_its_radius_unless_given() -> None:
    assert AttackConfig().size == pytest.approx(2 / 255) and AttackConfig().steps == 10  # the paper's
    assert AttackConfig(eps="4/255", step_size="3/255").size == pytest.approx(3 / 255)
    assert AttackConfig(norm="l2", eps=2.0, step_size=1.5).size == 1.5


def test_a_class_with_one_picture_is_refused(finetune: Finetune, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "few")
    for number in range(1, 14):
        (folder / "green" / f"{number}.png").unlink()
    with pytest.raises(LoricaError, match="green: 1"):
        finetune(pictures=folder)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_picture_that_cannot_be_read_is_named_before_any_work(finetune: Finetune, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "torn")
    (folder / "red" / "3.png").write_bytes((folder / "red" / "3.png").read_bytes()[:100])
    with pytest.raises(LoricaError, match=r"red/3\.png"):
        finetune(pictures=folder)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_model_that_returns_probabilities_is_refused_before_training(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_softmax(config: ModelConfig) -> Any:
        classifier, notes = load_classifier(config)
        original = classifier.backbone.forward
        classifier.backbone.forward = lambda x: original(x).softmax(1)
        return classifier, notes

    monkeypatch.setattr(RUN, "load_classifier", with_softmax)
    around_step(monkeypatch, 0, lambda trainer: pytest.fail("training began"))
    with pytest.raises(LoricaError, match="probabilities") as raised:
        finetune()
    assert "softmax" in raised.value.remedy
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_missing_autoattack_is_noticed_before_any_work_unless_nothing_is_attacked(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lorica.robustness

    monkeypatch.setitem(sys.modules, "pyautoattack.autopgd_base", None)
    monkeypatch.delitem(sys.modules, "lorica.robustness._original", raising=False)
    monkeypatch.delattr(lorica.robustness, "_original", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(RUN, "load_classifier", lambda *_: pytest.fail("work began"))
        with pytest.raises(LoricaError, match="pyautoattack") as raised:
            finetune(evaluate="quick")
    assert "lorica[vision]" in raised.value.remedy and not (tmp_path / "run").exists()
    assert finetune(evaluate="none", epochs=1)["epochs"] == 1


def test_twins_on_a_network_without_batch_norms_is_refused_before_training(finetune: Finetune, tmp_path: Path) -> None:
    arguments = {"embed_dim": 12, "depth": 1, "num_heads": 3, "patch_size": 8}
    model = {"name": "vit_tiny_patch16_224", "pretrained": False, "size": (16, 16), "arguments": arguments}
    with pytest.raises(LoricaError, match="batch norms, which vit_tiny"):
        finetune(method="twins", model=model)
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert finetune(model=model, epochs=1)["epochs"] == 1  # autolora takes it


def test_an_output_that_holds_a_run_is_refused_unless_it_is_to_be_replaced(
    finetune: Finetune, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    finetune(epochs=1, seed=1)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(LoricaError, match="already holds a result") as raised:
        finetune()
    assert "--overwrite" in raised.value.remedy and "--resume" in raised.value.remedy
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(LoricaError, match="contradict"):
        finetune(resume=True, overwrite=True)
    finetune(overwrite=True)
    assert same(exported(tmp_path / "run"), exported(runs("autolora")))
    assert read_metrics(tmp_path / "run") == read_metrics(runs("autolora"))


def test_what_is_shown_beside_the_bar_is_logged(runs: Callable[[str], Path]) -> None:
    assert set(RUN.LIVE | RUN.LAMBDAS) <= read_metrics(runs("autolora"))[-1].keys()
    assert set(RUN.LIVE) <= read_metrics(runs("at"))[-1].keys()


@pytest.mark.parametrize(
    ("judged_by", "few", "best"), [("accuracy", 500, 2), ("loss", 0, 3), ("auto", 9, 2), ("auto", 10, 3)]
)
def test_weights_are_chosen_and_the_rate_is_set_by_accuracy_or_by_loss(
    pictures: Path, tmp_path: Path, judged_by: str, few: int, best: int
) -> None:  # nine validation pictures
    found = iter([(0.2, 2.0), (0.6, 1.9), (0.6, 1.5), (0.4, 1.7)])
    fed = []

    def validate(self: Trainer) -> dict[str, float]:
        accuracy, loss = next(found)
        row = {"val_natural": 0.5, "val_robust": accuracy, "val_robust_loss": loss}
        step = self.schedule.step
        self.schedule.step = lambda merit: (fed.append(merit), step(merit))[1]  # type: ignore[method-assign]
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAINER, "FEW_PICTURES", few)
        patch.setattr(Trainer, "validate", validate)
        patch.setattr(Trainer, "save", lambda *_: None)
        record = run(configured(pictures, tmp_path / "run", judged_by=judged_by, epochs=4, ema=0, method="at"))
    assert record["best_epoch"] == best
    assert fed[0] == (0.2 if best == 2 else -2.0)
    assert record["chosen_by"] == f"robust validation {'accuracy' if best == 2 else 'loss'}"


def test_a_batch_that_leaves_a_process_with_too_few_pictures_is_refused(pictures: Path, tmp_path: Path) -> None:
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        original = Trainer.__init__
        patch.setattr(Trainer, "__init__", lambda self, *args: (seen.append(args), original(self, *args))[1])
        run(configured(pictures, tmp_path / "run", method="twins", epochs=1))
    config, _, method, split = seen[0]
    two = SimpleNamespace(process_index=0, num_processes=2, device=torch.device("cpu"))
    with pytest.raises(LoricaError, match="fewer than the 2 that method twins needs"):
        Trainer(config.model_copy(update={"batch_size": 2}), two, method, split)  # type: ignore[arg-type]
