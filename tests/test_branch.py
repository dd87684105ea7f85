"""Which layers the LoRA branch covers, with how many parameters, and what it computes on other than convolutions."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lorica.errors import LoricaError
from lorica.finetune import LoraBranch
from lorica.finetune.branch import parameters_of
from lorica.vision import Classifier, ModelConfig, load_classifier


def network(name: str, size: tuple[int, int] = (32, 32), **arguments: Any) -> Classifier:
    config = ModelConfig(name=name, pretrained=False, arguments=arguments, size=size)
    return load_classifier(config, ("a", "b", "c"))[0]


def covered(classifier: Classifier, coverage: Any = "all") -> set[str]:
    """Names within the backbone."""
    return {name.removeprefix("backbone.") for name in LoraBranch(classifier, coverage=coverage).shapes}


def blocks(*stages: int, first: tuple[int, ...] = (0, 1)) -> set[str]:
    return {f"layer{i}.{j}.conv{k}" for i in stages for j in first for k in (1, 2)}


def test_of_a_residual_network_all_block_and_shortcut_convolutions_are_covered() -> None:
    classifier = network("cifar_resnet18", width=4)
    shortcuts = {f"layer{i}.0.downsample.0" for i in (2, 3, 4)}
    found = covered(classifier)
    assert found == blocks(1, 2, 3, 4) | shortcuts and len(found) == 19
    last = covered(classifier, "last-block")
    assert last == blocks(1, 2, 3, 4, first=(1,)) and len(last) == 8


def test_a_shortcut_that_is_itself_a_convolution_is_covered_and_is_no_last_block() -> None:
    classifier = network("cifar_wrn16_4", depths=(1, 2), width=4, widen=1)
    expected = {f"layer{i}.{j}.conv{k}" for i, j in ((1, 0), (2, 0), (2, 1)) for k in (1, 2)}
    assert covered(classifier) == expected | {"layer2.0.downsample"}
    assert covered(classifier, "last-block") == {f"layer{i}.{j}.conv{k}" for i, j in ((1, 0), (2, 1)) for k in (1, 2)}


@pytest.mark.parametrize(
    ("name", "layers", "whole", "last_layers", "last"),
    [("resnet18", 19, 531_456, 8, 276_480), ("resnet50", 52, 875_520, 12, 215_040)],
)
def test_the_branch_of_imagenet_networks_has_the_sizes_known_of_rank_8(
    name: str, layers: int, whole: int, last_layers: int, last: int
) -> None:
    """Counted on the authors' networks, whose code for high resolutions reaches the last blocks only."""
    classifier = network(name)
    for coverage, count, parameters in (("all", layers, whole), ("last-block", last_layers, last)):
        branch = LoraBranch(classifier, rank=8, coverage=coverage)
        assert (len(branch.shapes), parameters_of(branch)) == (count, parameters)


def test_the_matrices_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    branch = LoraBranch(network("cifar_resnet18", width=16), rank=4)
    for name, (outputs, inputs, k, _) in branch.shapes.items():
        key = name.replace(".", "/")
        assert branch.down[key].shape == (4 * k, inputs * k) and branch.up[key].shape == (outputs * k, 4 * k)
        assert not branch.up[key].any()
    drawn = torch.cat([down.flatten() for down in branch.down.values()]).detach()
    assert drawn.mean().abs() < 4 / len(drawn) ** 0.5 and (drawn.std() - 1).abs() < 4 / (2 * len(drawn)) ** 0.5


CONVNEXT = {"depths": (1, 1, 1, 2), "dims": (4, 4, 4, 8)}


def test_an_adapted_weight_has_gradient_in_the_matrices_alone() -> None:
    classifier = network("cifar_resnet18", width=4, depths=[1])
    branch = LoraBranch(classifier, rank=2)
    name = next(iter(branch.shapes))
    own = classifier.get_parameter(f"{name}.weight")
    assert torch.equal(branch.weight(name, own), own)
    branch.weight(name, own).sum().backward()
    key = name.replace(".", "/")
    assert own.grad is None and branch.down[key].grad is not None and branch.up[key].grad.abs().sum() > 0


VIT = {"embed_dim": 12, "depth": 2, "num_heads": 3, "patch_size": 8}
LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def test_of_a_transformer_attention_and_mlp_are_covered() -> None:
    classifier = network("vit_tiny_patch16_224", **VIT)
    assert covered(classifier) == {f"blocks.{i}.{name}" for i in (0, 1) for name in LINEAR}
    assert covered(classifier, "last-block") == {f"blocks.1.{name}" for name in LINEAR}


def test_both_heads_of_a_distilled_transformer_are_left_out() -> None:
    classifier = network("deit_tiny_distilled_patch16_224", **VIT)
    assert covered(classifier) == {f"blocks.{i}.{name}" for i in (0, 1) for name in LINEAR}


def test_of_a_convnext_depthwise_convolutions_are_left_out() -> None:
    classifier = network("convnext_atto", **CONVNEXT)
    places = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1)]
    mlp = {f"stages.{i}.blocks.{j}.mlp.fc{k}" for i, j in places for k in (1, 2)}
    assert covered(classifier) == mlp | {f"stages.{i}.downsample.1" for i in (1, 2, 3)}
    assert covered(classifier, "last-block") == {name for name in mlp if "stages.3.blocks.0" not in name}


def test_the_last_block_of_each_stage_is_found_where_stages_are_called_layers_too() -> None:
    arguments = {"depths": (1, 2), "embed_dim": 8, "num_heads": (1, 1), "window_size": 4}
    classifier = network("swin_tiny_patch4_window7_224", **arguments)
    last = {f"layers.{i}.blocks.{j}.{name}" for i, j in ((0, 0), (1, 1)) for name in LINEAR}
    assert covered(classifier, "last-block") == last
    assert covered(classifier) == last | {f"layers.1.blocks.0.{name}" for name in LINEAR} | {
        "layers.1.downsample.reduction"
    }


def test_the_last_block_of_each_stage_is_found_where_blocks_have_no_name() -> None:
    classifier = network("mobilenetv3_small_050")
    assert {name.rpartition(".")[0] for name in covered(classifier, "last-block")} >= {"blocks.2.2", "blocks.4.2"}
    assert not any(name.startswith("blocks.2.1") for name in covered(classifier, "last-block"))


def test_only_the_first_convolution_is_the_stem_of_a_network_in_one_piece() -> None:
    classifier = network("densenet121", growth_rate=4, block_config=(1, 1))
    dense = {f"features.denseblock{i}.denselayer1.conv{k}" for i in (1, 2) for k in (1, 2)}
    assert covered(classifier) == dense | {"features.transition1.conv"}


def test_a_network_without_stages_has_no_last_blocks() -> None:
    classifier = network("densenet121", growth_rate=4, block_config=(1, 1))
    with pytest.raises(LoricaError, match=r"densenet121 .*last-block") as raised:
        LoraBranch(classifier, coverage="last-block")
    assert "branch_coverage=all" in raised.value.remedy


@pytest.mark.parametrize(("name", "arguments"), [("vit_tiny_patch16_224", VIT), ("convnext_atto", CONVNEXT)])
def test_a_linear_layer_is_adapted_like_a_convolution_of_one_pixel(name: str, arguments: dict[str, Any]) -> None:
    classifier = network(name, **arguments).double().eval()
    branch = LoraBranch(classifier, rank=3).double()
    naive = copy.deepcopy(classifier)
    for layer, shape in branch.shapes.items():
        key = layer.replace(".", "/")
        nn.init.normal_(branch.up[key])
        update = branch.up[key] @ branch.down[key] / 3
        naive.get_submodule(layer).weight.data += update.reshape(shape).detach()
    pixels = torch.rand(2, 3, 32, 32).double()
    assert torch.allclose(branch(classifier, pixels), naive(pixels))
    assert not torch.allclose(naive(pixels), classifier(pixels))
    branch(classifier, pixels).square().sum().backward()
    head = classifier.head_names()
    assert all((p.grad is not None) == (n in head) for n, p in classifier.named_parameters())
    assert all(p.grad is not None and p.grad.any() for p in branch.parameters())
