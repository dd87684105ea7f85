"""The report: what it says, what it must never do with hostile text, and that a browser really draws it."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

import synthetic_audit as synthetic
from lorica.errors import LoricaError
from lorica.report import ReportRun, build, figures, load_run, words
from lorica.report.page import inline_json

HOSTILE = "</script><!--<script><img src=x onerror=document.documentElement.dataset.hacked=1>{{7*7}}%{x}&amp;\u202e"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """The elements, the visible text and the inline data of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.styles: list[str] = []
        self.data: dict[str, Any] = {}
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag == "script":
            if attributes.get("id") == "report-data" and data.strip():
                self.data = json.loads(data)
        elif tag == "style":
            self.styles.append(data)
        else:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def sections(self) -> list[str | None]:
        return [section["id"] for section in self.all("section")]


def written(runs: list[ReportRun], folder: Path, title: str = "A page", command: str = "lorica audit") -> Page:
    return Page(build(runs, title=title, command=command, output=folder / "report.html"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(synthetic.three_runs(), tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def lora() -> ReportRun:
    return synthetic.run(synthetic.LORA, "LoRA")


@pytest.fixture(scope="module")
def one(lora: ReportRun, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written([lora], tmp_path_factory.mktemp("one"))


ORDER = ["verdict", "comparison", "attacks", "roc", "scores", "training", "samples", "tradeoff"]
ORDER += ["controls", "caveats", "settings", "provenance"]


def test_all_parts_are_there_in_order_and_the_contents_link_to_each(three: Page) -> None:
    assert three.sections == ORDER
    assert [a["href"] for a in three.all("a")] == ["#verdict", *(f"#{name}" for name in ORDER)]


def test_the_verdict_comes_first_and_in_plain_words(three: Page) -> None:
    body = three.text.split("Provenance", 1)[1]  # after the contents
    verdict = body.index("LoRA and MP-LoRA leak their training pictures. No leak was found in SMP-LoRA.")
    assert verdict < re.search(r"\d", body.replace("A page", "")).start()  # type: ignore[union-attr]


def test_one_run_gets_its_base_model_row_from_the_negative_control(lora: ReportRun, one: Page) -> None:
    base = lora.audit["controls"]["base"][lora.worst]["auc"]["value"]
    assert "LoRA leaks its training pictures." in one.text
    assert "Base model" in one.text
    assert f"{base:.3f}" in one.text


def test_the_base_model_has_the_loss_that_was_measured_before_the_first_step(lora: ReportRun, one: Page) -> None:
    assert f"{lora.validated[0]['val_nonmember']:.4f}" in one.text
    traces = one.data["figures"]["quality/validation_loss"]["data"]
    assert [trace["name"] for trace in traces] == ["Base model", "LoRA"]
    assert "quality/kid" not in one.data["figures"]  # one point makes no trade-off


def test_the_loss_is_that_of_the_weights_that_were_kept_where_a_run_ended_early(lora: ReportRun) -> None:
    kept = lora.validated[4]
    audit = lora.audit | {"target": lora.audit["target"] | {"steps": kept["step"]}}
    assert replace(lora, audit=audit, quality=None).validation_loss == kept["val_nonmember"]
    assert replace(lora, quality=None).validation_loss == lora.validated[-1]["val_nonmember"]


def test_the_base_model_row_skips_attacks_that_need_a_lora(lora: ReportRun, tmp_path: Path) -> None:
    controls = {name: auc for name, auc in lora.audit["controls"]["base"].items() if name != lora.worst}
    audit = lora.audit | {"controls": lora.audit["controls"] | {"base": controls}}
    page = written([replace(lora, audit=audit)], tmp_path)
    assert f"{controls[lora.attacks[1]]['auc']['value']:.3f}" in page.text.split("Every attack")[1]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    page = written([ReportRun("LoRA"), ReportRun("LoRA")], tmp_path)
    assert "LoRA (1)" in page.text
    assert "LoRA (2)" in page.text


def test_every_number_of_the_strongest_attack_is_in_the_page(three: Page, lora: ReportRun) -> None:
    attack = lora.audit["attacks"][lora.worst]
    for value in (attack["asr"], attack["oracle_asr"], attack["tpr"]["0.01"], attack["tpr"]["0.05"]):
        assert f"{100 * value['value']:.1f}%" in three.text
    assert f"{attack['auc']['value']:.3f}" in three.text
    assert f"{attack['auc_distance']:.2f}" in three.text
    assert "unreliable" in three.text


def test_hostile_text_arrives_as_text(lora: ReportRun, one: Page, tmp_path: Path) -> None:
    audit = json.loads(json.dumps(lora.audit).replace("nn-loss", json.dumps(HOSTILE)[1:-1]))
    audit["warnings"] = [HOSTILE]
    audit["verdict"]["text"] = audit["gate"]["rule"] = audit["gate"]["reason"] = HOSTILE
    audit["target"]["lora"] = audit["provenance"]["config"]["base"] = HOSTILE
    audit["provenance"]["versions"]["torch"] = HOSTILE
    audit["controls"]["blind"]["method"] = HOSTILE
    audit["captions"]["used"] = audit["collection"]["text"] = HOSTILE
    hostile = replace(
        lora,
        label=HOSTILE,
        audit=audit,
        quality=lora.quality | {"extractor": HOSTILE},
        captions=[HOSTILE] * 4,
    )
    page = written([hostile], tmp_path, title=HOSTILE, command=HOSTILE)

    assert [tag for tag, _ in page.elements] == [tag for tag, _ in one.elements]
    assert page.text.count("{{7*7}}") > 20
    drawn = page.data["figures"]["roc/log"]["data"]
    assert any("&lt;img src=x" in trace["name"] for trace in drawn)  # Plotly reads names as markup
    assert all("<" not in trace["name"] and "%{x}" not in trace.get("hovertemplate", "") for trace in drawn)


def test_inline_json_cannot_be_ended_by_what_it_holds() -> None:
    text = inline_json({HOSTILE: ["<!--", "]]>", "\u2028"]})
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {HOSTILE: ["<!--", "]]>", "\u2028"]}


def test_nothing_is_loaded_from_anywhere(three: Page) -> None:
    loading = {"src", "srcset", "href", "action", "data", "poster", "background", "xlink:href", "formaction"}
    for tag, attributes in three.elements:
        for name in loading & attributes.keys():
            assert str(attributes[name]).startswith(("data:image/png;base64,", "#")), (tag, name)
    assert not any("url(" in style or "@import" in style for style in three.styles)
    policy = next(m["content"] for m in three.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_plotly_is_inlined_once_and_can_stand_in_a_script_element(three: Page) -> None:
    library = get_plotlyjs()
    assert not re.search(r"</script|<!--|<script|\r", library, re.IGNORECASE)
    assert three.source.count(library) == 1


def test_no_score_of_a_single_picture_is_in_the_page(lora: ReportRun, one: Page) -> None:
    scores = lora.audit["attacks"]["mc-loss"]["scores"]
    assert not [score for group in scores.values() for score in group if repr(score) in one.source]


def test_the_answer_about_the_whole_collection_stands_beside_the_verdict(lora: ReportRun, one: Page) -> None:
    said = lora.audit["collection"]["text"]
    assert one.text.index(lora.audit["verdict"]["text"]) < one.text.index(said) < one.text.index("Strongest attack")


def test_the_page_says_which_captions_the_model_was_asked_with(lora: ReportRun, one: Page) -> None:
    assert lora.audit["captions"]["used"] in one.text.split("Provenance")[-1]


def test_missing_and_undefined_numbers_become_dashes(lora: ReportRun, tmp_path: Path) -> None:
    nothing = {"value": math.nan, "low": None}
    audit = {
        "schema": 1,
        "attacks": {
            "loss": {"auc": nothing, "asr": None, "tpr": {"0.01": nothing}, "scores": {"members": [math.nan, 1.0]}},
            "mc-loss": {},
        },
        "controls": {"base": None, "blind": None},
        "verdict": None,
        "gate": None,
        "warnings": None,
    }
    bare = ReportRun("Bare", audit, [{"step": 1, "loss": math.nan}], {"kid": {"value": math.inf}, "fid": None})
    page = written([bare, lora], tmp_path)
    assert "—" in page.text
    assert not re.search(r"\b(nan|NaN|inf|None)\b", page.text)
    assert "No verdict" in page.text
    assert "Not run: nothing shows that the split is fair." in page.text


def test_a_run_without_anything_still_makes_a_page(tmp_path: Path) -> None:
    page = written([ReportRun("Base model")], tmp_path)
    assert page.sections == ["verdict", "comparison", "provenance"]
    assert "The audit holds no verdict." in page.text


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="at least one"):
        build([], title="", command="", output=tmp_path / "page.html")


def test_a_failed_control_is_said_right_under_the_verdict(tmp_path: Path) -> None:
    page = written([synthetic.run(synthetic.LORA, "LoRA", fair=False)], tmp_path)
    assert page.text.index("told from non-members without the model") < page.text.index("Strongest attack")
    assert "weak ground" in page.text


def test_runs_with_the_same_control_share_one_entry() -> None:
    runs = synthetic.three_runs()
    assert [control.runs for control in words.controls(runs)] == [("LoRA", "MP-LoRA", "SMP-LoRA")] * 2


def test_caveats_name_what_was_not_tried_and_how_coarse_the_rates_are() -> None:
    text = " ".join(words.caveats(synthetic.three_runs()))
    assert "shadow LoRAs" in text
    assert "With 120 test non-members, false-alarm rates move in steps of 0.83%" in text
    assert "rests on 1 of them" in text
    assert "same number of steps" in text
    assert "compare with no number elsewhere" in text


def test_a_roc_without_its_inner_points_keeps_its_area(lora: ReportRun) -> None:
    for attack in lora.attacks:
        scores = figures.scores(lora, attack)
        assert scores is not None
        false, true = figures.corners(*scores.roc())
        assert len(false) < len(scores.roc()[0])
        assert np.trapezoid(true, false) == pytest.approx(scores.auc, abs=1e-12)


def test_the_log_axis_shows_what_happens_at_no_false_alarms(lora: ReportRun) -> None:
    logarithmic, linear = (figures.roc([lora], scale) for scale in ("log", "linear"))
    assert logarithmic is not None
    assert linear is not None
    for shown, exact in zip(logarithmic.data[:-1], linear.data[:-1], strict=True):
        assert min(exact.x) == 0
        assert min(shown.x) == 0.5 / 120
        assert shown.y == exact.y


def test_a_histogram_accounts_for_every_picture(lora: ReportRun) -> None:
    figure = figures.histogram(lora, "mc-loss", figures.looks([lora])[0])
    assert figure is not None
    for trace in figure.data:
        assert sum(trace.y[1:-2]) == pytest.approx(1)


def test_equal_scores_make_a_histogram_too(lora: ReportRun) -> None:
    audit = {"attacks": {"loss": {"scores": {"members": [1.0, 1.0], "nonmembers": [1.0]}}}}
    assert figures.histogram(replace(lora, audit=audit), "loss", figures.looks([lora])[0]) is not None


def test_a_run_keeps_its_colour_in_every_plot(three: Page) -> None:
    colour = figures.looks(synthetic.three_runs())[3].light
    for key in ("roc/log", "training", "quality/kid"):
        traces = [trace for trace in three.data["figures"][key]["data"] if trace.get("name") == "SMP-LoRA"]
        assert traces
        assert {(trace.get("line") or trace["marker"])["color"] for trace in traces} == {colour}
    assert colour in three.data["dark"]


def test_runs_of_one_objective_look_different(lora: ReportRun) -> None:
    assert len(set(figures.looks([lora] * 20))) == 20


def test_several_runs_share_a_table_of_every_attack_on_every_run(three: Page, lora: ReportRun, one: Page) -> None:
    table = three.text.split("Every attack")[2].split("Each attack with ASR and TPR")[0]  # after the contents
    runs = synthetic.three_runs()[1:]
    assert [f"{run.auc(attack).value:.3f}" in table for run in runs for attack in run.attacks] == [True] * 12
    assert "Each attack with ASR and TPR" not in one.text


def test_many_runs_are_counted_and_not_all_named() -> None:
    runs = [synthetic.run(synthetic.LORA, f"leaky {i}") for i in range(3)]
    runs += [synthetic.run(synthetic.SMP_LORA, f"tight {i}") for i in range(2)]
    assert words.headline(runs) == (
        "3 of 5 LoRAs leak their training pictures. No leak was found in tight 0 and tight 1."
    )
    assert {control.whose for control in words.controls(runs)} == {"all 5 LoRAs"}


def test_names_beside_the_tradeoff_never_touch_and_keep_their_order() -> None:
    heights = [0.98, 0.5, 0.985, 0.97, 0.4, 0.975, 0.52]
    places = figures.apart(heights, 0.04, 0.4, 1.0)
    assert np.argsort(places).tolist() == np.argsort(heights).tolist()
    assert np.diff(sorted(places)).min() >= 0.04 - 1e-12
    assert min(places) >= 0.4 and max(places) <= 1.0
    assert figures.apart([0.9, 0.1], 0.04, 0.0, 1.0) == [0.9, 0.1]  # who has room stays where he is


def test_the_page_shows_the_tpr_at_the_rates_that_were_audited(tmp_path: Path) -> None:
    run = synthetic.run(synthetic.LORA, "LoRA")
    for attack in run.audit["attacks"].values():
        found = attack["tpr"].pop("0.01")
        attack["tpr"] |= {"0.001": found, "0.2": found, "<b>": found, "nan": found}
    page = written([run], tmp_path)
    assert "20% FPR" in page.text and "0.1% FPR" in page.text and "1% FPR" not in page.text.replace("0.1% FPR", "")
    assert "20% false alarms" in page.text and "nan" not in page.text.lower().split("settings")[0]


def test_many_names_and_a_long_hostile_one_leave_room_for_the_tradeoff() -> None:
    runs = [synthetic.run(synthetic.LORA, "&" * 500)] + [synthetic.run(synthetic.LORA, f"LoRA {i}") for i in range(29)]
    points = [(run, figures.Estimate(0.4), figures.Estimate(0.9)) for run in runs]
    figure = figures.tradeoff(points, "Validation loss", figures.looks(runs))
    assert figure is not None and figure.layout.margin.r < 320
    assert figure.layout.annotations[0].text == "&amp;" * 39 + "…"
    places = [note.ay for note in figure.layout.annotations]
    assert len(set(places)) == 30 and min(places) >= figure.layout.yaxis.range[0]


def test_a_base_model_far_off_does_not_squeeze_the_others(lora: ReportRun) -> None:
    runs = [synthetic.base_run(), lora, synthetic.run(synthetic.SMP_LORA, "SMP-LoRA")]

    def drawn(base: float) -> tuple[float, tuple[float, float], str]:
        points = [(run, figures.Estimate(x), run.auc("loss")) for run, x in zip(runs, (base, 0.4, 0.5), strict=True)]
        points[0] = (*points[0][:2], figures.Estimate(0.5))
        figure = figures.tradeoff(points, "Validation loss", figures.looks(runs))
        assert figure is not None
        return figure.data[0].x[0], figure.layout.xaxis.range, figure.layout.annotations[0].text

    assert drawn(0.6)[0] == 0.6 and drawn(0.6)[2] == "Base model"
    x, (_, right), label = drawn(1.6)
    assert 0.5 < x < right < 0.6 and label == "Base model (at 1.6)"


def test_pictures_of_the_same_caption_stand_side_by_side(three: Page) -> None:
    labels = [image["alt"].split(":")[0] for image in three.all("img")]  # type: ignore[union-attr]
    assert labels == ["Base model", "LoRA", "MP-LoRA", "SMP-LoRA"] * len(synthetic.CAPTIONS)


def test_large_pictures_are_embedded_smaller(lora: ReportRun, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8))
    page = written([ReportRun("Base model", samples=[noise])], tmp_path)
    assert len(str(page.all("img")[0]["src"])) < 384 * 384 * 3 * 1.5


def test_a_page_that_cannot_be_finished_leaves_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("earlier")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(LoricaError, match=re.escape("broken.png")):
        written([ReportRun("LoRA", samples=[tmp_path / "broken.png"], captions=["x"])], tmp_path)
    assert (tmp_path / "report.html").read_text() == "earlier"


def test_the_same_results_make_the_same_page(lora: ReportRun, one: Page, tmp_path: Path) -> None:
    assert written([lora], tmp_path).source == one.source


def test_names_in_no_encoding_do_not_stop_the_page(tmp_path: Path) -> None:
    assert "na?ve" in written([ReportRun("na\udcefve")], tmp_path).text


@pytest.fixture
def folders(lora: ReportRun, tmp_path: Path) -> tuple[Path, Path]:
    """(audit, run) as the commands leave them."""
    audit, run = tmp_path / "audit", tmp_path / "run"
    for folder in (audit, run / "samples"):
        folder.mkdir(parents=True)
    (audit / "audit.json").write_text(json.dumps(lora.audit))
    (audit / "quality.json").write_text(json.dumps(lora.quality))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lora.metrics))
    for step in (500, 1000):
        Image.new("RGB", (128, 64)).save(run / "samples" / f"step_{step:06}.png")
    return audit, run


def test_what_the_commands_wrote_is_read_back(folders: tuple[Path, Path], lora: ReportRun) -> None:
    run = load_run(*folders)
    assert (run.label, run.audit, run.metrics, run.quality) == ("LoRA", lora.audit, lora.metrics, lora.quality)
    assert run.samples == [folders[1] / "samples" / "step_001000.png"]
    assert run.captions == ["drawn in training, step 1000"]


@pytest.mark.parametrize(
    ("target", "label"),
    [
        ({"objective": "smp-lora", "lora": "pytorch_lora_weights.safetensors"}, "SMP-LoRA"),
        ({"objective": "lora", "defences": "augment, early-stopping", "lora": "x"}, "LoRA + augment, early-stopping"),
        ({"lora": "faces.safetensors"}, "faces"),
        ({"lora": "pytorch_lora_weights.safetensors"}, "audit"),
        ({"lora": None}, "Base model"),
    ],
)
def test_a_model_is_called_by_its_objective_or_its_file(
    folders: tuple[Path, Path], target: dict[str, Any], label: str
) -> None:
    (folders[0] / "audit.json").write_text(json.dumps({"schema": 1, "target": target}))
    assert load_run(folders[0]).label == label


def test_an_audit_alone_is_enough(folders: tuple[Path, Path]) -> None:
    run = load_run(folders[0])
    assert run.metrics == []
    assert run.samples == []


def test_a_log_line_cut_off_by_a_kill_is_skipped_but_damage_is_named(folders: tuple[Path, Path]) -> None:
    log = folders[1] / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 12')
    assert len(load_run(*folders).metrics) == len(whole.splitlines())
    log.write_text('{"step": 1\n' + whole)
    with pytest.raises(LoricaError, match="line 1"):
        load_run(*folders)


@pytest.mark.parametrize("content", ['{"schema": 99}', "[]", "{}"])
def test_a_foreign_schema_is_refused(folders: tuple[Path, Path], content: str) -> None:
    (folders[0] / "audit.json").write_text(content)
    with pytest.raises(LoricaError, match="schema"):
        load_run(folders[0])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="not found"):
        load_run(tmp_path)


# Stands before the page's own policy, and reports what went wrong and what the controls did.
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
  const roc = document.querySelector("#roc .plot");
  note("before", roc._fullLayout.xaxis.type + " " + roc.data.length);
  choose("#roc input[value=linear]", (radio) => (radio.checked = true));
  choose("#roc select", (select) => (select.value = "mc-loss"));
  choose("#scores select", (select) => (select.value = "loss"));
  note("after", roc._fullLayout.xaxis.type + " " + roc.data.length);
  dispatchEvent(new Event("beforeprint"));
  note("printed", document.querySelectorAll("details:not([open])").length + " " + roc._fullLayout.width);
  dispatchEvent(new Event("afterprint"));
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_the_plots_and_runs_no_caption(tmp_path: Path, dark: bool) -> None:
    runs = [replace(run, captions=[HOSTILE] * 4) for run in synthetic.three_runs()]
    runs[1] = replace(runs[1], label=f"LoRA {HOSTILE}")
    page = build(runs, title=HOSTILE, command=HOSTILE, output=tmp_path / "page.html")
    page.write_text(page.read_text().replace("<head>", "<head>" + PROBE, 1))
    document = _rendered(page, tmp_path / "profile", dark)

    root = re.search(r"<html[^>]*>", document)
    assert root is not None
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', root[0]))
    assert found == {"before": "log 13", "after": "linear 4", "printed": "0 640"}
    plots = document.count('data-figure="')
    assert plots == 1 + 3 + 1 + 1
    assert document.count('class="main-svg"') >= plots
    colour = figures.looks(runs)[3]
    assert f"stroke: {_rgb(colour.dark if dark else colour.light)}" in document


def _rgb(colour: str) -> str:
    return "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))


def _rendered(page: Path, profile: Path, dark: bool) -> str:
    options = "headless no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update"
    command = [
        str(CHROMIUM),
        *(f"--{option}" for option in [*options.split(), "disable-sync", "disable-dev-shm-usage"]),
        f"--user-data-dir={profile}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=10000",
        "--dump-dom",
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
