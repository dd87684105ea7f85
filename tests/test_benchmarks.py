"""Benchmarks are run seldom and by hand: here at their smallest, so that they are not found broken when needed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from lorica import config, demo

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# Public sets and weights, beside a developer's checkout.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="public data is not there")


def output(script: str, *arguments: str | int | Path) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(script: str, *arguments: str | int | Path) -> dict[str, Any]:
    """The JSON object that is the last line of every benchmark."""
    found = json.loads(output(script, *arguments).splitlines()[-1])
    assert isinstance(found, dict) and found["hardware"] and found["versions"]
    return found


@pytest.mark.parametrize("script", sorted(file.name for file in BENCHMARKS.glob("*.py")))
def test_every_benchmark_says_how_it_is_run(script: str) -> None:
    assert f"python benchmarks/{script}" in output(script, "--help")


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.yaml")), ids=lambda file: file.name)
def test_every_setting_of_the_method_tables_is_known(file: Path, tmp_path: Path) -> None:
    settings = config.load(demo.DemoConfig, file=file, options={"output": tmp_path})
    assert f"lorica demo --config benchmarks/{file.name}" in file.read_text()
    assert list(demo.plans(settings)) == list(settings.methods)


def test_step_cost_reports_every_ratio() -> None:
    found = figures("step_cost.py", "--batch", "1", "--rounds", "1", "--steps", "1")
    for name in ("ratio_to_authors_independent", "ratio_to_authors_shared", "ratio_to_lora_shared"):
        assert found[name] > 0


def test_adversarial_step_counts_what_both_orders_of_work_do() -> None:
    found = figures("adversarial_step.py", "--smallest")
    counted = found["counted"]
    assert counted["autolora"] == counted["authors"]  # the same passes and the same arithmetic
    assert counted["autolora"]["forward_passes"] == counted["autolora"]["backward_passes"] == 12
    assert found["ratio_to_authors"]["median"] > 0 and found["ratio_to_floor"]["median"] > 0


def test_contrastive_step_counts_what_both_orders_of_work_do() -> None:
    found = figures("contrastive_step.py", "--smallest")
    ours, authors = found["counted"]["ours"], found["counted"]["authors"]
    for passes in ("forward_passes", "backward_passes"):
        assert ours[passes] == authors[passes] == 15  # of N pictures: five attacks on 2N, one update of 5N
    assert ours["gflop_backward"] < 0.75 * authors["gflop_backward"]  # no gradients of weights in the attack
    assert found["ratio_to_authors"]["median"] > 0 and found["ratio_to_floor"]["median"] > 0


def test_evaluation_pass_times_the_copy_beside_the_model() -> None:
    found = figures("evaluation_pass.py", "--models", "cifar_resnet20", "--batch", "2", "--side", "8", "--rounds", "1")
    (row,) = found["rows"]
    assert row["copied"] and row["ratio"]["median"] > 0


@needs_data
def test_robust_pretraining_compares_methods_and_its_terms_are_measured(tmp_path: Path) -> None:
    size = ("--pictures", 100, "--test", 20, "--epochs", 1, "--batch-size", 32, "--width", 2, "--sets", "cifar10")
    options = ("--rows", "acl,acl-air-authors", "--seeds", "0,1", "--protocols", "slf:1", "--tier", "quick")
    found = figures("robust_pretraining.py", "--data", DATA, "--output", tmp_path, *size, *options)
    assert [(row["row"], row["set"], row["seed"], list(row["protocols"])) for row in found["rows"]] == [
        (row, "cifar10", seed, ["slf"]) for seed in (0, 1) for row in ("acl", "acl-air-authors")
    ]
    (difference,) = found["differences"]
    acl, ours = ([row["protocols"]["slf"]["natural"]["value"] for row in found["rows"][i::2]] for i in (0, 1))
    expected = ttest_rel(ours, acl).confidence_interval(0.95)
    assert difference["natural"]["value"] == pytest.approx(np.mean(ours) - np.mean(acl))
    assert [difference["natural"][end] for end in ("low", "high")] == pytest.approx([expected.low, expected.high])
    terms = figures("invariance_terms.py", "--run", tmp_path / "acl-air-authors_0", "--batch", "32", "--batches", "1")
    assert terms["rows"]["nt-xent"]["relative_z"] == 1
    assert 0 < terms["rows"]["air paper"]["relative_z"] < terms["rows"]["air anchored"]["relative_z"]


@needs_data
def test_robust_finetuning_compares_methods(tmp_path: Path) -> None:
    options = ("--sets", "faces", "--methods", "at,vanilla", "--epochs", "1", "--tier", "quick", "--output", tmp_path)
    found = figures("robust_finetuning.py", "--data", DATA, *options, "--epoch-steps", "1", "--batch-size", "256")
    assert [row["method"] for row in found["rows"]] == ["at", "vanilla"]
    first, second = (row["natural"]["value"] for row in found["rows"])
    (difference,) = found["differences"]
    assert (difference["row"], difference["set"], difference["seeds"]) == ("vanilla", "faces", 1)
    assert difference["natural"] == {"value": second - first, "low": None, "high": None}


@needs_data
def test_known_models_are_as_accurate_as_others_found_them() -> None:
    options = ("--models", "cifar_cnn_a_adv", "--pictures", "200", "--attacked", "20", "--tier", "quick")
    found = figures("known_models.py", "--data", DATA, *options)
    for row in found["rows"]:
        assert abs(row["clean"]["value"] - row["stated_clean"]) < 0.001
        assert row["pgd"]["low"] < row["stated_pgd"] < row["pgd"]["high"]
        assert row["autoattack"]["value"] <= row["pgd_of_attacked"]["value"]


def test_audit_cost_finds_one_audit_cheaper_than_many() -> None:
    found = figures("audit_cost.py", "--people", "8", "--attacks", "mc-loss", "calibrated-loss")
    assert found["ratios"]["all"]["unet_calls"] == 0.5  # both ask the same questions


def test_attack_table_audits_a_run_with_its_shadows(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    attacks = ("loss", "rmia")
    found = figures("attack_table.py", run, "--shadows", "1", "--attacks", *attacks, "--batch", "8")
    assert set(found["runs"]["run"]["auc"]) == set(attacks)
    assert found["runs"]["run"]["shadows"] == 1
