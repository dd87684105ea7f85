"""Configuration is strict and its sources rank as documented; what is written to disk appears whole or not at all."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import Field
from safetensors.torch import save_file

from lorica import artefacts
from lorica.artefacts import atomic_path, prepare_output, provenance, read_json, write_json, write_text, write_with
from lorica.config import Config, load, walk
from lorica.errors import LoricaError
from lorica.registry import Registry


class Nested(Config):
    rank: int = Field(64, ge=1)
    learning_rate: float = Field(1e-4, gt=0)


class Example(Config):
    steps: int = Field(2000, ge=1)
    kind: Literal["paper", "authors"] = "paper"
    data: Path | None = None
    captions: list[str] = Field([])
    counts: tuple[int, int] | None = None
    settings: dict[str, dict[str, Any]] = Field({})
    lora: Nested = Nested()
    proxy: Nested = Nested()


class Needy(Config):
    data: Path
    base: str = "builtin"


def refusal(cls: type[Config] = Example, **sources: Any) -> str:
    with pytest.raises(LoricaError) as caught:
        load(cls, **sources)
    return caught.value.problem


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


# ----- precedence ---------------------------------------------------------------------------------------------------
def test_each_source_overrides_the_ones_before_it(tmp_path: Path) -> None:
    file = written(tmp_path, "steps: 10\nkind: authors\nlora:\n  rank: 11\n  learning_rate: 0.5\n")
    resolved = load(Example, file=file, assignments=["steps=20", "lora.rank=21"], options={"steps": 30})
    assert resolved.steps == 30  # option
    assert resolved.lora.rank == 21  # --set
    assert resolved.kind == "authors"  # file
    assert resolved.lora.learning_rate == 0.5  # file, in a section that --set also touched
    assert resolved.proxy == Nested()  # default


def test_sections_are_merged_key_by_key_however_they_are_written(tmp_path: Path) -> None:
    file = written(tmp_path, "lora.rank: 3\nlora: {learning_rate: 0.25}\n")
    resolved = load(Example, file=file, assignments=["proxy={rank: 5}"], options={"proxy.learning_rate": 0.125})
    assert resolved.lora == Nested(rank=3, learning_rate=0.25)
    assert resolved.proxy == Nested(rank=5, learning_rate=0.125)


def test_dots_in_the_keys_of_a_mapping_are_kept(tmp_path: Path) -> None:
    file = written(tmp_path, "settings: {lambda 0.05: {proxy.steps: 3}, loss: {draws: 2}}")
    resolved = load(Example, file=file, assignments=["settings.loss.noise=1"])
    assert resolved.settings == {"lambda 0.05": {"proxy.steps": 3}, "loss": {"draws": 2, "noise": 1}}


def test_a_section_with_everything_commented_out_means_the_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, "lora:\n  # rank: 3\n")
    assert load(Example, file=file).lora == Nested()
    assert load(Example, file=file, assignments=["lora.rank=4"]).lora.rank == 4


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(Example, file=written(tmp_path, "# nothing yet\n")) == Example()


def test_the_caller_s_options_are_not_changed() -> None:
    options = {"lora": {"rank": 3}, "lora.learning_rate": 0.5}
    load(Example, options=options)
    assert options == {"lora": {"rank": 3}, "lora.learning_rate": 0.5}


def test_text_from_a_command_line_becomes_the_type_of_its_key() -> None:
    options = {"steps": "5", "counts": "1,2", "settings": "{loss: {draws: 3}}", "lora.learning_rate": "1e-3"}
    resolved = load(Example, options=options)
    assert (resolved.steps, resolved.counts, resolved.lora.learning_rate) == (5, (1, 2), 1e-3)
    assert resolved.settings == {"loss": {"draws": 3}}


def test_names_on_a_command_line_are_the_keys_of_a_mapping_and_keep_what_was_set_before() -> None:
    resolved = load(Example, assignments=["settings.loss.draws=3"], options={"settings": "loss, other"})
    assert resolved.settings == {"loss": {"draws": 3}, "other": {}}
    assert load(Example, options={"captions": ["a, b"]}).captions == ["a, b"]


# ----- refusals -----------------------------------------------------------------------------------------------------
def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    assert refusal(options={"setps": 3}) == "unknown key `setps`: the nearest is `steps`"


def test_an_unknown_nested_key_is_named_with_its_path(tmp_path: Path) -> None:
    file = written(tmp_path, "lora:\n  rnak: 3\n")
    assert refusal(file=file) == "unknown key `lora.rnak`: the nearest is `lora.rank`"


def test_a_known_key_in_the_wrong_section_is_sent_to_the_right_one() -> None:
    assert refusal(assignments=["rank=3"]) == "unknown key `rank`: the nearest is `lora.rank`"
    assert refusal(assignments=["proxy.kind=paper"]) == "unknown key `proxy.kind`: the nearest is `kind`"


def test_an_unknown_section_is_sent_to_the_nearest_section(tmp_path: Path) -> None:
    assert refusal(file=written(tmp_path, "lroa:\n  rank: 3\n")) == "unknown key `lroa`: the nearest is `lora`"


def test_every_fault_is_reported_at_once() -> None:
    lines = refusal(assignments=["setps=1", "lora.rank=0", "kind=mine"]).splitlines()
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("steps=many", "`steps` = 'many'"),
        ("steps=1.5", "`steps` = 1.5"),
        ("steps=0", "`steps` = 0"),
        ("steps=", "`steps` = None"),
        ("lora.learning_rate=.nan", "`lora.learning_rate` = nan"),
        ("lora.learning_rate=.inf", "`lora.learning_rate` = inf"),
        ("kind=other", "`kind` = 'other'"),
        ("lora=3", "`lora` = 3"),
        ("counts=[1, 2, 3]", "`counts` = [1, 2, 3]"),
        ("steps.more=1", "`steps` = {'more': 1}"),
        ("captions=[1]", "`captions.0` = 1"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named(assignment: str, named: str) -> None:
    assert refusal(assignments=[assignment]).startswith(named)


def test_a_long_value_is_not_repeated_in_full() -> None:
    assert len(refusal(options={"steps": "x" * 10_000})) < 300


def test_a_missing_key_is_named() -> None:
    assert refusal(Needy) == "`data` is required"


@pytest.mark.parametrize("assignment", ["steps", "=3", " = 3"])
def test_an_assignment_without_key_or_value_is_refused(assignment: str) -> None:
    assert "is not key=value" in refusal(assignments=[assignment])


@pytest.mark.parametrize("text", ["[1", "{a: b: c}", "2024-99-99", "!!python/object:os.system x"])
def test_an_assignment_that_is_not_yaml_is_refused(text: str) -> None:
    assert "--set steps" in refusal(assignments=[f"steps={text}"])


def test_a_key_below_a_plain_value_is_refused(tmp_path: Path) -> None:
    assert "not a section" in refusal(file=written(tmp_path, "lora: 3\n"), assignments=["lora.rank=1"])


@pytest.mark.parametrize("text", ["- steps: 3\n", "steps\n", "3\n"])
def test_yaml_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "not a mapping" in refusal(file=written(tmp_path, text))


@pytest.mark.parametrize("text", ["steps: [1\n", "\tsteps: 1\n", "a: 2024-99-99\n", "steps: " + "[" * 1500])
def test_yaml_that_cannot_be_parsed_is_refused_by_file_name(tmp_path: Path, text: str) -> None:
    assert "config.yaml" in refusal(file=written(tmp_path, text))


@pytest.mark.parametrize("text", ["steps: 1\nsteps: 2\n", "lora:\n  rank: 1\n  rank: 2\n"])
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str) -> None:
    assert "is given twice" in refusal(file=written(tmp_path, text))


@pytest.mark.parametrize("text", ["1: 2\n", "null: 2\n", "[1, 2]: 3\n"])
def test_a_key_that_is_not_a_name_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(file=written(tmp_path, text))


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    assert "not found" in refusal(file=tmp_path / "absent.yaml")
    assert "cannot be read" in refusal(file=tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(file=tmp_path / "binary.yaml")


def test_a_configuration_does_not_change_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Example().steps = 3  # type: ignore[misc]


# ----- printing -----------------------------------------------------------------------------------------------------
def test_the_printed_configuration_reads_back_equal(tmp_path: Path) -> None:
    options = {
        "data": "a folder/ünïcode \udcff",
        "captions": ["yes", "1", "null", "a: b # c", "two\nlines", "猫"],
        "counts": (1, 2),
        "settings": {"mc-loss": {"draws": 3, "levels": [0.1, 1e-5]}},
        "lora.learning_rate": 1e-5,
    }
    resolved = load(Example, options=options)
    assert load(Example, file=written(tmp_path, resolved.to_yaml())) == resolved


def test_walk_names_every_leaf_by_its_dotted_key() -> None:
    expected = ["steps", "kind", "data", "captions", "counts", "settings"]
    expected += [f"{section}.{leaf}" for section in ("lora", "proxy") for leaf in ("rank", "learning_rate")]
    assert [key for key, _ in walk(Example)] == expected


# ----- artefacts ----------------------------------------------------------------------------------------------------
def leftovers(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@contextmanager
def full_disk() -> Iterator[None]:
    """Writes beyond 100 bytes fail in the kernel, as on a full disk, for every library alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("new" * 1000),
    "torch": lambda path: torch.save({"x": torch.zeros(1000)}, path),
    "safetensors": lambda path: save_file({"x": torch.zeros(1000)}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_a_clear_error_and_keeps_the_old_file(tmp_path: Path, writer: str) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    with full_disk(), pytest.raises(LoricaError, match=r"cannot write .*result"):
        write_with(target, WRITERS[writer])
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == ["result"]


def test_a_disk_that_fills_up_at_the_last_moment_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "result.json"
    write_json(target, {"old": 1})
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(LoricaError, match="No space left on device"):
        write_json(target, {"new": 1})
    assert json.loads(target.read_text()) == {"old": 1}
    assert leftovers(tmp_path) == ["result.json"]


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("another"), KeyboardInterrupt()])
def test_an_error_in_the_writing_code_is_not_disguised_and_keeps_the_old_file(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == ["result"]


def test_an_output_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LoricaError, match="cannot write"):
        write_text(tmp_path / "file" / "result.json", "{}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LoricaError, match="cannot write"):
        write_text(tmp_path / "folder", "{}")
    assert leftovers(tmp_path) == ["file", "folder"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "result", "x")
    assert (tmp_path / "a" / "b" / "result").read_text() == "x"


def test_what_is_written_has_the_permissions_that_the_user_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_text(tmp_path / "private", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_without_a_meaning_is_refused_and_keeps_the_old_file(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "result.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "result.json", {"loss": [value]})
    assert read_json(tmp_path / "result.json", "result") == {"loss": 1.0}


def test_json_keeps_every_text_even_a_file_name_that_is_not_utf_8(tmp_path: Path) -> None:
    value = {"猫": "a\udcffb", "quote": '"\\\n\u2028'}
    write_json(tmp_path / "result.json", value)
    assert read_json(tmp_path / "result.json", "result") == value


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 100_000])
def test_json_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "split.json").write_bytes(content)
    with pytest.raises(LoricaError, match=r"split cannot be read: .*split\.json"):
        read_json(tmp_path / "split.json", "split")
    with pytest.raises(LoricaError, match=r"split not found: .*absent\.json"):
        read_json(tmp_path / "absent.json", "split")


def test_an_output_folder_with_a_result_is_refused_unless_it_is_welcome(tmp_path: Path) -> None:
    output = tmp_path / "new" / "run"
    prepare_output(output, marker="run.json", resume=False)
    assert leftovers(tmp_path) == []  # what is refused later leaves no empty folder
    output.mkdir(parents=True)
    (output / "run.json").write_text("{}")
    with pytest.raises(LoricaError, match="already holds a result"):
        prepare_output(output, marker="run.json", resume=False)
    prepare_output(output, marker="run.json", resume=True)
    prepare_output(output, marker="run.json", resume=False, overwrite=True)
    assert leftovers(output) == ["run.json"]


def test_an_output_that_is_a_file_or_lies_below_one_is_refused_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LoricaError, match="is a file"):
        prepare_output(tmp_path / "file", marker="run.json", resume=False)
    with pytest.raises(LoricaError, match="cannot write"):
        prepare_output(tmp_path / "file" / "run", marker="run.json", resume=False)


def test_the_provenance_of_a_result_can_be_written(tmp_path: Path) -> None:
    stamp = provenance(Example().model_dump(mode="json"), seed=7)
    write_json(tmp_path / "run.json", stamp)
    assert read_json(tmp_path / "run.json", "run") == stamp
    assert stamp["seed"] == 7
    assert torch.__version__.startswith(stamp["versions"]["torch"])
    assert set(artefacts._STAMPED) < set(stamp["versions"])
    assert stamp["hardware"]["cores"] >= 1


# ----- registry -----------------------------------------------------------------------------------------------------
def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    registry: Registry[object] = Registry("attack")
    registry.register("mc-loss")(object)
    assert registry["mc-loss"] is object
    assert list(registry) == ["mc-loss"] and len(registry) == 1
    with pytest.raises(LoricaError, match=r"unknown attack 'mc-los'\n.*'mc-loss'"):
        registry["mc-los"]
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("mc-loss")(object)
