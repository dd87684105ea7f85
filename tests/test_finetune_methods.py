"""The mathematics of every fine-tuning method, against closed forms and naive versions in double precision."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorica.errors import LoricaError
from lorica.finetune import METHODS, Method, loss_weights
from lorica.finetune.methods import kl
from lorica.robustness.pgd import crafting
from lorica.vision import Classifier, ModelConfig, load_classifier
from lorica.vision.batch_norm import RoutedBatchNorm, merge_routes, on_route, split_routes

CLASSES = ("a", "b", "c")


def network(name: str = "cifar_resnet18", size: tuple[int, int] = (8, 8), **arguments: Any) -> Classifier:
    """A small residual network with a shortcut convolution, and with batch norms that have seen something."""
    arguments = arguments or {"width": 4, "depths": (1, 1)}
    config = ModelConfig(name=name, pretrained=False, arguments=arguments, size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        classifier, _ = load_classifier(config, CLASSES)
        for module in norms(classifier).values():
            nn.init.normal_(module.running_mean, 0, 0.3)
            for values in (module.running_var, module.weight, module.bias):
                nn.init.uniform_(values, 0.5, 1.5)
    return classifier.double()


def norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}


def method_of(name: str, classifier: Classifier | None = None, **options: Any) -> Any:
    cls = METHODS[name]
    method = cls(cls.Options(**options), network() if classifier is None else classifier).double()
    if name == "autolora":
        for up in method.branch.up.values():
            nn.init.normal_(up, 0, 0.1)
    return method.train()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Natural pictures, others in the place of adversarial ones, and labels."""
    return torch.rand(6, 3, 8, 8).double(), torch.rand(6, 3, 8, 8).double(), torch.tensor([0, 1, 2, 0, 2, 1])


def naive_ce(logits: Tensor, labels: Tensor) -> Tensor:
    rows = [-torch.log(row.exp()[label] / row.exp().sum()) for row, label in zip(logits, labels, strict=True)]
    return torch.stack(rows).mean()


def naive_kl(natural: Tensor, adversarial: Tensor) -> Tensor:
    """sum p (log p - log q) of each picture, (N,)."""
    p, q = (logits.exp() / logits.exp().sum(1, keepdim=True) for logits in (natural, adversarial))
    return (p * (p.log() - q.log())).sum(1)


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor | None]:
    names, tensors = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return dict(zip(names, found, strict=True))


def close(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.allclose(a, b, rtol=1e-8, atol=1e-10)


# ----- the KL term --------------------------------------------------------------------------------------------------
def test_kl_is_its_definition_and_its_gradient_flows_to_both_sides_in_closed_form() -> None:
    natural, adversarial = (torch.randn(5, 4).double().requires_grad_() for _ in range(2))
    value = kl(natural, adversarial)
    expected = naive_kl(natural, adversarial)
    assert close(value, expected.mean())
    p, q = natural.softmax(1), adversarial.softmax(1)
    of_natural, of_adversarial = torch.autograd.grad(value, (natural, adversarial))
    assert close(of_adversarial, (q - p) / 5)
    assert close(of_natural, p * ((p / q).log() - expected[:, None]) / 5)


def test_kl_of_saturated_logits_is_finite() -> None:
    sure = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    value = kl(sure, -sure)
    assert value.isfinite() and torch.autograd.grad(value, sure)[0].isfinite().all()


# ----- every method -------------------------------------------------------------------------------------------------
VARIANTS = [*((name, {}) for name in METHODS), ("twins", {"form": "at"}), ("vanilla", {"batch_norm": "dual"})]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_method_says_what_it_is_and_weighs_exactly_the_terms_that_it_has(
    name: str, options: dict[str, Any], batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    method: Method = method_of(name, **options)
    natural, adversarial, labels = batch
    assert method.summary and method.source and "\n" not in method.summary + method.source
    clean, attacked = method(natural, adversarial)
    assert attacked.shape == (6, 3) and (clean is None or clean.shape == (6, 3))
    terms = method.terms(clean, attacked, labels)
    assert terms.keys() == method.weights.keys()
    assert all(term.dim() == 0 for term in terms.values())
    assert set(method.compared or ()) <= terms.keys()
    method.weights = {term: 0.5 + i for i, term in enumerate(terms)}
    assert close(method.loss(terms), sum((0.5 + i) * value for i, value in enumerate(terms.values())))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_what_is_attacked_is_what_is_used_in_the_end_a_network_like_the_one_that_came_in(
    name: str, options: dict[str, Any], batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    plain = network()
    method = method_of(name, **options)
    optimiser = torch.optim.SGD(method.parameters(), 0.05, 0.9)
    natural, adversarial, labels = batch
    for _ in range(3):
        optimiser.zero_grad()
        method.loss(method.terms(*method(natural, adversarial), labels)).backward()
        optimiser.step()
    kept = method.inference()
    assert not kept.training and kept.state_dict().keys() == plain.state_dict().keys()
    assert not any(isinstance(module, RoutedBatchNorm) for module in kept.modules())
    with crafting(method), method.route():
        assert torch.equal(kept(natural), method.classifier(natural))
    assert not torch.equal(kept(natural), plain(natural))
    before = {key: value.clone() for key, value in kept.state_dict().items()}
    method(natural, adversarial)
    assert all(torch.equal(before[key], value) for key, value in kept.state_dict().items())  # it is a copy


# ----- AutoLoRa -----------------------------------------------------------------------------------------------------
def part_of(parameter: str, classifier: Classifier) -> str:
    if parameter.startswith("branch."):
        return "lora"
    name = parameter.removeprefix("classifier.")
    if name in classifier.head_names():
        return "head"
    kinds = {nn.Conv2d: "convolution", nn.BatchNorm2d: "batch norm"}
    return kinds[type(classifier.get_submodule(name.rpartition(".")[0]))]


@pytest.mark.parametrize("coverage", ["all", "last-block"])
@pytest.mark.parametrize(
    ("term", "reached"),
    [
        ("natural", {"lora", "head"}),
        ("adversarial", {"convolution", "batch norm", "head"}),
        ("kl", {"lora", "convolution", "batch norm", "head"}),
        ("kl, natural side", {"lora", "head"}),
        ("kl, adversarial side", {"convolution", "batch norm", "head"}),
    ],
)
def test_each_term_of_autolora_reaches_exactly_the_parameters_of_the_papers_scheme(
    term: str, reached: set[str], coverage: str, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    method = method_of("autolora", rank=2, branch_coverage=coverage)
    natural, adversarial, labels = batch
    clean, attacked = method(natural, adversarial)
    terms = method.terms(clean, attacked, labels) | {
        "kl, natural side": method.terms(clean, attacked.detach(), labels)["kl"],
        "kl, adversarial side": method.terms(clean.detach(), attacked, labels)["kl"],
    }
    found = gradients(terms[term], method)
    names = " ".join(found)
    assert "backbone.conv1.weight" in names and "downsample.0.weight" in names and "downsample.1.weight" in names
    for name, gradient in found.items():
        if part_of(name, method.classifier) in reached:
            assert gradient is not None and gradient.abs().max() > 0, f"{term} does not reach {name}"
        else:
            assert gradient is None, f"{term} reaches {name}"


def adapted(method: Any) -> Classifier:
    """A copy of the network whose covered weights are W + reshape(B A) / r."""
    copied = copy.deepcopy(method.classifier)
    for name in method.branch.shapes:
        key, weight = name.replace(".", "/"), copied.get_submodule(name).weight
        update = (method.branch.up[key] @ method.branch.down[key]).reshape(weight.shape) / method.options.rank
        weight.data += update.detach()
    return copied


def test_autolora_is_equation_5_on_two_explicit_networks(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    method = method_of("autolora", rank=3)
    natural, adversarial, labels = batch
    method.adjust(0.25)
    with_branch, plain = adapted(method), copy.deepcopy(method.classifier)
    clean, attacked = with_branch(natural), plain(adversarial)
    expected = {
        "natural": naive_ce(clean, labels),
        "adversarial": naive_ce(attacked, labels),
        "kl": naive_kl(clean, attacked).mean(),
    }
    terms = method.terms(*method(natural, adversarial), labels)
    for name, value in expected.items():
        assert close(terms[name], value), name
    loss = 0.75 * expected["natural"] + 0.25 * expected["adversarial"] + 1.5 * expected["kl"]  # SA = 1/4, alpha = 1
    assert close(method.loss(terms), loss)

    own = gradients(method.loss(terms), method)
    of_branch, of_plain = gradients(loss, with_branch), gradients(loss, plain)
    for name in method.branch.shapes:  # the chain rule through W + reshape(B A) / r
        key = name.replace(".", "/")
        a, b = method.branch.down[key], method.branch.up[key]
        g = of_branch[f"{name}.weight"].reshape(len(b), a.shape[1]) / 3
        assert close(own[f"branch.up.{key}"], g @ a.T), name
        assert close(own[f"branch.down.{key}"], b.T @ g), name
    head = method.classifier.head_names()
    for name, gradient in of_plain.items():
        both = gradient + of_branch[name] if name in head else gradient
        assert close(own[f"classifier.{name}"], both), name


def test_the_branch_begins_as_the_network_itself(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    cls = METHODS["autolora"]
    method: Any = cls(cls.Options(), network()).eval()
    assert torch.equal(method.natural_logits(batch[0]), method.classifier(batch[0]))


def test_inference_knows_nothing_of_the_branch(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    plain = network().eval()
    method = method_of("autolora")
    kept = method.inference()
    assert torch.equal(kept(batch[0]), plain(batch[0]))
    assert not torch.equal(method.eval().natural_logits(batch[0]), plain(batch[0]))
    assert not any("branch" in key or "lora" in key for key in kept.state_dict())
    assert any("branch" in key for key in method.state_dict())  # training keeps it


def test_in_autolora_the_natural_and_then_the_adversarial_pass_move_the_shared_statistics(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    method = method_of("autolora")
    natural, adversarial, _ = batch
    with_branch, plain = adapted(method), copy.deepcopy(method.classifier)
    expected: dict[str, dict[str, Tensor]] = {}
    for order in ("natural first", "adversarial first"):
        first, second = copy.deepcopy(with_branch), copy.deepcopy(plain)
        pictures = (natural, adversarial)
        if order == "adversarial first":
            first, second, pictures = second, first, (adversarial, natural)
        first(pictures[0])
        for name, norm in norms(second).items():
            norm.load_state_dict(
                norm.state_dict() | {k: v for k, v in norms(first)[name].state_dict().items() if "running" in k}
            )
        second(pictures[1])
        expected[order] = {key: value for key, value in second.state_dict().items() if "running" in key}
    method(natural, adversarial)
    found = method.classifier.state_dict()
    assert all(close(found[key], value) for key, value in expected["natural first"].items())
    assert not any(close(found[key], value) for key, value in expected["adversarial first"].items())
    assert all(norm.num_batches_tracked == 2 for norm in norms(method.classifier).values())


def test_crafting_leaves_the_statistics_alone(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    method = method_of("autolora")
    before = copy.deepcopy(method.state_dict())
    with crafting(method), method.route():
        method.classifier(batch[0])
    assert method.training and all(torch.equal(before[key], value) for key, value in method.state_dict().items())


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, {"natural": 0.6, "adversarial": 0.4, "kl": 2.4}),
        ({"alpha": 2.0, "lambda2_max": 5.0}, {"natural": 0.84, "adversarial": 0.16, "kl": 0.8}),
        ({"lambda1": 0.9}, {"natural": 0.9, "adversarial": 0.1, "kl": 2.4}),
        ({"lambda2": 0.0}, {"natural": 0.6, "adversarial": 0.4, "kl": 0.0}),
        ({"lambda1": 0.0, "lambda2": 7.0}, {"natural": 0.0, "adversarial": 1.0, "kl": 7.0}),
    ],
)
def test_the_loss_weights_follow_the_natural_accuracy_unless_fixed(
    options: dict[str, float], weights: dict[str, float]
) -> None:
    method = method_of("autolora", **options)
    method.adjust(0.4)
    assert method.weights == pytest.approx(weights)
    method.adjust(1.0)
    free = loss_weights(1.0, options.get("alpha", 1.0), options.get("lambda2_max", 6.0))
    assert method.weights["natural"] == options.get("lambda1", free[0])
    assert method.weights["kl"] == options.get("lambda2", free[1])


# ----- adversarial training and vanilla -----------------------------------------------------------------------------
def test_adversarial_training_is_cross_entropy_of_adversarial_pictures_and_nothing_else(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    method = method_of("at")
    natural, adversarial, labels = batch
    expected = naive_ce(copy.deepcopy(method.classifier)(adversarial), labels)
    clean, attacked = method(natural, adversarial)
    assert clean is None and close(method.loss(method.terms(clean, attacked, labels)), expected)
    assert all(norm.num_batches_tracked == 1 for norm in norms(method.classifier).values())


def test_vanilla_is_a_naive_trades(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    method = method_of("vanilla", beta=4.0)
    natural, adversarial, labels = batch
    naive = copy.deepcopy(method.classifier)
    clean, attacked = naive(natural), naive(adversarial)
    expected = naive_ce(clean, labels) + 4.0 / 6 * naive_kl(clean, attacked).sum()
    loss = method.loss(method.terms(*method(natural, adversarial), labels))
    assert close(loss, expected)
    own = gradients(loss, method)
    for name, gradient in gradients(expected, naive).items():
        assert close(own[f"classifier.{name}"], gradient), name
    for name, value in naive.state_dict().items():  # natural first, then adversarial
        assert torch.allclose(method.classifier.state_dict()[name], value), name


@pytest.mark.parametrize("kind", ["ce", "kl"])
def test_vanilla_attacks_the_loss_that_it_is_told_to(kind: str, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    method = method_of("vanilla", attack_loss=kind, batch_norm="dual")
    natural, adversarial, labels = batch
    with torch.no_grad():
        for name, value in method.named_buffers():
            if ".natural.running_mean" in name:
                value += 0.3  # so that the routes differ
    with crafting(method), method.route():
        logits = method.classifier(adversarial)
        raised = method.attacker(natural, labels)(logits)
        with on_route(method.classifier, "natural"):  # natural pictures along their own norms, as in the loss
            clean = method.classifier(natural)
    naive = naive_kl(clean, logits).sum() if kind == "kl" else 6 * naive_ce(logits, labels)
    constant = raised - naive  # the entropy of the target has no part in an attack
    assert torch.allclose(constant, torch.zeros(()).double(), atol=1e-9)


def statistics(method: Any, route: str) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in method.state_dict().items() if f".{route}.running" in k}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys() and a
    return all(torch.equal(a[key], b[key]) for key in a)


def test_dual_routes_see_their_own_kind_of_pictures_only(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    natural, adversarial, _ = batch
    other = torch.rand(6, 3, 8, 8).double()
    seen = {}
    for key, pictures in {
        "base": (natural, adversarial), "other natural": (other, adversarial), "other adversarial": (natural, other),
    }.items():  # fmt: skip
        method = method_of("vanilla", batch_norm="dual")
        before = {route: statistics(method, route) for route in ("natural", "adversarial")}
        method(*pictures)
        seen[key] = {route: statistics(method, route) for route in before}
        assert not any(equal(before[route], seen[key][route]) for route in before)
    assert equal(seen["other natural"]["adversarial"], seen["base"]["adversarial"])
    assert equal(seen["other adversarial"]["natural"], seen["base"]["natural"])
    assert not equal(seen["other natural"]["natural"], seen["base"]["natural"])
    assert not equal(seen["other adversarial"]["adversarial"], seen["base"]["adversarial"])


def test_each_dual_route_is_the_single_one_on_its_pictures(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    method = method_of("vanilla", batch_norm="dual")
    clean, attacked = (network().train()(pictures) for pictures in batch[:2])
    found = method(*batch[:2])
    assert close(found[0], clean) and close(found[1], attacked)
    kept = method.inference()
    with on_route(method.classifier.eval(), "natural"):
        assert not close(method.classifier(batch[0]), kept(batch[0]))  # it has other statistics by now


def test_dual_batch_norms_of_a_network_that_has_none_are_refused() -> None:
    with pytest.raises(LoricaError, match=r"batch norm.*vit_tiny"):
        method_of("vanilla", transformer(), batch_norm="dual")
    assert method_of("vanilla", transformer())


# ----- TWINS --------------------------------------------------------------------------------------------------------
def two_networks() -> tuple[Classifier, Classifier]:
    """(frozen, adaptive): convolutions and head are the same parameters, batch norms are not."""
    frozen, adaptive = network(), network().train()
    own = set(norms(adaptive))
    for name, parameter in frozen.named_parameters():
        place, _, leaf = name.rpartition(".")
        if place not in own:
            setattr(adaptive.get_submodule(place), leaf, parameter)
    return frozen.eval(), adaptive


def naive_twins(
    frozen: Classifier, adaptive: Classifier, batch: tuple[Tensor, Tensor, Tensor], lam: float, beta: float, over: int
) -> Tensor:
    """TWINS-TRADES: the first half of the batch through the frozen net; KL summed and divided by `over`."""
    total = torch.zeros(()).double()
    for weight, net, half in ((lam, frozen, slice(0, 3)), (1.0, adaptive, slice(3, 6))):
        natural, adversarial, labels = (part[half] for part in batch)
        clean, attacked = net(natural), net(adversarial)
        total = total + weight * (naive_ce(clean, labels) + beta * naive_kl(clean, attacked).sum() / over)
    return total


@pytest.mark.parametrize(("kl_mean", "over"), [("paper", 3), ("authors", 6)])
def test_twins_is_two_networks_of_shared_weights_on_the_halves_of_a_batch(
    kl_mean: str, over: int, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    method = method_of("twins", lam=0.4, beta=5.0, kl_mean=kl_mean)
    frozen, adaptive = two_networks()
    expected = naive_twins(frozen, adaptive, batch, 0.4, 5.0, over)
    loss = method.loss(method.terms(*method(*batch[:2]), batch[2]))
    assert close(loss, expected)

    own = gradients(loss, method.classifier)
    naive = {"frozen": gradients(expected, frozen), "adaptive": gradients(expected, adaptive)}
    for name, gradient in own.items():
        route = next((part for part in name.split(".") if part in naive), "adaptive")
        assert close(gradient, naive[route][name.replace(f"norms.{route}.", "")]), name
    state = method.classifier.state_dict()
    for route, net in (("frozen", frozen), ("adaptive", adaptive)):
        for name, norm in norms(net).items():
            assert torch.allclose(state[f"{name}.norms.{route}.running_mean"], norm.running_mean), (route, name)
            assert torch.allclose(state[f"{name}.norms.{route}.running_var"], norm.running_var), (route, name)


def test_twins_at_is_cross_entropy_of_adversarial_halves(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    method = method_of("twins", form="at", lam=0.7)
    frozen, adaptive = two_networks()
    _, adversarial, labels = batch
    expected = 0.7 * naive_ce(frozen(adversarial[:3]), labels[:3]) + naive_ce(adaptive(adversarial[3:]), labels[3:])
    assert close(method.loss(method.terms(*method(*batch[:2]), labels)), expected)


def test_the_statistics_of_the_frozen_net_never_change_while_its_scales_train(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    method = method_of("twins")
    before = {route: statistics(method, route) for route in ("frozen", "adaptive")}
    scales = {k: v.detach().clone() for k, v in method.named_parameters() if ".frozen." in k}
    optimiser = torch.optim.SGD(method.parameters(), 0.1)
    for _ in range(3):
        with crafting(method), method.route():
            method.classifier(batch[1])
        method.train()
        optimiser.zero_grad()
        method.loss(method.terms(*method(*batch[:2]), batch[2])).backward()
        optimiser.step()
    assert equal(before["frozen"], statistics(method, "frozen"))
    assert not equal(before["adaptive"], statistics(method, "adaptive"))
    assert len(scales) == 2 * len(norms(network()))
    assert all(not torch.equal(value, method.get_parameter(name)) for name, value in scales.items())


def test_an_odd_batch_is_halved_as_well_as_it_can_be(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    natural, adversarial, labels = (part[:5] for part in batch)
    method = method_of("twins", form="at", lam=0.7)
    frozen, adaptive = two_networks()
    expected = 0.7 * naive_ce(frozen(adversarial[:3]), labels[:3]) + naive_ce(adaptive(adversarial[3:]), labels[3:])
    assert close(method.loss(method.terms(*method(natural, adversarial), labels)), expected)


def transformer() -> Classifier:
    arguments = {"embed_dim": 12, "depth": 1, "num_heads": 3, "patch_size": 8}
    return network("vit_tiny_patch16_224", (16, 16), **arguments)


def test_twins_refuses_a_network_without_batch_norms() -> None:
    convnext = network("convnext_atto", (32, 32), depths=(1, 1, 1, 1), dims=(4, 4, 4, 4))
    for classifier in (transformer(), convnext):
        with pytest.raises(LoricaError, match=f"batch norms, which {classifier.architecture.name}") as raised:
            method_of("twins", classifier)
        assert "autolora" in raised.value.remedy


# ----- routed batch norms -------------------------------------------------------------------------------------------
def test_a_route_holds_inside_its_block_whatever_happens_there() -> None:
    model = network()
    split_routes(model, ("one", "two"))
    routed = [module for module in model.modules() if isinstance(module, RoutedBatchNorm)]

    def routes() -> set[str]:
        return {module.route for module in routed}

    assert routes() == {"one"}
    with pytest.raises(RuntimeError), on_route(model, "two"):
        with on_route(model, "one"):
            assert routes() == {"one"}
        assert routes() == {"two"}
        raise RuntimeError
    assert routes() == {"one"}


def test_splitting_and_merging_gives_the_network_back(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    plain, model = network(), network()
    assert split_routes(model, ("one", "two"), frozen=("two",)) == len(norms(plain))
    for mode in (True, False):
        model.train(mode)
        for name, norm in norms(model).items():
            assert norm.training is (mode and ".two" not in name)
    for route in ("one", "two"):
        with on_route(model, route):
            assert torch.equal(model(batch[0]), plain(batch[0]))
    merge_routes(model, "two")
    assert equal(dict(model.state_dict()), dict(plain.state_dict()))
    assert split_routes(transformer(), ("one", "two")) == 0


def test_norms_that_contain_their_activation_are_routed_too() -> None:
    plain = network("mobilenetv3_small_050", (32, 32), drop_rate=0.0).eval()
    model = copy.deepcopy(plain)
    pictures = torch.rand(2, 3, 32, 32).double()
    assert split_routes(model, ("one", "two")) == len(norms(plain)) > 0
    with on_route(model, "two"):
        assert torch.equal(model(pictures), plain(pictures))
