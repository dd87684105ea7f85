"""The robustness report: what it says of which evaluation, what it must never do, and that a browser draws it."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import synthetic_robustness as synthetic
from lorica.errors import LoricaError
from lorica.report.look import looks
from lorica.report.robustness import RobustnessRun, build_robustness, figures, load_robustness, tables, training, words
from lorica.report.robustness.paths import absolute_paths, without_folders
from test_report import CHROMIUM, HOSTILE, Page, _rendered

COMMAND = "lorica report runs/mine/evaluation"
ORDER = ["verdict", "comparison", "flags", "curve", "classes", "confusion", "corruptions", "membership", "examples"]
ORDER += ["learning", "schedules", "similarity", "measured", "untested"]


def written(runs: list[RobustnessRun], folder: Path, *, title: str = "A page", command: str = COMMAND) -> Page:
    return Page(build_robustness(runs, title=title, command=command, output=folder / "report.html"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RobustnessRun:
    return synthetic.run(synthetic.AUTOLORA, "AutoLoRa", folder=tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def one(run: RobustnessRun, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written([run], tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RobustnessRun]:
    return synthetic.three_runs(tmp_path_factory.mktemp("evaluations"))


@pytest.fixture(scope="module")
def three(runs: list[RobustnessRun], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(runs, tmp_path_factory.mktemp("three"))


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def labels(page: Page) -> list[str]:
    """Classes of the pills that say how far a verdict goes."""
    return [str(span["class"]) for span in page.all("span") if str(span.get("class")).startswith("status")]


def after(page: Page, heading: str) -> str:
    """The text from a heading on; the first mention is that in the contents."""
    return page.text.split(heading, 2)[-1]


# ----- what it says -------------------------------------------------------------------------------------------------
def test_all_parts_are_there_in_order_and_the_contents_link_to_each(one: Page, three: Page) -> None:
    assert one.sections == three.sections == ORDER
    assert [a["href"] for a in one.all("a")] == ["#verdict", *(f"#{name}" for name in ORDER)]


def test_the_verdict_is_the_evaluations_own(run: RobustnessRun, one: Page) -> None:
    assert run.evaluation["verdict"]["text"] in one.text
    robust, natural = run.worst["robust"]["value"], run.evaluation["natural"]["value"]
    assert words.headline([run]) in one.text
    said = f"Attacked within L-inf 8/255, AutoLoRa is right {percent(robust)} of the time; {percent(natural)} without"
    assert said in one.text
    assert labels(one) == ["status tight"] and "Attacked in full" in one.text


def test_a_weaker_tier_is_called_an_upper_bound_wherever_its_number_stands(tmp_path: Path) -> None:
    run = synthetic.run(synthetic.TWINS, "TWINS", tier="lite", radii=(8,))
    page = written([run], tmp_path)
    value = percent(run.worst["robust"]["value"])
    assert f"at most {value} of the time" in page.text
    assert labels(page) == ["status bound"] and "Upper bound only" in page.text
    assert "Only an upper bound." in page.text
    assert "of standard AutoAttack, FAB-T and Square did not run" in page.text
    cell = dict(dict(tables.comparison([run]))["Attacked within L-inf 8/255"])["Robust accuracy"][0]
    assert cell.warning == "upper bound"


def test_the_page_judges_nothing_by_itself(run: RobustnessRun, tmp_path: Path) -> None:
    odd = run.evaluation | {"verdict": {"upper_bound": True, "trusted": False, "text": "Said elsewhere."}}
    page = written([replace(run, evaluation=odd)], tmp_path)  # though the tier is standard and no flag is raised
    assert "Said elsewhere." in page.text
    assert labels(page) == ["status leaks", "status bound"]
    assert "the evaluation does not trust its own number" in page.text


def test_a_flag_that_casts_doubt_stands_under_the_verdict_and_in_the_list_with_advice(tmp_path: Path) -> None:
    page = written([synthetic.run(synthetic.AUTOLORA, "A", flags=(synthetic.NOTE, synthetic.DOUBT))], tmp_path)
    top = page.text.split("Robust accuracy", 1)[0]
    assert synthetic.DOUBT.problem in top and "weak ground" in top
    assert synthetic.NOTE.problem[1:] not in top
    listed = after(page, "Flags").split("Radius")[0]
    assert listed.index(synthetic.DOUBT.advice) < listed.index(synthetic.NOTE.advice)
    assert "Looked for and not found: randomised and probabilities." in listed


def test_equal_flags_of_several_runs_share_one_entry() -> None:
    runs = [synthetic.run(synthetic.AUTOLORA, label, flags=(synthetic.DOUBT,), epochs=1) for label in "AB"]
    (flag,) = words.flags(runs)
    assert flag.where == ("A", "B") and flag.problem == synthetic.DOUBT.problem


def test_every_attack_has_its_row_and_every_model_its_column(runs: list[RobustnessRun], three: Page) -> None:
    table = dict(tables.comparison(runs))
    rows = dict(table["Attacked within L-inf 8/255"])
    assert list(rows) == ["PGD-20", "APGD-CE", "then APGD-T", "then FAB-T", "then Square", "Robust accuracy"]
    for place, run in enumerate(runs):
        entry = run.worst
        assert rows["PGD-20"][place].estimate.value == entry["pgd"]["accuracy"]["value"]
        for attack in entry["autoattack"]["attacks"]:
            name = tables.attack_name(attack["name"])
            cell = rows[name if name == "APGD-CE" else f"then {name}"][place]
            assert cell.estimate.value == attack["accuracy"]["value"]
        rate = entry["robust"]
        assert (rows["Robust accuracy"][place].estimate.low, rows["Robust accuracy"][place].estimate.high) == (
            rate["low"],
            rate["high"],
        )
        assert rows["Robust accuracy"][place].below == f"{rate['correct']} of {rate['n']}"
        assert f"{percent(rate['low'])} – {percent(rate['high'])}" in three.text
        assert percent(run.evaluation["corruptions"]["mean"]["value"]) in three.text
    assert not rows["then FAB-T"][1].known  # TWINS was attacked with less
    assert [cell.text for cell in dict(table["Cost of the attacks"])["Forward passes"]] == ["43.2 million"] * 3
    assert [cell.text for cell in dict(table["Cost of the attacks"])["Time"]] == ["2 h 05 min"] * 3


def test_smaller_radii_give_one_row_and_their_attacks_a_table_of_their_own(runs: list[RobustnessRun]) -> None:
    assert [name for name, _ in dict(tables.comparison(runs))["Robust accuracy at smaller radii"]] == [
        "L-inf 2/255",
        "L-inf 4/255",
    ]
    assert [title for title, _ in tables.every_attack(runs)] == [
        "Attacked within L-inf 2/255",
        "Attacked within L-inf 4/255",
    ]


def test_the_lowest_class_is_named_and_drawn_on_top(run: RobustnessRun, one: Page) -> None:
    rates = {name: rate["value"] for name, rate in run.worst["per_class"].items()}
    lowest = min(rates, key=lambda name: (rates[name], name))
    assert f"lowest is {lowest} , {percent(rates[lowest])} under attack" in one.text
    axis = one.data["figures"]["classes/0"]["layout"]["yaxis"]
    assert axis["ticktext"][0] == f"<b>{lowest}</b>" and axis["range"][0] > axis["range"][1]


def test_of_many_classes_those_are_drawn_that_fall_lowest(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(60)]
    run = synthetic.run(synthetic.TWINS, "TWINS", classes=names, pictures=600, epochs=1)
    figure = figures.classes(run, looks([run])[0])
    assert figure is not None
    drawn = figure.data[1].x
    assert len(drawn) == figures.MOST_CLASSES
    assert max(drawn) <= min(rate.value for _, _, rate in figures.by_class(run)[figures.MOST_CLASSES :])
    assert "Only the classes that fall lowest are drawn." in written([run], tmp_path).text


def test_a_confusion_matrix_shows_right_answers_above_and_mistakes_below_zero() -> None:
    figure = figures.confusion([[3, 1], [0, 0]], ["a", "b"])
    assert figure is not None
    heat = figure.data[0]
    assert heat.z[0] == pytest.approx([math.sqrt(3 / 4), -math.sqrt(1 / 4)], abs=1e-3)
    assert list(heat.z[1]) == [0, 0]  # a class without pictures
    assert list(heat.text[0]) == ["75", "25"] and list(heat.customdata[0]) == [3, 1]
    assert heat.zmin == -heat.zmax


@pytest.mark.parametrize("counts", [None, [], [[1, 2]], [[1], [2]], [[1, 2], "ab"], {"a": 1}])
def test_a_confusion_matrix_of_another_shape_is_not_drawn(counts: Any) -> None:
    assert figures.confusion(counts, ["a", "b"]) is None


def test_confusion_can_be_switched_between_natural_and_attacked(run: RobustnessRun, one: Page) -> None:
    for kind in ("natural", "L-inf 2/255", "L-inf 4/255", "L-inf 8/255"):
        assert f"confusion/0/{kind}" in one.data["figures"]
    values = [entry.get("value") for entry in one.all("input") if entry.get("name") == "kind"]
    assert values == ["natural", "L-inf 2/255", "L-inf 4/255", "L-inf 8/255"]
    counts = run.worst["confusion"]
    shown = one.data["figures"]["confusion/0/L-inf 8/255"]["data"][0]["customdata"]
    assert shown == counts and shown != run.evaluation["natural"]["confusion"]


def test_of_too_many_classes_for_a_matrix_the_mistakes_are_listed(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(101)]
    run = synthetic.run(synthetic.TWINS, "TWINS", classes=names, pictures=303, epochs=1)
    page = written([run], tmp_path)
    most = run.worst["confused"][0]
    assert f"{most['class']} taken for {most['taken_for']} ({most['count']})" in page.text
    assert "confusion" in page.sections and not page.all("input")


def test_the_curve_begins_without_an_attacker_and_carries_its_interval(runs: list[RobustnessRun], three: Page) -> None:
    traces = three.data["figures"]["curve/linf"]["data"]
    for run, band, line in zip(runs, traces[::2], traces[1::2], strict=True):
        curve = run.evaluation["curve"]
        assert line["x"] == [0, *(eps / 255 for eps in (2, 4, 8))]
        assert line["y"] == [point["value"] for point in curve]
        assert band["y"] == [p["low"] for p in curve] + [p["high"] for p in reversed(curve)]
        opened = [str(mark).endswith("-open") for mark in line["marker"]["symbol"]]
        assert opened == [False, *[run.label == "TWINS"] * 3]


def test_models_attacked_in_different_norms_do_not_share_a_curve(run: RobustnessRun, tmp_path: Path) -> None:
    other = json.loads(json.dumps(run.evaluation))
    for entry in other["threats"]:
        entry |= {"norm": "l2", "text": f"L2 {entry['eps']:.3g}"}
    page = written([run, RobustnessRun("L2 model", other)], tmp_path)
    for norm, label in (("linf", "AutoLoRa"), ("l2", "L2 model")):
        names = {trace.get("name") for trace in page.data["figures"][f"curve/{norm}"]["data"]}
        assert names == {label, None}
    assert "Attacked within different radii," in page.text
    assert "classes/all" not in page.data["figures"] and "membership" not in page.data["figures"]


def test_corruptions_are_given_by_type_and_severity(run: RobustnessRun, one: Page) -> None:
    text = after(one, "Common corruptions").split("Membership beside")[0]
    for name, entry in run.evaluation["corruptions"]["types"].items():
        row = " ".join(percent(cell["value"]) for cell in entry["severities"].values())
        assert f"{name.replace('_', ' ')} {row} {percent(entry['mean'])}" in text
    assert "not with published numbers on the official files" in one.text


def test_membership_stands_beside_robust_accuracy(run: RobustnessRun, one: Page) -> None:
    worst = run.evaluation["membership"]["worst_attack"]
    auc = run.evaluation["membership"]["attacks"][worst]["auc"]["value"]
    said = words.side_by_side(run)
    assert said in one.text
    assert f"{auc:.3f}" in said and percent(run.worst["robust"]["value"]) in said
    own = {"membership": {"text": "Its own sentence."}}
    assert words.side_by_side(replace(run, evaluation=own)) == "Its own sentence."


def test_adversarial_pictures_are_shown_with_their_twin_and_the_difference(run: RobustnessRun, one: Page) -> None:
    pictures = [str(image["alt"]).split(":")[0] for image in one.all("img")]
    assert pictures == ["natural", "adversarial", "difference"] * 4
    assert (
        "airplane taken for automobile APGD-CE; moved by 8/255 in L-inf; fools the model as an 8-bit file" in one.text
    )
    assert "does not fool the model as an 8-bit file" in one.text


def test_learning_curves_show_raw_averaged_and_training_accuracy_and_the_kept_weights(run: RobustnessRun) -> None:
    figure = training.learning(run, looks([run])[0])
    assert figure is not None
    lines = {(trace.name, trace.yaxis): trace for trace in figure.data}
    keys = {"training": "adversarial_correct", "validation": "val_robust"}
    keys |= {"validation, averaged weights": "val_average_robust"}
    for name, key in keys.items():
        assert list(lines[name, "y2"].y) == [row[key] for row in run.metrics]
    star = lines["weights that were kept", "y2"]
    assert (star.x[0], star.y[0]) == (run.record["best_epoch"], run.record["val_robust"])
    back = [row["epoch"] for row in run.metrics if row["reloaded"]]
    assert back and sorted({shape.x0 for shape in figure.layout.shapes}) == back


def test_raw_weights_that_were_kept_are_marked_on_the_raw_curve(run: RobustnessRun) -> None:
    raw = replace(run, record=run.record | {"weights": "raw", "best_epoch": 7})
    figure = training.learning(raw, looks([raw])[0])
    assert figure is not None
    stars = [trace.y[0] for trace in figure.data if trace.name == "weights that were kept"]
    assert stars == [run.metrics[6]["val_natural"], run.metrics[6]["val_robust"]]


def test_loss_terms_are_drawn_before_their_weights_and_the_kl_apart(run: RobustnessRun) -> None:
    figure = training.losses(run, looks([run])[0])
    assert figure is not None
    lines = {trace.name: trace for trace in figure.data}
    for key, name, axis in (
        ("natural", "natural cross-entropy", "y"),
        ("adversarial", "adversarial cross-entropy", "y"),
        ("kl", "KL(natural ‖ adversarial)", "y2"),
    ):
        assert list(lines[name].y) == [row[key] for row in run.metrics]
        assert lines[name].yaxis == axis
    alone = replace(run, metrics=[{"epoch": 1, "adversarial": 2.0}, {"epoch": 2, "adversarial": 1.0}])
    figure = training.losses(alone, looks([alone])[0])
    assert figure is not None and [trace.name for trace in figure.data] == ["adversarial cross-entropy"]
    assert training.losses(replace(run, metrics=[{"epoch": 1, "val_robust": 0.5}]), looks([run])[0]) is None


def test_schedules_show_the_weights_the_learning_rate_and_the_returns(run: RobustnessRun) -> None:
    figure = training.schedules([run], looks([run]))
    assert figure is not None
    lines = {trace.name: trace for trace in figure.data}
    assert list(lines["natural, λ₁"].y) == [row["weight_natural"] for row in run.metrics]
    assert list(lines["KL, λ₂"].y) == [row["weight_kl"] for row in run.metrics]
    assert list(lines["AutoLoRa"].y) == [row["learning_rate"] for row in run.metrics]
    assert list(lines["back to the best weights"].x) == [row["epoch"] for row in run.metrics if row["reloaded"]]
    assert figure.layout.yaxis3.type == "log"


def test_similarity_is_drawn_as_a_line_and_by_layer(run: RobustnessRun, one: Page) -> None:
    line = one.data["figures"]["similarity"]["data"][0]
    assert line["y"] == [row["similarity"] for row in run.metrics]
    heat = one.data["figures"]["layers/0"]["data"][0]
    assert np.shape(heat["z"]) == (20, len(run.metrics))
    assert heat["z"][3][1] is None  # not logged: a gradient was zero
    assert heat["text"][0][0] == "layer1.0.weight"


def test_how_it_was_measured_names_attack_data_seed_and_machine(three: Page) -> None:
    text = after(three, "How this was measured")
    for fact in ("APGD-CE, APGD-T, FAB-T and Square", "iterations 100, restarts 1, targets 9, queries 5000",
                 "20 steps of 2/255, 1 random start", "95%, Clopper-Pearson", "Example GPU, Example CPU, 8 cores",
                 "lorica 0.1.0, torch 2.15.0", "3f9a0c5b7d21e864" * 4, COMMAND, "pgd, L-inf 8/255, 10 steps",
                 "train 3500, val 180, test 500"):  # fmt: skip
        assert fact in text, fact


def test_what_was_not_tested_is_said(tmp_path: Path) -> None:
    page = written([synthetic.run(synthetic.AUTOLORA, "A", corruptions=False, membership=False)], tmp_path)
    text = after(page, "What was not tested")
    assert "within L-inf 8/255 were tried: no larger radius, no other norm" in text
    assert "Common corruptions were not tried." in text
    assert "Whether training pictures leak was not measured." in text
    assert "corruptions" not in page.sections and "membership" not in page.sections


def test_a_record_of_other_weights_is_doubted_and_one_of_these_is_not(run: RobustnessRun) -> None:
    unknown = run.evaluation | {"model": run.evaluation["model"] | {"weights": "unknown"}}
    said = "nothing shows that the training record"
    assert said in " ".join(words.untested([replace(run, evaluation=unknown)]))
    same = replace(run, evaluation=unknown, record=run.record | {"natural": unknown["natural"]})
    assert said not in " ".join(words.untested([same]))
    assert tables.comparison([same])[0][1][1][1][0].below == "by the training record"


def test_many_models_are_counted_and_not_all_named(run: RobustnessRun) -> None:
    value = run.worst["robust"]["value"]
    many = [replace(run, label=f"model {i}") for i in range(6)]
    assert words.headline(many) == (
        f"Attacked within L-inf 8/255, 6 models are right between {percent(value)} and {percent(value)} of the time."
    )


def test_models_are_compared_at_the_largest_radius_that_all_were_attacked_at(tmp_path: Path) -> None:
    wide = synthetic.run(synthetic.AUTOLORA, "wide", radii=(4, 8, 16), epochs=1)
    near = synthetic.run(synthetic.TWINS, "near", radii=(2, 8), epochs=1)
    page = written([wide, near], tmp_path)
    rates = [run.at("L-inf 8/255")["robust"]["value"] for run in (wide, near)]
    assert wide.worst["text"] == "L-inf 16/255"
    assert words.headline([wide, near]) == (
        f"Attacked within L-inf 8/255, wide is right {percent(rates[0])} of the time and near {percent(rates[1])}."
    )
    points = page.data["figures"]["membership"]["data"]
    assert [point["x"][0] for point in points] == rates
    classes = {trace.get("name"): trace for trace in page.data["figures"]["classes/all"]["data"]}
    assert sorted(classes["wide"]["x"]) == sorted(
        rate["value"] for rate in wide.at("L-inf 8/255")["per_class"].values()
    )
    checked = [entry["value"] for entry in page.all("input") if "checked" in entry]
    assert checked == ["L-inf 8/255"]


def test_a_run_keeps_its_colour_and_one_alone_is_drawn_solid(
    three: Page, one: Page, runs: list[RobustnessRun]
) -> None:
    colour = looks(runs)[2].light
    for key in ("curve/linf", "learning/all", "similarity"):
        (trace,) = (
            t
            for t in three.data["figures"][key]["data"]
            if t.get("name") == "AutoLoRa" and t.get("yaxis") in (None, "y")
        )
        assert trace["line"]["color"] == colour
    assert colour in three.data["dark"]
    assert one.data["figures"]["similarity"]["data"][0]["line"]["dash"] == "solid"


# ----- what it must never do ----------------------------------------------------------------------------------------
def test_hostile_text_arrives_as_text(run: RobustnessRun, one: Page, tmp_path: Path) -> None:
    quoted = json.dumps(HOSTILE)[1:-1]
    text = json.dumps(run.evaluation)
    for word in ("airplane", "bird", "adversarial-loss", "gaussian_noise", "resnet18", "APGD", "pets"):
        text = text.replace(word, quoted)
    evaluation = json.loads(text)
    evaluation["verdict"]["text"] = evaluation["data"]["part"] = HOSTILE
    evaluation["warnings"] = [HOSTILE]
    for entry in evaluation["threats"]:
        entry["text"] = HOSTILE + entry["text"]
    for flag in evaluation["flags"]:
        flag |= {"name": HOSTILE + flag["name"], "threat": HOSTILE}
    record = run.record | {"notes": [HOSTILE + "!"], "threat": HOSTILE}
    metrics = [{key.replace("layer1.0", HOSTILE): value for key, value in row.items()} for row in run.metrics]
    hostile = RobustnessRun(HOSTILE, evaluation, record, metrics, run.pictures)
    page = written([hostile], tmp_path, title=HOSTILE, command=HOSTILE)

    assert [tag for tag, _ in page.elements] == [tag for tag, _ in one.elements]
    assert page.text.count("{{7*7}}") > 20
    layers = page.data["figures"]["layers/0"]["data"][0]["text"]
    ticks = page.data["figures"]["classes/0"]["layout"]["yaxis"]["ticktext"]
    ticks += page.data["figures"]["confusion/0/natural"]["layout"]["xaxis"]["ticktext"]
    for shown in [*ticks, layers[0][0]]:
        assert "<" not in shown.removeprefix("<b>").removesuffix("</b>") and "%{x}" not in shown


def test_no_folder_of_the_machine_is_in_the_page(run: RobustnessRun, tmp_path: Path) -> None:
    command = "lorica report '/home/jane doe/runs/a/evaluation' --output=/scratch/jane/a.html"
    page = written([run], tmp_path, command=command)
    assert not re.search(r"jane|/home|/scratch", page.source)
    assert "lorica report '…/evaluation' --output=…/a.html" in page.text
    assert "…/pets/list.csv" in page.text
    assert str(next(iter(run.pictures.values())).parent) not in page.source


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("/home/me/x.json cannot be read", "…/x.json cannot be read"),
        ("in '/home/jane doe/x y/z.png' (a)", "in '…/z.png' (a)"),
        ("C:\\Users\\me\\x.png", "…/x.png"),
        ("\\\\host\\share\\x", "…/x"),
        ("~/data/x and ~me/data/y", "…/x and …/y"),
        ("file:///srv/a/b", "…/b"),
        ("/data/jane doe/pets/cat/1.png", "…/pets/cat/1.png"),
        ("/top is known", "…/top is known"),
    ],
)
def test_absolute_paths_are_cut_to_their_last_part(text: str, short: str) -> None:
    known = list(absolute_paths({"data": "/data/jane doe/pets", "more": [{"cache": "/top"}], "name": "resnet18"}))
    assert known == ["/data/jane doe/pets", "/top"]
    assert without_folders({text: [text]}, known) == {short: [short]}


@pytest.mark.parametrize("text", ["L-inf 8/255", "and/or, a / b", "https://a.b/c/d", "runs/mine/model", "…/x", "a\\b"])
def test_what_is_no_absolute_path_stays(text: str) -> None:
    assert without_folders(text, ["/"]) == text


def test_missing_and_undefined_numbers_become_dashes(run: RobustnessRun, tmp_path: Path) -> None:
    nothing = {"value": math.nan, "low": None, "high": math.inf}
    evaluation = {
        "schema": 1,
        "model": {"classes": "none", "size": 3, "arguments": None, "parameters": math.nan},
        "natural": nothing | {"per_class": None, "confusion": [[math.nan]]},
        "threats": [{"text": "L-inf 8/255", "norm": "linf", "eps": math.nan, "pgd": None, "robust": nothing,
                     "autoattack": {"attacks": [{"name": "square", "accuracy": None}]}, "per_class": {"a": nothing},
                     "confused": None}],
        "curve": [{"eps": 0, "value": math.nan}, None],
        "corruptions": {"types": {"fog": {"severities": {"1": None}, "mean": math.nan}}, "mean": None},
        "membership": {"attacks": {"loss": {"auc": nothing, "tpr": {"0.01": nothing}}}, "worst_attack": ["loss"]},
        "flags": [None, {"raised": True}],
        "cost": {"attacks": {"forwards": math.inf}},
        "examples": [{"files": 3}, 4],
        "verdict": None,
        "warnings": None,
    }  # fmt: skip
    metrics = [{"epoch": 1, "val_robust": math.nan, "learning_rate": 0.1}, {"epoch": None}, {"step": 3}]
    page = written([RobustnessRun("Bare", evaluation, {"best_epoch": math.nan}, metrics), run], tmp_path)
    assert "—" in page.text
    assert not re.search(r"\b(nan|NaN|inf|None)\b", page.text.replace("L-inf", ""))
    assert "No verdict" in page.text


def test_a_run_without_anything_still_makes_a_page(tmp_path: Path) -> None:
    page = written([RobustnessRun("Model")], tmp_path)
    assert page.sections == ["verdict", "comparison", "measured", "untested"]
    assert "The evaluation holds no robust accuracy." in page.text


PARTS = ["model", "data", "natural", "threats", "curve", "corruptions", "membership", "flags", "cost", "examples"]


@pytest.mark.parametrize("part", [*PARTS, "verdict", "warnings", "provenance"])
def test_any_part_may_be_missing(run: RobustnessRun, part: str, tmp_path: Path) -> None:
    page = written([replace(run, evaluation=run.evaluation | {part: None}, metrics=[])], tmp_path)
    gone = {"threats": {"classes"}, "flags": {"flags"}, "examples": {"examples"}}
    gone |= {"corruptions": {"corruptions"}, "membership": {"membership"}}
    assert gone.get(part, set()).isdisjoint(page.sections)


def test_without_a_training_log_there_are_no_training_plots(run: RobustnessRun, tmp_path: Path) -> None:
    page = written([replace(run, record={}, metrics=[])], tmp_path)
    assert {"learning", "schedules", "similarity"}.isdisjoint(page.sections)
    assert "How it was trained" not in page.text


def test_nothing_is_loaded_from_anywhere(three: Page) -> None:
    loading = {"src", "srcset", "href", "action", "data", "poster", "background", "xlink:href", "formaction"}
    for tag, attributes in three.elements:
        for name in loading & attributes.keys():
            assert str(attributes[name]).startswith(("data:image/png;base64,", "#")), (tag, name)


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="at least one"):
        build_robustness([], title="", command="", output=tmp_path / "page.html")


def test_the_same_results_make_the_same_page(run: RobustnessRun, one: Page, tmp_path: Path) -> None:
    assert written([run], tmp_path).source == one.source


def test_names_in_no_encoding_do_not_stop_the_page(tmp_path: Path) -> None:
    run = synthetic.run(synthetic.AUTOLORA, "na\udcefve", classes=["b\udcefd", *"abcdefg"], epochs=1)
    assert "na?ve" in written([run], tmp_path).text


def test_a_picture_that_cannot_be_read_leaves_the_earlier_page(run: RobustnessRun, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("earlier")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(LoricaError, match=re.escape("broken.png")):
        written([replace(run, pictures=dict.fromkeys(run.pictures, broken))], tmp_path)
    assert (tmp_path / "report.html").read_text() == "earlier"


# ----- reading ------------------------------------------------------------------------------------------------------
@pytest.fixture
def folders(run: RobustnessRun, tmp_path: Path) -> tuple[Path, Path]:
    """(evaluation, run) as the commands leave them."""
    home = tmp_path / "mine"
    entries = synthetic.examples(home / "evaluation")
    (home / "evaluation" / "robustness.json").write_text(json.dumps(run.evaluation | {"examples": entries}))
    (home / "run.json").write_text(json.dumps(run.record))
    (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.metrics))
    return home / "evaluation", home


def test_what_the_commands_wrote_is_read_back(folders: tuple[Path, Path], run: RobustnessRun) -> None:
    found = load_robustness(*folders)
    assert (found.label, found.evaluation, found.record) == ("AutoLoRa", run.evaluation, run.record)
    assert found.metrics == run.metrics
    assert found.pictures["examples/00002_natural.png"] == folders[0] / "examples" / "00002_natural.png"
    assert len(found.pictures) == 12


def test_an_evaluation_alone_is_enough(folders: tuple[Path, Path]) -> None:
    found = load_robustness(folders[0])
    assert (found.label, found.record, found.metrics) == ("evaluation", {}, [])


def test_an_evaluation_in_a_folder_of_its_own_knows_the_training_of_its_model(folders: tuple[Path, Path]) -> None:
    for method, label in {"twins": "TWINS", "linear": "Linear head", "unknown": "evaluation"}.items():
        (folders[0] / "robustness.json").write_text(json.dumps({"schema": 1, "model": {"method": method}}))
        assert load_robustness(folders[0]).label == label


def test_a_model_without_a_record_is_called_by_its_name_or_its_folder(folders: tuple[Path, Path]) -> None:
    (folders[1] / "run.json").unlink()
    assert load_robustness(*folders).label == "mine"
    (folders[0] / "robustness.json").write_text(json.dumps({"schema": 1, "model": {"name": "resnet50"}}))
    assert load_robustness(*folders).label == "resnet50"


def test_pictures_outside_of_the_evaluation_are_not_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    (folders[0] / "examples" / "link.png").symlink_to(secret)
    names = [str(secret), "../../secret.png", "examples/link.png", "a" * 5000, "examples/\0.png", "examples"]
    entries = [{"files": {"natural": name, "adversarial": name, "difference": name}} for name in names]
    (folders[0] / "robustness.json").write_text(json.dumps({"schema": 1, "examples": entries}))
    assert load_robustness(folders[0]).pictures == {}


def test_examples_that_were_deleted_are_left_out(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[0] / "examples" / "00001_adversarial.png").unlink()
    assert len(written([load_robustness(*folders)], tmp_path).all("img")) == 9


@pytest.mark.parametrize("content", ['{"schema": 99}', "[]", "{}"])
def test_a_foreign_schema_is_refused(folders: tuple[Path, Path], content: str) -> None:
    (folders[0] / "robustness.json").write_text(content)
    with pytest.raises(LoricaError, match="schema"):
        load_robustness(folders[0])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="not found"):
        load_robustness(tmp_path)


# ----- in a browser -------------------------------------------------------------------------------------------------
PROBE = """<script>
const note = (name, value) => document.documentElement.setAttribute("data-" + name, value);
const fail = (event) => note("failed", event.message || event.reason || event.violatedDirective);
["error", "unhandledrejection", "securitypolicyviolation"].forEach((name) => addEventListener(name, fail, true));
const choose = (selector, change) => {
  const control = document.querySelector(selector);
  change(control);
  control.dispatchEvent(new Event("change", { bubbles: true }));
};
addEventListener("load", () => {
  const matrix = document.querySelector("#confusion .plot");
  const before = JSON.stringify(matrix.data[0].customdata);
  choose("#confusion input[value=natural]", (radio) => (radio.checked = true));
  note("switched", before !== JSON.stringify(matrix.data[0].customdata));
  Plotly.Fx.hover(matrix, { xval: 1, yval: 0 });
  note("hover", matrix.querySelector(".hovertext")?.textContent);
  choose("#learning select", (select) => (select.value = "0"));
  note("lines", document.querySelector("#learning .plot").data.length);
  note("empty", document.querySelectorAll(".plot.empty").length);
  dispatchEvent(new Event("beforeprint"));
  note("printed", document.querySelector("#classes .plot")._fullLayout.height);
  dispatchEvent(new Event("afterprint"));
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_the_plots_and_runs_no_name(runs: list[RobustnessRun], tmp_path: Path) -> None:
    hostile = [replace(runs[0], label=f"A {HOSTILE}"), *runs[1:]]
    page = build_robustness(hostile, title=HOSTILE, command=HOSTILE, output=tmp_path / "page.html")
    page.write_text(page.read_text().replace("<head>", "<head>" + PROBE, 1))
    document = _rendered(page, tmp_path / "profile", dark=True)
    root = re.search(r"<html[^>]*>", document)
    assert root is not None
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', root[0]))
    count = runs[0].evaluation["natural"]["confusion"][0][1]
    assert found.pop("hover").startswith(f"airplane taken for automobile:{count} pictures")
    stars = 2
    assert found == {"switched": "true", "lines": str(6 + stars), "empty": "0", "printed": str(110 + 24 * 10)}
    assert document.count('class="main-svg"') >= document.count('data-figure="') == 8


def test_an_attacker_without_shadows_is_named_only_where_there_were_none(run: RobustnessRun) -> None:
    def said(shadows: int) -> bool:
        membership = run.part("membership") | {"shadows": shadows}
        other = replace(run, evaluation=run.evaluation | {"membership": membership})
        return any("without shadow models" in text for text in words.untested([other]))

    assert said(0) and not said(4)


def with_form(run: RobustnessRun, form: str | None) -> RobustnessRun:
    """The run with `lira` among its attacks."""
    found = run.part("membership")
    entry = found["attacks"]["loss"] | {"signal": "likelihood ratio"} | ({} if form is None else {"form": form})
    attacks = found["attacks"] | {"lira": entry}
    return replace(run, evaluation=run.evaluation | {"membership": found | {"shadows": 4, "attacks": attacks}})


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("online", "likelihood ratio; online form"),
        ("offline", "likelihood ratio; offline form"),
        (None, "likelihood ratio"),
        (["x"], "likelihood ratio"),
    ],
)
def test_the_form_of_an_attack_with_shadows_stands_beside_it(run: RobustnessRun, form: Any, shown: str) -> None:
    ((_, _, entries),) = tables.membership([with_form(run, form)])
    assert {name: signal for name, signal, _ in entries}["lira"] == shown
    assert any("offline" in text for text in words.untested([with_form(run, form)])) == (form == "offline")


def test_the_page_shows_the_form(run: RobustnessRun, tmp_path: Path) -> None:
    assert "likelihood ratio; offline form" in written([with_form(run, "offline")], tmp_path).text
