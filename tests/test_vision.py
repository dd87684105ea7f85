"""Classifiers: architectures against independent ones, weights files of every kind, and what is refused."""

import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lorica.config import load
from lorica.errors import LoricaError
from lorica.vision import (
    Classifier,
    ModelConfig,
    load_classifier,
    read_weights,
    require_logits,
    returns_probabilities,
)
from lorica.vision.cifar_resnet import BasicBlock, Bottleneck, CifarResNet, PaddedShortcut

# Public data beside the repository, for those who have it.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESNET20 = DATA / "weights" / "cifar10_resnet" / "resnet20-12fca82f.th"
TINY_VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 12, "num_heads": 3}


def network(name="cifar_resnet18", classes=None, **options) -> Classifier:
    if name == "cifar_resnet18":
        options = {"arguments": {"width": 2}} | options
    return load_classifier(ModelConfig(name=name, pretrained=False, **options), classes)[0]


def refusal(config, classes=None) -> LoricaError:
    with pytest.raises(LoricaError) as caught:
        load_classifier(config, classes)
    assert caught.value.remedy
    return caught.value


def randomised(model: nn.Module) -> nn.Module:
    """With batch statistics that matter, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
    return model.eval()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def pictures(count=4, size=(32, 32)) -> Tensor:
    return torch.rand((count, 3, *size), generator=torch.Generator().manual_seed(1))


# ----- architectures ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar_resnet20", 269_722),  # as published with option A
        ("cifar_resnet32", 464_154),
        ("cifar_resnet44", 658_586),
        ("cifar_resnet56", 853_018),
        ("cifar_resnet18", 11_173_962),
        ("cifar_resnet34", 21_282_122),
        ("cifar_resnet50", 23_520_842),
        ("cifar_wrn28_10", 36_479_194),
        ("cifar_wrn34_10", 46_160_474),
    ],
)
def test_networks_for_small_pictures_have_the_published_number_of_parameters(name, count):
    with torch.device("meta"):
        assert parameters(timm.create_model(name)) == count


@pytest.mark.parametrize(
    ("name", "block", "depths"),
    [
        ("cifar_resnet18", timm.models.resnet.BasicBlock, (2, 2, 2, 2)),
        ("cifar_resnet50", timm.models.resnet.Bottleneck, (3, 4, 6, 3)),
    ],
)
@torch.no_grad()
def test_with_the_same_weights_a_network_computes_what_timm_s_does_without_its_stem(name, block, depths):
    ours = randomised(timm.create_model(name, num_classes=7))
    theirs = timm.models.resnet.ResNet(block, depths, num_classes=7).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = pictures(2, (16, 16))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_wide_network_is_the_one_of_its_paper():
    model = randomised(timm.create_model("cifar_wrn16_4", width=2, num_classes=5))
    weights = model.state_dict()

    def norm(x, name):
        mean, var, scale, shift = (
            weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift)

    x = F.conv2d(pictures(), weights["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            active = norm(x, f"{name}.bn1").relu()
            shortcut = F.conv2d(active, weights[f"{name}.downsample.weight"], stride=stride) if block == 0 else x
            inner = F.conv2d(active, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = shortcut + F.conv2d(norm(inner, f"{name}.bn2").relu(), weights[f"{name}.conv2.weight"], padding=1)
    logits = norm(x, "norm").relu().mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    assert x.shape == (4, 32, 8, 8)
    torch.testing.assert_close(model(pictures()), logits, rtol=1e-4, atol=1e-5)


def test_a_padded_shortcut_takes_every_other_pixel_and_fills_new_channels_with_zeros():
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    y = PaddedShortcut(2, 4)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[0, 1], torch.tensor([[0.0, 2], [8, 10]])) and torch.equal(y[0, 2], y[0, 1] + 16)
    assert not y[0, 0].any() and not y[0, 3].any()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_each_stage_but_the_first_halves_the_resolution(block):
    model = CifarResNet(block, (1, 1, 1), width=2, num_classes=0)
    assert model.forward_features(pictures()).shape == (4, 8 * block.expansion, 8, 8)
    assert model(pictures()).shape == (4, model.num_features)


@pytest.mark.skipif(not RESNET20.is_file(), reason="the public weights are not at hand")
@torch.no_grad()
def test_the_published_resnet20_reaches_its_published_accuracy():
    sheet = Image.open(DATA / "cifar10" / "test_00.webp").convert("RGB")
    tiles = np.asarray(sheet).reshape(50, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)[:500]
    labels = torch.from_numpy(np.load(DATA / "cifar10" / "labels.npz")["test_labels"][:500].astype(np.int64))
    classifier, notes = load_classifier(
        ModelConfig(name="cifar_resnet20", checkpoint=RESNET20, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    )
    right = classifier(torch.from_numpy(tiles.copy()).float() / 255).argmax(1) == labels
    assert 0.88 < right.float().mean() < 0.96  # published: 0.917
    assert notes == []


# ----- the wrapper -----------------------------------------------------------------------------------------------
NETWORKS = pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", TINY_VIT),
        ("deit_tiny_distilled_patch16_224", TINY_VIT),  # two heads
        ("cifar_resnet18", {"width": 2}),
    ],
)


@NETWORKS
@torch.no_grad()
def test_a_timm_network_is_wrapped_and_gets_a_head_for_the_classes(name, arguments):
    classifier, notes = load_classifier(ModelConfig(name=name, pretrained=False, arguments=arguments), ["a", "b", "c"])
    assert classifier(pictures(2)).shape == (2, 3)
    assert classifier.classes == ("a", "b", "c") and not classifier.training
    assert len(notes) == 2 and "random weights" in notes[0] and "3 classes" in notes[1]


@NETWORKS
def test_head_and_features_share_all_parameters_between_them(name, arguments):
    classifier = network(name, ["a", "b"], arguments=arguments)
    head, features = classifier.head_names(), [key for key, _ in classifier.feature_parameters()]
    assert len(features) == len(set(features)) and not head & set(features)
    assert head | set(features) == {key for key, _ in classifier.named_parameters()}
    shapes = {len(dict(classifier.named_parameters())[key]) for key in head}
    assert shapes == {2}  # weights and biases of as many rows as there are classes
    assert {id(p) for p in classifier.head.parameters()} == {id(dict(classifier.named_parameters())[k]) for k in head}


@torch.no_grad()
def test_normalising_inside_equals_normalising_outside():
    mean, std = (0.1, 0.5, 0.9), (0.2, 1.0, 3.0)
    classifier, x = network(mean=mean, std=std), pictures()
    outside = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(classifier(x), classifier.backbone(outside))


def test_normalisation_is_no_weight():
    assert not {"mean", "std"} & network().state_dict().keys()


def test_a_network_states_how_it_can_be_built_again():
    built = network("vit_tiny_patch16_224", arguments=TINY_VIT | {"drop_rate": 0.1}).architecture
    assert built.name == "vit_tiny_patch16_224" and built.size == (32, 32)
    assert (
        built.arguments["depth"] == 1 and built.arguments["drop_rate"] == 0.1 and "num_classes" not in built.arguments
    )
    again = timm.create_model(built.name, num_classes=1000, **built.arguments)
    assert parameters(again) == parameters(network("vit_tiny_patch16_224", arguments=TINY_VIT))
    assert network().architecture.size == (32, 32) and network("resnet18").architecture.size == (224, 224)


@torch.no_grad()
def test_a_transformer_is_resized_to_the_pictures_and_others_take_any():
    assert network(size=(48, 16))(pictures(2, (48, 16))).shape == (2, 10)
    classifier = network("vit_tiny_patch16_224", arguments=TINY_VIT, size=(48, 16))
    assert classifier(pictures(2, (48, 16))).shape == (2, 1000) and classifier.architecture.size == (48, 16)
    error = refusal(ModelConfig(name="cait_xxs24_224", pretrained=False, size=(32, 32), arguments={"depth": 1}))
    assert "(32, 32)" in error.problem


def test_the_pooling_is_kept_when_the_head_is_made_anew():
    for name in ("cifar_resnet18", "resnet10t"):
        options = {"width": 2, "global_pool": "max"} if name == "cifar_resnet18" else {"global_pool": "max"}
        assert network(name, ["a"], arguments=options).backbone.global_pool.pool_type == "max"


def test_only_a_head_of_other_classes_is_made_anew():
    classifier = network(classes=["a", "b"])
    head = classifier.head
    assert classifier.take_classes(["a", "b"]) is False and classifier.head is head
    assert classifier.take_classes(["b", "a"]) is True and classifier.head is not head
    assert classifier.classes == ("b", "a")


# ----- logits ----------------------------------------------------------------------------------------------------
def test_a_softmax_at_the_end_is_refused_and_logits_are_not():
    classifier, x = network(classes=["a", "b", "c"]), pictures()
    require_logits(classifier, x)
    with pytest.raises(LoricaError, match="probabilities instead of logits"):
        require_logits(nn.Sequential(classifier, nn.Softmax(dim=1)), x)


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[0.2, 0.8], [1.0, 0.1]], False),
        ([[-0.2, 1.2]], False),
        ([[0.0, 0.0]], False),
        ([[-0.2, -1.6]], False),  # log-softmax is fine: attacks see the same gradients
    ],
)
def test_probabilities_are_known_by_their_rows(rows, verdict):
    assert returns_probabilities(torch.tensor(rows)) is verdict


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda x: x.mean((2, 3)) / 0, "not finite"),
        (lambda x: x, "returns (4, 3, 32, 32) for 4 pictures"),
        (lambda x: x.mean((2, 3))[:2], "returns (2, 3) for 4 pictures"),
    ],
)
def test_outputs_that_no_attack_can_use_are_refused(output, said):
    with pytest.raises(LoricaError) as caught:
        require_logits(output, pictures())
    assert said in caught.value.problem


# ----- weights files ---------------------------------------------------------------------------------------------
def state() -> dict[str, Tensor]:
    own = network().backbone.state_dict()
    return {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in own.items()}


def prefixed(weights, prefix):
    return {prefix + key: value for key, value in weights.items()}


def renamed(weights, *pairs):
    for ours, theirs in pairs:
        weights = {key.replace(ours, theirs): value for key, value in weights.items()}
    return weights


LAYOUTS = {
    "a state dict": lambda w: w,
    "an ordered one": OrderedDict,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3, "best": 0.9},
    "state_dict of module.": lambda w: {"state_dict": prefixed(w, "module.")},
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer": {"lr": 0.1}},
    "net of module.": lambda w: {"net": prefixed(w, "module."), "acc": 91.7},
    "compiled": lambda w: prefixed(w, "_orig_mod."),
    "nested": lambda w: {"model": {"state_dict": prefixed(w, "module._orig_mod.model.")}, "args": {"x": [1]}},
    "a Classifier's": lambda w: prefixed(w, "backbone."),
    "no batch counts": lambda w: {key: value for key, value in w.items() if "num_batches" not in key},
    "other names": lambda w: renamed(w, ("fc.", "linear."), (".downsample.", ".shortcut.")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_weights_are_found_inside_whatever_wraps_them(layout, legacy, tmp_path):
    weights, file = state(), tmp_path / "w.pth"
    torch.save(LAYOUTS[layout](weights), file, _use_new_zipfile_serialization=not legacy)
    classifier = network(checkpoint=file)
    for key, value in classifier.backbone.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_safetensors_are_read(tmp_path):
    weights = state()
    save_file(prefixed(weights, "module."), tmp_path / "w.safetensors")
    classifier = network(checkpoint=tmp_path / "w.safetensors")
    assert all(torch.equal(value, weights[key]) for key, value in classifier.backbone.state_dict().items())


def test_the_head_has_as_many_classes_as_the_checkpoint_until_the_data_say_otherwise(tmp_path):
    weights = state() | {"fc.weight": torch.randn(4, 16), "fc.bias": torch.randn(4)}
    save_file(weights, tmp_path / "w.safetensors")
    config = ModelConfig(name="cifar_resnet18", checkpoint=tmp_path / "w.safetensors", arguments={"width": 2})
    config = config.model_copy(update={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    classifier, notes = load_classifier(config)
    assert torch.equal(classifier.backbone.fc.weight, weights["fc.weight"]) and notes == []
    classifier, notes = load_classifier(config, ["a", "b"])
    assert classifier.backbone.fc.weight.shape == (2, 16) and "head is new" in notes[0]
    assert torch.equal(classifier.backbone.conv1.weight, weights["conv1.weight"])


def test_a_normalisation_that_neither_the_user_nor_the_checkpoint_states_is_said(tmp_path):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    def notes(**options) -> list[str]:
        config = ModelConfig(
            name="cifar_resnet18", checkpoint=tmp_path / "w.safetensors", arguments={"width": 2}, **options
        )
        return load_classifier(config)[1]

    save_file(state(), tmp_path / "w.safetensors")
    own = network()
    (note,) = notes()
    for name in ("mean", "std"):
        values = ", ".join(f"{value:.4g}" for value in getattr(own, name).flatten().tolist())
        assert f"{name} {values}" in note and f"--model-{name}" in note
    (note,) = notes(mean=mean)
    assert "--model-std" in note and "--model-mean" not in note
    assert notes(mean=mean, std=std) == []

    stated = {"normalize.mean": torch.tensor(mean), "normalize.std": torch.tensor(std)}
    save_file(state() | stated, tmp_path / "w.safetensors")
    assert notes() == []


class Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "wrapped"])
def test_a_pickle_that_holds_code_is_refused_and_does_not_run(kind, tmp_path):
    mark, file = tmp_path / "executed", tmp_path / "w.pt"
    bomb = Bomb(mark)
    if kind == "pickle":
        file.write_bytes(pickle.dumps(bomb, protocol=2))
    else:
        content = {"state_dict": state(), "extra": bomb} if kind == "wrapped" else bomb
        torch.save(content, file, _use_new_zipfile_serialization=kind != "legacy")
    error = refusal(ModelConfig(name="cifar_resnet18", checkpoint=file, arguments={"width": 2}))
    assert "refused" in error.remedy and "safetensors" in error.remedy
    assert not mark.exists()
    torch.load(file, weights_only=False) if kind != "pickle" else pickle.loads(file.read_bytes())
    assert mark.exists()  # the bomb is a real one


def circular() -> bytes:
    inner = {}
    inner["model"] = inner
    content = io.BytesIO()
    torch.save(inner, content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.safetensors", b"not safetensors"),
        ("w.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
        ("w.pt", b""),
        ("w.pt", b"PK\x03\x04 cut off"),
        ("w.pt", circular()),
        ("w.pt", b"\x80\x02}q\x00."),  # an empty dict
    ],
)
def test_a_damaged_file_is_refused_by_name(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert name in refusal(ModelConfig(name="cifar_resnet18", checkpoint=tmp_path / name)).problem


def test_a_file_that_holds_no_state_dict_is_refused(tmp_path):
    for content in ([1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, torch.zeros(3)):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(LoricaError, match=r"w\.pt holds no state dict"):
            read_weights(tmp_path / "w.pt")
    with pytest.raises(LoricaError, match="not found"):
        read_weights(tmp_path / "absent.pt")


def test_keys_that_are_missing_left_over_or_of_another_shape_are_listed(tmp_path):
    weights = state()
    del weights["layer1.0.bn1.running_var"]
    weights["conv1.weight"] = torch.zeros(5, 3, 3, 3)
    weights["projector.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "w.safetensors")
    said = refusal(ModelConfig(name="cifar_resnet18", checkpoint=tmp_path / "w.safetensors", arguments={"width": 2}))
    assert "w.safetensors does not fit" in said.problem
    for part in ("1 missing", "layer1.0.bn1.running_var", "1 not in this network", "projector.weight", "1 of another",
                 "conv1.weight is [5, 3, 3, 3], the network has [2, 3, 3, 3]"):  # fmt: skip
        assert part in said.problem


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["fc.bias", "bn1.running_mean"])
def test_numbers_that_are_not_finite_are_refused(key, value, tmp_path):
    weights = state()
    weights[key][0] = value
    save_file(weights, tmp_path / "w.safetensors")
    config = ModelConfig(name="cifar_resnet18", checkpoint=tmp_path / "w.safetensors", arguments={"width": 2})
    problem = refusal(config).problem
    assert "not finite" in problem and key in problem


# ----- folders ---------------------------------------------------------------------------------------------------
def folder(place, **changes) -> Path:
    """As timm's own `save_for_hf` leaves it."""
    model = timm.create_model("cifar_resnet18", width=2, num_classes=3)
    timm.models.save_for_hf(
        model, place, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True,
        data_config={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 24, 16)},
    )  # fmt: skip
    described = json.loads((place / "config.json").read_text())
    described["pretrained_cfg"] |= changes.pop("pretrained_cfg", {})
    (place / "config.json").write_text(json.dumps(described | changes))
    return place


@torch.no_grad()
def test_a_folder_that_timm_saved_is_loaded_with_its_head_classes_and_normalisation(tmp_path):
    classifier, notes = load_classifier(ModelConfig(name=str(folder(tmp_path))))
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = pictures(2, (24, 16))
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    torch.testing.assert_close(classifier(x), plain((x - mean) / std))
    assert classifier.classes == ("a", "b", "c") and classifier.architecture.size == (24, 16) and notes == []


def test_a_folder_s_head_is_kept_for_the_same_classes_and_made_anew_for_others(tmp_path):
    folder(tmp_path)
    weight = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).fc.weight
    same, notes = load_classifier(ModelConfig(name=str(tmp_path)), ["a", "b", "c"])
    assert torch.equal(same.backbone.fc.weight, weight) and notes == []
    other, notes = load_classifier(ModelConfig(name=str(tmp_path)), ["a", "b", "d"])
    assert not torch.equal(other.backbone.fc.weight, weight) and "3 classes of the data" in notes[0]
    assert other.classes == ("a", "b", "d")


def test_what_the_user_says_goes_before_what_the_folder_says(tmp_path):
    config = ModelConfig(name=str(folder(tmp_path)), mean=(0, 0, 0), std=(1, 1, 1), size=(40, 40))
    classifier, _ = load_classifier(config)
    assert classifier.mean.flatten().tolist() == [0, 0, 0] and classifier.std.flatten().tolist() == [1, 1, 1]
    assert classifier.architecture.size == (40, 40)


def test_names_of_another_number_than_the_classes_are_not_believed(tmp_path):
    classifier, _ = load_classifier(ModelConfig(name=str(folder(tmp_path, label_names=["a", "b"]))))
    assert classifier.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": None},
        {"architecture": "no_such_network"},
        {"architecture": "hf-hub:timm/resnet18.a1_in1k"},
        {"architecture": "../../x"},
        {"model_args": ["width"]},
        {"model_args": {"width": 2, "checkpoint_path": "/etc/passwd"}},
        {"model_args": {"width": 2, "pretrained": True}},
        {"model_args": {"width": 2, "pretrained_cfg": {"file": "/etc/passwd"}}},
        {"model_args": {"width": 2, "features_only": True}},
        {"pretrained_cfg": {"unknown": 1}},
        {"pretrained_cfg": {"mean": [0.5]}},
        {"pretrained_cfg": {"mean": "abc"}},
        {"pretrained_cfg": {"std": [0, 1, 1]}},
        {"pretrained_cfg": {"input_size": [3, -1, 0]}},
        {"pretrained_cfg": {"input_size": "large"}},
        {"pretrained_cfg": {"input_size": 3}},
        {"num_classes": "many"},
    ],
    ids=str,
)
def test_a_hostile_description_is_refused(changes, tmp_path):
    refusal(ModelConfig(name=str(folder(tmp_path, **changes))))


@pytest.mark.parametrize("content", ["", "[]", '"x"', "{" * 10_000])
def test_a_description_that_is_none_is_refused(content, tmp_path):
    folder(tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in refusal(ModelConfig(name=str(tmp_path))).problem


def test_a_folder_without_weights_is_refused_even_if_a_pickle_lies_there(tmp_path):
    folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state(), tmp_path / "pytorch_model.bin")
    assert "model.safetensors" in refusal(ModelConfig(name=str(tmp_path))).problem


# ----- names -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("resnt18", "resnet18"),
        ("cifar_resnet19", "cifar_resnet18"),
        ("vit_tiny_patch16", "vit_tiny_patch16_224"),
    ],
)
def test_an_unknown_architecture_is_refused_with_near_ones(wrong, near):
    error = refusal(ModelConfig(name=wrong, pretrained=False))
    assert wrong in error.problem and near in error.remedy


def test_arguments_that_the_architecture_does_not_take_are_refused():
    error = refusal(ModelConfig(name="cifar_resnet18", pretrained=False, arguments={"widht": 2}))
    assert "widht" in error.problem


def test_an_architecture_without_published_weights_says_how_to_go_on():
    error = refusal(ModelConfig(name="cifar_resnet18"))
    assert "--no-model-pretrained" in error.remedy


def test_a_weights_file_is_no_architecture(tmp_path):
    assert "--model-checkpoint" in refusal(ModelConfig(name=str(tmp_path / "w.pth"))).remedy


@pytest.mark.parametrize("name", ["owner/no-such-model", "hf-hub:owner/no-such-model", "resnet18", "./absent/folder"])
def test_without_a_network_a_download_is_refused_in_words(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    error = refusal(ModelConfig(name=name))
    assert name in error.problem and "\n" not in error.problem and len(error.problem) < 400


@torch.no_grad()
def test_a_model_of_the_hub_knows_its_own_arguments_and_classes(monkeypatch, tmp_path):
    place = folder(tmp_path)
    monkeypatch.setattr(
        timm.models._factory,
        "load_model_config_from_hf",
        lambda name, **_: timm.models._hub.load_model_config_from_path(place),
    )
    classifier, notes = load_classifier(ModelConfig(name="someone/small"), ["a", "b", "c"])
    assert classifier.architecture.name == "cifar_resnet18" and classifier.architecture.arguments["width"] == 2
    assert notes == []
    local, _ = load_classifier(ModelConfig(name=str(place)))
    assert torch.equal(classifier(pictures()), local(pictures()))


@pytest.mark.parametrize(
    "options", [{"size": (0, 32)}, {"std": (0.0, 1.0, 1.0)}, {"mean": (0.5, 0.5)}, {"mean": (float("nan"),) * 3}]
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(LoricaError, match=next(iter(options))):
        load(ModelConfig, options=options)


# ----- without timm ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("missing", ["timm", "lorica.vision.cifar_resnet"])
def test_a_missing_library_is_named_with_what_installs_it(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    error = refusal(ModelConfig(name="cifar_resnet18", pretrained=False))
    assert missing in error.problem and "pip install 'lorica[vision]'" in error.remedy


def test_the_privacy_side_does_not_import_timm():
    rooms = "adapt, audit, cli, demo, finetune, generate, report, shadows, vision"
    code = f"import sys; from lorica import {rooms}; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("verb", ["finetune", "evaluate", "pretrain"])
def test_the_robust_side_does_not_import_diffusers(verb: str) -> None:
    code = f"""if True:
        import sys
        from lorica import cli  # alone: each verb finds its own way in
        sys.argv = ["lorica", "{verb}", "--help"]
        try:
            cli.main()
        except SystemExit as end:
            assert end.code == 0
        assert not {{"diffusers", "transformers", "peft"}} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
