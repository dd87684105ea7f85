"""The pre-training report: what it says of which run, what it must never do, and that a browser draws it."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import synthetic_pretraining as synthetic
from lorica.errors import LoricaError
from lorica.report.look import looks
from lorica.report.pretraining import PretrainingRun, build_pretraining, facts, figures, load_pretraining, words
from lorica.report.pretraining.page import COLUMNS, _columns
from test_report import CHROMIUM, HOSTILE, Page, _rendered

COMMAND = "lorica report runs/mine"
ORDER = ["verdict", "numbers", "probes", "losses", "invariance", "alignment", "schedules", "views", "made", "untested"]


def written(runs: list[PretrainingRun], folder: Path, *, title: str = "A page", command: str = COMMAND) -> Page:
    return Page(build_pretraining(runs, title=title, command=command, output=folder / "report.html"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PretrainingRun:
    return synthetic.run("DynACL + SIR + AIR", sheet=tmp_path_factory.mktemp("run") / "views.png")


@pytest.fixture(scope="module")
def one(run: PretrainingRun, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written([run], tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[PretrainingRun]:
    return synthetic.three_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def three(runs: list[PretrainingRun], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(runs, tmp_path_factory.mktemp("three"))


def lines(page: Page, key: str) -> dict[str, list[Any]]:
    """Names of the lines of a plot, by the axis that they are drawn on."""
    found: dict[str, list[Any]] = {}
    for trace in page.data["figures"][key]["data"]:
        found.setdefault(trace["yaxis"], []).append(trace["name"])
    return found


def pills(page: Page) -> list[str | None]:
    return [span["class"] for span in page.all("span") if str(span.get("class")).startswith("status")]


# ----- what it says -------------------------------------------------------------------------------------------------
def test_all_parts_are_there_in_order_and_the_contents_link_to_each(one: Page, three: Page) -> None:
    assert one.sections == three.sections == ORDER
    assert [a["href"] for a in one.all("a")] == ["#verdict", *(f"#{name}" for name in ORDER)]


def test_the_summary_tells_what_was_learned_how_good_it_looks_and_where_to_go_next(one: Page) -> None:
    assert (
        "An encoder learned from 50,000 pictures without labels: a linear probe on it is right 74.0% of the time, at "
        "most 36.0% under PGD."
    ) in one.text
    assert "Early signs, not robust accuracy." in one.text and "these are upper bounds" in one.text
    assert "lorica evaluate RUN --data LABELLED --protocol slf,alf,aff" in one.text
    assert (
        "cifar_resnet18 by DynACL + SIR + AIR, against attacks within L-inf 8/255, from 50,000 pictures of 32 × 32 "
        "pixels, in 100 epochs."
    ) in one.text
    assert pills(one) == ["status bound"]


def test_several_runs_are_named_with_what_pgd_leaves_of_them(three: Page) -> None:
    said = (
        "under PGD, a linear probe is right at most 36.0% on DynACL + SIR + AIR, 32.4% on ACL + AIR and 1.0% on SCL."
    )
    assert f"3 encoders learned from 50,000 pictures without labels: {said}" in three.text


def test_many_runs_are_counted_and_not_all_named() -> None:
    many = [synthetic.run(f"run {i}", epochs=1, probe={"knn_robust": 0.1 + i / 100}) for i in range(6)]
    assert words.headline(many).endswith(
        ": under PGD, a k-NN vote is right between at most 10.0% and 15.0% of the time."
    )


def test_pictures_of_different_number_are_not_given_one() -> None:
    few = synthetic.run("few")
    few = replace(few, record=few.record | {"pictures": 10})
    assert words.learned([few, synthetic.run("many")]) == "2 encoders learned from pictures without labels"


def test_the_table_holds_every_probe_with_its_interval_and_number_of_pictures(
    runs: list[PretrainingRun], three: Page
) -> None:
    table = {title: dict(rows) for title, rows in facts.numbers(runs)}
    for place, run in enumerate(runs):
        for probe, title in (("linear", "Linear probe"), ("knn", "k-NN")):
            for kind, row in (("natural", "Natural accuracy"), ("robust", "Accuracy under PGD")):
                cell, rate = table[title][row][place], run.probe[f"{probe}_{kind}"]
                assert (cell.estimate.value, cell.estimate.low, cell.estimate.high) == (
                    rate["value"],
                    rate["low"],
                    rate["high"],
                )
                assert cell.below == "n = 1,000"
                assert cell.warning == ("upper bound" if kind == "robust" else "")
                assert f"{100 * rate['low']:.1f}% – {100 * rate['high']:.1f}%" in three.text
    asked = table["Labelled pictures of the probes"]
    assert [cell.text for cell in asked["Guessing, classes equally frequent"]] == ["10.0%"] * 3
    assert [cell.text for cell in asked["Tested on"]] == ["1,000 pictures"] * 3


def test_the_table_ends_with_the_last_epoch_whatever_the_order_of_the_log(run: PretrainingRun) -> None:
    shuffled = replace(run, metrics=run.metrics[::-1])
    last = dict(dict(facts.numbers([shuffled]))["Pre-training, last epoch"])
    assert last["NT-Xent, adversarial views"][0].text == f"{run.metrics[-1]['adversarial']:.4g}"


def test_one_run_shows_both_probes_and_both_losses_in_one_plot(run: PretrainingRun, one: Page) -> None:
    assert lines(one, "probes") == {"y": ["Linear probe", "k-NN"], "y2": ["Linear probe", "k-NN"]}
    natural, *_, attacked = one.data["figures"]["probes"]["data"]
    epochs = [row["epoch"] for row in run.metrics if "knn_robust" in row]
    assert natural["x"] == attacked["x"] == epochs
    assert natural["y"] == [row["linear_natural"] for row in run.metrics if "knn_robust" in row]
    assert attacked["y"] == [row["knn_robust"] for row in run.metrics if "knn_robust" in row]
    assert lines(one, "losses") == lines(one, "alignment") == {"y": ["natural views", "adversarial views"]}


def test_several_runs_are_overlaid_in_their_own_colours(runs: list[PretrainingRun], three: Page) -> None:
    labels = [run.label for run in runs]
    for kind in ("linear", "knn"):
        assert lines(three, f"probe/{kind}") == {"y": labels, "y2": labels}
    assert lines(three, "losses") == lines(three, "alignment") == {"y": labels, "y2": labels[:2]}
    colours = [look.light for look in looks(runs)]
    assert [trace["line"]["color"] for trace in three.data["figures"]["losses"]["data"][:3]] == colours
    assert set(colours) <= set(three.data["dark"])
    assert [entry["value"] for entry in three.all("input")] == ["linear", "knn"]


def test_every_form_of_an_invariance_has_a_plot_of_its_own_that_names_it(
    runs: list[PretrainingRun], three: Page
) -> None:
    drawn = {key: trace for key, trace in three.data["figures"].items() if key[:3] in ("sir", "air")}
    assert list(drawn) == ["sir/0", "air/0", "air/1"]
    assert drawn["air/1"]["data"][0]["y"] == [row["air"] for row in runs[1].metrics]
    captions = three.text.split("The regularisers", 1)[1].split("Alignment", 1)[0]
    forms = re.findall(r"(SIR|AIR) form: (\w+) , (.*?)(?=SIR form|AIR form|$)", captions, re.DOTALL)
    assert [(term, form) for term, form, _ in forms] == [("SIR", "paper"), ("AIR", "paper"), ("AIR", "authors")]
    assert "released code" in forms[2][2]
    assert ["tiny" in said for _, _, said in forms] == [False, True, False]


def test_schedules_show_the_rate_the_strength_and_the_weights_that_are_not_zero(three: Page, one: Page) -> None:
    assert lines(one, "schedules")["y3"] == ["natural", "adversarial", "SIR", "AIR"]
    panels = three.data["figures"]["schedules"]
    of = [trace["hovertemplate"].split("<br>")[0] for trace in panels["data"] if trace["yaxis"] == "y3"]
    assert of == [f"DynACL + SIR + AIR, {term}" for term in ("natural", "adversarial", "SIR", "AIR")] + [
        "ACL + AIR, natural", "ACL + AIR, adversarial", "ACL + AIR, AIR", "SCL, natural",
    ]  # fmt: skip
    titles = [panels["layout"][axis]["title"]["text"] for axis in ("yaxis", "yaxis2", "yaxis3")]
    assert titles == ["Learning rate", "Augmentation", "Weights"]


def test_guessing_is_drawn_only_where_all_probes_had_as_many_classes(runs: list[PretrainingRun]) -> None:
    styles = looks(runs)
    figure = figures.probe(runs, styles, "linear")
    assert figure is not None
    assert [(shape.y0, shape.y1, shape.yref) for shape in figure.layout.shapes] == [(0.1, 0.1, "y"), (0.1, 0.1, "y2")]
    two = replace(runs[0], record=runs[0].record | {"probe": runs[0].probe | {"classes": ["a", "b"]}})
    other = figures.probe([two, *runs[1:]], styles, "linear")
    assert other is not None and not other.layout.shapes


def test_the_sheet_is_shown_with_the_names_of_its_columns(one: Page, three: Page, run: PretrainingRun) -> None:
    (picture,) = one.all("img")
    assert str(picture["src"]).startswith("data:image/png;base64,")
    assert "picture view i view j view i, attacked difference, magnified" in one.text
    assert len(three.all("img")) == 3
    assert str(three.all("img")[2]["alt"]).endswith("a picture per row: picture, view i, view j")


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(("method", "columns"), [("acl", 5), ("scl", 3), ("scl", 5)])
@pytest.mark.parametrize("side", [32, 128])
def test_the_shape_of_a_sheet_tells_its_columns(
    rows: int, method: str, columns: int, side: int, tmp_path: Path
) -> None:
    sheet = Image.open(synthetic.views(tmp_path / "views.png", rows=rows, columns=columns, side=side))
    assert _columns(sheet, method != "scl") == COLUMNS[:columns]


def test_a_sheet_of_another_shape_is_shown_with_the_columns_in_words(run: PretrainingRun, tmp_path: Path) -> None:
    Image.new("RGB", (100, 900)).save(tmp_path / "odd.png")
    page = written([replace(run, views=tmp_path / "odd.png")], tmp_path)
    assert "From left to right: picture" in page.text


def test_settings_machine_seed_and_notes_are_given(one: Page) -> None:
    text = one.text.split("How this was made", 2)[-1]
    for said in (
        COMMAND,
        "Example GPU, Example CPU, 8 cores, Linux",
        "torch 2.15.0",
        "batch_size: 512",
        "L-inf 8/255",
    ):
        assert said in text
    table = dict(facts.provenance([synthetic.run("x")]))
    assert table["Seed"] == ["0"] and table["Time"] == ["1 h 42 min"] and table["Encoder's sha256"][0][:4] == "3f9a"
    assert "3 pictures of …/pictures/broken were left out." in text


def test_scl_is_said_to_have_met_no_attacker(three: Page, tmp_path: Path) -> None:
    assert "SCL never met an attacker" in three.text
    alone = written([synthetic.run("SCL", "scl", "none", probe=synthetic.FRAGILE)], tmp_path)
    assert "cifar_resnet18 by SCL, without an attacker," in alone.text
    assert "an attacker who may change each view" not in alone.text and "an attacker who may" in three.text


# ----- what is absent -----------------------------------------------------------------------------------------------
def test_without_probes_no_accuracy_is_promised_or_drawn(tmp_path: Path) -> None:
    page = written([synthetic.run("ACL", "acl", "none", probe=None)], tmp_path)
    assert page.sections == [name for name in ORDER if name not in ("probes", "invariance", "views")]
    assert "How good, no probe tells yet." in page.text and "Early signs" not in page.text
    assert pills(page) == ["status unknown"]


def test_probes_of_one_run_only_leave_the_others_without(tmp_path: Path) -> None:
    page = written([synthetic.run("A"), synthetic.run("B", probe=None)], tmp_path)
    assert pills(page) == ["status bound", "status unknown"]
    assert lines(page, "probe/linear") == {"y": ["A"], "y2": ["A"]}
    assert "No probes ran on B:" in page.text


def test_natural_probes_alone_make_no_empty_plot_under_attack(tmp_path: Path) -> None:
    page = written([synthetic.run("A", probe={"knn_natural": 0.6})], tmp_path)
    assert "a k-NN vote on it is right 60.0% of the time." in page.text
    assert lines(page, "probes") == {"y": ["k-NN"]}
    assert "nobody attacked them" in page.text and "these are upper bounds" not in page.text
    assert "Accuracy under PGD" not in page.source.split('id="report-data"')[1].split("</script>")[0]


def test_without_an_attacker_there_are_no_adversarial_lines(tmp_path: Path) -> None:
    page = written([synthetic.run("SCL", "scl", "none")], tmp_path)
    assert lines(page, "losses") == lines(page, "alignment") == {"y": ["natural views"]}
    assert "NT-Xent, adversarial views" not in page.text


def test_a_single_epoch_gives_numbers_and_no_plots(tmp_path: Path) -> None:
    page = written([synthetic.run("ACL", "acl", epochs=1)], tmp_path)
    assert page.data["figures"] == {}
    assert page.sections == ["verdict", "numbers", "made", "untested"]
    assert "NT-Xent, adversarial views" in page.text


def test_a_run_without_anything_still_makes_a_page(tmp_path: Path) -> None:
    page = written([PretrainingRun("Bare")], tmp_path)
    assert page.sections == ["verdict", "made", "untested"]
    assert "An encoder learned from pictures without labels. How good, no probe tells yet." in page.text


ODD: dict[str, Any] = {
    "config": [], "method": ["x"], "invariance": {}, "form": None, "threat": 3, "architecture": None, "size": 32,
    "pictures": math.nan, "epochs": "many", "seconds": None, "hardware": [], "versions": "1", "notes": {"a": 1},
    "probe": {"classes": 10, "test": math.inf, "linear_natural": {"value": math.nan}, "knn_robust": "0.3"},
}  # fmt: skip


@pytest.mark.parametrize("key", ODD)
def test_a_part_of_the_record_may_be_nonsense(run: PretrainingRun, key: str, tmp_path: Path) -> None:
    broken = replace(run, record=run.record | {key: ODD[key]}, metrics=run.metrics[:2], views=None)
    text = written([broken], tmp_path).text
    assert not re.search(r"\b(nan|NaN|inf|None)\b", text.replace("L-inf", ""))


def test_undefined_numbers_of_the_log_are_left_out(run: PretrainingRun, tmp_path: Path) -> None:
    rows = [{"epoch": 1, "natural": 5.0}, {"epoch": 2, "natural": math.nan}, {"epoch": None, "natural": 1.0},
            {"epoch": 3, "natural": 4.0, "sir": "x"}]  # fmt: skip
    page = written([replace(run, metrics=rows)], tmp_path)
    assert page.data["figures"]["losses"]["data"][0]["y"] == [5.0, 4.0]
    assert "sir/0" not in page.data["figures"]


# ----- what it must never do ----------------------------------------------------------------------------------------
def test_hostile_text_arrives_as_text(run: PretrainingRun, one: Page, tmp_path: Path) -> None:
    text = json.dumps(run.record)
    for word in ("dynacl", "airplane", "cifar_resnet18", "L-inf 8/255", "paper", "Example GPU", "3f9a0c5b", "torch"):
        text = text.replace(word, json.dumps(HOSTILE)[1:-1])
    record = json.loads(text) | {"invariance": HOSTILE, "notes": [HOSTILE]}
    hostile = PretrainingRun(HOSTILE, record, run.metrics, run.views)
    page = written([hostile, replace(hostile, label="{probe}")], tmp_path, title=HOSTILE, command=HOSTILE)
    benign = written([run, replace(run, label="other")], tmp_path / "benign")
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in benign.elements]
    assert page.text.count("{{7*7}}") > 15
    for figure in page.data["figures"].values():
        for trace in figure["data"]:
            assert "<" not in trace["name"]
            assert "<script" not in trace["hovertemplate"] and "%{x}&amp;" not in trace["hovertemplate"]


def test_no_folder_of_the_machine_is_in_the_page(run: PretrainingRun, tmp_path: Path) -> None:
    page = written(
        [run], tmp_path, command="lorica pretrain --data '/home/jane doe/pictures' --output=/scratch/jane/a"
    )
    assert not re.search(r"jane|/home|/scratch", page.source)
    assert "--data '…/pictures' --output=…/a" in page.text


def test_nothing_is_loaded_from_anywhere(three: Page) -> None:
    for tag, attributes in three.elements:
        for name in {"src", "srcset", "href", "action", "data", "poster"} & attributes.keys():
            assert str(attributes[name]).startswith(("data:image/png;base64,", "#")), (tag, name)


def test_equal_names_are_numbered(run: PretrainingRun, tmp_path: Path) -> None:
    page = written([run, run], tmp_path)
    assert set(lines(page, "losses")["y"]) == {"DynACL + SIR + AIR (1)", "DynACL + SIR + AIR (2)"}


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="at least one"):
        build_pretraining([], title="", command="", output=tmp_path / "page.html")


def test_a_sheet_that_cannot_be_read_leaves_the_earlier_page(run: PretrainingRun, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("earlier")
    (tmp_path / "views.png").write_bytes(b"no picture")
    with pytest.raises(LoricaError, match=re.escape("views.png of DynACL")):
        written([replace(run, views=tmp_path / "views.png")], tmp_path)
    assert (tmp_path / "report.html").read_text() == "earlier"


# ----- reading ------------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(run: PretrainingRun, tmp_path: Path) -> Path:
    """A run as the command leaves it."""
    home = tmp_path / "mine"
    synthetic.views(home / "views.png")
    (home / "run.json").write_text(json.dumps(run.record))
    (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.metrics))
    return home


def test_what_the_command_wrote_is_read_back(folder: Path, run: PretrainingRun) -> None:
    assert load_pretraining(folder) == replace(run, views=folder / "views.png")


@pytest.mark.parametrize(
    ("method", "invariance", "label"),
    [("acl", "none", "ACL"), ("dynacl", "air", "DynACL + AIR"), ("mine", "new", "mine + new"), ("", "sir", "mine")],
)
def test_a_run_is_called_by_its_method_or_its_folder(folder: Path, method: str, invariance: str, label: str) -> None:
    record = {"kind": "pretraining", "method": method, "invariance": invariance}
    (folder / "run.json").write_text(json.dumps(record))
    assert load_pretraining(folder).label == label


def test_log_and_sheet_may_be_missing(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    (folder / "views.png").unlink()
    found = load_pretraining(folder)
    assert (found.metrics, found.views) == ([], None)


def test_a_sheet_outside_of_the_run_is_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "views.png").rename(tmp_path / "secret.png")
    (folder / "views.png").symlink_to(tmp_path / "secret.png")
    assert load_pretraining(folder).views is None


@pytest.mark.parametrize("content", ["[]", "{}", '{"kind": "finetuning"}', "{"])
def test_the_record_of_something_else_is_refused(folder: Path, content: str) -> None:
    (folder / "run.json").write_text(content)
    with pytest.raises(LoricaError, match=re.escape("run.json")):
        load_pretraining(folder)


def test_a_log_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n\n")
    with pytest.raises(LoricaError, match=re.escape("metrics.jsonl cannot be read")):
        load_pretraining(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="record of the pre-training run not found"):
        load_pretraining(tmp_path)


# ----- in a browser -------------------------------------------------------------------------------------------------
PROBE = """<script>
const note = (name, value) => document.documentElement.setAttribute("data-" + name, value);
const fail = (event) => note("failed", event.message || event.reason || event.violatedDirective);
["error", "unhandledrejection", "securitypolicyviolation"].forEach((name) => addEventListener(name, fail, true));
addEventListener("load", () => {
  const plot = document.querySelector("#probes .plot");
  const before = JSON.stringify(plot.data[0].y);
  const radio = document.querySelector("#probes input[value=knn]");
  radio.checked = true;
  radio.dispatchEvent(new Event("change", { bubbles: true }));
  note("switched", before !== JSON.stringify(plot.data[0].y));
  note("empty", document.querySelectorAll(".plot.empty").length);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_every_plot_and_runs_no_name(runs: list[PretrainingRun], tmp_path: Path) -> None:
    hostile = [replace(runs[0], label=HOSTILE, record=runs[0].record | {"form": "{probe}"}), *runs[1:]]
    page = build_pretraining(hostile, title=HOSTILE, command=HOSTILE, output=tmp_path / "page.html")
    page.write_text(page.read_text().replace("<head>", "<head>" + PROBE, 1))
    document = _rendered(page, tmp_path / "profile", dark=True)
    root = re.search(r"<html[^>]*>", document)
    assert root is not None
    assert dict(re.findall(r'data-(\w+)="([^"]*)"', root[0])) == {"switched": "true", "empty": "0"}
    assert document.count('class="main-svg"') >= document.count('data-figure="') == 7


def test_the_sheet_says_how_much_the_difference_is_magnified_where_that_is_known(
    run: PretrainingRun, tmp_path: Path
) -> None:
    known = written([replace(run, record=run.record | {"magnified": 10})], tmp_path)
    assert "view i, attacked difference, 10-fold" in known.text
