"""Exported classifiers: each form computes what the network does, and tells nothing of the machine it was made on."""

import json
import logging
import math
import sys
import warnings
from collections import Counter
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
import transformers
import yaml
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file
from torch import nn

import lorica.vision.cifar_resnet
from lorica.artefacts import write_with
from lorica.errors import LoricaError
from lorica.vision import Classifier, ModelConfig, load_classifier
from lorica.vision.card import model_card
from lorica.vision.export import describe, export_folder, export_onnx, export_program, require_onnx

CLASSES = ["cat", "dog", "Füchslein"]
TINY = {
    "cifar_resnet18": {"width": 4},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 16, "depth": 2, "embed_dim": 12, "num_heads": 3},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]},
}
MEAN, STD = (0.4914, 0.1, 0.9), (0.247, 0.3, 1.5)


def network(name="cifar_resnet18", size=(32, 32), **arguments) -> Classifier:
    """A tiny one of random weights and batch statistics."""
    torch.manual_seed(0)
    config = ModelConfig(
        name=name, pretrained=False, arguments=TINY.get(name, {}) | arguments, size=size, mean=MEAN, std=STD
    )
    classifier, _ = load_classifier(config, CLASSES)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for parameter in classifier.parameters():  # nothing starts at zero, which would hide what is lost
        parameter.data += 0.05 * torch.randn_like(parameter)
    return classifier


def pictures(count=3, size=(32, 32)):
    return torch.rand((count, 3, *size), generator=torch.Generator().manual_seed(1))


def normalised(pixels, folder):
    known = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    mean, std = (torch.tensor(known[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (pixels - mean) / std


ALL = pytest.mark.parametrize("name", TINY)


# ----- the folder ------------------------------------------------------------------------------------------------
@ALL
@torch.no_grad()
def test_timm_and_lorica_load_an_exported_folder_with_identical_logits(name, tmp_path):
    classifier, x = network(name), pictures()
    export_folder(classifier, tmp_path / "model", card="# Card")
    again, notes = load_classifier(ModelConfig(name=str(tmp_path / "model")), CLASSES)
    assert torch.equal(again(x), classifier(x)) and notes == []
    assert again.classes == tuple(CLASSES) and again.architecture == classifier.architecture
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert torch.equal(plain(normalised(x, tmp_path / "model")), classifier(x))
    assert list(plain.pretrained_cfg["label_names"]) == CLASSES
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@torch.no_grad()
def test_transformers_loads_an_exported_folder_of_a_timm_network(tmp_path):
    classifier, x = network("convnext_atto"), pictures()
    export_folder(classifier, tmp_path, card="")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(model(normalised(x, tmp_path)).logits, classifier(x), rtol=0, atol=1e-6)
    assert model.config.id2label == dict(enumerate(CLASSES))


def test_a_description_states_what_timm_needs_in_plain_numbers():
    described = describe(network(drop_rate=0.1))
    assert described["architecture"] == "cifar_resnet18" and described["num_classes"] == 3
    assert described["label_names"] == CLASSES and described["num_features"] == 32
    assert described["model_args"]["width"] == 4 and "num_classes" not in described["model_args"]
    known = described["pretrained_cfg"]
    assert known["mean"] == list(MEAN) and known["std"] == list(STD)
    assert known["input_size"] == [3, 32, 32] and known["classifier"] == "fc" and known["first_conv"] == "conv1"
    assert known["fixed_input_size"] is False
    assert describe(network("vit_tiny_patch16_224"))["pretrained_cfg"]["fixed_input_size"] is True


@torch.no_grad()
def test_a_transformer_resized_to_its_pictures_is_loaded_at_that_size(tmp_path):
    classifier = network("vit_tiny_patch16_224", size=(48, 32))
    assert classifier.architecture.size == (48, 32)
    export_folder(classifier, tmp_path, card="")
    again, _ = load_classifier(ModelConfig(name=str(tmp_path)))
    assert torch.equal(again(pictures(size=(48, 32))), classifier(pictures(size=(48, 32))))
    assert again.architecture.size == (48, 32)


@torch.no_grad()
def test_pooling_other_than_the_default_survives(tmp_path):
    classifier, x = network("resnet10t", global_pool="max"), pictures()
    export_folder(classifier, tmp_path, card="")
    again, _ = load_classifier(ModelConfig(name=str(tmp_path)), ["other", "classes"])
    first = timm.create_model("resnet10t", global_pool="max", num_classes=0).eval()
    first.load_state_dict({k: v for k, v in again.backbone.state_dict().items() if not k.startswith("fc.")})
    features = again.backbone.forward_head(again.backbone.forward_features(x), pre_logits=True)
    assert torch.equal(features, first(x))


@pytest.mark.parametrize("export", [export_folder, export_program], ids=["folder", "program"])
def test_a_model_keeps_its_mode_its_weights_and_its_gradients(export, tmp_path):
    classifier = network().train()
    classifier.backbone.bn1.eval()
    classifier.to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    export(classifier, tmp_path / "out", **({"card": ""} if export is export_folder else {}))
    assert classifier.training and classifier.backbone.fc.training and not classifier.backbone.bn1.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
    assert classifier.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_a_model_in_training_is_exported_as_it_computes_in_evaluation(tmp_path):
    classifier = network().train()
    export_folder(classifier, tmp_path, card="")
    again, _ = load_classifier(ModelConfig(name=str(tmp_path)))
    assert torch.equal(again(pictures()), classifier.eval()(pictures()))


def test_tied_weights_are_written(tmp_path):
    classifier = network()
    classifier.backbone.layer1[0].conv2.weight = classifier.backbone.layer1[0].conv1.weight
    export_folder(classifier, tmp_path, card="")
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(weights["layer1.0.conv1.weight"], weights["layer1.0.conv2.weight"])


def test_an_earlier_model_is_replaced_and_stays_when_the_new_one_cannot_be_exported(tmp_path):
    export_folder(network(width=2), tmp_path, card="old")
    export_folder(network(), tmp_path, card="new")
    assert (tmp_path / "README.md").read_text() == "new"
    assert load_classifier(ModelConfig(name=str(tmp_path)))[0].architecture.arguments["width"] == 4
    broken = network()
    broken.backbone.fc = nn.Linear(32, 5)  # not what its classes say
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(LoricaError):
        export_folder(broken, tmp_path, card="broken")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_network_that_its_description_does_not_make_again_is_refused(tmp_path):
    classifier = network()
    classifier.backbone.layer1[0].register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(LoricaError, match="does not compute what the network does"):
        export_folder(classifier, tmp_path / "model", card="")
    classifier = network()
    classifier.backbone.fc.weight.data[0, 0] = math.nan
    with pytest.raises(LoricaError, match="not finite"):
        export_folder(classifier, tmp_path / "model", card="")
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_json_cannot_hold_are_refused(tmp_path):
    classifier = network("resnet10t", act_layer=nn.SiLU)
    with pytest.raises(LoricaError, match="arguments of resnet10t cannot be written"):
        export_folder(classifier, tmp_path / "model", card="")


def test_a_place_that_cannot_be_written_is_an_error_with_its_name(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(LoricaError, match=f"cannot write {tmp_path / 'file'}"):
            export_folder(network(), place, card="")
    assert (tmp_path / "file").read_text() == "in the way"


# ----- ONNX and torch programs -----------------------------------------------------------------------------------
def says_nothing_of_this_machine(file):
    content = file.read_bytes()
    places = {Path(timm.__file__).parent, Path(lorica.vision.cifar_resnet.__file__).parent, Path.home(), Path.cwd()}
    return not any(str(place).encode() in content for place in places if len(place.parts) > 2)


@pytest.mark.parametrize("name", ["cifar_resnet18", "vit_tiny_patch16_224"])
@torch.no_grad()
def test_an_onnx_file_takes_pixels_in_batches_of_any_size(name, tmp_path, capfd):
    classifier = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        difference = export_onnx(classifier, tmp_path / "model.onnx")
    assert 0 <= difference < 1e-5
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("pixels", ["batch", 3, 32, 32])
    assert (returned.name, returned.shape) == ("logits", ["batch", 3])
    for count in (1, 2, 7):
        x = pictures(count)
        (logits,) = session.run(None, {"pixels": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), classifier(x), rtol=0, atol=1e-5)
    assert says_nothing_of_this_machine(tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@ALL
@torch.no_grad()
def test_a_torch_program_takes_pixels_in_batches_of_any_size(name, tmp_path, capfd):
    classifier = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        difference = export_program(classifier, tmp_path / "model.pt2")
    assert difference <= 1e-6
    assert capfd.readouterr() == ("", "")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 2, 7):
        torch.testing.assert_close(program(pictures(count)), classifier(pictures(count)), rtol=0, atol=1e-6)
    assert says_nothing_of_this_machine(tmp_path / "model.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


class BatchBound(nn.Module):
    """Knows pictures two at a time only, as a tracer sees it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + (1.0 if len(x) == 2 else 0.0)


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_network_that_depends_on_the_size_of_the_batch_is_refused_and_an_earlier_file_stays(export, tmp_path):
    classifier = network()
    classifier.backbone = BatchBound(classifier.backbone)
    (tmp_path / "model").write_text("earlier")
    with pytest.raises(LoricaError, match="cifar_resnet18 cannot be traced"):
        export(classifier, tmp_path / "model")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["earlier"]


def test_a_program_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "load", lambda file: type("P", (), {"module": lambda self: network(width=2)})())
    with pytest.raises(LoricaError, match="the exported program does not compute"):
        export_program(network(), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_library_is_named_with_what_installs_it(missing, tmp_path, monkeypatch):
    require_onnx()
    monkeypatch.setitem(sys.modules, missing, None)
    for needed in (require_onnx, lambda: export_onnx(network(), tmp_path / "model.onnx")):
        with pytest.raises(LoricaError) as caught:
            needed()
        assert f"of which {missing} is missing" in caught.value.problem and "lorica[onnx]" in caught.value.remedy


def test_weights_beyond_what_onnx_holds_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(lorica.vision.export, "_LARGEST", 1000)
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: pytest.fail("it was traced"))
    with pytest.raises(LoricaError, match="2 GiB"):
        export_onnx(network(), tmp_path / "model.onnx")


def test_the_user_s_log_is_as_loud_after_an_export_as_before(tmp_path):
    export_program(network(width=1), tmp_path / "model.pt2")
    assert logging.root.manager.disable == logging.NOTSET and logging.getLogger("x").isEnabledFor(logging.WARNING)


# ----- the card --------------------------------------------------------------------------------------------------
FACTS = {
    "name": "fox-classifier", "architecture": "cifar_resnet18", "size": (32, 32), "classes": CLASSES,
    "license": "apache-2.0", "method": "autolora", "pretrained": "timm/resnet18.a1_in1k", "data": "foxes",
    "weights": "ema", "seeds": [0, 1], "threat": "L-inf 8/255", "attack": "AutoAttack", "attack_version": "standard",
    "natural": {"value": 0.9, "low": 0.88, "high": 0.92, "level": 0.95, "n": 1000},
    "robust": {"value": 0.514, "low": 0.48, "high": 0.55, "level": 0.95, "n": 1000},
    "hardware": {"device": "CPU"}, "versions": {"torch": "2.15"},
}  # fmt: skip


def front_matter(card):
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_card_states_what_was_measured_how_and_on_what():
    head, body = front_matter(model_card(FACTS))
    assert head["license"] == "apache-2.0" and head["library_name"] == "timm" and "timm" in head["tags"]
    assert body.lstrip().startswith("# `fox-classifier`\n")
    for said in (
        "**Threat model:** `L-inf 8/255`",
        "**Robust accuracy:** 51.4% (95% interval 48.0% to 55.0%) of 1,000 pictures",
        "**Attack:** `AutoAttack`, version `standard`",
        "**Weights:** averaged over training (EMA)",
        "**Method:** `autolora`",
        "**Began with:** `timm/resnet18.a1_in1k`",
        "**Seeds:** `0`, `1`",
        "**Hardware:** `device` `CPU`",
        "**Classes:** `cat`, `dog`, `Füchslein`",
    ):
        assert said in body
    assert "upper bound" not in body and "import timm, lorica.vision.cifar_resnet" in body


def test_a_card_of_nothing_claims_nothing():
    head, body = front_matter(model_card({}))
    assert head["license"] == "unknown"
    assert "**Robust accuracy:** not measured" in body and "**Natural accuracy:** not measured" in body
    assert "nothing here shows that this model is robust" in body
    assert "**Seeds:** not stated" in body and "**Data:** not stated" in body


@pytest.mark.parametrize(
    "changes", [{"attack_version": "quick"}, {"attack_version": None}, {"attack": "PGD-20"}, {"attack": None}]
)
def test_whatever_is_not_standard_autoattack_is_called_an_upper_bound(changes):
    assert "is an upper bound" in model_card(FACTS | changes)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5, -0.1, "0.9", True, None, [0.5]])
def test_what_is_no_accuracy_counts_as_not_measured(value):
    card = model_card(FACTS | {"robust": {"value": value}})
    assert "**Robust accuracy:** not measured" in card and "nothing here shows" in card


def test_a_card_reads_the_record_of_a_run_and_shows_names_but_no_paths():
    record = {
        "method": "twins", "threat": "L-inf 8/255", "weights": "raw", "seed": 3, "val_robust": 0.41, "fast_mode": True,
        "config": {"data": "/home/alice/secret/foxes", "model": {"name": "resnet18", "checkpoint": "C:\\alice\\w.pt"}},
    }  # fmt: skip
    card = model_card(record)
    assert "**Data:** `foxes`" in card and "**Began with:** `w.pt`" in card and "**Seeds:** `3`" in card
    assert "alice" not in card and "**Weights:** raw, not averaged" in card
    assert "41.0%; the weights were chosen on these pictures" in card and "fast mode" in card


HOSTILE = (
    "x`</code><script>alert(1)</script>\n\n---\n# Owned\n- [a](javascript:b) | "
    "\x1b[31m\u202e\u2028\udcff ```sh\nrm\n```"
)


@pytest.mark.parametrize("key", [*FACTS, "caveats", "seed", "val_robust", "counts"])
def test_hostile_text_stays_inside_its_code_span(key):
    value = {"classes": [HOSTILE], "seeds": [HOSTILE], "caveats": [HOSTILE]}.get(key, HOSTILE)
    if isinstance(FACTS.get(key), dict) or key == "counts":
        value = {HOSTILE: HOSTILE, "value": HOSTILE, "n": HOSTILE, "level": HOSTILE}
    card = model_card(FACTS | {key: value})
    head, body = front_matter(card)
    plain, _ = front_matter(model_card(FACTS | {key: ["x"] if isinstance(value, list) else "x"}))
    assert head.keys() == plain.keys() and head["tags"] == plain["tags"]
    assert card.isascii() or all(letter.isprintable() or letter == "\n" for letter in card)
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    found = Counter(token.type for block in tokens for token in [block, *(block.children or [])])
    assert not found.keys() & {
        "html_inline",
        "html_block",
        "link_open",
        "image",
        "table_open",
        "hr",
        "s_open",
        "em_open",
    }
    assert found["fence"] == 2 and found["code_block"] == 0
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2", "h2", "h2", "h2"]
    prose = [t.content for block in tokens for t in block.children or [] if t.type == "text"]
    assert not any(word in line for line in prose for word in ("script", "Owned", "alert"))


def test_a_thousand_classes_are_counted_and_long_values_cut():
    card = model_card({"classes": [f"class {i}" for i in range(1000)], "method": "m" * 5000})
    assert "and 980 more" in card and "class 20" not in card and len(card) < 5000


def test_the_card_lands_in_the_folder_whatever_its_classes_are_called(tmp_path):
    classifier = network()
    classifier.classes = ("a\udcff", HOSTILE, "ok")
    export_folder(classifier, tmp_path, card=model_card({"classes": list(classifier.classes)}))
    again, _ = load_classifier(ModelConfig(name=str(tmp_path)))
    assert again.classes == classifier.classes


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_folders_are_exported_without_the_libraries_of_onnx(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "lorica.vision.export")
    from lorica.vision.export import export_folder as fresh

    fresh(network(), tmp_path, card="")
    assert (tmp_path / "config.json").is_file()


def test_weights_may_be_read_by_whom_other_files_may_be_read_by(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_with(tmp_path / "weights", lambda part: save_file({"a": torch.zeros(1)}, part))
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "other").stat().st_mode
