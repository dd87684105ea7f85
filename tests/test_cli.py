"""The command line: what a user types, what is printed, and the exit code."""

import inspect
import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from PIL import Image

import synthetic_audit as synthetic
from lorica.adapt import DEFENCES, OBJECTIVES, AdaptConfig
from lorica.audit import ATTACKS
from lorica.cli import main
from lorica.config import Config, walk
from lorica.data.cohort import write_cohort
from lorica.verbs import VERBS, print_audit


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, " ".join(err.split())  # rich folds lines


@pytest.fixture
def lorica(monkeypatch, capsys):
    """Call the command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["lorica", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("people") / "pictures", 16, seed=0)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, people, tiny_pipeline_folder) -> Path:
    """One short `lorica adapt` on the tiny model."""
    output = tmp_path_factory.mktemp("run") / "run"
    config = AdaptConfig(
        data=people,
        output=output,
        base=str(tiny_pipeline_folder),
        steps=3,
        batch_size=2,
        validation_pictures=2,
        sample_every=0,
        device="cpu",
    )
    from lorica.adapt import run

    run(config)
    return output


def config_class(verb: str) -> type[Config]:
    module, _, cls = VERBS[verb].config.partition(":")
    return getattr(import_module(module), cls)


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_every_key_of_the_configuration(lorica, verb):
    shown = lorica(verb, "--help").out
    for key, field in walk(config_class(verb)):
        flag = key.replace(".", "-").replace("_", "-")
        assert flag in shown or key.upper() in shown, key
        assert field.description, f"{key} has no description"


def test_help_says_what_evenly_drawn_pictures_are_an_estimate_of(lorica):
    assert "every class counts the same" in " ".join(lorica("evaluate", "--help").out.replace("│", " ").split())


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_says_what_each_says_of_itself(lorica, verb):
    assert inspect.getdoc(config_class(verb)) == VERBS[verb].summary
    assert VERBS[verb].summary in lorica("--help").out


def test_the_list_of_verbs_waits_for_no_library():
    code = """if True:
        import sys
        from lorica import cli
        sys.argv = ["lorica", "--help"]
        try:
            cli.main()
        except SystemExit as end:
            assert end.code == 0
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_misspelled_verb_is_told_the_right_one(lorica):
    result = lorica("finetun", "--data", "pictures")
    assert result.code == 2 and "Did you mean 'finetune'?" in result.err


def test_print_config_is_a_config_file_that_gives_the_same_configuration(lorica, tmp_path):
    arguments = [
        "adapt",
        "pictures",
        "--output",
        "out",
        "--lora-rank",
        "4",
        "--set",
        "proxy.dropout=0.1",
        "--steps",
        "7",
    ]
    first = lorica(*arguments, "--print-config")
    file = tmp_path / "config.yaml"
    file.write_text(first.out)
    assert lorica("adapt", "--config", file, "--print-config").out == first.out
    values = yaml.safe_load(first.out)
    assert (values["lora"]["rank"], values["proxy"]["dropout"], values["steps"]) == (4, 0.1, 7)


def test_a_command_line_option_wins_over_set_and_set_over_the_file(lorica, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: a\noutput: b\nsteps: 1\nseed: 1\nlam: 0.1\n")
    shown = yaml.safe_load(
        lorica("adapt", "--config", file, "--set", "steps=2", "--set", "seed=2", "--seed", "3", "--print-config").out
    )
    assert (shown["steps"], shown["seed"], shown["lam"]) == (2, 3, 0.1)


def test_an_unknown_key_is_named_with_the_nearest_one(lorica, tmp_path):
    found = lorica("adapt", "pictures", "--output", tmp_path / "o", "--set", "lora.rnak=4")
    assert found.code == 2 and "lora.rnak" in found.err and "lora.rank" in found.err


def test_a_value_out_of_range_is_refused_before_any_work(lorica, tmp_path):
    found = lorica("adapt", "pictures", "--output", tmp_path / "o", "--steps", "many")
    assert found.code == 2 and "steps" in found.err and not (tmp_path / "o").exists()


def test_an_unknown_option_exits_with_2(lorica):
    assert lorica("adapt", "--no-such-option").code == 2


def adapt_arguments(data: Path, output: Path, base: Path) -> tuple[object, ...]:
    return ("adapt", data, "--output", output, "--base", base, "--device", "cpu", "--steps", 1)


def audit_arguments(lora: Path, output: Path, base: Path | str) -> tuple[object, ...]:
    return ("audit", "--base", base, "--device", "cpu", "--lora", lora, "--output", output)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_every_objective_is_trained_and_attacked_by_name(lorica, people, tiny_pipeline_folder, tmp_path, objective):
    run = tmp_path / "run"
    trained = lorica(*adapt_arguments(people, run, tiny_pipeline_folder), "--objective", objective)
    assert trained.code == 0, trained.err
    found = lorica(*audit_arguments(run, tmp_path / "audit", tiny_pipeline_folder), "--attacks", "loss")
    assert found.code == 0, found.err
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["target"]["objective"] == objective


@pytest.mark.parametrize("defence", list(DEFENCES))
def test_every_defence_is_trained_and_attacked_by_name(lorica, people, tiny_pipeline_folder, tmp_path, defence):
    asked = ["--objective", "lora", "--defences", defence]
    if defence == "dp-lora":
        pytest.importorskip("opacus")
        asked += ["--set", "defences.dp-lora.epsilon=8"]
    run = tmp_path / "run"
    trained = lorica(*adapt_arguments(people, run, tiny_pipeline_folder), *asked)
    assert trained.code == 0, trained.err
    found = lorica(*audit_arguments(run, tmp_path / "audit", tiny_pipeline_folder), "--attacks", "loss")
    assert found.code == 0, found.err
    assert defence in json.loads((tmp_path / "audit" / "audit.json").read_text())["target"]["defences"]


def test_adapt_audit_generate_and_report_work_one_after_the_other(
    lorica, finished_run, tiny_pipeline_folder, tmp_path, people
):
    audit = tmp_path / "audit"
    found = lorica(*audit_arguments(finished_run, audit, tiny_pipeline_folder), "--settings", "{nn-loss: {epochs: 2}}")
    assert found.code == 0, found.err
    result = json.loads((audit / "audit.json").read_text())
    assert result["verdict"]["text"].split()[0] in found.err
    assert result["collection"]["text"] in found.err
    assert (audit / "report.html").stat().st_size > 1000
    drawn = lorica(
        *("generate", "--base", tiny_pipeline_folder, "--device", "cpu", "--lora", finished_run),
        *("--captions", "a person", "--steps", 2, "--output", tmp_path / "drawn"),
    )
    assert drawn.code == 0 and (tmp_path / "drawn" / "pictures" / "000000.png").exists()
    compared = lorica("report", audit, audit, "--output", tmp_path / "compare.html")
    assert compared.code == 0 and (tmp_path / "compare.html").exists()


def test_the_table_of_attacks_fits_a_terminal_of_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_audit(synthetic.audit(synthetic.LORA))
    lines = capsys.readouterr().err.splitlines()
    row = next(line for line in lines if line.strip().startswith("calibrated-loss"))
    assert "[" in row and "]" in row and len(row.split()) == 9  # name, AUC and its interval, ASR, oracle, three TPRs


def test_shadows_are_trained_once_and_found_by_the_audit(lorica, finished_run, tiny_pipeline_folder, tmp_path):
    run = tmp_path / "[red]run"
    shutil.copytree(finished_run, run)
    trained = lorica("shadows", run, "--count", 2)
    assert trained.code == 0 and "2 of them trained now" in trained.err
    assert "[red]run" in trained.err.replace(" ", "")  # a long path is folded, in the midst of a word too
    assert (run / "shadows" / "001" / "pytorch_lora_weights.safetensors").exists()
    assert "0 of them trained now" in lorica("shadows", run, "--count", 2).err
    few = {
        "nn-loss": {"epochs": 1},
        "adaptive-nn": {"draws": 2, "epochs": 1},
        "gsa": {"draws": 2},
        "pfami": {"draws": 2},
    }
    arguments = (*audit_arguments(run, tmp_path / "audit", tiny_pipeline_folder), "--attacks", "all")
    found = lorica(*arguments, "--settings", json.dumps(few))
    assert found.code == 0, found.err
    assert "was not run" not in found.err
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert set(audit["attacks"]) == set(ATTACKS) and audit["target"]["shadows"] == 2
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("learning_rate: 0.0001", "learning_rate: 1")
    )
    without = lorica(*arguments, "--settings", json.dumps(few))
    assert without.code == 0 and "learning_rate" in without.err
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert set(audit["attacks"]) == {name for name in ATTACKS if not ATTACKS[name].needs_shadows}
    refused = lorica(*arguments[:-1], "lira,rmia")
    assert refused.code == 2 and "learning_rate" in refused.err


def test_an_audit_that_cannot_run_any_attack_leaves_nothing_behind(
    lorica, finished_run, tiny_pipeline_folder, tmp_path
):
    arguments = audit_arguments(finished_run, tmp_path / "audit", tiny_pipeline_folder)
    refused = lorica(*arguments, "--attacks", "lira,gsa")
    assert refused.code == 2 and "lorica shadows" in refused.err
    assert not (tmp_path / "audit").exists()


def test_shadows_of_what_is_no_run_are_refused(lorica, tmp_path):
    found = lorica("shadows", tmp_path)
    assert found.code == 2 and "config.yaml" in found.err


def test_a_release_gate_that_fails_exits_with_3_and_one_that_holds_with_0(
    lorica, finished_run, tiny_pipeline_folder, tmp_path
):
    arguments = (*audit_arguments(finished_run, tmp_path / "a", tiny_pipeline_folder), "--attacks", "loss")
    failed = lorica(*arguments, "--fail-if", "asr>0.01")
    assert failed.code == 3 and "asr>0.01" in failed.err
    assert lorica(*arguments, "--fail-if", "auc>1").code == 0


# ----- mistakes a first-time user makes -----------------------------------------------------------------------------
def test_an_empty_folder_is_refused(lorica, tmp_path, tiny_pipeline_folder):
    (tmp_path / "empty").mkdir()
    found = lorica(*adapt_arguments(tmp_path / "empty", tmp_path / "o", tiny_pipeline_folder))
    assert found.code == 2 and "empty" in found.err


def test_one_picture_is_refused(lorica, tmp_path, tiny_pipeline_folder):
    folder = write_cohort(tmp_path / "one", 1, seed=0)
    assert lorica(*adapt_arguments(folder, tmp_path / "o", tiny_pipeline_folder)).code == 2


def test_missing_captions_are_named(lorica, tmp_path, people, tiny_pipeline_folder):
    folder = Path(shutil.copytree(people, tmp_path / "people"))
    (folder / "person_00003.txt").unlink()
    found = lorica(*adapt_arguments(folder, tmp_path / "o", tiny_pipeline_folder))
    assert found.code == 2 and "person_00003" in found.err


def test_an_unreadable_picture_is_named(lorica, tmp_path, people, tiny_pipeline_folder):
    folder = Path(shutil.copytree(people, tmp_path / "people"))
    broken = folder / "person_00005.png"
    broken.write_bytes(broken.read_bytes()[:300])
    found = lorica(*adapt_arguments(folder, tmp_path / "o", tiny_pipeline_folder))
    assert found.code == 2 and "person_00005" in found.err


def test_a_folder_that_is_no_model_is_refused(lorica, tmp_path, people):
    found = lorica(*adapt_arguments(people, tmp_path / "o", people))
    assert found.code == 2 and "model_index.json" in found.err


def test_an_output_that_cannot_be_written_is_refused(lorica, tmp_path, people, tiny_pipeline_folder):
    (tmp_path / "file").write_text("in the way")
    found = lorica(*adapt_arguments(people, tmp_path / "file" / "o", tiny_pipeline_folder))
    assert found.code == 2 and (tmp_path / "file").read_text() == "in the way"


def test_a_finished_run_is_not_overwritten_without_being_asked(lorica, finished_run, people, tiny_pipeline_folder):
    before = (finished_run / "pytorch_lora_weights.safetensors").read_bytes()
    found = lorica(*adapt_arguments(people, finished_run, tiny_pipeline_folder))
    assert found.code == 2 and "--resume" in found.err and "--overwrite" in found.err
    assert (finished_run / "pytorch_lora_weights.safetensors").read_bytes() == before


def test_a_lora_of_another_model_is_refused(lorica, finished_run, tmp_path):
    found = lorica(*audit_arguments(finished_run, tmp_path / "a", "builtin"))
    assert found.code == 2 and "base" in found.err


def test_a_split_that_overlaps_is_refused(lorica, finished_run, tiny_pipeline_folder, tmp_path):
    split = json.loads((finished_run / "split.json").read_text())
    groups = split["groups"]
    groups["test_nonmembers"][0] = groups["test_members"][0]
    (tmp_path / "split.json").write_text(json.dumps(split))
    arguments = audit_arguments(finished_run, tmp_path / "a", tiny_pipeline_folder)
    assert lorica(*arguments, "--split", tmp_path / "split.json").code == 2


def test_pictures_that_are_both_member_and_nonmember_are_refused(lorica, tmp_path, people, tiny_pipeline_folder):
    found = lorica(*adapt_arguments(people, tmp_path / "o", tiny_pipeline_folder), "--split-nonmembers", people)
    assert found.code == 2 and "person_" in found.err


def test_a_hostile_caption_reaches_the_terminal_as_text(lorica, tmp_path, tiny_pipeline_folder):
    folder = tmp_path / "[red]people[blue]"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    found = lorica(*adapt_arguments(folder, tmp_path / "o", tiny_pipeline_folder))
    assert found.code == 2 and "[red]" in found.err


def test_an_error_about_a_hostile_name_commands_no_terminal(lorica, tmp_path, tiny_pipeline_folder):
    folder = tmp_path / ("long" * 40) / "a\x1b[2J\x9b31m"  # about as long as a line, which must not be cut
    folder.mkdir(parents=True)
    found = lorica(*adapt_arguments(folder, tmp_path / "o", tiny_pipeline_folder))
    assert found.code == 2 and "\x1b" not in found.err and "\x9b" not in found.err
    assert "a\ufffd[2J\ufffd31m" in found.err.replace(" ", "")
