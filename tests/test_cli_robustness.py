"""The command line of the robustness side: what a user types, what is printed, what lies there afterwards."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_runs import write_pictures
from lorica.cli import main
from lorica.finetune import METHODS

SMALL = [
    "--model", "cifar_resnet18", "--no-model-pretrained", "--model-size", "16,16",
    "--set", "model.arguments={width: 4, depths: [1, 1]}", "--epochs", "1", "--epoch-steps", "1", "--batch-size", "8",
    "--attack-steps", "2", "--val-share", "0.25", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def lorica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the command line in this process; gives exit code and what it said."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lorica", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), " ".join((captured.out + captured.err).split())

    return call


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_is_trained_evaluated_and_reported_by_name(
    lorica: Any, pictures: Path, tmp_path: Path, method: str
) -> None:
    run = tmp_path / "run"
    code, said = lorica("finetune", "--data", pictures, "--method", method, "--output", run, *SMALL)
    assert code == 0, said
    record = json.loads((run / "run.json").read_text())
    assert record["method"] == method and record["attack_version"] == "quick"
    evaluation = json.loads((run / "evaluation" / "robustness.json").read_text())
    assert evaluation["model"]["weights"] == record["weights"] in ("ema", "raw")
    assert evaluation["data"]["part"] == "test" and evaluation["data"]["pictures"] == record["counts"]["test"]
    assert "an upper bound" in said and record["verdict"] in said
    assert record["flags"] == [flag for flag in evaluation["flags"] if flag["raised"]]
    assert all(flag["problem"] in said for flag in record["flags"])
    assert "upper bound" in (run / "model" / "README.md").read_text()
    assert "<html" in (run / "report.html").read_text()


def test_a_run_is_evaluated_at_several_radii_and_reported_beside_another(
    lorica: Any, pictures: Path, tmp_path: Path
) -> None:
    runs = [tmp_path / name for name in ("one", "two")]
    for run, method in zip(runs, ("at", "vanilla"), strict=True):
        options = ("--method", method, "--evaluate", "none", "--output", run)
        assert lorica("finetune", "--data", pictures, *options, *SMALL)[0] == 0
        code, said = lorica("evaluate", run, "--data", pictures, "--eps", "2/255,8/255", "--tier", "quick")
        assert code == 0, said
    found = json.loads((runs[0] / "evaluation" / "robustness.json").read_text())
    assert [round(255 * threat["eps"]) for threat in found["threats"]] == [2, 8]
    code, said = lorica("report", *runs, "--output", tmp_path / "both.html")
    assert code == 0 and "<html" in (tmp_path / "both.html").read_text(), said


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--attack-eps", "8"), "8/255"),
        (("--method", "autolorra"), "autolora"),
        (("--set", "options.rnak=4"), "rank"),
        (("--attack-kind", "n-fgsm", "--attack-norm", "l2"), "linf"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    lorica: Any, pictures: Path, tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    code, said = lorica("finetune", "--data", pictures, "--output", tmp_path / "run", *SMALL, *options)
    assert code == 2 and complaint in said and not (tmp_path / "run").exists()


def test_a_class_with_one_picture_and_a_damaged_picture_are_named(lorica: Any, tmp_path: Path) -> None:
    for count, spoil, complaint in ((1, False, "red"), (3, True, "2.png")):
        folder = write_pictures(tmp_path / f"pictures{count}", each=count)
        if spoil:
            (folder / "red" / "2.png").write_bytes(b"no picture")
        code, said = lorica("finetune", "--data", folder, "--output", tmp_path / "run", *SMALL)
        assert code == 2 and complaint in said


def test_membership_and_robustness_are_not_put_on_one_page(lorica: Any, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "robustness.json").write_text("{}")
    code, said = lorica("report", tmp_path / "evaluation", tmp_path / "audit", "--output", tmp_path / "page.html")
    assert code == 2 and "report them apart" in said


def test_a_better_evaluation_of_a_run_takes_the_first_ones_place_and_a_weaker_one_does_not(
    lorica: Any, pictures: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert lorica("finetune", "--data", pictures, "--method", "at", "--output", run, *SMALL)[0] == 0
    first = json.loads((run / "evaluation" / "robustness.json").read_text())
    assert first["membership"] is not None
    code, said = lorica("evaluate", run, "--data", pictures, "--tier", "standard", "--device", "cpu")
    assert code == 0, said
    found = json.loads((run / "evaluation" / "robustness.json").read_text())
    assert found["membership"] == first["membership"]
    record, card = json.loads((run / "run.json").read_text()), (run / "model" / "README.md").read_text()
    assert record["attack_version"] == "standard" and record["verdict"] == found["verdict"]["text"]
    assert "upper bound" not in card
    assert "Only an upper bound" not in (run / "report.html").read_text()
    (tmp_path / "report.html").write_text("mine")  # beside an evaluation that is in no run
    elsewhere = ("--output", tmp_path / "evaluation", "--tier", "quick", "--device", "cpu")
    assert lorica("evaluate", run, "--data", pictures, *elsewhere)[0] == 0
    assert (tmp_path / "report.html").read_text() == "mine"
    code, said = lorica("evaluate", run, "--data", pictures, "--tier", "quick", "--device", "cpu")
    assert code == 2 and "tier standard" in said and "--overwrite" in said
    code, said = lorica("evaluate", run, "--data", pictures, "--part", "val", "--tier", "standard", "--device", "cpu")
    assert code == 2 and "other pictures" in said
    assert json.loads((run / "evaluation" / "robustness.json").read_text()) == found
    options = ("finetune", "--data", pictures, "--method", "at", "--output", run, "--resume", *SMALL)
    assert lorica(*options)[0] == 0
    assert json.loads((run / "run.json").read_text()) == record
