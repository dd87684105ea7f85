"""Encoders with two sets of batch norms: public checkpoints in each repository's naming, folders, and routes."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lorica.vision.cifar_resnet  # noqa: F401  registers the architectures
from lorica.errors import LoricaError
from lorica.vision import Classifier, ModelConfig, load_classifier
from lorica.vision.batch_norm import load_route, merge_routes, norm_tensors, on_route, split_routes
from lorica.vision.card import model_card
from lorica.vision.export import describe, export_folder, export_program
from lorica.vision.loading import NATURAL_NORMS_FILE

WIDTH = {"width": 2}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the public checkpoints


def encoder(seed: int, classes: int = 0) -> nn.Module:
    """A timm network without a head, with weights and statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    model = timm.create_model("cifar_resnet18", num_classes=classes, **WIDTH).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.2, 1.2, generator=generator)
        else:
            value.fill_(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data -= 0.7
    return model


def is_norm(key: str) -> bool:
    return ".bn" in f".{key}" or ".downsample.1." in key


def twins() -> tuple[nn.Module, nn.Module]:
    """The same convolutions with the batch norms of natural and of adversarial pictures."""
    natural, adversarial = encoder(1), encoder(2)
    shared = {key: value for key, value in natural.state_dict().items() if not is_norm(key)}
    adversarial.load_state_dict(shared, strict=False)
    return natural, adversarial


def pictures() -> Tensor:
    return torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features(model: nn.Module, mean=MEAN, std=STD) -> Tensor:
    """Of a timm network, for the pictures normalised as the public checkpoints do."""
    return model((pictures() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))


# ----- the repositories' names -----------------------------------------------------------------------------------
def their_name(key: str, route: str) -> str:
    """`route` is what follows bn_list."""
    key = key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
    norm, _, tensor = key.rpartition(".")
    return f"{norm}.bn_list{route}.{tensor}" if norm.rpartition(".")[2].startswith("bn") else key


def backbone_of(*models: nn.Module, routes=(".0", ".1")) -> dict[str, Tensor]:
    named = {}
    for model, route in zip(models, routes, strict=True):
        named |= {their_name(key, route): value for key, value in model.state_dict().items()}
    return named | {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)}


def projection(width=16, head="fc", routes=(".0", ".1"), layers=3) -> dict[str, Tensor]:
    named = {f"{head}.fc1.bias": torch.zeros(width)}
    for layer in range(1, layers + 1):
        named[f"{head}.fc{layer}.weight"] = torch.randn(width, width)
        for route in routes:
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                named[f"{head}.bn{layer}.bn_list{route}.{tensor}"] = torch.zeros(width)
    return named


def prefixed(weights, prefix):
    return {prefix + key: value for key, value in weights.items()}


def acl(natural, adversarial, layers=3):
    """VITA-Group/Adversarial-Contrastive-Learning, Enhancing_ACL_via_AIR, and DynACL's model_encoder_k.pt."""
    return backbone_of(natural, adversarial) | projection(layers=layers)


LAYOUTS = {
    "ACL": lambda n, a: {"epoch": 3, "state_dict": acl(n, a), "optim": {"lr": 5.0}},
    "ACL, two layers": lambda n, a: {"state_dict": acl(n, a, layers=2)},
    "AIR, DataParallel": lambda n, a: {"state_dict": prefixed(acl(n, a), "module.")},
    "DynACL, both encoders": lambda n, a: {
        "state_dict": prefixed(acl(encoder(7), encoder(8)), "encoder_q.") | prefixed(acl(n, a), "encoder_k.")
    },
    "pseudo-labels fine-tuned": lambda n, a: backbone_of(n, a),
    "prefix of the backbone alone": lambda n, a: (
        prefixed(backbone_of(n, a), "backbone.") | {"projector.0.weight": torch.zeros(4, 16)}
    ),
}


def load(content, tmp_path, classes=None, **options):
    torch.save(content, tmp_path / "model.pt")
    return load_classifier(
        ModelConfig(name="cifar_resnet18", checkpoint=tmp_path / "model.pt", arguments=WIDTH, **options), classes
    )


def refusal(content, tmp_path, **options) -> str:
    with pytest.raises(LoricaError) as caught:
        load(content, tmp_path, **options)
    assert caught.value.remedy
    return caught.value.problem


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("route", ["adversarial", "natural"])
@torch.no_grad()
def test_a_public_checkpoint_computes_what_its_encoder_does_on_the_route_that_is_kept(layout, route, tmp_path):
    natural, adversarial = twins()
    options = {"route": route} if route == "natural" else {}
    classifier, notes = load(LAYOUTS[layout](natural, adversarial), tmp_path, **options)
    kept, other = (natural, adversarial) if route == "natural" else (adversarial, natural)
    torch.testing.assert_close(classifier(pictures()), features(kept), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(features(kept), features(other), rtol=0.1)
    assert classifier.classes == () and "classifier" in " ".join(notes)
    assert ("projection head" in " ".join(notes)) == (layout != "pseudo-labels fine-tuned")
    assert ("encoder_k" in " ".join(notes)) == (layout == "DynACL, both encoders")
    assert any("two sets of batch norms, for natural and for adversarial" in note for note in notes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_natural_batch_norms_are_kept_beside_under_the_names_of_timm(layout, tmp_path):
    natural, adversarial = twins()
    norms = load(LAYOUTS[layout](natural, adversarial), tmp_path)[0].natural_norms
    expected = {key: value for key, value in natural.state_dict().items() if is_norm(key)}
    assert norms.keys() == expected.keys() and len(norms) == 20 * 5
    assert all(torch.equal(norms[key], value) for key, value in expected.items())
    assert "layer2.0.downsample.1.running_var" in norms and "bn1.weight" in norms


def test_no_batch_norms_are_kept_beside_the_natural_ones(tmp_path):
    classifier, notes = load(acl(*twins()), tmp_path, route="natural")
    assert classifier.natural_norms is None
    assert "that of natural pictures is used, that of adversarial ones left out" in notes[-1]


@pytest.mark.parametrize("suffix", [".0", ""], ids=["one of a list", "no list"])
def test_a_checkpoint_with_one_set_of_batch_norms_is_loaded_whatever_the_route(suffix, tmp_path):
    natural, _ = twins()
    weights = backbone_of(natural, routes=(suffix,)) | projection(routes=(suffix,))
    for route in ("adversarial", "natural"):
        classifier, notes = load(weights, tmp_path, route=route)
        torch.testing.assert_close(classifier(pictures()), features(natural), rtol=1e-5, atol=1e-5)
        assert classifier.natural_norms is None
        assert ("the route natural makes no difference" in notes[-1]) == (route == "natural")


def test_the_single_network_after_pseudo_labels_keeps_its_linear_head(tmp_path):
    model = encoder(1, classes=10)
    weights = model.state_dict() | {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)}
    classifier, notes = load({"state_dict": weights, "state_dict_dual": acl(*twins())}, tmp_path)
    torch.testing.assert_close(classifier(pictures()), features(model), rtol=1e-5, atol=1e-5)
    assert classifier.classes == tuple(map(str, range(10))) and notes == []


def test_a_linear_head_of_a_dual_network_is_kept_and_no_projection_head_is_seen(tmp_path):
    weights = backbone_of(*twins()) | {"fc.weight": torch.randn(5, 16), "fc.bias": torch.randn(5)}
    classifier, notes = load(weights, tmp_path)
    assert torch.equal(classifier.backbone.fc.weight, weights["fc.weight"]) and len(classifier.classes) == 5
    assert len(notes) == 1 and "two sets" in notes[0]


def test_the_note_tells_which_head_was_left_out_and_the_classes_of_the_data_get_a_new_one(tmp_path):
    classifier, notes = load(acl(*twins()), tmp_path, ["cat", "dog"])
    assert "the projection head (fc, 28 tensors) was left out" in notes
    assert "2 classes of the data" in notes[-1]
    assert classifier.backbone.fc.weight.shape == (2, 16) and classifier.natural_norms is not None


@pytest.mark.parametrize("head", ["fc", "projector", "proj_head", "projection_head", "linear", "predictor"])
def test_a_projection_head_goes_by_several_names(head, tmp_path):
    classifier, notes = load(backbone_of(*twins()) | projection(head=head), tmp_path)
    assert classifier.classes == () and any(f"({head}, " in note for note in notes)


def test_what_the_user_says_of_the_normalisation_goes_before_what_the_checkpoint_says(tmp_path):
    stated, _ = load(acl(*twins()), tmp_path)
    assert stated.mean.flatten().tolist() == pytest.approx(MEAN) and stated.std.flatten().tolist() == pytest.approx(
        STD
    )
    told, _ = load(acl(*twins()), tmp_path, mean=(0, 0, 0))
    assert told.mean.flatten().tolist() == [0, 0, 0] and told.std.flatten().tolist() == pytest.approx(STD)


# ----- nothing is dropped in silence -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("bn1.bn_list.2.weight", "bn1.bn_list.2.weight"),
        ("projector.weight", "projector.weight"),
        ("fc_100.weight", "fc_100.weight"),
        ("layer5.0.conv1.weight", "layer5.0.conv1.weight"),
        ("layer5.bn1.bn_list.1.weight", "layer5.bn1.weight"),
        ("layer5.bn1.bn_list.0.weight", "layer5.bn1.weight"),
        ("layer2.0.downsample.0.weight", "layer2.0.downsample.conv.weight"),
        ("normalize.momentum", "normalize.momentum"),
    ],
)
def test_a_tensor_that_has_no_place_is_named(key, said, tmp_path):
    said_all = refusal(acl(*twins()) | {key: torch.zeros(2)}, tmp_path)
    assert "1 not in this network" in said_all and said in said_all


@pytest.mark.parametrize("route", ["adversarial", "natural"])
@pytest.mark.parametrize("index", ["0", "1"])
def test_a_missing_tensor_of_either_route_is_named(index, route, tmp_path):
    weights = acl(*twins())
    del weights[f"layer3.1.bn2.bn_list.{index}.running_var"]
    said = refusal(weights, tmp_path, route=route)
    assert "1 missing" in said and "layer3.1.bn2.running_var" in said
    assert ("natural batch norms" in said) == (index == "0")


def test_batch_norms_of_another_shape_or_that_are_not_finite_are_named(tmp_path):
    weights = acl(*twins()) | {"bn1.bn_list.0.weight": torch.zeros(3)}
    assert "bn1.weight is [3], the network has [2]" in refusal(weights, tmp_path)
    weights = acl(*twins()) | {"bn1.bn_list.0.weight": torch.full((2,), float("nan"))}
    assert "not finite" in refusal(weights, tmp_path)


@pytest.mark.parametrize("key", ["bn1.weight", "bn1.bn_list.weight"])
def test_a_tensor_that_is_there_twice_is_refused(key, tmp_path):
    for order in (1, -1):
        weights = dict(list((acl(*twins()) | {key: torch.zeros(2)}).items())[::order])
        assert "bn1.weight twice" in refusal(weights, tmp_path)


@pytest.mark.parametrize("std", [[0.2, 0.2], [0.2, 0.0, 0.2], [0.2, -1.0, 0.2], [0.2, float("nan"), 0.2]])
def test_a_normalisation_that_cannot_be_is_refused(std, tmp_path):
    assert "mean and std" in refusal(acl(*twins()) | {"normalize.std": torch.tensor(std)}, tmp_path)


def test_a_plain_checkpoint_without_a_head_becomes_an_encoder_and_says_so(tmp_path):
    model = encoder(3)
    classifier, notes = load(model.state_dict(), tmp_path, mean=MEAN, std=STD)
    assert torch.equal(classifier(pictures()), features(model)) and classifier.classes == ()
    assert len(notes) == 1 and "no classifier" in notes[0]
    half = encoder(3, classes=4).state_dict()
    del half["fc.weight"]
    assert "fc.weight" in refusal(half, tmp_path)


# ----- folders ---------------------------------------------------------------------------------------------------
def dual(tmp_path) -> Classifier:
    return load(acl(*twins()), tmp_path)[0]


@torch.no_grad()
def test_an_exported_encoder_is_loaded_with_both_sets_of_batch_norms_and_by_timm_with_one(tmp_path):
    natural, adversarial = twins()
    classifier = load(acl(natural, adversarial), tmp_path)[0]
    export_folder(classifier, tmp_path / "encoder", card=model_card({"classes": []}))
    again, notes = load_classifier(ModelConfig(name=str(tmp_path / "encoder")))
    assert notes == [] and again.classes == ()
    assert torch.equal(again(pictures()), classifier(pictures()))
    assert again.natural_norms.keys() == classifier.natural_norms.keys()
    assert all(torch.equal(value, classifier.natural_norms[key]) for key, value in again.natural_norms.items())
    plain = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    torch.testing.assert_close(features(plain), classifier(pictures()))
    assert sorted(file.name for file in (tmp_path / "encoder").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "natural_norms.safetensors",
    ]  # fmt: skip
    described = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert described == describe(classifier) and described["num_classes"] == 0 and described["label_names"] == []
    other, notes = load_classifier(ModelConfig(name=str(tmp_path / "encoder"), route="natural"))
    torch.testing.assert_close(other(pictures()), features(natural), rtol=1e-5, atol=1e-5)
    assert other.natural_norms is None and "natural pictures is used" in notes[0]


def test_a_model_with_one_set_of_batch_norms_leaves_none_of_an_earlier_one_behind(tmp_path):
    classifier = dual(tmp_path)
    export_folder(classifier, tmp_path / "encoder", card="")
    assert (tmp_path / "encoder" / NATURAL_NORMS_FILE).is_file()
    classifier.natural_norms = None
    export_folder(classifier, tmp_path / "encoder", card="")
    assert not (tmp_path / "encoder" / NATURAL_NORMS_FILE).exists()
    assert load_classifier(ModelConfig(name=str(tmp_path / "encoder")))[0].natural_norms is None


def test_batch_norms_that_are_not_the_network_s_are_neither_written_nor_read(tmp_path):
    classifier = dual(tmp_path)
    export_folder(classifier, tmp_path / "encoder", card="")
    before = {file.name: file.read_bytes() for file in (tmp_path / "encoder").iterdir()}
    del classifier.natural_norms["bn1.weight"]
    with pytest.raises(LoricaError, match="natural_norms"):
        export_folder(classifier, tmp_path / "encoder", card="")
    assert {file.name: file.read_bytes() for file in (tmp_path / "encoder").iterdir()} == before
    norms = tmp_path / "encoder" / NATURAL_NORMS_FILE
    for change in ({"bn9.weight": torch.zeros(2)}, {"bn1.weight": torch.zeros(9)}, {"conv1.weight": torch.zeros(2)}):
        save_file(load_file(norms) | change, norms)
        with pytest.raises(LoricaError, match=r"natural_norms\.safetensors does not fit") as caught:
            load_classifier(ModelConfig(name=str(tmp_path / "encoder")))
        assert next(iter(change)) in caught.value.problem
    norms.write_bytes(b"damaged")
    with pytest.raises(LoricaError, match=r"natural_norms\.safetensors cannot be read"):
        load_classifier(ModelConfig(name=str(tmp_path / "encoder")))


def test_another_checkpoint_for_a_folder_s_network_leaves_the_folder_s_batch_norms_alone(tmp_path):
    export_folder(dual(tmp_path), tmp_path / "encoder", card="")
    save_file(encoder(5).state_dict(), tmp_path / "other.safetensors")
    found, _ = load_classifier(ModelConfig(name=str(tmp_path / "encoder"), checkpoint=tmp_path / "other.safetensors"))
    assert found.natural_norms is None


@pytest.mark.parametrize("name", ["cifar_resnet18", "resnet10t", "vit_tiny_patch16_224"])
@torch.no_grad()
def test_an_encoder_without_a_head_is_exported_described_and_given_one(name, tmp_path):
    tiny = {"img_size": 32, "patch_size": 16, "depth": 1, "embed_dim": 12, "num_heads": 3}
    arguments = {"cifar_resnet18": WIDTH, "vit_tiny_patch16_224": tiny}.get(name, {}) | {"num_classes": 0}
    made, _ = load_classifier(ModelConfig(name=name, pretrained=False, arguments=arguments, size=(32, 32)))
    assert made.classes == () and made.head_names() == set()
    export_folder(made, tmp_path / "encoder", card=model_card({"classes": list(made.classes)}))
    again, notes = load_classifier(ModelConfig(name=str(tmp_path / "encoder")))
    assert torch.equal(again(pictures()), made(pictures())) and notes == [] and again.classes == ()
    width = made(pictures()).shape[1]
    assert describe(again)["num_features"] == width and describe(again)["num_classes"] == 0
    headed, notes = load_classifier(ModelConfig(name=str(tmp_path / "encoder")), ["a", "b", "c"])
    assert headed(pictures()).shape == (4, 3) and headed.classes == ("a", "b", "c") and len(notes) == 1
    assert again.take_classes(()) is False and again.take_classes(["a"]) is True


def test_the_features_of_an_encoder_are_exported_as_a_program(tmp_path):
    assert export_program(dual(tmp_path), tmp_path / "encoder.pt2") <= 1e-5
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    assert program(pictures()).shape == (4, 16)


# ----- routes ----------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_loaded_norms_make_one_route_compute_what_their_network_does_and_leave_the_other_alone():
    natural, adversarial = twins()
    norms = norm_tensors(natural)
    split_routes(adversarial, ("adversarial", "natural"))
    expected = features(adversarial)
    load_route(adversarial, "natural", norms)
    assert torch.equal(features(adversarial), expected)
    with on_route(adversarial, "natural"):
        assert torch.equal(features(adversarial), features(natural))
    kept = norm_tensors(adversarial, "natural")
    assert kept.keys() == norms.keys() and all(torch.equal(kept[key], value) for key, value in norms.items())
    merge_routes(adversarial, "natural")
    assert all(torch.equal(value, natural.state_dict()[key]) for key, value in adversarial.state_dict().items())


def test_counts_of_batches_may_be_missing_from_a_route_and_nothing_else():
    natural, adversarial = twins()
    split_routes(adversarial, ("adversarial", "natural"))
    norms = {key: value for key, value in norm_tensors(natural).items() if "num_batches" not in key}
    load_route(adversarial, "natural", norms)
    assert torch.equal(norm_tensors(adversarial, "natural")["bn1.bias"], norms["bn1.bias"])
    before = {key: value.clone() for key, value in adversarial.state_dict().items()}
    del norms["layer4.1.bn2.bias"]
    norms["bn1.bias"] = norms["bn1.bias"] + 1
    with pytest.raises(LoricaError, match=r"layer4\.1\.bn2\.bias"):
        load_route(adversarial, "natural", norms)
    assert all(torch.equal(value, before[key]) for key, value in adversarial.state_dict().items())


@pytest.mark.parametrize("name", ["model", "encoder"])
def test_the_folder_of_a_run_stands_for_the_model_in_it(tmp_path, name):
    encoder, _ = load_classifier(ModelConfig(name="cifar_resnet20", pretrained=False, arguments={"width": 4}))
    export_folder(encoder, tmp_path / "run" / name, card="")
    again, _ = load_classifier(ModelConfig(name=str(tmp_path / "run")))
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(pixels), encoder(pixels))
    with pytest.raises(LoricaError, match="description of the model not found"):
        load_classifier(ModelConfig(name=str(tmp_path)))
