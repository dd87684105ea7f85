"""Batch norms of pre-training: several streams in one pass, one set of statistics each."""

import copy

import pytest
import torch
from torch import nn

from lorica.config import load
from lorica.pretrain.config import EncoderConfig
from lorica.pretrain.methods import METHODS
from lorica.pretrain.network import ADVERSARIAL, NATURAL, ContrastiveNetwork
from lorica.robustness.folding import Folded
from lorica.vision import load_classifier
from lorica.vision.batch_norm import RoutedBatchNorm, norm_tensors, on_route, on_streams
from pretrain_runs import MODEL, SIDE


def network(layers: int = 3) -> ContrastiveNetwork:
    torch.manual_seed(0)
    classifier, _ = load_classifier(EncoderConfig(**MODEL))
    return ContrastiveNetwork(classifier, layers).double()


def method(name: str, **options):
    cls = METHODS[name]
    return cls(load(cls.Options, options=options), network())


def pictures(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(count, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) for count in counts]


def test_one_pass_with_streams_is_three_passes_in_outputs_statistics_and_gradients():
    adversarial, natural, originals = pictures(6, 6, 3)
    one, three = network().train(), network().train()
    parts = [(ADVERSARIAL, adversarial), (NATURAL, natural), (NATURAL, originals)]
    together = torch.cat(one.through(parts, at_once=True))
    apart = three.through(parts, at_once=False)
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-10, atol=1e-10)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (together * weights).sum().backward()
    (torch.cat(apart) * weights).sum().backward()
    for (name, ours), theirs in zip(one.named_parameters(), three.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=name)
    for (name, ours), theirs in zip(one.named_buffers(), three.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=name)


def test_mixing_natural_views_and_originals_in_one_stream_would_be_something_else():
    natural, originals = pictures(6, 3)
    one = network().train()
    with on_streams(one, [(NATURAL, 6), (NATURAL, 3)]):
        apart = one(torch.cat([natural, originals]))
    with on_route(one, NATURAL):
        mixed = one(torch.cat([natural, originals]))
    assert float((apart - mixed).abs().max().detach()) > 1e-3


def test_every_batch_norm_has_both_routes_also_those_of_the_projector():
    names = [name for name, _ in network().named_modules() if name.endswith(f"norms.{ADVERSARIAL}")]
    assert len(names) == 19 + 3 and sum("projector" in name for name in names) == 3


@pytest.mark.parametrize("layers", [2, 3])
def test_the_projector_keeps_the_width_and_ends_in_a_batch_norm(layers):
    found = network(layers)
    assert found(pictures(4)[0]).shape == (4, 16)
    assert [type(part) for part in found.projector].count(nn.Linear) == layers
    assert [part.bias is not None for part in found.projector if isinstance(part, nn.Linear)] == [True, False, False][
        :layers
    ]
    assert hasattr(found.projector[-1], "norms")


@pytest.mark.parametrize("route", [NATURAL, ADVERSARIAL])
def test_the_delivered_encoder_computes_the_features_of_its_route(route):
    trained = network().train()
    for stream in (NATURAL, ADVERSARIAL):
        with on_route(trained, stream):
            trained(pictures(8)[0] * (0.5 if stream == NATURAL else 1))
    trained.eval()
    delivered, (pixels,) = trained.delivered(route), pictures(4)
    torch.testing.assert_close(delivered(pixels), trained.features(pixels, route))
    other = NATURAL if route == ADVERSARIAL else ADVERSARIAL
    assert not torch.allclose(delivered(pixels), trained.features(pixels, other))
    own = delivered.backbone.state_dict()
    norms = norm_tensors(trained.encoder.backbone, route)
    assert norms and all(torch.equal(own[name], value) for name, value in norms.items())
    assert {name for name in own if "bn" in name} == set(norms)


def test_the_attack_goes_through_the_statistics_of_adversarial_pictures():
    chosen, (pixels,) = method("acl"), pictures(4)
    chosen.train()
    with on_route(chosen, ADVERSARIAL):
        chosen.network(pixels)
    chosen.eval()
    with chosen.attacked():
        expected = chosen.network(pixels)
        folded = Folded(chosen.attackable(), pixels[:2])
    torch.testing.assert_close(folded(pixels), expected)
    assert not torch.allclose(chosen.network(pixels), expected)


def test_a_method_returns_the_embeddings_of_the_right_pictures():
    i, j, i_adv, j_adv, originals = pictures(3, 3, 3, 3, 3)
    chosen = method("acl").eval()
    found = chosen((i, j), (i_adv, j_adv), originals)
    with on_route(chosen, NATURAL):
        natural = [chosen.network(x) for x in (i, j, originals)]
    with on_route(chosen, ADVERSARIAL):
        adversarial = [chosen.network(x) for x in (i_adv, j_adv)]
    torch.testing.assert_close(list(found.natural), natural[:2])
    torch.testing.assert_close(list(found.adversarial), adversarial)
    torch.testing.assert_close(found.originals, natural[2])
    alone = chosen((i, j), None, None)
    torch.testing.assert_close(list(alone.natural), natural[:2])
    assert alone.adversarial is None and alone.originals is None


def test_the_momentum_encoder_sees_view_j_gets_no_gradient_and_follows():
    i, j, i_adv, j_adv, originals = pictures(3, 3, 3, 3, 3)
    chosen = method("dynacl", flavour="original", momentum=0.9).train()
    before = copy.deepcopy(chosen.key)
    found = chosen((i, j), (i_adv, j_adv), originals)
    assert found.natural[0].requires_grad and not found.natural[1].requires_grad
    assert found.adversarial[0].requires_grad and not found.adversarial[1].requires_grad
    assert found.originals.requires_grad
    with torch.no_grad():
        for parameter in chosen.network.parameters():
            parameter.add_(1.0)
    chosen.after_step()
    for old, new in zip(before.parameters(), chosen.key.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
    assert chosen.result() is chosen.key
    views = torch.cat([i_adv, j_adv])
    chosen.eval()
    with chosen.attacked():
        z = chosen.attackable()(views)
        torch.testing.assert_close(z, torch.cat([chosen.network(i_adv), chosen.key(j_adv)]))


@pytest.fixture
def alone(tmp_path):
    """A group of this process only."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_statistics_over_processes_are_not_rounded_to_half_precision(alone):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4).train()
    routed = RoutedBatchNorm(norm, ("natural",)).train()
    routed.together = True
    x = torch.randn(64, 4, 8, 8) * torch.tensor([0.1, 0.5, 1.0, 3.0]).view(1, 4, 1, 1) + 0.3
    with torch.autocast("cpu", torch.bfloat16):
        given, expected = routed(x.bfloat16()), norm(x.bfloat16())
    assert given.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(given, expected)
    own = routed.norms["natural"]
    torch.testing.assert_close(own.running_mean, norm.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.running_var, norm.running_var, rtol=1e-5, atol=1e-6)
