"""`lorica pretrain` from the command line: every method, what it leaves, what it refuses, and how it goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from lorica.cli import app
from lorica.monitor import read_metrics
from lorica.pretrain import run
from lorica.pretrain.losses import nt_xent
from lorica.pretrain.methods import METHODS
from lorica.report.pretraining import load_pretraining
from lorica.robustness.pgd import crafting
from lorica.verbs import register
from lorica.vision import ModelConfig, load_classifier
from lorica.vision.batch_norm import norm_tensors
from pretrain_runs import SIDE, random_pictures, tiny_config, tiny_trainer, write_pictures

TINY = [
    "--model", "cifar_resnet20", "--set", "model.arguments={width: 4}", "--model-size", f"{SIDE},{SIDE}",
    "--epochs", "2", "--batch-size", "4", "--attack-steps", "2", "--device", "cpu",
]  # fmt: skip


def lorica(*arguments: object) -> tuple[int, str]:
    register(str(arguments[0]))
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_a_compiled_encoder_learns_the_same_in_whole_graphs(monkeypatch):
    original, compiled = nn.Module.compile, []

    def compile_quickly(self):  # the same graphs, without a C++ compiler's time
        compiled.append(self)
        original(self, backend="aot_eager", fullgraph=True)  # which a graph break would end

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    states = []
    for option in (False, True):
        trainer = tiny_trainer(tiny_config(compile=option))
        trainer.begin_epoch()
        for batch in trainer.pending():
            trainer.step(*batch)
        states.append(trainer.method.state_dict())
        assert len(compiled) == 2 * option  # what learns, and what is attacked
    plain, other = states
    assert plain.keys() == other.keys()
    assert all(torch.allclose(plain[name], other[name], atol=1e-5) for name in plain)


@pytest.mark.parametrize("invariance", ["none", "sir", "air", "both"])
@pytest.mark.parametrize("method", [*METHODS, "dynacl original"])
def test_every_method_runs_with_every_invariance(pictures, tmp_path, method, invariance):
    name, _, flavour = method.partition(" ")
    options = ["--set", f"options.flavour={flavour}"] if flavour else []
    code, said = lorica(
        "pretrain", "--data", pictures, "--output", tmp_path / "run", "--method", name, "--invariance", invariance,
        *TINY, *options,
    )  # fmt: skip
    assert code == 0, said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["method"], record["invariance"], record["steps"]) == (name, invariance, 4)
    assert record["route"] == ("natural" if name == "scl" else "adversarial")
    rows = read_metrics(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [1, 2]
    asked = {"sir": invariance in ("sir", "both"), "air": invariance in ("air", "both"), "adversarial": name != "scl"}
    for term, expected in asked.items():
        assert all((term in row) is expected and (f"weight_{term}" in row) is expected for row in rows), term
    encoder, _ = load_classifier(ModelConfig(name=str(tmp_path / "run" / "encoder")))
    assert encoder(torch.rand(2, 3, SIDE, SIDE)).shape == (2, 16)
    assert (encoder.natural_norms is None) is (name == "scl")
    assert (tmp_path / "run" / "report.html").read_text().count("<section") >= 3
    assert (tmp_path / "run" / "views.png").stat().st_size > 100


def test_a_probed_run_says_how_well_labels_are_told_and_of_how_many(tmp_path):
    labelled = write_pictures(tmp_path / "labelled", count=40, labels=2)
    code, said = lorica(
        "pretrain", "--data", labelled, "--probe", labelled, "--probe-every", 1, "--output", tmp_path / "run", *TINY
    )
    assert code == 0, said
    for row in read_metrics(tmp_path / "run"):
        for name in ("knn_natural", "knn_robust", "linear_natural", "linear_robust"):
            assert 0 <= row[name] <= 1
    probe = json.loads((tmp_path / "run" / "run.json").read_text())["probe"]
    assert (probe["train"], probe["test"], probe["classes"]) == (26, 6, ["class_0", "class_1"])
    assert probe["linear_natural"]["n"] == 6
    assert probe["linear_natural"]["value"] >= probe["linear_robust"]["value"]


def test_the_probe_never_sees_the_test_part(tmp_path, monkeypatch):
    for seed, part in enumerate(("train", "test")):
        write_pictures(tmp_path / "labelled" / part, count=20, labels=2, seed=seed)
    import lorica.pretrain.runner as home

    seen = []

    class Witness(home.Probe):
        def __init__(self, train, test, **options):
            seen.extend([*train.names, *test.names])
            super().__init__(train, test, **options)

    monkeypatch.setattr(home, "Probe", Witness)
    run(tiny_config(data=tmp_path / "labelled", probe=tmp_path / "labelled", output=tmp_path / "run"))
    assert len(seen) == 20 and all(name.startswith("train/") for name in seen)


def test_the_encoder_loads_in_timm_and_gives_the_features_of_the_trained_network(pictures, tmp_path):
    config = tiny_config(data=pictures, output=tmp_path / "run", method="acl")
    run(config)
    folder = tmp_path / "run" / "encoder"
    ours, _ = load_classifier(ModelConfig(name=str(folder)))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = torch.rand(2, 3, SIDE, SIDE)
    torch.testing.assert_close(theirs((pixels - ours.mean) / ours.std), ours(pixels))
    assert "cifar_resnet20" in (folder / "README.md").read_text()


def test_the_same_seed_gives_the_same_encoder_and_another_seed_another(pictures, tmp_path):
    digests = [
        run(tiny_config(data=pictures, output=tmp_path / str(k), seed=seed))["encoder_sha256"]
        for k, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_pictures_of_any_size_mode_and_depth_of_folders_are_read(tmp_path):
    from PIL import Image

    write_pictures(tmp_path / "some" / "deep", count=4, side=5)
    write_pictures(tmp_path / "some" / "wide", count=4, side=40)
    Image.new("L", (9, 30), 128).save(tmp_path / "some" / "grey.png")
    Image.new("RGBA", (20, 9), (9, 9, 9, 99)).save(tmp_path / "some" / "clear.png")
    assert run(tiny_config(data=tmp_path / "some", output=tmp_path / "run", epochs=1))["pictures"] == 10


def test_of_divided_folders_only_the_training_part_is_read(tmp_path):
    write_pictures(tmp_path / "all" / "train", count=8, labels=2)
    write_pictures(tmp_path / "all" / "test", count=6, labels=2)
    assert run(tiny_config(data=tmp_path / "all", output=tmp_path / "run", epochs=1))["pictures"] == 8


def test_crafted_views_stay_within_the_radius_and_raise_the_loss():
    trainer = tiny_trainer(tiny_config(method="acl", attack={"steps": 5}, batch_size=8))
    trainer.begin_epoch()
    ((pixels,),) = trainer.pending()
    natural = trainer.draw(pixels, 1)
    attacked = trainer.attack(natural, 1)
    for view, found in zip(natural, attacked, strict=True):
        assert float((found - view).abs().max()) <= 8 / 255 + 1e-6
        assert float(found.min()) >= 0 and float(found.max()) <= 1

    def loss(views):
        with crafting(trainer.method), trainer.method.attacked(), torch.no_grad():
            return float(nt_xent(*trainer.method.attackable()(torch.cat(views)).chunk(2)))

    assert loss(attacked) > loss(natural)


def test_crafting_leaves_weights_statistics_and_gradients_alone():
    trainer = tiny_trainer(tiny_config(method="acl"), random_pictures(4))
    trainer.begin_epoch()
    before = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    ((pixels,),) = trainer.pending()
    trainer.attack(trainer.draw(pixels, 1), 1)
    assert all(torch.equal(before[name], value) for name, value in trainer.method.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in trainer.method.parameters())


def test_scl_alone_makes_one_pass_and_no_attack():
    trainer = tiny_trainer(tiny_config(method="scl", invariance="none"), random_pictures(4))
    trainer.attack = None  # type: ignore[assignment]
    trainer.begin_epoch()
    ((pixels,),) = trainer.pending()
    seen = []
    trainer.method.network.encoder.register_forward_hook(lambda module, given, made: seen.append(len(made)))
    trainer.step(pixels)
    assert seen == [8]


# ----- what is refused ----------------------------------------------------------------------------------------------
def test_fewer_pictures_than_a_batch_are_refused_before_anything_is_written(pictures, tmp_path):
    code, said = lorica("pretrain", "--data", pictures, "--output", tmp_path / "run", *TINY, "--batch-size", 16)
    assert code == 2
    assert "8 picture(s) make no batch of 16" in said and "smaller batch" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_broken_file_is_named(tmp_path):
    write_pictures(tmp_path / "some")
    (tmp_path / "some" / "broken.png").write_bytes(b"no picture")
    code, said = lorica("pretrain", "--data", tmp_path / "some", "--output", tmp_path / "run", *TINY)
    assert code == 2 and "broken.png" in said and not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "folder of pictures not found"),
        (["--method", "simclr"], "unknown pre-training method 'simclr'"),
        (["--attack-eps", "8"], "8/255"),
        (["--attack-step-size", "1"], "at most as long as the ball"),
        (["--method", "acl", "--set", "options.momentum=0.5"], "has no options"),
        (["--set", "options.flavour=sweet"], "options of method dynacl"),
        (["--warmup-epochs", "2"], "leave no time"),
        (["--form", "relic"], "form"),
        (["--temperature", "0"], "temperature"),
        (["--batch-size", "2"], "batch_size"),
    ],
)
def test_a_bad_setting_is_refused_with_its_name(pictures, tmp_path, arguments, words):
    code, said = lorica("pretrain", "--data", pictures, "--output", tmp_path / "run", *TINY, *arguments)
    assert code == 2 and words in " ".join(said.split())
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("*.yaml"))


def test_an_earlier_run_is_neither_replaced_unasked_nor_resumed_as_another(pictures, tmp_path):
    base = ["pretrain", "--data", pictures, "--output", tmp_path / "run", *TINY]
    assert lorica(*base)[0] == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    code, said = lorica(*base)
    assert code == 2 and "--resume" in said
    code, said = lorica(*base, "--resume", "--lambda2", "2")
    assert code == 2 and "lambda2 (was 0.5, now 2.0)" in " ".join(said.split())
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert lorica(*base, "--overwrite", "--seed", "1")[0] == 0
    assert (tmp_path / "run" / "run.json").read_bytes() != before


def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_last_checkpoint(pictures, tmp_path):
    code, said = lorica("pretrain", "--data", pictures, "--output", tmp_path / "run", *TINY, "--learning-rate", "1e38")
    assert code == 2 and "diverged" in said and not (tmp_path / "run" / "run.json").exists()


# ----- going on -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["acl", "dynacl original"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_was_stopped_at_any_step_ends_in_the_same_bits(pictures, tmp_path, monkeypatch, method, stop):
    from lorica.pretrain.trainer import Trainer

    name, _, flavour = method.partition(" ")
    settings = {
        "data": pictures,
        "method": name,
        "options": {"flavour": flavour} if flavour else {},
        "checkpoint_every": 1,
    }
    whole = run(tiny_config(output=tmp_path / "whole", **settings))
    original, left = Trainer.step, stop

    def step(self, pixels):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        original(self, pixels)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(output=tmp_path / "cut", **settings))
    monkeypatch.setattr(Trainer, "step", original)
    again = run(tiny_config(output=tmp_path / "cut", resume=True, **settings))
    assert again["encoder_sha256"] == whole["encoder_sha256"]
    for mine, theirs in zip(read_metrics(tmp_path / "cut"), read_metrics(tmp_path / "whole"), strict=True):
        assert {k: v for k, v in mine.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}


def test_a_complete_run_is_not_run_again(pictures, tmp_path):
    config = tiny_config(data=pictures, output=tmp_path / "run")
    record = run(config)
    assert run(config.model_copy(update={"resume": True})) == record


# ----- DynACL++ -----------------------------------------------------------------------------------------------------
def test_plus_plus_trains_on_clusters_and_delivers_an_encoder_without_a_head(tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=24, labels=2)
    config = tiny_config(data=folder, output=tmp_path / "run", plus_plus=2, plus_plus_epochs=1)
    record = run(config)
    done = record["plus_plus"]
    assert (done["clusters"], sum(done["pictures"]), done["epochs"]) == (2, 24, [1, 1])
    assert (tmp_path / "run" / "plus_plus" / "2_1" / "all" / "run.json").is_file()
    after, _ = load_classifier(ModelConfig(name=str(tmp_path / "run" / "encoder")))
    before, _ = load_classifier(ModelConfig(name=str(tmp_path / "run" / "plus_plus" / "2_1" / "before")))
    pixels = torch.rand(2, 3, SIDE, SIDE)
    assert after(pixels).shape == before(pixels).shape == (2, 16)
    assert not torch.allclose(after(pixels), before(pixels))
    assert "DynACL++ on `2` clusters" in (tmp_path / "run" / "encoder" / "README.md").read_text()


def test_plus_plus_can_be_added_to_a_run_that_was_stopped_before_it(tmp_path, monkeypatch):
    import lorica.pretrain.deliver as home

    folder = write_pictures(tmp_path / "pictures", count=24, labels=2)
    config = tiny_config(data=folder, output=tmp_path / "run", plus_plus=2, plus_plus_epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(home, "plus_plus", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    again = run(config.model_copy(update={"resume": True}))
    assert again["encoder_sha256"] == run(config.model_copy(update={"output": tmp_path / "whole"}))["encoder_sha256"]


def test_more_clusters_than_pictures_are_refused(pictures, tmp_path):
    code, said = lorica("pretrain", "--data", pictures, "--output", tmp_path / "run", *TINY, "--plus-plus", 9)
    assert code == 2 and "9 clusters of 8 pictures" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_plus_plus_can_be_added_to_a_complete_run(tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=24, labels=2)
    config = tiny_config(data=folder, output=tmp_path / "run")
    first = run(config)
    more = {"resume": True, "plus_plus": 2, "plus_plus_epochs": 1}
    second = run(config.model_copy(update=more))
    assert first["plus_plus"] is None and second["plus_plus"]["clusters"] == 2
    assert second["seconds"] == pytest.approx(first["seconds"], abs=1)
    assert run(config.model_copy(update=more)) == second


# ----- with no other option -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pictures", "batch"), [(40, 32), (256, 32), (400, 32), (512, 64), (4000, 256), (50_000, 512)]
)
def test_a_batch_is_a_power_of_two_that_makes_eight_steps_of_few_pictures(pictures, batch):
    assert tiny_config(batch_size=None).batch_of(pictures) == batch
    assert tiny_config(batch_size=100).batch_of(pictures) == 100


def test_only_the_folder_has_to_be_given(tmp_path, monkeypatch):
    write_pictures(tmp_path / "some", count=40, side=20)
    monkeypatch.chdir(tmp_path)
    fast = ["--epochs", "1", "--set", "model.arguments={width: 4}"]  # the network and the time of it aside
    code, said = lorica("pretrain", "--data", "some", *fast)
    assert code == 0, said
    record = json.loads(Path("runs/pretrain/run.json").read_text())
    assert (record["method"], record["invariance"], record["form"]) == ("dynacl", "both", "paper")
    assert (record["batch_size"], record["size"], record["architecture"]) == (32, [32, 32], "cifar_resnet18")
    for name in ("encoder/model.safetensors", "report.html", "metrics.jsonl", "views.png"):
        assert Path("runs/pretrain", name).stat().st_size > 0


def test_a_report_of_pre_training_runs_is_built_again_and_kinds_are_not_mixed(pictures, tmp_path):
    run(tiny_config(data=pictures, output=tmp_path / "run", method="acl"))
    code, said = lorica("report", tmp_path / "run", tmp_path / "run", "--output", tmp_path / "page.html")
    assert code == 0 and "ACL" in (tmp_path / "page.html").read_text(), said
    (tmp_path / "audit").mkdir()
    code, said = lorica("report", tmp_path / "run", tmp_path / "audit", "--output", tmp_path / "mixed.html")
    assert code == 2 and "one kind of result" in said and not (tmp_path / "mixed.html").exists()


def test_warm_up_is_ten_epochs_or_a_tenth_and_never_a_few_steps():
    assert tiny_config(epochs=1000).warmup_steps(98) == 980  # the paper's
    assert tiny_config(epochs=50).warmup_steps(98) == 490
    assert tiny_config(epochs=10).warmup_steps(31) == 100
    assert tiny_config(epochs=3).warmup_steps(7) == 10
    assert tiny_config(epochs=3, warmup_epochs=0).warmup_steps(7) == 0
    assert tiny_config(epochs=3, warmup_epochs=0.5).warmup_steps(8) == 4


def test_views_that_collapse_onto_one_point_are_called_so(pictures, tmp_path, monkeypatch):
    import lorica.pretrain.runner as home

    monkeypatch.setattr(home, "COLLAPSED", -1.0)
    record = run(tiny_config(data=pictures, output=tmp_path / "run"))
    assert sum("collapsed onto one point" in note for note in record["notes"]) == 1


@pytest.mark.parametrize("number", [1, -2, 3])
def test_a_killed_run_ends_in_the_same_bits(pictures, tmp_path, number):
    settings = {"data": pictures, "method": "acl", "checkpoint_every": 1}
    whole = run(tiny_config(output=tmp_path / "whole", **settings))
    script = Path(__file__).with_name("killed_pretraining.py")
    command = [sys.executable, str(script), str(pictures), str(tmp_path / "killed"), str(number)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    again = run(tiny_config(output=tmp_path / "killed", resume=True, **settings))
    assert again["encoder_sha256"] == whole["encoder_sha256"]


# ----- nothing is lost, and nothing is called what it is not --------------------------------------------------------
def test_another_number_of_clusters_is_learned_anew(tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=24, labels=3)
    config = tiny_config(data=folder, output=tmp_path / "run", plus_plus=2, plus_plus_epochs=1)
    two = run(config)
    three = run(config.model_copy(update={"resume": True, "plus_plus": 3}))
    assert len(three["plus_plus"]["pictures"]) == 3
    assert three["encoder_sha256"] != two["encoder_sha256"]
    back = run(config.model_copy(update={"resume": True}))
    assert back["encoder_sha256"] == two["encoder_sha256"]


def test_resuming_a_complete_run_without_plus_plus_leaves_its_encoder_alone(tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=24, labels=2)
    config = tiny_config(data=folder, output=tmp_path / "run", plus_plus=2, plus_plus_epochs=1)
    record = run(config)
    assert run(config.model_copy(update={"resume": True, "plus_plus": None})) == record


@pytest.mark.parametrize("name", ["checkpoints/thesis.pt", "encoder/mine.txt", "tensorboard/log", "run.json"])
def test_what_is_not_of_a_run_is_not_cleared_unasked(pictures, tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text("mine")
    code, said = lorica("pretrain", "--data", pictures, "--output", tmp_path / "run", *TINY)
    assert code == 2 and name.split("/")[0] in said and "--overwrite" in said
    assert (tmp_path / "run" / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "met"),
    [({}, False), ({"invariance": "sir"}, False), ({"invariance": "air"}, True), ({"invariance": "both"}, True)],
)
def test_record_and_card_say_whether_an_attacker_was_met(pictures, tmp_path, options, met):
    record = run(tiny_config(data=pictures, output=tmp_path / "run", method="scl", **options))
    assert record["adversarial"] is met and record["invariance"] == options.get("invariance", "none")
    card = (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert ("no attacker was met" in card) is not met and ("L-inf 8/255" in card) is met
    assert load_pretraining(tmp_path / "run").adversarial is met


def test_warnings_survive_a_resumption(pictures, tmp_path, monkeypatch):
    import lorica.pretrain.runner as home

    config = tiny_config(data=pictures, output=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(home, "COLLAPSED", -1.0)
        patch.setattr(home, "deliver", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    record = run(config.model_copy(update={"resume": True}))
    assert sum("collapsed onto one point" in note for note in record["notes"]) == 1


def test_an_encoder_that_learned_from_both_goes_on_along_both_routes(pictures, tmp_path):
    run(tiny_config(data=pictures, output=tmp_path / "first", method="acl"))
    config = tiny_config(
        data=pictures, output=tmp_path / "second", method="acl", model={"name": str(tmp_path / "first")}
    )
    network = tiny_trainer(config).method.network
    natural = load_file(tmp_path / "first" / "encoder" / "natural_norms.safetensors")
    started = norm_tensors(network.encoder.backbone, "natural")
    adversarial = norm_tensors(network.encoder.backbone, "adversarial")
    assert natural.keys() == started.keys()
    assert all(torch.equal(natural[name], started[name]) for name in natural)
    assert not all(torch.equal(adversarial[name], started[name]) for name in natural)
    assert not any("random weights" in note for note in run(config)["notes"])


def test_pictures_that_probes_are_tried_on_and_the_encoder_learns_from_are_counted(tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=24, labels=2)
    record = run(tiny_config(data=folder, output=tmp_path / "run", probe=folder))
    assert any("tried on are among those that the encoder" in note for note in record["notes"])
    other = write_pictures(tmp_path / "others", count=24, labels=2, seed=1)
    record = run(tiny_config(data=folder, output=tmp_path / "apart", probe=other))
    assert not any("tried on" in note for note in record["notes"])


def test_similarities_under_attack_are_of_float32(monkeypatch):
    import lorica.pretrain.trainer as home

    seen = []

    def noted(z_i, z_j, t):
        with torch.no_grad():
            seen.append((z_i @ z_j.T).dtype)
        return nt_xent(z_i, z_j, t)

    monkeypatch.setattr(home, "nt_xent", noted)
    trainer = tiny_trainer(tiny_config(method="acl", precision="bf16"))
    pixels = torch.rand(4, 3, SIDE, SIDE)
    trainer.attack((pixels, pixels), seed=0)
    assert seen and set(seen) == {torch.float32}


def test_a_run_that_has_not_ended_is_reported_so_far(pictures, tmp_path, monkeypatch):
    import lorica.pretrain.runner as home

    with monkeypatch.context() as patch:
        patch.setattr(home, "deliver", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tiny_config(data=pictures, output=tmp_path / "run"))
    code, said = lorica("report", tmp_path / "run", "--output", tmp_path / "page.html")
    assert code == 0, said
    page = (tmp_path / "page.html").read_text()
    assert "raining has not ended" in page and "NT-Xent" in page
