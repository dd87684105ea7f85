"""`lorica evaluate` on a tiny network: what is measured, of which pictures, kept, resumed, and said."""

import functools
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lorica.artefacts import write_json
from lorica.config import load
from lorica.data.label_split import split_labelled
from lorica.data.labelled import read_labelled
from lorica.data.subsets import balanced
from lorica.errors import LoricaError
from lorica.evaluate import EvaluateConfig, print_evaluation, run
from lorica.evaluate import attacks as attacks_module
from lorica.evaluate import runner as runner_module
from lorica.evaluate.attacks import attack_at
from lorica.evaluate.console import print_flags
from lorica.evaluate.subject import subject_of
from lorica.robustness.attacked import Counted, as_floats, predict
from lorica.robustness.autoattack import AutoAttackSettings, autoattack
from lorica.robustness.corruptions import SEVERITIES, corrupt
from lorica.robustness.flags import Flag, unanswered
from lorica.vision import Classifier, ModelConfig, load_classifier
from lorica.vision.export import export_folder

pytest.importorskip("pyautoattack")

SIDE = 12
COLOURS = {"amber": (230, 160, 40), "blue": (40, 60, 220), "green": (50, 190, 60), "red": (220, 40, 50)}
SMALL = {"iterations": 4, "targets": 3, "queries": 20}


def noisy(colour: tuple[int, ...], rng: np.random.Generator) -> Image.Image:
    grey = np.full((SIDE, SIDE, 3), 128.0)
    levels = grey + 0.12 * (np.array(colour) - grey) + rng.normal(0, 45, grey.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def draw(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Pictures of noisy colours in `part/class/` folders; a part of "" has none of its own."""
    rng = np.random.default_rng(seed)
    for part, count in counts.items():
        for name, colour in COLOURS.items():
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                noisy(colour, rng).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("data"), {"train": 30, "test": 8})


@pytest.fixture(scope="module")
def model(tmp_path_factory, data) -> Path:
    """The folder of a network that is right about most pictures, and not robust."""
    config = ModelConfig(
        name="cifar_resnet20",
        pretrained=False,
        arguments={"width": 4, "depths": [1, 1, 1], "num_classes": 4},
        size=(SIDE, SIDE),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier, _ = load_classifier(config)
        train = read_labelled(data, size=(SIDE, SIDE))["train"]
        classifier.classes = train.classes
        optimiser = torch.optim.Adam(classifier.train().parameters(), 0.02)
        for _ in range(25):
            loss = F.cross_entropy(classifier(train.pixels / 255), train.labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    folder = tmp_path_factory.mktemp("run") / "model"
    export_folder(classifier.eval(), folder, card="a card")
    return folder


@pytest.fixture(autouse=True)
def small_attacks(monkeypatch):
    monkeypatch.setattr(attacks_module, "AutoAttackSettings", functools.partial(AutoAttackSettings, **SMALL))


@pytest.fixture
def configured(tmp_path, data, model):
    def make(**options) -> EvaluateConfig:
        standard = {
            "model": {"name": str(model)}, "data": data, "output": tmp_path / "out", "device": "cpu", "pgd_steps": 3,
            "eps": "4/255", "batch_size": 9, "examples": 0, "cache": tmp_path / "cache",
        }  # fmt: skip
        return EvaluateConfig(**(standard | options))

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, model) -> tuple[EvaluateConfig, dict]:
    """An evaluation with everything in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks_module, "AutoAttackSettings", functools.partial(AutoAttackSettings, **SMALL))
        config = EvaluateConfig(
            model={"name": str(model)}, data=data, output=tmp_path_factory.mktemp("whole"), device="cpu", pgd_steps=3,
            eps=["1/255,4/255"], batch_size=9, examples=3, corruptions="fog,pixelate", members="train",
        )  # fmt: skip
        return config, run(config)


def naive(config: EvaluateConfig) -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    classifier, _ = load_classifier(config.model)
    test = read_labelled(config.data, size=(SIDE, SIDE))["test"]
    return classifier, test.pixels, test.labels


# What is measured


def test_the_file_is_what_was_returned_and_natural_accuracy_is_the_naive_one(whole):
    config, result = whole
    assert json.loads((config.output / "robustness.json").read_text()) == json.loads(json.dumps(result))
    classifier, pixels, labels = naive(config)
    with torch.no_grad():
        said = classifier(pixels / 255).argmax(dim=1)
    natural = result["natural"]
    assert natural["correct"] == int((said == labels).sum()) and natural["n"] == len(labels) == 32
    assert natural["low"] < natural["value"] < natural["high"]
    for name, entry in natural["per_class"].items():
        own = labels == sorted(COLOURS).index(name)
        assert (entry["correct"], entry["n"]) == (int((said == labels)[own].sum()), 8)
    matrix = np.array(natural["confusion"])
    assert matrix.sum(axis=1).tolist() == [8] * 4 and np.trace(matrix) == natural["correct"]


def test_each_radius_is_attacked_as_if_it_were_the_only_one(whole, configured):
    config, result = whole
    classifier, pixels, labels = naive(config)
    for threat, entry in zip(config.threats, result["threats"], strict=True):
        alone = autoattack(classifier, pixels, labels, threat, settings=AutoAttackSettings(**SMALL), batch_size=9)
        assert entry["autoattack"]["accuracy"]["correct"] == int(alone.robust.sum())
        after = [attack["accuracy"]["correct"] for attack in entry["autoattack"]["attacks"]]
        assert after == [int(alone.after[name].sum()) for name in alone.outcomes]
        assert entry["autoattack"]["settings"] == SMALL | {"restarts": 1}


def test_the_worst_case_bounds_every_attack_and_falls_with_the_radius(whole):
    _, result = whole
    correct = [point["correct"] for point in result["curve"]]
    assert correct[0] > correct[1] > correct[2] and result["curve"][0]["eps"] == 0
    for entry in result["threats"]:
        others = [entry["pgd"]["accuracy"], entry["autoattack"]["accuracy"], result["natural"]]
        assert all(entry["robust"]["correct"] <= other["correct"] for other in others)
        assert sum(each["correct"] for each in entry["per_class"].values()) == entry["robust"]["correct"]
        matrix = np.array(entry["confusion"])
        assert matrix.sum() == 32 and np.trace(matrix) == entry["robust"]["correct"]
        assert entry["recheck"]["checked"] > 0 == entry["recheck"]["refused"]


def test_the_cost_is_what_the_attacks_add_up_to(whole):
    _, result = whole
    parts = [e["pgd"] for e in result["threats"]] + [a for e in result["threats"] for a in e["autoattack"]["attacks"]]
    for key in ("forwards", "backwards", "seconds"):
        assert result["cost"]["attacks"][key] == pytest.approx(sum(part[key] for part in parts))
    assert result["cost"]["this_call"]["forwards"] > result["cost"]["attacks"]["forwards"] > 0
    pgd = result["threats"][0]["pgd"]
    # natural, three steps, and one look by PGD and one by us
    assert pgd["forwards"] == 6 * result["natural"]["correct"] and pgd["backwards"] == 3 * result["natural"]["correct"]


def test_what_broke_a_picture_at_a_smaller_radius_breaks_it_at_a_larger_one(configured):
    config = configured(eps="1/255")
    subject = subject_of(config)
    model = Counted(subject.model)
    with model.attacked():
        logits = predict(model, subject.pictures.pixels, batch_size=9)
        result = attack_at(config.threats[0], model, model, subject, config, logits, None)
        assert result.entry["robust"]["correct"] > 0 and result.entry["carried_from_smaller_eps"] == 0
        lost = result.robust.nonzero()[0]
        result.robust[lost], result.predictions[lost] = False, (subject.labels[lost] + 1) % 4
        after = attack_at(config.threats[0], model, model, subject, config, logits, result)
    assert after.entry["carried_from_smaller_eps"] == 1
    assert not after.robust[lost] and torch.equal(after.predictions, result.predictions)


def test_attacks_through_a_quicker_copy_find_what_attacks_on_the_model_itself_find(configured, tmp_path, monkeypatch):
    quickly = run(configured(output=tmp_path / "quickly", eps="1/255,4/255"))
    monkeypatch.setattr(runner_module, "quick", lambda model, pixels: model)
    plainly = run(configured(output=tmp_path / "plainly", eps="1/255,4/255"))
    assert 0 < plainly["threats"][0]["robust"]["correct"] < plainly["natural"]["correct"]
    for one, other in zip(quickly["threats"], plainly["threats"], strict=True):
        assert one["robust"] == other["robust"] and one["per_class"] == other["per_class"]
        assert one["recheck"]["refused"] == one["recheck"]["unconfirmed"] == 0
    assert quickly["cost"]["this_call"]["forwards"] == pytest.approx(plainly["cost"]["this_call"]["forwards"], rel=0.1)


def test_what_pgd_alone_found_counts_and_is_said(configured, monkeypatch):
    def blunt(*arguments, **options):
        return autoattack(*arguments, **(options | {"settings": AutoAttackSettings(("apgd-ce",), iterations=0)}))

    monkeypatch.setattr(attacks_module, "autoattack", blunt)
    result = run(configured(eps="8/255", pgd_steps=10, pgd_restarts=2))
    (entry,) = result["threats"]
    only = entry["broken_by_pgd_only"]
    assert only > 0 and entry["autoattack"]["accuracy"]["correct"] - entry["robust"]["correct"] == only
    (flag,) = [flag for flag in result["flags"] if flag["name"] == "pgd_beats_autoattack"]
    assert flag["raised"] and flag["value"] == only and flag["threat"] == "L-inf 8/255"
    assert not result["verdict"]["trusted"] and "PGD broke" in result["verdict"]["text"]


# Words


def test_the_verdict_says_how_much_is_left_of_how_many_and_with_what_certainty(whole):
    _, result = whole
    left, natural, weaker = result["threats"][1]["robust"], result["natural"], result["threats"][0]["robust"]

    def shown(rate):
        return f"{100 * rate['value']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"

    text = result["verdict"]["text"]
    assert text.startswith(
        f"Standard AutoAttack within L-inf 4/255 left {shown(left)} of 32 test pictures rightly classified; without "
        f"an attacker {shown(natural)}. Within L-inf 1/255: {shown(weaker)}."
    )
    assert "Under 2 common corruptions (corruptions generated here)" in text
    assert f"Side by side: robust accuracy {100 * left['value']:.1f} %, membership AUC" in text
    assert result["verdict"]["upper_bound"] is False


@pytest.mark.parametrize(
    ("tier", "ran"), [("quick", "APGD-CE and plain PGD"), ("lite", "APGD-CE, APGD-T and plain PGD")]
)
def test_lesser_tiers_are_called_an_upper_bound(configured, tier, ran):
    result = run(configured(tier=tier))
    verdict = result["verdict"]
    assert verdict["upper_bound"] and result["threats"][0]["upper_bound"]
    assert " at most " in verdict["text"] and f"an upper bound, as only {ran} ran" in verdict["text"]


def test_the_terminal_shows_verdict_attacks_and_warnings_whatever_names_hold(whole, capsys):
    _, result = whole
    hostile = json.loads(json.dumps(result))
    hostile["warnings"] = ["[bold]not markup[/]"]
    hostile["flags"].append(
        {"threat": None, "name": "x", "raised": True, "value": 1, "problem": "[red]y", "advice": "z", "doubt": True}
    )
    print_evaluation(hostile)
    shown = capsys.readouterr().err
    assert "[bold]not markup[/]" in shown and "[red]y. z" in shown
    natural, weak, strong = (line for line in shown.splitlines() if line.startswith((" natural", " L-inf")))
    assert f"{100 * result['natural']['value']:.1f} % [" in natural and max(map(len, shown.splitlines())) <= 80
    for line, entry in zip((weak, strong), result["threats"], strict=True):
        rates = [entry["pgd"], *entry["autoattack"]["attacks"]]
        assert line.split()[2:7] == [f"{100 * rate['accuracy']['value']:.1f}" for rate in rates]


def test_a_class_name_in_a_flag_cannot_command_the_terminal(capsys):
    flag = unanswered(torch.tensor([0, 0]), torch.tensor([0, 1]), ("b", "a\x1b[2J"))
    print_flags([{"threat": None, **asdict(flag)}])
    said = capsys.readouterr().err
    assert "\x1b" not in said and "a\ufffd[2J" in said


# Which pictures, which classes


def test_pictures_are_drawn_evenly_from_the_classes_and_the_same_ones_again():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    rows = balanced(labels, 12, 5)
    assert rows == sorted(set(rows)) and labels[rows].bincount().tolist() in ([5, 3, 4], [4, 3, 5])
    assert rows == balanced(labels, 12, 5) != balanced(labels, 12, 6)
    assert balanced(labels, None, 0) == balanced(labels, 99, 0) == list(range(73))


def test_fewer_pictures_may_be_asked_for(configured):
    result = run(configured(pictures=10, tier="quick"))
    assert result["data"]["pictures"] == result["natural"]["n"] == 10
    assert sorted(result["data"]["classes"].values()) == [2, 2, 3, 3]


def test_other_shares_of_the_classes_than_those_of_the_set_are_said(configured, tmp_path):
    skewed = draw(tmp_path / "skewed", {"": 4})
    rng = np.random.default_rng(1)
    for i in range(4, 44):
        noisy(COLOURS["red"], rng).save(skewed / "red" / f"{i}.png")  # 44 of 56

    def said(**options) -> list[str]:
        return [note for note in subject_of(configured(**options)).notes if "evenly" in note]

    (note,) = said(data=skewed, pictures=12)
    assert "12 of 56" in note and "red" in note and "25 %" in note and "78.6 %" in note
    assert said(data=skewed) == said(data=skewed, pictures=56) == []
    assert said(pictures=10) == said(pictures=3) == []  # of 32, 8 of each class: 10 cannot be nearer to that


def test_a_source_without_parts_is_evaluated_whole_and_that_is_said(configured, tmp_path):
    result = run(configured(data=draw(tmp_path / "flat", {"": 4}), tier="quick"))
    assert result["data"]["part"] == "all" and result["natural"]["n"] == 16
    assert any("All pictures" in note for note in result["warnings"])


def test_the_split_of_the_models_run_says_what_was_held_out(configured, tmp_path, model):
    flat = draw(tmp_path / "flat", {"": 8})
    split = split_labelled(read_labelled(flat, size=(SIDE, SIDE)), test_share=0.25, val_share=0.2)
    home = tmp_path / "run"
    shutil.copytree(model, home / "model")
    split.save(home / "split.json")
    write_json(home / "run.json", {"weights": "ema", "weights_sha256": "of others"})
    for name in (home, home / "model"):
        subject = subject_of(configured(data=flat, model={"name": str(name)}, members="train"))
        assert subject.pictures.names == split.test.names and subject.members.names == split.train.names
        assert subject.data["split"] and subject.about["weights"] == subject.about["method"] == "unknown"
    given = subject_of(configured(data=flat, split=home / "split.json", part="val"))
    assert given.pictures.names == split.val.names and any("flatter" in note for note in given.notes)


def test_a_split_of_other_pictures_is_refused_unless_the_data_has_the_part_itself(configured, tmp_path, model, data):
    other = draw(tmp_path / "other", {"": 6}, seed=1)
    home = tmp_path / "run"
    shutil.copytree(model, home / "model")
    split_labelled(read_labelled(other, size=(SIDE, SIDE))).save(home / "split.json")
    write_json(home / "run.json", {})
    subject = subject_of(configured(model={"name": str(home)}))
    assert len(subject.pictures) == 32 and any("of other pictures" in note for note in subject.notes)
    flat = draw(tmp_path / "flat", {"": 6}, seed=2)
    with pytest.raises(LoricaError, match="not what they were"):
        subject_of(configured(model={"name": str(home)}, data=flat))
    with pytest.raises(LoricaError):
        subject_of(configured(split=home / "split.json"))


def test_what_is_evaluated_is_taken_from_the_record_that_is_of_them(configured, tmp_path, model):
    from lorica.fingerprint import weights_digest

    home = tmp_path / "run"
    shutil.copytree(model, home / "model")
    own, _ = load_classifier(ModelConfig(name=str(model)))
    write_json(home / "run.json", {"method": "twins", "weights": "ema", "weights_sha256": weights_digest(own)})
    about = subject_of(configured(model={"name": str(home)})).about
    assert (about["method"], about["weights"]) == ("twins", "ema")


@pytest.mark.parametrize("option", [{"part": "val"}, {"members": "everyone"}])
def test_a_part_that_is_not_there_is_refused(configured, option):
    with pytest.raises(LoricaError, match="no such part") as caught:
        run(configured(**option))
    assert "train, test" in caught.value.remedy


def test_members_are_none_of_the_evaluated_pictures(configured, tmp_path, data):
    with pytest.raises(LoricaError, match="very pictures"):
        subject_of(configured(members="test"))
    shared = tmp_path / "shared"
    shutil.copytree(data, shared)
    shutil.copy(shared / "test" / "red" / "0.png", shared / "train" / "red" / "copy.png")
    members = subject_of(configured(data=shared, members="train")).members
    assert len(members) == 120 and "train/red/copy.png" not in members.names


def renamed(model: Path, folder: Path, classes: list[str]) -> Path:
    shutil.copytree(model, folder)
    description = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", description | {"label_names": classes})
    return folder


def test_classes_are_matched_by_name_in_whatever_order_the_model_has_them(configured, tmp_path, model):
    order = [2, 0, 3, 1]
    names = [sorted(COLOURS)[i] for i in order]
    classifier, _ = load_classifier(ModelConfig(name=str(model)))
    with torch.no_grad():
        for parameter in classifier.head.parameters():
            parameter.copy_(parameter[order].clone())
    classifier.classes = tuple(names)
    export_folder(classifier, tmp_path / "turned", card="a card")
    straight, turned = (
        run(configured(model={"name": str(place)}, output=tmp_path / f"out-{place.name}", tier="quick"))
        for place in (model, tmp_path / "turned")
    )
    assert turned["natural"]["correct"] == straight["natural"]["correct"]
    assert turned["natural"]["per_class"] == straight["natural"]["per_class"]


def test_a_model_of_other_classes_is_refused_by_name(configured, tmp_path, model):
    place = renamed(model, tmp_path / "other", ["amber", "blue", "green", "purple"])
    with pytest.raises(LoricaError, match="does not know 1 of the 4 classes of the data, such as 'red'"):
        run(configured(model={"name": str(place)}))
    assert not (tmp_path / "out").exists()


def test_classes_without_names_are_taken_in_the_datas_order_and_that_is_said(configured, tmp_path, model):
    place = renamed(model, tmp_path / "numbered", ["0", "1", "2", "3"])
    straight, numbered = (subject_of(configured(model={"name": str(where)})) for where in (model, place))
    assert torch.equal(numbered.labels, straight.labels) and any("order" in note for note in numbered.notes)
    assert numbered.classes == straight.classes == tuple(sorted(COLOURS))


# Kept and resumed


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "this_call", "provenance")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_a_killed_evaluation_goes_on_where_it_stopped(configured, tmp_path, monkeypatch):
    options = {"eps": "1/255,4/255", "corruptions": ["fog"]}
    expected = run(configured(**options, output=tmp_path / "undisturbed"))
    from lorica.robustness.attacked import Kept

    put, left = Kept.put, 7

    def fragile(self, *arguments):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        put(self, *arguments)

    monkeypatch.setattr(Kept, "put", fragile)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        run(configured(**options))
    folder = tmp_path / "out" / "attacks"
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    assert len(files) == 7 and not (tmp_path / "out" / "robustness.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(attacks_module, "AutoAttackSettings", functools.partial(AutoAttackSettings, **SMALL))
    resumed = run(configured(**options))
    assert without_times(resumed) == without_times(expected)
    assert all(file.stat().st_mtime_ns == time for file, time in files.items())


def test_a_second_call_attacks_nothing_again(configured, monkeypatch):
    options = {"eps": "4/255", "corruptions": ["fog"]}
    first = run(configured(**options))
    second = run(configured(**options))
    assert without_times(second) == without_times(first)
    assert second["cost"]["attacks"] == first["cost"]["attacks"]
    assert second["cost"]["this_call"]["forwards"] < first["cost"]["this_call"]["forwards"] / 3


@pytest.mark.parametrize("classes", [4, 3])
def test_a_higher_tier_goes_on_from_a_lower_one(configured, tmp_path, model, data, classes):
    if classes == 3:  # where the tiers differ in the settings of the attack that they share
        whole, data = data, tmp_path / "three"
        shutil.copytree(whole, data)
        for part in ("train", "test"):
            shutil.rmtree(data / part / "red")
        classifier, _ = load_classifier(ModelConfig(name=str(model)))
        weight, bias = (parameter.detach()[:3].clone() for parameter in classifier.head.parameters())
        classifier.take_classes(classifier.classes[:3])
        with torch.no_grad():
            for parameter, value in zip(classifier.head.parameters(), (weight, bias), strict=True):
                parameter.copy_(value)
        model = tmp_path / "model"
        export_folder(classifier, model, card="a card")
    options = {"data": data, "model": {"name": str(model)}}
    direct = run(configured(**options, tier="lite", output=tmp_path / "direct"))
    run(configured(**options, tier="quick"))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "attacks").rglob("apgd-ce-*")}
    further = run(configured(**options, tier="lite"))
    assert without_times(further) == without_times(direct)
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    files = set((tmp_path / "out" / "attacks").rglob("apgd-ce-*"))
    assert (files == set(before)) is (classes == 4)


def test_other_settings_do_not_take_what_was_kept(configured):
    first = run(configured(tier="quick"))
    other = run(configured(tier="quick", seed=1))
    assert other["cost"]["this_call"]["forwards"] > other["cost"]["attacks"]["forwards"]
    assert first["provenance"]["seed"] == 0 and other["provenance"]["seed"] == 1


def test_an_evaluation_of_another_model_is_not_replaced_unasked(configured, tmp_path, model):
    run(configured(tier="quick"))
    classifier, _ = load_classifier(ModelConfig(name=str(model)))
    with torch.no_grad():
        classifier.backbone.bn1.running_mean += 0.1  # running statistics are part of a model, too
    export_folder(classifier, tmp_path / "moved", card="a card")
    other = {"model": {"name": str(tmp_path / "moved")}, "tier": "quick"}
    with pytest.raises(LoricaError, match="another model"):
        run(configured(**other))
    before = set((tmp_path / "out" / "attacks").iterdir())
    run(configured(**other, overwrite=True))
    assert before.isdisjoint((tmp_path / "out" / "attacks").iterdir())


# Corruptions


def test_accuracy_under_corruptions_is_the_naive_one_and_the_mean_is_over_all_of_them(whole):
    config, result = whole
    table = result["corruptions"]
    classifier, pixels, labels = naive(config)
    assert table["source"] == "lorica" and set(table["types"]) == {"fog", "pixelate"} and table["n"] == 32
    values = []
    for name, entry in table["types"].items():
        for severity in SEVERITIES:
            with torch.no_grad():
                said = classifier(corrupt(as_floats(pixels), name, severity, seed=config.seed)).argmax(dim=1)
            assert entry["severities"][str(severity)]["correct"] == int((said == labels).sum())
            values.append(entry["severities"][str(severity)]["value"])
        assert entry["mean"] == pytest.approx(np.mean(values[-5:]))
    assert table["mean"]["value"] == pytest.approx(np.mean(values))
    assert table["mean"]["low"] < table["mean"]["value"] < table["mean"]["high"]
    for severity in SEVERITIES:
        own = [entry["severities"][str(severity)]["value"] for entry in table["types"].values()]
        assert table["severities"][str(severity)] == pytest.approx(np.mean(own))


def official_folder(folder: Path, types: list[str], side: int = SIDE, classes: int = 4) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in types:
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (5 * 20, side, side, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(np.arange(20) % classes, 5))
    return folder


def test_official_files_bring_their_own_labels(configured, tmp_path):
    folder = official_folder(tmp_path / "c", ["fog", "snow", "spatter"])
    config = configured(corruptions="all", corruptions_folder=folder, tier="quick")
    table = run(config)["corruptions"]
    assert table["source"] == "official" and list(table["types"]) == ["snow", "fog"] and table["n"] == 20
    classifier, _, _ = naive(config)
    pixels = torch.from_numpy(np.load(folder / "fog.npy")[40:60]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        right = classifier(pixels).argmax(dim=1) == torch.arange(20) % 4
    assert table["types"]["fog"]["severities"]["3"]["correct"] == int(right.sum())


@pytest.mark.parametrize(
    ("options", "problem"), [({"side": 10}, r"are \(10, 10\)"), ({"classes": 5}, "more classes than the data")]
)
def test_official_files_of_other_data_are_refused_before_any_attack(configured, tmp_path, options, problem):
    folder = official_folder(tmp_path / "c", ["fog"], **options)
    with pytest.raises(LoricaError, match=problem):
        run(configured(corruptions=True, corruptions_folder=folder))
    assert not (tmp_path / "out").exists()


def test_an_unknown_corruption_is_refused_before_any_attack(configured, tmp_path):
    with pytest.raises(LoricaError, match="frog"):
        run(configured(corruptions="frog"))
    assert not (tmp_path / "out").exists()


# Membership


def test_as_many_members_as_others_are_asked(whole):
    _, result = whole
    found = result["membership"]
    assert (found["members"], found["nonmembers"], found["part"]) == (32, 32, "train")
    assert set(found["attacks"]) == {"loss", "adversarial-loss"} and found["eps"] == pytest.approx(4 / 255)
    for entry in found["attacks"].values():
        assert entry["auc"]["low"] <= entry["auc"]["value"] <= entry["auc"]["high"]


# Examples


def test_examples_show_the_picture_before_and_after_and_what_was_changed(whole):
    config, result = whole
    classifier, pixels, labels = naive(config)
    assert len(result["examples"]) == 3 and len({example["class"] for example in result["examples"]}) == 3
    for example in result["examples"]:
        row = example["index"]
        assert example["natural"] == example["class"] != example["adversarial"]
        assert 0 < example["distance"] <= 4 / 255 + 1e-6 and example["eps"] == pytest.approx(4 / 255)
        shown = {
            name: torch.from_numpy(np.array(Image.open(config.output / file)))[::21, ::21].permute(2, 0, 1)
            for name, file in example["files"].items()
        }
        assert torch.equal(shown["natural"], pixels[row])
        moved = (shown["adversarial"].int() - shown["natural"].int()).abs()
        assert 0 < moved.max() <= 5
        fools = classifier(shown["adversarial"][None] / 255).argmax() != labels[row]
        assert example["fools_as_8_bit"] == bool(fools)
        expected = 127.5 + 16 * (shown["adversarial"].float() - shown["natural"].float())
        assert (shown["difference"].float() - expected.clamp(0, 255)).abs().max() <= 9  # half a level, 16 times


# Configuration


@pytest.mark.parametrize("given", [["4/255,8/255"], ["8/255", "4/255"], "8/255,4/255,8/255", [4 / 255, "8/255"]])
def test_radii_are_written_as_people_do(given, configured):
    assert configured(eps=given).eps == [4 / 255, 8 / 255]
    options = {"eps": given, "data": "x"}
    assert load(EvaluateConfig, options=options).eps == [4 / 255, 8 / 255]


def test_the_customary_radius_depends_on_the_norm(configured):
    assert [threat.eps for threat in configured(eps=None).threats] == [8 / 255]
    assert [threat.eps for threat in configured(eps=None, norm="l2").threats] == [0.5]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"eps": "8"}, "pixels lie in"),
        ({"eps": "128", "norm": "l2"}, "pixels lie in"),
        ({"eps": "eight"}, "not a number"),
        ({"eps": []}, "at least one"),
        ({"corruptions_folder": "c"}, "without --corruptions"),
    ],
)
def test_impossible_settings_are_refused(options, problem):
    with pytest.raises(LoricaError, match=problem):
        load(EvaluateConfig, options={"data": "x"} | options)


def test_results_lie_in_the_folder_of_the_models_run(tmp_path):
    assert EvaluateConfig(data="x", model={"name": str(tmp_path)}).folder == tmp_path / "evaluation"
    assert EvaluateConfig(data="x", model={"name": "resnet18"}).folder == Path("runs/evaluation")


def test_the_configuration_comes_back_from_yaml(configured, tmp_path):
    config = configured(eps="4/255,8/255", corruptions="fog", members="train")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load(EvaluateConfig, file=tmp_path / "config.yaml") == config


def test_a_model_whose_logits_are_not_finite_is_refused(configured, tmp_path, model, monkeypatch):
    monkeypatch.setattr(Classifier, "forward", lambda self, x: torch.full((len(x), 4), float("nan")))
    with pytest.raises(LoricaError, match="not finite for 32 of 32"):
        run(configured())


def test_a_raised_doubt_is_part_of_the_verdict(configured, monkeypatch):
    from lorica.evaluate import runner

    flags = [Flag("x", True, 1, "the sky falls", "Wait."), Flag("y", False, 0, "all is well", "Rest.")]
    monkeypatch.setattr(runner, "probe", lambda *arguments, **options: flags)
    verdict = run(configured(tier="quick"))["verdict"]
    assert not verdict["trusted"] and "may be lower: the sky falls." in verdict["text"]
    assert "all is well" not in verdict["text"]


def test_classes_that_are_never_answered_are_named() -> None:
    labels, classes = torch.tensor([0, 1, 2, 3, 3]), ("hat", "shoe", "sock", "tie", "belt")
    flag = unanswered(torch.tensor([3, 1, 1, 3, 4]), labels, classes)
    assert flag.raised and flag.value == 2 and "2 of the 4 classes that it is shown: hat, sock" in flag.problem
    assert not flag.doubt and not unanswered(torch.tensor([3, 2, 1, 0, 4]), labels, classes).raised
