"""Folded batch norms: the same function of the pixels, found where and only where that is so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lorica.robustness.folding import Folded, Quick, quick
from lorica.robustness.pgd import crafting
from lorica.vision import ModelConfig, load_classifier
from lorica.vision.batch_norm import on_route, split_routes


def lively(model: nn.Module) -> nn.Module:
    """Batch norms with statistics and scales as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5),
            ):  # fmt: skip
                if tensor is not None:
                    tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model


def network(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return lively(load_classifier(ModelConfig(name=name, pretrained=False, arguments=arguments))[0])


def pictures(count: int = 2, side: int = 32) -> Tensor:
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(2))


def gradient(model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    pixels = pixels.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(model(pixels).square().sum(), pixels)
    return found


SMALL = {
    "cifar_resnet18": ({"width": 4}, 20),
    "cifar_resnet50": ({"width": 4}, 53),
    "cifar_wrn16_4": ({"width": 4, "widen": 1}, 6),  # of a block, the second norm; the first one has a sum before it
    "resnet10t": ({}, None),  # stem of several layers, pooling in shortcuts
    "resnetv2_18d": ({"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_chs": 8}, None),
    "efficientnet_lite0": ({}, None),
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 0),
}


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_pixel_gradients_are_those_of_the_model(name: str) -> None:
    arguments, pairs = SMALL[name]
    model, x = network(name, **arguments), pictures()
    with crafting(model):
        folded = Folded(model, x[:1])
        assert torch.allclose(folded(x), model(x), rtol=1e-5, atol=1e-5)
    assert len(folded.pairs) == pairs if pairs is not None else folded.pairs
    model, x = model.double(), x.double()  # rounding must not switch a ReLU
    with crafting(model):
        folded = Folded(model, x[:1])
        torch.testing.assert_close(gradient(folded, x), gradient(model, x), rtol=1e-8, atol=1e-12)


def test_a_convolution_with_bias_and_a_norm_without_scales_are_folded_too() -> None:
    torch.manual_seed(0)
    model, x = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))).eval(), pictures()
    folded = Folded(model, x)
    assert len(folded.pairs) == 1
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_refresh_takes_over_new_weights_and_statistics() -> None:
    model, x = network("cifar_resnet18", width=4).double(), pictures().double()
    folded = Folded(model, x[:1])
    model.train()
    model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()
    model.eval()
    assert not torch.allclose(folded(x), model(x))
    folded.refresh()
    torch.testing.assert_close(folded(x), model(x))


def test_the_model_is_left_as_it_was() -> None:
    model, x = network("cifar_resnet18", width=4).train(), pictures()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules, parameters = list(model.modules()), list(model.parameters())
    folded = Folded(model, x[:1])  # of a model in training, too
    with crafting(model):
        gradient(folded, x)
        assert not any(p.requires_grad for p in folded.parameters())
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in parameters)
    assert all(module.training and not module._forward_hooks for module in modules)


def test_a_model_without_batch_norms_shares_all_its_weights() -> None:
    model = network("vit_tiny_patch16_224", img_size=32, depth=1)
    folded = Folded(model, pictures(1))
    assert [id(p) for p in folded.parameters()] == [id(p) for p in model.parameters()]


def test_a_failing_model_leaves_no_hooks_behind() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def __deepcopy__(self, memo: object) -> "Fails":
            return self

        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError

    model = Fails()
    with pytest.raises(ArithmeticError):
        Folded(model, pictures())
    assert not model.conv._forward_hooks


def test_the_route_in_use_is_folded() -> None:
    model, x = network("cifar_resnet18", width=4), pictures()
    split_routes(model, ("a", "b"))
    lively(model)  # the routes differ now
    with on_route(model, "b"):
        folded, wanted = Folded(model, x[:1]), model(x)
    assert len(folded.pairs) == 20
    torch.testing.assert_close(folded(x), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(x), wanted)


# ----- what looks like a pair and is none ------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, forward: Callable[["Block", Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3, **options)
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def used_twice(block: Block, x: Tensor) -> Tensor:
    x = block.conv(x)
    return block.norm(x) + x


def used_by_two(block: Block, x: Tensor) -> Tensor:
    x = block.conv(x)
    return block.norm(x) * block.other(x)


def changed_in_place(block: Block, x: Tensor) -> Tensor:
    return block.norm(block.conv(x).mul_(2))


def called_twice(block: Block, x: Tensor) -> Tensor:
    return block.norm(block.conv(block.conv(x)))


def norm_called_twice(block: Block, x: Tensor) -> Tensor:
    return block.norm(block.norm(block.conv(x)))


def something_between(block: Block, x: Tensor) -> Tensor:
    return block.norm(block.conv(x).relu())


@pytest.mark.parametrize(
    "way", [used_twice, used_by_two, changed_in_place, called_twice, norm_called_twice, something_between]
)
def test_nothing_is_folded_where_the_norm_is_not_the_only_user(way: Callable[[Block, Tensor], Tensor]) -> None:
    model, x = lively(Block(way)).eval(), pictures()
    folded = Folded(model, x)
    assert not folded.pairs
    assert torch.equal(folded(x), model(x))


def plain(block: Block, x: Tensor) -> Tensor:
    return block.norm(block.conv(x))


def test_a_norm_of_two_names_is_folded_under_both() -> None:
    model = lively(Block(lambda block, x: block.alias(block.conv(x))))
    model.alias = model.norm
    model, x = model.eval(), pictures()
    folded = Folded(model, x)
    assert len(folded.pairs) == 1
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_norm_that_uses_the_batch_is_not_folded() -> None:
    model, x = Block(plain, track_running_stats=False).eval(), pictures()
    assert not Folded(model, x).pairs


def test_a_convolution_whose_weights_are_computed_is_not_folded() -> None:
    model, x = lively(Block(plain)), pictures()
    parametrizations.weight_norm(model.conv)
    model.eval()
    folded = Folded(model, x)
    assert not folded.pairs
    assert torch.equal(folded(x), model(x))


@pytest.mark.parametrize("name", SMALL)
def test_attacks_may_go_through_the_quick_copy_instead_of_the_model(name: str) -> None:
    model, x = network(name, **SMALL[name][0]).eval(), pictures()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with crafting(model):
        copied = quick(model, x)
        assert isinstance(copied, Quick)
        torch.testing.assert_close(copied(x), model(x), rtol=1e-4, atol=1e-5)
        found, expected = gradient(copied, x), gradient(model, x)
        assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_that_no_copy_agrees_with_is_attacked_itself() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) + torch.rand(1)

    model = Random().eval()
    assert quick(model, pictures()) is model
