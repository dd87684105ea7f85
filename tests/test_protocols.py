"""Fine-tuning protocols of encoders: recipes against the published table, and every protocol from the command line."""

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune_runs import around_step, configured, exported, press_ctrl_c, same, watch_epochs, write_pictures
from lorica.cli import main
from lorica.config import load
from lorica.data.label_split import LabelledSplit
from lorica.data.labelled import LabelledSet
from lorica.data.subsets import hide_labels, keep_labels
from lorica.errors import LoricaError
from lorica.evaluate import EvaluateConfig
from lorica.evaluate.protocol_config import ProtocolConfig
from lorica.finetune import METHODS, FinetuneConfig
from lorica.finetune import run as finetune
from lorica.finetune.recipes import PRESETS, RECIPES, changes
from lorica.finetune.trainer import Trainer
from lorica.fingerprint import weights_digest
from lorica.monitor import read_metrics
from lorica.vision import Classifier, ModelConfig, load_classifier
from lorica.vision.batch_norm import norm_tensors
from lorica.vision.export import export_folder

NAMES = ("slf", "alf", "aff")
FAST = (
    "--protocol-epochs", "2", "--tier", "quick", "--pgd-steps", "2", "--eps", "4/255", "--examples", "1",
    "--device", "cpu",
)  # fmt: skip


def encoder(seed: int = 0, natural_norms: bool = True) -> Classifier:
    """A residual network without a head, whose batch norms have seen something, and others for natural pictures."""
    arguments = {"width": 4, "depths": [1, 1], "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, _ = load_classifier(
            ModelConfig(name="cifar_resnet18", pretrained=False, arguments=arguments, size=(8, 8))
        )
        network.classes = ()
        _disturb(network.backbone)
        if natural_norms:
            other = copy.deepcopy(network.backbone)
            _disturb(other)
            network.natural_norms = norm_tensors(other)
    return network


def _disturb(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            for values in (module.running_var, module.weight, module.bias):
                nn.init.uniform_(values, 0.5, 1.5)


def call(*arguments: object) -> int:
    """The command line in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "250")
        patch.setattr(sys, "argv", ["lorica", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """What the command line has said since the last time, as one line."""

    def text() -> str:
        captured = capsys.readouterr()
        return " ".join((captured.out + captured.err).split())

    return text


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "colours")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A pre-training run's folder, its encoder compared by all protocols. Read only."""
    folder = tmp_path_factory.mktemp("run")
    export_folder(encoder(), folder / "encoder", card="")
    assert call("evaluate", folder, "--data", pictures, "--protocol", "slf,alf,aff", *FAST) == 0
    return folder


@pytest.fixture
def fresh(pretrained: Path, tmp_path: Path) -> Path:
    """A run with the same encoder and nothing else."""
    shutil.copytree(pretrained / "encoder", tmp_path / "run" / "encoder")
    return tmp_path / "run"


def protocols(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "protocols.json").read_text())["protocols"]


def timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if "seconds" not in key}


# ----- recipes ------------------------------------------------------------------------------------------------------
def settings(name: str, **protocol: Any) -> FinetuneConfig:
    return FinetuneConfig(data=Path("data"), **ProtocolConfig(names=[name], **protocol).recipe(name))


def test_the_recipes_are_those_of_the_papers_protocol() -> None:
    slf, alf, aff = (settings(name) for name in NAMES)
    for config in (slf, alf, aff):
        assert (config.epochs, config.automatic) == (25, "step")
        assert (config.momentum, config.weight_decay, config.ema) == (0.9, 2e-4, 0)
        assert (config.head, config.select, config.augment, config.labels) == ("zeros", "last", True, 1)
        attack = config.attack
        assert (attack.kind, attack.norm, attack.steps) == ("pgd", "linf", 10)
        assert (255 * attack.eps, 255 * attack.size) == pytest.approx((8, 2))
    for config, adversarial in ((slf, False), (alf, True)):
        assert (config.method, config.options) == ("linear", {"adversarial": adversarial})
        assert (config.batch_size, config.learning_rate, config.milestones) == (512, 0.01, [10, 20])
        assert config.attack.start == "uniform"
    assert (aff.method, aff.options) == ("vanilla", {"beta": 6, "attack_loss": "kl", "batch_norm": "dual"})
    assert (aff.batch_size, aff.learning_rate, aff.milestones, aff.attack.start) == (128, 0.1, [15, 20], "gaussian")


LINEAR_RATES = {  # of SLF and ALF on CIFAR-10, CIFAR-100, STL-10 at 96 and at 32 pixels
    "acl": [(0.01, 0.01), (0.05, 0.05), (0.1, 0.1), (0.01, 0.01)],
    "dynacl": [(0.01, 0.01), (0.05, 0.05), (0.1, 0.1), (0.01, 0.01)],
    "dynacl++": [(0.01, 0.01), (0.05, 0.05), (0.1, 0.1), (0.01, 0.01)],
    "acl-air": [(0.005, 0.01), (0.1, 0.1), (0.01, 0.01), (0.01, 0.01)],
    "dynacl-air": [(0.01, 0.01), (0.1, 0.1), (0.1, 0.1), (0.01, 0.01)],
    "dynacl-air++": [(0.01, 0.01), (0.1, 0.1), (0.1, 0.1), (0.1, 0.1)],
}
SETS = ("cifar10", "cifar100", "stl10-96", "stl10-32")


def test_the_presets_are_the_authors_tuning() -> None:
    assert set(PRESETS) == {f"{method}-{data}" for method in LINEAR_RATES for data in SETS}
    stopped = {("dynacl-air-cifar10", "slf"): 5, ("dynacl-air++-cifar10", "alf"): 4}
    for method, rates in LINEAR_RATES.items():
        for data, wanted in zip(SETS, rates, strict=True):
            preset = f"{method}-{data}"
            slf, alf, aff = (settings(name, preset=preset) for name in NAMES)
            assert (slf.learning_rate, alf.learning_rate) == wanted, preset
            assert slf.batch_size == (128 if data == "stl10-32" else 512)
            assert alf.batch_size == (128 if preset == "dynacl-air-stl10-96" else 512)
            for config, name in ((slf, "slf"), (alf, "alf")):
                epochs = stopped.get((preset, name), 25)
                assert (config.epochs, config.milestones) == (epochs, [10, 20] if epochs == 25 else [])
            long, early = method in ("acl", "acl-air"), preset == "dynacl-stl10-96"
            milestones = [40, 60] if long else [10, 20] if early else [15, 20]
            assert (aff.epochs, aff.milestones) == (100 if long else 25, milestones), preset
            assert (aff.learning_rate, aff.batch_size) == (0.1, 128)


def test_what_a_preset_changes_is_said() -> None:
    assert changes("dynacl-cifar10") == "nothing"
    assert changes("acl-air-cifar10") == "slf: learning rate 0.005; aff: epochs 100, milestones [40, 60]"


def test_a_recipe_that_is_changed_changes_no_other() -> None:
    before = copy.deepcopy(RECIPES)
    config = ProtocolConfig(names=["aff"], preset="acl-cifar10")
    recipe = config.recipe("aff")
    recipe["milestones"].clear(), recipe["options"].clear(), recipe["attack"].clear()
    assert before == RECIPES and config.recipe("aff")["milestones"] == [40, 60] and config.recipe("aff")["attack"]


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(50, [20, 40]), (10, [4, 8]), (2, [1]), (1, [])], ids=["50", "10", "2", "1"]
)
def test_milestones_move_with_the_number_of_epochs(epochs: int, milestones: list[int]) -> None:
    config = settings("slf", epochs=epochs)
    assert (config.epochs, config.milestones) == (epochs, milestones)


def test_autolora_takes_the_place_of_trades_with_all_its_own_settings() -> None:
    own = FinetuneConfig(data=Path("data"), method="autolora")
    assert settings("aff", finetune="autolora") == own
    assert settings("alf", finetune="autolora") == settings("alf")


def test_with_few_pictures_an_epoch_has_as_many_steps_as_in_other_fine_tuning() -> None:
    assert all("epoch_steps" not in ProtocolConfig(names=[name]).recipe(name) for name in NAMES)
    few = settings("slf", labels=0.01, val_share=0.1)
    assert (few.labels, few.val_share) == (0.01, 0.1)


# ----- labels -------------------------------------------------------------------------------------------------------
def labelled(counts: dict[str, int], copies: int = 0) -> LabelledSet:
    """Pictures of each class; of the first class `copies` more of its first picture."""
    classes = tuple(counts)
    names = [f"{name}/{i}" for name, count in counts.items() for i in range(count)]
    labels = [place for place, count in enumerate(counts.values()) for _ in range(count)]
    names, labels = names + [names[0]] * copies, labels + [0] * copies
    unique = tuple(f"{name}#{row}" for row, name in enumerate(names))
    return LabelledSet(torch.zeros(len(names), 3, 2, 2), torch.tensor(labels), classes, unique, tuple(names))


def kept(share: float, seed: int = 0, copies: int = 0) -> LabelledSplit:
    other = labelled({"many": 2, "few": 2, "one": 2})
    return keep_labels(
        LabelledSplit(labelled({"many": 200, "few": 10, "one": 1}, copies), other, other, ("a note",), 0), share, seed
    )


@pytest.mark.parametrize(("share", "counts"), [(0.01, [2, 1, 1]), (0.25, [50, 2, 1]), (0.5, [100, 5, 1])])
def test_a_share_of_each_class_keeps_its_labels_and_at_least_one_picture(share: float, counts: list[int]) -> None:
    split = kept(share)
    assert torch.bincount(split.train.labels).tolist() == counts
    assert len(split.val) == len(split.test) == 6
    assert split.notes[0] == "a note" and f"{sum(counts)} of 211 training pictures" in split.notes[1]


def test_a_smaller_share_is_part_of_a_larger_one_of_the_same_seed_only() -> None:
    small, large, other = (set(kept(share, seed).train.sha256) for share, seed in ((0.1, 0), (0.4, 0), (0.4, 1)))
    assert small < large and not small < other


def test_copies_count_once_and_stay_together() -> None:
    hashes = [list(kept(0.5, seed, copies=5).train.sha256) for seed in range(4)]
    assert {found.count("many/0") for found in hashes} == {0, 6}
    assert all(sum(name.startswith("many") for name in set(found)) == 100 for found in hashes)


def test_all_labels_are_the_split_itself() -> None:
    split = kept(1.0)
    assert len(split.train) == 211 and split.notes == ("a note",)


# ----- the linear method --------------------------------------------------------------------------------------------
def linear(adversarial: bool) -> Any:
    classifier = encoder()
    classifier.take_classes(("a", "b", "c"))
    cls = METHODS["linear"]
    return cls(cls.Options(adversarial=adversarial), classifier).train()


@pytest.mark.parametrize("adversarial", [False, True])
def test_linear_fine_tuning_is_cross_entropy_of_a_linear_map_of_frozen_features(adversarial: bool) -> None:
    method = linear(adversarial)
    natural, other, labels = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    seen = other if adversarial else natural
    plain = encoder().eval()
    head = method.classifier.head
    expected = F.cross_entropy(plain(seen).detach() @ head.weight.T + head.bias, labels)
    clean, attacked = method(natural, other)
    loss = method.loss(method.terms(clean, attacked, labels))
    assert torch.allclose(loss, expected, atol=1e-6) and (clean is None) == adversarial
    loss.backward()
    with_gradient = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"classifier.backbone.fc.weight", "classifier.backbone.fc.bias"}
    assert method.needs_attack == adversarial and method.compared is None


@pytest.mark.parametrize("adversarial", [False, True])
def test_only_the_head_is_optimised_and_only_what_is_looked_at_is_attacked(
    pictures: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adversarial: bool
) -> None:
    crafted, original = [], Trainer._attacked
    monkeypatch.setattr(Trainer, "_attacked", lambda self, *args: (crafted.append(1), original(self, *args))[1])
    epochs = watch_epochs(monkeypatch)
    model = {"name": str(pretrained / "encoder")}
    options = {"adversarial": adversarial}
    finetune(configured(pictures, tmp_path / "run", model=model, method="linear", options=options, epochs=1))
    assert len(crafted) == (3 if adversarial else 0)
    assert sorted(momentum.shape for momentum in epochs[0].momenta[1]) == [(3,), (3, 8)]
    (row,) = read_metrics(tmp_path / "run")
    assert ("adversarial_correct" in row) == adversarial and ("natural_correct" in row) != adversarial


# ----- what fine-tuning got for the recipes -------------------------------------------------------------------------
def test_the_rate_falls_after_the_milestones(pictures: Path, tmp_path: Path) -> None:
    finetune(configured(pictures, tmp_path / "run", method="linear", epochs=5, milestones=[1, 4], learning_rate=0.1))
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "run")]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.01, 0.001])


def test_a_head_begins_at_zero_where_it_is_asked_to_even_one_that_knows_the_classes(
    pictures: Path, tmp_path: Path
) -> None:
    """With steps so short that nothing but the start is seen."""
    largest = {}
    for name, head, model in (("random", "random", None), ("new", "zeros", None), ("known", "zeros", "random")):
        where = {} if model is None else {"model": {"name": str(tmp_path / model / "model")}}
        options = {"method": "linear", "head": head, "epochs": 1, "learning_rate": 1e-9, "ema": 0} | where
        finetune(configured(pictures, tmp_path / name, **options))
        largest[name] = float(exported(tmp_path / name)["fc.weight"].abs().max())
    assert largest["random"] > 0.01 and largest["new"] < 1e-6 and largest["known"] < 1e-6


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_last_weights_are_delivered_where_they_are_asked_for_even_after_a_collapse(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    numbers = iter([0.8, 0.1, 0.1, 0.1])

    def validate(self: Trainer) -> dict[str, float]:
        robust = next(numbers)
        return {f"val_{kind}{name}": robust for kind in ("", "average_") for name in ("natural", "robust")}

    monkeypatch.setattr(Trainer, "validate", validate)
    last: list[dict[str, Tensor]] = []
    decide = Trainer.decide

    def keep(self: Trainer, *args: Any) -> Any:
        network = self.method.classifier.state_dict() if self.average is None else self.average.values
        last.append({key.removeprefix("backbone."): value.clone() for key, value in network.items()})
        return decide(self, *args)

    monkeypatch.setattr(Trainer, "decide", keep)
    found = finetune(configured(pictures, tmp_path / "run", method="at", epochs=4, select="last", ema=ema))
    assert (found["stopped"], found["epochs"], found["best_epoch"]) == (None, 4, 4) and len(last) == 4
    assert (found["weights"], found["val_robust"]) == ("ema" if ema else "raw", 0.1)
    assert same(exported(tmp_path / "run"), last[-1]) and not same(exported(tmp_path / "run"), last[0])
    assert "chosen on these" not in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"milestones": [2, 5], "epochs": 5, "method": "at"}, "between 1 and 4"),
        ({"milestones": [3, 2], "epochs": 5, "method": "at"}, "rising"),
        ({"milestones": [2]}, "schedule=step"),
        ({"select": "last"}, "schedule=auto"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LoricaError, match=complaint):
        FinetuneConfig(data=Path("data"), **options)


def test_lists_of_epochs_come_as_text_too() -> None:
    assignments = ["milestones=[1, 2]", "method=at"]
    from_option = load(FinetuneConfig, options={"data": "d", "method": "at", "milestones": ["1,2"]})
    from_yaml = load(FinetuneConfig, assignments=assignments, options={"data": "d"})
    assert from_option.milestones == from_yaml.milestones == [1, 2]


def test_dual_batch_norms_begin_as_the_encoder_brings_them_and_are_not_delivered() -> None:
    cls, classifier = METHODS["vanilla"], encoder()
    classifier.take_classes(("a", "b"))
    brought, own = classifier.natural_norms, {k: v.clone() for k, v in norm_tensors(classifier.backbone).items()}
    assert brought is not None and not same(brought, own)
    method = cls(cls.Options(batch_norm="dual"), classifier)
    assert same(norm_tensors(classifier.backbone, "natural"), brought)
    assert same(norm_tensors(classifier.backbone, "adversarial"), own)
    assert method.inference().natural_norms is None


# ----- the command line ---------------------------------------------------------------------------------------------
def test_every_protocol_ends_in_a_model_an_evaluation_and_its_numbers(pretrained: Path) -> None:
    output = pretrained / "protocols"
    found = protocols(output)
    assert list(found) == list(NAMES)
    for name, entry in found.items():
        run = json.loads((output / name / "run.json").read_text())
        evaluation = json.loads((output / name / "evaluation" / "robustness.json").read_text())
        assert run["config"]["evaluate"] == "none" and "attack_version" not in run
        assert evaluation["data"]["part"] == "test" and evaluation["data"]["split"] is True
        worst = evaluation["threats"][-1]
        assert entry["natural"]["value"] == evaluation["natural"]["value"]
        assert entry["robust"] == worst["robust"] and entry["pgd2"] == worst["pgd"]["accuracy"]
        assert 0 <= entry["robust"]["low"] <= entry["robust"]["value"] <= entry["robust"]["high"] <= 1
        assert entry["threat"] == "L-inf 4/255" and entry["upper_bound"] and entry["corruptions"] is None
        assert entry["encoder_sha256"] == run["start"] and entry["labels"] == 1 and entry["preset"] is None
        assert entry["counts"]["test"] == evaluation["data"]["pictures"] == 9 and entry["seconds"] > 0
        assert entry["recipe"] == ProtocolConfig(names=[name], epochs=2).recipe(name)
    assert len({entry["data"]["sha256"] for entry in found.values()}) == 1
    page = (output / "report.html").read_text()
    assert "<html" in page and all(name.upper() in page for name in NAMES)


def test_linear_protocols_leave_every_bit_of_the_encoder_and_full_fine_tuning_does_not(pretrained: Path) -> None:
    before = load_file(pretrained / "encoder" / "model.safetensors")
    for name in NAMES:
        after = exported(pretrained / "protocols" / name)
        assert after.keys() - before.keys() == {"fc.weight", "fc.bias"} and after["fc.weight"].abs().max() > 0
        equal = {key: torch.equal(value, after[key]) for key, value in before.items()}
        if name == "aff":
            assert not equal["conv1.weight"] and not equal["bn1.running_mean"] and not equal["layer2.0.bn2.weight"]
        else:
            assert all(equal.values())


def test_a_protocol_after_others_is_the_protocol_alone_bit_for_bit(
    pretrained: Path, fresh: Path, pictures: Path
) -> None:
    assert call("evaluate", fresh / "encoder", "--data", pictures, "--protocol", "alf", *FAST) == 0
    alone, after = fresh / "protocols", pretrained / "protocols"
    assert same(exported(alone / "alf"), exported(after / "alf"))
    assert timeless(protocols(alone)["alf"]) == timeless(protocols(after)["alf"])
    assert read_metrics(alone / "alf") == read_metrics(after / "alf")


def test_an_interrupted_comparison_goes_on_and_what_is_complete_is_skipped(
    pretrained: Path, fresh: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    command = ("evaluate", fresh, "--data", pictures, "--protocol", "slf,alf", *FAST)
    with monkeypatch.context() as patch:
        around_step(patch, 45, press_ctrl_c)  # in the middle of alf: each takes two epochs of 20 steps
        assert call(*command) == 130 and "go on with --resume" in said()
    assert list(protocols(fresh / "protocols")) == ["slf"]
    assert call(*command) == 2 and "--overwrite" in said()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "begin_epoch", lambda self: pytest.fail("a complete protocol was trained again"))
        assert call(*command[:5], "slf", *FAST, "--resume") == 0
    assert call(*command, "--resume") == 0
    assert "SLF" in (shown := said()) and "ALF" in shown and "worst case" in shown
    found, whole = protocols(fresh / "protocols"), protocols(pretrained / "protocols")
    assert list(found) == ["slf", "alf"] and all(timeless(found[name]) == timeless(whole[name]) for name in found)
    for name in found:
        assert same(exported(fresh / "protocols" / name), exported(pretrained / "protocols" / name))


def test_another_encoder_never_mixes_with_earlier_results(fresh: Path, pictures: Path, said: Any) -> None:
    command = ("evaluate", fresh, "--data", pictures, "--protocol", "slf", *FAST)
    assert call(*command) == 0
    first = protocols(fresh / "protocols")["slf"]["encoder_sha256"]
    export_folder(encoder(seed=1), fresh / "encoder", card="")
    assert call(*command, "--resume") == 2 and "another encoder" in said()
    assert call(*command, "--overwrite") == 0
    assert protocols(fresh / "protocols")["slf"]["encoder_sha256"] != first
    assert call(*command, "--overwrite", "--resume") == 2 and "contradict" in said()


def test_few_labels_a_preset_and_corruptions_leave_their_traces(fresh: Path, pictures: Path, tmp_path: Path) -> None:
    more = ("--protocol-labels", "0.3", "--protocol-preset", "dynacl-air-cifar10", "--corruptions", "gaussian_noise")
    output = tmp_path / "few"
    assert call("evaluate", fresh, "--data", pictures, "--protocol", "slf", *FAST, *more, "--output", output) == 0
    entry = protocols(output)["slf"]
    assert entry["labels"] == 0.3 and entry["counts"]["train"] == 9 and 0 <= entry["corruptions"]["value"] <= 1
    assert any("9 of 30 training pictures" in note for note in entry["notes"])
    assert any("epochs 5" in note for note in entry["notes"]) and entry["recipe"]["milestones"] == []
    split = json.loads((output / "slf" / "split.json").read_text())
    assert sorted(row["label"] for row in split["parts"]["train"]) == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--protocol", "slf,lsf"), "'lsf'"),
        (("--protocol", "slf", "--protocol-labels", "0"), "protocol.labels"),
        (("--protocol", "slf", "--protocol-labels", "1.5"), "protocol.labels"),
        (("--protocol", "slf", "--protocol-epochs", "0"), "protocol.epochs"),
        (("--protocol", "slf", "--protocol-preset", "acl-air-cifar"), "dynacl-air-cifar10: slf: epochs 5"),
        (("--protocol", "aff", "--protocol-finetune", "autolora", "--protocol-preset", "acl-cifar10"), "without"),
        (("--protocol-labels", "0.1"), "without --protocol"),
        (("--protocol", "slf", "--eps", "8"), "8/255"),
    ],
)
def test_bad_protocols_are_refused_before_any_work(
    fresh: Path, pictures: Path, said: Any, options: tuple[str, ...], complaint: str
) -> None:
    assert call("evaluate", fresh, "--data", pictures, *options) == 2 and complaint in said()
    assert not (fresh / "protocols").exists()


def test_an_encoder_or_data_that_are_not_there_are_named(
    fresh: Path, pictures: Path, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for place, complaint in (
        (tmp_path / "nowhere" / "encoder", "encoder folder not found"),
        ("run/encodr", "encoder folder not found: run/encodr"),
        (tmp_path / "empty", "holds no encoder"),
    ):
        assert call("evaluate", place, "--data", pictures, "--protocol", "slf") == 2 and complaint in said()
    assert call("evaluate", fresh, "--data", tmp_path / "none", "--protocol", "slf") == 2 and "not found" in said()
    assert not (fresh / "protocols").exists() and not (tmp_path / "runs").exists()


def test_results_lie_beside_the_encoder() -> None:
    def folder(name: Path | str) -> Path:
        return EvaluateConfig(model={"name": str(name)}, data="d", protocol={"names": ["slf"]}).folder

    assert folder("owner/name") == Path("runs/protocols")
    here = Path(__file__).parent
    assert folder(here) == here / "protocols"


def test_the_page_of_all_protocols_can_be_built_again_from_their_folder(pretrained: Path, tmp_path: Path) -> None:
    assert call("report", pretrained / "protocols", "--output", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert "SLF" in page and "ALF" in page


# ----- few labels and a teacher -------------------------------------------------------------------------------------
def test_the_recipe_for_few_labels_is_the_authors() -> None:
    protocol = ProtocolConfig(names=["semi"], labels=0.1)
    recipes = protocol.recipe("semi"), protocol.teacher()
    student, teacher = (FinetuneConfig(data=Path("data"), **recipe) for recipe in recipes)
    assert (teacher.method, teacher.epochs, teacher.milestones) == ("standard", 100, [40, 60])
    assert (student.method, student.epochs, student.milestones) == ("distill", 15, [5, 10])
    assert student.options == {"alpha": 0.5, "beta": 6.0} and student.attack.start == "uniform"
    for config in (student, teacher):
        assert (config.batch_size, config.learning_rate, config.head, config.labels) == (128, 0.1, "zeros", 0.1)
    short = ProtocolConfig(names=["semi"], labels=0.1, epochs=10)
    assert [made["milestones"] for made in (short.recipe("semi"), short.teacher())] == [[3, 7], [4, 6]]


def test_hidden_labels_are_minus_one_and_their_pictures_stay() -> None:
    other = labelled({"many": 2, "few": 2, "one": 2})
    whole = LabelledSplit(labelled({"many": 200, "few": 10, "one": 1}, 3), other, other, ("a note",), 0)
    hidden, few = hide_labels(whole, 0.1, 0), keep_labels(whole, 0.1, 0)
    shown = hidden.train.labels >= 0
    assert hidden.train.sha256 == whole.train.sha256 and torch.equal(hidden.val.labels, other.labels)
    assert torch.equal(hidden.train.labels[shown], whole.train.labels[shown])
    assert hidden.train.take(shown.nonzero().flatten().tolist()).names == few.train.names
    assert f"{len(few.train)} of 214" in hidden.notes[1] and whole.train.labels.min() == 0
    assert hide_labels(whole, 1.0, 0) is whole


def test_a_teacher_stands_in_for_missing_labels_and_learns_nothing() -> None:
    student, teacher = encoder(), encoder(1)
    for classifier in (student, teacher):
        classifier.take_classes(("a", "b", "c"))
    cls = METHODS["distill"]
    method = cls(cls.Options(alpha=0.3, beta=2.0), student).double().train()
    method.teacher = teacher.double().eval().requires_grad_(False)
    natural, attacked = torch.rand(4, 3, 8, 8).double(), torch.rand(4, 3, 8, 8).double()
    labels = torch.tensor([2, -1, 0, -1])
    before = copy.deepcopy(teacher.state_dict())
    clean, seen = method(natural, attacked)
    loss = method.loss(method.terms(clean, seen, labels))
    expected = torch.zeros(()).double()
    for row in range(4):
        told, p, q = teacher(natural)[row].float().softmax(0), clean[row].softmax(0), seen[row].softmax(0)
        soft = -(told * q.log()).sum()
        expected += 2 * (p * (p / q).log()).sum()
        expected += soft if labels[row] < 0 else 0.3 * soft - 0.7 * q[labels[row]].log()
    assert torch.allclose(loss, expected / 4, atol=1e-6)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and all(p.grad is not None for p in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not method.inference().training and not any("teacher" in name for name in method.inference().state_dict())


def test_the_attack_without_a_label_goes_by_what_the_teacher_says() -> None:
    method, natural = distiller(), torch.rand(4, 3, 8, 8)
    said = method.teacher(natural).argmax(1)
    logits = torch.randn(4, 3)
    labels = torch.tensor([(int(said[0]) + 1) % 3, -1, -1, -1])
    expected = torch.cat([labels[:1], said[1:]])
    assert torch.equal(method.attacker(natural, labels)(logits), method.attacker(natural, expected)(logits))
    assert not torch.equal(method.attacker(natural, labels)(logits), method.attacker(natural, said)(logits))


def distiller() -> Any:
    classifier = encoder()
    classifier.take_classes(("a", "b", "c"))
    cls = METHODS["distill"]
    return cls(cls.Options(), classifier).train()


def test_a_teacher_of_other_classes_is_refused(pictures: Path, tmp_path: Path) -> None:
    other = encoder()
    other.take_classes(("a", "b", "c"))
    export_folder(other, tmp_path / "teacher", card="")
    model: Any = {"name": "cifar_resnet18", "pretrained": False, "size": (8, 8),
             "arguments": {"width": 4, "depths": [1, 1]}}  # fmt: skip
    options = {"teacher": str(tmp_path / "teacher")}
    with pytest.raises(LoricaError, match="other classes"):
        finetune(configured(pictures, tmp_path / "run", model=model, method="distill", options=options))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_few_labels_teach_a_teacher_and_the_teacher_the_rest(fresh: Path, pictures: Path, said: Any) -> None:
    arguments = ("evaluate", fresh, "--data", pictures, "--protocol", "semi", "--protocol-labels", "0.3", *FAST)
    assert call(*arguments) == 0
    folder = fresh / "protocols"
    entry = protocols(folder)["semi"]
    teacher, student = (json.loads((folder / name / "run.json").read_text()) for name in ("semi-teacher", "semi"))
    assert teacher["method"] == "standard" and student["method"] == "distill"
    assert teacher["counts"]["train"] < student["counts"]["train"]
    assert "are trained on without" in " ".join(entry["notes"])
    labels = {e["label"] for e in json.loads((folder / "semi" / "split.json").read_text())["parts"]["train"]}
    assert labels == {"blue", "green", "red"}  # the file knows them all; the training did not
    for record, route in ((teacher, "natural"), (student, "adversarial")):
        began, _ = load_classifier(ModelConfig(name=str(fresh / "encoder"), route=route))
        assert record["start"] == weights_digest(began)
    before = (folder / "semi" / "run.json").read_bytes()
    assert call(*arguments, "--resume") == 0 and (folder / "semi" / "run.json").read_bytes() == before
    assert call("report", folder, "--output", folder / "page.html") == 0
    assert "distill" in (folder / "page.html").read_text()


def test_a_teacher_of_another_encoder_is_not_taken_over(fresh: Path, pictures: Path, said: Any) -> None:
    arguments = ("evaluate", fresh, "--data", pictures, "--protocol", "semi", "--protocol-labels", "0.3", *FAST)
    assert call(*arguments) == 0
    shutil.rmtree(fresh / "protocols" / "semi")  # as if it had been stopped after the teacher
    (fresh / "protocols" / "protocols.json").unlink()
    export_folder(encoder(seed=1), fresh / "encoder", card="")
    assert call(*arguments, "--resume") == 2 and "another encoder" in said()


def test_semi_without_few_labels_is_refused(fresh: Path, pictures: Path, said: Any) -> None:
    assert call("evaluate", fresh, "--data", pictures, "--protocol", "semi", *FAST) == 2
    assert "--protocol-labels 0.1" in said()
